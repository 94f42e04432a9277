//! EndpointSlices of services with a selector. Endpoints ([`endpoints`]) and the mirroring of hand-made Endpoints into
//! slices ([`mirror`]) share its core: [`endpoint`] says what a pod publishes, [`pack`] how slices are filled.
//!
//! Must not know: the `kubernetes` service, whose endpoints the API server keeps itself.

mod endpoint;
pub mod endpoints;
pub mod mirror;
mod pack;
mod select;
mod trigger;

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{
    Change, Context, Gate, Index, Informer, Informers, Next, ObjectKey, Queue, Recorder, key_of, run_workers,
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use parking_lot::Mutex;

use endpoint::{Family, families, is_external_name, is_headless, publishes_unready};
use pack::{Common, Group, HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, Writes};
use select::Backends;
use trigger::TriggerTimes;

use crate::error::{Error, Result, text_of};
use crate::{pods, write};

const IDENTITY: &str = "endpointslice-controller";
const MANAGER_LABEL: &str = "endpointslice-controller.k8s.io";
const WORKERS: usize = 5;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.backends.synced().await;
    controller.slices.informer.synced().await;
    controller.backends.watch(&controller.queue);
    controller.slices.watch(&controller.queue);
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

/// The slices that one manager keeps, found by their service.
struct Slices {
    client: kube::Client,
    informer: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    gate: Gate<EndpointSlice>,
    manager: &'static str,
}

fn label<'a>(slice: &'a EndpointSlice, name: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

impl Slices {
    fn new(client: kube::Client, informers: &Informers, manager: &'static str) -> Self {
        let informer = informers.of::<EndpointSlice>();
        let by_service = informer.index("controllers/service", |slice: &EndpointSlice| {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            label(slice, SERVICE_NAME).map(|service| format!("{namespace}/{service}")).into_iter().collect()
        });
        Slices { client, by_service, gate: Gate::new(informer.clone()), informer, manager }
    }

    /// Wakes the services of own slices that somebody else touched.
    fn watch(&self, queue: &Queue<ObjectKey>) {
        let (queue, manager) = (queue.clone(), self.manager);
        self.informer.on_change(move |change: Change<'_, EndpointSlice>| {
            for slice in change.old().into_iter().chain([change.object()]) {
                if label(slice, MANAGED_BY) == Some(manager)
                    && let Some(service) = label(slice, SERVICE_NAME)
                {
                    queue.add((key_of(&**slice).0, service.to_owned()));
                }
            }
        });
    }

    fn of(&self, (namespace, service): &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.by_service.get(&format!("{namespace}/{service}"));
        slices.retain(|slice| {
            label(slice, MANAGED_BY) == Some(self.manager) && slice.metadata.deletion_timestamp.is_none()
        });
        slices
    }

    async fn carry_out(&self, key: &ObjectKey, writes: Writes) -> Result<()> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.0);
        // Created and updated first: an endpoint that moves is seen twice rather than not at all.
        for slice in &writes.create {
            match api.create(&write::post(), slice).await {
                Ok(created) => self.gate.wrote(key, &created),
                Err(error) if client::is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in &writes.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let updated = api.replace(name, &write::post(), slice).await?;
            self.gate.wrote(key, &updated);
        }
        for slice in &writes.delete {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &write::delete_seen(&**slice)).await {
                Ok(_) => self.gate.deleted(key, slice),
                Err(error) if client::is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

struct Controller {
    recorder: Recorder,
    backends: Backends,
    slices: Slices,
    triggers: Mutex<TriggerTimes>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            backends: Backends::new(&context.informers),
            slices: Slices::new(client, &context.informers, MANAGER_LABEL),
            triggers: Mutex::default(),
            queue: Queue::default(),
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.slices.gate.opened(key).await?;
        let Some(service) = self.backends.services.get(&key.0, &key.1) else {
            // Its slices go with it, by their owner reference.
            self.slices.gate.forget(key);
            self.triggers.lock().forget(key);
            return Ok(Next::Wait);
        };
        if is_external_name(&service) || select::selector(&service).is_none() {
            return Ok(Next::Wait);
        }
        let pods = self.backends.pods_of(&service);
        let trigger = self.triggers.lock().observe(key, &service, &pods);
        let node_of = |name: &str| self.backends.nodes.get("", name);
        let (wanted, missing_node) = wanted(&service, &pods, &node_of);
        let writes = pack::pack(&common(key, &service, trigger), &wanted, &self.slices.of(key));
        if let Err(error) = self.slices.carry_out(key, writes).await {
            if let Error::Api(error) = &error
                && !client::is_conflict(error)
            {
                let message =
                    format!("Error updating Endpoint Slices for Service {}/{}: {}", key.0, key.1, text_of(error));
                self.recorder.warning(&*service, "FailedToUpdateEndpointSlices", message);
            }
            return Err(error);
        }
        if missing_node {
            // The node's appearance, or the pod's end, wakes this service again.
            tracing::debug!(service = key.1, "a selected pod is on a node that does not exist");
        }
        Ok(Next::Wait)
    }
}

/// The endpoints of each family, grouped by ports, and whether a pod was left out because its node is unknown.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    node_of: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> (BTreeMap<Family, Vec<Group>>, bool) {
    let mut missing_node = false;
    let mut wanted: BTreeMap<Family, Vec<Group>> =
        families(service).into_iter().map(|family| (family, vec![])).collect();
    for pod in pods.iter().filter(|pod| endpoint::belongs(pod, true)) {
        let name = pods::node_name(pod);
        let node = name.and_then(node_of);
        if name.is_some() && node.is_none() && !publishes_unready(service) {
            missing_node = true;
            continue;
        }
        let ports = endpoint::ports_on(pod, service);
        for (family, groups) in &mut wanted {
            let Some(endpoint) = endpoint::endpoint(pod, node.as_deref(), service, *family) else { continue };
            match groups.iter_mut().find(|group| group.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { ports: ports.clone(), endpoints: vec![endpoint] }),
            }
        }
    }
    (wanted, missing_node)
}

fn common(key: &ObjectKey, service: &Service, trigger: Option<jiff::Timestamp>) -> Common {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), key.1.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER_LABEL.to_owned());
    let annotations = trigger.map(|at| (TRIGGER_TIME.to_owned(), at.to_string())).into_iter().collect();
    let owner = crate::owner::reference_to(service);
    Common { namespace: key.0.clone(), service: key.1.clone(), labels, annotations, owner }
}
