//! The node's heartbeat: a Lease in `kube-node-lease`, renewed at a quarter of its duration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio_util::sync::CancellationToken;

use crate::shared::Handle;

const NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_millis(200);

/// Renews until `shutdown`.
pub async fn run(shared: Handle, shutdown: CancellationToken) {
    let period = shared.config.node_lease_duration / 4;
    let api: Api<Lease> = Api::namespaced(shared.api.clone(), NAMESPACE);
    loop {
        let renewed = renew(&shared, &api).await;
        if let Err(error) = &renewed {
            tracing::debug!(%error, "node lease not renewed, will retry");
        }
        let pause = if renewed.is_ok() { period } else { RETRY };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// One small patch; the whole object only if there is none yet.
async fn renew(shared: &Handle, api: &Api<Lease>) -> Result<(), kube::Error> {
    let name = &shared.config.node_name;
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: i32::try_from(shared.config.node_lease_duration.as_secs()).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    let patch = serde_json::json!({ "spec": spec });
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(error) if client::is_not_found(&error) => {}
        other => return other.map(drop),
    }
    let node: Node = Api::all(shared.api.clone()).get(name).await?;
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(NAMESPACE.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let lease = Lease { metadata, spec: Some(spec) };
    match api.create(&PostParams::default(), &lease).await {
        Err(error) if client::is_already_exists(&error) => Ok(()),
        other => other.map(drop),
    }
}
