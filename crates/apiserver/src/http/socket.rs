//! An answer that goes on for long (a watch, a followed log) as the messages of a WebSocket: what browsers and some tools can read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::Io;
use streaming::websocket::{self, Message, WebSocketStream, normal_closure};

use super::{Body, Response, respond};
use crate::request::RequestInfo;
use apimachinery::status::StatusError;

/// How the bytes of the answer become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// A text for each line: events.
    Lines,
    /// Whatever comes, as it comes (upstream's `wsstream.Reader`).
    Binary,
    /// The same as base64.
    Base64,
}

/// A request for such an answer.
pub struct Socket {
    client: OnUpgrade,
    headers: HeaderMap,
    framing: Framing,
    protocol: Option<&'static str>,
}

impl Socket {
    /// None unless the request asks for a WebSocket, and for what is delivered over one. Fails where none of the subprotocols
    /// offered is known.
    pub fn of(head: &mut Parts, info: &RequestInfo) -> Result<Option<Self>, StatusError> {
        let logs = info.verb == "get" && info.subresource == "log";
        if !(logs || info.verb == "watch") || !websocket::is_request(&head.headers) {
            return Ok(None);
        }
        let offered = websocket::offered_protocols(&head.headers);
        let (framing, protocol) = match offered.iter().find_map(|offered| framing(offered, logs)) {
            Some((framing, protocol)) => (framing, Some(protocol)),
            None if offered.is_empty() => (if logs { Framing::Binary } else { Framing::Lines }, None),
            None => {
                let message = "unable to upgrade: none of the requested subprotocols is supported";
                return Err(StatusError::new(403, "Forbidden", message));
            }
        };
        // Only a connection of its own can be taken over.
        let Some(client) = head.extensions.remove::<OnUpgrade>() else { return Ok(None) };
        Ok(Some(Socket { client, headers: head.headers.clone(), framing, protocol }))
    }

    /// Accepts the WebSocket, and sends the body of `response` over it; an answer that is no success stays what it is.
    pub fn deliver(self, response: Response) -> Response {
        if !response.status().is_success() {
            return response;
        }
        let accepted = match websocket::accept(&self.headers, self.protocol) {
            Ok(accepted) => accepted,
            Err(error) => return respond::error(&StatusError::bad_request(error.to_string())),
        };
        let (framing, client, body) = (self.framing, self.client, response.into_body());
        tokio::spawn(async move {
            match client.await {
                Ok(io) => pump(websocket::server(TokioIo::new(io)).await, body, framing).await,
                Err(error) => tracing::debug!(%error, "upgrade failed"),
            }
        });
        accepted
    }
}

fn framing(offered: &str, logs: bool) -> Option<(Framing, &'static str)> {
    match offered {
        "binary.k8s.io" if logs => Some((Framing::Binary, "binary.k8s.io")),
        "base64.binary.k8s.io" if logs => Some((Framing::Base64, "base64.binary.k8s.io")),
        _ => None,
    }
}

/// Until the body or the client ends. Dropping the body then ends what makes it.
async fn pump<T: Io>(socket: WebSocketStream<T>, mut body: Body, framing: Framing) {
    let (mut out, mut back) = socket.split();
    let send = async {
        let mut line = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            for message in messages(framing, data, &mut line) {
                if out.send(message).await.is_err() {
                    return;
                }
            }
        }
        let _ = out.send(normal_closure()).await;
    };
    // The client has nothing to say but that it leaves.
    let gone = async { while back.next().await.is_some_and(|message| message.is_ok_and(|m| !m.is_close())) {} };
    tokio::select! { () = send => {}, () = gone => {} }
}

/// `line` holds what has come of a line that is not at its end.
fn messages(framing: Framing, data: Bytes, line: &mut BytesMut) -> Vec<Message> {
    match framing {
        Framing::Binary => vec![Message::Binary(data)],
        Framing::Base64 => vec![Message::Text(STANDARD.encode(&data).into())],
        Framing::Lines => {
            line.extend_from_slice(&data);
            let mut all = Vec::new();
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text = line.split_to(end + 1);
                all.push(Message::Text(String::from_utf8_lossy(&text).into_owned().into()));
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_messages_wherever_they_are_cut() {
        let mut line = BytesMut::new();
        let mut texts = Vec::new();
        for piece in ["{\"a\"", ":1}\n{\"b\":2}\n{", "}\n"] {
            let all = messages(Framing::Lines, Bytes::from(piece), &mut line);
            texts.extend(all.into_iter().map(|message| message.into_text().unwrap().to_string()));
        }
        assert_eq!(texts, ["{\"a\":1}\n", "{\"b\":2}\n", "{}\n"]);
        let encoded = messages(Framing::Base64, Bytes::from("hi"), &mut line);
        assert_eq!(encoded, [Message::Text("aGk=".into())]);
    }

    #[tokio::test]
    async fn a_body_over_a_socket_ends_with_a_closure() {
        let (near, far) = tokio::io::duplex(1024);
        let body = respond::full("one\ntwo\n");
        tokio::spawn(async move { pump(websocket::server(far).await, body, Framing::Lines).await });
        let mut client = websocket::client(near).await;
        let mut heard = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            heard.push(message);
        }
        assert_eq!(heard, [Message::Text("one\n".into()), Message::Text("two\n".into()), normal_closure()]);
    }
}
