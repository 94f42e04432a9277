//! Registers the node and keeps its status true: written at start and when something changes, else only now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::machine;
use super::status::{self, RuntimeState};
use crate::error::Result;
use crate::shared::{Handle, Shared};

/// How often the machine and the runtime are looked at while nothing is known to change.
const LOOK: Duration = Duration::from_secs(10);
/// While the node is not ready somebody waits for it.
const LOOK_UNREADY: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`. A change of the Node's capacity by others leads to a look at once.
pub async fn run(shared: Handle, shutdown: CancellationToken) {
    let poke = Arc::new(Notify::new());
    follow_capacity(&shared, poke.clone());
    let mut written: Option<(NodeStatus, Instant)> = None;
    loop {
        let mut pause = LOOK;
        match look(&shared, &mut written).await {
            Ok(ready) if !ready => pause = LOOK_UNREADY,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "node status not written, will retry");
                pause = RETRY;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = poke.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn follow_capacity(shared: &Shared, poke: Arc<Notify>) {
    let name = shared.config.node_name.clone();
    shared.nodes.on_change(move |change| {
        let capacity = |node: &Node| node.status.as_ref().and_then(|status| status.capacity.clone());
        let node = change.object();
        if node.metadata.name.as_ref() == Some(&name) && change.old().is_none_or(|old| capacity(old) != capacity(node))
        {
            poke.notify_one();
        }
    });
}

/// One look; writes what changed. True if the node is ready.
async fn look(shared: &Shared, written: &mut Option<(NodeStatus, Instant)>) -> Result<bool> {
    let runtime = runtime_state(shared).await;
    let previous = match written {
        Some((previous, _)) => previous.clone(),
        None => register(shared).await?,
    };
    // While the runtime is silent, that is the node's trouble, told by `runtime`.
    let image_dir = shared.image_dir().await.ok().flatten().unwrap_or_else(|| shared.config.root_dir.clone());
    let known = shared.nodes.get("", &shared.config.node_name).and_then(|node| node.status.clone()).unwrap_or_default();
    let extended = status::extended(&shared.config, &shared.machine, known.capacity.as_ref());
    let inputs = status::Inputs {
        config: &shared.config,
        machine: &shared.machine,
        pressure: machine::pressure(&shared.config.root_dir, &image_dir),
        runtime: &runtime,
        extended: &extended,
        previous: &previous,
        now: Timestamp::now(),
    };
    let status = status::build(&inputs);
    let stale = written.as_ref().is_none_or(|(old, at)| {
        at.elapsed() >= shared.config.node_status_report_frequency
            || status::without_heartbeats(old) != status::without_heartbeats(&status)
    });
    if stale {
        let first = written.is_none();
        write(shared, &status, &extended, &known).await.inspect_err(|error| {
            if let crate::error::Error::Api(error) = error
                && client::is_not_found(error)
            {
                // Somebody deleted the node: it registers itself anew.
                *written = None;
            }
        })?;
        if first && runtime.errors.is_empty() {
            tracing::info!(node = shared.config.node_name, "node is ready");
        }
        *written = Some((status, Instant::now()));
    }
    Ok(runtime.errors.is_empty())
}

/// Capacity that is others' to tell is left as it is, and what they took back is no longer allocatable.
async fn write(shared: &Shared, status: &NodeStatus, extended: &status::Resources, known: &NodeStatus) -> Result<()> {
    let api: Api<Node> = Api::all(shared.api.clone());
    let mut patch = json!({ "status": status });
    if let Some(capacity) = patch["status"]["capacity"].as_object_mut() {
        capacity.retain(|name, _| !extended.contains_key(name));
    }
    if let Some(allocatable) = patch["status"]["allocatable"].as_object_mut() {
        for name in known.allocatable.iter().flat_map(BTreeMap::keys) {
            allocatable.entry(name.as_str()).or_insert(serde_json::Value::Null);
        }
    }
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut().filter(|_| shared.config.node_ips.len() > 1) {
        // Addresses merge by type, of which two may be the same: they are replaced as a whole.
        addresses.push(json!({"$patch": "replace"}));
    }
    api.patch_status(&shared.config.node_name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    Ok(())
}

/// Makes sure that the Node exists with our labels; returns its status.
async fn register(shared: &Shared) -> Result<NodeStatus> {
    let config = &shared.config;
    let api: Api<Node> = Api::all(shared.api.clone());
    let mut node = Node::default();
    node.metadata.name = Some(config.node_name.clone());
    node.metadata.labels = Some(labels(shared));
    let taints = Some(config.register_with_taints.clone()).filter(|taints| !taints.is_empty());
    node.spec = Some(NodeSpec { taints, ..NodeSpec::default() });
    let known = match api.create(&PostParams::default(), &node).await {
        Ok(made) => made,
        Err(error) if client::is_already_exists(&error) => adopt(shared, &api).await?,
        Err(error) => return Err(error.into()),
    };
    Ok(known.status.unwrap_or_default())
}

fn labels(shared: &Shared) -> BTreeMap<String, String> {
    let mut labels = shared.config.node_labels.clone();
    let machine = &shared.machine;
    for (prefix, name, value) in [
        ("kubernetes.io", "hostname", &shared.config.node_name),
        ("kubernetes.io", "os", &"linux".to_owned()),
        ("kubernetes.io", "arch", &machine.architecture),
        ("beta.kubernetes.io", "os", &"linux".to_owned()),
        ("beta.kubernetes.io", "arch", &machine.architecture),
    ] {
        labels.insert(format!("{prefix}/{name}"), value.clone());
    }
    labels
}

/// Sets our labels on the Node of an earlier run; others' labels and taints stay.
async fn adopt(shared: &Shared, api: &Api<Node>) -> Result<Node> {
    let known = api.get(&shared.config.node_name).await?;
    let labels = labels(shared);
    let missing = |(name, value): &(&String, &String)| {
        known.metadata.labels.as_ref().and_then(|labels| labels.get(*name)) != Some(*value)
    };
    if labels.iter().filter(missing).count() == 0 {
        return Ok(known);
    }
    let patch = json!({"metadata": {"labels": labels}});
    Ok(api.patch(&shared.config.node_name, &PatchParams::default(), &Patch::Merge(&patch)).await?)
}

async fn runtime_state(shared: &Shared) -> RuntimeState {
    let (version, status, images) =
        tokio::join!(shared.runtime.version(), shared.runtime.status(), shared.runtime.list_images());
    let mut state = RuntimeState::default();
    match version {
        Ok(version) => {
            shared.runtime_name.get_or_init(|| version.runtime_name.clone());
            state.version = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        Err(error) => {
            state.errors.push(format!("container runtime is down: {error}"));
            return state;
        }
    }
    match status {
        Ok(status) => {
            for condition in status.conditions.iter().filter(|condition| !condition.status) {
                let what = if condition.r#type == "NetworkReady" {
                    "container runtime network not ready"
                } else {
                    "container runtime not ready"
                };
                state.errors.push(format!(
                    "{what}: {}=false reason:{} message:{}",
                    condition.r#type, condition.reason, condition.message
                ));
            }
        }
        Err(error) => state.errors.push(format!("container runtime status check failed: {error}")),
    }
    for image in images.unwrap_or_default() {
        let names = image.repo_digests.iter().chain(&image.repo_tags).cloned().collect();
        state.images.push((names, i64::try_from(image.size).unwrap_or(i64::MAX)));
    }
    state.images.sort();
    state
}
