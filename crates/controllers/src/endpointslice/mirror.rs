//! Endpoints objects that people keep by hand for services without a selector, mirrored into slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Change, Context, Informer, Next, ObjectKey, Queue, key_of, run_workers};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::Slices;
use super::endpoint::Family;
use super::pack::{self, Common, Group, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};
use super::select;
use crate::error::Result;

const IDENTITY: &str = "endpointslicemirroring-controller";
const MANAGER_LABEL: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints objects were once used as locks.
const LOCK: &str = "control-plane.alpha.kubernetes.io/leader";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MAX_PER_SUBSET: usize = 1000;
const WORKERS: usize = 2;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.of::<Service>(),
        endpoints: context.informers.of::<Endpoints>(),
        slices: Slices::new(context.as_controller(IDENTITY), &context.informers, MANAGER_LABEL),
    });
    controller.services.synced().await;
    controller.endpoints.synced().await;
    controller.slices.informer.synced().await;
    let queue: Queue<ObjectKey> = Queue::default();
    let (of_service, of_endpoints) = (queue.clone(), queue.clone());
    controller.services.on_change(move |change: Change<'_, Service>| of_service.add(key_of(&**change.object())));
    controller.endpoints.on_change(move |change: Change<'_, Endpoints>| of_endpoints.add(key_of(&**change.object())));
    controller.slices.watch(&queue);
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Slices,
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.slices.gate.opened(key).await?;
        let service = self.services.get(&key.0, &key.1).filter(|service| select::selector(service).is_none());
        let endpoints = self.endpoints.get(&key.0, &key.1).filter(|endpoints| is_mirrored(endpoints));
        let existing = self.slices.of(key);
        let writes = match (service, endpoints) {
            (Some(_), Some(endpoints)) => pack::pack(&common(key, &endpoints), &wanted(&endpoints), &existing),
            _ => pack::Writes { delete: existing, ..pack::Writes::default() },
        };
        self.slices.carry_out(key, writes).await?;
        Ok(Next::Wait)
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|value| value == "true");
    let lock = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LOCK));
    !skipped && !lock && meta.deletion_timestamp.is_none()
}

fn common(key: &ObjectKey, endpoints: &Endpoints) -> Common {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), key.1.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER_LABEL.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(APPLIED);
    annotations.remove(TRIGGER_TIME);
    let owner = crate::owner::reference_to(endpoints);
    Common { namespace: key.0.clone(), service: key.1.clone(), labels, annotations, owner }
}

/// Subsets by family. Only families that have addresses get slices.
fn wanted(endpoints: &Endpoints) -> BTreeMap<Family, Vec<Group>> {
    let mut wanted: BTreeMap<Family, Vec<Group>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(MAX_PER_SUBSET) {
            let Some(family) = Family::of(&address.ip) else { continue };
            let groups = wanted.entry(family).or_default();
            let endpoint = endpoint(address, ready);
            match groups.iter_mut().find(|group| group.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { ports: ports.clone(), endpoints: vec![endpoint] }),
            }
        }
    }
    wanted
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: port.protocol.clone(),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn subsets_are_mirrored_by_family_and_ports() {
        let endpoints: Endpoints = yaml(
            "subsets:
- { addresses: [{ ip: 192.0.2.1 }, { ip: '2001:db8::1' }], notReadyAddresses: [{ ip: 192.0.2.2 }], ports: [{ port: 80 }] }
- { addresses: [{ ip: 192.0.2.3 }], ports: [{ port: 80 }] }
- { addresses: [{ ip: 192.0.2.3 }], ports: [{ port: 81 }] }",
        );
        let wanted = wanted(&endpoints);
        let sizes = |family| wanted[&family].iter().map(|group| group.endpoints.len()).collect::<Vec<_>>();
        assert_eq!((sizes(Family::IPv4), sizes(Family::IPv6)), (vec![3, 1], vec![1]));
    }

    #[test]
    fn locks_and_those_marked_are_not_mirrored() {
        assert!(is_mirrored(&yaml("{ metadata: { name: a } }")));
        assert!(!is_mirrored(&yaml("{ metadata: { labels: { endpointslice.kubernetes.io/skip-mirror: 'true' } } }")));
        assert!(!is_mirrored(&yaml(
            "{ metadata: { annotations: { control-plane.alpha.kubernetes.io/leader: '{}' } } }"
        )));
    }
}
