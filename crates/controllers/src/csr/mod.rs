//! Certificate signing requests: approval of what nodes ask for ([`approve`]), signing of what was approved ([`sign`]), and
//! removal of what is over ([`clean`]), as upstream's three controllers. All act as the service account
//! `certificate-controller`.
//!
//! Beyond upstream, which leaves both to an administrator or to a controller of one's own:
//!
//! - A requester that is not yet the node (it joins with a token) gets no client certificate for a name whose Node object
//!   exists: the token would take over somebody else's node. The request stays pending, an event says so, and when the
//!   Node is deleted it is looked at again.
//! - `kubernetes.io/kubelet-serving` is approved for a node that asks for its own name and for addresses that are neither
//!   the API server's ([`CertificateSigner::reserved_names`]) nor another Node's.
//!
//! What is approved without a person's eye must hold nothing that this module does not know: a second common name, another
//! kind of alternative name or an extension besides those of key usage leaves the request pending.
//!
//! Must not know: keys and certificate authorities. They are behind [`CertificateSigner`].

mod approve;
mod clean;
mod request;
mod sign;

use std::fmt;
use std::time::Duration;

use client::{Change, Informer, Queue};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};

pub use approve::run as run_approving;
pub use clean::run as run_cleaner;
pub use sign::run as run_signing;

/// Upstream's service account of all three controllers.
const IDENTITY: &str = "certificate-controller";

const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

/// An approved request that has passed its signer's rules.
#[derive(Clone, Copy, Debug)]
pub struct SigningRequest<'a> {
    /// `kubernetes.io/kube-apiserver-client`, `kubernetes.io/kube-apiserver-client-kubelet` or `kubernetes.io/kubelet-serving`.
    pub signer_name: &'a str,
    /// The request in PKCS#10, DER. Its signature has been verified by the API server.
    pub der: &'a [u8],
    /// The API's words (`digital signature`, `client auth`, …): those of the certificate, whatever the request says.
    pub usages: &'a [String],
    /// How long the certificate is wanted for, at least ten minutes. None: as long as the signer gives.
    pub life: Option<Duration>,
}

/// Holds the authorities' keys. Of a request, the certificate takes over the subject, the alternative names and the key, and
/// nothing else: no extension, and never the right to sign. A signer may give a shorter life than is asked for.
pub trait CertificateSigner: Send + Sync + 'static {
    /// The certificate in PEM, with intermediates if there are any; or why not, in one line.
    fn sign(&self, request: &SigningRequest<'_>) -> Result<String, String>;

    /// Names and addresses that no kubelet certificate may carry: those of the API server.
    fn reserved_names(&self) -> Vec<String>;
}

impl fmt::Debug for dyn CertificateSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateSigner")
    }
}

/// Puts the names of requests that are added or changed into `queue`.
fn watch(requests: &Informer<CertificateSigningRequest>, queue: &Queue<String>) {
    let queue = queue.clone();
    requests.on_change(move |change: Change<'_, CertificateSigningRequest>| {
        if let Change::Applied { new, .. } = change {
            queue.add(new.metadata.name.clone().unwrap_or_default());
        }
    });
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// The API allows no other status than True for these conditions.
fn has(request: &CertificateSigningRequest, type_: &str) -> bool {
    conditions(request).iter().any(|condition| condition.type_ == type_)
}

/// The certificate in PEM; empty as long as there is none.
fn certificate(request: &CertificateSigningRequest) -> &[u8] {
    request.status.as_ref().and_then(|status| status.certificate.as_ref()).map_or(&[], |bytes| &bytes.0)
}

/// The request with one more condition. The server dates it.
fn with_condition(
    request: &CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: &str,
) -> CertificateSigningRequest {
    let mut changed = request.clone();
    let status: &mut CertificateSigningRequestStatus = changed.status.get_or_insert_default();
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..CertificateSigningRequestCondition::default()
    });
    changed
}
