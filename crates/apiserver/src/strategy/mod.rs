//! What is special about a kind. A row without a strategy behaves exactly like a custom resource.
//!
//! This folder is the only place of the API server that names kinds; one file per kind or family. There are no after-hooks: what
//! happens after a commit is a controller's work.

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::status::Result;
use store::{Compare, Op};

use crate::request::UserInfo;
use crate::view::View;

/// What a strategy may look at besides the object.
pub struct Context<'a> {
    pub user: &'a UserInfo,
    pub view: &'a View,
    /// Seconds since the epoch.
    pub now: i64,
    /// A random number for choices (cluster IPs, ports).
    pub seed: u64,
    pub config: &'a Settings,
}

/// The cluster's settings that strategies need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `10.43.0.0/16`
    pub service_cidr: String,
    /// Inclusive, 30000–32767 unless configured.
    pub node_ports: (u16, u16),
}

/// Which endpoint of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object itself: `status` of the request is ignored where the row has a status subresource.
    Main,
    Status,
    /// Any other subresource that writes the object (`ephemeralcontainers`, `resize`, `approval`, `finalize`, …).
    Other(&'static str),
}

pub trait Strategy: Send + Sync {
    /// Defaults that depend on other fields; schema defaults are set already.
    fn default(&self, _object: &mut Value) {}

    /// Sets what clients may not (`status`, generated fields) before create.
    fn prepare_create(&self, _cx: &Context<'_>, _object: &mut Value) {}

    /// Carries over from `old` what this part may not change. For rows with a status subresource the generic code has done
    /// so for `spec`/`status` already, and counts `metadata.generation` when the spec changed.
    fn prepare_update(&self, _cx: &Context<'_>, _part: Part, _object: &mut Value, _old: &Value) {}

    /// Cross-field rules and immutability; field rules that are data have been checked already.
    fn validate(&self, _cx: &Context<'_>, _part: Part, _object: &Value, _old: Option<&Value>) -> ErrorList {
        ErrorList::new()
    }

    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Claims shared names (cluster IPs, node ports) in the same transaction: what to compare and write besides the object.
    /// Called again on a lost race. `object` is `None` when the object goes away.
    fn allocate(
        &self,
        _cx: &Context<'_>,
        _object: Option<&mut Value>,
        _old: Option<&Value>,
    ) -> Result<Vec<(Option<Compare>, Op)>> {
        Ok(Vec::new())
    }

    /// Seconds of graceful deletion: `Some` keeps the object with a deletion timestamp until its owner (a kubelet) deletes it
    /// with grace 0. `requested` is the option's `gracePeriodSeconds`.
    fn deletion_grace(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether dependants are orphaned, or waited for, when the request does not say (`orphan` finalizer by default in old APIs).
    fn default_orphans(&self) -> bool {
        false
    }

    /// A create that updates is allowed with PUT on a missing object (leases, endpoints, configmaps are not; upstream: few).
    fn allows_create_on_update(&self) -> bool {
        false
    }

    /// An update without resourceVersion is allowed.
    fn allows_unconditional_update(&self) -> bool {
        true
    }
}
