//! Approves what nodes ask for (upstream's certificatesigningrequest-approving-controller, and what [`super`] adds).
//!
//! [`decide`] is pure; a review by the API server and a look for the Node are asked for by its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Index, Informer, Next, Queue, Recorder, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};

use super::request::{NODE_PREFIX, Wanted, check, der_of};
use super::{APPROVED, CertificateSigner, DENIED, IDENTITY, KUBELET_CLIENT, KUBELET_SERVING, certificate, has};
use crate::error::Result;
use crate::write;

const NAME: &str = "certificatesigningrequest-approving-controller";
const WORKERS: usize = 2;
const NODES: &str = "system:nodes";
const LOCALHOST: &str = "localhost";
/// Bounds of the pause before the server is asked again whether the requester may.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Runs the controller until shutdown. Without a signer no serving certificates are approved: what is reserved is unknown.
pub async fn run(context: Context, signer: Option<Arc<dyn CertificateSigner>>) {
    let client = context.as_controller(IDENTITY);
    let requests = context.informers.of::<CertificateSigningRequest>();
    let nodes = context.informers.of::<Node>();
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), NAME, ""),
        client,
        reader: context.client.clone(),
        gate: Gate::new(requests.clone()),
        by_address: nodes.index("controllers/node-address", addresses_of),
        requests,
        signer,
        queue: Queue::default(),
    });
    controller.requests.synced().await;
    nodes.synced().await;
    super::watch(&controller.requests, &controller.queue);
    let changed = controller.clone();
    nodes.on_change(move |change| changed.node_changed(&change));
    let queue = controller.queue.clone();
    run_workers(NAME, queue, WORKERS, context.shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

/// A permission to create `certificatesigningrequests/<subresource>` that lets its holder have a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permission {
    subresource: &'static str,
    /// Of the condition.
    message: &'static str,
    /// It is for nodes that join, so the node must not be there yet.
    joins: bool,
}

const SELF: Permission = Permission {
    subresource: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
    joins: false,
};
const NODE: Permission = Permission {
    subresource: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
    joins: false,
};
const SERVING: &str = "Auto approving kubelet serving certificate for the node's own names.";

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Decided already, or not of a kind that is approved here.
    Leave,
    /// Approved if the requester has one of these permissions; which node it is for.
    Ask { node: String, permissions: Vec<Permission> },
    /// Approved for this reason.
    Approve(&'static str),
    /// It stays pending, and why is told.
    Refuse(String),
}

/// `reserved` are names that no node may have, none if nobody knows them; `owners` gives the nodes that have an address.
fn decide(
    request: &CertificateSigningRequest,
    reserved: Option<&[String]>,
    owners: impl Fn(IpAddr) -> Vec<String>,
) -> Decision {
    if !certificate(request).is_empty() || has(request, APPROVED) || has(request, DENIED) {
        return Decision::Leave;
    }
    let spec = &request.spec;
    let signer = spec.signer_name.as_str();
    if signer != KUBELET_CLIENT && signer != KUBELET_SERVING {
        return Decision::Leave;
    }
    let wanted = match der_of(&spec.request.0).and_then(|der| Wanted::parse(&der)) {
        Ok(wanted) => wanted,
        Err(why) => return Decision::Refuse(why),
    };
    let usages = spec.usages.as_deref().unwrap_or_default();
    if check(signer, &wanted, usages).is_none_or(|checked| checked.is_err()) {
        return Decision::Leave;
    }
    if let Some(what) = wanted.unusual {
        return Decision::Refuse(format!("it asks for {what}"));
    }
    let node = wanted.common_name.strip_prefix(NODE_PREFIX).unwrap_or_default();
    if !apimachinery::names::dns1123_subdomain(node).is_empty() {
        return Decision::Refuse(format!("{node:?} is no name of a node"));
    }
    if signer == KUBELET_CLIENT {
        return ask(spec, &wanted, node);
    }
    match reserved
        .ok_or_else(|| "nobody knows the API server's names".to_owned())
        .and_then(|reserved| check_server(spec, &wanted, node, reserved, owners))
    {
        Ok(()) => Decision::Approve(SERVING),
        Err(why) => Decision::Refuse(why),
    }
}

fn ask(spec: &CertificateSigningRequestSpec, wanted: &Wanted, node: &str) -> Decision {
    let itself = spec.username.as_deref() == Some(&wanted.common_name);
    let permissions = if itself { vec![SELF, NODE] } else { vec![Permission { joins: true, ..NODE }] };
    Decision::Ask { node: node.to_owned(), permissions }
}

/// A kubelet's server is known by its node's name and by addresses that are nobody else's.
fn check_server(
    spec: &CertificateSigningRequestSpec,
    wanted: &Wanted,
    node: &str,
    reserved: &[String],
    owners: impl Fn(IpAddr) -> Vec<String>,
) -> Result<(), String> {
    let itself = spec.username.as_deref() == Some(&wanted.common_name);
    if !itself || !spec.groups.iter().flatten().any(|group| group == NODES) {
        return Err("only the node itself may ask for it".to_owned());
    }
    let is_reserved = |name: &str| reserved.iter().any(|other| other.eq_ignore_ascii_case(name));
    if is_reserved(node) {
        return Err(format!("{node} is a name of the API server"));
    }
    if let Some(name) = wanted.dns_names.iter().find(|name| *name != node && *name != LOCALHOST) {
        return Err(format!("{name:?} is not the node's name"));
    }
    for address in wanted.addresses.iter().map(IpAddr::to_canonical) {
        if address == IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) {
            continue;
        }
        let reserved = reserved.iter().filter_map(|name| name.parse::<IpAddr>().ok());
        if address.is_unspecified() || reserved.map(|other| other.to_canonical()).any(|other| other == address) {
            return Err(format!("{address} is an address of the API server"));
        }
        if let Some(owner) = owners(address).into_iter().find(|owner| owner != node) {
            return Err(format!("{address} is an address of node {owner}"));
        }
    }
    Ok(())
}

/// What identifies a node on the network, in the form that requests are compared in.
fn addresses_of(node: &Node) -> Vec<String> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let parsed = addresses.iter().filter_map(|address| address.address.parse::<IpAddr>().ok());
    parsed.map(|address| address.to_canonical().to_string()).collect()
}

/// As long as the request is old, within bounds: a role may be bound only after the node has asked.
fn pause(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let age = request.metadata.creation_timestamp.as_ref().map(|created| now.duration_since(created.0));
    let age = age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
    age.clamp(ASK_AGAIN.0, ASK_AGAIN.1)
}

struct Controller {
    client: kube::Client,
    /// The controller manager's own identity, which may list nodes.
    reader: kube::Client,
    recorder: Recorder,
    requests: Informer<CertificateSigningRequest>,
    gate: Gate<CertificateSigningRequest, String>,
    by_address: Index<Node>,
    signer: Option<Arc<dyn CertificateSigner>>,
    queue: Queue<String>,
}

impl Controller {
    /// A node that goes, or that gives up an address, no longer stands in a request's way.
    fn node_changed(&self, change: &Change<'_, Node>) {
        let Some(old) = change.old() else { return };
        if let Change::Applied { new, .. } = change
            && addresses_of(old) == addresses_of(new)
        {
            return;
        }
        for request in self.requests.list() {
            if super::conditions(&request).is_empty() {
                self.queue.add(request.metadata.name.clone().unwrap_or_default());
            }
        }
    }

    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(request) = self.requests.get("", name) else {
            self.gate.forget(name);
            return Ok(Next::Wait);
        };
        let reserved = self.signer.as_ref().map(|signer| signer.reserved_names());
        let owners = |address: IpAddr| {
            let nodes = self.by_address.get(&address.to_string());
            nodes.iter().filter_map(|node| node.metadata.name.clone()).collect()
        };
        match decide(&request, reserved.as_deref(), owners) {
            Decision::Leave => Ok(Next::Wait),
            Decision::Approve(message) => self.approve(name, &request, message).await,
            Decision::Refuse(why) => {
                self.refuse(&request, &why);
                Ok(Next::Wait)
            }
            Decision::Ask { node, permissions } => self.ask(name, &request, &node, &permissions).await,
        }
    }

    async fn ask(
        &self,
        name: &String,
        request: &CertificateSigningRequest,
        node: &str,
        permissions: &[Permission],
    ) -> Result<Next> {
        for permission in permissions {
            if !self.is_permitted(&request.spec, permission.subresource).await? {
                continue;
            }
            if permission.joins && self.exists(node).await? {
                let why = format!("node {node} exists; delete it, or approve the request if it is the same machine");
                self.refuse(request, &why);
                return Ok(Next::Wait);
            }
            return self.approve(name, request, permission.message).await;
        }
        Ok(Next::After(pause(request, Timestamp::now())))
    }

    fn refuse(&self, request: &CertificateSigningRequest, why: &str) {
        self.recorder.warning(request, "NotApproved", format!("Not approved automatically: {why}"));
    }

    async fn is_permitted(&self, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool> {
        let attributes = ResourceAttributes {
            group: Some("certificates.k8s.io".to_owned()),
            resource: Some("certificatesigningrequests".to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some("create".to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&write::post(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Asks the server: a cache may not show a node that has just joined.
    async fn exists(&self, node: &str) -> Result<bool> {
        let api: Api<Node> = Api::all(self.reader.clone());
        let found = api.list_metadata(&ListParams::default().fields(&format!("metadata.name={node}"))).await?;
        Ok(!found.items.is_empty())
    }

    async fn approve(&self, name: &String, request: &CertificateSigningRequest, message: &str) -> Result<Next> {
        let approved = super::with_condition(request, APPROVED, "AutoApproved", message);
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        match api.replace_subresource("approval", name, &write::post(), &approved).await {
            Ok(written) => self.gate.wrote(name, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Wait)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::super::request::tests::{pem, usages};
    use super::*;
    use crate::fixture::{ago, now};

    const CLIENT_USAGES: &str = "digital signature,client auth";
    const SERVER_USAGES: &str = "digital signature,server auth";

    fn request(signer: &str, by: &str, common_name: &str, names: &[&str]) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.spec = CertificateSigningRequestSpec {
            signer_name: signer.to_owned(),
            username: Some(by.to_owned()),
            groups: Some(vec![NODES.to_owned(), "system:authenticated".to_owned()]),
            usages: Some(usages(if signer == KUBELET_SERVING { SERVER_USAGES } else { CLIENT_USAGES })),
            request: ByteString(pem(common_name, NODES, names).into_bytes()),
            ..CertificateSigningRequestSpec::default()
        };
        request
    }

    fn decided(request: &CertificateSigningRequest) -> String {
        let reserved = ["kubernetes", "10.43.0.1", "127.0.0.1", "localhost", "api"].map(str::to_owned);
        let owners = |address: IpAddr| match address.to_string().as_str() {
            "10.0.0.1" => vec!["n1".to_owned()],
            "10.0.0.2" => vec!["n2".to_owned()],
            _ => vec![],
        };
        match decide(request, Some(&reserved), owners) {
            Decision::Leave => "leave".to_owned(),
            Decision::Approve(_) => "approve".to_owned(),
            Decision::Refuse(why) => why,
            Decision::Ask { node, permissions } => {
                let names = permissions.iter().map(|p| format!("{}{}", p.subresource, if p.joins { "!" } else { "" }));
                format!("{node}: {}", names.collect::<Vec<_>>().join(","))
            }
        }
    }

    #[test]
    fn client_certificates_are_a_matter_of_permission() {
        let of = |by, common_name| decided(&request(KUBELET_CLIENT, by, common_name, &[]));
        assert_eq!(of("system:node:n1", "system:node:n1"), "n1: selfnodeclient,nodeclient");
        assert_eq!(of("system:bootstrap:abc", "system:node:n1"), "n1: nodeclient!", "only if there is no such node");
        assert_eq!(of("system:node:n2", "system:node:n1"), "n1: nodeclient!");
        assert_eq!(of("system:node:n1", "n1"), "leave");
        assert_eq!(of("x", "system:node:N1"), "\"N1\" is no name of a node");
        assert_eq!(of("x", "system:node:"), "\"\" is no name of a node");
        let mut other = request(KUBELET_CLIENT, "x", "system:node:n1", &[]);
        other.spec.usages = Some(usages(SERVER_USAGES));
        assert_eq!(decided(&other), "leave");
        other = request("kubernetes.io/kube-apiserver-client", "x", "system:node:n1", &[]);
        assert_eq!(decided(&other), "leave");
    }

    #[test]
    fn what_is_decided_stays_so() {
        let pending = request(KUBELET_CLIENT, "x", "system:node:n1", &[]);
        for type_ in [APPROVED, DENIED] {
            assert_eq!(decided(&super::super::with_condition(&pending, type_, "r", "m")), "leave");
        }
    }

    #[test]
    fn a_kubelet_serves_under_its_own_names() {
        let of = |names: &[&str]| decided(&request(KUBELET_SERVING, "system:node:n1", "system:node:n1", names));
        assert_eq!(of(&["dns:n1", "ip:10.0.0.1"]), "approve");
        assert_eq!(of(&["dns:localhost", "dns:n1", "ip:127.0.0.1", "ip:10.0.0.9"]), "approve");
        assert_eq!(of(&["dns:n1", "dns:kubernetes"]), "\"kubernetes\" is not the node's name");
        assert_eq!(of(&["dns:n2"]), "\"n2\" is not the node's name");
        assert_eq!(of(&["dns:*.n1"]), "\"*.n1\" is not the node's name");
        assert_eq!(of(&["ip:10.0.0.2"]), "10.0.0.2 is an address of node n2");
        assert_eq!(of(&["ip:10.43.0.1"]), "10.43.0.1 is an address of the API server");
        assert_eq!(of(&["ip:::ffff:10.43.0.1"]), "10.43.0.1 is an address of the API server");
        assert_eq!(of(&["ip:0.0.0.0"]), "0.0.0.0 is an address of the API server");
        assert_eq!(of(&[]), "leave");
    }

    #[test]
    fn a_kubelet_serves_as_itself() {
        let of = |by, common_name| decided(&request(KUBELET_SERVING, by, common_name, &["ip:10.0.0.9"]));
        assert_eq!(of("system:node:n2", "system:node:n1"), "only the node itself may ask for it");
        assert_eq!(of("system:node:api", "system:node:api"), "api is a name of the API server");
        let mut outsider = request(KUBELET_SERVING, "system:node:n1", "system:node:n1", &["dns:n1"]);
        outsider.spec.groups = Some(vec!["system:authenticated".to_owned()]);
        assert_eq!(decided(&outsider), "only the node itself may ask for it");
        let node = request(KUBELET_SERVING, "system:node:n1", "system:node:n1", &["dns:n1"]);
        let blind = decide(&node, None, |_| vec![]);
        assert_eq!(blind, Decision::Refuse("nobody knows the API server's names".to_owned()));
    }

    #[test]
    fn the_pause_grows_with_the_request() {
        let mut request = request(KUBELET_CLIENT, "x", "system:node:n1", &[]);
        for (age, seconds) in [(0, 1), (30, 30), (10_000, 600)] {
            request.metadata.creation_timestamp = Some(ago(age));
            assert_eq!(pause(&request, now()), Duration::from_secs(seconds));
        }
    }
}
