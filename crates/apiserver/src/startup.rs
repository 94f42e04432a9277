//! What the server itself puts into a cluster: the objects every cluster has, and its own service and endpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use futures::future::try_join_all;
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::bootstrap::{self, Step, reconcile};
use crate::http::respond;
use crate::object::Object;
use crate::peers;
use crate::request::UserInfo;
use crate::server::{ApiServer, Caller};

/// What differs from cluster to cluster.
#[derive(Clone, Debug)]
pub struct Startup {
    pub bootstrap: bootstrap::Settings,
    /// This server's address and port, as pods and other nodes reach it; no address where only this host does, by loopback.
    pub address: Option<String>,
    pub port: u16,
    /// Cluster IP of `default/kubernetes`.
    pub service_ip: String,
    /// Cluster IP of `kube-system/kube-dns`; none where cluster DNS is disabled.
    pub cluster_dns: Option<String>,
    /// Further objects that are to be as they are here at each start.
    pub objects: Vec<Value>,
}

/// Creates or brings up to date what every cluster has. The server is ready afterwards.
pub async fn start(server: &ApiServer, settings: &Startup) -> Result<()> {
    let objects = bootstrap::objects(&settings.bootstrap);
    let (namespaces, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(|o| o["kind"] == "Namespace");
    // All at once, so that they share few fsyncs; what lives in a namespace comes after it.
    try_join_all(namespaces.iter().map(|object| ensure(server, object))).await?;
    try_join_all(rest.iter().map(|object| ensure(server, object))).await?;
    let own = own_objects(server, settings).into_iter().chain(settings.objects.iter().cloned()).collect::<Vec<_>>();
    try_join_all(own.iter().map(|object| replace(server, object))).await?;
    crate::crds::start(server).await?;
    crate::aggregator::start(server);
    crate::fairness::start(server);
    crate::authn::start(server);
    server.health.set_bootstrapped();
    Ok(())
}

fn own_objects(server: &ApiServer, settings: &Startup) -> Vec<Value> {
    let Startup { address, port, service_ip, .. } = settings;
    let mut own = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": service_ip, "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    })];
    own.extend(endpoints(&peers::addresses(&server.view, address.as_deref()), *port));
    if let Some(dns) = &settings.cluster_dns {
        own.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system",
                "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
            "spec": {"type": "ClusterIP", "clusterIP": dns, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ]},
        }));
    }
    own
}

/// What leads to these servers: the endpoints of `default/kubernetes`, in both forms.
pub(crate) fn endpoints(addresses: &BTreeSet<String>, port: u16) -> [Value; 2] {
    let ips: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let subsets = if ips.is_empty() { json!([]) } else { json!([{"addresses": ips, "ports": ports}]) };
    let ready = addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": true}}));
    [
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": subsets,
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "endpoints": ready.collect::<Vec<_>>(),
            "ports": ports,
        }),
    ]
}

fn row_of(server: &ApiServer, object: &Value) -> Result<Arc<ResourceRow>> {
    let api_version = meta::str_at(object, &["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = meta::str_at(object, &["kind"]);
    server
        .table()
        .by_kind(group, version, kind)
        .cloned()
        .ok_or_else(|| StatusError::internal(format!("no row for {kind}")))
}

fn path_of(row: &ResourceRow, object: &Value) -> String {
    let root = if row.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", row.group) };
    match meta::namespace(object) {
        "" => format!("{root}/{}/{}", row.version, row.plural),
        namespace => format!("{root}/{}/namespaces/{namespace}/{}", row.version, row.plural),
    }
}

fn stored(server: &ApiServer, row: &ResourceRow, object: &Value) -> Option<Value> {
    let entry = server.view.get(&row.storage_prefix, meta::namespace(object), meta::name(object))?;
    Some(Object::value(&entry.value))
}

/// Another server that starts at the same time does the same; the later one looks again.
const TRIES: usize = 5;

/// Creates an object, or reconciles the one that is there without undoing what its owner changed.
pub(crate) async fn ensure(server: &ApiServer, wanted: &Value) -> Result<()> {
    for _ in 1..TRIES {
        match try_ensure(server, wanted).await {
            Err(error) if error.code == 409 => {}
            done => return done,
        }
    }
    try_ensure(server, wanted).await
}

async fn try_ensure(server: &ApiServer, wanted: &Value) -> Result<()> {
    let row = row_of(server, wanted)?;
    let path = path_of(&row, wanted);
    let named = format!("{path}/{}", meta::name(wanted));
    match stored(server, &row, wanted).map(|existing| reconcile(&existing, wanted)) {
        None => send(server, "POST", &path, Some(wanted)).await,
        Some(None) => Ok(()),
        Some(Some(Step::Update(object))) => send(server, "PUT", &named, Some(&object)).await,
        Some(Some(Step::Replace(object))) => {
            send(server, "DELETE", &named, None).await?;
            send(server, "POST", &path, Some(&object)).await
        }
    }
}

/// Creates an object of the server's own, or sets it to what is wanted now (its address may have changed).
pub(crate) async fn replace(server: &ApiServer, wanted: &Value) -> Result<()> {
    for _ in 1..TRIES {
        match try_replace(server, wanted).await {
            Err(error) if error.code == 409 => {}
            done => return done,
        }
    }
    try_replace(server, wanted).await
}

async fn try_replace(server: &ApiServer, wanted: &Value) -> Result<()> {
    let row = row_of(server, wanted)?;
    let path = path_of(&row, wanted);
    if stored(server, &row, wanted).is_none() {
        return send(server, "POST", &path, Some(wanted)).await;
    }
    send(server, "PUT", &format!("{path}/{}", meta::name(wanted)), Some(wanted)).await
}

/// Sends a request as the server itself.
pub(crate) async fn send(server: &ApiServer, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
    let user = UserInfo::new("system:apiserver", &["system:masters", "system:authenticated"]);
    let body = respond::full(body.map(ToString::to_string).unwrap_or_default());
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(
            http::header::CONTENT_TYPE,
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" },
        )
        .header(http::header::USER_AGENT, "kube-apiserver/coxswain")
        .body(body)
        .map_err(StatusError::internal)?;
    let response = server.handle(request, Caller::Known(Arc::new(user))).await;
    if response.status().is_success() {
        return Ok(());
    }
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let why = format!("{method} {path}: {}", meta::str_at(&status, &["message"]));
    Err(StatusError::new(code, "InternalError", why))
}
