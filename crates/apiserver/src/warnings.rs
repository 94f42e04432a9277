//! Warnings that go to the client with the answer of one request, whether it succeeds or not (`Warning: 299` headers).

use std::sync::Arc;

use parking_lot::Mutex;

/// The warnings of one request, in the order they arose, each once. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// A write that is tried again warns of the same things again: those are not repeated.
    pub fn extend(&self, texts: impl IntoIterator<Item = String>) {
        let mut known = self.0.lock();
        for text in texts {
            if !known.contains(&text) {
                known.push(text);
            }
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}
