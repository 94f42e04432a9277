//! Cluster DNS: answers for the cluster's names from the shared caches, and asks the host's resolvers for the rest.
//!
//! Every node has one, inside the daemon. Pods reach it at the service address of `kube-system/kube-dns` by the ordinary
//! way of services: the node's server is published as an endpoint, and kube-proxy does the rest.

mod cache;
mod forward;
mod publish;
mod server;
mod source;
pub mod zone;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use client::Context;
use hickory_proto::rr::Name;
use ipnet::IpNet;
use tokio::net::{TcpListener, UdpSocket};

pub use forward::{Upstreams, parse_resolv_conf};

use crate::{Error, Result};
use forward::Forwarder;
use server::{Responder, serve_tcp, serve_udp};
use source::InformerFacts;
use zone::Zone;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// An address of this node that pods reach; by custom port 10053.
    pub listen: SocketAddr,
    /// `cluster.local`
    pub cluster_domain: String,
    /// The service address of cluster DNS, by custom the tenth of the service network.
    pub cluster_dns_ip: IpAddr,
    pub service_cidrs: Vec<IpNet>,
    pub cluster_cidrs: Vec<IpNet>,
    pub upstreams: Upstreams,
    pub node_name: String,
}

/// Runs cluster DNS on this node until the context shuts down.
///
/// Errors: a domain that is none, or an address that cannot be listened on.
pub async fn run_dns(context: Context, config: DnsConfig) -> Result<()> {
    let mut domain = Name::from_ascii(&config.cluster_domain)
        .map_err(|error| Error::Config(format!("cluster domain {:?}: {error}", config.cluster_domain)))?;
    domain.set_fqdn(true);
    let zone = Zone {
        domain: domain.to_lowercase(),
        server: config.cluster_dns_ip,
        networks: config.service_cidrs.iter().chain(&config.cluster_cidrs).copied().collect(),
    };
    let facts = InformerFacts::new(&context);
    let (udp, tcp) = listen(config.listen).await?;
    facts.synced().await;
    let own = vec![config.listen, SocketAddr::new(config.cluster_dns_ip, 53)];
    let forwarder = Forwarder::new(config.upstreams.clone(), own);
    let responder = Arc::new(Responder { zone, facts, forwarder });
    tracing::info!(listen = %config.listen, domain = %config.cluster_domain, "cluster DNS ready");
    let failure = |error| Err(Error::io(format!("serving DNS on {}", config.listen))(error));
    tokio::select! {
        () = context.shutdown.cancelled() => Ok(()),
        () = publish::keep_published(&context, &config.node_name, config.listen) => Ok(()),
        error = serve_udp(Arc::new(udp), responder.clone()) => failure(error),
        () = serve_tcp(tcp, responder.clone()) => Ok(()),
        () = find_loops(&responder.forwarder) => Ok(()),
    }
}

/// Never returns: once it has looked, there is nothing more to do.
async fn find_loops(forwarder: &Forwarder) {
    forwarder.find_loops().await;
    std::future::pending().await
}

/// Listens by UDP and TCP. A node's address may come a little later than we do.
async fn listen(address: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
    const ATTEMPTS: u32 = 20;
    let mut attempt = 0;
    loop {
        let both = async { Ok((UdpSocket::bind(address).await?, TcpListener::bind(address).await?)) };
        let error: std::io::Error = match both.await {
            Ok(both) => return Ok(both),
            Err(error) => error,
        };
        attempt += 1;
        if error.kind() != std::io::ErrorKind::AddrNotAvailable || attempt == ATTEMPTS {
            return Err(Error::io(format!("listening for DNS on {address}"))(error));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
