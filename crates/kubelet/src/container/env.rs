//! A container's environment: services, then `envFrom`, then `env`, each later word winning, with upstream's expansion.
//! Pure: the objects referred to come in already read.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod, Service};

use super::expand::expand;
use super::fieldref::{self, Facts};
use crate::podutil;

/// ConfigMaps, Secrets and files as the container's environment needs them. Absent objects are not in the maps.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: HashMap<String, BTreeMap<String, String>>,
    pub secrets: HashMap<String, BTreeMap<String, Vec<u8>>>,
    /// By volume name and path: `KEY=value` lines.
    pub files: HashMap<(String, String), BTreeMap<String, String>>,
}

/// Names and values in the order in which they take effect.
///
/// # Errors
/// The message of CreateContainerConfigError.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Vec<(String, String)>, String> {
    let namespace = podutil::namespace(pod);
    let mut given = BTreeMap::new();
    from_objects(container, sources, &mut given)?;
    // Later references see services only where nothing else has the name.
    let mut known: HashMap<String, String> = HashMap::new();
    let mut result: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| match result.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => result.push((name.to_owned(), value)),
    };
    for (name, value) in given {
        known.insert(name.clone(), value.clone());
        set(&name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = if let Some(source) = &variable.value_from {
            match from_source(pod, namespace, container, source, sources, facts)? {
                Some(value) => value,
                None => continue,
            }
        } else {
            let lookup = |name: &str| known.get(name).or_else(|| services.get(name)).cloned();
            expand(variable.value.as_deref().unwrap_or_default(), lookup)
        };
        known.insert(variable.name.clone(), value.clone());
        set(&variable.name, value);
    }
    for (name, value) in services {
        if !known.contains_key(name) {
            set(name, value.clone());
        }
    }
    Ok(result)
}

fn from_objects(container: &Container, sources: &Sources, given: &mut BTreeMap<String, String>) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(data) => given.extend(data.iter().map(|(k, v)| (format!("{prefix}{k}"), v.clone()))),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        } else if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(data) => {
                    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                    given.extend(data.iter().map(|(k, v)| (format!("{prefix}{k}"), text(v))));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        }
    }
    Ok(())
}

/// None if an optional source is not there: the variable is left out.
fn from_source(
    pod: &Pod,
    namespace: &str,
    container: &Container,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Option<String>, String> {
    if let Some(reference) = &source.field_ref {
        return fieldref::field(pod, &reference.field_path, facts).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let other = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let of = match other {
            Some(name) => podutil::find_container(pod, name)
                .map(|(_, container)| container)
                .ok_or_else(|| format!("container {name} not found"))?,
            None => container,
        };
        return fieldref::resource(of, selector, facts).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(data) = sources.config_maps.get(&reference.name) else {
            return absent(optional, || format!("configmap \"{}\" not found", reference.name));
        };
        let missing = || format!("couldn't find key {} in ConfigMap {namespace}/{}", reference.key, reference.name);
        return data.get(&reference.key).map_or_else(|| absent(optional, missing), |value| Ok(Some(value.clone())));
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(data) = sources.secrets.get(&reference.name) else {
            return absent(optional, || format!("secret \"{}\" not found", reference.name));
        };
        let missing = || format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name);
        let text = |value: &Vec<u8>| Ok(Some(String::from_utf8_lossy(value).into_owned()));
        return data.get(&reference.key).map_or_else(|| absent(optional, missing), text);
    }
    if let Some(reference) = &source.file_key_ref {
        let optional = reference.optional == Some(true);
        let key = (reference.volume_name.clone(), reference.path.clone());
        let Some(data) = sources.files.get(&key) else {
            let missing = || format!("environment variable file \"{}\" not found in volume \"{}\"", key.1, key.0);
            return absent(optional, missing);
        };
        let missing = || format!("environment variable key \"{}\" not found in file \"{}\"", reference.key, key.1);
        return data.get(&reference.key).map_or_else(|| absent(optional, missing), |value| Ok(Some(value.clone())));
    }
    Err("the environment variable's source is empty".to_owned())
}

fn absent(optional: bool, message: impl FnOnce() -> String) -> Result<Option<String>, String> {
    if optional { Ok(None) } else { Err(message()) }
}

/// Docker-links style variables of services: those of the pod's namespace if it enables service links, and always the API
/// server's own (`KUBERNETES_SERVICE_HOST` …).
pub fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let meta = &service.metadata;
        let (Some(name), Some(of)) = (meta.name.as_deref(), meta.namespace.as_deref()) else { continue };
        let master = of == "default" && name == "kubernetes";
        if !(master || links && of == namespace) {
            continue;
        }
        // The API server's service gives way to one of the same name in the pod's own namespace.
        let own = of == namespace;
        let mut one = variables_of(name, service);
        if own {
            variables.append(&mut one);
        } else {
            for (name, value) in one {
                variables.entry(name).or_insert(value);
            }
        }
    }
    variables
}

fn variables_of(name: &str, service: &Service) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let Some(spec) = &service.spec else { return variables };
    let address = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None");
    let (Some(address), Some(ports)) = (address, spec.ports.as_ref().filter(|ports| !ports.is_empty())) else {
        return variables;
    };
    let prefix = name.to_uppercase().replace('-', "_");
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
    for (index, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let name = name.to_uppercase().replace('-', "_");
            variables.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.insert(port_prefix.clone(), url);
        variables.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{port_prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{port_prefix}_ADDR"), address.to_owned());
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FACTS: Facts<'static> =
        Facts { node_ips: &[], pod_ips: &[], node_cpu_milli: 1, node_memory_bytes: 1, node_storage_bytes: 1 };

    fn check(container: serde_json::Value, expected: Result<&str, &str>) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap();
        let mut container_json = container;
        container_json["name"] = "c".into();
        let container: Container = serde_json::from_value(container_json).unwrap();
        let sources = Sources {
            config_maps: [("cm".to_owned(), BTreeMap::from([("k".to_owned(), "v".to_owned())]))].into(),
            secrets: [("s".to_owned(), BTreeMap::from([("p".to_owned(), b"w".to_vec())]))].into(),
            files: HashMap::new(),
        };
        let services = BTreeMap::from([("SVC".to_owned(), "1.2.3.4".to_owned()), ("A".to_owned(), "svc".to_owned())]);
        let result = environment(&pod, &container, &services, &sources, &FACTS);
        let text = result.map(|list| list.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "));
        assert_eq!(text, expected.map(str::to_owned).map_err(str::to_owned));
    }

    #[test]
    fn order_and_expansion() {
        let env = json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(SVC)$(LATER)"},
            {"name": "A", "value": "$(A)2"}, {"name": "LATER", "value": "x"}]});
        check(env, Ok("A=12 B=11.2.3.4$(LATER) LATER=x SVC=1.2.3.4"));
    }

    #[test]
    fn references() {
        let from = json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
            {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}}]});
        check(from, Ok("P_k=v p=w N=p A=svc SVC=1.2.3.4"));
    }

    #[test]
    fn what_is_missing_is_named_as_upstream_does() {
        let key = |from: serde_json::Value| json!({"env": [{"name": "X", "valueFrom": from}]});
        check(
            key(json!({"configMapKeyRef": {"name": "cm", "key": "z"}})),
            Err("couldn't find key z in ConfigMap ns/cm"),
        );
        check(key(json!({"secretKeyRef": {"name": "t", "key": "z"}})), Err("secret \"t\" not found"));
        check(json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), Err("configmap \"none\" not found"));
    }

    #[test]
    fn services_become_variables() {
        let service = |ns: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"namespace": ns, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "http-x", "port": 80, "protocol": "TCP"}]}}))
            .unwrap()
        };
        let all = [
            service("default", "kubernetes", "10.0.0.1"),
            service("ns", "my-web", "10.0.0.2"),
            service("ns", "headless", "None"),
            service("other", "x", "10.0.0.3"),
        ];
        let names = |links: bool| {
            let variables = service_variables(all.iter(), "ns", links);
            variables.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(true).matches("MY_WEB").count(), 8);
        assert!(names(true).contains("MY_WEB_PORT_80_TCP=tcp://10.0.0.2:80"));
        assert!(names(true).contains("MY_WEB_SERVICE_PORT_HTTP_X=80"));
        assert!(!names(false).contains("MY_WEB") && names(false).contains("KUBERNETES_SERVICE_HOST=10.0.0.1"));
    }
}
