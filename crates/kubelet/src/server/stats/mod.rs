//! What the node, its pods and their containers use: one sample, shown as `/stats/summary` and as metrics.

mod exposition;
mod host;
mod own;
mod summary;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use cri::messages::stats::ContainerStats;
use jiff::Timestamp;
use parking_lot::Mutex;

pub use exposition::{cadvisor_metrics, resource_metrics};
use host::Host;
pub use own::{Own, own_metrics, probe_metrics};
pub use summary::summary;
pub use volumes::VolumeSample;

use super::{Runtime, pods};
use crate::cgroup::Cgroups;
use crate::pods::{PodRecord, PodStore, RunState};
use crate::podutil;

/// A rate needs two readings this far apart at least, or noise is all it shows.
const RATE_NANOS_MIN: i64 = 1_000_000_000;

/// Use of resources at one time. Bytes and nanoseconds throughout.
pub struct Sample {
    time: Timestamp,
    host: Host,
    node_cpu: Cpu,
    pods: Vec<PodSample>,
    /// Used bytes and inodes of the images' file system, where the runtime knows.
    image_filesystem: Option<host::Filesystem>,
}

struct PodSample {
    namespace: String,
    name: String,
    uid: String,
    started: Option<Timestamp>,
    containers: Vec<ContainerSample>,
    /// Of the pod's own network; empty for pods of the host's.
    interfaces: Vec<host::Interface>,
    volumes: Vec<VolumeSample>,
}

struct ContainerSample {
    name: String,
    id: String,
    image: String,
    started: Timestamp,
    cpu: Option<Cpu>,
    memory: Memory,
    writable_bytes: Option<u64>,
    writable_inodes: Option<u64>,
    log_bytes: Option<u64>,
}

#[derive(Clone, Copy)]
struct Cpu {
    time: Timestamp,
    /// CPU time since the start.
    core_nanos: u64,
    /// CPU nanoseconds a second, over the time since an earlier reading.
    nano_cores: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Memory {
    usage: Option<u64>,
    working_set: Option<u64>,
    available: Option<u64>,
    rss: Option<u64>,
    page_faults: Option<u64>,
    major_page_faults: Option<u64>,
}

/// Takes samples, and remembers earlier readings for rates.
pub struct Sampler {
    readings: Mutex<HashMap<String, Reading>>,
    cgroups: Cgroups,
    volumes: volumes::Measured,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler {
            readings: Mutex::default(),
            cgroups: Cgroups::detect(Path::new(crate::cgroup::MOUNT)),
            volumes: volumes::Measured::default(),
        }
    }
}

#[derive(Clone, Copy)]
struct Reading {
    at_nanos: i64,
    core_nanos: u64,
    /// The last rate, shown again to those who ask too soon.
    rate: Option<u64>,
}

impl Reading {
    /// The reading after this one. CPU time that runs backwards means a restart: the rate is unknown.
    fn next(self, at_nanos: i64, core_nanos: u64) -> Reading {
        let elapsed = at_nanos - self.at_nanos;
        if elapsed < RATE_NANOS_MIN {
            return self;
        }
        let used = core_nanos.checked_sub(self.core_nanos);
        let rate = used.map(|used| (u128::from(used) * 1_000_000_000 / elapsed.unsigned_abs() as u128) as u64);
        Reading { at_nanos, core_nanos, rate }
    }
}

impl Sampler {
    pub async fn take(&self, store: &PodStore, runtime: &dyn Runtime, root_dir: &Path) -> cri::Result<Sample> {
        let (stats, images) = tokio::join!(runtime.container_stats(), runtime.image_filesystems());
        let stats: HashMap<String, ContainerStats> =
            stats?.into_iter().filter_map(|stats| Some((stats.attributes.as_ref()?.id.clone(), stats))).collect();
        let root_dir = root_dir.to_owned();
        let image_mount = images.ok().and_then(|images| images.into_iter().next());
        let (host, image_filesystem) = tokio::task::spawn_blocking(move || {
            let image_filesystem = image_mount.and_then(|used| host::image_filesystem(&used));
            (Host::read(&root_dir), image_filesystem)
        })
        .await
        .unwrap_or_default();
        let time = Timestamp::now();
        let node_cpu = self.cpu("", time, host.cpu_nanos);
        let mut pods = Vec::new();
        let mut seen = HashSet::from([String::new()]);
        let records = store.list();
        let mut volumes = self.volumes(&records).await;
        for record in records {
            let mut pod = self.pod(&record, &stats, &mut seen);
            pod.volumes = volumes.remove(&pod.uid).unwrap_or_default();
            if !pod.containers.is_empty() {
                pods.push(pod);
            }
        }
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        self.readings.lock().retain(|id, _| seen.contains(id));
        Ok(Sample { time, host, node_cpu, pods, image_filesystem })
    }

    /// The use of the pods' volumes, by UID; measured anew only now and then.
    pub async fn volumes(&self, records: &[Arc<PodRecord>]) -> HashMap<String, Vec<VolumeSample>> {
        self.volumes.of(records).await
    }

    fn pod(
        &self,
        record: &PodRecord,
        stats: &HashMap<String, ContainerStats>,
        seen: &mut HashSet<String>,
    ) -> PodSample {
        let running = record.containers.iter().filter(|container| container.state == RunState::Running);
        let containers = running.filter_map(|container| {
            let stats = stats.get(&container.id)?;
            seen.insert(container.id.clone());
            let cpu = stats.cpu.as_ref().and_then(|cpu| {
                let time = Timestamp::from_nanosecond(i128::from(cpu.timestamp)).ok()?;
                Some(self.cpu(&container.id, time, cpu.usage_core_nano_seconds.as_ref()?.value))
            });
            let memory = stats.memory.as_ref();
            let layer = stats.writable_layer.as_ref();
            Some(ContainerSample {
                name: container.name.clone(),
                id: container.id.clone(),
                image: pods::image(&record.pod, &container.name).to_owned(),
                started: container.created_at,
                cpu,
                memory: memory.map(memory_of).unwrap_or_default(),
                writable_bytes: layer.and_then(|layer| layer.used_bytes.as_ref()).map(|bytes| bytes.value),
                writable_inodes: layer.and_then(|layer| layer.inodes_used.as_ref()).map(|inodes| inodes.value),
                log_bytes: std::fs::metadata(&container.log_path).ok().map(|log| log.len()),
            })
        });
        let containers: Vec<ContainerSample> = containers.collect();
        let own_network = podutil::spec(&record.pod).host_network != Some(true);
        let process =
            containers.iter().filter(|_| own_network).find_map(|c| self.cgroups.process_of(&record.pod, &c.id));
        let meta = &record.pod.metadata;
        PodSample {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: record.uid().to_owned(),
            started: record.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0),
            containers,
            interfaces: process.map(host::interfaces_of).unwrap_or_default(),
            volumes: Vec::new(),
        }
    }

    /// A reading of CPU time with its rate since an earlier one.
    fn cpu(&self, id: &str, time: Timestamp, core_nanos: u64) -> Cpu {
        let at_nanos = i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX);
        let mut readings = self.readings.lock();
        let reading = match readings.get(id) {
            Some(earlier) => earlier.next(at_nanos, core_nanos),
            None => Reading { at_nanos, core_nanos, rate: None },
        };
        readings.insert(id.to_owned(), reading);
        Cpu { time, core_nanos, nano_cores: reading.rate }
    }
}

fn memory_of(memory: &cri::messages::stats::MemoryUsage) -> Memory {
    let value = |number: &Option<cri::messages::image::UInt64Value>| number.as_ref().map(|number| number.value);
    Memory {
        usage: value(&memory.usage_bytes),
        working_set: value(&memory.working_set_bytes),
        available: value(&memory.available_bytes).filter(|bytes| *bytes > 0),
        rss: value(&memory.rss_bytes),
        page_faults: value(&memory.page_faults),
        major_page_faults: value(&memory.major_page_faults),
    }
}

impl PodSample {
    /// The sum over containers of what `of` tells; `None` if no container tells.
    fn sum(&self, of: impl Fn(&ContainerSample) -> Option<u64>) -> Option<u64> {
        self.containers.iter().filter_map(of).reduce(u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_time_and_survive_restarts() {
        let second = |n: i64| n * 1_000_000_000;
        let first = Reading { at_nanos: 0, core_nanos: 500, rate: None };
        let soon = first.next(second(1) - 1, 900);
        assert_eq!((soon.core_nanos, soon.rate), (500, None), "too soon: the first reading stands");
        let later = first.next(second(2), 1_000_000_500);
        assert_eq!(later.rate, Some(500_000_000));
        assert_eq!(later.next(second(2) + 5, 2_000_000_000).rate, Some(500_000_000), "asked again at once");
        assert_eq!(later.next(second(4), 7).rate, None, "the counter began anew");
    }
}
