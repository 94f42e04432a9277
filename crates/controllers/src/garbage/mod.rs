//! The garbage collector: deletes objects whose owners are gone, completes foreground deletion, and sets dependents free.
//!
//! [`monitors`] watch metadata of all resources and feed the [`graph`], which raises suspicions; workers here ask the
//! server and act on its answer, with UID and resourceVersion as preconditions. [`verdict`] holds the rules.
//!
//! Must not know: any kind.

mod graph;
mod monitors;
mod verdict;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use client::{Context, EventType, Next, Queue, Recorder, run_workers};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, Preconditions};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::sync::watch;

use graph::{FOREGROUND, Graph, Identity, Node, ORPHAN, Suspect};
use verdict::{OwnerState, Policy, Verdict, judge, owner_state};

use crate::discovery::{Discovered, Resource};
use crate::error::{Error, Result};
use crate::write;

const IDENTITY: &str = "generic-garbage-collector";
const WORKERS: usize = 8;
/// Owners remembered as gone. A UID never comes back, so they could be kept for ever.
const ABSENT_MAX: usize = 4096;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let shared = Arc::new(Shared::default());
    let (ready, mut is_ready) = watch::channel(false);
    let monitors = monitors::keep(context.clone(), client.clone(), shared.clone(), ready);
    let collector = Arc::new(Collector {
        recorder: Recorder::new(client.clone(), "garbage-collector-controller", ""),
        client,
        shared: shared.clone(),
    });
    let queue = shared.queue.clone();
    let shutdown = context.shutdown.clone();
    let work = async move {
        // Nothing is judged before all owners had their chance to be seen.
        if shutdown.run_until_cancelled(is_ready.wait_for(|ready| *ready)).await.is_none() {
            return;
        }
        run_workers(IDENTITY, queue, WORKERS, shutdown, move |suspect| {
            let collector = collector.clone();
            async move { collector.examine(suspect).await }
        })
        .await;
    };
    tokio::join!(monitors, work);
}

/// What monitors and workers share.
#[derive(Default)]
struct Shared {
    graph: Mutex<Graph>,
    queue: Queue<Suspect>,
    discovered: RwLock<Arc<Discovered>>,
    absent: Mutex<Absent>,
}

impl Shared {
    fn observe(&self, identity: Identity, meta: &ObjectMeta) {
        let suspects = self.graph.lock().observe(identity, meta);
        suspects.into_iter().for_each(|suspect| self.queue.add(suspect));
    }

    fn vanish(&self, uid: &str) {
        let suspects = self.graph.lock().vanish(uid);
        if !suspects.is_empty() {
            self.absent.lock().insert(uid);
        }
        suspects.into_iter().for_each(|suspect| self.queue.add(suspect));
    }
}

/// UIDs of objects that are gone, so that a thousand dependents do not each ask for the same owner.
#[derive(Default)]
struct Absent {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Absent {
    fn insert(&mut self, uid: &str) {
        if self.uids.insert(uid.to_owned()) {
            self.order.push_back(uid.to_owned());
        }
        if self.order.len() > ABSENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
    }
}

/// The owner's resource cannot own this object, whatever its UID.
struct Impossible;

struct Collector {
    client: kube::Client,
    recorder: Recorder,
    shared: Arc<Shared>,
}

impl Collector {
    async fn examine(&self, suspect: Suspect) -> Result<Next> {
        let (Suspect::Delete(uid) | Suspect::Orphan(uid) | Suspect::Misplaced(uid)) = &suspect;
        let Some(node) = self.shared.graph.lock().get(uid).cloned() else { return Ok(Next::Wait) };
        match suspect {
            Suspect::Delete(_) => self.examine_deletion(uid, node).await?,
            Suspect::Orphan(_) => self.set_dependents_free(uid, &node).await?,
            Suspect::Misplaced(_) => self.tell_misplaced(uid, &node),
        }
        Ok(Next::Wait)
    }

    fn resource_of(&self, api_version: &str, kind: &str) -> Result<Arc<Resource>> {
        let discovered = self.shared.discovered.read().clone();
        discovered.of_kind(api_version, kind).ok_or_else(|| Error::UnknownResource(format!("{api_version} {kind}")))
    }

    fn api_of(&self, identity: &Identity) -> Result<Api<DynamicObject>> {
        let resource = self.resource_of(&identity.api_version, &identity.kind)?;
        Ok(resource.in_namespace(&self.client, &identity.namespace))
    }

    /// The object's metadata as the server has it, if it is still the one with this UID.
    async fn live(&self, api: &Api<DynamicObject>, name: &str, uid: &str) -> Result<Option<ObjectMeta>> {
        let live = client::found(api.get_metadata(name).await)?.map(|object| object.metadata);
        Ok(live.filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn examine_deletion(&self, uid: &str, node: Node) -> Result<()> {
        if node.deleting && !node.foreground {
            // Its own deletion is under way; its dependents follow when it is gone.
            return Ok(());
        }
        let api = self.api_of(&node.identity)?;
        let Some(live) = self.live(&api, &node.identity.name, uid).await? else {
            if node.is_virtual {
                self.suspect_dependents(&node);
            }
            // A real node's end is on its way through the watch.
            return Ok(());
        };
        if node.foreground {
            return self.complete_foreground(uid, &node, &api, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        let mut owners = Vec::with_capacity(references.len());
        for reference in references {
            match self.state_of(&node.identity, &reference).await? {
                Ok(state) => owners.push((reference, state)),
                Err(Impossible) => {
                    self.tell_misplaced(uid, &node);
                    return Ok(());
                }
            }
        }
        let circular = {
            let graph = self.shared.graph.lock();
            node.dependents.iter().any(|dependent| graph.get(dependent).is_some_and(|node| node.foreground))
        };
        match judge(&live, &owners, !node.dependents.is_empty(), circular) {
            Verdict::Keep => Ok(()),
            Verdict::DropReferences(rest) => self.write_references(&api, &live, &rest).await,
            Verdict::Delete(policy) => self.delete(&api, &live, policy).await,
            Verdict::UnblockAndDelete => {
                let mut references: Vec<OwnerReference> = owners.into_iter().map(|(reference, _)| reference).collect();
                references.iter_mut().for_each(|reference| reference.block_owner_deletion = Some(false));
                self.write_references(&api, &live, &references).await?;
                match self.live(&api, &node.identity.name, uid).await? {
                    Some(live) => self.delete(&api, &live, Policy::Foreground).await,
                    None => Ok(()),
                }
            }
        }
    }

    fn suspect_dependents(&self, node: &Node) {
        node.dependents.iter().for_each(|dependent| self.shared.queue.add(Suspect::Delete(dependent.clone())));
    }

    async fn state_of(&self, child: &Identity, reference: &OwnerReference) -> Result<Result<OwnerState, Impossible>> {
        if self.shared.absent.lock().uids.contains(&reference.uid) {
            return Ok(Ok(OwnerState::Absent));
        }
        let resource = self.resource_of(&reference.api_version, &reference.kind)?;
        if resource.namespaced && child.namespace.is_empty() {
            return Ok(Err(Impossible));
        }
        let api = resource.in_namespace(&self.client, &child.namespace);
        let live = client::found(api.get_metadata(&reference.name).await)?.map(|object| object.metadata);
        Ok(Ok(owner_state(reference, live.as_ref())))
    }

    async fn complete_foreground(
        &self,
        uid: &str,
        node: &Node,
        api: &Api<DynamicObject>,
        live: &ObjectMeta,
    ) -> Result<()> {
        let blocking = self.shared.graph.lock().blocking_dependents(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(api, live, &node.identity.name, FOREGROUND).await;
        }
        for dependent in blocking {
            let waiting = self.shared.graph.lock().get(&dependent).is_some_and(|node| node.foreground);
            if !waiting {
                self.shared.queue.add(Suspect::Delete(dependent));
            }
        }
        Ok(())
    }

    /// Removes the references to an owner that orphans, then lets the owner go.
    async fn set_dependents_free(&self, uid: &str, node: &Node) -> Result<()> {
        if !node.orphaning {
            return Ok(());
        }
        for dependent in &node.dependents {
            let Some(identity) = self.shared.graph.lock().get(dependent).map(|node| node.identity.clone()) else {
                continue;
            };
            let api = self.api_of(&identity)?;
            let Some(live) = self.live(&api, &identity.name, dependent).await? else { continue };
            let references = live.owner_references.clone().unwrap_or_default();
            let rest: Vec<OwnerReference> = references.iter().filter(|o| o.uid != *uid).cloned().collect();
            if rest.len() != references.len() {
                self.write_references(&api, &live, &rest).await?;
            }
        }
        let api = self.api_of(&node.identity)?;
        match self.live(&api, &node.identity.name, uid).await? {
            Some(live) => self.remove_finalizer(&api, &live, &node.identity.name, ORPHAN).await,
            None => Ok(()),
        }
    }

    /// A merge patch of metadata, which every resource understands; the version makes it conflict with other writers.
    async fn patch(&self, api: &Api<DynamicObject>, live: &ObjectMeta, mut metadata: serde_json::Value) -> Result<()> {
        metadata["uid"] = json!(live.uid);
        metadata["resourceVersion"] = json!(live.resource_version);
        let name = live.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        client::found(api.patch_metadata(name, &write::patch(), &patch).await)?;
        Ok(())
    }

    async fn write_references(
        &self,
        api: &Api<DynamicObject>,
        live: &ObjectMeta,
        rest: &[OwnerReference],
    ) -> Result<()> {
        let references = if rest.is_empty() { json!(null) } else { json!(rest) };
        self.patch(api, live, json!({ "ownerReferences": references })).await
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        live: &ObjectMeta,
        name: &str,
        finalizer: &str,
    ) -> Result<()> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|present| present == finalizer) {
            return Ok(());
        }
        tracing::debug!(name, finalizer, "removing finalizer");
        let rest: Vec<&String> = finalizers.iter().filter(|present| *present != finalizer).collect();
        let rest = if rest.is_empty() { json!(null) } else { json!(rest) };
        self.patch(api, live, json!({ "finalizers": rest })).await
    }

    async fn delete(&self, api: &Api<DynamicObject>, live: &ObjectMeta, policy: Policy) -> Result<()> {
        let params = match policy {
            Policy::Background => DeleteParams::background(),
            Policy::Foreground => DeleteParams::foreground(),
            Policy::Orphan => DeleteParams::orphan(),
        };
        let preconditions = Preconditions { uid: live.uid.clone(), resource_version: live.resource_version.clone() };
        let name = live.name.as_deref().unwrap_or_default();
        client::found(api.delete(name, &params.preconditions(preconditions)).await)?;
        Ok(())
    }

    fn tell_misplaced(&self, uid: &str, node: &Node) {
        let identity = &node.identity;
        let object = ObjectReference {
            api_version: Some(identity.api_version.to_string()),
            kind: Some(identity.kind.to_string()),
            namespace: Some(identity.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(identity.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let graph = self.shared.graph.lock();
        let misplaced = node.owners.iter().filter(|reference| {
            graph.get(&reference.uid).is_none_or(|owner| {
                !owner.identity.namespace.is_empty() && owner.identity.namespace != identity.namespace
            })
        });
        for owner in misplaced {
            let coordinates = format!(
                "{}/{}, namespace: {}, name: {}, uid: {}",
                owner.api_version, owner.kind, identity.namespace, owner.name, owner.uid
            );
            let message = format!("ownerRef [{coordinates}] does not exist in namespace \"{}\"", identity.namespace);
            self.recorder.event(&object, EventType::Warning, "OwnerRefInvalidNamespace", message);
        }
    }
}
