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
    /// The index as of now.
    pub fn fresh(&mut self, view: &View) -> &T {
        let newest = view.store().revision();
        if self.seen != newest || self.watchers.is_empty() {
            if !self.follow() {
                self.rebuild(view);
            }
            self.seen = newest;
        }
        &self.index
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

    fn rebuild(&mut self, view: &View) {
        self.index = T::default();
        self.watchers.clear();
        for (number, prefix) in T::PREFIXES.iter().enumerate() {
            let start = folder(prefix, "");
            let listing = match view.store().range(&Range::prefix(&start)) {
                Ok(listing) => listing,
                Err(error) => return self.fail(&error),
            };
            for entry in &listing.entries {
                let (namespace, name) = split(&entry.key, prefix);
                self.index.apply(number, namespace, name, Some(&entry.value));
            }
            match view.store().watch(&start, listing.revision) {
                Ok(watcher) => self.watchers.push(watcher),
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// An index that cannot be built allows nothing; the next question tries again.
    fn fail(&mut self, error: &store::Error) {
        tracing::error!(%error, "cannot read the objects that authorisation depends on");
        self.index = T::default();
        self.watchers.clear();
    }
}

/// Namespace (empty at cluster scope) and name, from `/registry/<prefix>/[<namespace>/]<name>`.
fn split<'a>(key: &'a str, prefix: &str) -> (&'a str, &'a str) {
    let rest = key.get("/registry/".len() + prefix.len() + 1..).unwrap_or_default();
    rest.split_once('/').unwrap_or(("", rest))
}
