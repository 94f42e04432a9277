//! What a certificate request asks for, and upstream's rules for what each signer signs. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use super::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING};

const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The last one, which is the one that logs in.
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: usize,
    pub uris: usize,
    /// There is something beside these (the first such thing): nobody but a person may approve it.
    pub unusual: Option<&'static str>,
}

/// The DER inside a PEM block `CERTIFICATE REQUEST`.
pub fn der_of(pem: &[u8]) -> Result<Vec<u8>, String> {
    match x509_parser::pem::parse_x509_pem(pem) {
        Ok((_, block)) if block.label == "CERTIFICATE REQUEST" => Ok(block.contents),
        _ => Err("PEM block type must be CERTIFICATE REQUEST".to_owned()),
    }
}

impl Wanted {
    pub fn parse(der: &[u8]) -> Result<Wanted, String> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|error| error.to_string())?;
        let mut wanted = Wanted::default();
        if !rest.is_empty() {
            wanted.note("data after the request");
        }
        wanted.read_subject(&request.certification_request_info.subject);
        let mut lists = 0;
        for attribute in request.certification_request_info.iter_attributes() {
            if let ParsedCriAttribute::ExtensionRequest(list) = attribute.parsed_attribute() {
                lists += 1;
                list.extensions.iter().for_each(|extension| wanted.read_extension(extension.parsed_extension()));
                if duplicates(list.extensions.iter().map(|extension| extension.oid.to_id_string())) {
                    wanted.note("an extension twice");
                }
            }
        }
        if lists > 1 {
            wanted.note("several lists of extensions");
        }
        Ok(wanted)
    }

    fn note(&mut self, what: &'static str) {
        self.unusual.get_or_insert(what);
    }

    fn read_subject(&mut self, subject: &X509Name<'_>) {
        let mut names = 0;
        for attribute in subject.iter_attributes() {
            let Ok(value) = attribute.as_str() else {
                self.note("a subject that cannot be read");
                continue;
            };
            if *attribute.attr_type() == OID_X509_COMMON_NAME {
                names += 1;
                self.common_name = value.to_owned();
            } else if *attribute.attr_type() == OID_X509_ORGANIZATION_NAME {
                self.organizations.push(value.to_owned());
            } else {
                self.note("a subject with more than a name and organizations");
            }
        }
        if names > 1 {
            self.note("several common names");
        }
    }

    fn read_extension(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                names.general_names.iter().for_each(|name| self.read_name(name));
            }
            // The certificate has the usages of the API object, these are not looked at.
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
            _ => self.note("an extension beside names and usages"),
        }
    }

    fn read_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match address(bytes) {
                Some(address) => self.addresses.push(address),
                None => self.note("an address that is none"),
            },
            GeneralName::RFC822Name(_) => self.emails += 1,
            GeneralName::URI(_) => self.uris += 1,
            _ => self.note("an alternative name of another kind"),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four: Option<[u8; 4]> = bytes.try_into().ok();
    let sixteen: Option<[u8; 16]> = bytes.try_into().ok();
    four.map(IpAddr::from).or(sixteen.map(IpAddr::from))
}

fn duplicates(ids: impl Iterator<Item = String>) -> bool {
    let mut seen = BTreeSet::new();
    ids.into_iter().any(|id| !seen.insert(id))
}

/// The rules of a signer (upstream's `ValidateKubeletServingCSR` and its likes). The error is the message of the condition
/// `Failed`. A signer that is not ours has no rules here: none.
pub fn check(signer: &str, wanted: &Wanted, usages: &[String]) -> Option<Result<(), String>> {
    match signer {
        API_CLIENT => Some(check_api_client(usages)),
        KUBELET_CLIENT => Some(check_kubelet_client(wanted, usages)),
        KUBELET_SERVING => Some(check_kubelet_serving(wanted, usages)),
        _ => None,
    }
}

fn check_api_client(usages: &[String]) -> Result<(), String> {
    let optional = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !optional.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|usage| usage == "client auth") {
        return Ok(());
    }
    Err("missing required usage for client certificate: client auth".to_owned())
}

fn check_kubelet_client(wanted: &Wanted, usages: &[String]) -> Result<(), String> {
    check_organization(wanted)?;
    refuse(!wanted.dns_names.is_empty(), "DNS subjectAltNames are not allowed")?;
    refuse(wanted.emails > 0, "Email subjectAltNames are not allowed")?;
    refuse(!wanted.addresses.is_empty(), "IP subjectAltNames are not allowed")?;
    refuse(wanted.uris > 0, "URI subjectAltNames are not allowed")?;
    check_common_name(wanted)?;
    check_usages(usages, "client auth")
}

fn check_kubelet_serving(wanted: &Wanted, usages: &[String]) -> Result<(), String> {
    check_organization(wanted)?;
    let nameless = wanted.dns_names.is_empty() && wanted.addresses.is_empty();
    refuse(nameless, "DNS or IP subjectAltName is required")?;
    refuse(wanted.emails > 0, "Email subjectAltNames are not allowed")?;
    refuse(wanted.uris > 0, "URI subjectAltNames are not allowed")?;
    check_usages(usages, "server auth")?;
    check_common_name(wanted)
}

fn refuse(bad: bool, why: &str) -> Result<(), String> {
    if bad { Err(why.to_owned()) } else { Ok(()) }
}

fn check_organization(wanted: &Wanted) -> Result<(), String> {
    refuse(wanted.organizations != [NODES], "subject organization is not system:nodes")
}

fn check_common_name(wanted: &Wanted) -> Result<(), String> {
    let fits = wanted.common_name.starts_with(NODE_PREFIX);
    refuse(!fits, "subject common name does not begin with system:node:")
}

/// Key encipherment may be left out: only RSA keys can do it.
fn check_usages(usages: &[String], purpose: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut all = BTreeSet::from(["digital signature", "key encipherment", purpose]);
    let message = format!("usages did not match {:?}", all.iter().collect::<Vec<_>>()).replace(['"', ','], "");
    if given == all {
        return Ok(());
    }
    all.remove("key encipherment");
    refuse(given != all, &message)
}

#[cfg(test)]
pub mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

    use super::*;

    /// A PEM request of a subject and alternative names, each `dns:…`, `ip:…`, `email:…` or `uri:…`.
    pub fn pem(common_name: &str, organization: &str, names: &[&str]) -> String {
        let mut params = params(common_name, organization);
        params.subject_alt_names = names.iter().map(|name| alternative(name)).collect();
        params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request").pem().expect("PEM")
    }

    fn params(common_name: &str, organization: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params
    }

    fn alternative(name: &str) -> SanType {
        let (kind, value) = name.split_once(':').expect("a kind");
        match kind {
            "dns" => SanType::DnsName(value.try_into().expect("ASCII")),
            "ip" => SanType::IpAddress(value.parse().expect("an address")),
            "email" => SanType::Rfc822Name(value.try_into().expect("ASCII")),
            _ => SanType::URI(value.try_into().expect("ASCII")),
        }
    }

    pub fn wanted(common_name: &str, organization: &str, names: &[&str]) -> Wanted {
        let der = der_of(pem(common_name, organization, names).as_bytes()).expect("PEM");
        Wanted::parse(&der).expect("a request")
    }

    pub fn usages(list: &str) -> Vec<String> {
        list.split(',').map(|usage| usage.trim().to_owned()).collect()
    }

    const CLIENT: &str = "digital signature,client auth";
    const SERVING: &str = "digital signature,key encipherment,server auth";

    fn checked(signer: &str, wanted: &Wanted, list: &str) -> String {
        match check(signer, wanted, &usages(list)) {
            None => "not ours".to_owned(),
            Some(Ok(())) => "good".to_owned(),
            Some(Err(why)) => why,
        }
    }

    #[test]
    fn a_request_is_read_whole() {
        let read = wanted("system:node:n1", NODES, &["dns:n1", "ip:10.0.0.1", "ip:fd00::1", "email:a@b", "uri:x://y"]);
        assert_eq!((read.common_name.as_str(), &read.organizations[..]), ("system:node:n1", &[NODES.to_owned()][..]));
        assert_eq!(read.dns_names, ["n1"]);
        assert_eq!(read.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
        assert_eq!((read.emails, read.uris, read.unusual), (1, 1, None));
    }

    #[test]
    fn what_is_beside_a_name_is_noted() {
        let unusual = |change: fn(&mut CertificateParams)| {
            let mut params = params("system:node:n1", NODES);
            change(&mut params);
            let der = params.serialize_request(&KeyPair::generate().expect("a key")).expect("a request").der().to_vec();
            Wanted::parse(&der).expect("a request").unusual
        };
        assert_eq!(unusual(|_| {}), None);
        let country = unusual(|params| params.distinguished_name.push(DnType::CountryName, "DE"));
        assert_eq!(country, Some("a subject with more than a name and organizations"));
        let authority = unusual(|params| {
            let constraints = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x03, 0x01, 0x01, 0xff]);
            params.custom_extensions.push(constraints);
        });
        assert_eq!(authority, Some("an extension beside names and usages"));
        assert!(der_of(b"no PEM").is_err());
    }

    #[test]
    fn kubelet_clients_have_no_names_but_their_node() {
        let good = wanted("system:node:n1", NODES, &[]);
        assert_eq!(checked(KUBELET_CLIENT, &good, CLIENT), "good");
        assert_eq!(checked(KUBELET_CLIENT, &good, "client auth,key encipherment,digital signature"), "good");
        let wrong_usages = "usages did not match [client auth digital signature key encipherment]";
        assert_eq!(checked(KUBELET_CLIENT, &good, "client auth"), wrong_usages);
        assert_eq!(checked(KUBELET_CLIENT, &good, SERVING), wrong_usages);
        let of = |cn: &str, o: &str, names: &[&str]| checked(KUBELET_CLIENT, &wanted(cn, o, names), CLIENT);
        assert_eq!(of("system:node:n1", "system:masters", &[]), "subject organization is not system:nodes");
        assert_eq!(of("root", NODES, &[]), "subject common name does not begin with system:node:");
        assert_eq!(of("system:node:n1", NODES, &["dns:n1"]), "DNS subjectAltNames are not allowed");
        assert_eq!(of("system:node:n1", NODES, &["ip:10.0.0.1"]), "IP subjectAltNames are not allowed");
        assert_eq!(of("system:node:n1", NODES, &["email:a@b"]), "Email subjectAltNames are not allowed");
        assert_eq!(of("system:node:n1", NODES, &["uri:x://y"]), "URI subjectAltNames are not allowed");
    }

    #[test]
    fn kubelet_servers_have_a_name_or_address() {
        let of = |cn: &str, names: &[&str], list| checked(KUBELET_SERVING, &wanted(cn, NODES, names), list);
        assert_eq!(of("system:node:n1", &["dns:n1"], SERVING), "good");
        assert_eq!(of("system:node:n1", &["ip:10.0.0.1"], "server auth,digital signature"), "good");
        assert_eq!(of("system:node:n1", &[], SERVING), "DNS or IP subjectAltName is required");
        assert_eq!(
            of("system:node:n1", &["dns:n1"], CLIENT),
            "usages did not match [digital signature key encipherment server auth]"
        );
        assert_eq!(of("n1", &["dns:n1"], SERVING), "subject common name does not begin with system:node:");
    }

    #[test]
    fn api_clients_need_client_auth() {
        let any = wanted("ann", "devs", &[]);
        assert_eq!(checked(API_CLIENT, &any, "client auth"), "good");
        assert_eq!(checked(API_CLIENT, &any, SERVING), "invalid usage for client certificate: server auth");
        assert_eq!(
            checked(API_CLIENT, &any, "digital signature"),
            "missing required usage for client certificate: client auth"
        );
        assert_eq!(checked("example.com/other", &any, CLIENT), "not ours");
    }
}
