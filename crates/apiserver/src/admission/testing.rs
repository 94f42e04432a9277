//! A cluster in memory and requests to it, for the tests of authentication, authorisation and admission.

use apimachinery::resource::builtin;
use apimachinery::status::Result;
use apimachinery::{Value, meta};
use store::{Op, Options, Store, Txn};

use super::{Operation, Plugin, Request};
use crate::object::encode;
use crate::request::UserInfo;
use crate::strategy::Claim;
use crate::view::{View, key};

pub struct Cluster {
    pub view: View,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a test can start a runtime");
        Cluster { view: View::new(Store::in_memory(Options::default())), runtime }
    }

    /// Writes `object` under the key of its namespace and name; `prefix` is its row's storage prefix.
    pub fn put(&self, prefix: &str, object: Value) {
        let key = key(prefix, meta::namespace(&object), meta::name(&object));
        self.commit(Op::Put { key, value: encode(&object), ttl: None });
    }

    pub fn delete(&self, prefix: &str, namespace: &str, name: &str) {
        self.commit(Op::Delete { key: key(prefix, namespace, name) });
    }

    fn commit(&self, op: Op) {
        let txn = Txn { ops: vec![op], ..Txn::default() };
        self.runtime.block_on(self.view.store().commit(txn)).expect("a store in memory takes every write");
    }
}

/// One request for a plugin; `object` holds what the plugin made of it.
pub struct Case {
    pub user: UserInfo,
    pub group: &'static str,
    pub plural: &'static str,
    pub subresource: &'static str,
    pub operation: Operation,
    pub object: Value,
    pub old: Option<Value>,
    /// What the plugin told the client.
    pub warnings: Vec<String>,
}

impl Case {
    pub fn create(group: &'static str, plural: &'static str, object: Value) -> Self {
        let user = UserInfo::new("tester", &["system:authenticated"]);
        Case {
            user,
            group,
            plural,
            subresource: "",
            operation: Operation::Create,
            object,
            old: None,
            warnings: Vec::new(),
        }
    }

    pub fn update(group: &'static str, plural: &'static str, object: Value, old: Value) -> Self {
        Case { operation: Operation::Update, old: Some(old), ..Case::create(group, plural, object) }
    }

    pub fn delete(group: &'static str, plural: &'static str, old: Value) -> Self {
        Case { operation: Operation::Delete, old: Some(old), ..Case::create(group, plural, Value::Null) }
    }

    pub fn of_subresource(mut self, subresource: &'static str) -> Self {
        self.subresource = subresource;
        self
    }

    pub fn by(mut self, user: UserInfo) -> Self {
        self.user = user;
        self
    }

    pub fn admit(&mut self, cluster: &Cluster, plugin: &dyn Plugin) -> Result<()> {
        self.run(cluster, |request| plugin.admit(request))
    }

    pub fn validate(&mut self, cluster: &Cluster, plugin: &dyn Plugin) -> Result<()> {
        self.run(cluster, |request| plugin.validate(request))
    }

    pub fn claims(&mut self, cluster: &Cluster, plugin: &dyn Plugin) -> Result<Vec<Claim>> {
        self.run(cluster, |request| plugin.claims(request))
    }

    fn run<T>(&mut self, cluster: &Cluster, work: impl FnOnce(&mut Request<'_>) -> Result<T>) -> Result<T> {
        let row = builtin().preferred(self.group, self.plural).expect("tests use built-in kinds");
        let named = self.old.as_ref().unwrap_or(&self.object);
        let (namespace, name) = (meta::namespace(named).to_owned(), meta::name(named).to_owned());
        work(&mut Request {
            operation: self.operation,
            user: &self.user,
            row,
            subresource: self.subresource,
            namespace: &namespace,
            name: &name,
            object: &mut self.object,
            old: self.old.as_ref(),
            dry_run: false,
            now: 0,
            seed: 42,
            view: &cluster.view,
            warnings: &mut self.warnings,
            audit: None,
        })
    }
}
