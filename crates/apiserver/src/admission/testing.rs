//! A cluster in memory for the tests of authentication, authorisation and admission.

use apimachinery::{Value, meta};
use store::{Op, Options, Store, Txn};

use crate::object::encode;
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
        self.commit(Op::Put { key, value: encode(&object) });
    }

    pub fn delete(&self, prefix: &str, namespace: &str, name: &str) {
        self.commit(Op::Delete { key: key(prefix, namespace, name) });
    }

    fn commit(&self, op: Op) {
        let txn = Txn { ops: vec![op], ..Txn::default() };
        self.runtime.block_on(self.view.store().commit(txn)).expect("a store in memory takes every write");
    }
}
