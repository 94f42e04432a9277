//! A namespace's ResourceQuotas: what a new object uses is written to their status in the object's own transaction, on condition
//! that they are as they were when it was found to fit. Two creates can never both take what is left.
//!
//! What counts is [`apimachinery::quota`]'s business, counting anew that of the controller. It relies on this: whatever uses more of
//! something that a quota names changes the quota, so a count that misses it cannot be written.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use apimachinery::quota::{self, Charge, Write};
use apimachinery::resource::ResourceRow;
use apimachinery::status::Result;
use apimachinery::{Value, meta};
use store::{Compare, Expect, Op};
use tokio::sync::Mutex;

use super::{Operation, Plugin, Request};
use crate::object::{Entry, encode};
use crate::strategy::Claim;
use crate::view::View;

const QUOTAS: &str = "resourcequotas";
/// Namespaces share turns by hash, which bounds the memory.
const TURNS: usize = 64;

pub struct ResourceQuota {
    turns: [Arc<Mutex<()>>; TURNS],
    hasher: RandomState,
}

impl ResourceQuota {
    pub fn new() -> Self {
        ResourceQuota { turns: std::array::from_fn(|_| Arc::default()), hasher: RandomState::new() }
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn claims(&self, request: &Request<'_>) -> Result<Vec<Claim>> {
        let write = Write {
            group: &request.row.group,
            plural: &request.row.plural,
            subresource: request.subresource,
            object: request.object,
            old: request.old,
            now: request.now,
        };
        if !write.is_measured() {
            return Ok(Vec::new());
        }
        let entries = quotas(request.view, request.row, request.namespace);
        let quotas: Vec<Value> = entries.iter().map(|entry| entry.value.value()).collect();
        let charges = quota::charge(&quotas, &write).map_err(|why| request.forbidden(&why))?;
        let changed = entries.iter().zip(quotas).zip(charges);
        Ok(changed.filter_map(|((entry, quota), charge)| Some(claim(entry, changed_by(quota, charge)?))).collect())
    }

    fn turn(&self, view: &View, row: &ResourceRow, namespace: &str) -> Option<Arc<Mutex<()>>> {
        if quotas(view, row, namespace).is_empty() {
            return None;
        }
        let place = self.hasher.hash_one(namespace) % (TURNS as u64);
        self.turns.get(usize::try_from(place).ok()?).cloned()
    }
}

/// The namespace's quotas that name something of the row's kind.
fn quotas(view: &View, row: &ResourceRow, namespace: &str) -> Vec<Entry> {
    if namespace.is_empty() {
        return Vec::new();
    }
    let mut entries = view.list(QUOTAS, namespace);
    entries.retain(|entry| {
        let quota = entry.value.value();
        let names = ["spec", "status"].map(|part| quota::hard(&quota, part));
        names.iter().flat_map(|names| names.keys()).any(|name| quota::concerns(&row.group, &row.plural, name))
    });
    entries
}

/// The quota as the write leaves it. One that is to be recounted stays as it is, but gets a new version.
fn changed_by(mut quota: Value, charge: Charge) -> Option<Value> {
    match charge {
        Charge::Nothing => None,
        Charge::Recount => Some(quota),
        Charge::Used(used) => {
            meta::map_mut(&mut quota, "status").insert("used".to_owned(), quota::to_value(&used));
            Some(quota)
        }
    }
}

fn claim(entry: &Entry, quota: Value) -> Claim {
    let key = entry.key.to_string();
    let compare = Compare { key: key.clone(), expect: Expect::ModRevision(entry.mod_revision) };
    (Some(compare), Op::Put { key, value: encode(&quota), ttl: None })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;
    use serde_json::json;

    fn quota(namespace: &str, hard: Value, used: Value) -> Value {
        json!({
            "metadata": { "name": "q", "namespace": namespace }, "spec": { "hard": hard },
            "status": { "hard": hard, "used": used },
        })
    }

    fn claims(cluster: &Cluster, namespace: &str, plural: &'static str) -> Result<Vec<String>> {
        let object = json!({ "metadata": { "name": "x", "namespace": namespace } });
        let claims = Case::create("", plural, object).claims(cluster, &ResourceQuota::new())?;
        let shown = claims.into_iter().map(|(compare, op)| {
            let Op::Put { key, value, .. } = op else { panic!("a quota is never deleted") };
            assert_eq!(compare.map(|compare| compare.key), Some(key));
            let quota: Value = serde_json::from_slice(&value).expect("an object");
            quota["status"]["used"].to_string()
        });
        Ok(shown.collect())
    }

    #[test]
    fn a_create_claims_its_share_of_the_namespaces_quotas() {
        let cluster = Cluster::new();
        cluster.put("resourcequotas", quota("ns", json!({ "secrets": "2" }), json!({ "secrets": "1" })));
        cluster.put("resourcequotas", quota("full", json!({ "count/secrets": "1" }), json!({ "count/secrets": "1" })));
        assert_eq!(claims(&cluster, "ns", "secrets").unwrap(), [r#"{"secrets":"2"}"#]);
        assert!(claims(&cluster, "ns", "configmaps").unwrap().is_empty());
        assert!(claims(&cluster, "other", "secrets").unwrap().is_empty());
        let fresh = json!({ "metadata": { "name": "q", "namespace": "new" }, "spec": { "hard": { "secrets": "1" } } });
        cluster.put("resourcequotas", fresh);
        assert_eq!(claims(&cluster, "new", "secrets").unwrap(), ["null"], "the count under way is void");
        assert_eq!(
            claims(&cluster, "full", "secrets").unwrap_err().message,
            r#"secrets "x" is forbidden: exceeded quota: q, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1"#
        );
    }

    #[test]
    fn writers_take_turns_where_there_are_quotas() {
        let cluster = Cluster::new();
        cluster.put("resourcequotas", quota("ns", json!({ "secrets": "2" }), json!({})));
        let plugin = ResourceQuota::new();
        let row = |plural| apimachinery::resource::builtin().preferred("", plural).unwrap();
        let turn = |namespace, plural| plugin.turn(&cluster.view, row(plural), namespace);
        assert!(Arc::ptr_eq(&turn("ns", "secrets").unwrap(), &turn("ns", "secrets").unwrap()));
        assert!(turn("ns", "pods").is_none() && turn("other", "secrets").is_none());
    }
}
