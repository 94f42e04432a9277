//! Tasks that the API server runs for itself: followers of definitions, API services, flow schemas, used tokens.
//!
//! They write through the server, so they must end after the last request and before the store closes: what a server that stops
//! would write then fails, and reads like a fault. Knows nothing of what the tasks do.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one server.
#[derive(Debug, Default)]
pub struct Background {
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Background {
    /// Runs `task` until it ends or the server stops, when it is dropped where it waits. Nothing runs once the server has stopped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            stopping.run_until_cancelled(task).await;
        });
    }

    /// Ends all tasks. They look at no store when this returns.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Tells when it goes.
    struct Held(Arc<AtomicBool>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn tasks_are_gone_when_the_server_has_stopped() {
        let background = Background::default();
        let gone = Arc::new(AtomicBool::new(false));
        let held = Held(gone.clone());
        background.spawn(async move {
            let _held = held;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        assert!(!gone.load(Ordering::SeqCst));
        background.stop().await;
        assert!(gone.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn no_task_begins_on_a_server_that_has_stopped() {
        let background = Background::default();
        background.stop().await;
        let ran = Arc::new(AtomicBool::new(false));
        let run = ran.clone();
        background.spawn(async move { run.store(true, Ordering::SeqCst) });
        background.stop().await;
        assert!(!ran.load(Ordering::SeqCst));
    }
}
