//! Networks of cluster IPs: ready once they are kept from going while services use them (upstream's service-cidr-controller).
//!
//! A network that is deleted stays until no cluster IP needs it: none is left in it, or each is in another network as well.
//! Must not know how addresses are given out; the API server does that, of networks that are ready.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Informer, Next, Queue, run_workers};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::Api;
use tokio::sync::OnceCell;

use crate::error::Result;
use crate::write;

const IDENTITY: &str = "service-cidrs-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";
const WORKERS: usize = 2;
/// The API server may have given out an address just before it learned of the deletion (upstream's `deletionGracePeriod`).
const GRACE: Duration = Duration::from_secs(10);

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let cidrs = context.informers.of::<ServiceCIDR>();
    cidrs.synced().await;
    let queue: Queue<String> = Queue::default();
    let (known, changed) = (cidrs.clone(), queue.clone());
    cidrs.on_change(move |change: Change<'_, ServiceCIDR>| {
        changed.add(name_of(change.object()));
        // What one network holds, another may have to keep.
        leaving(&known).for_each(|name| changed.add(name));
    });
    let gate = Gate::new(cidrs.clone());
    let shutdown = context.shutdown.clone();
    let controller =
        Arc::new(Controller { client, gate, cidrs, addresses: OnceCell::new(), queue: queue.clone(), context });
    run_workers(IDENTITY, queue, WORKERS, shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    context: Context,
    cidrs: Informer<ServiceCIDR>,
    gate: Gate<ServiceCIDR, String>,
    /// Watched from the first deletion of a network on: few clusters ever see one.
    addresses: OnceCell<Informer<IPAddress>>,
    queue: Queue<String>,
}

impl Controller {
    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(cidr) = self.cidrs.get("", name) else { return Ok(Next::Wait) };
        let used = if cidr.metadata.deletion_timestamp.is_some() { self.is_used(&cidr).await } else { false };
        let step = plan(&cidr, used, Timestamp::now());
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        let (next, updated) = match step {
            Step::Nothing => return Ok(Next::Wait),
            Step::Wait(rest) => return Ok(Next::After(rest)),
            Step::Spec(updated) => (Next::Wait, api.replace(name, &write::post(), &updated).await),
            Step::Status(updated) => (Next::Wait, api.replace_status(name, &write::post(), &updated).await),
        };
        match updated {
            Ok(written) => self.gate.wrote(name, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(next)
    }

    async fn is_used(&self, cidr: &ServiceCIDR) -> bool {
        let addresses = self.addresses.get_or_init(async || self.watch_addresses().await).await;
        let others: Vec<Arc<ServiceCIDR>> =
            self.cidrs.list().into_iter().filter(|other| name_of(other) != name_of(cidr)).collect();
        is_used(cidr, &others, &addresses.list())
    }

    async fn watch_addresses(&self) -> Informer<IPAddress> {
        let addresses = self.context.informers.of::<IPAddress>();
        addresses.synced().await;
        let (known, queue) = (self.cidrs.clone(), self.queue.clone());
        addresses.on_change(move |change| {
            if let Change::Deleted { .. } = change {
                leaving(&known).for_each(|name| queue.add(name));
            }
        });
        addresses
    }
}

fn name_of(cidr: &ServiceCIDR) -> String {
    cidr.metadata.name.clone().unwrap_or_default()
}

/// Networks that are deleted and still there.
fn leaving(cidrs: &Informer<ServiceCIDR>) -> impl Iterator<Item = String> {
    let all = cidrs.list().into_iter().filter(|cidr| cidr.metadata.deletion_timestamp.is_some());
    all.map(|cidr| name_of(&cidr))
}

fn networks(cidr: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|text| text.parse().ok())
}

/// Whether a network that is to go has an address that no other has.
fn is_used(cidr: &ServiceCIDR, others: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let staying = || others.iter().filter(|other| other.metadata.deletion_timestamp.is_none());
    let is_only_here = |address: &IpAddr| {
        networks(cidr).any(|network| network.contains(address))
            && !staying().flat_map(|other| networks(other)).any(|network| network.contains(address))
    };
    let managed = addresses.iter().filter(|address| {
        let labels = address.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("ipaddress.kubernetes.io/managed-by"))
            .is_some_and(|by| by == "ipallocator.k8s.io")
    });
    let mut parsed = managed.filter_map(|address| address.metadata.name.as_ref()?.parse::<IpAddr>().ok());
    parsed.any(|address| is_only_here(&address))
}

/// What to do next for one network.
enum Step {
    Nothing,
    /// Look again then.
    Wait(Duration),
    /// Write it.
    Spec(ServiceCIDR),
    /// Write its status.
    Status(ServiceCIDR),
}

/// `used`: some address is in no other network; asked of networks that are to go only.
fn plan(cidr: &ServiceCIDR, used: bool, now: Timestamp) -> Step {
    let held = cidr.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    let Some(Time(deleted)) = cidr.metadata.deletion_timestamp else {
        if held {
            return status(cidr, "True", "", "Kubernetes Service CIDR is ready", now);
        }
        let mut updated = cidr.clone();
        updated.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
        return Step::Spec(updated);
    };
    if !held {
        return Step::Nothing;
    }
    if used {
        let why =
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        return status(cidr, "False", "Terminating", why, now);
    }
    let passed = Duration::try_from(now.duration_since(deleted)).unwrap_or_default();
    if let Some(rest) = GRACE.checked_sub(passed).filter(|rest| !rest.is_zero()) {
        return Step::Wait(rest);
    }
    let mut updated = cidr.clone();
    updated.metadata.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
    Step::Spec(updated)
}

/// Sets the condition, unless it says so already.
fn status(cidr: &ServiceCIDR, value: &str, reason: &str, message: &str, now: Timestamp) -> Step {
    let old = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|c| c.type_ == READY);
    if old.is_some_and(|old| old.status == value && old.reason == reason) {
        return Step::Nothing;
    }
    let mut updated = cidr.clone();
    let conditions = updated.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != READY);
    conditions.push(Condition {
        type_: READY.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    });
    Step::Status(updated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cidr(name: &str, network: &str, more: serde_json::Value) -> ServiceCIDR {
        let mut object = json!({"metadata": {"name": name}, "spec": {"cidrs": [network]}});
        for (key, value) in more.as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        serde_json::from_value(object).expect("a network")
    }

    fn address(ip: &str) -> Arc<IPAddress> {
        let labels = json!({"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": ip, "labels": labels}})).expect("an address"))
    }

    #[test]
    fn a_network_is_held_then_ready_then_left_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let Step::Spec(held) = plan(&cidr("a", "10.0.0.0/24", json!({})), false, now) else { panic!("not held") };
        assert_eq!(held.metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
        let Step::Status(ready) = plan(&held, false, now) else { panic!("not ready") };
        assert_eq!(
            ready.status.as_ref().and_then(|s| s.conditions.as_ref()).map(|c| c[0].status.as_str()),
            Some("True")
        );
        assert!(matches!(plan(&ready, false, now), Step::Nothing));
    }

    #[test]
    fn a_deleted_network_waits_for_its_addresses_and_the_grace() {
        let gone =
            cidr("a", "10.0.0.0/24", json!({"deletionTimestamp": "1970-01-01T00:00:00Z", "finalizers": [FINALIZER]}));
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        assert!(matches!(plan(&gone, true, at(60)), Step::Status(_)));
        assert!(matches!(plan(&gone, false, at(4)), Step::Wait(rest) if rest == Duration::from_secs(6)));
        let Step::Spec(free) = plan(&gone, false, at(10)) else { panic!("held") };
        assert_eq!(free.metadata.finalizers, Some(Vec::new()));
    }

    #[test]
    fn an_address_keeps_the_only_network_that_has_it() {
        let gone = cidr("a", "10.0.0.0/24", json!({}));
        let used = |others: &[Arc<ServiceCIDR>], ip: &str| is_used(&gone, others, &[address(ip)]);
        assert!(used(&[], "10.0.0.9"));
        assert!(!used(&[], "10.0.1.9"));
        assert!(!used(&[Arc::new(cidr("b", "10.0.0.0/16", json!({})))], "10.0.0.9"));
        let leaving = json!({"deletionTimestamp": "1970-01-01T00:00:00Z"});
        assert!(used(&[Arc::new(cidr("b", "10.0.0.0/16", leaving))], "10.0.0.9"));
    }
}
