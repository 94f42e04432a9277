//! CPU and memory in the kernel's terms. Pure.

use cri::messages::sandbox::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::podutil;

/// The scheduling period of quotas: 100 ms.
pub const CPU_PERIOD_MICROS: i64 = 100_000;
const LEAST_QUOTA_MICROS: i64 = 1_000;
const LEAST_SHARES: i64 = 2;
const MOST_SHARES: i64 = 262_144;
/// Pods that nothing on the node should be killed before.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
const GUARANTEED_SCORE: i64 = -997;
const BEST_EFFORT_SCORE: i64 = 1000;

/// cgroup v1 cpu shares of so many thousandths of a core.
pub fn shares(milli: i64) -> i64 {
    if milli <= 0 { LEAST_SHARES } else { (milli.saturating_mul(1024) / 1000).clamp(LEAST_SHARES, MOST_SHARES) }
}

/// Microseconds of each period; zero means no limit.
pub fn quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli.saturating_mul(CPU_PERIOD_MICROS) / 1000).max(LEAST_QUOTA_MICROS) }
}

pub fn cpu_milli(resources: Option<&ResourceRequirements>) -> (i64, i64) {
    let request = podutil::request(resources, "cpu").map_or(0, |q| q.milli_value());
    let limit = podutil::limit(resources, "cpu").map_or(0, |q| q.milli_value());
    // Without a request, the limit is what the container is entitled to.
    (if request == 0 { limit } else { request }, limit)
}

pub fn memory_limit(resources: Option<&ResourceRequirements>) -> i64 {
    podutil::limit(resources, "memory").map_or(0, |q| q.value())
}

pub fn linux(pod: &Pod, container: &Container, node_memory_bytes: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let (request, limit) = cpu_milli(resources);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_MICROS,
        cpu_quota: quota(limit),
        cpu_shares: shares(request),
        memory_limit_in_bytes: memory_limit(resources),
        oom_score_adj: oom_score_adj(pod, container, node_memory_bytes),
        ..LinuxContainerResources::default()
    }
}

/// Upstream's rule: the less of its memory request a container may use, the sooner it is killed.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    let critical = podutil::spec(pod).priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY);
    if critical {
        return GUARANTEED_SCORE;
    }
    match podutil::qos_class(pod) {
        "Guaranteed" => GUARANTEED_SCORE,
        "BestEffort" => BEST_EFFORT_SCORE,
        _ => {
            let request = podutil::request(container.resources.as_ref(), "memory").map_or(0, |q| q.value());
            let share = i128::from(request) * 1000 / i128::from(node_memory_bytes.max(1));
            let score = 1000 - i64::try_from(share).unwrap_or(1000);
            // Never as safe as a guaranteed pod, never as doomed as a best-effort one.
            score.clamp(1000 + GUARANTEED_SCORE, BEST_EFFORT_SCORE - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_units() {
        assert_eq!([shares(0), shares(1), shares(250), shares(1_000_000)], [2, 2, 256, 262_144]);
        assert_eq!([quota(0), quota(1), quota(500)], [0, 1_000, 50_000]);
    }

    #[test]
    fn the_killer_prefers_those_that_asked_for_least() {
        let score = |requests: serde_json::Value| {
            let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p"},
                "spec": {"containers": [{"name": "c", "resources": requests}]}}))
            .unwrap();
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 1000 << 20)
        };
        assert_eq!(score(serde_json::json!({})), 1000);
        assert_eq!(score(serde_json::json!({"requests": {"memory": "100Mi"}})), 900);
        assert_eq!(score(serde_json::json!({"requests": {"cpu": "1"}})), 999);
        assert_eq!(score(serde_json::json!({"requests": {"memory": "10Gi"}})), 3);
        assert_eq!(score(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), -997);
    }
}
