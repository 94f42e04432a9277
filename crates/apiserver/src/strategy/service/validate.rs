//! Rules over several fields of a service, and of its changes.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::super::common::{immutable, items};
use super::{NONE, cluster_ip, cluster_ips, is_external, kind_of, needs_cluster_ip, needs_health_check, node_port};

pub fn service(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if items(spec, "ports").next().is_none() && cluster_ip(object) != NONE && kind_of(object) != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    if kind_of(object) == "ExternalName" {
        validate_external_name(object, &path, errors);
    } else {
        validate_addresses(object, &path, errors);
        validate_families(object, &path, errors);
    }
    validate_ports(object, &path, errors);
    validate_dependent(object, &path, errors);
}

fn validate_external_name(object: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("externalName");
    let name = meta::str_at(object, &["spec", "externalName"]);
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        errors.extend(names::dns1123_subdomain(bare).iter().map(|p| Error::invalid(&at, &json!(name), p)));
    }
    for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let value = &object["spec"][key];
        if !value.is_null() && *value != json!([]) {
            errors.push(Error::forbidden(&path.child(key), "may not be set for ExternalName services"));
        }
    }
}

/// `ValidateServiceClusterIPsRelatedFields`
fn validate_addresses(object: &Value, path: &Path, errors: &mut ErrorList) {
    let (ip, ips, at) = (cluster_ip(object), cluster_ips(object), path.child("clusterIPs"));
    if ip.is_empty() && !ips.is_empty() {
        errors.push(Error::invalid(&at, &json!(ips), "must be empty when `clusterIP` is not specified"));
    } else if ips.first().is_some_and(|first| *first != ip) {
        errors.push(Error::invalid(&at, &json!(ips), "first value must match `clusterIP`"));
    }
    if ip == NONE && kind_of(object) != "ClusterIP" {
        let why = format!("may not be set to 'None' for {} services", kind_of(object));
        errors.push(Error::invalid(&at.index(0), &json!(NONE), &why));
    }
    if ips.len() > 1 && ips.contains(&NONE) {
        errors.push(Error::invalid(&at, &json!(ips), "'None' must be the first and only value"));
    }
    for (index, text) in ips.iter().enumerate().filter(|(_, text)| !matches!(**text, NONE | "")) {
        errors.extend(names::ip(text).iter().map(|p| Error::invalid(&at.index(index), &json!(text), p)));
    }
    if ips.len() > 2 {
        errors.push(Error::invalid(&at, &json!(ips), "may only hold up to 2 values"));
    }
}

/// This cluster gives addresses of one family.
fn validate_families(object: &Value, path: &Path, errors: &mut ErrorList) {
    let spec = &object["spec"];
    let families: Vec<&Value> = items(spec, "ipFamilies").collect();
    let at = path.child("ipFamilies");
    if families.len() > 2 {
        errors.push(Error::invalid(&at, &json!(families), "may only hold up to 2 values"));
    }
    for (index, family) in families.iter().enumerate() {
        if families[..index].contains(family) {
            errors.push(Error::duplicate(&at.index(index), family));
        }
    }
    let bare = spec.get("selector").and_then(Value::as_object).is_none_or(|s| s.is_empty());
    if cluster_ip(object) == NONE && bare {
        return;
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| ***family != "IPv4") {
        errors.push(Error::invalid(&at.index(index), family, "not configured on this cluster"));
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(Error::invalid(&path.child("ipFamilyPolicy"), &spec["ipFamilyPolicy"], why));
    }
}

fn validate_ports(object: &Value, path: &Path, errors: &mut ErrorList) {
    let ports: Vec<&Value> = items(&object["spec"], "ports").collect();
    let mut names: Vec<&str> = Vec::new();
    let mut seen: Vec<(&Value, &Value)> = Vec::new();
    let mut nodes: Vec<(i64, &Value)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let at = path.child("ports").index(index);
        let name = meta::str_at(port, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.push(Error::required(&at.child("name"), ""));
        }
        if !name.is_empty() && names.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), &json!(name)));
        }
        names.push(name);
        let identity = (&port["port"], &port["protocol"]);
        if seen.contains(&identity) {
            let short = json!({"port": port["port"], "protocol": port["protocol"]});
            errors.push(Error::duplicate(&at, &short));
        }
        seen.push(identity);
        let Some(number) = node_port(port) else { continue };
        if !matches!(kind_of(object), "NodePort" | "LoadBalancer") {
            let why = format!("may not be used when `type` is '{}'", kind_of(object));
            errors.push(Error::forbidden(&at.child("nodePort"), &why));
        }
        if nodes.contains(&(number, &port["protocol"])) {
            errors.push(Error::duplicate(&at.child("nodePort"), &json!(number)));
        }
        nodes.push((number, &port["protocol"]));
    }
}

/// Fields that only some types have.
fn validate_dependent(object: &Value, path: &Path, errors: &mut ErrorList) {
    let spec = &object["spec"];
    let given = |key: &str| spec.get(key).filter(|v| !v.is_null() && **v != json!("") && **v != json!(0));
    if kind_of(object) != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if given(key).is_some() {
                errors.push(Error::forbidden(&path.child(key), "may only be used when `type` is 'LoadBalancer'"));
            }
        }
        if items(spec, "loadBalancerSourceRanges").next().is_some() {
            let why = "may only be used when `type` is 'LoadBalancer'";
            errors.push(Error::forbidden(&path.child("loadBalancerSourceRanges"), why));
        }
    }
    if let Some(policy) = given("externalTrafficPolicy").filter(|_| !is_external(object)) {
        let why = "may only be set for externally-accessible services";
        errors.push(Error::invalid(&path.child("externalTrafficPolicy"), policy, why));
    }
    if let Some(port) = given("healthCheckNodePort").filter(|_| !needs_health_check(object)) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(Error::invalid(&path.child("healthCheckNodePort"), port, why));
    }
    if spec["sessionAffinity"] == "None" && given("sessionAffinityConfig").is_some() {
        let why = "must not be set when session affinity is None";
        errors.push(Error::forbidden(&path.child("sessionAffinityConfig"), why));
    }
}

pub fn update(object: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    // Of a service that had no address an update may choose one.
    if needs_cluster_ip(object) && needs_cluster_ip(old) && !cluster_ip(old).is_empty() {
        let changed = cluster_ips(object).first() != cluster_ips(old).first() || cluster_ip(object) != cluster_ip(old);
        if changed {
            let at = path.child("clusterIPs").index(0);
            errors.push(Error::invalid(&at, &json!(cluster_ips(object)), "may not change once set"));
        }
        if items(&object["spec"], "ipFamilies").next() != items(&old["spec"], "ipFamilies").next() {
            let at = path.child("ipFamilies").index(0);
            errors.push(Error::invalid(&at, &object["spec"]["ipFamilies"], "may not change once set"));
        }
    }
    if kind_of(object) == "LoadBalancer" && kind_of(old) == "LoadBalancer" {
        let class = |object: &'_ Value| object["spec"].get("loadBalancerClass").cloned();
        if class(object) != class(old) {
            let at = path.child("loadBalancerClass");
            errors.push(Error::invalid(&at, &json!(class(object)), "may not change once set"));
        }
    }
    if needs_health_check(object) && needs_health_check(old) {
        immutable(object, old, &["spec", "healthCheckNodePort"], errors);
    }
}
