//! Create.

use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use store::{Compare, Expect, Op, Outcome, Txn};

use super::options::WriteOptions;
use super::prepare::{self, Moment};
use super::{body, commit, key_of, managed, render};
use crate::admission::namespace_lifecycle;
use crate::http::{Body, Response};
use crate::object::Entry;
use crate::server::{ApiServer, Call};

/// Tries of a generated name that is taken, as upstream.
const NAME_TRIES: usize = 8;

pub async fn create(server: &ApiServer, mut call: Call, sent: Body) -> Result<Response> {
    let options = WriteOptions::of(&call)?;
    let decoded = body::read(&call, sent).await?;
    let object = body::conform(server, &mut call, &options, decoded)?;
    if let Some(record) = &call.audit {
        record.request_object(&object);
    }
    if !call.row.stored {
        return super::subresource::answer(server, call, object).await;
    }
    match insert(server, &mut call, &options, object, managed::Change::Update).await? {
        Stored::Entry(entry) => render::entry(server, &call, 201, &entry).await,
        Stored::Dry(object) => render::value(server, &call, 201, &object),
    }
}

/// What a write leaves: a committed entry, or with dry run the object that would have been.
pub enum Stored {
    Entry(Entry),
    Dry(Value),
}

/// Adds a new object.
pub async fn insert(
    server: &ApiServer,
    call: &mut Call,
    options: &WriteOptions,
    mut wanted: Value,
    manager: managed::Change,
) -> Result<Stored> {
    crate::admission::settle(&server.view, &call.row, &call.info.namespace, &wanted).await;
    let generated = meta::name(&wanted).is_empty();
    let mut tries = if generated { NAME_TRIES } else { 1 };
    loop {
        let moment = Moment::take();
        // Only a further try needs it again.
        let mut object = if tries > 1 { wanted.clone() } else { std::mem::take(&mut wanted) };
        super::meta::prepare_create(call, &mut object, moment.now, moment.seed)?;
        let name = meta::name(&object).to_owned();
        call.info.name.clone_from(&name);
        let object = prepare::create(server, call, options, moment, object, manager).await?;
        match add(server, call, options, moment, &name, object).await? {
            Some(stored) => return Ok(stored),
            None if tries > 1 => tries -= 1,
            None => return Err(StatusError::already_exists(&call.row.group_resource(), &name)),
        }
    }
}

/// Writes `object` unless its name is taken. `None`: it is. Claims that lose a race are made anew.
async fn add(
    server: &ApiServer,
    call: &Call,
    options: &WriteOptions,
    moment: Moment,
    name: &str,
    mut object: Value,
) -> Result<Option<Stored>> {
    let key = key_of(call, name);
    let mut turn = server.admission.turn(&server.view, &call.row, super::namespace_of(call)).await;
    let allocates = server.strategies.get(&call.row).is_some_and(|strategy| strategy.allocator().is_some());
    let mut moment = moment;
    for _ in 0..super::update::MAX_TRIES {
        if server.view.store().get(&key).is_some() {
            return Ok(None);
        }
        // Only what may lose a claim is needed again, as it was before an allocator completed it.
        let mut next = if allocates { object.clone() } else { std::mem::take(&mut object) };
        let claims = commit::claims(server, call, moment, Some(&mut next), None)?;
        if !allocates && !claims.is_empty() {
            object = next.clone();
        }
        if options.dry_run {
            return Ok(Some(Stored::Dry(next)));
        }
        let stored = super::convert::to_storage(server, &call.row, next).await?;
        let put = Op::Put { key: key.clone(), value: super::encoded(&stored)?, ttl: None };
        let txn = commit::transaction(server, call, Expect::Absent, put, claims);
        match commit_at_home(server, call, name, txn).await? {
            Attempt::Stored(entry) => return Ok(Some(Stored::Entry(entry))),
            Attempt::Taken => return Ok(None),
            Attempt::ClaimLost => {
                moment = Moment::take();
                if turn.is_none() {
                    turn = server.admission.turn(&server.view, &call.row, super::namespace_of(call)).await;
                }
            }
        }
    }
    Err(too_many_changes())
}

enum Attempt {
    Stored(Entry),
    Taken,
    /// What the object claims besides its name went to somebody else.
    ClaimLost,
}

/// Commits while the namespace is alive; again when only the namespace's own object has changed meanwhile.
async fn commit_at_home(server: &ApiServer, call: &Call, name: &str, txn: Txn) -> Result<Attempt> {
    for _ in 0..super::update::MAX_TRIES {
        let home =
            namespace_lifecycle::guard(&server.view, &call.row.group_resource(), name, super::namespace_of(call))?;
        let guarded = home.is_some();
        let mut txn = txn.clone();
        txn.compares.extend(home.clone());
        match server.view.store().commit(txn).await.map_err(crate::error::from_store)? {
            Outcome::Committed { entries, .. } => {
                let entry = entries.into_iter().next().flatten();
                return entry.map(Attempt::Stored).ok_or_else(|| StatusError::internal("put left no entry"));
            }
            Outcome::Failed { current } => {
                if current.first().is_some_and(Option::is_some) {
                    return Ok(Attempt::Taken);
                }
                let same_home = match (&home, current.last()) {
                    (Some(Compare { expect: Expect::ModRevision(seen), .. }), Some(Some(now))) => {
                        now.mod_revision == *seen
                    }
                    _ => !guarded,
                };
                if same_home {
                    return Ok(Attempt::ClaimLost);
                }
            }
        }
    }
    Err(too_many_changes())
}

fn too_many_changes() -> StatusError {
    StatusError::unavailable("too many concurrent changes, please try again")
}
