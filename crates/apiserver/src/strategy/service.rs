//! Services: conditional defaults, cluster IPs and node ports claimed in the write's own transaction, validation.
//!
//! A cluster IP is claimed by its `IPAddress` object, a node port by a key under upstream's range; both are created only if
//! absent, so two writers can never hold the same one and there is nothing to repair.

use std::net::Ipv4Addr;
use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta, names};
use serde_json::json;
use store::{Compare, Expect, Op};

use super::common::{items, items_mut, set_default};
use super::{Context, Family, Part, Strategy};
use crate::object::encode;
use crate::view::key;

pub fn strategies() -> Family {
    vec![("", "services", Arc::new(Services))]
}

struct Services;

const NONE: &str = "None";
const IP_PREFIX: &str = "ipaddresses";
const PORT_PREFIX: &str = "ranges/servicenodeports";
/// Random tries before the range is searched in order.
const LUCKY_TRIES: u64 = 16;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else { return };
        set_default(spec, "type", "ClusterIP");
        set_default(spec, "sessionAffinity", "None");
        if spec["sessionAffinity"] == "ClientIP" {
            set_default(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        } else if let Some(map) = spec.as_object_mut() {
            map.remove("sessionAffinityConfig");
        }
        let kind = meta::str_at(spec, &["type"]).to_owned();
        for port in items_mut(spec, "ports") {
            set_default(port, "protocol", "TCP");
            let number = port.get("port").cloned().unwrap_or_default();
            if port.get("targetPort").is_none_or(|t| t.is_null() || *t == json!("") || *t == json!(0)) {
                port["targetPort"] = number;
            }
        }
        if kind != "ExternalName" {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        settle(object);
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        if part == Part::Main {
            keep_allocated(object, old);
            settle(object);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Main {
            validate(object, &mut errors);
            if let Some(old) = old {
                validate_update(object, old, &mut errors);
            }
        }
        errors
    }

    fn allocate(
        &self,
        cx: &Context<'_>,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<Vec<(Option<Compare>, Op)>> {
        let mut claims = Vec::new();
        let mut held = Held::default();
        if let Some(object) = object {
            claim_ip(cx, object, old, &mut held, &mut claims)?;
            claim_ports(cx, object, old, &mut held, &mut claims)?;
        }
        release(old, &held, &mut claims);
        Ok(claims)
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1035_label(name)
    }

    fn connect(&self, ask: &super::connect::Ask<'_>) -> Result<super::connect::Connection> {
        super::connect::service(ask)
    }
}

fn kind_of(object: &Value) -> &str {
    meta::str_at(object, &["spec", "type"])
}

fn cluster_ip(object: &Value) -> &str {
    meta::str_at(object, &["spec", "clusterIP"])
}

fn has_node_ports(object: &Value) -> bool {
    match kind_of(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

/// What follows from the type: an `ExternalName` has no address; `clusterIP` and `clusterIPs` say the same.
fn settle(object: &mut Value) {
    let kind = kind_of(object).to_owned();
    let ip = cluster_ip(object).to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if kind == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            spec.remove(key);
        }
        return;
    }
    let first = spec.get("clusterIPs").and_then(|l| l.get(0)).and_then(Value::as_str).map(str::to_owned);
    match (ip.is_empty(), first) {
        (true, Some(first)) => {
            spec.insert("clusterIP".to_owned(), json!(first));
        }
        (false, None) => {
            spec.insert("clusterIPs".to_owned(), json!([ip]));
        }
        _ => {}
    }
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        spec.remove("healthCheckNodePort");
    }
    if kind != "LoadBalancer" {
        spec.remove("allocateLoadBalancerNodePorts");
    }
}

/// A client that leaves out what was allocated (as `kubectl replace` does) keeps it.
fn keep_allocated(object: &mut Value, old: &Value) {
    if kind_of(object) == "ExternalName" || kind_of(old) == "ExternalName" {
        return;
    }
    if cluster_ip(object).is_empty() && object["spec"].get("clusterIPs").is_none() {
        for key in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(key) {
                object["spec"][key] = value.clone();
            }
        }
    }
    if !has_node_ports(object) {
        if has_node_ports(old) {
            // The type no longer has them: those that were carried along go.
            let before: Vec<i64> = items(&old["spec"], "ports").filter_map(node_port).collect();
            for port in items_mut(&mut object["spec"], "ports") {
                if node_port(port).is_some_and(|n| before.contains(&n))
                    && let Some(map) = port.as_object_mut()
                {
                    map.remove("nodePort");
                }
            }
        }
        return;
    }
    let old_ports: Vec<Value> = items(&old["spec"], "ports").cloned().collect();
    for port in items_mut(&mut object["spec"], "ports") {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        if node_port(port).is_none()
            && let Some(number) = old_ports.iter().find(same).and_then(node_port)
        {
            port["nodePort"] = json!(number);
        }
    }
}

fn node_port(port: &Value) -> Option<i64> {
    port.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0)
}

/// What the new state holds, so that a release does not give it away.
#[derive(Default)]
struct Held {
    ip: Option<String>,
    ports: Vec<i64>,
}

fn claim_ip(
    cx: &Context<'_>,
    object: &mut Value,
    old: Option<&Value>,
    held: &mut Held,
    claims: &mut Vec<(Option<Compare>, Op)>,
) -> Result<()> {
    if kind_of(object) == "ExternalName" || cluster_ip(object) == NONE {
        return Ok(());
    }
    let wanted = cluster_ip(object).to_owned();
    if !wanted.is_empty() && old.is_some_and(|old| cluster_ip(old) == wanted) {
        held.ip = Some(wanted);
        return Ok(());
    }
    let ip = if wanted.is_empty() { free_ip(cx)? } else { wanted_ip(cx, object, &wanted)? };
    let spec = meta::map_mut(object, "spec");
    spec.insert("clusterIP".to_owned(), json!(ip));
    spec.insert("clusterIPs".to_owned(), json!([ip]));
    let at = key(IP_PREFIX, "", &ip);
    let compare = Compare { key: at.clone(), expect: Expect::Absent };
    claims.push((Some(compare), Op::Put { key: at, value: encode(&ip_address(cx, object, &ip)) }));
    held.ip = Some(ip);
    Ok(())
}

fn ip_address(cx: &Context<'_>, service: &Value, ip: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip, "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": crate::registry::timestamp(cx.now),
            "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
        },
        "spec": {"parentRef": {
            "group": "", "resource": "services", "namespace": meta::namespace(service), "name": meta::name(service),
        }},
    })
}

/// First address and number of addresses of the service range; network and broadcast address are not counted.
fn range(cidr: &str) -> Option<(u32, u32)> {
    let (base, bits) = cidr.split_once('/')?;
    let base = u32::from(base.parse::<Ipv4Addr>().ok()?);
    let bits: u32 = bits.parse().ok().filter(|b| (8..=30).contains(b))?;
    Some((base, 1 << (32 - bits)))
}

fn free_ip(cx: &Context<'_>) -> Result<String> {
    let full = || StatusError::internal("failed to allocate a serviceIP: range is full");
    let (base, size) = range(&cx.config.service_cidr).ok_or_else(full)?;
    // The lower part is left to addresses chosen by hand, as upstream.
    let lower = (size / 16).clamp(16.min(size / 2), 256);
    let taken = |offset: u32| cx.view.get(IP_PREFIX, "", &Ipv4Addr::from(base + offset).to_string()).is_some();
    let upper = size - lower - 1;
    let lucky = (0..LUCKY_TRIES).map(|i| lower + (mix(cx.seed, i) % u64::from(upper.max(1))) as u32);
    let in_order = (lower..size - 1).chain(1..lower);
    let offset = lucky.chain(in_order).find(|o| !taken(*o)).ok_or_else(full)?;
    Ok(Ipv4Addr::from(base + offset).to_string())
}

/// A different number for each try of one seed.
fn mix(seed: u64, step: u64) -> u64 {
    let mut x = seed.wrapping_add(step.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 31)
}

fn invalid(object: &Value, error: Error) -> StatusError {
    StatusError::invalid(&GroupResource::new("", "Service"), meta::name(object), &[error])
}

fn wanted_ip(cx: &Context<'_>, object: &Value, wanted: &str) -> Result<String> {
    let path = Path::new("spec").child("clusterIPs");
    let refuse = |why: &str| {
        let detail = format!("failed to allocate IP {wanted}: {why}");
        invalid(object, Error::invalid(&path, &json!([wanted]), &detail))
    };
    let ip: Ipv4Addr = wanted.parse().map_err(|_| refuse("not a valid address"))?;
    let inside = range(&cx.config.service_cidr)
        .is_some_and(|(base, size)| u32::from(ip) > base && u32::from(ip) < base + size - 1);
    if !inside {
        return Err(refuse(&format!(
            "the provided network does not match the current range, the range of valid IPs is {}",
            cx.config.service_cidr
        )));
    }
    if cx.view.get(IP_PREFIX, "", wanted).is_some() {
        return Err(refuse("provided IP is already allocated"));
    }
    Ok(wanted.to_owned())
}

fn claim_ports(
    cx: &Context<'_>,
    object: &mut Value,
    old: Option<&Value>,
    held: &mut Held,
    claims: &mut Vec<(Option<Compare>, Op)>,
) -> Result<()> {
    if !has_node_ports(object) {
        return Ok(());
    }
    let before: Vec<i64> = old.map(|o| items(&o["spec"], "ports").filter_map(node_port).collect()).unwrap_or_default();
    let owner = format!("{}/{}", meta::namespace(object), meta::name(object));
    let count = items(&object["spec"], "ports").count();
    for index in 0..count {
        let port = object["spec"]["ports"][index].clone();
        let wanted = node_port(&port);
        // Two protocols of one service may share a number.
        if let Some(number) = wanted.filter(|n| before.contains(n) || held.ports.contains(n)) {
            held.ports.push(number);
            continue;
        }
        let number = match wanted {
            Some(number) => wanted_port(cx, object, index, number)?,
            None => free_port(cx, &held.ports, index as u64)?,
        };
        object["spec"]["ports"][index]["nodePort"] = json!(number);
        let at = key(PORT_PREFIX, "", &number.to_string());
        let claim = json!({
            "apiVersion": "v1", "kind": "RangeAllocation", "metadata": {"name": number.to_string()},
            "range": number.to_string(), "data": owner,
        });
        let compare = Compare { key: at.clone(), expect: Expect::Absent };
        claims.push((Some(compare), Op::Put { key: at, value: encode(&claim) }));
        held.ports.push(number);
    }
    Ok(())
}

fn free_port(cx: &Context<'_>, held: &[i64], salt: u64) -> Result<i64> {
    let (low, high) = cx.config.node_ports;
    let size = u64::from(high - low) + 1;
    let start = mix(cx.seed, salt.wrapping_add(1 << 32)) % size;
    (0..size)
        .map(|step| i64::from(low) + ((start + step) % size) as i64)
        .find(|n| !held.contains(n) && cx.view.get(PORT_PREFIX, "", &n.to_string()).is_none())
        .ok_or_else(|| StatusError::internal("failed to allocate a nodePort: range is full"))
}

fn wanted_port(cx: &Context<'_>, object: &Value, index: usize, number: i64) -> Result<i64> {
    let (low, high) = cx.config.node_ports;
    let path = Path::new("spec").child("ports").index(index).child("nodePort");
    let refuse = |why: String| Err(invalid(object, Error::invalid(&path, &json!(number), &why)));
    if number < i64::from(low) || number > i64::from(high) {
        return refuse(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"));
    }
    if cx.view.get(PORT_PREFIX, "", &number.to_string()).is_some() {
        return refuse("provided port is already allocated".to_owned());
    }
    Ok(number)
}

/// Gives back what the old state held and the new does not.
fn release(old: Option<&Value>, held: &Held, claims: &mut Vec<(Option<Compare>, Op)>) {
    let Some(old) = old else { return };
    let ip = cluster_ip(old);
    if !ip.is_empty() && ip != NONE && held.ip.as_deref() != Some(ip) {
        claims.push((None, Op::Delete { key: key(IP_PREFIX, "", ip) }));
    }
    let mut freed: Vec<i64> = items(&old["spec"], "ports").filter_map(node_port).collect();
    freed.sort_unstable();
    freed.dedup();
    for number in freed.into_iter().filter(|n| !held.ports.contains(n)) {
        claims.push((None, Op::Delete { key: key(PORT_PREFIX, "", &number.to_string()) }));
    }
}

fn validate(object: &Value, errors: &mut ErrorList) {
    let spec = &object["spec"];
    let path = Path::new("spec");
    let kind = kind_of(object);
    let headless = cluster_ip(object) == NONE;
    let ports: Vec<&Value> = items(spec, "ports").collect();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    if kind == "ExternalName" && meta::str_at(spec, &["externalName"]).is_empty() {
        errors.push(Error::required(&path.child("externalName"), ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(Error::invalid(&path.child("clusterIPs").index(0), &json!(NONE), &why));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut seen: Vec<(&Value, &Value)> = Vec::new();
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
        if node_port(port).is_some() && !matches!(kind, "NodePort" | "LoadBalancer") {
            let why = format!("may not be used when `type` is '{kind}'");
            errors.push(Error::forbidden(&at.child("nodePort"), &why));
        }
    }
}

fn validate_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (new_ip, old_ip) = (cluster_ip(object), cluster_ip(old));
    let had = kind_of(old) != "ExternalName" && !old_ip.is_empty();
    if had && kind_of(object) != "ExternalName" && new_ip != old_ip {
        let path = Path::new("spec").child("clusterIPs").index(0);
        errors.push(Error::invalid(&path, &json!([new_ip]), "may not change once set"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_read() {
        assert_eq!(range("10.43.0.0/16"), Some((u32::from(Ipv4Addr::new(10, 43, 0, 0)), 65536)));
        assert_eq!(range("10.43.0.0/31"), None);
    }

    #[test]
    fn a_changed_type_drops_and_keeps_what_it_should() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.5", "clusterIPs": ["10.0.0.5"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut replaced = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep_allocated(&mut replaced, &old);
        assert_eq!(replaced["spec"]["clusterIP"], "10.0.0.5");
        assert_eq!(replaced["spec"]["ports"][0]["nodePort"], 30080);
        let mut internal = old.clone();
        internal["spec"]["type"] = json!("ClusterIP");
        keep_allocated(&mut internal, &old);
        assert!(internal["spec"]["ports"][0].get("nodePort").is_none());
        let mut external = json!({"spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.5"}});
        settle(&mut external);
        assert!(external["spec"].get("clusterIP").is_none());
    }
}
