//! Services: what follows from their type, and what goes when it changes.

mod allocate;
mod validate;

use std::sync::Arc;

use apimachinery::field::ErrorList;
use apimachinery::status::Result;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::{items, items_mut, set_default};
use super::{Allocator, Context, Family, Part, Strategy};

pub fn strategies() -> Family {
    vec![("", "services", Arc::new(Services))]
}

struct Services;

const NONE: &str = "None";

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else { return };
        for port in items_mut(spec, "ports") {
            let number = port.get("port").cloned().unwrap_or_default();
            if port.get("targetPort").is_none_or(|t| t.is_null() || *t == json!("") || *t == json!(0)) {
                port["targetPort"] = number;
            }
        }
        // As upstream's defaulting: who switches affinity off need not clear its settings.
        if spec["sessionAffinity"] == "None"
            && let Some(spec) = spec.as_object_mut()
        {
            spec.remove("sessionAffinityConfig");
        }
        // Addresses from outside: the policy decides for them too.
        if spec["type"] == "ClusterIP" && items(spec, "externalIPs").next().is_some() {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        let ingress = object.get_mut("status").and_then(|s| s.get_mut("loadBalancer"));
        for entry in ingress.into_iter().flat_map(|balancer| items_mut(balancer, "ingress")) {
            if !meta::str_at(entry, &["ip"]).is_empty() {
                set_default(entry, "ipMode", "VIP");
            }
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        agree_on_ip(object, None);
        complete_families(object);
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        if part == Part::Main {
            keep_allocated(object, old);
            agree_on_ip(object, Some(old));
            drop_dependent(object, old);
            complete_families(object);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Main {
            validate::service(object, &mut errors);
            if let Some(old) = old {
                validate::update(object, old, &mut errors);
            }
        }
        errors
    }

    fn allocator(&self) -> Option<&dyn Allocator> {
        Some(&allocate::Addresses)
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

fn cluster_ips(object: &Value) -> Vec<&str> {
    items(&object["spec"], "clusterIPs").filter_map(Value::as_str).collect()
}

fn needs_cluster_ip(object: &Value) -> bool {
    matches!(kind_of(object), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(object: &Value) -> bool {
    match kind_of(object) {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

/// Whether clients from outside the cluster reach the service.
fn is_external(object: &Value) -> bool {
    matches!(kind_of(object), "NodePort" | "LoadBalancer")
        || (kind_of(object) == "ClusterIP" && items(&object["spec"], "externalIPs").next().is_some())
}

/// Whether load balancers ask each node if it has endpoints.
fn needs_health_check(object: &Value) -> bool {
    kind_of(object) == "LoadBalancer" && object["spec"]["externalTrafficPolicy"] == "Local"
}

fn node_port(port: &Value) -> Option<i64> {
    port.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0)
}

/// `clusterIP` and the first of `clusterIPs` say the same: the one that the client changed, or set alone, wins
/// (`NormalizeClusterIPs`). Where both were changed validation compares them.
fn agree_on_ip(object: &mut Value, old: Option<&Value>) {
    let ip = cluster_ip(object).to_owned();
    let ips: Vec<String> = cluster_ips(object).into_iter().map(str::to_owned).collect();
    let same_ip = old.is_some_and(|old| cluster_ip(old) == ip);
    let same_ips = old.is_some_and(|old| cluster_ips(old) == ips);
    let spec = meta::map_mut(object, "spec");
    match old {
        None if !ip.is_empty() && ips.is_empty() => _ = spec.insert("clusterIPs".to_owned(), json!([ip])),
        // Only the list was cleared, or only the address changed.
        Some(_) if same_ip && ips.is_empty() && !ip.is_empty() => _ = spec.insert("clusterIPs".to_owned(), json!([ip])),
        Some(_) if !same_ip && ip.is_empty() && same_ips => _ = spec.remove("clusterIPs"),
        Some(_) if !same_ip && !ip.is_empty() && (ips.is_empty() || same_ips) => {
            spec.insert("clusterIPs".to_owned(), json!([ip]));
        }
        _ => {}
    }
}

/// Families and their policy, in a cluster of IPv4 alone. Headless services without selector name addresses of their own, which
/// may be of both.
fn complete_families(object: &mut Value) {
    if !needs_cluster_ip(object) {
        return;
    }
    let bare = object["spec"].get("selector").and_then(Value::as_object).is_none_or(|s| s.is_empty());
    let headless = cluster_ip(object) == NONE;
    let Some(spec) = object.get_mut("spec") else { return };
    if headless && bare {
        let single = spec["ipFamilyPolicy"] == "SingleStack";
        let mut families: Vec<Value> = items(spec, "ipFamilies").cloned().collect();
        if families.is_empty() {
            families.push(json!("IPv4"));
        }
        if families.len() == 1 && !single {
            families.push(json!(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }));
        }
        spec["ipFamilies"] = json!(families);
        set_default(spec, "ipFamilyPolicy", "RequireDualStack");
        return;
    }
    set_default(spec, "ipFamilies", json!(["IPv4"]));
    set_default(spec, "ipFamilyPolicy", "SingleStack");
}

/// A client that leaves out what was allocated (as `kubectl replace` does) keeps it.
fn keep_allocated(object: &mut Value, old: &Value) {
    if needs_cluster_ip(object)
        && needs_cluster_ip(old)
        && cluster_ip(object).is_empty()
        && cluster_ips(object).is_empty()
    {
        for key in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(key) {
                object["spec"][key] = value.clone();
            }
        }
    }
    if needs_health_check(object) && needs_health_check(old) {
        let known = old["spec"].get("healthCheckNodePort").cloned().unwrap_or_default();
        if object["spec"].get("healthCheckNodePort").and_then(Value::as_i64).unwrap_or(0) == 0 {
            object["spec"]["healthCheckNodePort"] = known;
        }
    }
    if !has_node_ports(object) || !has_node_ports(old) {
        return;
    }
    let known: Vec<Value> = items(&old["spec"], "ports").cloned().collect();
    for port in items_mut(&mut object["spec"], "ports") {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        if node_port(port).is_none()
            && let Some(number) = known.iter().find(same).and_then(node_port)
        {
            port["nodePort"] = json!(number);
        }
    }
}

/// What the former type needed and the new one does not goes, unless the client changed it: then validation shall see it
/// (`dropTypeDependentFields`).
fn drop_dependent(object: &mut Value, old: &Value) {
    let same = |object: &Value, key: &str| object["spec"].get(key) == old["spec"].get(key);
    let mut gone: Vec<&str> = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(object) {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if needs_health_check(old) && !needs_health_check(object) {
        gone.push("healthCheckNodePort");
    }
    if kind_of(old) == "LoadBalancer" && kind_of(object) != "LoadBalancer" {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(object) {
        gone.push("externalTrafficPolicy");
    }
    gone.retain(|key| same(object, key));
    let spec = meta::map_mut(object, "spec");
    for key in gone {
        spec.remove(key);
    }
    let no_ports = !matches!(kind_of(object), "NodePort" | "LoadBalancer");
    let numbers = |object: &Value| items(&object["spec"], "ports").map(node_port).collect::<Vec<_>>();
    if matches!(kind_of(old), "NodePort" | "LoadBalancer") && no_ports && numbers(object) == numbers(old) {
        for port in items_mut(&mut object["spec"], "ports") {
            if let Some(map) = port.as_object_mut() {
                map.remove("nodePort");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinity_that_is_switched_off_takes_its_settings_along() {
        let mut service =
            json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}});
        Services.default(&mut service);
        assert!(service["spec"].get("sessionAffinityConfig").is_none());
    }

    #[test]
    fn what_a_changed_type_drops_and_keeps() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.5", "clusterIPs": ["10.0.0.5"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
        let mut replaced = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        keep_allocated(&mut replaced, &old);
        assert_eq!(replaced["spec"]["clusterIP"], "10.0.0.5");
        assert_eq!(replaced["spec"]["ports"][0]["nodePort"], 30080);
        let mut internal = old.clone();
        internal["spec"]["type"] = json!("ClusterIP");
        drop_dependent(&mut internal, &old);
        assert!(internal["spec"]["ports"][0].get("nodePort").is_none());
        assert!(internal["spec"].get("externalTrafficPolicy").is_none());
        let mut external = old.clone();
        external["spec"]["type"] = json!("ExternalName");
        drop_dependent(&mut external, &old);
        assert!(external["spec"].get("clusterIP").is_none() && external["spec"].get("clusterIPs").is_none());
    }

    #[test]
    fn address_and_addresses_agree() {
        let service = |ip: &str, ips: &[&str]| json!({"spec": {"clusterIP": ip, "clusterIPs": ips}});
        let agreed = |new: Value, old: Option<Value>| {
            let mut new = new;
            agree_on_ip(&mut new, old.as_ref());
            cluster_ips(&new).join(",")
        };
        let old = || Some(service("10.0.0.1", &["10.0.0.1"]));
        assert_eq!(agreed(service("10.0.0.1", &[]), None), "10.0.0.1");
        assert_eq!(agreed(service("10.0.0.1", &[]), old()), "10.0.0.1");
        assert_eq!(agreed(service("10.0.0.2", &["10.0.0.1"]), old()), "10.0.0.2");
        assert_eq!(agreed(service("", &["10.0.0.1"]), old()), "");
        assert_eq!(agreed(service("10.0.0.2", &["10.0.0.3"]), old()), "10.0.0.3");
    }

    #[test]
    fn headless_services_without_selector_are_of_both_families() {
        let mut service = json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}});
        complete_families(&mut service);
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        let mut service = json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}}});
        complete_families(&mut service);
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
    }
}
