//! What wakes a pod that could not be scheduled, and what does not.

use std::sync::Arc;
use std::time::Duration;

use super::World;
use crate::core::Next;
use crate::framework::Event;

const SMALL: &str = "metadata: {name: n}\nstatus: {allocatable: {cpu: 1, memory: 1Gi, pods: 10}}";
const CORE: &str = "spec: {containers: [{name: c, resources: {requests: {cpu: 1}}}]}";

fn full() -> World {
    let mut world = World::new();
    world.node(SMALL);
    world.add("first", CORE);
    assert_eq!(world.step(), "first → n");
    world.add("second", CORE);
    assert_eq!(
        world.step(),
        "second: 0/1 nodes are available: 1 Insufficient cpu. \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    world
}

#[test]
fn a_pod_that_goes_makes_room() {
    let mut world = full();
    assert_eq!(world.step(), "idle");
    let first = World::pod("first", CORE);
    world.core.pod_deleted(&first, world.now);
    assert_eq!(world.step(), "second → n");
}

#[test]
fn a_finished_pod_makes_room() {
    let mut world = full();
    let done = World::pod("first", "spec: {nodeName: n, containers: []}\nstatus: {phase: Succeeded}");
    world.core.pod_applied(None, &done, world.now);
    assert_eq!(world.step(), "second → n");
}

#[test]
fn a_node_that_is_too_small_wakes_nobody() {
    let mut world = full();
    world.node("metadata: {name: tiny}\nstatus: {allocatable: {cpu: 500m, memory: 1Gi, pods: 10}}");
    assert_eq!(world.step(), "idle");
    world.node("metadata: {name: large}\nstatus: {allocatable: {cpu: 4, memory: 1Gi, pods: 10}}");
    assert_eq!(world.step(), "second → large");
}

#[test]
fn only_relevant_changes_of_a_node_count() {
    let mut world = full();
    world.node("metadata: {name: n, labels: {new: label}}\nstatus: {allocatable: {cpu: 1, memory: 1Gi, pods: 10}}");
    assert_eq!(world.step(), "idle");
    world.node("metadata: {name: n}\nstatus: {allocatable: {cpu: 2, memory: 1Gi, pods: 10}}");
    assert_eq!(world.step(), "second → n");
}

#[test]
fn the_first_node_helps_everyone() {
    let mut world = World::new();
    world.add("a", CORE);
    assert_eq!(world.step(), "a: no nodes available to schedule pods");
    world.node(SMALL);
    assert_eq!(world.step(), "a → n");
}

#[test]
fn affinity_waits_for_the_pod_that_it_wants() {
    let mut world = World::new();
    world.node(SMALL);
    world.add(
        "follower",
        "spec:\n  containers: [{name: c}]\n  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
         [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: leader}}}]}}",
    );
    assert!(world.step().starts_with("follower: 0/1 nodes are available: 1 node(s) didn't match pod affinity rules."));
    world.add("stranger", "spec: {containers: [{name: c}]}");
    assert_eq!(world.step(), "stranger → n");
    assert_eq!(world.step(), "idle");
    world.add("leader", "metadata: {labels: {app: leader}}\nspec: {containers: [{name: c}]}");
    assert_eq!(world.step(), "leader → n");
    assert_eq!(world.step(), "follower → n");
}

#[test]
fn a_claim_wakes_the_pods_that_use_it() {
    let mut world = World::new();
    world.node(SMALL);
    world.add("a", "spec: {containers: [{name: c}], volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}");
    assert_eq!(
        world.step(),
        "a: 0/1 nodes are available: persistentvolumeclaim \"data\" not found. \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    let claim = crate::fixture::parse("metadata: {name: data}\nspec: {volumeName: pv}\nstatus: {phase: Bound}");
    world.core.cluster.storage.set_claim("default", "data", Some(&claim));
    world.core.changed(&Event::ClaimChanged { namespace: "other", name: "data" }, world.now);
    assert_eq!(world.step(), "idle");
    world.core.changed(&Event::ClaimChanged { namespace: "default", name: "data" }, world.now);
    assert!(world.step().contains("persistentvolume \"pv\" not found"));
    world.core.cluster.storage.set_volume("pv", Some(&crate::fixture::parse("metadata: {name: pv}")));
    world.core.changed(&Event::VolumeChanged, world.now);
    assert_eq!(world.step(), "a → n");
}

#[test]
fn pods_of_other_schedulers_and_gated_ones_are_left_alone() {
    let mut world = World::new();
    world.node(SMALL);
    world.add("other", "spec: {schedulerName: mine, containers: []}");
    world.add("gated", "spec: {schedulingGates: [{name: g}], containers: []}");
    assert_eq!(world.step(), "idle");
    let open = World::pod("gated", "spec: {containers: []}");
    world.core.pod_applied(
        Some(&World::pod("gated", "spec: {schedulingGates: [{name: g}], containers: []}")),
        &open,
        world.now,
    );
    assert_eq!(world.step(), "gated → n");
}

#[test]
fn an_assumed_pod_takes_room_until_its_binding_fails() {
    let mut world = World::new();
    world.node(SMALL);
    world.add("a", CORE);
    world.add("b", CORE);
    let Next::Bind { pod, .. } = world.next() else { panic!("there is room") };
    assert!(world.step().starts_with("b: 0/1 nodes are available: 1 Insufficient cpu."));
    world.core.binding_failed(&pod, world.now);
    assert_eq!(world.step(), "b → n", "it was woken; the other one backs off after an error");
    world.now += Duration::from_secs(1);
    assert!(world.step().starts_with("a: 0/1 nodes are available: 1 Insufficient cpu."));
}

#[test]
fn a_failure_after_the_confirmation_changes_nothing() {
    let mut world = World::new();
    world.node(SMALL);
    world.add("a", CORE);
    let Next::Bind { pod, .. } = world.next() else { panic!("there is room") };
    let bound = World::pod("a", "spec: {nodeName: n, containers: [{name: c, resources: {requests: {cpu: 1}}}]}");
    world.core.pod_applied(Some(&pod.pod), &bound, world.now);
    // The answer to the binding was lost.
    world.core.binding_failed(&pod, world.now);
    world.now += Duration::from_secs(60);
    assert_eq!(world.step(), "idle");
    world.add("b", CORE);
    assert!(world.step().starts_with("b: 0/1"));
}

#[test]
fn room_that_was_made_is_kept_for_the_pod() {
    let mut world = full();
    let important = "spec: {priority: 10, containers: [{name: c, resources: {requests: {cpu: 1}}}]}";
    let old = world.add("important", important);
    assert_eq!(world.step(), "important waits for n without first");
    let nominated = World::pod("important", &format!("{important}\nstatus: {{nominatedNodeName: n}}"));
    world.core.pod_applied(Some(&old), &nominated, world.now);
    let first = World::pod("first", CORE);
    world.core.pod_deleted(&first, world.now);
    // The pod that was waiting longer must not snatch it.
    let steps = [world.step(), world.step()];
    assert!(steps.contains(&"important → n".to_owned()), "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("second: 0/1")), "{steps:?}");
}

#[test]
fn a_pod_made_anew_under_its_name_is_another() {
    let mut world = full();
    let mut again = (*World::pod("first", "spec: {containers: []}")).clone();
    again.metadata.uid = Some("again".to_owned());
    world.core.pod_applied(Some(&World::pod("first", CORE)), &Arc::new(again), world.now);
    let steps = [world.step(), world.step()];
    assert!(steps.contains(&"second → n".to_owned()), "{steps:?}");
}

#[test]
fn an_event_costs_one_attempt_for_all_that_are_alike() {
    let mut world = full();
    for name in ["third", "fourth"] {
        world.add(name, CORE);
        assert!(world.step().starts_with(&format!("{name}: 0/1")));
    }
    let first = World::pod("first", CORE);
    world.core.pod_deleted(&first, world.now);
    assert_eq!(world.step(), "second → n");
    assert!(world.step().starts_with("third: 0/1"));
    assert_eq!(world.step(), "idle");
    // A pod that goes from where there was no room for it anyway changes nothing.
    world.core.pod_deleted(&World::pod("unknown", CORE), world.now);
    assert_eq!(world.step(), "idle");
}
