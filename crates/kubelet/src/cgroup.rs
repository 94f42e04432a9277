//! The cgroups of pods: `/kubepods[/burstable|/besteffort]/pod<uid>`, above those that the runtime makes for containers, under
//! cgroup v1 and v2, with the cgroupfs driver.
//!
//! A host that forbids a controller costs that limit, not the pod: failures are logged and lived with.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::container::resources;
use crate::podutil;

/// Where the kernel shows cgroups.
pub const MOUNT: &str = "/sys/fs/cgroup";
const KUBEPODS: &str = "kubepods";
/// Controllers that pod cgroups are made in under v1; the runtime makes the container's in all of them.
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

#[derive(Clone, Debug)]
enum Layout {
    V1 { controllers: Vec<PathBuf>, all: Vec<PathBuf> },
    V2 { root: PathBuf },
    None,
}

#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
}

/// What a pod's cgroup is set to. Zero leaves it as it is (without a limit, if it is new), -1 takes the limit away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    shares: i64,
    quota: i64,
    memory: i64,
}

impl Cgroups {
    /// Finds the hierarchy under `mount` (`/sys/fs/cgroup`).
    pub fn detect(mount: &Path) -> Self {
        let layout = if mount.join("cgroup.controllers").is_file() {
            Layout::V2 { root: mount.to_owned() }
        } else {
            let controllers: Vec<PathBuf> = V1_CONTROLLERS.iter().map(|name| mount.join(name)).collect();
            let entries = std::fs::read_dir(mount).into_iter().flatten().flatten();
            let all = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
            let present: Vec<PathBuf> = controllers.into_iter().filter(|path| path.is_dir()).collect();
            if present.is_empty() { Layout::None } else { Layout::V1 { controllers: present, all } }
        };
        Cgroups { layout }
    }

    /// Makes the quality of service classes' cgroups.
    pub fn ensure_base(&self) {
        for class in ["", "/burstable", "/besteffort"] {
            // Best effort gives way to everybody else; the node's own processes are not ours to weigh.
            let shares = if class == "/besteffort" { resources::shares(0) } else { 0 };
            self.ensure(&format!("{KUBEPODS}{class}"), Limits { shares, quota: 0, memory: 0 });
        }
    }

    pub fn ensure_pod(&self, pod: &Pod) {
        self.ensure(self.parent_of(pod).trim_start_matches('/'), limits(pod));
    }

    /// Sets the pod's limits while its containers change from those of `before`: whichever is higher.
    pub fn resize_pod(&self, pod: &Pod, before: &Pod) {
        let (new, old) = (limits(pod), limits(before));
        // Zero is no limit.
        let higher = |a: i64, b: i64| if a == 0 || b == 0 { -1 } else { a.max(b) };
        let limits =
            Limits { shares: new.shares, quota: higher(new.quota, old.quota), memory: higher(new.memory, old.memory) };
        self.ensure(self.parent_of(pod).trim_start_matches('/'), limits);
    }

    /// Bytes that a running container uses; none if it has ended meanwhile.
    pub fn memory_usage(&self, pod: &Pod, container_id: &str) -> Option<i64> {
        let (root, file) = match &self.layout {
            Layout::V1 { controllers, .. } => {
                (controllers.iter().find(|path| path.ends_with("memory"))?, "memory.usage_in_bytes")
            }
            Layout::V2 { root } => (root, "memory.current"),
            Layout::None => return None,
        };
        let dir = root.join(self.parent_of(pod).trim_start_matches('/')).join(container_id);
        std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
    }

    /// The parent of the pod's sandbox and containers, as the runtime is told it.
    pub fn parent_of(&self, pod: &Pod) -> String {
        let class = match podutil::qos_class(pod) {
            "Guaranteed" => "",
            "Burstable" => "/burstable",
            _ => "/besteffort",
        };
        format!("/{KUBEPODS}{class}/pod{}", podutil::uid(pod))
    }

    /// Some process of a running container; none if it has ended meanwhile.
    pub fn process_of(&self, pod: &Pod, container_id: &str) -> Option<i32> {
        let root = match &self.layout {
            Layout::V1 { controllers, .. } => controllers.first()?,
            Layout::V2 { root } => root,
            Layout::None => return None,
        };
        let dir = root.join(self.parent_of(pod).trim_start_matches('/')).join(container_id);
        std::fs::read_to_string(dir.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
    }

    /// Removes what is left of the pod's cgroups. Directories that still have processes stay.
    pub fn remove_pod(&self, pod: &Pod) {
        // In every class: of a pod that went while the daemon was away, only the UID is known.
        let uid = podutil::uid(pod);
        let relative = ["", "/burstable", "/besteffort"].map(|class| format!("{KUBEPODS}{class}/pod{uid}"));
        let roots = match &self.layout {
            Layout::V1 { all, .. } => all.clone(),
            Layout::V2 { root } => vec![root.clone()],
            Layout::None => Vec::new(),
        };
        for root in roots {
            relative.iter().for_each(|relative| remove_tree(&root.join(relative)));
        }
    }

    fn ensure(&self, relative: &str, limits: Limits) {
        match &self.layout {
            Layout::V1 { controllers, .. } => {
                for root in controllers {
                    let dir = root.join(relative);
                    if let Err(error) = std::fs::create_dir_all(&dir) {
                        tracing::debug!(dir = %dir.display(), %error, "cgroup not made");
                        continue;
                    }
                    write_v1(&dir, root, limits);
                }
            }
            Layout::V2 { root } => ensure_v2(root, relative, limits),
            Layout::None => {}
        }
    }
}

/// A pod is limited where all its containers are.
fn limits(pod: &Pod) -> Limits {
    let spec = podutil::spec(pod);
    let containers = || spec.containers.iter().chain(podutil::init_containers(pod));
    let all_limited = |name: &str| containers().all(|c| podutil::limit(c.resources.as_ref(), name).is_some());
    let total = |name: &'static str| podutil::pod_total(pod, |r| podutil::limit(r, name), name);
    let request = podutil::pod_total(pod, |r| podutil::request(r, "cpu").or_else(|| podutil::limit(r, "cpu")), "cpu");
    Limits {
        shares: resources::shares(request.milli_value()),
        quota: if all_limited("cpu") { resources::quota(total("cpu").milli_value()) } else { 0 },
        memory: if all_limited("memory") { total("memory").value() } else { 0 },
    }
}

fn write_v1(dir: &Path, controller: &Path, limits: Limits) {
    let name = controller.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name == "cpu" && limits.shares > 0 {
        write(&dir.join("cpu.shares"), &limits.shares.to_string());
    }
    if name == "cpu" && limits.quota != 0 {
        write(&dir.join("cpu.cfs_period_us"), &resources::CPU_PERIOD_MICROS.to_string());
        write(&dir.join("cpu.cfs_quota_us"), &limits.quota.to_string());
    }
    if name == "memory" && limits.memory != 0 {
        write(&dir.join("memory.limit_in_bytes"), &limits.memory.to_string());
    }
}

fn ensure_v2(root: &Path, relative: &str, limits: Limits) {
    let mut dir = root.to_owned();
    for part in Path::new(relative).components() {
        // Controllers must be handed down at each level before the one below can use them.
        for controller in ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"] {
            let available = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            if available.split_whitespace().any(|name| name == controller) {
                write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
            }
        }
        dir.push(part);
        if let Err(error) = std::fs::create_dir_all(&dir) {
            return tracing::debug!(dir = %dir.display(), %error, "cgroup not made");
        }
    }
    if limits.shares > 0 {
        write(&dir.join("cpu.weight"), &weight(limits.shares).to_string());
    }
    let word = |limit: i64| if limit < 0 { "max".to_owned() } else { limit.to_string() };
    if limits.quota != 0 {
        write(&dir.join("cpu.max"), &format!("{} {}", word(limits.quota), resources::CPU_PERIOD_MICROS));
    }
    if limits.memory != 0 {
        write(&dir.join("memory.max"), &word(limits.memory));
    }
}

/// The weight of v2 that corresponds to shares of v1: 2..262144 onto 1..10000.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write(file: &Path, value: &str) {
    if let Err(error) = std::fs::write(file, value) {
        tracing::debug!(file = %file.display(), value, %error, "cgroup setting not written");
    }
}

fn remove_tree(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Files of a cgroup cannot be removed, nor need be.
    let _ = std::fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u1"},
            "spec": {"containers": [{"name": "a", "resources": resources}]}}))
        .unwrap()
    }

    #[test]
    fn v1_directories_and_values() {
        let root = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            std::fs::create_dir(root.path().join(controller)).unwrap();
        }
        let cgroups = Cgroups::detect(root.path());
        cgroups.ensure_base();
        let pod = pod(serde_json::json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}));
        cgroups.ensure_pod(&pod);
        let read = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("cpu/kubepods/besteffort/cpu.shares"), "2");
        assert_eq!(read("cpu/kubepods/burstable/podu1/cpu.shares"), "256");
        assert_eq!(read("cpu/kubepods/burstable/podu1/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("memory/kubepods/burstable/podu1/memory.limit_in_bytes"), "67108864");
    }

    #[test]
    fn a_pod_that_is_resized_holds_the_old_and_the_new() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        let cgroups = Cgroups::detect(root.path());
        let sized = |cpu: &str, memory: &str| pod(serde_json::json!({"limits": {"cpu": cpu, "memory": memory}}));
        let (small, large) = (sized("1", "16Mi"), sized("2", "8Mi"));
        let read = |file: &str| std::fs::read_to_string(root.path().join("kubepods/podu1").join(file)).unwrap();
        cgroups.resize_pod(&large, &small);
        assert_eq!([read("cpu.max"), read("memory.max")], ["200000 100000", "16777216"]);
        cgroups.resize_pod(&large, &large);
        assert_eq!([read("cpu.max"), read("memory.max")], ["200000 100000", "8388608"]);
        let container = root.path().join("kubepods/podu1/c1");
        std::fs::create_dir(&container).unwrap();
        std::fs::write(container.join("memory.current"), "4096\n").unwrap();
        assert_eq!((cgroups.memory_usage(&large, "c1"), cgroups.memory_usage(&large, "c2")), (Some(4096), None));
        // Without a limit for one container, there is none for the pod.
        let unlimited: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "u1"}, "spec": {"containers":
            [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1"}}},
             {"name": "b", "resources": {"limits": {"memory": "1"}, "requests": {"memory": "1"}}}]}}))
            .unwrap();
        cgroups.resize_pod(&unlimited, &unlimited);
        let file = root.path().join("kubepods/burstable/podu1/cpu.max");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "max 100000");
    }

    #[test]
    fn a_pod_with_an_unlimited_container_is_not_limited() {
        assert_eq!(
            limits(&pod(serde_json::json!({"requests": {"cpu": "1"}}))),
            Limits { shares: 1024, quota: 0, memory: 0 }
        );
    }

    #[test]
    fn weights() {
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }
}
