//! Makes this node's DNS server an endpoint of the Service `kube-system/kube-dns`.

use std::net::SocketAddr;

use client::{Context, Informer, Queue, QueueConfig, key_of};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};

use crate::Result;

const NAMESPACE: &str = "kube-system";
const SERVICE: &str = "kube-dns";

/// The slice that says: on this node, cluster DNS answers at `listen`.
///
/// Its hint makes every node use its own server as long as all have one. It belongs to the Node, and goes with it.
pub fn slice(node_name: &str, node_uid: &str, listen: SocketAddr) -> EndpointSlice {
    let labels = [("kubernetes.io/service-name", SERVICE), ("endpointslice.kubernetes.io/managed-by", "coxswain-dns")];
    let port = |name: &str, protocol: &str| EndpointPort {
        name: Some(name.to_owned()),
        port: Some(i32::from(listen.port())),
        protocol: Some(protocol.to_owned()),
        app_protocol: None,
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{SERVICE}-{node_name}")),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node_name.to_owned(),
                uid: node_uid.to_owned(),
                ..Default::default()
            }]),
            ..Default::default()
        },
        address_type: if listen.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![listen.ip().to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), serving: Some(true), terminating: Some(false) }),
            hints: Some(EndpointHints {
                for_nodes: Some(vec![ForNode { name: node_name.to_owned() }]),
                ..Default::default()
            }),
            node_name: Some(node_name.to_owned()),
            ..Default::default()
        }]),
        ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
    }
}

/// Keeps the slice as it should be until the context shuts down: whoever edits or deletes it sees it come back.
pub async fn keep_published(context: &Context, node_name: &str, listen: SocketAddr) {
    let nodes = context.informers.of::<Node>();
    let slices = context.informers.of::<EndpointSlice>();
    let queue: Queue<()> = Queue::new(QueueConfig::default());
    let (changed, name) = (queue.clone(), node_name.to_owned());
    nodes.on_change(move |change| {
        let same_uid = |old: &Node, new: &Node| old.metadata.uid == new.metadata.uid;
        let node = change.object();
        let known = change.old().is_some_and(|old| same_uid(old, node));
        if node.metadata.name.as_deref() == Some(name.as_str()) && !known {
            changed.add(());
        }
    });
    let changed = queue.clone();
    let own = (NAMESPACE.to_owned(), format!("{SERVICE}-{node_name}"));
    slices.on_change(move |change| {
        if key_of(&**change.object()) == own {
            changed.add(());
        }
    });
    nodes.synced().await;
    slices.synced().await;
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = queue.next() => {}
        }
        let published = publish(context, &nodes, &slices, node_name, listen).await;
        if let Err(error) = &published {
            tracing::debug!(%error, "cannot publish the DNS endpoint, will retry");
        }
        queue.done(&(), published.is_err());
    }
}

async fn publish(
    context: &Context,
    nodes: &Informer<Node>,
    slices: &Informer<EndpointSlice>,
    node_name: &str,
    listen: SocketAddr,
) -> Result<()> {
    // The node comes with its kubelet; its arrival calls us again.
    let Some(uid) = nodes.get("", node_name).and_then(|node| node.metadata.uid.clone()) else { return Ok(()) };
    let mut wanted = slice(node_name, &uid, listen);
    let name = wanted.metadata.name.clone().unwrap_or_default();
    let api: kube::Api<EndpointSlice> = kube::Api::namespaced(context.client.clone(), NAMESPACE);
    let Some(present) = slices.get(NAMESPACE, &name) else {
        return match api.create(&PostParams::default(), &wanted).await {
            // The cache is behind: its next change calls us again.
            Err(error) if client::is_already_exists(&error) => Ok(()),
            other => Ok(other.map(drop)?),
        };
    };
    if is_as_wanted(&present, &wanted) {
        return Ok(());
    }
    wanted.metadata.resource_version.clone_from(&present.metadata.resource_version);
    Ok(api.replace(&name, &PostParams::default(), &wanted).await.map(drop)?)
}

fn is_as_wanted(present: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    present.endpoints == wanted.endpoints
        && present.ports == wanted.ports
        && present.address_type == wanted.address_type
        && present.metadata.labels == wanted.metadata.labels
        && present.metadata.owner_references == wanted.metadata.owner_references
}
