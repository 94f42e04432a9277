//! Container events, so that nobody has to list containers once a second to see what changed.
//!
//! CRI's own `GetContainerEvents` where the runtime has it (containerd from 1.7), otherwise containerd's event service, which
//! listens on the same socket. Neither replays what was missed: after subscribing anew a reader must list once.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost::Message as _;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::messages::containerd::{Envelope, SubscribeRequest, TaskEvent, TaskExit};
use crate::messages::runtime::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use crate::transport::refused;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started,
    /// The process has ended. The runtime may need a moment more until its status says so.
    Exited,
    OutOfMemory,
    Deleted,
}

/// Something happened to a container or to a sandbox, whichever has the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub kind: EventKind,
}

/// Ends with an error when the runtime goes away.
pub type EventStream = BoxStream<'static, Result<Event>>;

const CRI_EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
const CONTAINERD_EVENTS: &str = "/containerd.services.events.v1.Events/Subscribe";
/// The containerd namespace that its CRI plugin keeps everything in.
pub(crate) const CRI_NAMESPACE: &str = "k8s.io";

impl Client {
    /// Subscribes to container events from now on.
    pub async fn events(&self) -> Result<EventStream> {
        match self.transport.server_stream(CRI_EVENTS, GetEventsRequest {}).await {
            Ok(stream) => Ok(stream
                .filter_map(|item| async {
                    match item {
                        Ok(event) => from_cri(event).map(Ok),
                        Err(status) => Some(Err(refused(CRI_EVENTS, &status))),
                    }
                })
                .boxed()),
            Err(error) if error.is_unimplemented() => self.containerd_events().await,
            Err(error) => Err(error),
        }
    }

    async fn containerd_events(&self) -> Result<EventStream> {
        let filters = vec![format!("namespace=={CRI_NAMESPACE},topic~=|^/tasks/|")];
        let stream: tonic::Streaming<Envelope> =
            self.transport.server_stream(CONTAINERD_EVENTS, SubscribeRequest { filters }).await?;
        Ok(stream
            .filter_map(|item| async {
                match item {
                    Ok(envelope) => from_containerd(&envelope).transpose(),
                    Err(status) => Some(Err(refused(CONTAINERD_EVENTS, &status))),
                }
            })
            .boxed())
    }
}

fn from_cri(event: ContainerEventResponse) -> Option<Event> {
    let kind = match event.container_event_type() {
        ContainerEventType::ContainerCreatedEvent => EventKind::Created,
        ContainerEventType::ContainerStartedEvent => EventKind::Started,
        ContainerEventType::ContainerStoppedEvent => EventKind::Exited,
        ContainerEventType::ContainerDeletedEvent => EventKind::Deleted,
    };
    (!event.container_id.is_empty()).then_some(Event { id: event.container_id, kind })
}

/// None for topics that are of no interest and for the end of an exec inside a container.
fn from_containerd(envelope: &Envelope) -> Result<Option<Event>> {
    if envelope.namespace != CRI_NAMESPACE {
        return Ok(None);
    }
    let payload = envelope.event.as_ref().map_or(&[][..], |any| &any.value);
    let undecodable = |_| Error::Incomplete { method: CONTAINERD_EVENTS, field: "event" };
    let kind = match envelope.topic.as_str() {
        "/tasks/exit" => {
            let exit = TaskExit::decode(payload).map_err(undecodable)?;
            let of_container = exit.id == exit.container_id;
            return Ok(of_container.then_some(Event { id: exit.container_id, kind: EventKind::Exited }));
        }
        "/tasks/create" => EventKind::Created,
        "/tasks/start" => EventKind::Started,
        "/tasks/oom" => EventKind::OutOfMemory,
        "/tasks/delete" => EventKind::Deleted,
        _ => return Ok(None),
    };
    let task = TaskEvent::decode(payload).map_err(undecodable)?;
    Ok(Some(Event { id: task.container_id, kind }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::containerd::Any;

    fn envelope(topic: &str, payload: Vec<u8>) -> Envelope {
        let event = Some(Any { type_url: "containerd.events".to_owned(), value: payload });
        Envelope { namespace: CRI_NAMESPACE.to_owned(), topic: topic.to_owned(), event }
    }

    #[test]
    fn the_end_of_an_exec_is_not_the_end_of_its_container() {
        let exit = |id: &str| {
            let exit = TaskExit { container_id: "c1".to_owned(), id: id.to_owned(), pid: 7, exit_status: 1 };
            from_containerd(&envelope("/tasks/exit", exit.encode_to_vec())).expect("decodes")
        };
        assert_eq!(exit("probe"), None);
        assert_eq!(exit("c1"), Some(Event { id: "c1".to_owned(), kind: EventKind::Exited }));
    }

    #[test]
    fn foreign_namespaces_unknown_topics_and_broken_payloads_do_no_harm() {
        let task = TaskEvent { container_id: "c1".to_owned() }.encode_to_vec();
        let mut foreign = envelope("/tasks/start", task.clone());
        foreign.namespace = "moby".to_owned();
        assert_eq!(from_containerd(&foreign).expect("decodes"), None);
        assert_eq!(from_containerd(&envelope("/tasks/paused", task)).expect("decodes"), None);
        assert!(from_containerd(&envelope("/tasks/oom", vec![0xff, 0xff])).is_err());
    }
}
