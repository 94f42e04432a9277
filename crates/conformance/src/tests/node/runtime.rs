//! How containers run: probes, runtime classes, users and kernel parameters.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-node] Probing container should *not* be restarted with a GRPC liveness probe [Conformance] [NodeConformance]" => grpc_alive;
    "[sig-node] Probing container should be restarted with a GRPC liveness probe [Conformance] [NodeConformance]" => grpc_dead;
    "[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass [Conformance] [NodeConformance]" => class_deleted;
    "[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass [Conformance] [NodeConformance]" => class_unknown;
    "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead [Conformance] [NodeConformance]" => class_scheduled, true;
    "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead [Conformance] [NodeConformance]" => class_scheduled, false;
    "[sig-node] Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]" => user_and_group, true;
    "[sig-node] Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]" => user_and_group, false;
    "[sig-node] Sysctls [LinuxOnly] should reject invalid sysctls [Conformance] [NodeConformance]" => sysctls_rejected;
    "[sig-node] Sysctls [LinuxOnly] should support sysctls [Environment:NotInUserNS] [Conformance] [NodeConformance]" => sysctls;
}

/// A server of the gRPC health protocol on port 2379, and a liveness probe that asks a port.
fn grpc_server(port: u16, period_seconds: u64) -> Value {
    let listen = "etcd --data-dir /tmp/data --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://127.0.0.1:2379";
    let mut server = container("server", ETCD, &["sh", "-c", listen]);
    server["livenessProbe"] = json!({
        "grpc": {"port": port}, "initialDelaySeconds": 15, "periodSeconds": period_seconds, "timeoutSeconds": 5,
        "failureThreshold": 1,
    });
    let mut pod = pod("subject", server);
    pod["spec"]["restartPolicy"] = "Always".into();
    pod
}

async fn grpc_alive(cx: Arc<Cx>) -> Result<()> {
    // As many probes as upstream sees in its four minutes, in less time: one failure would restart the container.
    const OBSERVED: Duration = Duration::from_secs(75);
    let running = cx.start(&grpc_server(2379, 2)).await?;
    cx.step("no restart while probes succeed");
    let mut watch = cx.api(&kinds::POD).watch_since(&running, &[("fieldSelector", "metadata.name=subject")]).await?;
    let no_restart = async {
        while let Some(event) = watch.next(OBSERVED * 2).await? {
            if restarts(&event.object) > 0 {
                bail!("the container was restarted: {}", pod_state(&event.object));
            }
        }
        bail!("the watch ended")
    };
    match tokio::time::timeout(OBSERVED, no_restart).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let read = cx.api(&kinds::POD).get("subject").await?;
            ensure!(restarts(&read) == 0, "{} restarts", restarts(&read));
            pod_ready(&read).map_err(anyhow::Error::msg)
        }
    }
}

async fn grpc_dead(cx: Arc<Cx>) -> Result<()> {
    // Nobody listens there.
    cx.api(&kinds::POD).create(&grpc_server(2333, 5)).await?;
    cx.step("a restart");
    let restarted = |pod: &Value| when(restarts(pod) > 0, || format!("no restart; {}", pod_state(pod)));
    cx.api(&kinds::POD).wait_one("subject", POD, "restart", restarted).await?;
    Ok(())
}

/// A pod of a runtime class.
fn of_class(class: &str) -> Value {
    let mut pod = pod("subject", shell("main", "true"));
    pod["spec"]["runtimeClassName"] = class.into();
    pod["spec"]["automountServiceAccountToken"] = false.into();
    pod
}

/// A class of a handler that nodes may well not have: what is tested comes before the node.
async fn new_class(cx: &Cx, overhead: Value) -> Result<String> {
    let class = json!({
        "metadata": {"name": cx.unique("class")}, "handler": "test-handler", "overhead": overhead,
    });
    Ok(name(&cx.create_for_test(&kinds::RUNTIME_CLASS, &class).await?).to_owned())
}

async fn class_unknown(cx: Arc<Cx>) -> Result<()> {
    rejected(&cx, &cx.unique("nonexistent")).await
}

/// Admission forbids a pod of the class. It is asked with a dry run, as nothing more is needed to know.
async fn rejected(cx: &Cx, class: &str) -> Result<()> {
    let sent = cx.api(&kinds::POD).create_with(&of_class(class), &[("dryRun", "All")]).await;
    let status = expect_failure(sent, 403, "a pod of a class that does not exist")?;
    ensure!(status.reason == "Forbidden", "refused for {:?}", status.reason);
    Ok(())
}

async fn class_deleted(cx: Arc<Cx>) -> Result<()> {
    let class = json!({"metadata": {"name": cx.unique("delete-me")}, "handler": "runc"});
    let class = name(&cx.create_for_test(&kinds::RUNTIME_CLASS, &class).await?).to_owned();
    let classes = cx.api(&kinds::RUNTIME_CLASS);
    classes.delete(&class).await?;
    classes.wait_gone(&class, SOON).await?;
    // Admission may know the class for a moment longer.
    retry(SOON, "rejection", async || rejected(&cx, &class).await).await
}

async fn class_scheduled(cx: Arc<Cx>, with_overhead: bool) -> Result<()> {
    let overhead = json!({"cpu": "10m", "memory": "1Mi"});
    let fixed = if with_overhead { json!({"podFixed": overhead}) } else { Value::Null };
    let class = new_class(&cx, fixed).await?;
    let pods = cx.api(&kinds::POD);
    pods.create(&of_class(&class)).await?;
    let scheduled = |pod: &Value| when(!text(pod, "/spec/nodeName").is_empty(), || pod_state(pod));
    let pod = pods.wait_one("subject", SOON, "scheduled pod", scheduled).await?;
    expect(&pod, "/spec/runtimeClassName", class)?;
    expect(&pod, "/spec/overhead", if with_overhead { overhead } else { Value::Null })
}

async fn user_and_group(cx: Arc<Cx>, overridden: bool) -> Result<()> {
    let mut printing = shell("main", "id");
    let (mut user, mut group) = (1001, 2001);
    let of_pod = json!({"runAsUser": user, "runAsGroup": group});
    if overridden {
        (user, group) = (1002, 2002);
        printing["securityContext"] = json!({"runAsUser": user, "runAsGroup": group});
    }
    let mut subject = pod("subject", printing);
    subject["spec"]["securityContext"] = of_pod;
    let log = cx.run_to_end(&subject).await?;
    for part in [format!("uid={user}"), format!("gid={group}")] {
        ensure!(log.contains(&part), "id says {log:?}, expected {part}");
    }
    Ok(())
}

async fn sysctls(cx: Arc<Cx>) -> Result<()> {
    let mut subject = pod("subject", container("main", BUSYBOX, &["busybox", "sysctl", "kernel.shm_rmid_forced"]));
    subject["spec"]["securityContext"] = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    let log = cx.run_to_end(&subject).await?;
    ensure!(log.contains("kernel.shm_rmid_forced = 1"), "it is said to be {log:?}");
    let events = cx.api(&kinds::EVENT).list(&[("fieldSelector", "involvedObject.name=subject")]).await?;
    let troubles =
        items(&events, "/items").iter().filter(|e| matches!(text(e, "/reason"), "SysctlForbidden" | "Failed"));
    let troubles: Vec<&str> = troubles.map(|event| text(event, "/message")).collect();
    ensure!(troubles.is_empty(), "events of failure: {troubles:?}");
    Ok(())
}

async fn sysctls_rejected(cx: Arc<Cx>) -> Result<()> {
    let mut subject = pod("subject", shell("main", "true"));
    let sysctl = |name: &str, value: &str| json!({"name": name, "value": value});
    subject["spec"]["securityContext"] = json!({"sysctls": [
        sysctl("foo-", "bar"), sysctl("kernel.shmmax", "100000000"), sysctl("safe-and-unsafe", "100000000"),
        sysctl("bar..", "42"),
    ]});
    let sent = cx.api(&kinds::POD).create(&subject).await;
    let message = expect_failure(sent, 422, "a pod with sysctls that are none")?.message;
    for invalid in ["Invalid value: \"foo-\"", "Invalid value: \"bar..\""] {
        ensure!(message.contains(invalid), "the complaint lacks {invalid:?}: {message}");
    }
    for valid in ["safe-and-unsafe", "kernel.shmmax"] {
        ensure!(!message.contains(valid), "the complaint names {valid}, which is valid: {message}");
    }
    Ok(())
}
