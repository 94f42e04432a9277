//! A whole node with a real containerd, and no registry.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Client, Site, until, until_or};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod that runs what the node has anyway.
fn pod(name: &str) -> Value {
    let container = json!({"name": "c", "image": "localhost/coxswain/pause:1", "imagePullPolicy": "Never"});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [container], "terminationGracePeriodSeconds": 5}})
}

struct Node<'a> {
    site: &'a Site,
    client: Client,
}

impl Node<'_> {
    /// Creates the pod, and returns its container's status once it runs.
    fn run(&self, name: &str) -> Value {
        let path = "/api/v1/namespaces/default/serviceaccounts/default";
        until("service account", || (self.call("GET", path, None).0 == 200).then_some(()));
        let (status, answer) = self.call("POST", PODS, Some(&pod(name)));
        assert_eq!(status, 201, "{answer}");
        until_or(&format!("pod {name} running"), || self.running(name), || self.state(name))
    }

    /// The node's conditions, the pod, its events and what its runtime said, for a test that fails.
    fn state(&self, name: &str) -> String {
        let (_, nodes) = self.call("GET", "/api/v1/nodes", None);
        let (_, pod) = self.call("GET", &format!("{PODS}/{name}"), None);
        let (_, events) = self.call("GET", "/api/v1/namespaces/default/events", None);
        let mut text = format!("{}\n{}\n{}\n", nodes["items"][0]["status"]["conditions"], pod["spec"], pod["status"]);
        for event in events["items"].as_array().into_iter().flatten() {
            text += &format!("{} {}: {}\n", event["involvedObject"]["name"], event["reason"], event["message"]);
        }
        text + &fs::read_to_string(self.site.data().join("containerd/containerd.log")).unwrap_or_default()
    }

    fn running(&self, name: &str) -> Option<Value> {
        let (_, pod) = self.call("GET", &format!("{PODS}/{name}"), None);
        let status = &pod["status"]["containerStatuses"][0];
        status["state"]["running"].is_object().then(|| status.clone())
    }

    fn delete(&self, name: &str) {
        let path = format!("{PODS}/{name}");
        self.call("DELETE", &path, None);
        until(&format!("pod {name} gone"), || (self.call("GET", &path, None).0 == 404).then_some(()));
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.site.block_on(self.client.call(method, path, body)).unwrap()
    }
}

/// Ends containerd, its shims and what they run, whatever a test left of them.
struct Sweep<'a>(&'a Path);

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        let word = self.0.join("containerd").display().to_string();
        let mut doomed: Vec<i32> = Vec::new();
        // Parents have been seen before their children once nothing more is found.
        loop {
            let found: Vec<i32> = processes()
                .filter(|pid| !doomed.contains(pid))
                .filter(|pid| {
                    let named = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    String::from_utf8_lossy(&named).contains(&word) || parent(*pid).is_some_and(|p| doomed.contains(&p))
                })
                .collect();
            if found.is_empty() {
                break;
            }
            doomed.extend(found);
        }
        for pid in doomed {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn containerd_pid(data: &Path) -> Option<i32> {
    fs::read_to_string(data.join("containerd/state/containerd.pid")).ok()?.trim().parse().ok()
}

#[test]
fn runs_pods_without_a_registry_and_outlives_its_runtime_and_itself() {
    let site = Site::new();
    // The node's address: pods are answered from it, and loopback will not do for that.
    for words in [["link", "add", "node0", "type", "bridge"], ["addr", "add", "192.168.79.2/24", "dev", "node0"]] {
        assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
    }
    assert!(std::process::Command::new("ip").args(["link", "set", "node0", "up"]).status().unwrap().success());
    let data = site.data();
    let _sweep = Sweep(&data);
    let settings = ["--node-ip", "192.168.79.2"];
    let server = site.start(&settings);
    let node = Node { site: &site, client: site.connect() };
    let first = node.run("first");

    let old = containerd_pid(&data).unwrap();
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    until("containerd again", || containerd_pid(&data).filter(|pid| *pid != old));
    node.run("second");
    assert_eq!(node.running("first").unwrap(), first, "the container went on");

    let runtime = containerd_pid(&data);
    let (status, took) = server.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let server = site.start(&settings);
    let node = Node { site: &site, client: site.connect() };
    assert_eq!(containerd_pid(&data), runtime, "taken over");
    node.run("third");
    assert_eq!(node.running("first").unwrap(), first, "the container went on");

    server.kill();
    let _server = site.start(&[&settings[..], &["--pause-image", "localhost/other:1"]].concat());
    let node = Node { site: &site, client: site.connect() };
    assert_ne!(containerd_pid(&data), runtime, "started again with its new configuration");
    assert_eq!(node.running("first").unwrap(), first, "the container went on");
    for name in ["first", "second", "third"] {
        node.delete(name);
    }
}
