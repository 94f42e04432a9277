//! Delete and deletecollection: grace, finalizers, propagation, preconditions.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::{self, Details, GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::admit::Attributes;
use super::create::Stored;
use super::meta::timestamp;
use super::prepare::{self, Moment};
use super::{commit, filter, render};
use crate::admission::Operation;
use crate::http::negotiate::body_format;
use crate::http::query::{Query, dry_run};
use crate::http::{Body, Response, respond};
use crate::object::{Entry, encode};
use crate::server::{ApiServer, Call, collect};
use crate::strategy::{Strategy, convert};

/// The finalizers that the garbage collector acts on.
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Deletions of one deletecollection that are under way at a time.
const DELETES_AT_ONCE: usize = 32;

/// `metav1.DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphan_dependents: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
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
            if let Some(record) = &call.audit {
                record.request_object(&value);
            }
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

    /// `ValidateDeleteOptions`
    fn check(&self) -> Result<()> {
        let (mut errors, at) = (ErrorList::new(), Path::new("propagationPolicy"));
        let policy = json!(self.propagation_policy);
        if self.propagation_policy.is_some() && self.orphan_dependents.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(Error::invalid(&at, &policy, why));
        }
        if !matches!(self.propagation_policy.as_deref(), None | Some("Background" | "Foreground" | "Orphan")) {
            errors.push(Error::not_supported(&at, &policy, &["Foreground", "Background", "Orphan", "nil"]));
        }
        if self.dry_run.iter().flatten().any(|value| value != "All") {
            errors.push(Error::not_supported(&Path::new("dryRun"), &json!(self.dry_run), &["All"]));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(StatusError::invalid(&GroupResource::new("meta.k8s.io", "DeleteOptions"), "", &errors))
    }

    fn is_dry_run(&self) -> Result<bool> {
        dry_run(self.dry_run.iter().flatten().map(String::as_str))
    }

    /// The finalizer that the policy asks for: `orphan`, `foregroundDeletion` or none. Without a policy what the object says already
    /// stays, then its kind decides.
    fn policy_finalizer(&self, existing: &[&str], orphans_by_default: bool) -> Option<&'static str> {
        match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
            (Some("Foreground"), _) => Some(FOREGROUND),
            (Some(_), _) | (None, Some(false)) => None,
            (None, None) => match existing.iter().find(|f| matches!(**f, ORPHAN | FOREGROUND)) {
                Some(&ORPHAN) => Some(ORPHAN),
                Some(_) => Some(FOREGROUND),
                None => orphans_by_default.then_some(ORPHAN),
            },
        }
    }

    fn waits_for_dependants(&self) -> bool {
        self.propagation_policy.as_deref() == Some("Foreground") || self.orphan_dependents == Some(false)
    }

    /// Makes it a dry run where the request says so, as an eviction may.
    pub fn dry(mut self, dry_run: bool) -> Self {
        if dry_run {
            self.dry_run = Some(vec!["All".to_owned()]);
        }
        self
    }
}

pub async fn delete(server: &ApiServer, mut call: Call, sent: Body) -> Result<Response> {
    let options = DeleteOptions::read(&call, sent).await?;
    let waits = options.waits_for_dependants();
    match remove(server, &mut call, &options, Cause::Delete).await? {
        Removed::Gone(entry) => gone(server, &call, &entry).await,
        Removed::Marked(Stored::Entry(entry)) => {
            render::entry(server, &call, if waits { 202 } else { 200 }, &entry).await
        }
        Removed::Marked(Stored::Dry(object)) => render::value(server, &call, 200, &object),
    }
}

/// A deleted object is answered whole where its kind does so upstream, else as a `Status`.
async fn gone(server: &ApiServer, call: &Call, entry: &Entry) -> Result<Response> {
    if server.strategies.traits(&call.row).answers_deleted_object {
        return render::entry(server, call, 200, entry).await;
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

/// What a deletion comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Delete,
    /// A POST to a subresource: the strategy has a say.
    Eviction,
}

/// Deletes the object that `call` names, or marks it where grace or finalizers hold it.
pub async fn remove(server: &ApiServer, call: &mut Call, options: &DeleteOptions, cause: Cause) -> Result<Removed> {
    let dry = options.is_dry_run()?;
    for _ in 0..super::update::MAX_TRIES {
        let moment = Moment::take();
        let entry = super::current(server, call).await?;
        let old = convert::from_storage(&call.row, entry.value.value());
        check_preconditions(call, options, &old)?;
        let attributes = Attributes::new(Operation::Delete, "", dry, moment);
        let attributes = Attributes { deletion: Some(options), ..attributes };
        attributes.decide(server, call, &mut Value::Null, Some(&old)).await?;
        let mut claims = Vec::new();
        let mut last = old.clone();
        if let (Some(strategy), Cause::Eviction) = (server.strategies.get(&call.row), cause) {
            let eviction = strategy.evict(&prepare::context(server, call, moment), &old)?;
            (last, claims) = (eviction.object, eviction.claims);
        }
        let next = plan(server, call, options, moment.now, last);
        if next.is_none() {
            claims.extend(commit::claims(server, call, moment, None, Some(&old))?);
        }
        if dry {
            return Ok(Removed::Marked(Stored::Dry(next.unwrap_or(old))));
        }
        if next.as_ref() == Some(&old) {
            return Ok(Removed::Marked(Stored::Entry(entry)));
        }
        let gone = next.is_none();
        // However large it has become, it can be deleted.
        let next = match next {
            Some(next) => Some(encode(&super::convert::to_storage(server, &call.row, next).await?)),
            None => None,
        };
        if let Some(last) = commit::replace(server, call, &entry, next, claims).await? {
            return Ok(if gone { Removed::Gone(last) } else { Removed::Marked(Stored::Entry(last)) });
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

/// The time that an object has left after a delete (`rest.BeforeDelete`).
enum Grace {
    /// A deletion is under way already, and this one asks for no less time.
    Pending,
    Over,
    Lasts {
        seconds: i64,
        until: i64,
    },
}

fn grace(strategy: Option<&dyn Strategy>, options: &DeleteOptions, now: i64, old: &Value) -> Grace {
    // As upstream: a negative grace is one second.
    let wanted = options.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
    if !meta::is_deleting(old) {
        return match strategy.and_then(|s| s.deletion_grace(old, wanted)) {
            Some(seconds) if seconds > 0 => Grace::Lasts { seconds, until: now.saturating_add(seconds) },
            _ => Grace::Over,
        };
    }
    let left = meta::at(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    match wanted {
        _ if left == 0 => Grace::Over,
        Some(0) => Grace::Over,
        Some(seconds) if seconds < left => {
            let end = meta::str_at(old, &["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>();
            let end = end.map_or(now.saturating_add(left), jiff::Timestamp::as_second);
            Grace::Lasts { seconds, until: end - left + seconds }
        }
        _ => Grace::Pending,
    }
}

/// The next state of an object that is to be deleted: `None` when nothing holds it.
fn plan(server: &ApiServer, call: &Call, options: &DeleteOptions, now: i64, old: Value) -> Option<Value> {
    let strategy = server.strategies.get(&call.row);
    let (seconds, until) = match grace(strategy, options, now, &old) {
        Grace::Pending => return Some(old),
        Grace::Over => (0, now),
        Grace::Lasts { seconds, until } => (seconds, until),
    };
    let existing = meta::finalizers(&old);
    let wanted = options.policy_finalizer(&existing, server.strategies.traits(&call.row).orphans_dependants);
    let mut finalizers: Vec<&str> = existing.into_iter().filter(|f| !matches!(*f, ORPHAN | FOREGROUND)).collect();
    finalizers.extend(wanted);
    if seconds == 0 && finalizers.is_empty() && !strategy.is_some_and(|s| s.holds_deletion(&old)) {
        return None;
    }
    let finalizers = json!(finalizers);
    let already = meta::is_deleting(&old);
    let before = meta::at(&old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let mut next = old;
    let metadata = meta::metadata_mut(&mut next);
    match finalizers.as_array().is_some_and(|f| !f.is_empty()) {
        true => metadata.insert("finalizers".to_owned(), finalizers),
        false => metadata.remove("finalizers"),
    };
    if !already || before.is_some_and(|before| seconds < before) {
        metadata.insert("deletionTimestamp".to_owned(), json!(timestamp(until)));
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(seconds));
        if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|_| !already) {
            metadata.insert("generation".to_owned(), json!(generation + 1));
        }
    }
    if let Some(strategy) = strategy {
        strategy.prepare_delete(&mut next);
    }
    Some(next)
}

/// Deletes what the selectors choose, many at once so that they share few fsyncs. What is gone meanwhile is no failure; after the
/// first failure no further deletion begins.
pub async fn delete_collection(server: &ApiServer, call: Call, sent: Body) -> Result<Response> {
    let options = DeleteOptions::read(&call, sent).await?;
    let filter = filter::Filter::of(&call)?;
    let found = server.view.list(&call.row.storage_prefix, super::namespace_of(&call));
    let found = super::convert::entries(server, &call.row, found).await?;
    let chosen = found.into_iter().filter(|entry| filter.matches(&call.row, entry));
    let items: Vec<Option<Value>> = futures::stream::iter(chosen)
        .map(|entry| {
            let mut call = call.clone();
            call.info.name = entry.value.meta().name.to_string();
            remove_listed(server, call, &options)
        })
        .buffered(DELETES_AT_ONCE)
        .try_collect()
        .await?;
    let list = json!({
        "kind": call.row.list_kind, "apiVersion": call.row.api_version(),
        "metadata": {"resourceVersion": server.view.store().revision().to_string()},
        "items": items.into_iter().flatten().collect::<Vec<_>>(),
    });
    Ok(respond::value(200, call.accepted.encoding, &list))
}

async fn remove_listed(server: &ApiServer, mut call: Call, options: &DeleteOptions) -> Result<Option<Value>> {
    match remove(server, &mut call, options, Cause::Delete).await {
        Ok(Removed::Gone(last) | Removed::Marked(Stored::Entry(last))) => {
            let last = super::convert::entry(server, &call.row, last).await?;
            Ok(Some(convert::from_storage(&call.row, last.value.value())))
        }
        Ok(Removed::Marked(Stored::Dry(object))) => Ok(Some(object)),
        Err(error) if error.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
