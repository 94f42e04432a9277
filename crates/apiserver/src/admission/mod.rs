//! Admission: policy between authorisation and commit. Built-in plugins are pure over the request and a read view.

mod certificates;
mod default_class;
mod limit_ranger;
pub mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod pod_spec;
pub mod policies;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
pub mod storage;
mod taint_nodes;
#[cfg(test)]
pub(crate) mod testing;
mod toleration_seconds;
pub mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::authz::Authorizer;
use crate::object::Entry;
use crate::request::UserInfo;
use crate::strategy::Claim;
use crate::view::View;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// One request as admission sees it (`admission.Attributes`).
pub struct Request<'a> {
    pub operation: Operation,
    pub user: &'a UserInfo,
    pub row: &'a ResourceRow,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The object as it would be stored; for delete `Null`, for subresources their body.
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    /// Seconds since the epoch.
    pub now: i64,
    /// A random number for generated names.
    pub seed: u64,
    pub view: &'a View,
    /// Warnings for the client (`Warning: 299` headers).
    pub warnings: &'a mut Vec<String>,
    /// Of a request that is audited.
    pub audit: Option<&'a crate::audit::Record>,
}

impl Request<'_> {
    /// Whether this is about `plural` of `group`; `subresource` is empty for the resource itself.
    pub fn is(&self, group: &str, plural: &str, subresource: &str) -> bool {
        self.is_any(group, plural) && self.subresource == subresource
    }

    /// As [`Request::is`], with any subresource or none.
    pub fn is_any(&self, group: &str, plural: &str) -> bool {
        *self.row.plural == *plural && *self.row.group == *group
    }

    /// A refusal as upstream's `admission.NewForbidden` words it: `pods "x" is forbidden: …`.
    pub fn forbidden(&self, why: &str) -> StatusError {
        let named = [self.name, meta::name(self.object), meta::str_at(self.object, &["metadata", "generateName"])];
        let name = named.into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown");
        StatusError::forbidden(&self.row.group_resource(), name, why)
    }
}

/// Whether a stored object's JSON contains `text`: cheaper than parsing, for what nearly no object has.
fn mentions(entry: &Entry, text: &str) -> bool {
    entry.value.json().windows(text.len()).any(|window| window == text.as_bytes())
}

/// An admission plugin. `admit` may change the object and runs before decoding defaults are final; `validate` runs after all mutation.
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    fn handles(&self, operation: Operation) -> bool;
    fn admit(&self, _request: &mut Request<'_>) -> Result<()> {
        Ok(())
    }
    fn validate(&self, _request: &mut Request<'_>) -> Result<()> {
        Ok(())
    }
    /// What is written in the transaction that writes the object, and on what condition; or why the object may not be. Asked last, of
    /// the object as it will be stored, and again after a lost race.
    fn claims(&self, _request: &Request<'_>) -> Result<Vec<Claim>> {
        Ok(Vec::new())
    }
    /// What creates of a kind in a namespace hold one after the other, where their claims would else lose against each other.
    fn turn(&self, _view: &View, _row: &ResourceRow, _namespace: &str) -> Option<Arc<Mutex<()>>> {
        None
    }
}

/// The plugins in upstream's order.
#[derive(Default)]
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        Chain { plugins }
    }

    /// Upstream's `--disable-admission-plugins`.
    #[must_use]
    pub fn without(mut self, names: &[&str]) -> Self {
        self.plugins.retain(|plugin| !names.contains(&plugin.name()));
        self
    }

    pub fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        self.applicable(request.operation).try_for_each(|plugin| plugin.admit(request))
    }

    pub fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        self.applicable(request.operation).try_for_each(|plugin| plugin.validate(request))
    }

    pub fn claims(&self, request: &Request<'_>) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for plugin in self.applicable(request.operation) {
            claims.extend(plugin.claims(request)?);
        }
        Ok(claims)
    }

    /// Waits for the turn of a write, if writes like it take turns, and holds it.
    pub async fn turn(&self, view: &View, row: &ResourceRow, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        let turn = self.plugins.iter().find_map(|plugin| plugin.turn(view, row, namespace))?;
        Some(turn.lock_owned().await)
    }

    fn applicable(&self, operation: Operation) -> impl Iterator<Item = &dyn Plugin> {
        self.plugins.iter().map(|p| &**p).filter(move |p| p.handles(operation))
    }
}

/// How long a new object waits for what a controller is about to create, as upstream.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for what `object` refers to, where a controller creates that a moment after the namespace: whoever applies a namespace and its
/// pods together must not lose a race. Returns in any case; the plugins then decide. The only part of admission that takes time.
pub async fn settle(view: &View, row: &ResourceRow, namespace: &str, object: &Value) {
    let Some(key) = service_account::awaited(view, row, namespace, object) else { return };
    let arrival = async {
        let mut watcher = view.store().watch_key(&key, view.store().revision())?;
        while view.store().get(&key).is_none() {
            watcher.next().await?;
        }
        Ok::<(), store::Error>(())
    };
    if !matches!(tokio::time::timeout(PATIENCE, arrival).await, Ok(Ok(()))) {
        tracing::debug!(key, "what a new object refers to did not come in time");
    }
}

/// The plugins that are on by default, as upstream's, and NodeRestriction.
///
/// [`storage::StorageObjectInUseProtection`] joins them where controllers run that take its finalizers off again: without those, no
/// claim could ever be deleted.
pub fn default_chain(authorizer: Arc<Authorizer>) -> Chain {
    Chain::new(vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(priority::Priority),
        Box::new(toleration_seconds::DefaultTolerationSeconds),
        Box::new(default_class::DefaultStorageClass),
        Box::new(storage::PersistentVolumeClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(certificates::CertificateApproval(authorizer.clone())),
        Box::new(certificates::CertificateSigning(authorizer)),
        Box::new(certificates::CertificateSubjectRestriction),
        Box::new(default_class::DefaultIngressClass),
        Box::new(resource_quota::ResourceQuota::new()),
    ])
}
