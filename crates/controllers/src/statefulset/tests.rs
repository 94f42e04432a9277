//! What a stateful set does, step by step, and over whole lives of random pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use proptest::prelude::*;

use super::identity::revision_of;
use super::plan::{Observed, Plan, Step, plan};
use crate::fixture::{now, yaml};
use crate::history::{Newest, newest};
use crate::pods;

fn set(replicas: i32, spec: &str) -> StatefulSet {
    yaml(&format!(
        "{{ metadata: {{ name: web, namespace: ns, uid: u }}, spec: {{ serviceName: web, replicas: {replicas}, selector: {{}}, template: {{ spec: {{ containers: [] }} }}, {spec} }} }}"
    ))
}

/// A revision named so, of a template that names it too.
fn revision(name: &str) -> ControllerRevision {
    let mut set = set(1, "");
    set.spec.template.metadata.get_or_insert_default().annotations = Some([("of".to_owned(), name.to_owned())].into());
    let Newest::Create(mut revision) = newest(&set, &[]) else { panic!("new") };
    revision.metadata.name = Some(name.to_owned());
    *revision
}

/// One pod a line, `web-` is put before its name, and `new` or `old` is its revision.
fn pods_of(lines: &str) -> Vec<Arc<Pod>> {
    let labelled = |pod: Arc<Pod>| {
        let mut pod = (*pod).clone();
        let (ordinal, revision) =
            pod.metadata.name.as_deref().and_then(|name| name.split_once('-')).expect("two parts");
        let name = format!("web-{ordinal}");
        let labels = [
            ("controller-revision-hash", revision),
            ("statefulset.kubernetes.io/pod-name", name.as_str()),
            ("apps.kubernetes.io/pod-index", ordinal),
        ];
        pod.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        pod.metadata.name = Some(name);
        Arc::new(pod)
    };
    crate::fixture::pods(lines).into_iter().map(labelled).collect()
}

fn plan_of(set: &StatefulSet, pods: &[Arc<Pod>], claims: &BTreeMap<String, PersistentVolumeClaim>) -> Plan {
    static REVISIONS: std::sync::LazyLock<[ControllerRevision; 2]> =
        std::sync::LazyLock::new(|| [revision("old"), revision("new")]);
    let [old, new] = &*REVISIONS;
    let claim = |name: &str| claims.get(name).cloned().map(Arc::new);
    plan(&Observed { set, pods, current: old, update: new, claim: &claim, now: now() })
}

fn name<K: kube::Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

fn told(plan: &Plan) -> String {
    let step = |step: &Step| match step {
        Step::Create { pod, claims } if claims.is_empty() => format!("+{}({})", name(&**pod), revision_of(pod)),
        Step::Create { pod, claims } => format!("+{}({}) with {}", name(&**pod), revision_of(pod), claims.len()),
        Step::CreateClaims { pod, claims } => format!("claims {} {}", name(&**pod), claims.len()),
        Step::Blocked { pod, claim } => format!("{pod} waits for {claim}"),
        Step::Correct(pod) => format!("~{}", name(&**pod)),
        Step::CorrectClaim(claim) => format!("~{}", name(&**claim)),
        Step::Delete(pod) => format!("-{}", name(&**pod)),
    };
    plan.steps.iter().map(step).collect::<Vec<_>>().join(" ")
}

fn steps(set: &StatefulSet, lines: &str) -> String {
    told(&plan_of(set, &pods_of(lines), &BTreeMap::new()))
}

const PARALLEL: &str = "podManagementPolicy: Parallel,";

#[test]
fn pods_are_made_in_order() {
    let three = set(3, "");
    assert_eq!(steps(&three, ""), "+web-0(new)");
    assert_eq!(steps(&three, "{ name: 0-new }"), "");
    assert_eq!(steps(&three, "{ name: 0-new, ready: 1 }"), "+web-1(new)");
    assert_eq!(steps(&three, "{ name: 0-new, ready: 1, deleting: true }"), "", "its name is not free yet");
    assert_eq!(steps(&three, "{ name: 0-new, phase: Failed }"), "-web-0");
    assert_eq!(steps(&three, "{ name: 0-new, phase: Succeeded, deleting: true }"), "");
    let slow = set(3, "minReadySeconds: 10,");
    let pods = pods_of("{ name: 0-new, ready: 4 }");
    let plan = plan_of(&slow, &pods, &BTreeMap::new());
    assert_eq!((told(&plan).as_str(), plan.recheck.map(|wait| wait.as_secs())), ("", Some(6)));
    assert_eq!(steps(&set(2, "ordinals: { start: 5 },"), "{ name: 5-new, ready: 1 }"), "+web-6(new)");
    assert_eq!(steps(&set(3, PARALLEL), "{ name: 1-new }"), "+web-0(new) +web-2(new)");
    assert_eq!(steps(&set(2, PARALLEL), "{ name: 0-new, phase: Failed }"), "-web-0 +web-1(new)");
}

#[test]
fn pods_are_unmade_from_the_highest_down() {
    let four =
        "{ name: 0-new, ready: 9 }\n{ name: 1-new, ready: 9 }\n{ name: 2-new, ready: 9 }\n{ name: 3-new, ready: 9 }";
    assert_eq!(steps(&set(1, ""), four), "-web-3");
    assert_eq!(steps(&set(1, ""), &four.replace("name: 3-new,", "name: 3-new, deleting: true,")), "");
    assert_eq!(steps(&set(1, ""), &four.replace("name: 0-new, ready: 9", "name: 0-new")), "", "0 has to be well first");
    let broken = four.replace("name: 3-new, ready: 9", "name: 3-new");
    assert_eq!(steps(&set(1, ""), &broken), "-web-3", "the first that is not well may go");
    let two = broken.replace("name: 2-new, ready: 9", "name: 2-new");
    assert_eq!(steps(&set(1, ""), &two), "", "2 would be the first");
    let ended = two.replace("name: 3-new", "name: 3-new, phase: Failed");
    assert_eq!(steps(&set(1, ""), &ended), "-web-3", "what has ended need not be waited for");
    assert_eq!(steps(&set(1, PARALLEL), four), "-web-3 -web-2 -web-1");
    assert_eq!(steps(&set(2, "ordinals: { start: 2 },"), four), "-web-1");
}

const OLD: &str = "{ name: 0-old, ready: 9 }\n{ name: 1-old, ready: 9 }\n{ name: 2-old, ready: 9 }";

#[test]
fn updates_go_down_to_the_partition() {
    let rolling = |rules: &str| format!("updateStrategy: {{ type: RollingUpdate, rollingUpdate: {{ {rules} }} }},");
    assert_eq!(steps(&set(3, &rolling("")), OLD), "-web-2");
    let going = OLD.replace("2-old,", "2-old, deleting: true,");
    assert_eq!(steps(&set(3, &rolling("")), &going), "");
    let two = OLD.replace("2-old", "2-new");
    assert_eq!(steps(&set(3, &rolling("")), &two), "-web-1");
    assert_eq!(steps(&set(3, &rolling("partition: 2")), &two), "");
    assert_eq!(steps(&set(3, &rolling("maxUnavailable: 2")), OLD), "-web-2 -web-1");
    assert_eq!(steps(&set(3, &rolling("maxUnavailable: 20%")), OLD), "-web-2");
    assert_eq!(steps(&set(3, "updateStrategy: { type: OnDelete },"), OLD), "");
    assert_eq!(steps(&set(3, &rolling("partition: 2")), "{ name: 0-old, ready: 1 }"), "+web-1(old)");
    assert_eq!(steps(&set(3, &rolling("partition: 1")), "{ name: 0-old, ready: 1 }"), "+web-1(new)");

    let broken = OLD.replace("0-old, ready: 9", "0-old");
    assert_eq!(steps(&set(3, &rolling("")), &broken), "", "in order nothing happens before 0 is well");
    let parallel = format!("{PARALLEL} {}", rolling(""));
    assert_eq!(steps(&set(3, &parallel), &broken), "-web-0", "what does not serve goes first, and alone");
    assert_eq!(steps(&set(3, &parallel), &OLD.replace("ready: 9", "age: 9")), "-web-2 -web-1 -web-0");
}

#[test]
fn the_status_tells_of_both_revisions() {
    let status = |set: &StatefulSet, lines: &str| {
        let status = plan_of(set, &pods_of(lines), &BTreeMap::new()).status;
        let or0 = |number: Option<i32>| number.unwrap_or(0);
        let counts = [
            or0(status.ready_replicas),
            or0(status.available_replicas),
            or0(status.current_replicas),
            or0(status.updated_replicas),
        ];
        format!("{} {counts:?} {}", status.replicas, status.current_revision.unwrap_or_default())
    };
    let half = OLD.replace("2-old", "2-new");
    assert_eq!(status(&set(3, "updateStrategy: { type: OnDelete },"), &half), "3 [3, 3, 2, 1] old");
    assert_eq!(status(&set(3, ""), &half), "3 [3, 3, 1, 1] old", "one is about to go");
    assert_eq!(status(&set(3, ""), &OLD.replace("old", "new")), "3 [3, 3, 3, 3] new");
    assert_eq!(status(&set(3, "minReadySeconds: 20,"), OLD), "3 [3, 0, 3, 0] old");
    assert_eq!(status(&set(0, ""), ""), "0 [0, 0, 0, 0] new");
}

const CLAIMS: &str = "volumeClaimTemplates: [{ metadata: { name: data } }, { metadata: { name: logs } }],";

#[test]
fn claims_come_before_the_pod_and_outlive_it() {
    let named = |entries: &[(&str, &str)]| -> BTreeMap<String, PersistentVolumeClaim> {
        let claim = |(name, meta): &(&str, &str)| {
            let claim = format!("{{ metadata: {{ name: {name}, {meta} }} }}");
            (name.to_string(), yaml(&claim))
        };
        entries.iter().map(claim).collect()
    };
    let one = set(1, CLAIMS);
    assert_eq!(steps(&one, ""), "+web-0(new) with 2");
    let with =
        |set: &StatefulSet, lines: &str, claims: &[(&str, &str)]| told(&plan_of(set, &pods_of(lines), &named(claims)));
    assert_eq!(with(&one, "", &[("data-web-0", "")]), "+web-0(new) with 1");
    let going = [("data-web-0", "deletionTimestamp: '2026-01-01T00:00:00Z'")];
    assert_eq!(with(&one, "", &going), "web-0 waits for data-web-0");
    assert_eq!(with(&one, "{ name: 0-new, phase: Pending }", &[("logs-web-0", "")]), "claims web-0 1");

    let policy = |scaled: &str, deleted: &str| {
        let policy =
            format!("persistentVolumeClaimRetentionPolicy: {{ whenScaled: {scaled}, whenDeleted: {deleted} }},");
        set(1, &format!("{CLAIMS} {policy}"))
    };
    let both = [("data-web-0", ""), ("logs-web-0", "")];
    assert_eq!(with(&policy("Retain", "Delete"), "", &both), "+web-0(new) ~data-web-0 ~logs-web-0");
    let plan = plan_of(&policy("Retain", "Delete"), &[], &BTreeMap::new());
    let Some(Step::Create { claims, .. }) = plan.steps.first() else { panic!("creates") };
    assert_eq!(claims[0].metadata.owner_references.as_ref().expect("owned")[0].kind, "StatefulSet");
    let stale = [("data-web-0", "ownerReferences: [{ apiVersion: v1, kind: Pod, name: web-0, uid: gone }]")];
    assert_eq!(with(&policy("Delete", "Retain"), "", &stale), "", "it is about to go");
    let surplus = "{ name: 0-new, ready: 9 }\n{ name: 1-new, ready: 9 }";
    let later = [("data-web-1", ""), ("logs-web-1", "")];
    let wide = surplus.to_owned();
    let planned = with(&policy("Delete", "Retain"), &wide, &later);
    assert!(planned.ends_with("~data-web-1 ~logs-web-1 -web-1"), "{planned}");
}

#[test]
fn a_pod_that_is_not_itself_is_corrected() {
    let mut pods = pods_of("{ name: 0-new, ready: 9 }");
    let mut stray = (*pods[0]).clone();
    stray.metadata.labels.as_mut().expect("labelled").remove("apps.kubernetes.io/pod-index");
    pods[0] = Arc::new(stray);
    assert_eq!(told(&plan_of(&set(1, ""), &pods, &BTreeMap::new())), "~web-0");
}

/// Applies a plan to pods by name.
fn apply(plan: Plan, pods: &mut BTreeMap<String, Pod>, made: &mut usize) {
    for step in plan.steps {
        match step {
            Step::Create { mut pod, .. } => {
                *made += 1;
                pod.metadata.uid = Some(format!("uid-{made}"));
                pod.status.get_or_insert_default().phase = Some("Pending".into());
                assert!(pods.insert(name(&*pod).to_owned(), *pod).is_none(), "the name was free");
            }
            Step::Delete(pod) => {
                let pod = pods.get_mut(name(&*pod)).expect("there");
                pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
            }
            _ => {}
        }
    }
}

fn ready(pod: &mut Pod, ready: bool) {
    let condition = k8s_openapi::api::core::v1::PodCondition {
        type_: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        last_transition_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now())),
        ..Default::default()
    };
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.conditions = Some(vec![condition]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to pods meanwhile: in order no pod is made before its predecessors serve, an update never takes
    /// more than the permitted number out of service, and in the end all pods are there, new and ready.
    #[test]
    fn a_set_converges(
        moves in proptest::collection::vec((0usize..8, 0u8..6, 0i32..6), 0..60),
        parallel in any::<bool>(),
        limit in 1usize..4,
    ) {
        let policy = if parallel { PARALLEL } else { "" };
        let spec = format!("{policy} updateStrategy: {{ type: RollingUpdate, rollingUpdate: {{ maxUnavailable: {limit} }} }},");
        let mut pods: BTreeMap<String, Pod> =
            pods_of(OLD).into_iter().map(|pod| (name(&*pod).to_owned(), (*pod).clone())).collect();
        let (mut made, mut replicas) = (0, 3);
        for (which, what, size) in moves {
            let names: Vec<String> = pods.keys().cloned().collect();
            if let Some(picked) = names.get(which % names.len().max(1)) {
                let pod = pods.get_mut(picked).expect("there");
                match what {
                    0 => ready(pod, false),
                    1 => pod.status.get_or_insert_default().phase = Some("Failed".into()),
                    2 if pod.metadata.deletion_timestamp.is_some() => { pods.remove(picked); }
                    3 => replicas = size,
                    _ if !pods::is_finished(pod) => ready(pod, true),
                    _ => {}
                }
            }
            let listed: Vec<Arc<Pod>> = pods.values().cloned().map(Arc::new).collect();
            let set = set(replicas, &spec);
            let serves = |name: &str| pods.get(name).is_some_and(|pod| pods::is_ready(pod) && pods::phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none());
            let plan = plan_of(&set, &listed, &BTreeMap::new());
            let wanted: Vec<String> = (0..replicas).map(|ordinal| format!("web-{ordinal}")).collect();
            let taken = plan.steps.iter().filter(|step| matches!(step, Step::Delete(pod) if wanted.contains(&name(&**pod).to_owned()) && serves(name(&**pod)))).count();
            let down = wanted.iter().filter(|name| !serves(name)).count();
            prop_assert!(taken == 0 || taken + down <= limit, "{taken} of those that serve, {down} are down");
            if !parallel {
                prop_assert!(plan.steps.len() <= limit);
                for step in &plan.steps {
                    if let Step::Create { pod, .. } = step {
                        prop_assert!(wanted.iter().take_while(|wanted| *wanted != name(&**pod)).all(|name| serves(name)));
                    }
                }
            }
            apply(plan, &mut pods, &mut made);
        }
        let set = set(replicas, &spec);
        for _ in 0..60 {
            pods.retain(|_, pod| pod.metadata.deletion_timestamp.is_none());
            pods.values_mut().filter(|pod| !pods::is_finished(pod)).for_each(|pod| ready(pod, true));
            let listed: Vec<Arc<Pod>> = pods.values().cloned().map(Arc::new).collect();
            apply(plan_of(&set, &listed, &BTreeMap::new()), &mut pods, &mut made);
        }
        prop_assert_eq!(pods.len() as i32, replicas);
        prop_assert!(pods.values().all(|pod| revision_of(pod) == "new" && pods::is_ready(pod)));
        let listed: Vec<Arc<Pod>> = pods.values().cloned().map(Arc::new).collect();
        let rest = plan_of(&set, &listed, &BTreeMap::new());
        prop_assert!(rest.steps.is_empty());
        prop_assert_eq!(rest.status.current_revision.as_deref(), Some("new"));
    }
}
