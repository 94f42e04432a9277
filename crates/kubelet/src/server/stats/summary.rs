//! `/stats/summary`, in the shape of upstream's `stats/v1alpha1` `Summary`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::host::Filesystem;
use super::{ContainerSample, Cpu, Memory, PodSample, Sample};

pub fn summary(node_name: &str, sample: &Sample) -> Value {
    let (host, time) = (&sample.host, sample.time);
    let node = without_nulls(json!({
        "nodeName": node_name,
        "startTime": host.booted.map(seconds),
        "cpu": cpu(&sample.node_cpu),
        "memory": memory(&host.memory, time),
        "network": network(&host.interfaces, time),
        "fs": host.filesystem.as_ref().map(|fs| filesystem(fs, time)),
        "runtime": sample.image_filesystem.as_ref().map(|fs| json!({
            "imageFs": filesystem(fs, time),
            "containerFs": filesystem(fs, time),
        })),
        "rlimit": without_nulls(json!({
            "time": seconds(time), "maxpid": host.processes_max, "curproc": host.processes,
        })),
    }));
    json!({"node": node, "pods": sample.pods.iter().map(|one| pod(one, sample)).collect::<Vec<_>>()})
}

fn pod(pod: &PodSample, sample: &Sample) -> Value {
    let time = sample.time;
    let used = pod.sum(|c| Some(c.writable_bytes.unwrap_or(0) + c.log_bytes.unwrap_or(0)));
    let whole_cpu = pod.sum(|c| c.cpu.map(|cpu| cpu.core_nanos)).map(|core_nanos| Cpu {
        time,
        core_nanos,
        nano_cores: pod.sum(|c| c.cpu.and_then(|cpu| cpu.nano_cores)),
    });
    let whole_memory = Memory {
        usage: pod.sum(|c| c.memory.usage),
        working_set: pod.sum(|c| c.memory.working_set),
        rss: pod.sum(|c| c.memory.rss),
        page_faults: pod.sum(|c| c.memory.page_faults),
        major_page_faults: pod.sum(|c| c.memory.major_page_faults),
        available: None,
    };
    without_nulls(json!({
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": pod.started.map(seconds),
        "containers": pod.containers.iter().map(|one| container(one, sample)).collect::<Vec<_>>(),
        "cpu": whole_cpu.as_ref().map(cpu),
        "memory": memory(&whole_memory, time),
        "network": network(&pod.interfaces, time),
        "volume": volumes(pod),
        "ephemeral-storage": sample.host.filesystem.as_ref().map(|fs| use_of(fs, used, None, time)),
    }))
}

fn volumes(pod: &PodSample) -> Option<Value> {
    let volumes = pod.volumes.iter().map(|volume| {
        let mut shown = filesystem(&volume.filesystem, volume.time);
        shown["name"] = json!(volume.name);
        if let Some(claim) = &volume.claim {
            shown["pvcRef"] = json!({"name": claim, "namespace": pod.namespace});
        }
        shown
    });
    let volumes: Vec<Value> = volumes.collect();
    (!volumes.is_empty()).then(|| volumes.into())
}

fn container(container: &ContainerSample, sample: &Sample) -> Value {
    let time = sample.time;
    let images = sample.image_filesystem.as_ref().or(sample.host.filesystem.as_ref());
    without_nulls(json!({
        "name": container.name,
        "startTime": seconds(container.started),
        "cpu": container.cpu.as_ref().map(cpu),
        "memory": memory(&container.memory, time),
        "rootfs": images.map(|fs| use_of(fs, container.writable_bytes, container.writable_inodes, time)),
        "logs": sample.host.filesystem.as_ref().map(|fs| use_of(fs, container.log_bytes, None, time)),
    }))
}

fn cpu(cpu: &Cpu) -> Value {
    without_nulls(json!({
        "time": seconds(cpu.time), "usageNanoCores": cpu.nano_cores, "usageCoreNanoSeconds": cpu.core_nanos,
    }))
}

fn memory(memory: &Memory, time: Timestamp) -> Value {
    without_nulls(json!({
        "time": seconds(time),
        "availableBytes": memory.available,
        "usageBytes": memory.usage,
        "workingSetBytes": memory.working_set,
        "rssBytes": memory.rss,
        "pageFaults": memory.page_faults,
        "majorPageFaults": memory.major_page_faults,
    }))
}

/// The first interface stands for the node or pod, and all of them follow.
fn network(interfaces: &[super::host::Interface], time: Timestamp) -> Option<Value> {
    let one = |interface: &super::host::Interface| {
        json!({
            "name": interface.name,
            "rxBytes": interface.rx_bytes, "rxErrors": interface.rx_errors,
            "txBytes": interface.tx_bytes, "txErrors": interface.tx_errors,
        })
    };
    let mut network = one(interfaces.first()?);
    network["time"] = json!(seconds(time));
    network["interfaces"] = interfaces.iter().map(one).collect();
    Some(network)
}

fn filesystem(fs: &Filesystem, time: Timestamp) -> Value {
    use_of(fs, Some(fs.used), Some(fs.inodes_used), time)
}

/// A part of a file system.
fn use_of(fs: &Filesystem, used: Option<u64>, inodes_used: Option<u64>, time: Timestamp) -> Value {
    without_nulls(json!({
        "time": seconds(time),
        "availableBytes": fs.available, "capacityBytes": fs.capacity, "usedBytes": used,
        "inodesFree": fs.inodes_free, "inodes": fs.inodes, "inodesUsed": inodes_used,
    }))
}

/// `metav1.Time` has whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::VolumeSample;
    use super::super::host::{Host, Interface};
    use super::*;

    #[test]
    fn shape() {
        let time: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let container = ContainerSample {
            name: "app".to_owned(),
            id: "c1".to_owned(),
            image: "web:1".to_owned(),
            started: time,
            cpu: Some(Cpu { time, core_nanos: 9, nano_cores: None }),
            memory: Memory { working_set: Some(7), ..Memory::default() },
            writable_bytes: Some(3),
            writable_inodes: None,
            log_bytes: Some(4),
        };
        let sample = Sample {
            time,
            host: Host {
                interfaces: vec![Interface { name: "eth0".to_owned(), rx_bytes: 1, ..Interface::default() }],
                filesystem: Some(Filesystem { capacity: 100, ..Filesystem::default() }),
                ..Host::default()
            },
            node_cpu: Cpu { time, core_nanos: 5, nano_cores: Some(2) },
            pods: vec![PodSample {
                namespace: "ns".to_owned(),
                name: "web".to_owned(),
                uid: "u".to_owned(),
                started: None,
                containers: vec![container],
                interfaces: vec![Interface { name: "eth0".to_owned(), tx_bytes: 6, ..Interface::default() }],
                volumes: vec![VolumeSample {
                    name: "data".to_owned(),
                    claim: Some("c".to_owned()),
                    time,
                    filesystem: Filesystem { used: 8, ..Filesystem::default() },
                }],
            }],
            image_filesystem: None,
        };
        let summary = summary("n1", &sample);
        assert_eq!(summary["node"]["nodeName"], "n1");
        let cpu = json!({"time": "2026-01-02T03:04:05Z", "usageNanoCores": 2, "usageCoreNanoSeconds": 5});
        assert_eq!(summary["node"]["cpu"], cpu);
        assert_eq!(summary["node"]["network"]["interfaces"][0]["rxBytes"], 1);
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "web", "namespace": "ns", "uid": "u"}));
        assert_eq!(pod["cpu"], json!({"time": "2026-01-02T03:04:05Z", "usageCoreNanoSeconds": 9}));
        assert_eq!((&pod["network"]["name"], &pod["network"]["txBytes"]), (&json!("eth0"), &json!(6)));
        let volume = &pod["volume"][0];
        assert_eq!((&volume["usedBytes"], &volume["pvcRef"]["namespace"]), (&json!(8), &json!("ns")));
        assert_eq!(pod["memory"]["workingSetBytes"], 7);
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 7);
        assert_eq!(pod["containers"][0]["rootfs"]["usedBytes"], 3);
        assert_eq!(pod["containers"][0]["rootfs"].get("inodesUsed"), None);
    }
}
