//! What hollow nodes write after what they saw.

use serde_json::{Value, json};

use super::*;
use crate::hollow::write::{Reply, ReplyMetadata};

struct Scene {
    fleet: Fleet,
    start: Instant,
}

fn time() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn refused(code: u16, reason: &str) -> kube::Error {
    let status = kube::core::Status::failure("no", reason).with_code(code);
    kube::Error::Api(Box::new(status))
}

fn reply(version: &str) -> Outcome {
    Ok(Reply { metadata: ReplyMetadata { resource_version: version.to_owned() } })
}

impl Scene {
    /// Nodes that have registered, with networks 10.0.<index>.0/29 and their first leases written at version 1.
    fn registered(nodes: u32) -> Self {
        let mut scene = Scene::empty(nodes);
        // The turns of the start pass: there is no node yet.
        scene.at(0);
        for index in 0..nodes {
            scene.node(index, &format!("10.0.{index}.0/29"));
        }
        for _ in 0..nodes {
            scene.answer(reply("1"));
        }
        scene
    }

    fn empty(nodes: u32) -> Self {
        let start = Instant::now();
        Scene { fleet: Fleet::new(Config::new(nodes), start), start }
    }

    fn node(&mut self, index: u32, cidr: &str) {
        let node = json!({
            "metadata": {"name": format!("hollow-{index}"), "uid": format!("u-{index}")}, "spec": {"podCIDR": cidr},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        self.fleet.node_event(Event::Apply(serde_json::from_value(node).unwrap()), time());
    }

    fn pod(&mut self, uid: &str, extra: Value) {
        let mut pod =
            json!({"metadata": {"name": uid, "namespace": "n", "uid": uid}, "spec": {"nodeName": "hollow-0"}});
        for (part, fields) in extra.as_object().unwrap() {
            for (key, value) in fields.as_object().unwrap() {
                pod[part][key] = value.clone();
            }
        }
        self.fleet.pod_event(Event::Apply(serde_json::from_value(pod).unwrap()), time(), self.start);
    }

    fn at(&mut self, millis: u64) {
        self.fleet.tick(self.start + Duration::from_millis(millis));
    }

    /// The next write's requests as `METHOD path`; it is answered so.
    fn answer(&mut self, outcome: Outcome) -> Vec<(String, Value)> {
        let write = self.fleet.next_write(time()).expect("something to write");
        let calls = std::iter::once(write.first).chain(write.second);
        let shown = calls.map(|call| (format!("{} {}", call.method, call.path), call.body)).collect();
        self.fleet.written(write.job, outcome, self.start);
        shown
    }

    fn next(&mut self) -> String {
        self.answer(reply("9")).into_iter().map(|(line, _)| line).collect::<Vec<_>>().join(", ")
    }

    fn idle(&mut self) -> bool {
        self.fleet.next_write(time()).is_none()
    }
}

#[test]
fn nodes_that_are_not_there_register_and_those_that_are_heartbeat() {
    let mut scene = Scene::empty(2);
    scene.fleet.node_event(Event::Init, time());
    let there = json!({"metadata": {"name": "hollow-1", "uid": "u"}});
    scene.fleet.node_event(Event::InitApply(serde_json::from_value(there).unwrap()), time());
    scene.fleet.node_event(Event::InitDone, time());
    assert_eq!(scene.next(), "POST /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases");
    assert_eq!(scene.next(), "PATCH /api/v1/nodes/hollow-1/status", "it was not ready");
    assert_eq!(scene.next(), "POST /api/v1/nodes");
    assert!(scene.idle());
}

#[test]
fn leases_are_renewed_by_version_and_mended_without() {
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/hollow-0";
    let mut scene = Scene::registered(1);
    assert!(scene.idle());
    scene.at(10_000);
    let (line, body) = scene.answer(Err(refused(409, "Conflict"))).remove(0);
    assert_eq!((line, &body["metadata"]["resourceVersion"]), (format!("PUT {lease}"), &json!("1")));
    assert!(scene.idle(), "not at once");
    scene.at(10_100);
    assert_eq!(scene.next(), format!("PATCH {lease}"));
    scene.at(20_000);
    let (_, body) = scene.answer(reply("10")).remove(0);
    assert_eq!(body["metadata"]["resourceVersion"], "9");
}

#[test]
fn statuses_are_written_now_and_then_and_leases_before_them() {
    let mut scene = Scene::registered(1);
    scene.at(300_000);
    while scene.next().starts_with("PUT") {}
    assert!(scene.idle(), "the status was the last");
}

#[test]
fn a_node_that_somebody_deleted_comes_back() {
    let mut scene = Scene::registered(1);
    let gone = json!({"metadata": {"name": "hollow-0", "uid": "u-0"}});
    scene.fleet.node_event(Event::Delete(serde_json::from_value(gone).unwrap()), time());
    assert_eq!(scene.next(), "POST /api/v1/nodes");
    scene.at(30_000);
    assert!(scene.idle(), "no heartbeat without a node");
}

#[test]
fn pods_wait_for_the_network_and_for_addresses() {
    let mut scene = Scene::empty(1);
    scene.node(0, "");
    scene.answer(reply("1"));
    for uid in ["a", "b", "c", "d", "e", "f"] {
        scene.pod(uid, json!({}));
    }
    assert!(scene.idle());
    scene.node(0, "10.0.0.0/29");
    for (uid, ip) in [("a", 2), ("b", 3), ("c", 4), ("d", 5), ("e", 6)] {
        let (line, body) = scene.answer(reply("2")).remove(0);
        assert_eq!(line, format!("PATCH /api/v1/namespaces/n/pods/{uid}/status"));
        assert_eq!(body["status"]["podIP"], format!("10.0.0.{ip}"));
    }
    assert!(scene.idle(), "five addresses for six pods");
    scene.fleet.pod_event(
        Event::Delete(serde_json::from_value(json!({"metadata": {"uid": "c"}})).unwrap()),
        time(),
        scene.start,
    );
    assert_eq!(scene.answer(reply("3"))[0].1["status"]["podIP"], "10.0.0.4");
}

#[test]
fn addresses_of_an_earlier_life_are_kept() {
    let mut scene = Scene::registered(1);
    scene.pod(
        "old",
        json!({"status": {"phase": "Running", "podIP": "10.0.0.2",
        "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    assert!(scene.idle(), "it runs");
    scene.pod("new", json!({}));
    assert_eq!(scene.answer(reply("2"))[0].1["status"]["podIP"], "10.0.0.3");
    scene.fleet.pod_event(Event::Init, time(), scene.start);
    scene.fleet.pod_event(Event::InitDone, time(), scene.start);
    scene.pod("newer", json!({}));
    assert_eq!(scene.answer(reply("2"))[0].1["status"]["podIP"], "10.0.0.2", "both were gone from the list");
}

#[test]
fn a_pod_is_written_once_however_often_it_is_seen() {
    let mut scene = Scene::registered(1);
    scene.pod("a", json!({}));
    scene.pod("a", json!({}));
    assert_eq!(scene.next(), "PATCH /api/v1/namespaces/n/pods/a/status");
    assert!(scene.idle());
    scene.pod("a", json!({"spec": {"nodeName": "another"}}));
    assert!(scene.idle());
}

#[test]
fn deletion_follows_at_once_and_tells_the_end_to_those_who_wait() {
    let going = json!({"deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30});
    let mut scene = Scene::registered(1);
    scene.pod("a", json!({"metadata": going}));
    scene.pod("a", json!({"metadata": going}));
    assert_eq!(scene.next(), "DELETE /api/v1/namespaces/n/pods/a");
    assert!(scene.idle());
    let mut held = going;
    held["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
    scene.pod("b", json!({"metadata": held}));
    assert_eq!(scene.next(), "PATCH /api/v1/namespaces/n/pods/b/status, DELETE /api/v1/namespaces/n/pods/b");
}

#[test]
fn what_failed_is_tried_again_later_and_what_is_gone_is_not() {
    let mut scene = Scene::registered(1);
    scene.pod("a", json!({}));
    scene.answer(Err(refused(500, "InternalError")));
    assert!(scene.idle());
    scene.at(60);
    scene.answer(Err(refused(404, "NotFound")));
    scene.at(9_000);
    assert!(scene.idle());
}

#[test]
fn a_deadline_is_kept() {
    let mut scene = Scene::registered(1);
    let running = json!({
        "spec": {"activeDeadlineSeconds": 5},
        "status": {"phase": "Running", "podIP": "10.0.0.2", "startTime": "2026-01-02T03:04:05Z",
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    scene.pod("a", running.clone());
    scene.pod("a", running);
    scene.at(4_900);
    assert!(scene.idle());
    scene.at(5_000);
    let (line, body) = scene.answer(reply("2")).remove(0);
    assert_eq!(line, "PATCH /api/v1/namespaces/n/pods/a/status");
    assert_eq!(body["status"]["reason"], "DeadlineExceeded");
    assert!(scene.idle());
}
