//! What a request has to say besides its answer: warnings that go to the client, whether it succeeds or not (`Warning: 299` headers), and
//! annotations for whoever audits it.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::names;
use parking_lot::Mutex;

/// The warnings of one request, in the order they arose, each once, and its audit annotations. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Notes>);

#[derive(Debug, Default)]
struct Notes {
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Warnings {
    /// A write that is tried again warns of the same things again: those are not repeated.
    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        let mut known = self.0.warnings.lock();
        for text in texts {
            if !known.contains(&text) {
                known.push(text);
            }
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.warnings.lock())
    }

    /// Keeps an audit annotation (upstream's `admission.Attributes.AddAnnotation`). `key` is a qualified name; one that has another
    /// value already keeps that one.
    pub fn annotate(&self, key: &str, value: &str) {
        if let Some(why) = names::qualified_name(key).first() {
            tracing::warn!(key, why, "an audit annotation has no valid name");
            return;
        }
        let mut known = self.0.annotations.lock();
        match known.get(key) {
            Some(kept) if kept != value => {
                tracing::warn!(key, value, kept, "an audit annotation is there with another value already");
            }
            Some(_) => {}
            None => {
                known.insert(key.to_owned(), value.to_owned());
            }
        }
    }

    /// The audit annotations so far, by key.
    pub fn take_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.0.annotations.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_keep_their_first_value() {
        let notes = Warnings::default();
        for (key, value) in [("policy/key", "one"), ("policy/key", "two"), ("not a name", "x"), ("other", "y")] {
            notes.clone().annotate(key, value);
        }
        let kept = notes.take_annotations();
        assert_eq!(
            kept.into_iter().collect::<Vec<_>>(),
            [("other".to_owned(), "y".to_owned()), ("policy/key".to_owned(), "one".to_owned())]
        );
        assert!(notes.take_annotations().is_empty());
    }
}
