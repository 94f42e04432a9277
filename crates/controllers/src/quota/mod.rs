//! Resource quotas: counts what a namespace uses of what its quotas limit (upstream's resourcequota-controller).
//!
//! Admission charges what is created and grows, in the transaction that writes it, so a quota's version changes with
//! whatever uses more of it. Here everything is counted anew: when a quota is new or changed, and when something went or
//! shrank. A count lists what is there, after the quota was read, and is written only over that version of the quota: what
//! was created in between has changed the version, and the count is made again. So `status.used` never falls short.
//!
//! [`apimachinery::quota`] says what counts. Kinds that a quota names are watched, all others are not.

mod watches;

use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::quota::{self, Amounts};
use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, QueueConfig, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ListParams};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::discovery::Resource;
use crate::error::Result;
use crate::write;
use watches::Watches;

const IDENTITY: &str = "resourcequota-controller";
const WORKERS: usize = 16;
/// A count that was overtaken is made again soon, however often that has happened: until then too much is charged.
const QUEUE: QueueConfig = QueueConfig { base_delay: Duration::from_millis(5), max_delay: Duration::from_secs(1) };
/// A namespace with much in it is counted so seldom that counting takes no more than a tenth of the time.
const REST: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(5);
const QUICK: Duration = Duration::from_millis(10);

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let quotas = context.informers.of::<ResourceQuota>();
    let pods = context.informers.of::<Pod>();
    let queue = Queue::new(QUEUE);
    quotas.synced().await;
    let (watches, keeping) = watches::start(&context, client.clone(), quotas.clone(), queue.clone());
    let changed = queue.clone();
    quotas.on_change(move |change: Change<'_, ResourceQuota>| {
        if let Change::Applied { new, .. } = change {
            changed.add(key_of(&**new));
        }
    });
    let (known, changed) = (quotas.clone(), queue.clone());
    pods.on_change(move |change| pod_changed(&known, &changed, &change, Timestamp::now()));
    let shutdown = context.shutdown.clone();
    let controller = Arc::new(Controller { client, gate: Gate::new(quotas.clone()), quotas, watches, shutdown });
    let work = run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
    tokio::join!(work, keeping);
}

/// Wakes the quotas of a namespace in which a pod uses less, or soon will.
fn pod_changed(quotas: &Informer<ResourceQuota>, queue: &Queue<ObjectKey>, change: &Change<'_, Pod>, now: Timestamp) {
    let wait = match change {
        Change::Applied { old: Some(old), new } => match less_used(old, new, now) {
            Some(wait) => wait,
            None => return,
        },
        // Created pods are charged for; those from before are counted with their quota.
        Change::Applied { old: None, .. } => return,
        Change::Deleted { .. } => Duration::ZERO,
    };
    let namespace = change.object().metadata.namespace.as_deref().unwrap_or_default();
    for quota in quotas.list_namespace(namespace) {
        if names_of(&quota).any(|name| quota::concerns("", "pods", name)) {
            match wait {
                Duration::ZERO => queue.add(key_of(&*quota)),
                wait => queue.add_after(key_of(&*quota), wait),
            }
        }
    }
}

/// After what time the pod uses less than before its change: at once if it has ended or was resized, when its grace is over if
/// it is being deleted. None: not because of this change.
fn less_used(old: &Pod, new: &Pod, now: Timestamp) -> Option<Duration> {
    let ended = |pod: &Pod| crate::pods::is_finished(pod);
    let sizes = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
        statuses.into_iter().map(|status| (status.resources, status.allocated_resources)).collect::<Vec<_>>()
    };
    let deadline = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let containers = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        spec.map(|spec| spec.containers.iter().map(|c| c.resources.clone()).collect::<Vec<_>>()).unwrap_or_default()
    };
    if ended(old) != ended(new)
        || deadline(old) != deadline(new)
        || sizes(old) != sizes(new)
        || containers(old) != containers(new)
    {
        return Some(Duration::ZERO);
    }
    let end = |pod: &Pod| {
        let at = pod.metadata.deletion_timestamp.as_ref()?.0.as_second();
        Some(at.saturating_add(pod.metadata.deletion_grace_period_seconds?))
    };
    let until = end(new).filter(|_| end(old) != end(new))?.saturating_add(1).saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(until).unwrap_or_default()))
}

/// All that a quota limits, and what it did when it was counted last.
fn names_of(quota: &ResourceQuota) -> impl Iterator<Item = &str> {
    let spec = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let status = quota.status.as_ref().and_then(|status| status.hard.as_ref());
    spec.into_iter().chain(status).flat_map(|hard| hard.keys().map(String::as_str))
}

/// A list of objects as the server sends it.
#[derive(Deserialize)]
struct Listed {
    items: Vec<Value>,
}

struct Controller {
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    gate: Gate<ResourceQuota>,
    watches: Watches,
    shutdown: CancellationToken,
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.gate.opened(key).await?;
        let Some(quota) = self.quotas.get(&key.0, &key.1) else {
            self.gate.forget(key);
            return Ok(Next::Wait);
        };
        let start = Instant::now();
        let value = serde_json::to_value(&*quota).unwrap_or_default();
        let used = self.count(&key.0, &value).await?;
        let counting = start.elapsed();
        if let Some(status) = next_status(&quota, used) {
            let mut updated = (*quota).clone();
            updated.status = Some(status);
            let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.0);
            match api.replace_status(&key.1, &write::post(), &updated).await {
                Ok(written) => self.gate.wrote(key, &written),
                Err(error) if client::is_not_found(&error) => return Ok(Next::Wait),
                Err(error) => return Err(error.into()),
            }
        }
        // The worker rests with the key: what changes meanwhile is one count, not many.
        if counting > QUICK {
            let rest = (counting * REST).min(REST_MAX);
            self.shutdown.run_until_cancelled(tokio::time::sleep(rest)).await;
        }
        Ok(Next::Wait)
    }

    /// What there is now of all that the quota limits. What nothing is known of is left out: its kind may come yet.
    async fn count(&self, namespace: &str, quota: &Value) -> Result<Amounts> {
        let mut used = Amounts::new();
        let names: Vec<String> = quota::hard(quota, "spec").into_keys().collect();
        for name in &names {
            if used.contains_key(name) {
                continue;
            }
            let Some((group, plural)) = quota::kind_of(name) else { continue };
            let Some(resource) = self.watches.find(group, plural).await? else { continue };
            used.extend(self.count_kind(namespace, quota, &resource).await?);
        }
        Ok(used)
    }

    async fn count_kind(&self, namespace: &str, quota: &Value, resource: &Resource) -> Result<Amounts> {
        let (group, plural) = (resource.api.group.as_str(), resource.api.plural.as_str());
        let now = Timestamp::now().as_second();
        if quota::needs_content(group, plural) {
            let url = kube::core::Request::new(resource.path(namespace));
            let request = url.list(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
            let listed: Listed = self.client.request(request).await?;
            return Ok(quota::total(group, plural, quota, listed.items.iter(), now));
        }
        let objects = if quota::is_scoped(quota) { 0 } else { self.number(namespace, resource).await? };
        let nothing = Value::Null;
        Ok(quota::total(group, plural, quota, std::iter::repeat_n(&nothing, objects), now))
    }

    /// How many objects there are, without having them sent.
    async fn number(&self, namespace: &str, resource: &Resource) -> Result<usize> {
        let api = resource.in_namespace(&self.client, namespace);
        let page = api.list_metadata(&ListParams::default().limit(1)).await?;
        let more = page.metadata.remaining_item_count.unwrap_or(0);
        Ok(page.items.len() + usize::try_from(more).unwrap_or_default())
    }
}

/// The status to write, if it is another one.
fn next_status(quota: &ResourceQuota, counted: Amounts) -> Option<ResourceQuotaStatus> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let old = quota.status.clone().unwrap_or_default();
    let amount = |quantity: &Quantity| apimachinery::quantity::Quantity::parse(&quantity.0).ok();
    // What could not be counted keeps what was counted last.
    let mut used = old.used.clone().unwrap_or_default();
    used.retain(|name, _| hard.contains_key(name));
    for (name, sum) in counted {
        if used.get(&name).and_then(amount) != Some(sum) {
            used.insert(name, Quantity(sum.to_string()));
        }
    }
    let same = old.hard.unwrap_or_default() == hard && old.used.unwrap_or_default() == used;
    (!same).then_some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, pod, yaml};

    #[test]
    fn a_pods_end_or_resize_or_the_end_of_its_grace_is_a_reason_to_count() {
        let running = pod("{ name: p }");
        let less = |new: &Pod| less_used(&running, new, now()).map(|wait| wait.as_secs());
        assert_eq!(less(&running), None);
        assert_eq!(less(&pod("{ name: p, restarts: 3, ready: 5 }")), None);
        assert_eq!(less(&pod("{ name: p, phase: Succeeded }")), Some(0));
        let mut deleting = pod("{ name: p, deleting: true }");
        deleting.metadata.deletion_grace_period_seconds = Some(30);
        assert_eq!(less(&deleting), Some(30), "a second ago, and thirty, and the one that must have passed");
        let mut resized = running.clone();
        let statuses = resized.status.as_mut().and_then(|status| status.container_statuses.as_mut());
        let status = statuses.and_then(|all| all.first_mut()).expect("a status");
        status.allocated_resources = Some([("cpu".to_owned(), Quantity("1".to_owned()))].into());
        assert_eq!(less(&resized), Some(0));
    }

    #[test]
    fn the_status_follows_the_spec_and_the_count() {
        let mut quota: ResourceQuota = yaml("{ spec: { hard: { pods: '5', secrets: '1', count/x.y: '3' } } }");
        let count = |pods: i64| {
            let amount = |value| apimachinery::quantity::Quantity::new(value, Default::default());
            Amounts::from([("pods".to_owned(), amount(pods)), ("secrets".to_owned(), amount(0))])
        };
        let status = next_status(&quota, count(2)).expect("new");
        assert_eq!(serde_json::to_string(&status.used).expect("JSON"), r#"{"pods":"2","secrets":"0"}"#);
        assert_eq!(status.hard, quota.spec.as_ref().and_then(|spec| spec.hard.clone()));
        quota.status = Some(status);
        assert_eq!(next_status(&quota, count(2)), None);
        quota.spec = Some(yaml("{ hard: { pods: '6' } }"));
        let status = next_status(&quota, count(2)).expect("changed");
        assert_eq!(status.hard.map(|hard| hard.len()), Some(1));
    }
}
