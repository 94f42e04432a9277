//! In which order pods are taken on: as they came, one after the other, so that of two that cannot both be here the first is.
//!
//! Knows nothing of pods: a [`Turn`] is a place in a queue, given up when it is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The queue. Cloning shares it.
#[derive(Clone, Default)]
pub struct Turns(Arc<Inner>);

#[derive(Default)]
struct Inner {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Default)]
struct Queue {
    last: u64,
    waiting: BTreeSet<u64>,
}

/// A place in the queue.
pub struct Turn {
    number: u64,
    inner: Arc<Inner>,
}

impl Turns {
    /// The place behind all others.
    pub fn take(&self) -> Turn {
        let mut queue = self.0.queue.lock();
        queue.last += 1;
        let number = queue.last;
        queue.waiting.insert(number);
        Turn { number, inner: self.0.clone() }
    }
}

impl Turn {
    /// Waits until all that came before have given up their places.
    pub async fn come(&self) {
        loop {
            let changed = self.inner.changed.notified();
            if self.inner.queue.lock().waiting.first() == Some(&self.number) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.inner.queue.lock().waiting.remove(&self.number);
        self.inner.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_come_in_order_whoever_asks_first() {
        let turns = Turns::default();
        let (first, second, third) = (turns.take(), turns.take(), turns.take());
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |turn: Turn, name: &'static str| {
            let order = order.clone();
            tokio::spawn(async move {
                turn.come().await;
                order.lock().push(name);
            })
        };
        let waiting = [wait(third, "third"), wait(first, "first")];
        tokio::task::yield_now().await;
        assert_eq!(*order.lock(), ["first"]);
        drop(second);
        for task in waiting {
            task.await.expect("it came");
        }
        assert_eq!(*order.lock(), ["first", "third"]);
    }
}
