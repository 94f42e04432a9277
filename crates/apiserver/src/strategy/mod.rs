//! What is special about a kind. A row without a strategy behaves exactly like a custom resource.
//!
//! This folder is the only place of the API server that names kinds; one file per kind or family. There are no after-hooks: what
//! happens after a commit is a controller's work.

mod account;
mod admission;
mod admission_params;
mod aggregation;
mod certificates;
mod common;
mod config;
pub mod connect;
pub mod convert;
mod definitions;
mod events;
mod namespace;
mod network;
mod node;
mod pod;
mod policy;
mod rbac;
pub mod reset;
mod reviews;
mod service;
mod storage;
mod traits;
mod webhooks;
mod workloads;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::names;
use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use store::{Compare, Op};

use crate::authn::TokenSigner;
use crate::authz::Authorizer;
use crate::registry::DeleteOptions;
use crate::request::UserInfo;
use crate::view::View;
use traits::Traits;

/// What a strategy may look at besides the object.
pub struct Context<'a> {
    pub user: &'a UserInfo,
    pub view: &'a View,
    /// Seconds since the epoch.
    pub now: i64,
    /// A random number for choices (cluster IPs, ports).
    pub seed: u64,
    pub config: &'a Settings,
    /// What the request has to say besides its answer.
    pub warnings: &'a crate::warnings::Warnings,
}

/// The cluster's settings that strategies need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `10.43.0.0/16`
    pub service_cidr: String,
    /// Inclusive, 30000–32767 unless configured.
    pub node_ports: (u16, u16),
    /// `address:port` at which clients reach this server.
    pub advertise: String,
    /// How long kinds that expire are kept after their last write; none is for ever.
    pub event_ttl: Option<Duration>,
    /// PEM of the authority that signed this server's certificate, for those who join (`/cacerts`).
    pub serving_ca: String,
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

impl Part {
    /// The part that a subresource writes.
    pub fn other(name: &str) -> Self {
        const KNOWN: [&str; 6] = ["approval", "binding", "ephemeralcontainers", "finalize", "resize", "scale"];
        Part::Other(KNOWN.into_iter().find(|k| *k == name).unwrap_or_default())
    }

    /// Whether a change through this part is a new wish, which `metadata.generation` counts. A scheduler's binding is none.
    pub fn changes_wish(self) -> bool {
        self != Part::Other("binding")
    }

    /// The subresource's name; empty for the object itself.
    pub fn subresource(self) -> &'static str {
        match self {
            Part::Main => "",
            Part::Status => "status",
            Part::Other(name) => name,
        }
    }
}

/// What a POST to a subresource means.
pub enum Posted {
    /// Only an answer (a token).
    Answer(Value),
    /// The object changes as [`Strategy::posted`] says (a binding).
    Update { part: Part },
    /// The object is deleted, as [`Strategy::evict`] says.
    Delete { options: DeleteOptions },
}

/// What is written besides an object: what to compare, if anything, and the write.
pub type Claim = (Option<Compare>, Op);

/// How a POST deletes an object.
pub struct Eviction {
    /// The object's last state before it is marked or gone.
    pub object: Value,
    /// Written in the same transaction (a disruption budget's count).
    pub claims: Vec<Claim>,
}

/// Claims shared names (cluster IPs, node ports) in the transaction that writes an object.
pub trait Allocator: Send + Sync {
    /// What to compare and write besides the object; may complete the object. Called again on a lost race. `object` is `None`
    /// when the object goes away.
    fn claims(&self, cx: &Context<'_>, object: Option<&mut Value>, old: Option<&Value>) -> Result<Vec<Claim>>;
}

pub trait Strategy: Send + Sync {
    /// Defaults that depend on other fields; schema defaults are set already.
    fn default(&self, _object: &mut Value) {}

    /// Sets what clients may not (`status`, generated fields) before create.
    fn prepare_create(&self, _cx: &Context<'_>, _object: &mut Value) {}

    /// Carries over from `old` what this part may not change. For rows with a status subresource the generic code has done
    /// so for `spec`/`status` already, and counts `metadata.generation` when the wish changed.
    fn prepare_update(&self, _cx: &Context<'_>, _part: Part, _object: &mut Value, _old: &Value) {}

    /// Cross-field rules and immutability; field rules that are data have been checked already.
    fn validate(&self, _cx: &Context<'_>, _part: Part, _object: &Value, _old: Option<&Value>) -> ErrorList {
        ErrorList::new()
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }

    /// Checks of the writer's own rights that go beyond the request's verb (no escalation through roles).
    fn authorize(&self, _cx: &Context<'_>, _object: &Value, _old: Option<&Value>) -> Result<()> {
        Ok(())
    }

    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// What claims the names that objects of this kind share with others, if they share any.
    fn allocator(&self) -> Option<&dyn Allocator> {
        None
    }

    /// Seconds of graceful deletion: `Some` keeps the object with a deletion timestamp until its owner (a kubelet) deletes it
    /// with grace 0. `requested` is the option's `gracePeriodSeconds`.
    fn deletion_grace(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether something other than finalizers keeps a deleted object (`spec.finalizers` of a namespace).
    fn holds_deletion(&self, _object: &Value) -> bool {
        false
    }

    /// Further marks on an object that is being deleted.
    fn prepare_delete(&self, _object: &mut Value) {}

    /// What a POST to `subresource` of `object` means.
    fn post(&self, _cx: &Context<'_>, _subresource: &str, _object: &Value, _sent: &Value) -> Result<Posted> {
        Err(StatusError::no_such_path())
    }

    /// The object after a POST that was [`Posted::Update`].
    fn posted(&self, _cx: &Context<'_>, _subresource: &str, object: &Value, _sent: &Value) -> Result<Value> {
        Ok(object.clone())
    }

    /// What goes with a deletion that was [`Posted::Delete`]; asked again for the newest object after a lost race.
    fn evict(&self, _cx: &Context<'_>, object: &Value) -> Result<Eviction> {
        Ok(Eviction { object: object.clone(), claims: Vec::new() })
    }

    /// Where a connecting subresource (`log`, `exec`, `proxy`, …) leads.
    fn connect(&self, _ask: &connect::Ask<'_>) -> Result<connect::Connection> {
        Err(StatusError::no_such_path())
    }

    /// The answer of a kind that is not stored.
    fn answer(&self, _cx: &Context<'_>, _sent: &Value) -> Result<Value> {
        Err(StatusError::no_such_path())
    }
}

/// What strategies are made with, besides what every call hands them.
pub struct Services {
    pub authorizer: Arc<Authorizer>,
    pub authenticator: Arc<crate::authn::Authenticator>,
    pub signer: Arc<TokenSigner>,
}

/// What is special about one kind.
#[derive(Clone, Default)]
struct Special {
    traits: Traits,
    strategy: Option<Arc<dyn Strategy>>,
}

/// What is special about kinds, by group, then plural.
pub struct Strategies {
    table: HashMap<&'static str, HashMap<&'static str, Special>>,
}

impl Strategies {
    pub fn new(services: Services) -> Self {
        let services = Arc::new(services);
        let mut table: HashMap<&'static str, HashMap<&'static str, Special>> = HashMap::new();
        for (group, plural, traits) in traits::TABLE {
            table.entry(group).or_default().entry(plural).or_default().traits = *traits;
        }
        let families = [
            pod::strategies(),
            service::strategies(),
            namespace::strategies(),
            node::strategies(),
            workloads::strategies(),
            events::strategies(),
            account::strategies(&services),
            admission::strategies(&services),
            aggregation::strategies(),
            certificates::strategies(),
            config::strategies(),
            definitions::strategies(),
            network::strategies(),
            policy::strategies(),
            storage::strategies(),
            webhooks::strategies(),
            rbac::strategies(&services),
            reviews::strategies(&services),
        ];
        for (group, plural, strategy) in families.into_iter().flatten() {
            table.entry(group).or_default().entry(plural).or_default().strategy = Some(strategy);
        }
        Strategies { table }
    }

    pub fn get(&self, row: &ResourceRow) -> Option<&dyn Strategy> {
        self.special(row)?.strategy.as_deref()
    }

    pub fn traits(&self, row: &ResourceRow) -> Traits {
        if row.custom { traits::CUSTOM } else { self.special(row).map(|s| s.traits).unwrap_or_default() }
    }

    fn special(&self, row: &ResourceRow) -> Option<&Special> {
        if row.custom {
            return None;
        }
        self.table.get(&*row.group)?.get(&*row.plural)
    }
}

/// One family's rows: group, plural, strategy.
type Family = Vec<(&'static str, &'static str, Arc<dyn Strategy>)>;
