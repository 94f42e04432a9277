//! Certificate signing requests from the node's question to the certificate.

use std::sync::Arc;

use controllers::Config;
use controllers::csr::{CertificateSigner, SigningRequest};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Event, Node};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;

use crate::support::{Cluster, eventually, object};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

/// Signs everything that comes through, with the life asked for.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Authority(Issuer::new(params, KeyPair::generate().expect("a key")))
    }
}

impl CertificateSigner for Authority {
    fn sign(&self, request: &SigningRequest<'_>) -> Result<String, String> {
        let mut asked =
            CertificateSigningRequestParams::from_der(&request.der.into()).map_err(|error| error.to_string())?;
        let life = request.life.unwrap_or(std::time::Duration::from_secs(86_400));
        asked.params.not_after = (std::time::SystemTime::now() + life).into();
        asked.signed_by(&self.0).map(|certificate| certificate.pem()).map_err(|error| error.to_string())
    }

    fn reserved_names(&self) -> Vec<String> {
        vec!["kubernetes".to_owned(), "10.43.0.1".to_owned()]
    }
}

async fn cluster() -> Cluster {
    let cluster = Cluster::start(Config { signer: Some(Arc::new(Authority::new())), ..Config::default() }).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    let roles = [("nodeclient", "joiners"), ("selfnodeclient", "system:nodes")];
    for (right, group) in roles {
        let binding: ClusterRoleBinding = object(json!({
            "metadata": { "name": format!("test-{right}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": format!("system:certificates.k8s.io:certificatesigningrequests:{right}") },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
        }));
        bindings.create(&PostParams::default(), &binding).await.expect("created");
    }
    let asking: ClusterRoleBinding = object(json!({
        "metadata": { "name": "test-ask" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "joiners" }],
    }));
    bindings.create(&PostParams::default(), &asking).await.expect("created");
    cluster
}

/// Asks as `user` for a certificate of `system:node:<node>`.
async fn ask(cluster: &Cluster, user: (&str, &str), signer: &str, node: &str, dns: &[&str], seconds: i32) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.subject_alt_names = dns.iter().map(|name| SanType::DnsName((*name).try_into().expect("ASCII"))).collect();
    let pem = params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request").pem().expect("PEM");
    let purpose = if signer == SERVING { "server auth" } else { "client auth" };
    let request: CertificateSigningRequest = object(json!({
        "metadata": { "generateName": "csr-" },
        "spec": { "signerName": signer, "request": ByteString(pem.into_bytes()),
            "usages": ["digital signature", purpose], "expirationSeconds": seconds },
    }));
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client_as(user.0, &[user.1]));
    let created = api.create(&PostParams::default(), &request).await.expect("created");
    created.metadata.name.expect("a name")
}

async fn issued(cluster: &Cluster, name: &str) -> x509_parser::pem::Pem {
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let pem = eventually("a certificate", || async { api.get(name).await.ok()?.status?.certificate }).await;
    x509_parser::pem::parse_x509_pem(&pem.0).expect("PEM").1
}

async fn refused(cluster: &Cluster, name: &str) -> String {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let message = eventually("an event", || async {
        let events = events.list(&ListParams::default()).await.ok()?.items;
        events.into_iter().find(|event| event.involved_object.name.as_deref() == Some(name))?.message
    })
    .await;
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let status = api.get(name).await.expect("there").status.unwrap_or_default();
    assert!(status.conditions.unwrap_or_default().is_empty() && status.certificate.is_none());
    message
}

#[tokio::test]
async fn a_node_joins_and_serves() {
    let cluster = cluster().await;
    let token = ("system:bootstrap:abcdef", "joiners");
    let name = ask(&cluster, token, CLIENT, "fresh", &[], 3600).await;
    let pem = issued(&cluster, &name).await;
    let certificate = pem.parse_x509().expect("a certificate");
    assert_eq!(
        certificate.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()),
        Some("system:node:fresh")
    );
    let left = certificate.validity().time_to_expiration().expect("valid").whole_seconds();
    assert!((3500..=3600).contains(&left), "{left}");

    let node = ("system:node:fresh", "system:nodes");
    issued(&cluster, &ask(&cluster, node, CLIENT, "fresh", &[], 600).await).await;
    issued(&cluster, &ask(&cluster, node, SERVING, "fresh", &["fresh"], 600).await).await;
    let name = ask(&cluster, node, SERVING, "fresh", &["kubernetes"], 600).await;
    assert_eq!(refused(&cluster, &name).await, "Not approved automatically: \"kubernetes\" is not the node's name");
}

#[tokio::test]
async fn a_token_takes_over_no_node_that_is_there() {
    let cluster = cluster().await;
    let name = ask(&cluster, ("system:bootstrap:abcdef", "joiners"), CLIENT, "n1", &[], 3600).await;
    let why = refused(&cluster, &name).await;
    assert!(why.starts_with("Not approved automatically: node n1 exists"), "{why}");
    // The machine is gone for good, and its administrator says so.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.delete("n1", &DeleteParams::default()).await.expect("deleted");
    issued(&cluster, &name).await;
}

#[tokio::test]
async fn an_approved_request_that_breaks_the_rules_fails() {
    let cluster = cluster().await;
    let name = ask(&cluster, ("system:bootstrap:abcdef", "joiners"), CLIENT, "n9", &["n9"], 3600).await;
    let api: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let mut request = api.get(&name).await.expect("there");
    request.status.get_or_insert_default().conditions =
        Some(object(json!([{ "type": "Approved", "status": "True", "reason": "Admin" }])));
    api.replace_subresource("approval", &name, &PostParams::default(), &request).await.expect("approved");
    let failed = eventually("the failure", || async {
        let conditions = api.get(&name).await.ok()?.status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == "Failed")
    })
    .await;
    assert_eq!(failed.reason.as_deref(), Some("SignerValidationFailure"));
    assert_eq!(failed.message.as_deref(), Some("DNS subjectAltNames are not allowed"));
}
