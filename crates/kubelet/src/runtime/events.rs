//! Turns the runtime's events into wake-ups of pod workers, and keeps the subscription alive.

use std::sync::Arc;
use std::time::Duration;

use cri::messages::container::ContainerState;
use cri::messages::sandbox::PodSandboxState;
use cri::{Event, EventKind};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::labels::POD_UID;
use crate::pods::PodStore;

/// Wakes every worker so often, in case an event was lost.
const SAFETY_RELIST: Duration = Duration::from_secs(300);
/// A subscription is answered before it is in force: whatever happened in between is looked for once, so long after.
const SUBSCRIBED_AFTER: Duration = Duration::from_secs(1);
/// How long the runtime's status may lag behind its own exit event, and how often it is asked meanwhile. Unless the machine is
/// overwhelmed it lags for milliseconds.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
const LONGEST_SETTLE_STEP: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Whom to wake.
pub trait Wake: Send + Sync + 'static {
    fn wake(&self, uid: &str);
    fn wake_all(&self);
}

/// Runs until `shutdown`. After each new subscription all workers are woken, since nothing before it is replayed.
pub async fn pump(runtime: cri::Client, store: PodStore, workers: Arc<dyn Wake>, shutdown: CancellationToken) {
    let mut delay = Duration::from_millis(50);
    loop {
        let subscribed = shutdown.run_until_cancelled(runtime.events()).await;
        match subscribed {
            None => return,
            Some(Ok(stream)) => {
                delay = Duration::from_millis(50);
                workers.wake_all();
                follow(stream, &runtime, &store, &*workers, &shutdown).await;
            }
            Some(Err(error)) => tracing::warn!(%error, "no events from the container runtime; trying again"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
            return;
        }
        delay = (delay * 2).min(LONGEST_RETRY);
    }
}

async fn follow(
    mut stream: cri::EventStream,
    runtime: &cri::Client,
    store: &PodStore,
    workers: &dyn Wake,
    shutdown: &CancellationToken,
) {
    let mut settling = FuturesUnordered::new();
    let mut relist = tokio::time::interval_at(tokio::time::Instant::now() + SUBSCRIBED_AFTER, SAFETY_RELIST);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            item = stream.next() => match item {
                Some(Ok(event)) => {
                    // Workers know of what they start themselves; only ends come unasked.
                    if event.kind == EventKind::Exited {
                        let known = store.uid_of_runtime_id(&event.id);
                        settling.push(settled(runtime, event, known));
                    }
                }
                Some(Err(error)) => return tracing::warn!(%error, "the container runtime's event stream broke"),
                None => return tracing::warn!("the container runtime closed its event stream"),
            },
            Some(uid) = settling.next(), if !settling.is_empty() => {
                if let Some(uid) = uid {
                    workers.wake(&uid);
                }
            }
            _ = relist.tick() => workers.wake_all(),
        }
    }
}

/// Waits until the runtime's own status knows of the exit, which comes a moment after its event, and says whose pod it was.
///
/// A container that ends at once does so before its worker has told the store of it (`known` is none): then its labels tell. Its
/// event may even come before the runtime has noted the start: `Created`, too, means that the exit is still to be noted.
async fn settled(runtime: &cri::Client, event: Event, known: Option<String>) -> Option<String> {
    let mut delay = Duration::from_millis(1);
    let mut uid = known;
    let deadline = tokio::time::Instant::now() + SETTLE_WITHIN;
    while tokio::time::Instant::now() < deadline {
        let (behind, labels) = match runtime.container_status(&event.id).await {
            Ok(status) => (matches!(status.state(), ContainerState::Created | ContainerState::Running), status.labels),
            Err(error) if error.is_not_found() => match runtime.pod_sandbox_status(&event.id).await {
                Ok(status) => (status.state() == PodSandboxState::Ready, status.labels),
                Err(_) => return uid,
            },
            Err(_) => return uid,
        };
        uid = uid.or_else(|| labels.get(POD_UID).cloned());
        if !behind {
            break;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LONGEST_SETTLE_STEP);
    }
    uid
}
