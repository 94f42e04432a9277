//! Who may approve and sign certificates of a signer, and what nobody may ask for.

use std::sync::Arc;

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{Operation, Plugin, Request};
use crate::authz::{Authorizer, MASTERS};
use crate::request::RequestInfo;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const API_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub struct CertificateApproval(pub Arc<Authorizer>);

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if request.is(GROUP, REQUESTS, "approval") {
            return check_signer(&self.0, request, "approve");
        }
        Ok(())
    }
}

pub struct CertificateSigning(pub Arc<Authorizer>);

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is(GROUP, REQUESTS, "status") {
            return Ok(());
        }
        let old = request.old.unwrap_or(&Value::Null);
        let changed = |field: &str| meta::at(request.object, &["status", field]) != meta::at(old, &["status", field]);
        if changed("certificate") || changed("conditions") {
            return check_signer(&self.0, request, "sign");
        }
        Ok(())
    }
}

/// The verb is asked for on the signer, and on all signers of its domain.
fn check_signer(authorizer: &Authorizer, request: &Request<'_>, verb: &str) -> Result<()> {
    let signer = meta::str_at(request.old.unwrap_or(request.object), &["spec", "signerName"]);
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    let permitted = std::iter::once(signer.to_owned()).chain(domain).any(|name| {
        let info = RequestInfo {
            is_resource: true,
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..RequestInfo::default()
        };
        authorizer.allows(request.user, &info)
    });
    if permitted {
        return Ok(());
    }
    Err(request.forbidden(&format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Nobody becomes `system:masters` by a certificate request.
pub struct CertificateSubjectRestriction;

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        let signer = meta::str_at(request.object, &["spec", "signerName"]);
        if !request.is(GROUP, REQUESTS, "") || signer != API_CLIENT_SIGNER {
            return Ok(());
        }
        let organizations = organizations(meta::str_at(request.object, &["spec", "request"]));
        let Some(organizations) = organizations else {
            return Err(request.forbidden("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST"));
        };
        if organizations.iter().any(|group| group == MASTERS) {
            return Err(request.forbidden(&format!("use of {signer} signer with {MASTERS} group is not allowed")));
        }
        Ok(())
    }
}

/// The organisations that a base64 of PEM asks for.
fn organizations(request: &str) -> Option<Vec<String>> {
    let pem = STANDARD.decode(request).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &parsed.certification_request_info.subject;
    Some(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;
    use crate::request::UserInfo;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;

    #[test]
    fn signers_are_permissions() {
        let cluster = Cluster::new();
        cluster.put(
            "clusterroles",
            json!({"metadata": {"name": "r"}, "rules": [{"verbs": ["approve", "sign"],
            "apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["example.com/*"]}]}),
        );
        cluster.put(
            "clusterrolebindings",
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "User", "name": "ann"}]}),
        );
        let authorizer = Authorizer::new(cluster.view.clone());
        let ask = |user: &str, signer: &str| {
            let old = json!({"metadata": {"name": "csr"}, "spec": {"signerName": signer}});
            let case = Case::update(GROUP, REQUESTS, old.clone(), old).of_subresource("approval");
            case.by(UserInfo::new(user, &[])).validate(&cluster, &CertificateApproval(authorizer.clone()))
        };
        assert!(ask("ann", "example.com/x").is_ok());
        assert!(ask("ann", "other.com/x").is_err());
        assert_eq!(
            ask("bob", "example.com/x").unwrap_err().message,
            r#"certificatesigningrequests.certificates.k8s.io "csr" is forbidden: user not permitted to approve requests with signerName "example.com/x""#
        );
    }

    #[test]
    fn nobody_becomes_a_master() {
        let check = |organization: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::OrganizationName, organization);
            let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
            let object = json!({"metadata": {"name": "csr"}, "spec": {"signerName": API_CLIENT_SIGNER, "request": STANDARD.encode(pem)}});
            Case::create(GROUP, REQUESTS, object).validate(&Cluster::new(), &CertificateSubjectRestriction)
        };
        assert!(check("devs").is_ok());
        assert!(check(MASTERS).unwrap_err().message.ends_with("signer with system:masters group is not allowed"));
    }
}
