//! Where the connecting subresources of pods, services and nodes lead. Pure: reads the view, opens nothing.

use std::net::IpAddr;

use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};

use super::common::items;
use crate::http::query::Query;
use crate::proxy::{Scheme, StreamKind, logs_path, port_forward_path, remote_command_path};
use crate::view::View;

/// One connecting request.
pub struct Ask<'a> {
    pub view: &'a View,
    pub namespace: &'a str,
    /// As in the URL: `name`, `name:port` or `scheme:name:port` where the subresource is `proxy`.
    pub name: &'a str,
    pub subresource: &'a str,
    pub query: &'a Query,
    /// The path behind `/proxy`, with its leading slash, or empty.
    pub rest: &'a str,
}

/// What to do with the request.
pub enum Connection {
    /// There is nothing to show yet.
    Nothing,
    Logs {
        kubelet: Kubelet,
        path: String,
        verify: bool,
    },
    Stream {
        kubelet: Kubelet,
        path: String,
        kind: StreamKind,
    },
    /// Pass the HTTP request on.
    Workload {
        scheme: Scheme,
        host: String,
        port: u16,
    },
    Kubelet(Kubelet),
}

/// Where a node's kubelet listens.
pub struct Kubelet {
    pub host: String,
    pub port: u16,
}

pub fn pod(ask: &Ask<'_>) -> Result<Connection> {
    let target = if ask.subresource == "proxy" { Named::parse(ask.name)? } else { Named::plain(ask.name) };
    let missing = || StatusError::not_found(&GroupResource::new("", "pods"), target.name);
    let pod = ask.view.get("pods", ask.namespace, target.name).ok_or_else(missing)?.value.value();
    match ask.subresource {
        "log" => match logs_path(&pod, ask.query)? {
            None => Ok(Connection::Nothing),
            Some(path) => {
                let verify = !ask.query.flag("insecureSkipTLSVerifyBackend");
                Ok(Connection::Logs { kubelet: kubelet_of(ask.view, &pod)?, path, verify })
            }
        },
        "exec" | "attach" => {
            let (path, options) = remote_command_path(ask.subresource, &pod, ask.query)?;
            let kind = StreamKind::RemoteCommand(options);
            Ok(Connection::Stream { kubelet: kubelet_of(ask.view, &pod)?, path, kind })
        }
        "portforward" => {
            let path = port_forward_path(&pod, ask.query)?;
            Ok(Connection::Stream { kubelet: kubelet_of(ask.view, &pod)?, path, kind: StreamKind::PortForward })
        }
        _ => {
            let host = proxied_address(meta::str_at(&pod, &["status", "podIP"]))?;
            Ok(Connection::Workload { scheme: target.scheme, host, port: target.pod_port(&pod)? })
        }
    }
}

pub fn service(ask: &Ask<'_>) -> Result<Connection> {
    let target = Named::parse(ask.name)?;
    let missing = || StatusError::not_found(&GroupResource::new("", "services"), target.name);
    let service = ask.view.get("services/specs", ask.namespace, target.name).ok_or_else(missing)?.value.value();
    let wanted = target.port;
    let port = service_port(&service, |p| {
        wanted.is_empty()
            || meta::str_at(p, &["name"]) == wanted
            || p["port"].as_i64().is_some_and(|n| n.to_string() == wanted)
    });
    let unavailable = || StatusError::unavailable(format!("no endpoints available for service {:?}", ask.name));
    let port_name = meta::str_at(port.ok_or_else(unavailable)?, &["name"]);
    let (host, port) =
        endpoints(ask.view, ask.namespace, target.name, port_name).into_iter().next().ok_or_else(unavailable)?;
    Ok(Connection::Workload { scheme: target.scheme, host: proxied_address(&host)?, port })
}

/// The first port of a service that `is` the wanted one.
pub fn service_port(service: &Value, is: impl Fn(&Value) -> bool) -> Option<&Value> {
    items(&service["spec"], "ports").find(|port| is(port))
}

/// Addresses and port of the ready endpoints of a service's port, as their writers have them: see [`proxied_address`].
pub fn endpoints(view: &View, namespace: &str, service: &str, port_name: &str) -> Vec<(String, u16)> {
    let mut found = Vec::new();
    for slice in view.list("endpointslices", namespace) {
        if slice.value.meta().label("kubernetes.io/service-name") != Some(service) {
            continue;
        }
        let slice = slice.value.value();
        let number = items(&slice, "ports")
            .find(|p| meta::str_at(p, &["name"]) == port_name)
            .and_then(|p| p["port"].as_u64())
            .and_then(|n| u16::try_from(n).ok());
        let Some(port) = number else { continue };
        let ready = |e: &&Value| meta::at(e, &["conditions", "ready"]).and_then(Value::as_bool).unwrap_or(true);
        let addresses = items(&slice, "endpoints").filter(ready).filter_map(|e| e["addresses"][0].as_str());
        found.extend(addresses.map(|address| (address.to_owned(), port)));
    }
    found
}

/// An address that the server may be sent to by what users write into statuses and slices: no name, nothing of its own host.
pub fn proxied_address(text: &str) -> Result<String> {
    let refused = || StatusError::bad_request("address not allowed");
    let address: IpAddr = text.parse().map_err(|_| refused())?;
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if local || address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err(refused());
    }
    Ok(address.to_string())
}

pub fn node(ask: &Ask<'_>) -> Result<Connection> {
    let target = Named::parse(ask.name)?;
    let kubelet = kubelet(ask.view, target.name)?;
    match target.port.parse::<u16>() {
        Ok(port) if port != kubelet.port => {
            Ok(Connection::Workload { scheme: target.scheme, host: kubelet.host, port })
        }
        _ => Ok(Connection::Kubelet(kubelet)),
    }
}

fn kubelet_of(view: &View, pod: &Value) -> Result<Kubelet> {
    kubelet(view, meta::str_at(pod, &["spec", "nodeName"]))
}

/// Upstream prefers a node's addresses in this order (`--kubelet-preferred-address-types`), host names aside: they need not resolve.
const ADDRESS_TYPES: [&str; 2] = ["InternalIP", "ExternalIP"];

fn kubelet(view: &View, node: &str) -> Result<Kubelet> {
    let missing = || StatusError::not_found(&GroupResource::new("", "nodes"), node);
    let object = view.get("minions", "", node).ok_or_else(missing)?.value.value();
    let host = ADDRESS_TYPES
        .iter()
        .find_map(|kind| items(&object["status"], "addresses").find(|a| a["type"] == **kind))
        .map(|a| meta::str_at(a, &["address"]).to_owned())
        .ok_or_else(|| StatusError::internal(format!("no preferred addresses found for node {node:?}")))?;
    let port = meta::at(&object, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).and_then(Value::as_u64);
    Ok(Kubelet { host, port: port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(10250) })
}

/// `name`, `name:port`, `scheme:name:port` (`SplitSchemeNamePort`).
struct Named<'a> {
    scheme: Scheme,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn plain(name: &'a str) -> Self {
        Named { scheme: Scheme::Http, name, port: "" }
    }

    fn parse(text: &'a str) -> Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name] => Ok(Named::plain(name)),
            [name, port] => Ok(Named { scheme: Scheme::Http, name, port }),
            ["http" | "", name, port] => Ok(Named { scheme: Scheme::Http, name, port }),
            ["https", name, port] => Ok(Named { scheme: Scheme::Https, name, port }),
            _ => Err(StatusError::bad_request(format!("invalid service request {text:?}"))),
        }
    }

    /// The port asked for, or the pod's first one.
    fn pod_port(&self, pod: &Value) -> Result<u16> {
        if !self.port.is_empty() {
            return self.port.parse().map_err(|_| StatusError::bad_request(format!("invalid port {:?}", self.port)));
        }
        let first =
            items(&pod["spec"], "containers").flat_map(|c| items(c, "ports")).find_map(|p| p["containerPort"].as_u64());
        Ok(first.and_then(|p| u16::try_from(p).ok()).unwrap_or(if self.scheme == Scheme::Https { 443 } else { 80 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_scheme_and_port() {
        for (text, name, port, https) in [
            ("a", "a", "", false),
            ("a:80", "a", "80", false),
            ("https:a:web", "a", "web", true),
            ("http:a:1", "a", "1", false),
        ] {
            let named = Named::parse(text).unwrap();
            assert_eq!((named.name, named.port, named.scheme == Scheme::Https), (name, port, https));
        }
        assert!(Named::parse("ftp:a:1").is_err());
    }
}
