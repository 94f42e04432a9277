//! Rules over several fields of a pod's spec, in pods and in templates. What one field's value decides is in the schema's rules.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use serde_json::json;

use super::super::common::{items, unique_names};
use super::CONTAINER_LISTS;

/// A pod about to be created.
pub fn new_pod(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if items(spec, "ephemeralContainers").next().is_some() {
        errors.push(Error::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    let gated = items(spec, "schedulingGates").next().is_some();
    if gated && !meta::str_at(spec, &["nodeName"]).is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.push(Error::forbidden(&path.child("nodeName"), why));
    }
    validate_spec(spec, &path, errors);
}

/// As a pod's spec, for the template of a workload; `path` is the template's.
pub fn validate_template(template: &Value, path: &Path, errors: &mut ErrorList) {
    let (spec, path) = (&template["spec"], path.child("spec"));
    if items(spec, "ephemeralContainers").next().is_some() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(Error::forbidden(&path.child("ephemeralContainers"), why));
    }
    validate_spec(spec, &path, errors);
}

fn validate_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    validate_names(spec, path, errors);
    let host_network = is_true(spec, "hostNetwork");
    let mut host_ports: Vec<(i64, &Value, &Value)> = Vec::new();
    for list in CONTAINER_LISTS {
        for (index, container) in items(spec, list).enumerate() {
            let at = path.child(list).index(index);
            validate_mounts(spec, container, &at, errors);
            validate_security(container, &at, errors);
            validate_ports(container, host_network, &at, errors);
            if list == "initContainers" {
                validate_init(container, &at, errors);
            } else if list == "containers" {
                validate_host_ports(container, &mut host_ports, &at, errors);
            }
        }
    }
    if meta::str_at(spec, &["dnsPolicy"]) == "None" && items(&spec["dnsConfig"], "nameservers").next().is_none() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(Error::required(&path.child("dnsConfig").child("nameservers"), why));
    }
    if is_true(spec, "hostPID") && is_true(spec, "shareProcessNamespace") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&path.child("shareProcessNamespace"), &json!(true), why));
    }
    validate_spreading(spec, path, errors);
    validate_sysctls(spec, path, errors);
}

/// As upstream's `ValidateSysctls`: names of parts joined by dots or slashes, each once.
fn validate_sysctls(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("securityContext").child("sysctls");
    let mut seen = Vec::new();
    for (index, sysctl) in items(&spec["securityContext"], "sysctls").enumerate() {
        let (name, at) = (meta::str_at(sysctl, &["name"]), path.index(index).child("name"));
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if !is_sysctl(name) {
            let why = format!("must have at most {SYSCTL_LENGTH_MAX} characters and match regex {SYSCTL_PATTERN}");
            errors.push(Error::invalid(&at, &json!(name), &why));
        } else if seen.contains(&name) {
            errors.push(Error::duplicate(&at, &json!(name)));
        }
        seen.push(name);
    }
}

const SYSCTL_LENGTH_MAX: usize = 253;
const SYSCTL_PATTERN: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part = |part: &str| {
        part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || matches!(c, '-' | '_'))
    };
    name.len() <= SYSCTL_LENGTH_MAX && name.split(['.', '/']).all(part)
}

fn is_true(object: &Value, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// Names are unique among all containers of a pod; within one list the schema says so.
fn validate_names(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let mut before: Vec<&Value> = Vec::new();
    for list in CONTAINER_LISTS {
        for (index, container) in items(spec, list).enumerate() {
            if before.contains(&&container["name"]) {
                errors.push(Error::duplicate(&path.child(list).index(index).child("name"), &container["name"]));
            }
        }
        before.extend(items(spec, list).map(|c| &c["name"]));
    }
}

fn validate_mounts(spec: &Value, container: &Value, at: &Path, errors: &mut ErrorList) {
    let mut targets: Vec<&str> = Vec::new();
    for (list, field) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        for (index, mount) in items(container, list).enumerate() {
            let at = at.child(list).index(index);
            if !items(spec, "volumes").any(|v| v["name"] == mount["name"]) {
                errors.push(Error::not_found(&at.child("name"), &mount["name"]));
            }
            let target = meta::str_at(mount, &[field]);
            if targets.contains(&target) {
                errors.push(Error::invalid(&at.child(field), &json!(target), "must be unique"));
            }
            targets.push(target);
            for field in ["subPath", "subPathExpr"] {
                validate_descending(meta::str_at(mount, &[field]), &at.child(field), errors);
            }
        }
    }
}

/// A path that stays below where it starts.
fn validate_descending(text: &str, at: &Path, errors: &mut ErrorList) {
    if text.starts_with('/') {
        errors.push(Error::invalid(at, &json!(text), "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(at, &json!(text), "must not contain '..'"));
    }
}

fn validate_security(container: &Value, at: &Path, errors: &mut ErrorList) {
    let Some(context) = container.get("securityContext").filter(|c| c.is_object()) else { return };
    if is_true(context, "privileged") && context.get("allowPrivilegeEscalation") == Some(&json!(false)) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(Error::invalid(&at.child("securityContext"), context, why));
    }
}

fn validate_ports(container: &Value, host_network: bool, at: &Path, errors: &mut ErrorList) {
    unique_names(container, "ports", at, errors);
    for (index, port) in items(container, "ports").enumerate() {
        let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        if host_network && host != 0 && port.get("containerPort").and_then(Value::as_i64) != Some(host) {
            let why = "must match `hostPort` when `hostNetwork` is true";
            errors.push(Error::invalid(
                &at.child("ports").index(index).child("containerPort"),
                &port["containerPort"],
                why,
            ));
        }
    }
}

fn validate_host_ports<'a>(
    container: &'a Value,
    taken: &mut Vec<(i64, &'a Value, &'a Value)>,
    at: &Path,
    errors: &mut ErrorList,
) {
    for (index, port) in items(container, "ports").enumerate() {
        let host = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0);
        let claim = (host, &port["protocol"], &port["hostIP"]);
        if host != 0 && taken.contains(&claim) {
            let shown =
                json!(format!("{}/{}/{host}", meta::str_at(port, &["protocol"]), meta::str_at(port, &["hostIP"])));
            errors.push(Error::duplicate(&at.child("ports").index(index).child("hostPort"), &shown));
        }
        taken.push(claim);
    }
}

/// An init container ends before the next begins, unless it is a sidecar.
fn validate_init(container: &Value, at: &Path, errors: &mut ErrorList) {
    if meta::str_at(container, &["restartPolicy"]) == "Always" {
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container.get(field).is_some_and(|v| !v.is_null()) {
            errors.push(Error::forbidden(
                &at.child(field),
                "may not be set for init containers without restartPolicy=Always",
            ));
        }
    }
}

fn validate_spreading(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen: Vec<(&Value, &Value)> = Vec::new();
    for (index, constraint) in items(spec, "topologySpreadConstraints").enumerate() {
        let at = path.child("topologySpreadConstraints").index(index);
        let pair = (&constraint["topologyKey"], &constraint["whenUnsatisfiable"]);
        if seen.contains(&pair) {
            let shown = format!("{{{}, {}}}", pair.0.as_str().unwrap_or_default(), pair.1.as_str().unwrap_or_default());
            errors.push(Error::duplicate(&at.child("{topologyKey, whenUnsatisfiable}"), &json!(shown)));
        }
        seen.push(pair);
        if let Some(minimum) = constraint.get("minDomains").filter(|m| !m.is_null())
            && constraint["whenUnsatisfiable"] != "DoNotSchedule"
        {
            let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            errors.push(Error::invalid(&at.child("minDomains"), minimum, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_have_names_of_their_own() {
        for good in ["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "a-b.c1"] {
            assert!(is_sysctl(good), "{good}");
        }
        for bad in ["foo-", "bar..", "_a", "UPPER.case", ".a", "a b", &"a".repeat(254)] {
            assert!(!is_sysctl(bad), "{bad}");
        }
        let spec = json!({"securityContext": {"sysctls": [
            {"name": "kernel.shmmax", "value": "1"}, {"name": "kernel.shmmax", "value": "2"}, {"name": "bar.."},
        ]}});
        let mut errors = ErrorList::new();
        validate_sysctls(&spec, &Path::new("spec"), &mut errors);
        let told: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
        assert_eq!(told[0], "spec.securityContext.sysctls[1].name: Duplicate value: \"kernel.shmmax\"");
        assert!(
            told[1]
                .starts_with("spec.securityContext.sysctls[2].name: Invalid value: \"bar..\": must have at most 253")
        );
    }

    fn check(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        new_pod(&json!({ "spec": spec }), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers_agree_with_each_other_and_the_pod() {
        let probe = json!({"name": "a", "readinessProbe": {"exec": {}}});
        assert_eq!(
            check(json!({"initContainers": [probe], "containers": [{"name": "a"}]})),
            [
                "spec.containers[0].name: Duplicate value: \"a\"",
                "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always"
            ]
        );
        let mounts = json!([{"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/a", "subPath": "../b"}]);
        assert_eq!(
            check(json!({"volumes": [{"name": "v"}], "containers": [{"name": "a", "volumeMounts": mounts}]})),
            [
                "spec.containers[0].volumeMounts[1].name: Not found: \"w\"",
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                "spec.containers[0].volumeMounts[1].subPath: Invalid value: \"../b\": must not contain '..'"
            ]
        );
        let port = json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"});
        let twice = json!([{"name": "a", "ports": [port]}, {"name": "b", "ports": [port]}]);
        assert_eq!(check(json!({"containers": twice})).len(), 1);
        assert_eq!(check(json!({"containers": [], "schedulingGates": [{"name": "g"}], "nodeName": "n"})).len(), 1);
    }
}
