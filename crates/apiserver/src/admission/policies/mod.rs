//! Admission policies: expressions that an administrator has written have a say in writes (ValidatingAdmissionPolicy), or change what
//! is written (MutatingAdmissionPolicy). Mutating ones come before mutating webhooks, validating ones before validating webhooks.
//!
//! Policies and bindings are compiled when they change, and looked at as of the last acknowledged write. They are found by the resource
//! that is written, so that a write that none speaks of costs a look into a table.

mod config;
mod expressions;
mod found;
mod metrics;
mod mutating;
mod params;
mod patches;
#[cfg(test)]
mod tests;
mod validating;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::resource::ResourceRow;
use parking_lot::Mutex;

pub use expressions::{Environment, Want};
pub use mutating::mutate;
pub use validating::validate;

use super::webhooks::{Attempt, Phase, matching};
use crate::authz::follow::{Followed, Indexed};
use crate::object::Object;
use crate::view::View;
use config::{Binding, Policy};
use expressions::{CONDITIONS_BUDGET, Evaluation, Fault, Inputs, Outcome};
use metrics::Tally;

/// All admission policies of the cluster.
pub struct Policies {
    view: View,
    index: Mutex<Followed<Index>>,
    pub(crate) tally: Tally,
}

/// A policy in force, with the bindings that put it there, by their names.
#[derive(Debug)]
pub struct Active {
    policy: Arc<Policy>,
    bindings: Vec<Arc<Binding>>,
}

/// Policies in the order in which they are evaluated: by name.
pub type Hooks = Arc<[Arc<Active>]>;

impl Policies {
    pub fn new(view: View) -> Self {
        Policies { view, index: Mutex::default(), tally: Tally::default() }
    }

    /// The policies of a phase that may speak of the resource of `row`; none for nearly every write. Fails where they cannot be read:
    /// what they would refuse must not pass for it.
    pub fn of(&self, phase: Phase, row: &ResourceRow) -> Result<Option<Hooks>, store::Error> {
        let mut index = self.index.lock();
        let table = &index.checked(&self.view)?.phases[phase as usize].table;
        if table.is_empty() {
            return Ok(None);
        }
        Ok(table.of(&row.plural).cloned())
    }

    /// In Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        self.tally.render()
    }
}

/// Whether a policy's match conditions hold.
fn conditions(policy: &Policy, inputs: &Inputs<'_>) -> Result<bool, String> {
    if policy.conditions.is_empty() {
        return Ok(true);
    }
    let evaluation = Evaluation::new(&policy.environment, inputs, CONDITIONS_BUDGET);
    let mut faults = Vec::new();
    for condition in &policy.conditions {
        match evaluation.run(condition) {
            Ok(Outcome::Bool(false)) => return Ok(false),
            Ok(_) => {}
            Err(Fault::Expression(why)) => faults.push(why),
            // As upstream, what was found out before counts for nothing.
            Err(fault @ Fault::Budget) => {
                return matching::outcome_of(&[fault.message().to_owned()], policy.fails_open);
            }
        }
    }
    matching::outcome_of(&faults, policy.fails_open)
}

/// Kinds that are not decided about: policies themselves, which could lock their own configuration, and questions to the server that
/// are not stored (upstream's `exclusion.Excluded`).
pub fn exempt(row: &ResourceRow) -> bool {
    match &*row.group {
        "admissionregistration.k8s.io" => matches!(
            &*row.plural,
            "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
        ),
        "authentication.k8s.io" => matches!(&*row.plural, "selfsubjectreviews" | "tokenreviews"),
        "authorization.k8s.io" => matches!(
            &*row.plural,
            "localsubjectaccessreviews"
                | "selfsubjectaccessreviews"
                | "selfsubjectrulesreviews"
                | "subjectaccessreviews"
        ),
        _ => false,
    }
}

/// Mutating first, as [`Phase`].
#[derive(Default)]
struct Index {
    phases: [Configurations; 2],
}

#[derive(Default)]
struct Configurations {
    policies: BTreeMap<Box<str>, Arc<Policy>>,
    bindings: BTreeMap<Box<str>, Arc<Binding>>,
    table: Table,
}

/// Active policies by the plural names of resources that their rules speak of.
#[derive(Default)]
struct Table {
    by_plural: HashMap<Box<str>, Hooks>,
    /// Those that speak of any resource: what is to be asked for one that `by_plural` does not have.
    of_all: Option<Hooks>,
}

impl Table {
    fn new(active: &[Arc<Active>]) -> Self {
        let of_all = |active: &&Arc<Active>| active.policy.plurals.is_none();
        let speaks = |active: &&Arc<Active>, plural: &str| {
            active.policy.plurals.as_ref().is_none_or(|plurals| plurals.iter().any(|one| **one == *plural))
        };
        let plurals = active.iter().filter_map(|active| active.policy.plurals.as_ref()).flatten();
        let by_plural = plurals.map(|plural| {
            let hooks: Hooks = active.iter().filter(|active| speaks(active, plural)).cloned().collect();
            (plural.clone(), hooks)
        });
        let by_plural = by_plural.collect();
        let all: Hooks = active.iter().filter(of_all).cloned().collect();
        Table { by_plural, of_all: (!all.is_empty()).then_some(all) }
    }

    fn is_empty(&self) -> bool {
        self.of_all.is_none() && self.by_plural.is_empty()
    }

    fn of(&self, plural: &str) -> Option<&Hooks> {
        self.by_plural.get(plural).or(self.of_all.as_ref())
    }
}

impl Configurations {
    /// A policy without a binding is not in force, nor is a binding without its policy.
    fn retable(&mut self) {
        let mut active = Vec::new();
        for (name, policy) in &self.policies {
            let own = self.bindings.values().filter(|binding| *binding.policy_name == **name);
            let bindings: Vec<Arc<Binding>> = own.cloned().collect();
            if !bindings.is_empty() {
                active.push(Arc::new(Active { policy: policy.clone(), bindings }));
            }
        }
        self.table = Table::new(&active);
    }
}

impl Indexed for Index {
    const PREFIXES: &'static [&'static str] = &[
        "mutatingadmissionpolicies",
        "validatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
        "validatingadmissionpolicybindings",
    ];

    fn apply(&mut self, prefix: usize, _: &str, name: &str, object: Option<&Object>) {
        let phase = &mut self.phases[prefix % 2];
        let value = object.map(Object::value);
        if prefix < 2 {
            // A new status is no new policy.
            match value {
                Some(value) if phase.policies.get(name).is_some_and(|known| known.is_of(&value)) => return,
                Some(value) => phase.policies.insert(name.into(), Arc::new(Policy::compile(&value))),
                None => phase.policies.remove(name),
            };
        } else {
            match value {
                Some(value) => phase.bindings.insert(name.into(), Arc::new(Binding::new(&value))),
                None => phase.bindings.remove(name),
            };
        }
        phase.retable();
    }
}
