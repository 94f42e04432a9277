//! Services.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-network] Services should complete a service status lifecycle [Conformance]" => status;
    "[sig-network] Services should delete a collection of services [Conformance]" => collection;
    "[sig-network] Services should serve endpoints on same port and different protocols [Conformance]" => two_protocols;
}

/// Waits until a URL answers a pod with the name of the pod that serves it.
pub async fn reaches(cx: &Cx, client: &str, url: &str, server: &str) -> Result<()> {
    cx.step(format!("{url} leads to {server}"));
    let script = format!("curl -sS --max-time 2 {url}");
    retry(SOON, &format!("{url} answered by {server}"), async || {
        let answer = cx.exec(client, client, &script).await?;
        ensure!(answer.contains(server), "answered {answer:?}");
        Ok(())
    })
    .await
}

async fn status(cx: Arc<Cx>) -> Result<()> {
    let (api, subject) = (cx.api(&kinds::SERVICE), cx.unique("service"));
    let subject = subject.as_str();
    let labels = json!({"test-service-static": "true"});
    let service = json!({
        "metadata": {"name": subject, "labels": labels},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 80}]},
    });
    let selector = "test-service-static=true";
    let list = api.list(&labelled(selector)).await?;
    let mut watch = api.watch_since(&list, &labelled(selector)).await?;
    api.create(&service).await?;
    watch.expect("ADDED", "the service", SOON, |service| name(service) == subject).await?;
    cx.step("get the status");
    let read = api.send("GET", &[subject, "status"], &[], None).await?;
    expect(&read, "/metadata/name", subject)?;
    ensure!(read["status"]["loadBalancer"].is_object(), "status {}", read["status"]);
    cx.step("patch the status");
    let patch = json!({
        "metadata": {"annotations": {"patched-status": "true"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    });
    let patched = api.patch_sub(subject, "status", Patch::Merge, &patch).await?;
    expect(&patched, "/status/loadBalancer/ingress/0/ip", "203.0.113.1")?;
    expect(&patched, "/metadata/annotations/patched-status", "true")?;
    let seen = watch.expect("MODIFIED", "the patched status", SOON, |service| {
        text(service, "/status/loadBalancer/ingress/0/ip") == "203.0.113.1"
    });
    seen.await?;
    cx.step("update the status");
    // As typed clients write a condition whose time was not set.
    let condition = json!({
        "type": "StatusUpdate", "status": "True", "reason": "Conformance", "message": "set by a test",
        "lastTransitionTime": null,
    });
    let updated = api.change_sub(subject, Some("status"), |service| {
        service["status"]["conditions"] = json!([condition]);
    });
    ensure!(holds(&updated.await?, "StatusUpdate"), "the answer lacks the condition");
    let seen = watch.expect("MODIFIED", "the updated status", SOON, |service| holds(service, "StatusUpdate")).await?;
    expect(&seen, "/metadata/annotations/patched-status", "true")?;
    cx.step("patch the service");
    // As typed clients write a service of which they only say labels.
    let patch = json!({
        "metadata": {"creationTimestamp": null, "labels": {"test-service": "patched"}}, "spec": {},
        "status": {"loadBalancer": {}},
    });
    api.patch(subject, Patch::Strategic, &patch).await?;
    let seen = watch.expect("MODIFIED", "the patched service", SOON, |service| {
        text(service, "/metadata/labels/test-service") == "patched"
    });
    let seen = seen.await?;
    ensure!(holds(&seen, "StatusUpdate"), "the patch lost the status");
    expect(&seen, "/status/loadBalancer/ingress/0/ip", "203.0.113.1")?;
    cx.step("delete");
    api.delete(subject).await?;
    // The whole life is told again to whoever watches from before it.
    let mut again = api.watch_since(&list, &labelled(selector)).await?;
    for watch in [&mut watch, &mut again] {
        watch.expect("DELETED", "the service", SOON, |service| name(service) == subject).await?;
    }
    api.wait_gone(subject, SOON).await
}

async fn collection(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::SERVICE);
    for (subject, fate, port) in [("first", "delete", 8001), ("second", "delete", 8002), ("third", "keep", 8003)] {
        let ports = json!([{"name": "http", "port": port, "protocol": "TCP", "targetPort": port}]);
        let metadata = json!({"name": subject, "labels": {"fate": fate}});
        api.create(&json!({"metadata": metadata, "spec": {"type": "ClusterIP", "ports": ports}})).await?;
    }
    let list = api.list(&[]).await?;
    ensure!(items(&list, "/items").len() == 3, "{} services, expected 3", items(&list, "/items").len());
    api.delete_collection(&labelled("fate=delete")).await?;
    let left = api.list(&[]).await?;
    let left: Vec<&str> = items(&left, "/items").iter().map(name).collect();
    ensure!(left == ["third"], "left are {left:?}, expected only the third");
    Ok(())
}

/// A service whose port 80 is both TCP and UDP, first both, then each alone.
async fn two_protocols(cx: Arc<Cx>) -> Result<()> {
    const SERVICE: &str = "multiprotocol-test";
    let ports = json!([
        {"name": "tcp-port", "port": 80, "protocol": "TCP", "targetPort": 8080},
        {"name": "udp-port", "port": 80, "protocol": "UDP", "targetPort": 8080},
    ]);
    let services = cx.api(&kinds::SERVICE);
    let spec = json!({"selector": {"multiprotocol": "true"}, "ports": ports});
    let made = services.create(&json!({"metadata": {"name": SERVICE}, "spec": spec})).await?;
    let ip = text(&made, "/spec/clusterIP").to_owned();
    for subject in ["server-1", "server-2"] {
        let mut server = pod(subject, serving("server", &["echo", "--port", "8080", "--udp", "8080"]));
        server["metadata"]["labels"]["multiprotocol"] = "true".into();
        server["spec"]["containers"][0]["ports"] = json!([
            {"containerPort": 8080, "protocol": "TCP"}, {"containerPort": 8080, "protocol": "UDP"},
        ]);
        cx.start(&server).await?;
    }
    cx.start(&pod("client", container("client", TOOLS, &["sh", "-c", "sleep 100000"]))).await?;
    cx.start(&pod("asker", container("asker", SELF, &["sh", "-c", "sleep 100000"]))).await?;
    let tcp = format!("curl -sS --max-time 2 http://{ip}:80/");
    let udp = format!("/conformance serve ask-udp {ip}:80");
    let both: [(&str, &str, &str); 2] = [("client", &tcp, "TCP"), ("asker", &udp, "UDP")];
    for (client, script, protocol) in both {
        every_server(&cx, client, script, protocol).await?;
    }
    for (kept, dropped) in [("TCP", "UDP"), ("UDP", "TCP")] {
        cx.step(format!("only {kept}"));
        services
            .change(SERVICE, |service| {
                let kept: Vec<Value> =
                    items(&json!({"p": ports}), "/p").iter().filter(|p| p["protocol"] == kept).cloned().collect();
                service["spec"]["ports"] = kept.into();
            })
            .await?;
        for (client, script, protocol) in both {
            if protocol == dropped {
                unreachable(&cx, client, script, protocol).await?;
            } else {
                every_server(&cx, client, script, protocol).await?;
            }
        }
    }
    Ok(())
}

/// Asks until both servers have answered.
async fn every_server(cx: &Cx, client: &str, script: &str, protocol: &str) -> Result<()> {
    for server in ["server-1", "server-2"] {
        cx.step(format!("{server} over {protocol}"));
        retry(SOON, &format!("{server} over {protocol}"), async || {
            let answer = cx.exec(client, client, script).await?;
            ensure!(answer.contains(server), "answered {answer:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Waits until nobody answers any more.
async fn unreachable(cx: &Cx, client: &str, script: &str, protocol: &str) -> Result<()> {
    retry(SOON, &format!("{protocol} no longer served"), async || {
        let answer = cx.exec(client, client, script).await;
        ensure!(answer.is_err(), "answered {answer:?}");
        Ok(())
    })
    .await
}
