//! Addresses, ports and connections of probes and hooks.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::podutil;
use crate::shared::Shared;

/// The pod's address as this node knows it.
pub fn address_of(shared: &Shared, pod: &Pod) -> Option<String> {
    if podutil::is_host_network(pod) {
        return shared.config.node_ips.first().map(ToString::to_string);
    }
    let record = shared.store.by_uid(podutil::uid(pod))?;
    record.pod.status.as_ref()?.pod_ip.clone()
}

/// A number, or the name of one of the container's ports.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| i64::from(port.container_port))
                .ok_or_else(|| format!("couldn't find port: {name} in container {}", container.name))?,
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

pub async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = join_host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", reason(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The system's words, without Rust's number.
fn reason(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_by_name_and_number() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
                .unwrap();
        let resolve = |port: IntOrString| resolve_port(&port, &container);
        assert_eq!(resolve(IntOrString::Int(8080)), Ok(8080));
        assert_eq!(resolve(IntOrString::String("web".to_owned())), Ok(80));
        assert_eq!(resolve(IntOrString::String("81".to_owned())), Ok(81));
        assert!(resolve(IntOrString::String("none".to_owned())).is_err());
        assert!(resolve(IntOrString::Int(0)).is_err() && resolve(IntOrString::Int(70_000)).is_err());
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_in_gos_words() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = connect("127.0.0.1", port, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error, format!("dial tcp 127.0.0.1:{port}: connect: connection refused"));
    }
}
