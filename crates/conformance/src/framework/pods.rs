//! Pods: what they are made of, and waiting for them.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Cx, POD, at, holds, items, kinds, name, number, text, when};

pub const BUSYBOX: &str = "docker.io/library/busybox:1";
/// Serves HTTP on port 80 by itself.
pub const WEB: &str = "docker.io/coxswain/web:1";
/// curl and getent.
pub const TOOLS: &str = "docker.io/coxswain/tools:1";
/// Serves the gRPC health protocol.
pub const ETCD: &str = "docker.io/coxswain/etcd:1";
/// This program.
pub const SELF: &str = "docker.io/coxswain/conformance:1";

/// A container that runs a shell script. It ends at once when told to.
pub fn shell(name: &str, script: &str) -> Value {
    container(name, BUSYBOX, &["sh", "-c", &format!("trap 'exit 0' TERM\n{script}")])
}

/// A container that waits to be told to end.
pub fn idle(name: &str) -> Value {
    shell(name, "sleep 100000 & wait")
}

pub fn container(name: &str, image: &str, command: &[&str]) -> Value {
    json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": command})
}

/// A container that runs this program, `conformance serve …`.
pub fn serving(name: &str, arguments: &[&str]) -> Value {
    let command: Vec<&str> = ["/conformance", "serve"].into_iter().chain(arguments.iter().copied()).collect();
    container(name, SELF, &command)
}

/// A pod that restarts nothing and goes quickly.
pub fn pod(name: &str, containers: impl Into<Containers>) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"name": name}},
        "spec": {"containers": containers.into().0, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1},
    })
}

/// One container or several.
pub struct Containers(Vec<Value>);

impl From<Value> for Containers {
    fn from(one: Value) -> Self {
        Containers(vec![one])
    }
}

impl From<Vec<Value>> for Containers {
    fn from(several: Vec<Value>) -> Self {
        Containers(several)
    }
}

/// A template for controllers' pods with an idle container.
pub fn template(labels: &Value) -> Value {
    json!({
        "metadata": {"labels": labels},
        "spec": {"containers": [idle("main")], "terminationGracePeriodSeconds": 1},
    })
}

/// Why a pod is where it is: phase, reason and what its containers wait for.
pub fn pod_state(pod: &Value) -> String {
    let statuses = items(pod, "/status/containerStatuses").iter();
    let waits: Vec<String> = statuses
        .map(|status| {
            let state = at(status, "/state");
            let reason = ["waiting", "terminated"].iter().map(|s| text(&state[*s], "/reason")).find(|r| !r.is_empty());
            let message =
                ["waiting", "terminated"].iter().map(|s| text(&state[*s], "/message")).find(|r| !r.is_empty());
            format!("{} {} {}", text(status, "/name"), reason.unwrap_or("runs"), message.unwrap_or_default())
        })
        .collect();
    let scheduled = super::condition(pod, "PodScheduled").map_or("", |c| text(c, "/message"));
    format!(
        "pod {} is {} {} {}{} {waits:?}",
        name(pod),
        text(pod, "/status/phase"),
        text(pod, "/status/reason"),
        text(pod, "/status/message"),
        scheduled
    )
}

/// "Not yet" unless the pod is ready.
pub fn pod_ready(pod: &Value) -> Result<(), String> {
    when(holds(pod, "Ready"), || pod_state(pod))
}

impl Cx {
    /// Creates a pod and waits until it is ready.
    pub async fn start(&self, pod: &Value) -> Result<Value> {
        let pods = self.api(&kinds::POD);
        let made = pods.create(pod).await?;
        self.step(format!("pod {} ready", name(&made)));
        pods.wait_one(name(&made), POD, "ready pod", pod_ready).await
    }

    /// Creates a pod and waits until it has ended well, which it must. Returns what it printed.
    pub async fn run_to_end(&self, pod: &Value) -> Result<String> {
        let (ended, log) = self.run_to_any_end(pod).await?;
        if text(&ended, "/status/phase") != "Succeeded" {
            bail!("{}; it printed: {log}", pod_state(&ended));
        }
        Ok(log)
    }

    /// Creates a pod and waits until it has ended, well or not. Returns it, and what its first container printed.
    pub async fn run_to_any_end(&self, pod: &Value) -> Result<(Value, String)> {
        let pods = self.api(&kinds::POD);
        let made = pods.create(pod).await?;
        self.step(format!("pod {} at its end", name(&made)));
        let ended = |pod: &Value| when(matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"), || pod_state(pod));
        let pod = pods.wait_one(name(&made), POD, "end of pod", ended).await?;
        let log = self.log(name(&pod), text(&pod, "/spec/containers/0/name")).await?;
        Ok((pod, log))
    }

    /// What a container printed.
    pub async fn log(&self, pod: &str, container: &str) -> Result<String> {
        self.api(&kinds::POD).text(&[pod, "log"], &[("container", container)]).await
    }

    /// The cluster's nodes that take ordinary pods: ready, schedulable, without taints that keep pods away.
    pub async fn ready_nodes(&self) -> Result<Vec<Value>> {
        let list = self.cluster_wide(&kinds::NODE).list(&[]).await?;
        let free = |node: &&Value| {
            let tainted = items(node, "/spec/taints").iter();
            holds(node, "Ready")
                && *at(node, "/spec/unschedulable") != json!(true)
                && !tainted.into_iter().any(|taint| matches!(text(taint, "/effect"), "NoSchedule" | "NoExecute"))
        };
        let nodes: Vec<Value> = items(&list, "/items").iter().filter(free).cloned().collect();
        if nodes.is_empty() {
            bail!("no node is ready for pods")
        }
        Ok(nodes)
    }
}

/// The status of a container of a pod.
pub fn container_status<'a>(pod: &'a Value, container: &str) -> Result<&'a Value> {
    let statuses = items(pod, "/status/containerStatuses").iter();
    statuses
        .into_iter()
        .find(|status| text(status, "/name") == container)
        .with_context(|| format!("{} has no status of container {container}", name(pod)))
}

/// How often the containers of a pod were started again, in all.
pub fn restarts(pod: &Value) -> i64 {
    items(pod, "/status/containerStatuses").iter().map(|status| number(status, "/restartCount")).sum()
}
