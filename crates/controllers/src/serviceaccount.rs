//! What every namespace gets: the service account `default` ([`run`]), and the config map with the cluster's certificate
//! authority ([`publish_root_ca`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use client::informer::Selection;
use client::{Change, Context, Gate, Informer, Next, Queue, run_workers};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::Api;

use crate::error::Result;
use crate::write;

const DEFAULT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const WORKERS: usize = 2;

/// Namespaces that live, as a queue fed by their changes.
fn living(namespaces: &Informer<Namespace>, queue: &Queue<String>) {
    let queue = queue.clone();
    namespaces.on_change(move |change: Change<'_, Namespace>| {
        if let Change::Applied { new, .. } = change
            && new.metadata.deletion_timestamp.is_none()
        {
            queue.add(new.metadata.name.clone().unwrap_or_default());
        }
    });
}

fn lives(namespaces: &Informer<Namespace>, name: &str) -> bool {
    namespaces.get("", name).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

fn named(name: &str) -> Selection {
    Selection { fields: Some(format!("metadata.name={name}")), labels: None }
}

/// Keeps a service account `default` in each namespace.
pub async fn run(context: Context) {
    let client = context.as_controller("service-account-controller");
    let namespaces = context.informers.of::<Namespace>();
    let accounts: Informer<ServiceAccount> = context.informers.select(named(DEFAULT));
    namespaces.synced().await;
    accounts.synced().await;
    let queue: Queue<String> = Queue::default();
    living(&namespaces, &queue);
    let deleted = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Deleted { old } = change {
            deleted.add(old.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let gate: Gate<ServiceAccount, String> = Gate::new(accounts.clone());
    let state = Arc::new((client, namespaces, accounts, gate));
    run_workers("service-account-controller", queue, WORKERS, context.shutdown, move |namespace| {
        let state = state.clone();
        async move {
            let (client, namespaces, accounts, gate) = &*state;
            gate.opened(&namespace).await?;
            if !lives(namespaces, &namespace) || accounts.get(&namespace, DEFAULT).is_some() {
                return Ok(Next::Wait);
            }
            let mut account = ServiceAccount::default();
            account.metadata.name = Some(DEFAULT.to_owned());
            let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
            match api.create(&write::post(), &account).await {
                Ok(created) => gate.wrote(&namespace, &created),
                Err(error) if is_settled(&error) => {}
                Err(error) => return Err(crate::Error::from(error)),
            }
            Ok(Next::Wait)
        }
    })
    .await;
}

/// The object is there already, or will not be needed.
fn is_settled(error: &kube::Error) -> bool {
    client::is_already_exists(error) || client::is_namespace_terminating(error)
}

/// Keeps the config map `kube-root-ca.crt` with `ca` (PEM) in each namespace.
pub async fn publish_root_ca(context: Context, ca: String) {
    if ca.is_empty() {
        return;
    }
    let client = context.as_controller("root-ca-cert-publisher");
    let namespaces = context.informers.of::<Namespace>();
    let maps: Informer<ConfigMap> = context.informers.select(named(ROOT_CA));
    namespaces.synced().await;
    maps.synced().await;
    let queue: Queue<String> = Queue::default();
    living(&namespaces, &queue);
    let changed = queue.clone();
    maps.on_change(move |change| changed.add(change.object().metadata.namespace.clone().unwrap_or_default()));
    let gate = Gate::new(maps.clone());
    let publisher = Arc::new(Publisher { client, namespaces, maps, gate, ca });
    run_workers("root-ca-cert-publisher", queue, WORKERS, context.shutdown, move |namespace| {
        let publisher = publisher.clone();
        async move { publisher.reconcile(&namespace).await }
    })
    .await;
}

struct Publisher {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    gate: Gate<ConfigMap, String>,
    ca: String,
}

impl Publisher {
    async fn reconcile(&self, namespace: &String) -> Result<Next> {
        self.gate.opened(namespace).await?;
        if !lives(&self.namespaces, namespace) {
            return Ok(Next::Wait);
        }
        let current = self.maps.get(namespace, ROOT_CA);
        let Some(wanted) = wanted_map(current.as_deref(), &self.ca) else { return Ok(Next::Wait) };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let result = match current {
            Some(_) => api.replace(ROOT_CA, &write::post(), &wanted).await,
            None => api.create(&write::post(), &wanted).await,
        };
        match result {
            Ok(written) => self.gate.wrote(namespace, &written),
            Err(error) if is_settled(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Wait)
    }
}

/// The config map to write, unless the current one is right.
fn wanted_map(current: Option<&ConfigMap>, ca: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([(CA_KEY.to_owned(), ca.to_owned())]);
    let described =
        |map: &ConfigMap| map.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(DESCRIPTION));
    if current.is_some_and(|map| map.data.as_ref() == Some(&data) && described(map)) {
        return None;
    }
    let mut map = current.cloned().unwrap_or_default();
    map.metadata.name = Some(ROOT_CA.to_owned());
    let description = "The certificate authority by which the API server is verified within the cluster.";
    map.metadata.annotations.get_or_insert_default().insert(DESCRIPTION.to_owned(), description.to_owned());
    map.data = Some(data);
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tampered_map_is_mended_and_a_right_one_left() {
        let right = wanted_map(None, "PEM").expect("missing");
        assert!(wanted_map(Some(&right), "PEM").is_none());
        let mut tampered = right.clone();
        tampered.data.get_or_insert_default().insert("extra".into(), "x".into());
        assert_eq!(wanted_map(Some(&tampered), "PEM").and_then(|map| map.data), right.data);
        assert!(wanted_map(Some(&right), "renewed").is_some());
    }
}
