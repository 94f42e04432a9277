//! Delete and deletecollection: grace, finalizers, propagation, preconditions.

use apimachinery::status::{self, Details, Result, StatusError};
use apimachinery::{Value, meta};
use http::header;
use serde::Deserialize;
use serde_json::json;
use store::{Compare, Expect, Op, Outcome, Txn};

use super::create::{Stored, durability};
use super::meta::timestamp;
use super::prepare::{self, Moment};
use super::{filter, key_of, render};
use crate::admission::Operation;
use crate::http::negotiate::body_format;
use crate::http::query::{Query, dry_run};
use crate::http::{Body, Response, respond};
use crate::object::{Entry, encode};
use crate::server::{ApiServer, Call, collect};

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    async fn read(call: &Call, sent: Body) -> Result<Self> {
        let encoding = body_format(call.header(header::CONTENT_TYPE))?;
        let bytes = collect(sent).await?;
        let options = if bytes.is_empty() {
            Self::from_query(&call.query)?
        } else {
            let value = super::body::parse(&bytes, encoding, "DeleteOptions")?.value;
            serde_json::from_value(value)
                .map_err(|e| StatusError::bad_request(format!("cannot decode DeleteOptions: {e}")))?
        };
        options.check()?;
        Ok(options)
    }

    fn from_query(query: &Query) -> Result<Self> {
        let values: Vec<String> = query.all("dryRun").map(str::to_owned).collect();
        Ok(DeleteOptions {
            grace_period_seconds: query.number("gracePeriodSeconds")?,
            preconditions: None,
            orphan_dependents: query.optional_flag("orphanDependents"),
            propagation_policy: query.get("propagationPolicy").map(str::to_owned),
            dry_run: (!values.is_empty()).then_some(values),
        })
    }

    fn check(&self) -> Result<()> {
        let invalid = |text: String| {
            Err(StatusError::new(422, "Invalid", format!("DeleteOptions.meta.k8s.io \"\" is invalid: {text}")))
        };
        match self.propagation_policy.as_deref() {
            None | Some("Background" | "Foreground" | "Orphan") => {}
            Some(other) => {
                let supported = "supported values: \"Background\", \"Foreground\", \"Orphan\"";
                return invalid(format!("propagationPolicy: Unsupported value: {other:?}: {supported}"));
            }
        }
        if self.propagation_policy.is_some() && self.orphan_dependents.is_some() {
            let text = "propagationPolicy: Invalid value: orphanDependents and deletionPropagation cannot be both set";
            return invalid(text.to_owned());
        }
        Ok(())
    }

    fn is_dry_run(&self) -> Result<bool> {
        dry_run(self.dry_run.iter().flatten().map(String::as_str))
    }

    /// The finalizer that the policy asks for: `orphan`, `foregroundDeletion` or none.
    fn policy_finalizer(&self, orphans_by_default: bool) -> Option<&'static str> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Orphan"), _) | (None, Some(true)) => Some("orphan"),
            (Some("Foreground"), _) => Some("foregroundDeletion"),
            (Some(_), _) | (None, Some(false)) => None,
            (None, None) => orphans_by_default.then_some("orphan"),
        }
    }

    fn has_policy(&self) -> bool {
        self.propagation_policy.is_some() || self.orphan_dependents.is_some()
    }
}

pub async fn delete(server: &ApiServer, mut call: Call, sent: Body) -> Result<Response> {
    let options = DeleteOptions::read(&call, sent).await?;
    let outcome = remove(server, &mut call, &options).await?;
    let waits = options.propagation_policy.as_deref() == Some("Foreground") || options.orphan_dependents == Some(false);
    match outcome {
        Removed::Gone(entry) => gone(server, &call, &entry),
        Removed::Marked(Stored::Entry(entry)) => render::entry(server, &call, if waits { 202 } else { 200 }, &entry),
        Removed::Marked(Stored::Dry(object)) => render::value(server, &call, 200, &object),
    }
}

/// A deleted object is answered whole where its kind does so upstream, else as a `Status`.
fn gone(server: &ApiServer, call: &Call, entry: &Entry) -> Result<Response> {
    if server.strategies.get(&call.row).is_some_and(|s| s.returns_deleted_object()) {
        return render::entry(server, call, 200, entry);
    }
    let details = Details {
        name: call.info.name.clone(),
        group: call.row.group.to_string(),
        kind: call.row.plural.to_string(),
        uid: entry.value.meta().uid.to_string(),
        ..Details::default()
    };
    Ok(respond::value(200, call.accepted.encoding, &status::success(details)))
}

pub enum Removed {
    /// The last state.
    Gone(Entry),
    /// Still there, with a deletion timestamp.
    Marked(Stored),
}

/// Deletes the object that `call` names, or marks it where grace or finalizers hold it.
pub async fn remove(server: &ApiServer, call: &mut Call, options: &DeleteOptions) -> Result<Removed> {
    let dry = options.is_dry_run()?;
    for _ in 0..super::update::MAX_TRIES {
        let moment = Moment::take();
        let entry = super::current(server, call)?;
        let old = crate::strategy::convert::from_storage(&call.row, entry.value.value());
        check_preconditions(call, options, &old)?;
        admit(server, call, dry, moment, &old)?;
        let next = plan(server, call, options, moment.now, &old);
        let claims = match (server.strategies.get(&call.row), &next) {
            (Some(strategy), None) => strategy.allocate(&prepare::context(server, call, moment), None, Some(&old))?,
            _ => Vec::new(),
        };
        if dry {
            return Ok(Removed::Marked(Stored::Dry(next.unwrap_or(old))));
        }
        let key = key_of(call, &call.info.name);
        let gone = next.is_none();
        let op = match next {
            None => Op::Delete { key: key.clone() },
            Some(next) if next == old => return Ok(Removed::Marked(Stored::Entry(entry))),
            Some(next) => {
                let stored = crate::strategy::convert::to_storage(&call.row, next);
                Op::Put { key: key.clone(), value: encode(&stored) }
            }
        };
        let mut txn = Txn {
            compares: vec![Compare { key, expect: Expect::ModRevision(entry.mod_revision) }],
            ops: vec![op],
            durability: durability(server, call),
        };
        for (compare, op) in claims {
            txn.compares.extend(compare);
            txn.ops.push(op);
        }
        match server.view.store().commit(txn).await.map_err(crate::error::from_store)? {
            Outcome::Committed { entries, .. } => {
                let last = entries.into_iter().next().flatten().unwrap_or(entry);
                return Ok(if gone { Removed::Gone(last) } else { Removed::Marked(Stored::Entry(last)) });
            }
            Outcome::Failed { .. } => {}
        }
    }
    Err(StatusError::modified(&call.row.group_resource(), &call.info.name))
}

fn check_preconditions(call: &Call, options: &DeleteOptions, old: &Value) -> Result<()> {
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let conflict = |what: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(StatusError::conflict(&call.row.group_resource(), &call.info.name, &why))
    };
    if let Some(uid) = &wanted.uid
        && uid != meta::uid(old)
    {
        return conflict("UID", uid, meta::uid(old));
    }
    if let Some(version) = &wanted.resource_version
        && version != meta::resource_version(old)
    {
        return conflict("ResourceVersion", version, meta::resource_version(old));
    }
    Ok(())
}

fn admit(server: &ApiServer, call: &mut Call, dry_run: bool, moment: Moment, old: &Value) -> Result<()> {
    let options = super::options::WriteOptions { dry_run, ..super::options::WriteOptions::of(call)? };
    let mut none = Value::Null;
    prepare::admit(server, call, &options, moment, Operation::Delete, "", &mut none, Some(old))?;
    prepare::check(server, call, &options, moment, Operation::Delete, "", &mut none, Some(old))
}

/// The next state of an object that is to be deleted: `None` when nothing holds it.
fn plan(server: &ApiServer, call: &Call, options: &DeleteOptions, now: i64, old: &Value) -> Option<Value> {
    let strategy = server.strategies.get(&call.row);
    let mut next = old.clone();
    let mut finalizers: Vec<String> = meta::finalizers(old).into_iter().map(str::to_owned).collect();
    let wanted = options.policy_finalizer(strategy.is_some_and(|s| s.default_orphans()));
    if options.has_policy() || wanted.is_some() {
        finalizers.retain(|f| f != "orphan" && f != "foregroundDeletion");
        finalizers.extend(wanted.map(str::to_owned));
    }
    let metadata = meta::metadata_mut(&mut next);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    let grace = strategy.and_then(|s| s.deletion_grace(old, options.grace_period_seconds)).unwrap_or(0).max(0);
    let already = meta::is_deleting(old);
    let before = meta::at(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    let holds = strategy.is_some_and(|s| s.holds_deletion(old));
    // A second delete may shorten the grace, never lengthen it.
    let grace = if already { grace.min(before) } else { grace };
    if grace == 0 && finalizers.is_empty() && !holds {
        return None;
    }
    if !already || grace < before {
        metadata.insert("deletionTimestamp".to_owned(), json!(timestamp(now + grace)));
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|_| !already) {
            metadata.insert("generation".to_owned(), json!(generation + 1));
        }
    }
    if let Some(strategy) = strategy {
        strategy.prepare_delete(&mut next);
    }
    Some(next)
}

pub async fn delete_collection(server: &ApiServer, mut call: Call, sent: Body) -> Result<Response> {
    let options = DeleteOptions::read(&call, sent).await?;
    let filter = filter::Filter::of(&call)?;
    let mut items: Vec<Value> = Vec::new();
    for entry in server.view.list(&call.row.storage_prefix, super::namespace_of(&call)) {
        if !filter.matches(&call.row, &entry) {
            continue;
        }
        call.info.name = entry.value.meta().name.to_string();
        if call.row.is_namespaced() {
            call.info.namespace = entry.value.meta().namespace.to_string();
        }
        match remove(server, &mut call, &options).await {
            Ok(Removed::Gone(last) | Removed::Marked(Stored::Entry(last))) => {
                items.push(crate::strategy::convert::from_storage(&call.row, last.value.value()));
            }
            Ok(Removed::Marked(Stored::Dry(object))) => items.push(object),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": call.row.list_kind, "apiVersion": call.row.api_version(),
        "metadata": {"resourceVersion": server.view.store().revision().to_string()}, "items": items,
    });
    Ok(respond::value(200, call.accepted.encoding, &list))
}
