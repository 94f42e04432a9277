//! Admission by webhooks: servers that an administrator has configured have a say in writes, after the built-in plugins.
//!
//! Configurations are compiled when they change, and looked at as of the last acknowledged write. A write that no configuration
//! speaks of waits for nothing.

mod config;
pub(super) mod dispatch;
pub(super) mod matching;
mod outcome;
pub(super) mod review;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use parking_lot::Mutex;

pub use config::{Criteria, Hook, VARIABLES, exempt};
pub use dispatch::{Rounds, mutate, validate};
pub use outcome::Tally;

use super::Operation;
use crate::authz::follow::{Followed, Indexed};
use crate::backend::Backends;
use crate::object::Object;
use crate::request::RequestInfo;
use crate::server::{ApiServer, Call};
use crate::view::View;

/// Which of the two configurations a hook is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Mutating,
    Validating,
}

/// All webhooks of the cluster, and the connections to them.
pub struct Webhooks {
    view: View,
    index: Mutex<Followed<Index>>,
    pub backends: Backends,
    pub tally: Tally,
}

/// Hooks in the order in which they are called: by their configuration's name, then as listed there.
pub type Hooks = Arc<[Arc<Hook>]>;

impl Webhooks {
    pub fn new(view: View) -> Self {
        let backends = Backends::new(view.clone());
        Webhooks { view, index: Mutex::default(), backends, tally: Tally::default() }
    }

    /// The hooks of a phase; none for nearly every cluster. Fails where the configurations cannot be read: what they would refuse
    /// must not pass for it.
    pub fn of(&self, phase: Phase) -> Result<Option<Hooks>, store::Error> {
        let mut index = self.index.lock();
        let hooks = &index.checked(&self.view)?.phases[phase as usize].hooks;
        Ok((!hooks.is_empty()).then(|| hooks.clone()))
    }
}

#[derive(Default)]
struct Index {
    phases: [Configurations; 2],
}

struct Configurations {
    by_name: BTreeMap<Box<str>, Vec<Arc<Hook>>>,
    hooks: Hooks,
}

impl Default for Configurations {
    fn default() -> Self {
        Configurations { by_name: BTreeMap::new(), hooks: Arc::new([]) }
    }
}

impl Indexed for Index {
    const PREFIXES: &'static [&'static str] = &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];

    fn apply(&mut self, prefix: usize, _: &str, name: &str, object: Option<&Object>) {
        let phase = &mut self.phases[prefix];
        match object {
            Some(object) => phase.by_name.insert(name.into(), config::hooks(&object.value())),
            None => phase.by_name.remove(name),
        };
        phase.hooks = phase.by_name.values().flatten().cloned().collect();
    }
}

/// One write as webhooks see it, besides the objects (upstream's `admission.Attributes`).
pub struct Attempt<'a> {
    pub server: &'a ApiServer,
    pub call: &'a Call,
    pub operation: Operation,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// Empty where the name is still to be generated.
    pub name: String,
    pub dry_run: bool,
    /// `CreateOptions` and its kin; null for connections.
    pub options: Value,
}

impl Attempt<'_> {
    pub fn row(&self) -> &Arc<ResourceRow> {
        &self.call.row
    }

    /// What the write is about, as authorisation asks of it; only the verb is left to say.
    pub fn resource_info(&self) -> RequestInfo {
        let row = self.row();
        RequestInfo {
            is_resource: true,
            group: row.group.to_string(),
            resource: row.plural.to_string(),
            subresource: self.subresource.to_owned(),
            namespace: self.namespace().to_owned(),
            name: self.name.clone(),
            ..RequestInfo::default()
        }
    }

    pub fn namespace(&self) -> &str {
        &self.call.info.namespace
    }

    /// Whether the write is of namespaces themselves.
    pub fn is_namespaces(&self) -> bool {
        self.row().group.is_empty() && &*self.row().plural == "namespaces"
    }
}
