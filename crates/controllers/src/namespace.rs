//! Namespaces that are being deleted: deletes all that is in them, pods first, tells what remains, then finalizes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Informer, Next, Queue, QueueConfig, run_workers};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ListParams};

use crate::discovery::{Resource, discover};
use crate::error::{Error, Result, text_of};
use crate::write;

const IDENTITY: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 10;
/// Resources emptied at once within one namespace.
const CONCURRENCY: usize = 8;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let controller = Arc::new(Controller {
        client: context.as_controller(IDENTITY),
        gate: Gate::new(namespaces.clone()),
        namespaces,
    });
    let pods = context.informers.of::<Pod>();
    controller.namespaces.synced().await;
    pods.synced().await;
    // What remains is looked at again soon: only pods are watched here, other content may go for reasons unseen.
    let config = QueueConfig { base_delay: Duration::from_millis(20), max_delay: Duration::from_secs(5) };
    let queue: Queue<String> = Queue::new(config);
    let deleted = queue.clone();
    controller.namespaces.on_change(move |change| {
        let namespace = change.object();
        if namespace.metadata.deletion_timestamp.is_some() {
            deleted.add(namespace.metadata.name.clone().unwrap_or_default());
        }
    });
    let (emptied, namespaces) = (queue.clone(), controller.namespaces.clone());
    pods.on_change(move |change| {
        if let Change::Deleted { old } = change
            && let Some(name) = &old.metadata.namespace
            && namespaces.get("", name).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        {
            emptied.add(name.clone());
        }
    });
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    gate: Gate<Namespace, String>,
}

impl Controller {
    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(namespace) = self.namespaces.get("", name) else {
            self.gate.forget(name);
            return Ok(Next::Wait);
        };
        let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
        if namespace.metadata.deletion_timestamp.is_none() || !finalizers.into_iter().any(|f| f == FINALIZER) {
            return Ok(Next::Wait);
        }
        let outcome = self.empty(name).await;
        let namespace = self.write_conditions(name, &namespace, &outcome).await?;
        if !outcome.is_clean() {
            return Err(Error::Waiting("the namespace's content to go"));
        }
        self.finalize(name, namespace).await?;
        Ok(Next::Wait)
    }

    /// Deletes what is there; nothing else is touched before the last pod is gone, because pods may use the rest.
    async fn empty(&self, namespace: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let discovered = match discover(&self.client).await {
            Ok(discovered) => discovered,
            Err(error) => {
                outcome.discovery_failure = Some(error.to_string());
                return outcome;
            }
        };
        if !discovered.stale.is_empty() {
            let groups = discovered.stale.join(", ");
            outcome.discovery_failure = Some(format!("unable to retrieve the complete list of server APIs: {groups}"));
        }
        let deletable = |resource: &Arc<Resource>| resource.namespaced && resource.can(&["list", "delete"]);
        let (pods, others): (Vec<_>, Vec<_>) = discovered
            .preferred
            .into_iter()
            .filter(deletable)
            .partition(|resource| resource.api.group.is_empty() && resource.api.plural == "pods");
        for resources in [pods, others] {
            let emptied: Vec<Remains> = stream::iter(resources)
                .map(|resource| self.empty_resource(namespace, resource))
                .buffer_unordered(CONCURRENCY)
                .collect()
                .await;
            emptied.into_iter().for_each(|remains| outcome.add(remains));
            if !outcome.remaining.is_empty() || !outcome.failures.is_empty() {
                break;
            }
        }
        outcome
    }

    async fn empty_resource(&self, namespace: &str, resource: Arc<Resource>) -> Remains {
        let mut remains = Remains { name: resource.name(), ..Remains::default() };
        if let Err(error) = self.try_empty(namespace, &resource, &mut remains).await
            && !client::is_not_found(&error)
            && !client::error::is_method_not_allowed(&error)
        {
            remains.failure = Some(text_of(&error));
        }
        remains
    }

    async fn try_empty(&self, namespace: &str, resource: &Resource, remains: &mut Remains) -> Result<(), kube::Error> {
        let api = resource.in_namespace(&self.client, namespace);
        let all = ListParams::default();
        let present = api.list_metadata(&all).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        // Background: this controller deletes every kind itself, so nothing needs to be kept for its owner's sake.
        let params = DeleteParams::background();
        if resource.can(&["deletecollection"]) {
            api.delete_collection(&params, &all).await?;
        } else {
            for name in present.items.iter().filter_map(|object| object.metadata.name.as_deref()) {
                client::found(api.delete(name, &params).await)?;
            }
        }
        for object in api.list_metadata(&all).await?.items {
            remains.count += 1;
            for finalizer in object.metadata.finalizers.into_iter().flatten() {
                *remains.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn write_conditions(&self, name: &String, namespace: &Namespace, outcome: &Outcome) -> Result<Namespace> {
        let old = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let new = conditions(old, outcome, Timestamp::now());
        let mut updated = namespace.clone();
        let status = updated.status.get_or_insert_default();
        // An empty namespace goes at once; nobody would read that it is empty.
        if new == old || (outcome.is_clean() && old.is_empty()) {
            return Ok(updated);
        }
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(new);
        let api: Api<Namespace> = Api::all(self.client.clone());
        let written = api.replace_status(name, &write::post(), &updated).await?;
        self.gate.wrote(name, &written);
        Ok(written)
    }

    async fn finalize(&self, name: &String, mut namespace: Namespace) -> Result<()> {
        if let Some(finalizers) = namespace.spec.get_or_insert_default().finalizers.as_mut() {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.replace_subresource("finalize", name, &write::post(), &namespace).await {
            Ok(_) => self.gate.deleted(name, &namespace),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What is left of one resource.
#[derive(Default)]
struct Remains {
    name: String,
    count: usize,
    finalizers: BTreeMap<String, usize>,
    failure: Option<String>,
}

/// What is left of a namespace.
#[derive(Default)]
struct Outcome {
    discovery_failure: Option<String>,
    failures: Vec<String>,
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Outcome {
    fn add(&mut self, remains: Remains) {
        if remains.count > 0 {
            self.remaining.insert(remains.name, remains.count);
        }
        for (finalizer, count) in remains.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
        self.failures.extend(remains.failure);
    }

    fn is_clean(&self) -> bool {
        self.discovery_failure.is_none() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

/// Upstream's five conditions, with its reasons and messages; those that have not changed keep their time.
fn conditions(old: &[NamespaceCondition], outcome: &Outcome, now: Timestamp) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, between: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, n)| format!("{name} {between} {n} resource instances")).collect();
        parts.join(", ")
    };
    let content_failure = (!outcome.failures.is_empty()).then(|| {
        let mut failures = outcome.failures.clone();
        failures.sort();
        format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", "))
    });
    let remaining = (!outcome.remaining.is_empty())
        .then(|| format!("Some resources are remaining: {}", list(&outcome.remaining, "has")));
    let finalizers = (!outcome.finalizers.is_empty()).then(|| {
        format!("Some content in the namespace has finalizers remaining: {}", list(&outcome.finalizers, "in"))
    });
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ("DiscoveryFailed", outcome.discovery_failure.clone()),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ("GroupVersionParsingFailed", None),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            ("ContentDeletionFailed", content_failure),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            ("SomeResourcesRemain", remaining),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            ("SomeFinalizersRemain", finalizers),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut conditions: Vec<NamespaceCondition> = old.to_vec();
    for (type_, (bad_reason, problem), (good_reason, good_message)) in rows {
        let (status, reason, message) = match problem {
            Some(problem) => ("True", bad_reason, problem),
            None => ("False", good_reason, good_message.to_owned()),
        };
        let new = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(seen) if (&seen.status, &seen.reason, &seen.message) == (&new.status, &new.reason, &new.message) => {}
            Some(seen) => *seen = new,
            None => conditions.push(new),
        }
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::now;

    #[test]
    fn conditions_name_what_remains_and_settle() {
        let mut outcome = Outcome::default();
        let finalizers = BTreeMap::from([("example.com/keep".to_owned(), 2)]);
        outcome.add(Remains { name: "pods.".into(), count: 1, ..Remains::default() });
        outcome.add(Remains { name: "widgets.example.com".into(), count: 2, finalizers, failure: None });
        let first = conditions(&[], &outcome, now());
        let of = |conditions: &[NamespaceCondition], type_: &str| {
            let found = conditions.iter().find(|condition| condition.type_ == type_).expect("present");
            format!("{} {}", found.status, found.message.as_deref().unwrap_or_default())
        };
        assert_eq!(
            of(&first, "NamespaceContentRemaining"),
            "True Some resources are remaining: pods. has 1 resource instances, widgets.example.com has 2 resource instances"
        );
        assert_eq!(
            of(&first, "NamespaceFinalizersRemaining"),
            "True Some content in the namespace has finalizers remaining: example.com/keep in 2 resource instances"
        );
        assert_eq!(conditions(&first, &outcome, Timestamp::UNIX_EPOCH), first, "unchanged");
        let settled = conditions(&first, &Outcome::default(), now());
        assert_eq!(of(&settled, "NamespaceContentRemaining"), "False All content successfully removed");
        assert_eq!(settled.len(), 5);
    }
}
