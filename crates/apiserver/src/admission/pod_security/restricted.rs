//! The restricted level: best practice for hardened pods, on top of the baseline.

use std::collections::BTreeSet;

use apimachinery::{Value, meta};

use super::super::pod_spec::items;
use super::baseline::{added_capabilities, seccomp_type};
use super::words::{Faults, Violation, plural, quoted};

const VOLUME_TYPES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SAFE_PROFILES: [&str; 2] = ["RuntimeDefault", "Localhost"];

/// In order of upstream's check names.
pub fn violations(pod: &Value) -> Vec<Violation> {
    let checks: [fn(&Value) -> Option<Violation>; 6] =
        [privilege_escalation, capabilities, volumes, run_as_non_root, run_as_user, seccomp];
    checks.iter().filter_map(|check| check(pod)).collect()
}

/// Windows has neither capabilities nor seccomp.
fn is_windows(pod: &Value) -> bool {
    meta::str_at(pod, &["spec", "os", "name"]) == "windows"
}

fn of_pod<'a>(pod: &'a Value, field: &str) -> Option<&'a Value> {
    meta::at(pod, &["spec", "securityContext", field]).filter(|value| !value.is_null())
}

fn of_container<'a>(container: &'a Value, field: &str) -> Option<&'a Value> {
    meta::at(container, &["securityContext", field]).filter(|value| !value.is_null())
}

fn privilege_escalation(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let declines = |container: &Value| of_container(container, "allowPrivilegeEscalation") == Some(&Value::Bool(false));
    let faults = Faults::where_container(pod, |container| !declines(container));
    let detail = || format!("{} must set securityContext.allowPrivilegeEscalation=false", faults.containers());
    faults.any().then(|| Violation::new("allowPrivilegeEscalation != false", detail()))
}

fn capabilities(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let drops = |container: &Value| {
        meta::strings(of_container(container, "capabilities").and_then(|c| c.get("drop"))).contains(&"ALL")
    };
    let keeping = Faults::where_container(pod, |container| !drops(container));
    let adding = added_capabilities(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if keeping.any() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", keeping.containers()));
    }
    if adding.any() {
        let (containers, added) = (adding.containers(), adding.values());
        details.push(format!("{containers} must not include {added} in securityContext.capabilities.add"));
    }
    (!details.is_empty()).then(|| Violation::new("unrestricted capabilities", details.join("; ")))
}

fn volumes(pod: &Value) -> Option<Violation> {
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in items(pod, "volumes") {
        let sources =
            volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && !value.is_null());
        let bad: Vec<&str> = sources.map(|(key, _)| key.as_str()).filter(|key| !VOLUME_TYPES.contains(key)).collect();
        if !bad.is_empty() {
            names.push(meta::str_at(volume, &["name"]));
            types.extend(bad);
        }
    }
    let word = plural(types.len(), "restricted volume type", "restricted volume types");
    let (volumes, uses) = (plural(names.len(), "volume", "volumes"), plural(names.len(), "uses", "use"));
    let detail =
        || format!("{volumes} {} {uses} {word} {}", quoted(names.iter().copied()), quoted(types.iter().copied()));
    (!names.is_empty()).then(|| Violation::new("restricted volume types", detail()))
}

fn run_as_non_root(pod: &Value) -> Option<Violation> {
    let refuses = Faults::of_contexts(pod, |context| {
        (context.get("runAsNonRoot") == Some(&Value::Bool(false))).then(String::new)
    });
    let reason = "runAsNonRoot != true";
    if refuses.any() {
        let detail = format!("{} must not set securityContext.runAsNonRoot=false", refuses.setters());
        return Some(Violation::new(reason, detail));
    }
    let silent = Faults::where_container(pod, |container| of_container(container, "runAsNonRoot").is_none());
    if of_pod(pod, "runAsNonRoot").is_some() || !silent.any() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", silent.containers());
    Some(Violation::new(reason, detail))
}

fn run_as_user(pod: &Value) -> Option<Violation> {
    let faults = Faults::of_contexts(pod, |context| {
        (context.get("runAsUser").and_then(Value::as_i64) == Some(0)).then(String::new)
    });
    let detail = || format!("{} must not set runAsUser=0", faults.setters());
    faults.any().then(|| Violation::new("runAsUser=0", detail()))
}

fn seccomp(pod: &Value) -> Option<Violation> {
    if is_windows(pod) {
        return None;
    }
    let bad = |context: &Value| seccomp_type(context).filter(|kind| !SAFE_PROFILES.contains(kind)).map(str::to_owned);
    let explicit = Faults::of_contexts(pod, bad);
    if explicit.any() {
        let (setters, values) = (explicit.setters(), explicit.values());
        let detail = format!("{setters} must not set securityContext.seccompProfile.type to {values}");
        return Some(Violation::new("seccompProfile", detail));
    }
    let silent = Faults::where_container(pod, |c| c.get("securityContext").and_then(seccomp_type).is_none());
    let pod_sets = meta::at(pod, &["spec", "securityContext"]).and_then(seccomp_type).is_some();
    if pod_sets || !silent.any() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        silent.containers()
    );
    Some(Violation::new("seccompProfile", detail))
}
