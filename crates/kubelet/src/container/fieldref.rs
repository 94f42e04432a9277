//! The downward API: values of a pod's own fields and of its containers' resources.

use std::net::IpAddr;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::podutil;

/// What of the node and the running pod the downward API may show.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub node_ips: &'a [IpAddr],
    pub pod_ips: &'a [IpAddr],
    /// What a container without a limit may use.
    pub node_cpu_milli: i64,
    pub node_memory_bytes: i64,
    pub node_storage_bytes: i64,
}

/// # Errors
/// If the path names nothing that may be shown.
pub fn field(pod: &Pod, path: &str, facts: &Facts<'_>) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = podutil::spec(pod);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("invalid subscript in fieldPath: {path}")),
        };
        return Ok(entries.as_ref().and_then(|entries| entries.get(key)).cloned().unwrap_or_default());
    }
    let joined = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let pod_ips = if podutil::is_host_network(pod) { facts.node_ips } else { facts.pod_ips };
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "spec.restartPolicy" => text(&spec.restart_policy),
        "spec.schedulerName" => text(&spec.scheduler_name),
        "status.hostIP" => facts.node_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.hostIPs" => joined(facts.node_ips),
        "status.podIP" => pod_ips.first().map(IpAddr::to_string).unwrap_or_default(),
        "status.podIPs" => joined(pod_ips),
        "status.phase" => podutil::phase(pod).to_owned(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['key']` into map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let inner = rest.strip_suffix(']')?;
    let key = ['\'', '"'].iter().find_map(|q| inner.strip_prefix(*q)?.strip_suffix(*q));
    Some((map, key?))
}

/// One `key="value"` a line, in order of keys, values quoted as Go does.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", go_quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A resource of a container, in units of the selector's divisor, rounded up.
///
/// # Errors
/// If the resource or the divisor cannot be understood.
pub fn resource(container: &Container, selector: &ResourceFieldSelector, facts: &Facts<'_>) -> Result<String, String> {
    let unsupported = || format!("unsupported container resource: {}", selector.resource);
    let (side, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let value = match side {
        "limits" => podutil::limit(resources, name),
        "requests" => podutil::request(resources, name),
        _ => return Err(unsupported()),
    };
    let format = apimachinery::quantity::Format::BinarySi;
    let of_node = || match (side, name) {
        ("limits", "cpu") => Quantity::from_milli(facts.node_cpu_milli, format),
        ("limits", "memory") => Quantity::new(facts.node_memory_bytes, format),
        ("limits", "ephemeral-storage") => Quantity::new(facts.node_storage_bytes, format),
        _ => Quantity::ZERO,
    };
    let value = value.filter(|value| !value.is_zero()).unwrap_or_else(of_node);
    let divisor = match selector.divisor.as_ref().map(|divisor| Quantity::parse(&divisor.0)) {
        None => Quantity::new(1, format),
        Some(Ok(divisor)) if divisor.is_zero() => Quantity::new(1, format),
        Some(Ok(divisor)) => divisor,
        Some(Err(error)) => return Err(format!("invalid divisor of {}: {error}", selector.resource)),
    };
    let (value, divisor) = match name {
        "cpu" => (value.milli_value(), divisor.milli_value()),
        _ => (value.value(), divisor.value()),
    };
    let quotient = i128::from(value) + i128::from(divisor.max(1)) - 1;
    Ok((quotient / i128::from(divisor.max(1))).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'static> =
        Facts { node_ips: &[], pod_ips: &[], node_cpu_milli: 2000, node_memory_bytes: 1 << 30, node_storage_bytes: 0 };

    #[test]
    fn fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "labels": {"b": "2", "a": "1\n\"x\""}},
            "spec": {"containers": [], "serviceAccountName": "sa"},
        }))
        .unwrap();
        let get = |path: &str| field(&pod, path, &FACTS);
        assert_eq!(get("metadata.name").unwrap(), "p");
        assert_eq!(get("metadata.labels['b']").unwrap(), "2");
        assert_eq!(get("metadata.labels['none']").unwrap(), "");
        assert_eq!(get("metadata.labels").unwrap(), "a=\"1\\n\\\"x\\\"\"\nb=\"2\"");
        assert!(get("spec.containers").is_err() && get("spec['x']").is_err());
    }

    #[test]
    fn resources_are_divided_rounding_up_and_fall_back_to_the_node() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "resources": {"limits": {"memory": "65Mi"}, "requests": {"cpu": "250m"}},
        }))
        .unwrap();
        let get = |resource_name: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                resource: resource_name.to_owned(),
                divisor: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(divisor.to_owned())),
                container_name: None,
            };
            resource(&container, &selector, &FACTS)
        };
        assert_eq!(get("limits.memory", "1Mi").unwrap(), "65");
        assert_eq!(get("limits.memory", "1Gi").unwrap(), "1");
        assert_eq!(get("requests.cpu", "1").unwrap(), "1");
        assert_eq!(get("requests.cpu", "1m").unwrap(), "250");
        assert_eq!(get("limits.cpu", "0").unwrap(), "2");
        assert!(get("limits", "1").is_err());
    }
}
