//! From a service to an address that this process can reach: one of its ready endpoints, since a server without a node of its own
//! has no kube-proxy that would translate cluster IPs.

use apimachinery::{Value, meta};

use crate::strategy::connect::{endpoints, proxied_address, service_port};
use crate::view::View;

/// A host (name or address) and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
}

/// Where `port` of a service is. The error is worded as upstream's `ResolveEndpoint`.
pub fn resolve(view: &View, namespace: &str, name: &str, port: u16) -> Result<Place, String> {
    let service = service(view, namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    if service["spec"]["type"] == "ExternalName" {
        return Ok(Place { host: meta::str_at(&service, &["spec", "externalName"]).to_owned(), port });
    }
    let found = service_port(&service, |p| p["port"].as_u64() == Some(u64::from(port)))
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let ready = endpoints(view, namespace, name, meta::str_at(found, &["name"]));
    if ready.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let (host, port) = &ready[rand::random_range(0..ready.len())];
    let host = proxied_address(host).map_err(|error| error.message)?;
    Ok(Place { host, port: *port })
}

pub fn service(view: &View, namespace: &str, name: &str) -> Option<Value> {
    view.get("services/specs", namespace, name).map(|entry| entry.value.value())
}
