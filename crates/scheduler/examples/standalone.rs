//! Runs the scheduler alone against an API server that has none (`--disable scheduler`), and measures it:
//! `cargo run -p scheduler --example standalone <kubeconfig> [nodes pods]`. Nodes and pods it makes are left behind.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use client::{ClientFactory, Context, Informers};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PatchParams, PostParams};
use serde_json::json;

/// Everybody is whom the kubeconfig says.
struct Same(kube::Client);

impl ClientFactory for Same {
    fn client_as(&self, _: &str, _: &[&str]) -> kube::Client {
        self.0.clone()
    }
}

const AT_ONCE: usize = 32;

async fn make_node(nodes: &Api<Node>, number: usize) -> Result<(), kube::Error> {
    let name = format!("made-{number}");
    let zone = format!("zone-{}", number % 5);
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}},
    });
    match nodes.create(&PostParams::default(), &serde_json::from_value(node).expect("a node")).await {
        Err(error) if !client::is_already_exists(&error) => return Err(error),
        _ => {}
    }
    let amounts = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
    let status = json!({"status": {
        "allocatable": amounts, "capacity": amounts, "conditions": [{"type": "Ready", "status": "True"}],
    }});
    nodes.patch_status(&name, &PatchParams::default(), &kube::api::Patch::Merge(&status)).await?;
    // Where a node lifecycle controller has tainted it meanwhile.
    let untainted = json!({"spec": {"taints": null}});
    nodes.patch(&name, &PatchParams::default(), &kube::api::Patch::Merge(&untainted)).await?;
    Ok(())
}

async fn make_pod(pods: &Api<Pod>, number: usize) -> Result<(), kube::Error> {
    let requests = json!({"cpu": "100m", "memory": "100Mi"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("made-{}-{number}", std::process::id()), "labels": {"app": "made"}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).expect("a pod")).await?;
    Ok(())
}

async fn measure(client: kube::Client, informers: &Informers, nodes: usize, pods: usize) {
    let api = Api::all(client.clone());
    let made = futures::stream::iter(0..nodes).map(|number| make_node(&api, number));
    made.buffer_unordered(AT_ONCE).for_each(|result| async { result.expect("a node can be made") }).await;
    let bound = Arc::new(tokio::sync::Semaphore::new(0));
    let counter = bound.clone();
    informers.of::<Pod>().on_change(move |change| {
        let has_node = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if let client::Change::Applied { old, new } = change
            && has_node(new)
            && !old.is_some_and(|old| has_node(old))
        {
            counter.add_permits(1);
        }
    });
    let start = Instant::now();
    let api = Api::namespaced(client, "default");
    let made = futures::stream::iter(0..pods).map(|number| make_pod(&api, number));
    made.buffer_unordered(AT_ONCE).for_each(|result| async { result.expect("a pod can be made") }).await;
    println!("{pods} pods created in {:.2?}", start.elapsed());
    let _ = bound.acquire_many(pods as u32).await;
    let rate = pods as f64 / start.elapsed().as_secs_f64();
    println!("{pods} pods on {nodes} nodes: {rate:.0}/s, creation included");
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let kubeconfig = arguments.first().expect("usage: standalone <kubeconfig> [nodes pods]");
    let client = client::https::client_from_kubeconfig(Path::new(kubeconfig)).await.expect("the kubeconfig is usable");
    let shutdown = tokio_util::sync::CancellationToken::new();
    let informers = Informers::new(client.clone(), shutdown.clone());
    let context = Context {
        client: client.clone(),
        clients: Arc::new(Same(client.clone())),
        informers: informers.clone(),
        shutdown: shutdown.clone(),
    };
    let running = tokio::spawn(scheduler::run(context, scheduler::Config::default()));
    match arguments.get(1..3).map(|counts| (counts[0].parse(), counts[1].parse())) {
        Some((Ok(nodes), Ok(pods))) => measure(client, &informers, nodes, pods).await,
        _ => _ = tokio::signal::ctrl_c().await,
    }
    shutdown.cancel();
    running.await.expect("the scheduler does not panic");
}
