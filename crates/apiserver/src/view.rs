//! Reading stored objects by resource, for the server's own parts: authorisation, admission, strategies.

use apimachinery::status::StatusError;
use store::Range;

use crate::object::{Entry, ObjectStore};

/// Read access to the store by upstream's key layout: `/registry/<storage prefix>/[<namespace>/]<name>`.
#[derive(Clone)]
pub struct View {
    store: ObjectStore,
}

impl View {
    pub fn new(store: ObjectStore) -> Self {
        View { store }
    }

    pub fn store(&self) -> &ObjectStore {
        &self.store
    }

    /// `prefix` is a row's storage prefix (`pods`, `services/specs`, `roles`, …); `namespace` is empty for cluster scope.
    pub fn get(&self, prefix: &str, namespace: &str, name: &str) -> Option<Entry> {
        self.store.get(&key(prefix, namespace, name))
    }

    /// All objects of a resource, or those of one namespace.
    pub fn list(&self, prefix: &str, namespace: &str) -> Vec<Entry> {
        let start = folder(prefix, namespace);
        let query = Range { end: end_of(&start), start, limit: 0, revision: None };
        self.store.range(&query).map(|listing| listing.entries).unwrap_or_default()
    }

    /// Changes of a resource after `revision`.
    pub fn watch(
        &self,
        prefix: &str,
        revision: store::Revision,
    ) -> Result<store::Watcher<crate::object::Object>, StatusError> {
        self.store.watch(&folder(prefix, ""), revision).map_err(crate::error::from_store)
    }
}

/// The key of one object.
pub fn key(prefix: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        format!("/registry/{prefix}/{name}")
    } else {
        format!("/registry/{prefix}/{namespace}/{name}")
    }
}

/// The common start of a resource's keys, or of those in one namespace. Ends with a slash.
pub fn folder(prefix: &str, namespace: &str) -> String {
    if namespace.is_empty() { format!("/registry/{prefix}/") } else { format!("/registry/{prefix}/{namespace}/") }
}

/// The first key after all that start with `start`, which ends with a slash: `/` + 1 is `0`.
pub fn end_of(start: &str) -> String {
    let mut end = start.strip_suffix('/').unwrap_or(start).to_owned();
    end.push('0');
    end
}
