//! Which status follows from which state of a pod.

use k8s_openapi::api::core::v1::Pod;

use super::*;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// A pod with two containers, an init container and a sidecar; `extra` is merged in.
fn pod(extra: Value) -> PodView {
    let mut object = json!({
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "managedFields": [{"manager": "m"}], "labels": {"l": "m"}},
        "spec": {
            "nodeName": "hollow-0", "containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}],
            "initContainers": [{"name": "once", "image": "i"}, {"name": "beside", "image": "i", "restartPolicy": "Always"}],
        },
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    });
    merge(&mut object, extra);
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}

/// The pod after a status patch as the server merges it, conditions by their type.
fn patched(before: &PodView, patch: Value) -> PodView {
    let mut after = before.clone();
    let status: StatusView = serde_json::from_value(patch["status"].clone()).unwrap();
    let kept = before.status.conditions.iter().filter(|old| !status.conditions.iter().any(|new| new.kind == old.kind));
    let conditions = kept.cloned().chain(status.conditions.clone()).collect();
    after.status = StatusView { conditions, ..status };
    after
}

fn run(pod: &PodView) -> Value {
    running(pod, "10.1.2.3".parse().unwrap(), "198.18.0.1".parse().unwrap(), now())
}

#[test]
fn a_bound_pod_runs_and_then_there_is_nothing_to_do() {
    let bound = pod(json!({}));
    assert_eq!(plan(&bound, now()), Plan::Run);
    let patch = run(&bound);
    let typed: Pod = serde_json::from_value(patch.clone()).unwrap();
    let status = typed.status.unwrap();
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.1.2.3")));
    let containers = status.container_statuses.unwrap();
    assert!(containers.iter().all(|c| c.ready && c.started == Some(true)) && containers.len() == 2);
    let init = status.init_container_statuses.unwrap();
    assert_eq!(init[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
    assert!(init[1].state.as_ref().unwrap().running.is_some(), "a sidecar runs on");
    assert_eq!(typed.metadata.uid.as_deref(), Some("u"));

    let after = patched(&bound, patch);
    assert_eq!(plan(&after, now()), Plan::Nothing { look_again: None });
    assert_eq!(after.condition("PodScheduled"), Some("True"), "the scheduler's condition stays");
}

#[test]
fn a_gate_that_opens_makes_the_pod_ready() {
    let gated = pod(json!({"spec": {"readinessGates": [{"conditionType": "example.com/lb"}]}}));
    let mut waiting = patched(&gated, run(&gated));
    assert_eq!(waiting.condition("Ready"), Some("False"));
    assert_eq!(waiting.condition("ContainersReady"), Some("True"));
    assert_eq!(plan(&waiting, now()), Plan::Nothing { look_again: None });
    waiting.status.conditions.push(ConditionView { kind: "example.com/lb".into(), status: "True".into() });
    assert_eq!(plan(&waiting, now()), Plan::Run);
    let patch = run(&waiting);
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1, "only what changes");
    assert_eq!(patched(&waiting, patch).condition("Ready"), Some("True"));
}

#[test]
fn a_new_generation_is_acknowledged() {
    let resized = pod(json!({"metadata": {"generation": 2}}));
    let mut after = patched(&resized, run(&resized));
    assert_eq!(plan(&after, now()), Plan::Nothing { look_again: None });
    after.metadata.generation = Some(3);
    assert_eq!(plan(&after, now()), Plan::Run);
}

#[test]
fn a_deadline_ends_a_pod_and_nothing_else_does() {
    let limited = pod(json!({"spec": {"activeDeadlineSeconds": 60}}));
    let after = patched(&limited, run(&limited));
    let deadline = now() + SignedDuration::from_secs(60);
    assert_eq!(plan(&after, now()), Plan::Nothing { look_again: Some(deadline) });
    assert_eq!(plan(&after, deadline), Plan::Fail);
    let failed = failed(&after, deadline);
    assert_eq!(failed["status"]["reason"], "DeadlineExceeded");
    assert_eq!(plan(&patched(&after, failed), deadline), Plan::Over);
    let forever = patched(&pod(json!({})), run(&pod(json!({}))));
    assert_eq!(plan(&forever, deadline + SignedDuration::from_hours(9000)), Plan::Nothing { look_again: None });
}

#[test]
fn deletion_is_honoured_once() {
    let deleted = |grace: i64| {
        pod(json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": grace},
            "status": {"phase": "Running"}}))
    };
    assert_eq!(plan(&deleted(30), now()), Plan::End);
    assert_eq!(plan(&deleted(0), now()), Plan::Over, "a finalizer holds it");
    let options = delete_options(&deleted(30));
    assert_eq!((&options["gracePeriodSeconds"], &options["preconditions"]["uid"]), (&json!(0), &json!("u")));
    assert_eq!(ended(&deleted(30), now())["status"]["phase"], "Succeeded");
}
