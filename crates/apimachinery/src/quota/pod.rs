//! What a pod uses: itself, and what its containers ask for and may take.

use serde_json::Value;

use super::{Amounts, Scope, list, one};
use crate::meta;
use crate::names;
use crate::quantity::Quantity;

const REQUESTS: &str = "requests.";
const HUGE_PAGES: &str = "hugepages-";
const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Amounts that, once a quota limits them, every container has to give. Upstream calls this a mistake that stays.
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

pub fn concerns(name: &str) -> bool {
    let bare = name.strip_prefix(REQUESTS).or(name.strip_prefix("limits.")).unwrap_or(name);
    let huge = name.strip_prefix(REQUESTS).unwrap_or(name).starts_with(HUGE_PAGES);
    let extended = name.starts_with(REQUESTS) && !is_native(name);
    name == "pods" || COMPUTE.contains(&bare) || huge || extended
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    let own = !is_native(name) && !name.starts_with(REQUESTS);
    // Devices that are asked for by their class look like native ones.
    (own || name.starts_with("deviceclass.resource.kubernetes.io/"))
        && names::qualified_name(&format!("{REQUESTS}{name}")).is_empty()
}

/// Adds what the pod uses as long as it runs, is about to, or has time left to end.
pub fn add_usage(pod: &Value, now: i64, used: &mut Amounts) {
    if is_over(pod, now) {
        return;
    }
    used.extend(compute(&requests(pod), &limits(pod)));
}

fn is_over(pod: &Value, now: i64) -> bool {
    if matches!(meta::str_at(pod, &["status", "phase"]), "Failed" | "Succeeded") {
        return true;
    }
    end_of(pod).is_some_and(|end| now > end)
}

/// When a pod that is being deleted stops being charged for, whether or not its node has let go of it: seconds since the epoch.
pub fn end_of(pod: &Value) -> Option<i64> {
    let at: jiff::Timestamp = meta::str_at(pod, &["metadata", "deletionTimestamp"]).parse().ok()?;
    let grace = meta::at(pod, &["metadata", "deletionGracePeriodSeconds"])?.as_i64()?;
    Some(at.as_second().saturating_add(grace))
}

/// The names under which requests and limits are charged.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), one())]);
    for (name, amount) in requests {
        let plain = COMPUTE.contains(&name.as_str()) || name.starts_with(HUGE_PAGES);
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || is_extended(name) {
            used.insert(format!("{REQUESTS}{name}"), *amount);
        }
    }
    let limited = limits.iter().filter(|(name, _)| COMPUTE.contains(&name.as_str()));
    used.extend(limited.map(|(name, amount)| (format!("limits.{name}"), *amount)));
    used
}

fn containers<'a>(pod: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    list(pod, &["spec", field])
}

/// Upstream's `PodRequests`, with what a resize has yet to give back.
fn requests(pod: &Value) -> Amounts {
    let mut sum = worst_moment(pod, |container| {
        let mut wanted = resources(container, "requests");
        let Some(status) = status_of(pod, meta::str_at(container, &["name"])) else { return wanted };
        if status.get("resources").is_none_or(Value::is_null) {
            return wanted;
        }
        if is_infeasible(pod) {
            wanted.clear();
        }
        raise(&mut wanted, &resources(status, "requests"));
        raise(&mut wanted, &super::amounts(status.get("allocatedResources")));
        wanted
    });
    sum.extend(whole_pod(pod, "requests"));
    for (name, amount) in overhead(pod) {
        *sum.entry(name).or_default() += amount;
    }
    sum
}

/// Upstream's `PodLimits`: overhead counts only where there is a limit.
fn limits(pod: &Value) -> Amounts {
    let mut sum = worst_moment(pod, |container| {
        let mut wanted = resources(container, "limits");
        if let Some(status) = status_of(pod, meta::str_at(container, &["name"])) {
            if is_infeasible(pod) && !status.get("resources").is_none_or(Value::is_null) {
                wanted.clear();
            }
            raise(&mut wanted, &resources(status, "limits"));
        }
        wanted
    });
    sum.extend(whole_pod(pod, "limits"));
    for (name, amount) in overhead(pod) {
        if let Some(limit) = sum.get_mut(&name).filter(|limit| !limit.is_zero()) {
            *limit += amount;
        }
    }
    sum
}

fn resources(holder: &Value, field: &str) -> Amounts {
    super::amounts(meta::at(holder, &["resources", field]))
}

fn overhead(pod: &Value) -> Amounts {
    super::amounts(meta::at(pod, &["spec", "overhead"]))
}

/// What is given for the pod as a whole stands for its containers.
fn whole_pod(pod: &Value, field: &str) -> Amounts {
    let mut given = super::amounts(meta::at(pod, &["spec", "resources", field]));
    given.retain(|name, _| matches!(name.as_str(), "cpu" | "memory") || name.starts_with(HUGE_PAGES));
    given
}

fn status_of<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let mut all = list(pod, &["status", "containerStatuses"]).chain(list(pod, &["status", "initContainerStatuses"]));
    all.find(|status| meta::str_at(status, &["name"]) == container)
}

fn is_infeasible(pod: &Value) -> bool {
    list(pod, &["status", "conditions"])
        .any(|condition| condition["type"] == "PodResizePending" && condition["reason"] == "Infeasible")
}

fn raise(amounts: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let own = amounts.entry(name.clone()).or_insert(*amount);
        if *amount > *own {
            *own = *amount;
        }
    }
}

fn add(amounts: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        *amounts.entry(name.clone()).or_default() += *amount;
    }
}

/// All containers and sidecars together, or an init container with the sidecars started before it, whichever is more.
fn worst_moment(pod: &Value, of: impl Fn(&Value) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    containers(pod, "containers").for_each(|container| add(&mut sum, &of(container)));
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in containers(pod, "initContainers") {
        let mut moment = of(container);
        if meta::str_at(container, &["restartPolicy"]) == "Always" {
            add(&mut sum, &moment);
            add(&mut sidecars, &moment);
            moment.clone_from(&sidecars);
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut starting, &moment);
    }
    raise(&mut sum, &starting);
    sum
}

/// `must specify …` for what the quota limits and a container leaves open; `limited` are the quota's names.
pub fn missing<'a>(pod: &Value, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    if !whole_pod(pod, "requests").is_empty() || !whole_pod(pod, "limits").is_empty() {
        return None;
    }
    let mut limited: Vec<&str> = limited.filter(|name| DEMANDED.contains(name)).collect();
    limited.sort_unstable();
    let lacking = |name: &str| {
        let all = containers(pod, "containers").chain(containers(pod, "initContainers"));
        let open = all.filter(|c| !compute(&resources(c, "requests"), &resources(c, "limits")).contains_key(name));
        let mut names: Vec<&str> = open.map(|container| meta::str_at(container, &["name"])).collect();
        names.sort_unstable();
        names.dedup();
        (!names.is_empty()).then(|| format!("{name} for: {}", names.join(",")))
    };
    let parts: Vec<String> = limited.into_iter().filter_map(lacking).collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}

/// Whether the pod has an end that was set when it was made.
pub fn is_terminating(pod: &Value) -> bool {
    meta::at(pod, &["spec", "activeDeadlineSeconds"]).and_then(Value::as_i64).is_some_and(|seconds| seconds >= 0)
}

pub fn in_scope(scope: &Scope<'_>, pod: &Value) -> bool {
    match scope.name {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => scope.selects(meta::str_at(pod, &["spec", "priorityClassName"])),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn is_best_effort(pod: &Value) -> bool {
    let told = meta::str_at(pod, &["status", "qosClass"]);
    if !told.is_empty() {
        return told == "BestEffort";
    }
    let asks = |holder: &Value| {
        let all = ["requests", "limits"].map(|field| resources(holder, field));
        let positive =
            |name: &str| all.iter().any(|list| list.get(name).is_some_and(|amount| *amount > Quantity::ZERO));
        positive("cpu") || positive("memory")
    };
    let mut containers = containers(pod, "containers").chain(containers(pod, "initContainers"));
    !asks(&pod["spec"]) && !containers.any(asks)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| {
        let named = list(term, &["namespaces"]).next().is_some();
        named || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |when: &str| list(pod, &["spec", "affinity", kind, when]);
        terms("requiredDuringSchedulingIgnoredDuringExecution").any(crosses)
            || terms("preferredDuringSchedulingIgnoredDuringExecution").any(|term| crosses(&term["podAffinityTerm"]))
    })
}
