//! What counts against a ResourceQuota: the one place that says how much of what an object uses, for admission, which charges
//! it in the transaction that writes the object, and for the controller, which counts anew what is there.
//!
//! Objects and quotas are JSON. A kind is named by group and plural. Names of amounts are those of `spec.hard`: `pods`,
//! `requests.cpu`, `count/deployments.apps`, `gold.storageclass.storage.k8s.io/requests.storage`, …
//!
//! Must not know: where quotas and objects are kept, or what time it is.

mod charge;
mod pod;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::meta;
use crate::quantity::{Format, Quantity};

pub use charge::{Charge, Write, charge};

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Upstream's group for device requests.
const DEVICES: &str = "resource.k8s.io";
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// `AllocationResultsMaxSize`: what a request for all devices is counted as.
const DEVICES_MAX: i64 = 32;

/// How a kind is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Pod,
    Service,
    VolumeClaim,
    DeviceClaim,
    /// One for each object; some kinds have an old name besides `count/…`.
    Count {
        alias: Option<&'static str>,
    },
    /// Never.
    Ignored,
}

impl Measure {
    fn of(group: &str, plural: &str) -> Measure {
        match (group, plural) {
            ("", "pods") => Measure::Pod,
            ("", "services") => Measure::Service,
            ("", "persistentvolumeclaims") => Measure::VolumeClaim,
            (DEVICES, "resourceclaims") => Measure::DeviceClaim,
            ("", "configmaps") => Measure::Count { alias: Some("configmaps") },
            ("", "resourcequotas") => Measure::Count { alias: Some("resourcequotas") },
            ("", "replicationcontrollers") => Measure::Count { alias: Some("replicationcontrollers") },
            ("", "secrets") => Measure::Count { alias: Some("secrets") },
            ("", "bindings" | "componentstatuses" | "events") | ("events.k8s.io", "events") => Measure::Ignored,
            ("authentication.k8s.io", "tokenreviews" | "selfsubjectreviews") => Measure::Ignored,
            (
                "authorization.k8s.io",
                "subjectaccessreviews"
                | "selfsubjectaccessreviews"
                | "localsubjectaccessreviews"
                | "selfsubjectrulesreviews",
            ) => Measure::Ignored,
            _ => Measure::Count { alias: None },
        }
    }
}

/// `count/<plural>.<group>`
fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// Whether the amount `name` of a quota is one of this kind's.
pub fn concerns(group: &str, plural: &str, name: &str) -> bool {
    let measure = Measure::of(group, plural);
    if measure != Measure::Ignored && name == count_name(group, plural) {
        return true;
    }
    match measure {
        Measure::Pod => pod::concerns(name),
        Measure::Service => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        Measure::VolumeClaim => {
            let own = |name: &str| matches!(name, "persistentvolumeclaims" | "requests.storage");
            own(name) || name.split_once(BY_STORAGE_CLASS).is_some_and(|(_, rest)| own(rest))
        }
        Measure::DeviceClaim => name.ends_with(BY_DEVICE_CLASS),
        Measure::Count { alias } => alias == Some(name),
        Measure::Ignored => false,
    }
}

/// The kind that the amount `name` is of, as group and plural; none if no kind can have it.
pub fn kind_of(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return (Measure::of(group, plural) != Measure::Ignored).then_some((group, plural));
    }
    let core = [
        "pods",
        "services",
        "persistentvolumeclaims",
        "configmaps",
        "resourcequotas",
        "replicationcontrollers",
        "secrets",
    ];
    let known = core.iter().map(|plural| ("", *plural)).chain([(DEVICES, "resourceclaims")]);
    known.into_iter().find(|(group, plural)| concerns(group, plural, name))
}

/// Whether how much an object of this kind uses depends on what is in it. If not, each uses one.
pub fn needs_content(group: &str, plural: &str) -> bool {
    !matches!(Measure::of(group, plural), Measure::Count { .. } | Measure::Ignored)
}

/// What one object uses. `now` is in seconds since the epoch: a pod that should long be gone uses nothing any more.
pub fn usage(group: &str, plural: &str, object: &Value, now: i64) -> Amounts {
    let mut used = Amounts::from([(count_name(group, plural), one())]);
    match Measure::of(group, plural) {
        Measure::Pod => pod::add_usage(object, now, &mut used),
        Measure::Service => add_service(object, &mut used),
        Measure::VolumeClaim => add_volume_claim(object, &mut used),
        Measure::DeviceClaim => add_device_claim(object, &mut used),
        Measure::Count { alias } => used.extend(alias.map(|alias| (alias.to_owned(), one()))),
        Measure::Ignored => used.clear(),
    }
    used
}

/// What all `objects` of a kind use of what `quota` counts of it, with a zero for each that nobody uses.
pub fn total<'a>(
    group: &str,
    plural: &str,
    quota: &Value,
    objects: impl Iterator<Item = &'a Value>,
    now: i64,
) -> Amounts {
    let mut total: Amounts = hard(quota, "spec").into_keys().map(|name| (name, Quantity::ZERO)).collect();
    total.retain(|name, _| concerns(group, plural, name));
    for object in objects.filter(|object| in_scope(group, plural, quota, object)) {
        for (name, amount) in usage(group, plural, object, now) {
            if let Some(sum) = total.get_mut(&name) {
                *sum += amount;
            }
        }
    }
    total
}

/// Whether `quota` has a scope at all. One that has counts nothing but pods, and volume claims by their attributes class.
pub fn is_scoped(quota: &Value) -> bool {
    scopes(quota).next().is_some()
}

/// Whether the object is of those that `quota` is about: in all its scopes.
pub fn in_scope(group: &str, plural: &str, quota: &Value, object: &Value) -> bool {
    scopes(quota).all(|scope| match Measure::of(group, plural) {
        Measure::Pod => pod::in_scope(&scope, object),
        Measure::VolumeClaim => scope.name == "VolumeAttributesClass" && in_attributes_class(&scope, object),
        _ => false,
    })
}

/// One of a quota's conditions on an object.
struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: Vec<&'a str>,
}

impl Scope<'_> {
    /// As a label selector that sees one label, or none.
    fn selects(&self, value: &str) -> bool {
        match self.operator {
            "Exists" => !value.is_empty(),
            "DoesNotExist" => value.is_empty(),
            "In" => !value.is_empty() && self.values.contains(&value),
            "NotIn" => value.is_empty() || !self.values.contains(&value),
            _ => false,
        }
    }
}

fn scopes(quota: &Value) -> impl Iterator<Item = Scope<'_>> {
    let named = meta::strings(meta::at(quota, &["spec", "scopes"])).into_iter();
    let named = named.map(|name| Scope { name, operator: "Exists", values: Vec::new() });
    let selected = list(quota, &["spec", "scopeSelector", "matchExpressions"]).map(|term| Scope {
        name: meta::str_at(term, &["scopeName"]),
        operator: meta::str_at(term, &["operator"]),
        values: meta::strings(term.get("values")),
    });
    named.chain(selected)
}

/// A claim that changes its class is charged for the one it has, the one it gets, and the one it wants.
fn in_attributes_class(scope: &Scope<'_>, claim: &Value) -> bool {
    let classes = [
        &["spec", "volumeAttributesClassName"][..],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ];
    let named: BTreeSet<&str> =
        classes.iter().map(|path| meta::str_at(claim, path)).filter(|class| !class.is_empty()).collect();
    if named.is_empty() { scope.selects("") } else { named.into_iter().any(|class| scope.selects(class)) }
}

fn one() -> Quantity {
    count(1)
}

fn count(number: usize) -> Quantity {
    Quantity::new(i64::try_from(number).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn list<'a>(value: &'a Value, path: &[&str]) -> std::slice::Iter<'a, Value> {
    meta::at(value, path).and_then(Value::as_array).map_or(&[][..], Vec::as_slice).iter()
}

/// `status.hard` or `spec.hard` of a quota.
pub fn hard(quota: &Value, part: &str) -> Amounts {
    amounts(meta::at(quota, &[part, "hard"]))
}

/// A map of names to quantities; what is no quantity is left out.
pub fn amounts(value: Option<&Value>) -> Amounts {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

/// The map that [`amounts`] reads.
pub fn to_value(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::String(amount.to_string()))).collect::<Map<_, _>>().into()
}

/// Node ports are counted by what is asked for: they are not given out yet when a service is admitted.
fn add_service(service: &Value, used: &mut Amounts) {
    let ports = || list(service, &["spec", "ports"]);
    let chosen = || ports().filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0).count();
    let unasked = meta::at(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false));
    let (node_ports, balancers) = match meta::str_at(service, &["spec", "type"]) {
        "NodePort" => (ports().count(), 0),
        "LoadBalancer" if unasked => (ports().count(), 1),
        "LoadBalancer" => (chosen(), 1),
        _ => (0, 0),
    };
    used.insert("services".to_owned(), one());
    used.insert("services.nodeports".to_owned(), count(node_ports));
    used.insert("services.loadbalancers".to_owned(), count(balancers));
}

fn add_volume_claim(claim: &Value, used: &mut Amounts) {
    let mut add = |name: &str, amount: Quantity| {
        used.insert(name.to_owned(), amount);
        let beta = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class");
        let class = beta.unwrap_or(meta::str_at(claim, &["spec", "storageClassName"]));
        if !class.is_empty() {
            used.insert(format!("{class}{BY_STORAGE_CLASS}{name}"), amount);
        }
    };
    add("persistentvolumeclaims", one());
    // Whole bytes: a quota's status may hold no fraction of one.
    let whole = |path: &[&str]| {
        let mut amount = meta::at(claim, path).and_then(|amount| Quantity::from_value(amount).ok())?;
        amount.round_up(0);
        Some(amount)
    };
    if let Some(asked) = whole(&["spec", "resources", "requests", "storage"]) {
        // A claim that grows is charged for what it was given, until that is taken back.
        let given = whole(&["status", "allocatedResources", "storage"]).unwrap_or(asked);
        add("requests.storage", asked.max(given));
    }
}

/// Devices by class. Of alternatives the most that any of them asks for.
fn add_device_claim(claim: &Value, used: &mut Amounts) {
    for request in list(claim, &["spec", "devices", "requests"]) {
        let mut asked: BTreeMap<&str, i64> = BTreeMap::new();
        let exact = request.get("exactly").filter(|exact| !exact.is_null());
        for choice in exact.into_iter().chain(list(request, &["firstAvailable"])) {
            let number = match meta::str_at(choice, &["allocationMode"]) {
                "All" => DEVICES_MAX,
                _ => choice.get("count").and_then(Value::as_i64).unwrap_or(1),
            };
            let most = asked.entry(meta::str_at(choice, &["deviceClassName"])).or_insert(0);
            *most = number.max(*most);
        }
        for (class, number) in asked {
            *used.entry(format!("{class}{BY_DEVICE_CLASS}")).or_default() += Quantity::new(number, Format::DecimalSi);
        }
    }
}
