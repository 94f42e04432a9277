//! How fast decisions are made, changes included, without an API server:
//! `cargo test --release -p scheduler throughput -- --nocapture` prints the rates.

use std::time::{Duration, Instant};

use super::World;
use crate::core::Next;

const NODES: usize = 1000;
/// Fails where a decision has come to cost many times what it should; generous, since tests run unoptimised and side by side.
const AT_MOST_PER_POD: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(20) } else { Duration::from_millis(1) };

fn cluster() -> World {
    let mut world = World::new();
    for number in 0..NODES {
        world.node(&format!(
            "metadata: {{name: node-{number}, labels: {{topology.kubernetes.io/zone: zone-{}}}}}\n\
             status: {{allocatable: {{cpu: 16, memory: 64Gi, pods: 110}}}}",
            number % 5
        ));
    }
    world
}

fn measure(what: &str, count: usize, more: &str) {
    let mut world = cluster();
    let yaml = format!(
        "metadata: {{namespace: default, labels: {{app: x}}}}\n\
         spec:\n  containers: [{{name: c, image: i, resources: {{requests: {{cpu: 100m, memory: 100Mi}}}}}}]\n  {more}"
    );
    let template = World::pod("template", &yaml);
    let pods: Vec<_> = (0..count)
        .map(|number| {
            let mut pod = (*template).clone();
            pod.metadata.name = Some(format!("pod-{number}"));
            pod.metadata.uid = Some(format!("uid-{number}"));
            std::sync::Arc::new(pod)
        })
        .collect();
    let start = Instant::now();
    for pod in &pods {
        world.core.pod_applied(None, pod, world.now);
    }
    let mut bound = 0;
    loop {
        match world.next() {
            Next::Idle(_) => break,
            Next::Report(failure) => panic!("{}", failure.message),
            Next::Bind { pod, node } => {
                let mut confirmed = (*pod.pod).clone();
                confirmed.spec.get_or_insert_default().node_name = Some(node.to_string());
                world.core.pod_applied(Some(&pod.pod), &std::sync::Arc::new(confirmed), world.now);
                bound += 1;
            }
        }
    }
    let took = start.elapsed();
    println!("{what}: {:.0} pods/s, {:.1?} each", bound as f64 / took.as_secs_f64(), took / bound as u32);
    assert_eq!(bound, count);
    assert!(took / (bound as u32) < AT_MOST_PER_POD, "{what}: {:?} per pod", took / bound as u32);
}

/// Fewer where nothing is optimised, to keep the tests quick.
fn scaled(count: usize) -> usize {
    if cfg!(debug_assertions) { count / 25 } else { count }
}

#[test]
fn plain_pods() {
    measure("plain", scaled(5000), "");
}

#[test]
fn pods_with_topology_spread() {
    let spread = "topologySpreadConstraints: [{topologyKey: topology.kubernetes.io/zone, maxSkew: 1, \
                  whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: x}}}, \
                  {topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway, \
                  labelSelector: {matchLabels: {app: x}}}]";
    measure("topology spread", scaled(5000), spread);
}

#[test]
fn pods_with_anti_affinity() {
    let apart = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: x}}}]}}";
    measure("anti-affinity", scaled(900), apart);
}

#[test]
fn pods_that_fit_nowhere() {
    let mut world = cluster();
    let count = scaled(5000);
    let large = World::pod("large", "spec: {containers: [{name: c, resources: {requests: {cpu: 99}}}]}");
    for number in 0..count {
        let mut pod = (*large).clone();
        pod.metadata.name = Some(format!("pod-{number}"));
        pod.metadata.uid = Some(format!("uid-{number}"));
        world.core.pod_applied(None, &std::sync::Arc::new(pod), world.now);
    }
    let start = Instant::now();
    for _ in 0..count {
        assert!(matches!(world.next(), Next::Report(_)));
    }
    let took = start.elapsed() / count as u32;
    println!("nowhere: {took:.1?} each");
    assert!(took < AT_MOST_PER_POD, "{took:?} per pod");
}
