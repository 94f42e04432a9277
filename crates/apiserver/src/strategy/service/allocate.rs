//! Cluster IPs and node ports, claimed in the write's own transaction.
//!
//! A cluster IP is claimed by its `IPAddress` object, a node port by a key under upstream's range; both are created only if
//! absent, so two writers can never hold the same one and there is nothing to repair.

use std::net::Ipv4Addr;

use apimachinery::field::{Error, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;
use store::{Compare, Expect, Op};

use super::super::common::items;
use super::super::{Allocator, Claim, Context};
use super::{NONE, cluster_ip, has_node_ports, kind_of, needs_health_check, node_port};
use crate::object::encode;
use crate::view::key;

const IP_PREFIX: &str = "ipaddresses";
const PORT_PREFIX: &str = "ranges/servicenodeports";
/// Random tries before the range is searched in order.
const LUCKY_TRIES: u64 = 16;

/// Cluster IPs and node ports.
pub struct Addresses;

impl Allocator for Addresses {
    /// Completes `object` with what it needs and answers with the writes that claim it, and that free what only `old` held.
    fn claims(&self, cx: &Context<'_>, object: Option<&mut Value>, old: Option<&Value>) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        let mut held = Held::default();
        if let Some(object) = object {
            claim_ip(cx, object, old, &mut held, &mut claims)?;
            claim_ports(cx, object, old, &mut held, &mut claims)?;
        }
        release(old, &held, &mut claims);
        Ok(claims)
    }
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
    claims: &mut Vec<Claim>,
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
    claims.push((Some(compare), Op::Put { key: at, value: encode(&ip_address(cx, object, &ip)), ttl: None }));
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

/// A network of cluster IPs. Its first and last address are not given out.
struct Network {
    base: u32,
    size: u32,
    text: String,
}

impl Network {
    fn parse(cidr: &str) -> Option<Self> {
        let (base, bits) = cidr.split_once('/')?;
        let base = u32::from(base.parse::<Ipv4Addr>().ok()?);
        let bits: u32 = bits.parse().ok().filter(|b| (8..=30).contains(b))?;
        Some(Network { base, size: 1 << (32 - bits), text: cidr.to_owned() })
    }

    fn has(&self, ip: Ipv4Addr) -> bool {
        u32::from(ip).checked_sub(self.base).is_some_and(|offset| (1..self.size - 1).contains(&offset))
    }

    fn free(&self, cx: &Context<'_>) -> Option<String> {
        // The lower part is left to addresses chosen by hand, as upstream.
        let lower = (self.size / 16).clamp(16.min(self.size / 2), 256);
        let at = |offset: u32| Ipv4Addr::from(self.base + offset).to_string();
        let upper = self.size - lower - 1;
        let lucky = (0..LUCKY_TRIES).map(|i| lower + (mix(cx.seed, i) % u64::from(upper.max(1))) as u32);
        let mut offsets = lucky.chain(lower..self.size - 1).chain(1..lower);
        offsets.find(|offset| cx.view.get(IP_PREFIX, "", &at(*offset)).is_none()).map(at)
    }
}

/// The name of the network that the server is configured with.
const DEFAULT_NETWORK: &str = "kubernetes";

/// The configured network, also before its object is ready, and those that ServiceCIDR objects have added; none that is to go.
fn networks(cx: &Context<'_>) -> Vec<Network> {
    let objects: Vec<Value> = cx.view.list("servicecidrs", "").iter().map(|entry| entry.value.value()).collect();
    let leaves = |object: &Value| meta::at(object, &["metadata", "deletionTimestamp"]).is_some_and(|at| !at.is_null());
    let ready = |object: &Value| {
        let mut conditions = items(&object["status"], "conditions");
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let is_default = |object: &&Value| meta::name(object) == DEFAULT_NETWORK;
    let default = (!objects.iter().find(is_default).is_some_and(leaves)).then_some(cx.config.service_cidr.as_str());
    let others = objects.iter().filter(|object| !is_default(object) && ready(object) && !leaves(object));
    let texts = others.flat_map(|object| items(&object["spec"], "cidrs").filter_map(Value::as_str));
    default.into_iter().chain(texts).filter_map(Network::parse).collect()
}

fn free_ip(cx: &Context<'_>) -> Result<String> {
    let full = || StatusError::internal("failed to allocate a serviceIP: range is full");
    networks(cx).iter().find_map(|network| network.free(cx)).ok_or_else(full)
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
    let networks = networks(cx);
    if !networks.iter().any(|network| network.has(ip)) {
        let valid: Vec<&str> = networks.iter().map(|network| network.text.as_str()).collect();
        return Err(refuse(&format!(
            "the provided network does not match the current range, the range of valid IPs is {}",
            valid.join(", ")
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
    claims: &mut Vec<Claim>,
) -> Result<()> {
    let before = old.map(all_ports).unwrap_or_default();
    let count = if has_node_ports(object) { items(&object["spec"], "ports").count() } else { 0 };
    for index in 0..count {
        let at = Path::new("spec").child("ports").index(index).child("nodePort");
        let wanted = node_port(&object["spec"]["ports"][index]);
        let number = claim_port(cx, object, &at, wanted, index as u64, &before, held, claims)?;
        object["spec"]["ports"][index]["nodePort"] = json!(number);
    }
    if needs_health_check(object) {
        let at = Path::new("spec").child("healthCheckNodePort");
        let wanted = health_port(object);
        let number = claim_port(cx, object, &at, wanted, u64::from(u32::MAX), &before, held, claims)?;
        object["spec"]["healthCheckNodePort"] = json!(number);
    }
    Ok(())
}

/// The number of one port: the wanted one if it is free or held already, or any.
#[expect(clippy::too_many_arguments, reason = "one claim's facts")]
fn claim_port(
    cx: &Context<'_>,
    object: &Value,
    at: &Path,
    wanted: Option<i64>,
    salt: u64,
    before: &[i64],
    held: &mut Held,
    claims: &mut Vec<Claim>,
) -> Result<i64> {
    // Two protocols of one service may share a number.
    if let Some(number) = wanted.filter(|n| before.contains(n) || held.ports.contains(n)) {
        held.ports.push(number);
        return Ok(number);
    }
    let number = match wanted {
        Some(number) => wanted_port(cx, object, at, number)?,
        None => free_port(cx, &held.ports, salt)?,
    };
    let key = key(PORT_PREFIX, "", &number.to_string());
    let claim = json!({
        "apiVersion": "v1", "kind": "RangeAllocation", "metadata": {"name": number.to_string()},
        "range": number.to_string(), "data": format!("{}/{}", meta::namespace(object), meta::name(object)),
    });
    let compare = Compare { key: key.clone(), expect: Expect::Absent };
    claims.push((Some(compare), Op::Put { key, value: encode(&claim), ttl: None }));
    held.ports.push(number);
    Ok(number)
}

fn health_port(object: &Value) -> Option<i64> {
    object["spec"].get("healthCheckNodePort").and_then(Value::as_i64).filter(|n| *n != 0)
}

fn all_ports(object: &Value) -> Vec<i64> {
    items(&object["spec"], "ports").filter_map(node_port).chain(health_port(object)).collect()
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

fn wanted_port(cx: &Context<'_>, object: &Value, path: &Path, number: i64) -> Result<i64> {
    let (low, high) = cx.config.node_ports;
    let refuse = |why: String| Err(invalid(object, Error::invalid(path, &json!(number), &why)));
    if number < i64::from(low) || number > i64::from(high) {
        return refuse(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"));
    }
    if cx.view.get(PORT_PREFIX, "", &number.to_string()).is_some() {
        return refuse("provided port is already allocated".to_owned());
    }
    Ok(number)
}

/// Gives back what the old state held and the new does not.
fn release(old: Option<&Value>, held: &Held, claims: &mut Vec<Claim>) {
    let Some(old) = old else { return };
    let ip = cluster_ip(old);
    if !ip.is_empty() && ip != NONE && held.ip.as_deref() != Some(ip) {
        claims.push((None, Op::Delete { key: key(IP_PREFIX, "", ip) }));
    }
    let mut freed = all_ports(old);
    freed.sort_unstable();
    freed.dedup();
    for number in freed.into_iter().filter(|n| !held.ports.contains(n)) {
        claims.push((None, Op::Delete { key: key(PORT_PREFIX, "", &number.to_string()) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        let network = Network::parse("10.43.0.0/16").unwrap();
        assert_eq!((network.base, network.size), (u32::from(Ipv4Addr::new(10, 43, 0, 0)), 65536));
        assert!(network.has(Ipv4Addr::new(10, 43, 0, 1)) && !network.has(Ipv4Addr::new(10, 43, 0, 0)));
        assert!(Network::parse("10.43.0.0/31").is_none());
    }
}
