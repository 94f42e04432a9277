//! etcd's watch becomes the index, one revision after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Failure, from_wire};
use super::wire::{self, EventType};
use super::{Core, load};
use crate::plan::tombstone;
use crate::state::Visible;
use crate::{Change, Entry, Error, Event, Revision, Value};

/// Between attempts to watch.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// History whose time is over is looked for at most so often.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// Why a watch ended.
#[derive(Debug)]
enum End {
    /// It can go on where it was.
    Broken(String),
    /// It cannot.
    Lost(String),
    /// For good.
    Refused(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            error @ (Error::Refused { .. } | Error::Closed) => End::Refused(error),
            other => End::Broken(other.to_string()),
        }
    }
}

/// Follows the cluster until it is refused.
pub(crate) async fn run<V: Value>(core: Arc<Core<V>>) {
    let mut pause = PAUSE;
    loop {
        let before = core.state.read().revision();
        let mut end = follow(&core).await;
        if let End::Lost(reason) = &end {
            tracing::warn!(reason, "the watch cannot go on, loading everything anew");
            end = match rebuild(&core).await {
                Ok(()) => continue,
                Err(end) => end,
            };
        }
        match end {
            End::Refused(error) => {
                core.refuse(error);
                return;
            }
            End::Broken(reason) | End::Lost(reason) => tracing::info!(reason, "watching etcd anew"),
        }
        pause = if core.state.read().revision() > before { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}

async fn follow<V: Value>(core: &Arc<Core<V>>) -> End {
    match watch(core).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

async fn watch<V: Value>(core: &Arc<Core<V>>) -> Result<std::convert::Infallible, End> {
    let shown = core.state.read().revision();
    let newest = core.client.newest_revision().await?;
    core.check_revision(shown, newest)?;
    let (member, mut stream) = core.client.watch(shown + 1).await.map_err(Failure::into_error)?;
    let mut pieces = Vec::new();
    loop {
        let answer = tokio::select! {
            answer = stream.message() => answer,
            () = core.applied.overdue() => {
                core.client.avoid(member);
                return Err(End::Broken("a majority is ahead of this member".to_owned()));
            }
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                core.client.avoid(member);
                return Err(End::Broken("the member ended the watch".to_owned()));
            }
            Err(status) => {
                core.client.avoid(member);
                return Err(End::Broken(status.message().to_owned()));
            }
        };
        core.client.note(&answer)?;
        if answer.canceled {
            return Err(if answer.compact_revision > 0 {
                End::Lost(format!("etcd has compacted its history up to revision {}", answer.compact_revision))
            } else {
                core.client.avoid(member);
                End::Broken(answer.cancel_reason)
            });
        }
        pieces.extend(answer.events);
        if !answer.fragment && !pieces.is_empty() {
            apply(core, std::mem::take(&mut pieces)).await?;
        }
    }
}

/// Makes whole revisions visible.
async fn apply<V: Value>(core: &Arc<Core<V>>, events: Vec<wire::Event>) -> Result<(), End> {
    let shown = core.state.read().revision();
    let revision = in_order(shown, &events)?;
    let events = if core.transform().as_ref().is_some_and(|transformer| transformer.waits()) {
        let core = core.clone();
        let work = tokio::task::spawn_blocking(move || translate(&core, events));
        work.await.map_err(|_| End::Refused(Error::Closed))?
    } else {
        translate(core, events)
    };
    let mut state = core.state.write();
    let wake = state.publish(Visible { events, revision }, Instant::now());
    drop(state);
    for feed in wake {
        feed.wake();
    }
    core.applied.advance(revision);
    forget(core);
    Ok(())
}

/// The newest revision of the events, which have to go on from `shown` without gap.
fn in_order(shown: Revision, events: &[wire::Event]) -> Result<Revision, End> {
    let mut newest = shown;
    for event in events {
        let revision = event.kv.as_ref().map_or(0, |kv| from_wire(kv.mod_revision));
        if revision == newest + 1 {
            newest = revision;
        } else if revision > newest {
            return Err(End::Broken(format!("revisions between {newest} and {revision} are missing")));
        } else if revision < newest || newest == shown {
            // What is shown would have to be mended, which watchers would not see.
            return Err(End::Lost(format!("revision {revision} came after {newest}")));
        }
    }
    Ok(newest)
}

/// Our events of etcd's, with what the keys were before.
fn translate<V: Value>(core: &Core<V>, events: Vec<wire::Event>) -> Vec<Arc<Event<V>>> {
    // What keys are after the events so far.
    let mut changed: HashMap<Arc<str>, Option<Arc<Entry<V>>>> = HashMap::new();
    let mut translated = Vec::with_capacity(events.len());
    for event in events {
        let deleted = event.r#type == EventType::Delete as i32;
        let Some(kv) = event.kv else { continue };
        let Ok(key) = std::str::from_utf8(&kv.key) else { continue };
        if !key.starts_with(&core.prefix) {
            continue;
        }
        let previous = match changed.get(key) {
            Some(entry) => entry.clone(),
            None => core.state.read().get(key).cloned(),
        };
        let revision = from_wire(kv.mod_revision);
        let change = if deleted {
            // etcd tells of no deletion of a key that there was not.
            let Some(previous) = &previous else { continue };
            Change::Delete(Arc::new(tombstone(previous, revision)))
        } else {
            let known = previous.as_ref().map(|previous| &previous.key);
            let Some(entry) = load::entry(kv, known, core.transform().as_deref()) else { continue };
            Change::Put(Arc::new(entry))
        };
        let event = Event { revision, previous, change };
        let now = match &event.change {
            Change::Put(entry) => Some(entry.clone()),
            Change::Delete(_) => None,
        };
        changed.insert(event.entry().key.clone(), now);
        translated.push(Arc::new(event));
    }
    translated
}

/// What happened since is unknown: the index starts anew, and with it everybody who watches.
async fn rebuild<V: Value>(core: &Core<V>) -> Result<(), End> {
    let shown = core.state.read().revision();
    let loaded = load::load::<V>(&core.client, &core.prefix, core.transform()).await?;
    core.check_revision(shown, loaded.revision)?;
    let old = core.state.write().reset(loaded.entries, loaded.revision);
    core.applied.advance(loaded.revision);
    drop(old);
    Ok(())
}

fn forget<V: Value>(core: &Core<V>) {
    loop {
        let dropped = core.state.write().compact_step(&core.options, Instant::now());
        if dropped.is_empty() {
            return;
        }
    }
}

/// Drops history as it gets old.
pub(crate) async fn forget_history<V: Value>(core: Arc<Core<V>>) {
    loop {
        let due = core.state.read().next_expiry(&core.options);
        let pause = due.map_or(core.options.history_age, |due| due.saturating_duration_since(Instant::now()));
        tokio::time::sleep(pause.max(FORGET_EVERY)).await;
        forget(&core);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(revisions: &[i64]) -> Vec<wire::Event> {
        let kv = |revision: &i64| wire::KeyValue { mod_revision: *revision, ..Default::default() };
        revisions.iter().map(|revision| wire::Event { kv: Some(kv(revision)), ..Default::default() }).collect()
    }

    #[test]
    fn gaps_repetitions_and_disorder_are_noticed() {
        let check = |revisions: &[i64]| match in_order(5, &events(revisions)) {
            Ok(newest) => newest.to_string(),
            Err(End::Broken(_)) => "resume".to_owned(),
            Err(_) => "load anew".to_owned(),
        };
        assert_eq!(check(&[6, 6, 7]), "7");
        assert_eq!(check(&[7]), "resume", "a lost revision can be had again");
        assert_eq!(check(&[6, 8]), "resume");
        assert_eq!(check(&[5]), "load anew", "the rest of a revision that was taken for whole, or its repetition");
        assert_eq!(check(&[6, 5]), "load anew");
    }
}
