//! Ingresses, network policies, endpoints and their slices.

use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::{Fixed, immutable, items, items_mut, path_of};
use super::{Context, Family, Part, Strategy};

const GROUP: &str = "networking.k8s.io";

pub fn strategies() -> Family {
    vec![
        ("", "endpoints", Arc::new(Endpoints)),
        ("discovery.k8s.io", "endpointslices", Arc::new(Slices)),
        (GROUP, "ingresses", Arc::new(Ingresses)),
        (GROUP, "ingressclasses", Arc::new(Fixed(&[&["spec", "controller"]]))),
        (GROUP, "networkpolicies", Arc::new(Policies)),
        (GROUP, "ipaddresses", Arc::new(Addresses(Fixed(&[&["spec", "parentRef"]])))),
    ]
}

/// Their names are IP addresses in canonical form.
struct Addresses(Fixed);

impl Strategy for Addresses {
    fn validate(&self, cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        self.0.validate(cx, part, object, old)
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        match name.parse::<std::net::IpAddr>() {
            Ok(address) if address.to_string() == name => Vec::new(),
            Ok(address) => vec![format!("not a valid canonical IP address, expected {address}")],
            Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
        }
    }
}

struct Endpoints;

impl Strategy for Endpoints {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        for (index, subset) in items(object, "subsets").enumerate() {
            let at = Path::new("subsets").index(index);
            let lists = ["addresses", "notReadyAddresses"];
            if lists.iter().all(|list| items(subset, list).next().is_none()) {
                errors.push(Error::required(&at, "must specify `addresses` or `notReadyAddresses`"));
            }
            for list in lists {
                for (index, address) in items(subset, list).enumerate() {
                    validate_reachable(&address["ip"], &at.child(list).index(index).child("ip"), &mut errors);
                }
            }
            let ports = items(subset, "ports").count();
            for (index, port) in items(subset, "ports").enumerate() {
                if ports > 1 && meta::str_at(port, &["name"]).is_empty() {
                    errors.push(Error::required(&at.child("ports").index(index).child("name"), ""));
                }
            }
        }
        errors
    }
}

/// `ValidateEndpointIP`: an address that only the machine itself could mean is no endpoint.
fn validate_reachable(value: &Value, at: &Path, errors: &mut ErrorList) {
    let Some(ip) = value.as_str().and_then(names::parse_ip_sloppy) else { return };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.segments()[0] == 0xff02,
    };
    let why = if ip.is_unspecified() {
        format!("may not be unspecified ({ip})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10) or link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return;
    };
    errors.push(Error::invalid(at, value, &why));
}

struct Slices;

impl Strategy for Slices {
    /// Labels count as well as the wish: they say whose the slice is.
    fn prepare_update(&self, _cx: &Context<'_>, _part: Part, object: &mut Value, old: &Value) {
        if meta::at(object, &["metadata", "labels"]) != meta::at(old, &["metadata", "labels"]) {
            let generation = meta::generation(old) + 1;
            meta::metadata_mut(object).insert("generation".to_owned(), json!(generation));
        }
    }

    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if let Some(old) = old {
            immutable(object, old, &["addressType"], &mut errors);
        }
        let family = meta::str_at(object, &["addressType"]);
        for (index, endpoint) in items(object, "endpoints").enumerate() {
            let at = Path::new("endpoints").index(index).child("addresses");
            for (index, address) in items(endpoint, "addresses").enumerate() {
                let at = at.index(index);
                let text = address.as_str().unwrap_or_default();
                let problem = match (family, names::parse_ip_sloppy(text)) {
                    ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => {
                        validate_reachable(address, &at, &mut errors);
                        continue;
                    }
                    ("IPv4", _) => vec!["must be an IPv4 address".to_owned()],
                    ("IPv6", _) => vec!["must be an IPv6 address".to_owned()],
                    ("FQDN", _) => names::dns1123_subdomain(text),
                    _ => continue,
                };
                errors.extend(problem.iter().map(|p| Error::invalid(&at, address, p)));
            }
        }
        errors
    }
}

struct Ingresses;

/// The class by its annotation, older than the field.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Strategy for Ingresses {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let backend = spec.get("defaultBackend").is_some_and(|b| !b.is_null());
        if !backend && items(spec, "rules").next().is_none() {
            let why = "either `defaultBackend` or `rules` must be specified";
            errors.push(Error::invalid(&path, &json!([]), why));
        }
        let class = meta::str_at(spec, &["ingressClassName"]);
        if old.is_none() && !class.is_empty() && meta::annotation(object, CLASS_ANNOTATION).is_some_and(|a| a != class)
        {
            let at = path_of(&["metadata", "annotations"]).child(CLASS_ANNOTATION);
            let why = "must match `ingressClassName` when both are specified";
            errors.push(Error::invalid(&at, &json!(meta::annotation(object, CLASS_ANNOTATION)), why));
        }
        for (index, rule) in items(spec, "rules").enumerate() {
            for (number, http) in items(&rule["http"], "paths").enumerate() {
                let at = path.child("rules").index(index).child("http").child("paths").index(number);
                validate_path(http, &at, &mut errors);
            }
        }
        errors
    }
}

/// Exact and prefix paths are absolute and in normal form.
fn validate_path(http: &Value, at: &Path, errors: &mut ErrorList) {
    if !matches!(meta::str_at(http, &["pathType"]), "Exact" | "Prefix") {
        return;
    }
    let (at, text) = (at.child("path"), meta::str_at(http, &["path"]));
    if text.is_empty() {
        errors.push(Error::invalid(&at, &json!(text), "must be an absolute path"));
    }
    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
        if text.contains(bad) {
            errors.push(Error::invalid(&at, &json!(text), &format!("must not contain '{bad}'")));
        }
    }
    for bad in ["/..", "/."] {
        if text.ends_with(bad) {
            errors.push(Error::invalid(&at, &json!(text), &format!("cannot end with '{bad}'")));
        }
    }
}

struct Policies;

impl Strategy for Policies {
    /// A policy is about ingress, and about egress if it says anything of it.
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else { return };
        if items(spec, "policyTypes").next().is_none() {
            let mut types = vec!["Ingress"];
            if items(spec, "egress").next().is_some() {
                types.push("Egress");
            }
            spec["policyTypes"] = json!(types);
        }
        for direction in ["ingress", "egress"] {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    super::common::set_default(port, "protocol", "TCP");
                }
            }
        }
    }

    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in items(&object["spec"], direction).enumerate() {
                let at = path_of(&["spec", direction]).index(index);
                for (index, port) in items(rule, "ports").enumerate() {
                    validate_port_range(port, &at.child("ports").index(index), &mut errors);
                }
                for (index, peer) in items(rule, peers).enumerate() {
                    validate_exceptions(&peer["ipBlock"], &at.child(peers).index(index).child("ipBlock"), &mut errors);
                }
            }
        }
        errors
    }
}

fn validate_port_range(port: &Value, at: &Path, errors: &mut ErrorList) {
    let Some(end) = port.get("endPort").and_then(Value::as_i64) else { return };
    let at = at.child("endPort");
    match port.get("port") {
        None | Some(Value::Null) => {
            errors.push(Error::invalid(&at, &json!(end), "may not be specified when `port` is not specified"));
        }
        Some(Value::String(_)) => {
            errors.push(Error::invalid(&at, &json!(end), "may not be specified when `port` is non-numeric"));
        }
        Some(first) if first.as_i64().is_some_and(|first| first > end) => {
            errors.push(Error::invalid(&at, &json!(end), "must be greater than or equal to `port`"));
        }
        Some(_) => {}
    }
}

/// What a block leaves out lies inside it.
fn validate_exceptions(block: &Value, at: &Path, errors: &mut ErrorList) {
    let Some((base, bits)) = names::parse_cidr_sloppy(meta::str_at(block, &["cidr"])) else { return };
    for (index, except) in items(block, "except").enumerate() {
        let Some((inner, length)) = except.as_str().and_then(names::parse_cidr_sloppy) else { continue };
        let inside = inner.is_ipv4() == base.is_ipv4()
            && length > bits
            && names::masked(inner, bits) == names::masked(base, bits);
        if !inside {
            let why = format!("must be a strict subset of `cidr`: {}", json!(meta::str_at(block, &["cidr"])));
            errors.push(Error::invalid(&at.child("except").index(index), except, &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_default_their_directions() {
        let types = |spec: Value| {
            let mut object = json!({ "spec": spec });
            Policies.default(&mut object);
            object["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"egress": [{}], "policyTypes": ["Egress"]})), json!(["Egress"]));
    }

    #[test]
    fn ranges_blocks_and_addresses() {
        let mut errors = ErrorList::new();
        validate_port_range(&json!({"port": 80, "endPort": 79}), &Path::new("p"), &mut errors);
        validate_exceptions(
            &json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/16"]}),
            &Path::new("b"),
            &mut errors,
        );
        validate_reachable(&json!("127.0.0.1"), &Path::new("ip"), &mut errors);
        validate_reachable(&json!("10.0.0.1"), &Path::new("ip"), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "p.endPort: Invalid value: 79: must be greater than or equal to `port`",
                "b.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`: \"10.0.0.0/8\"",
                "ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ]
        );
    }
}
