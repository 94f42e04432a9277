//! Which endpoints of a service port get traffic, seen from one node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::nft::{Family, Protocol};

pub type Target = (IpAddr, u16);

/// The endpoints of one service port, each list sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// For the traffic policy `Cluster`.
    pub cluster: Vec<Target>,
    /// For the traffic policy `Local`: those on this node.
    pub local: Vec<Target>,
}

impl Selected {
    /// Whether the service has endpoints at all that somebody may reach.
    pub fn any(&self) -> bool {
        !self.cluster.is_empty() || !self.local.is_empty()
    }
}

/// Where the proxy stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    pub zone: Option<String>,
}

#[derive(Debug)]
struct Candidate<'a> {
    target: Target,
    endpoint: &'a Endpoint,
    ready: bool,
    /// Still serving while it terminates.
    draining: bool,
    local: bool,
}

/// Chooses as upstream's `CategorizeEndpoints` does: the ready ones, narrowed to this node or zone where all carry hints;
/// the ones that drain, if no other is left.
pub fn select(
    place: &Place,
    family: Family,
    port: &ServicePort,
    protocol: Protocol,
    slices: &[Arc<EndpointSlice>],
) -> Selected {
    let candidates = candidates(place, family, port, protocol, slices);
    let narrowed = narrowing(place, &candidates);
    let pick = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Target> {
        let targets = candidates.iter().filter(|c| wanted(c)).map(|c| c.target);
        targets.collect::<BTreeSet<_>>().into_iter().collect()
    };
    let or_draining = |ready: Vec<Target>, local_only: bool| {
        if ready.is_empty() { pick(&|c| c.draining && (c.local || !local_only)) } else { ready }
    };
    Selected {
        cluster: or_draining(pick(&|c| c.ready && narrowed.admits(place, c.endpoint)), false),
        local: or_draining(pick(&|c| c.ready && c.local), true),
    }
}

fn candidates<'a>(
    place: &Place,
    family: Family,
    port: &ServicePort,
    protocol: Protocol,
    slices: &'a [Arc<EndpointSlice>],
) -> Vec<Candidate<'a>> {
    let address_type = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|s| s.address_type == address_type) {
        let matching = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && Protocol::from_api(p.protocol.as_deref().unwrap_or("TCP")) == Some(protocol)
        });
        let Some(number) = matching.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            // Upstream looks at the first address only; the others are for nobody.
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else { continue };
            if Family::of(address) != family {
                continue;
            }
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            candidates.push(Candidate {
                target: (address, number),
                endpoint,
                ready,
                draining: serving && terminating,
                local: endpoint.node_name.as_deref() == Some(place.node.as_str()),
            });
        }
    }
    candidates
}

#[derive(Debug, PartialEq, Eq)]
enum Narrowing {
    Nothing,
    Node,
    Zone,
}

impl Narrowing {
    fn admits(&self, place: &Place, endpoint: &Endpoint) -> bool {
        match self {
            Narrowing::Nothing => true,
            Narrowing::Node => node_hints(endpoint).any(|n| n == place.node),
            Narrowing::Zone => zone_hints(endpoint).any(|z| Some(z) == place.zone.as_deref()),
        }
    }
}

fn node_hints(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    endpoint.hints.iter().flat_map(|h| h.for_nodes.iter().flatten()).map(|n| n.name.as_str())
}

fn zone_hints(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    endpoint.hints.iter().flat_map(|h| h.for_zones.iter().flatten()).map(|z| z.name.as_str())
}

/// Hints count only when every ready endpoint has them and one is for us: half-written hints must not starve anybody.
fn narrowing(place: &Place, candidates: &[Candidate<'_>]) -> Narrowing {
    let ready = || candidates.iter().filter(|c| c.ready).map(|c| c.endpoint);
    let usable = |narrowing: &Narrowing, hinted: &dyn Fn(&Endpoint) -> bool| {
        ready().all(hinted) && ready().any(|e| narrowing.admits(place, e))
    };
    if usable(&Narrowing::Node, &|e| node_hints(e).next().is_some()) {
        Narrowing::Node
    } else if usable(&Narrowing::Zone, &|e| zone_hints(e).next().is_some()) {
        Narrowing::Zone
    } else {
        Narrowing::Nothing
    }
}
