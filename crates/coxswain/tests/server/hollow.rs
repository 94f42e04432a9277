//! Simulated nodes against a real control plane: the scheduler finds them, and pods on them live and go.

use std::process::Child;

use serde_json::{Value, json};

use crate::support::{Client, Site, until};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// Ends with the test.
struct Hollow(Child);

impl Drop for Hollow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(site: &Site) -> Hollow {
    let kubeconfig = site.data().join("kubeconfig.yaml").display().to_string();
    let words = ["hollow", "--nodes", "3", "--pod-network", "10.64.0.0/11", "--kubeconfig", &kubeconfig];
    Hollow(site.spawn(&words))
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The object, if it is there.
fn find(site: &Site, client: &Client, path: &str) -> Option<Value> {
    let (status, object) = site.block_on(client.call("GET", path, None)).unwrap();
    (status == 200).then_some(object)
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "example.com/none:1"}]}})
}

/// Creates the pod as soon as the namespace's account is there.
fn create(site: &Site, client: &Client, pod: &Value) {
    until("a pod is accepted", || (site.block_on(client.post(PODS, pod)).0 == 201).then_some(()));
}

#[test]
fn pods_run_on_hollow_nodes_and_go_when_asked() {
    let site = Site::new();
    let _server = site.start_api();
    let client = site.connect();
    let _hollow = start(&site);
    until("three nodes are ready", || {
        let nodes = site.block_on(client.get(NODES));
        (nodes["items"].as_array().unwrap().iter().filter(|node| is_ready(node)).count() == 3).then_some(())
    });
    create(&site, &client, &pod("a"));
    let path = format!("{PODS}/a");
    let running = until("the pod runs", || find(&site, &client, &path).filter(is_ready));
    assert_eq!(running["status"]["phase"], "Running");
    let node = site.block_on(client.get(&format!("{NODES}/{}", running["spec"]["nodeName"].as_str().unwrap())));
    let network = node["spec"]["podCIDR"].as_str().unwrap().strip_suffix(".0/24").unwrap().to_owned();
    assert_eq!(running["status"]["podIP"], format!("{network}.2"));
    assert_eq!(running["status"]["hostIP"], node["status"]["addresses"][0]["address"]);
    assert_eq!(running["status"]["containerStatuses"][0]["ready"], true);
    // With the usual grace, of which nothing is used.
    let (status, _) = site.block_on(client.call("DELETE", &path, None)).unwrap();
    assert_eq!(status, 200);
    let begun = std::time::Instant::now();
    until("the pod is gone", || find(&site, &client, &path).is_none().then_some(()));
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "sooner than its grace");
}

#[test]
fn hollow_nodes_heartbeat_come_back_and_know_their_pods() {
    let site = Site::new();
    let _server = site.start_api();
    let client = site.connect();
    let hollow = start(&site);
    let lease = format!("{LEASES}/hollow-1");
    let first = until("a lease", || find(&site, &client, &lease));
    assert_eq!(first["spec"]["holderIdentity"], "hollow-1");
    let owner = site.block_on(client.get(&format!("{NODES}/hollow-1")))["metadata"]["uid"].clone();
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], owner);
    let renewed = |lease: &Value| lease["spec"]["renewTime"] != first["spec"]["renewTime"];
    until("it is renewed", || find(&site, &client, &lease).filter(renewed));

    create(&site, &client, &pod("a"));
    let path = format!("{PODS}/a");
    let running = until("the pod runs", || find(&site, &client, &path).filter(is_ready));
    // Another process takes over: the pod stays as it is, and the next one on its node has another address.
    drop(hollow);
    let _hollow = start(&site);
    let mut neighbour = pod("b");
    neighbour["spec"]["nodeName"] = running["spec"]["nodeName"].clone();
    create(&site, &client, &neighbour);
    let second = until("the other runs", || find(&site, &client, &format!("{PODS}/b")).filter(is_ready));
    assert_ne!(second["status"]["podIP"], running["status"]["podIP"]);
    assert_eq!(find(&site, &client, &path).unwrap()["status"], running["status"]);

    let (status, _) = site.block_on(client.call("DELETE", &format!("{NODES}/hollow-2"), None)).unwrap();
    assert_eq!(status, 200);
    until("the node is back", || find(&site, &client, &format!("{NODES}/hollow-2")).filter(is_ready));
}
