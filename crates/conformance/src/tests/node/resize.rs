//! Pods resized in place: the spec, the status and the cgroups follow, and nothing is restarted.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::framework::*;

tests! {
    "[sig-node] Pod InPlace Resize Container burstable pods - extended 6 containers - various operations performed (including adding limits and requests) [MinimumKubeletVersion:1.34] [Conformance]" => resize, &VARIOUS, false;
    "[sig-node] Pod InPlace Resize Container burstable pods - extended resize with equivalents [MinimumKubeletVersion:1.34] [Conformance]" => resize, &EQUIVALENTS, true;
    "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, c2, decrease cpu & mem on c3 - net increase [MinimumKubeletVersion:1.34] [Conformance]" => resize, &NET_INCREASE, true;
    "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase cpu & mem on c1, decrease cpu & mem on c2, c3 - net decrease [MinimumKubeletVersion:1.34] [Conformance]" => resize, &NET_DECREASE, true;
    "[sig-node] Pod InPlace Resize Container guaranteed pods with multiple containers 3 containers - increase: CPU (c1,c3), memory (c2, c3) ; decrease: CPU (c2) [MinimumKubeletVersion:1.34] [Conformance]" => resize, &MIXED, true;
    "[sig-node] Pod InPlace Resize Container resize pod via the replace endpoint [MinimumKubeletVersion:1.34] [Conformance]" => replace;
}

/// A container's CPU in thousandths and memory in MiB; 0 where not set.
#[derive(Clone, Copy, Default)]
struct Sizes {
    cpu_request: u64,
    cpu_limit: u64,
    memory_request: u64,
    memory_limit: u64,
}

const NONE: Sizes = Sizes { cpu_request: 0, cpu_limit: 0, memory_request: 0, memory_limit: 0 };

const fn guaranteed(cpu: u64, memory: u64) -> Sizes {
    Sizes { cpu_request: cpu, cpu_limit: cpu, memory_request: memory, memory_limit: memory }
}

/// What the containers have at first, and what they are to have.
type Change = &'static [(Sizes, Sizes)];

// Containers differ a little from each other, so that a mix-up shows.
static NET_INCREASE: [(Sizes, Sizes); 3] = [
    (guaranteed(20, 35), guaranteed(25, 40)),
    (guaranteed(22, 37), guaranteed(27, 42)),
    (guaranteed(24, 39), guaranteed(19, 34)),
];
static NET_DECREASE: [(Sizes, Sizes); 3] = [
    (guaranteed(20, 35), guaranteed(25, 40)),
    (guaranteed(22, 37), guaranteed(17, 32)),
    (guaranteed(24, 39), guaranteed(19, 34)),
];
static MIXED: [(Sizes, Sizes); 3] = [
    (guaranteed(20, 35), guaranteed(25, 35)),
    (guaranteed(22, 37), guaranteed(17, 42)),
    (guaranteed(24, 39), guaranteed(29, 44)),
];
static EQUIVALENTS: [(Sizes, Sizes); 1] =
    [(Sizes { cpu_request: 2, cpu_limit: 10, ..NONE }, Sizes { cpu_request: 1, cpu_limit: 5, ..NONE })];
static VARIOUS: [(Sizes, Sizes); 6] = [
    (Sizes { cpu_request: 20, ..NONE }, Sizes { cpu_request: 25, cpu_limit: 35, ..NONE }),
    (Sizes { memory_request: 35, ..NONE }, Sizes { memory_request: 30, memory_limit: 50, ..NONE }),
    (Sizes { cpu_request: 20, memory_request: 35, ..NONE }, Sizes { cpu_request: 20, memory_request: 30, ..NONE }),
    (Sizes { cpu_request: 20, ..NONE }, Sizes { cpu_request: 15, memory_request: 35, ..NONE }),
    (Sizes { memory_request: 35, ..NONE }, Sizes { cpu_request: 20, memory_request: 40, ..NONE }),
    (
        Sizes { cpu_request: 20, cpu_limit: 30, memory_request: 35, memory_limit: 45 },
        Sizes { cpu_request: 15, cpu_limit: 35, memory_request: 40, memory_limit: 50 },
    ),
];

impl Sizes {
    /// As a container's `resources`; what is not set is not there.
    fn resources(self) -> Value {
        let list = |cpu: u64, memory: u64| {
            let mut list = Map::new();
            if cpu > 0 {
                list.insert("cpu".to_owned(), format!("{cpu}m").into());
            }
            if memory > 0 {
                list.insert("memory".to_owned(), format!("{memory}Mi").into());
            }
            list
        };
        let mut resources = Map::new();
        for (name, list) in [
            ("requests", list(self.cpu_request, self.memory_request)),
            ("limits", list(self.cpu_limit, self.memory_limit)),
        ] {
            if !list.is_empty() {
                resources.insert(name.to_owned(), list.into());
            }
        }
        resources.into()
    }

    /// `cpu.max` and `memory.max` of the second cgroup version. A runtime under systemd rounds the quota up to a hundredth of a CPU.
    fn limits(self) -> (Vec<String>, String) {
        let cpu = match self.cpu_limit {
            0 => vec!["max 100000".to_owned()],
            milli => {
                let quota = (milli * 100).max(1000);
                [quota, quota.next_multiple_of(1000)].iter().map(|quota| format!("{quota} 100000")).collect()
            }
        };
        let memory = if self.memory_limit == 0 { "max".to_owned() } else { (self.memory_limit << 20).to_string() };
        (cpu, memory)
    }

    /// `cpu.weight` of the request, by the conversion of runtimes up to now, and by the newer one.
    fn weights(self) -> [u64; 2] {
        let shares = (self.cpu_request * 1024 / 1000).max(2);
        let linear = 1 + ((shares - 2) * 9999) / 262_142;
        let log = (shares as f64).log2();
        let curved = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
        [linear, if shares <= 2 { 1 } else { curved as u64 }]
    }
}

fn container_name(index: usize) -> String {
    format!("c{}", index + 1)
}

fn subject(sizes: &[Sizes]) -> Value {
    let containers: Vec<Value> = sizes
        .iter()
        .enumerate()
        .map(|(index, sizes)| {
            let mut container = idle(&container_name(index));
            container["resources"] = sizes.resources();
            container
        })
        .collect();
    let mut pod = pod("subject", containers);
    pod["spec"]["os"] = json!({"name": "linux"});
    pod["spec"]["restartPolicy"] = "OnFailure".into();
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

/// What an object says of a container's resources, without fields that say nothing.
fn said(resources: &Value) -> Value {
    let mut said = resources.clone();
    if let Some(said) = said.as_object_mut() {
        said.retain(|_, list| list.as_object().is_some_and(|list| !list.is_empty()));
    }
    if said.is_null() { json!({}) } else { said }
}

/// The spec has the sizes.
fn in_spec(pod: &Value, sizes: &[Sizes]) -> Result<()> {
    for (index, (container, sizes)) in items(pod, "/spec/containers").iter().zip(sizes).enumerate() {
        let (have, want) = (said(at(container, "/resources")), sizes.resources());
        ensure!(have == want, "{} has {have} in the spec, expected {want}", container_name(index));
    }
    Ok(())
}

/// "Not yet" unless the status has the sizes, the node has nothing left to do, and the pod is ready.
fn in_status(pod: &Value, sizes: &[Sizes]) -> Result<(), String> {
    for kind in ["PodResizePending", "PodResizeInProgress"] {
        if let Some(condition) = condition(pod, kind) {
            return Err(format!("condition {condition}"));
        }
    }
    for (index, sizes) in sizes.iter().enumerate() {
        let subject = container_name(index);
        let status = container_status(pod, &subject).map_err(|error| error.to_string())?;
        let (have, want) = (said(at(status, "/resources")), sizes.resources());
        when(have == want, || format!("{subject} has {have} in the status, expected {want}"))?;
    }
    pod_ready(pod)
}

/// Waits for the status, then looks at the cgroups, and that no container was restarted.
async fn actuated(cx: &Cx, sizes: &[Sizes]) -> Result<()> {
    cx.step("the node actuates the resources");
    let owned = sizes.to_vec();
    let pods = cx.api(&kinds::POD);
    let pod = pods.wait_one("subject", POD, "actuated resources", move |pod| in_status(pod, &owned)).await?;
    ensure!(restarts(&pod) == 0, "{} restarts", restarts(&pod));
    for (index, sizes) in sizes.iter().enumerate() {
        let container = container_name(index);
        in_cgroup(cx, &container, *sizes).await.with_context(|| format!("cgroup of {container}"))?;
    }
    Ok(())
}

const READ_CGROUP: &str = "cd /sys/fs/cgroup
if [ -f cgroup.controllers ]; then cat cpu.max memory.max cpu.weight
else echo v1; cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes cpu/cpu.shares; fi";

async fn in_cgroup(cx: &Cx, container: &str, sizes: Sizes) -> Result<()> {
    let read = cx.exec("subject", container, READ_CGROUP).await?;
    let lines: Vec<&str> = read.lines().map(str::trim).collect();
    match lines[..] {
        ["v1", quota, memory, shares] => in_first_version(sizes, quota, memory, shares),
        [cpu, memory, weight] => {
            let (cpus, wanted) = sizes.limits();
            ensure!(cpus.iter().any(|wanted| wanted == cpu), "cpu.max is {cpu:?}, expected one of {cpus:?}");
            ensure!(memory == wanted, "memory.max is {memory}, expected {wanted}");
            let weights = sizes.weights();
            let fits = weights.iter().any(|wanted| weight == wanted.to_string());
            ensure!(fits, "cpu.weight is {weight}, expected one of {weights:?}");
            Ok(())
        }
        _ => bail!("the cgroup reads {read:?}"),
    }
}

fn in_first_version(sizes: Sizes, quota: &str, memory: &str, shares: &str) -> Result<()> {
    let wanted = match sizes.cpu_limit {
        0 => vec!["-1".to_owned()],
        milli => {
            let quota = (milli * 100).max(1000);
            vec![quota.to_string(), quota.next_multiple_of(1000).to_string()]
        }
    };
    ensure!(wanted.iter().any(|wanted| wanted == quota), "cpu.cfs_quota_us is {quota}, expected one of {wanted:?}");
    if sizes.memory_limit > 0 {
        let wanted = (sizes.memory_limit << 20).to_string();
        ensure!(memory == wanted, "memory.limit_in_bytes is {memory}, expected {wanted}");
    } else {
        // The greatest number of whole pages.
        ensure!(memory.parse::<u64>().is_ok_and(|bytes| bytes > 1 << 60), "memory.limit_in_bytes is {memory}");
    }
    let wanted = (sizes.cpu_request * 1024 / 1000).max(2).to_string();
    ensure!(shares == wanted, "cpu.shares is {shares}, expected {wanted}");
    Ok(())
}

/// Patches the resize subresource, and checks the spec, the generation, the status and the cgroups.
async fn patch(cx: &Cx, sizes: &[Sizes], generation: i64) -> Result<()> {
    let containers: Vec<Value> = sizes
        .iter()
        .enumerate()
        .map(|(index, sizes)| json!({"name": container_name(index), "resources": sizes.resources()}))
        .collect();
    let pods = cx.api(&kinds::POD);
    let patch = json!({"spec": {"containers": containers}});
    let patched = pods.patch_sub("subject", "resize", Patch::Strategic, &patch).await?;
    in_spec(&patched, sizes)?;
    expect(&patched, "/metadata/generation", generation)?;
    actuated(cx, sizes).await?;
    expect(&pods.get("subject").await?, "/status/observedGeneration", generation)
}

async fn start(cx: &Cx, sizes: &[Sizes]) -> Result<()> {
    let made = cx.start(&subject(sizes)).await?;
    expect(&made, "/metadata/generation", 1)?;
    in_spec(&made, sizes)?;
    for container in items(&made, "/spec/containers") {
        expect(container, "/resizePolicy", Value::Null).context("no policy was asked for")?;
    }
    in_status(&made, sizes).map_err(anyhow::Error::msg).context("at the moment when the pod is ready")?;
    actuated(cx, sizes).await.context("before any resize")
}

async fn resize(cx: Arc<Cx>, change: Change, back: bool) -> Result<()> {
    let (before, after): (Vec<Sizes>, Vec<Sizes>) = change.iter().copied().unzip();
    start(&cx, &before).await?;
    patch(&cx, &after, 2).await.context("resize")?;
    if back {
        patch(&cx, &before, 3).await.context("back")?;
    }
    Ok(())
}

async fn replace(cx: Arc<Cx>) -> Result<()> {
    let before = Sizes { cpu_request: 20, memory_request: 35, ..NONE };
    let after = Sizes { cpu_request: 25, memory_request: 40, ..NONE };
    start(&cx, &[before]).await?;
    let pods = cx.api(&kinds::POD);
    cx.step("PUT of the resize subresource");
    let replaced = pods.change_sub("subject", Some("resize"), |pod| {
        pod["spec"]["containers"][0]["resources"] = after.resources();
    });
    let replaced = replaced.await?;
    in_spec(&replaced, &[after])?;
    expect(&replaced, "/metadata/generation", 2)?;
    actuated(&cx, &[after]).await?;
    cx.step("the subresource reads as the pod");
    retry(SOON, "pod and subresource agree", async || {
        let (pod, sub) = (pods.get("subject").await?, pods.send("GET", &["subject", "resize"], &[], None).await?);
        ensure!(pod == sub, "the pod is {pod}, the subresource {sub}");
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_become_resources_and_cgroup_values() {
        let sizes = Sizes { cpu_request: 20, cpu_limit: 35, memory_limit: 50, ..NONE };
        let wanted = json!({"requests": {"cpu": "20m"}, "limits": {"cpu": "35m", "memory": "50Mi"}});
        assert_eq!(sizes.resources(), wanted);
        assert_eq!(sizes.limits(), (vec!["3500 100000".to_owned(), "4000 100000".to_owned()], "52428800".to_owned()));
        assert_eq!(NONE.limits(), (vec!["max 100000".to_owned()], "max".to_owned()));
        assert_eq!(guaranteed(1000, 1).weights(), [39, 100]);
        assert_eq!(NONE.weights(), [1, 1]);
    }
}
