//! An index in memory that follows the store: every question first takes in the changes that were committed before it, so that
//! an answer is never older than the last acknowledged write. Nothing runs while nobody asks.

use store::{Change, Range, Revision, Watcher};

use crate::object::Object;
use crate::view::{View, folder};

/// What is made from the objects of some key spaces.
pub trait Indexed: Default {
    /// Storage prefixes of the rows that the index is made of.
    const PREFIXES: &'static [&'static str];

    /// Takes in the state of one object of `PREFIXES[prefix]`; `None` is its absence.
    fn apply(&mut self, prefix: usize, namespace: &str, name: &str, object: Option<&Object>);
}

pub struct Followed<T> {
    index: T,
    /// One for each prefix; empty before the first question.
    watchers: Vec<Watcher<Object>>,
    /// The store's revision that the index shows.
    seen: Revision,
}

impl<T: Default> Default for Followed<T> {
    fn default() -> Self {
        Followed { index: T::default(), watchers: Vec::new(), seen: 0 }
    }
}

impl<T: Indexed> Followed<T> {
    /// The index as of now. One that cannot be built is empty, which is right where nothing is allowed that it does not say.
    pub fn fresh(&mut self, view: &View) -> &T {
        if let Err(error) = self.refresh(view) {
            tracing::error!(%error, "cannot read the objects that authorisation depends on");
        }
        &self.index
    }

    /// The index as of now, or why it cannot be built: for whoever must not take that for there being nothing.
    pub fn checked(&mut self, view: &View) -> Result<&T, store::Error> {
        self.refresh(view)?;
        Ok(&self.index)
    }

    fn refresh(&mut self, view: &View) -> Result<(), store::Error> {
        let newest = view.store().revision();
        if self.seen != newest || self.watchers.is_empty() {
            if !self.follow() {
                self.rebuild(view)?;
            }
            self.seen = newest;
        }
        Ok(())
    }

    /// Takes in what the watches hold ready. False if one of them fell behind the store's history.
    fn follow(&mut self) -> bool {
        for (prefix, watcher) in self.watchers.iter_mut().enumerate() {
            loop {
                let Ok(events) = watcher.take() else { return false };
                if events.is_empty() {
                    break;
                }
                for event in events {
                    let object = match &event.change {
                        Change::Put(entry) => Some(&entry.value),
                        Change::Delete(_) => None,
                    };
                    let (namespace, name) = split(event.key(), T::PREFIXES[prefix]);
                    self.index.apply(prefix, namespace, name, object);
                }
            }
        }
        !self.watchers.is_empty()
    }

    /// Reads everything anew. What fails leaves nothing behind; the next question tries again.
    fn rebuild(&mut self, view: &View) -> Result<(), store::Error> {
        *self = Followed::default();
        let mut next = Followed::default();
        for (number, prefix) in T::PREFIXES.iter().enumerate() {
            let start = folder(prefix, "");
            let listing = view.store().range(&Range::prefix(&start))?;
            for entry in &listing.entries {
                let (namespace, name) = split(&entry.key, prefix);
                T::apply(&mut next.index, number, namespace, name, Some(&entry.value));
            }
            next.watchers.push(view.store().watch(&start, listing.revision)?);
        }
        *self = next;
        Ok(())
    }
}

/// Namespace (empty at cluster scope) and name, from `/registry/<prefix>/[<namespace>/]<name>`.
fn split<'a>(key: &'a str, prefix: &str) -> (&'a str, &'a str) {
    let rest = key.get("/registry/".len() + prefix.len() + 1..).unwrap_or_default();
    rest.split_once('/').unwrap_or(("", rest))
}
