//! Endpoints objects of services with a selector: the older form, still read by many.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use kube::api::Api;
use parking_lot::Mutex;

use super::endpoint::{self, families, is_external_name, is_headless, publishes_unready};
use super::pack::{HEADLESS, TRIGGER_TIME};
use super::select::{self, Backends};
use super::trigger::TriggerTimes;
use crate::error::{Result, text_of};
use crate::{pods, write};

const IDENTITY: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object at most; more belong into slices.
const MAX_ADDRESSES: usize = 1000;
const WORKERS: usize = 5;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.backends.synced().await;
    controller.endpoints.synced().await;
    controller.backends.watch(&controller.queue);
    let queue = controller.queue.clone();
    controller.endpoints.on_change(move |change: Change<'_, Endpoints>| {
        // Written by hand or deleted: made right again. An object of a vanished service is found at the start.
        queue.add(key_of(&**change.object()));
    });
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    backends: Backends,
    endpoints: Informer<Endpoints>,
    gate: Gate<Endpoints>,
    triggers: Mutex<TriggerTimes>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let endpoints = context.informers.of::<Endpoints>();
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            client,
            backends: Backends::new(&context.informers),
            gate: Gate::new(endpoints.clone()),
            endpoints,
            triggers: Mutex::default(),
            queue: Queue::default(),
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.gate.opened(key).await?;
        let current = self.endpoints.get(&key.0, &key.1);
        let Some(service) = self.backends.services.get(&key.0, &key.1) else {
            self.triggers.lock().forget(key);
            if let Some(orphan) = current.filter(|endpoints| is_managed(endpoints)) {
                self.delete(key, &orphan).await?;
            }
            self.gate.forget(key);
            return Ok(Next::Wait);
        };
        if is_external_name(&service) || select::selector(&service).is_none() {
            return Ok(Next::Wait);
        }
        let pods = self.backends.pods_of(&service);
        let trigger = self.triggers.lock().observe(key, &service, &pods);
        if let Some(wanted) = plan(&service, &pods, current.as_deref(), trigger) {
            self.write(key, &service, wanted, current.is_some()).await?;
        }
        Ok(Next::Wait)
    }

    async fn write(&self, key: &ObjectKey, service: &Service, wanted: Endpoints, exists: bool) -> Result<()> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.0);
        let result = if exists {
            api.replace(&key.1, &write::post(), &wanted).await
        } else {
            api.create(&write::post(), &wanted).await
        };
        match result {
            Ok(written) => self.gate.wrote(key, &written),
            Err(error) if client::is_namespace_terminating(&error) => {}
            Err(error) => {
                if !client::is_conflict(&error) && !client::is_already_exists(&error) {
                    let verb = if exists { "update" } else { "create" };
                    let reason = if exists { "FailedToUpdateEndpoint" } else { "FailedToCreateEndpoint" };
                    let text = text_of(&error);
                    let message = format!("Failed to {verb} endpoint {}/{}: {text}", key.0, key.1);
                    self.recorder.warning(service, reason, message);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, orphan: &Endpoints) -> Result<()> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.0);
        client::found(api.delete(&key.1, &write::delete_seen(orphan)).await)?;
        Ok(())
    }
}

fn is_managed(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str) == Some(IDENTITY)
}

/// The object to write, if the current one is not right.
fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    current: Option<&Endpoints>,
    trigger: Option<jiff::Timestamp>,
) -> Option<Endpoints> {
    let (subsets, truncated) = truncate(subsets(service, pods));
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), IDENTITY.to_owned());

    let mut wanted = current.cloned().unwrap_or_default();
    wanted.metadata.name = service.metadata.name.clone();
    wanted.metadata.namespace = service.metadata.namespace.clone();
    wanted.metadata.labels = Some(labels);
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    // Compared before the trigger time is set: it is not news by itself.
    let same = current.is_some_and(|current| {
        let blank = BTreeMap::new();
        current.metadata.labels == wanted.metadata.labels
            && current.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
            && current.metadata.annotations.as_ref().unwrap_or(&blank) == &*annotations
    });
    if same {
        return None;
    }
    annotations.remove(TRIGGER_TIME);
    if let Some(trigger) = trigger {
        annotations.insert(TRIGGER_TIME.to_owned(), trigger.to_string());
    }
    if annotations.is_empty() {
        wanted.metadata.annotations = None;
    }
    Some(wanted)
}

/// Port name, number, protocol and application protocol, in an order that sorts.
type PortKey = (String, i32, String, Option<String>);

/// Addresses that have the same ports share a subset, ready and unready apart; both sorted.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let unready_too = publishes_unready(service);
    let Some(family) = families(service).first().copied() else { return vec![] };
    let portless = service.spec.as_ref().is_none_or(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty));
    let mut by_ports: BTreeMap<Vec<PortKey>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| endpoint::belongs(pod, unready_too)) {
        let Some(ip) = endpoint::addresses(pod, family).into_iter().next() else { continue };
        let address = EndpointAddress {
            ip,
            hostname: endpoint::hostname(pod, service),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(endpoint::target(pod)),
        };
        let ports = endpoint::ports_on(pod, service);
        if ports.is_empty() && !portless {
            continue;
        }
        let mut key: Vec<PortKey> = ports
            .into_iter()
            .map(|port| {
                (
                    port.name.unwrap_or_default(),
                    port.port.unwrap_or(0),
                    port.protocol.unwrap_or_default(),
                    port.app_protocol,
                )
            })
            .collect();
        key.sort();
        let (ready, unready) = by_ports.entry(key).or_default();
        if unready_too || pods::is_ready(pod) { ready.push(address) } else { unready.push(address) }
    }
    let sorted = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let subset = |(ports, (ready, unready)): (Vec<PortKey>, _)| EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(unready),
        ports: Some(ports.into_iter().map(port).collect::<Vec<_>>()).filter(|ports| !ports.is_empty()),
    };
    by_ports.into_iter().map(subset).collect()
}

fn port((name, port, protocol, app_protocol): PortKey) -> EndpointPort {
    EndpointPort { name: Some(name).filter(|name| !name.is_empty()), port, protocol: Some(protocol), app_protocol }
}

/// Keeps at most [`MAX_ADDRESSES`], ready ones before unready ones; tells whether some were cut.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut room = MAX_ADDRESSES;
    let mut truncated = false;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            truncated |= addresses.len() > room;
            addresses.truncate(room);
            room -= addresses.len();
        }
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    };
    subsets.iter_mut().for_each(|subset| cut(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{pods, yaml};

    fn service(spec: &str) -> Service {
        yaml(&format!("{{ metadata: {{ name: web, namespace: ns, labels: {{ team: a }} }}, spec: {spec} }}"))
    }

    fn shown(subsets: &[EndpointSubset]) -> String {
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>().join(",")
        };
        let ports = |subset: &EndpointSubset| {
            subset.ports.iter().flatten().map(|port| port.port.to_string()).collect::<Vec<_>>().join(",")
        };
        let lines =
            subsets.iter().map(|s| format!("{}!{}:{}", ips(&s.addresses), ips(&s.not_ready_addresses), ports(s)));
        lines.collect::<Vec<_>>().join(" ")
    }

    const PODS: &str = "
        { name: b, ip: 10.0.0.2, ready: 5 }
        { name: a, ip: 10.0.0.1, ready: 5 }
        { name: c, ip: 10.0.0.3 }
        { name: d, ip: 10.0.0.4, ready: 5, deleting: true }";

    #[test]
    fn ready_and_unready_addresses_are_apart_and_sorted() {
        let ports = "ports: [{ name: s, port: 443 }, { name: p, port: 80, targetPort: 8080 }]";
        let all = pods(PODS);
        assert_eq!(shown(&subsets(&service(&format!("{{ {ports} }}")), &all)), "10.0.0.1,10.0.0.2!10.0.0.3:8080,443");
        let open = service(&format!("{{ publishNotReadyAddresses: true, {ports} }}"));
        assert_eq!(shown(&subsets(&open, &all)), "10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4!:8080,443");
        let headless = service("{ clusterIP: None }");
        assert_eq!(shown(&subsets(&headless, &all)), "10.0.0.1,10.0.0.2!10.0.0.3:");
        let named = service("{ ports: [{ port: 80, targetPort: http }] }");
        assert_eq!(shown(&subsets(&named, &all)), "", "no pod names the port");
    }

    #[test]
    fn nothing_is_written_when_nothing_changes() {
        let service = service("{ clusterIP: None, ports: [{ port: 80 }] }");
        let all = pods(PODS);
        let first = plan(&service, &all, None, Some(crate::fixture::now())).expect("created");
        let labels = first.metadata.labels.clone().expect("labelled");
        assert_eq!(labels.keys().cloned().collect::<Vec<_>>(), [MANAGED_BY, HEADLESS, "team"]);
        assert!(plan(&service, &all, Some(&first), None).is_none());
        assert!(plan(&service, &all[1..], Some(&first), None).is_some());
    }

    #[test]
    fn beyond_capacity_unready_addresses_go_first() {
        let address = |n: usize| EndpointAddress { ip: n.to_string(), ..EndpointAddress::default() };
        let subset = EndpointSubset {
            addresses: Some((0..900).map(address).collect()),
            not_ready_addresses: Some((0..200).map(address).collect()),
            ports: None,
        };
        let (cut, truncated) = truncate(vec![subset]);
        let len = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        assert_eq!((len(&cut[0].addresses), len(&cut[0].not_ready_addresses), truncated), (900, 100, true));
    }
}
