//! The event recorder: what a component tells people about an object (`kubectl describe`, `kubectl get events`).
//!
//! Recording never blocks and never fails the caller: events go through a bounded channel to one task, which counts
//! repetitions as upstream's correlator does ([`correlate`]) and writes core/v1 Events. Under pressure events are dropped.

mod correlate;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

use correlate::{Correlator, Decision};

/// Events waiting to be written; more are dropped.
const BACKLOG: usize = 1024;
const ATTEMPTS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        })
    }
}

/// What happened, before it is correlated with what happened earlier.
#[derive(Clone, Debug)]
pub(crate) struct Occurrence {
    pub object: ObjectReference,
    pub kind: EventType,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
}

/// Records events on behalf of one component. Cloning shares it; its task ends with the last clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// `component` is the event's source (`replicaset-controller`), `host` the node's name for components that belong to
    /// one, else empty. Must be called within a tokio runtime.
    pub fn new(client: kube::Client, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(write_events(client, Correlator::new(component, host), receiver));
        Recorder { sender }
    }

    /// A recorder that writes nowhere, and the receiving end that a test reads as `"<type> <reason> <message>"`.
    pub fn detached() -> (Self, impl FnMut() -> Option<String>) {
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        let next =
            move || receiver.try_recv().ok().map(|o: Occurrence| format!("{} {} {}", o.kind, o.reason, o.message));
        (Recorder { sender }, next)
    }

    /// Records that `reason` (UpperCamelCase) happened to `object`.
    pub fn event(&self, object: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let occurrence = Occurrence {
            object: object.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.sender.try_send(occurrence).is_err() {
            tracing::debug!(reason, "event dropped, too many are waiting");
        }
    }

    pub fn normal<K: crate::informer::Kind>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.event(&object.object_ref(&()), EventType::Normal, reason, message);
    }

    pub fn warning<K: crate::informer::Kind>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.event(&object.object_ref(&()), EventType::Warning, reason, message);
    }
}

async fn write_events(client: kube::Client, mut correlator: Correlator, mut receiver: mpsc::Receiver<Occurrence>) {
    while let Some(occurrence) = receiver.recv().await {
        match correlator.decide(&occurrence) {
            Decision::Drop => {}
            Decision::Create(event) => create(&client, &event).await,
            Decision::Count { event, patch } => {
                let api = api_of(&client, &event);
                let name = event.metadata.name.as_deref().unwrap_or_default();
                let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
                let patched = retried(|| api.patch(name, &params, &patch)).await;
                if patched.is_err_and(|error| crate::error::is_not_found(&error)) {
                    create(&client, &event).await;
                }
            }
        }
    }
}

fn api_of(client: &kube::Client, event: &Event) -> Api<Event> {
    Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or("default"))
}

async fn create(client: &kube::Client, event: &Event) {
    let api = api_of(client, event);
    let params = PostParams::default();
    if let Err(error) = retried(|| api.create(&params, event)).await {
        tracing::debug!(reason = event.reason, %error, "event not recorded");
    }
}

/// Tries again while the server cannot be reached; what it refuses stays refused.
async fn retried<T, Fut>(attempt: impl Fn() -> Fut) -> Result<T, kube::Error>
where
    Fut: Future<Output = Result<T, kube::Error>>,
{
    let mut pause = Duration::from_millis(100);
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Err(error) if !matches!(error, kube::Error::Api(_)) => {
                tokio::time::sleep(pause).await;
                pause *= 5;
            }
            result => return result,
        }
    }
    attempt().await
}
