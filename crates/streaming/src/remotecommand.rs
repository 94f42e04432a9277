//! Remote commands (exec and attach): which streams there are, how they are named in SPDY and numbered in WebSocket, which versions of
//! the protocol exist, and how the end of a command is told.

use std::time::Duration;

use serde_json::{Value, json};

use crate::spdy::{Connection, Headers, Incoming, Stream};
use crate::{Error, Result};

/// The header that carries the offered versions in a request, and the chosen one in the response.
pub const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
/// Terminal sizes, and a `Status` at the end. The newest that SPDY has: the fifth only adds a close signal to WebSocket.
pub const PROTOCOL_V4: &str = "v4.channel.k8s.io";
/// Versions of the remote-command protocol over SPDY, best first.
pub const SPDY_PROTOCOLS: [&str; 4] = [PROTOCOL_V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// The streams of a remote command. The numbers are the WebSocket channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamType {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

impl StreamType {
    /// The value of the `streamType` header.
    pub fn name(self) -> &'static str {
        match self {
            StreamType::Stdin => "stdin",
            StreamType::Stdout => "stdout",
            StreamType::Stderr => "stderr",
            StreamType::Error => "error",
            StreamType::Resize => "resize",
        }
    }

    pub fn channel(self) -> u8 {
        self as u8
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize].into_iter().find(|t| t.name() == name)
    }
}

/// What the two sides have agreed to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Options {
    /// The streams of a version 4 session, in the order in which upstream's client opens them.
    fn streams(self) -> Vec<StreamType> {
        [
            (true, StreamType::Error),
            (self.stdin, StreamType::Stdin),
            (self.stdout, StreamType::Stdout),
            (self.stderr, StreamType::Stderr),
            (self.tty, StreamType::Resize),
        ]
        .into_iter()
        .filter_map(|(wanted, stream)| wanted.then_some(stream))
        .collect()
    }
}

/// The open streams of a session.
pub struct Streams {
    pub error: Stream,
    pub stdin: Option<Stream>,
    pub stdout: Option<Stream>,
    pub stderr: Option<Stream>,
    pub resize: Option<Stream>,
}

/// Streams as they arrive, in any order.
#[derive(Default)]
struct Collected([Option<Stream>; 5]);

impl Collected {
    fn put(&mut self, kind: StreamType, stream: Stream) -> Result<()> {
        match self.0[kind as usize].replace(stream) {
            None => Ok(()),
            Some(_) => Err(Error::Protocol("a stream of a remote command came twice")),
        }
    }

    fn has(&self, kind: StreamType) -> bool {
        self.0[kind as usize].is_some()
    }

    fn finish(self) -> Result<Streams> {
        let [stdin, stdout, stderr, error, resize] = self.0;
        let error = error.ok_or(Error::Protocol("a remote command has no error stream"))?;
        Ok(Streams { error, stdin, stdout, stderr, resize })
    }
}

/// The client's half: opens the streams of a version 4 session.
pub async fn open(connection: &Connection, options: Options) -> Result<Streams> {
    let mut streams = Collected::default();
    for kind in options.streams() {
        let stream = connection.open(Headers::default().with("streamType", kind.name())).await?;
        streams.put(kind, stream)?;
    }
    streams.finish()
}

/// The server's half: waits until the client has opened every stream that `options` speaks of.
pub async fn accept(incoming: &mut Incoming, options: Options, patience: Duration) -> Result<Streams> {
    let wanted = options.streams();
    let accept = async {
        let mut streams = Collected::default();
        while !wanted.iter().all(|kind| streams.has(*kind)) {
            let offer = incoming.next().await.ok_or(Error::Closed)?;
            let kind = offer.headers().get("streamType").and_then(StreamType::from_name);
            let kind = kind.ok_or(Error::Protocol("a stream of a remote command has no known type"))?;
            streams.put(kind, offer.accept()?)?;
        }
        streams.finish()
    };
    tokio::time::timeout(patience, accept).await.unwrap_or(Err(Error::Timeout("the client to open its streams")))
}

/// The first of the client's versions that the server has too. `offered` are the values of [`PROTOCOL_HEADER`], each of which
/// may be a list.
pub fn negotiate<'a>(offered: impl IntoIterator<Item = &'a str>, supported: &[&'static str]) -> Option<&'static str> {
    offered
        .into_iter()
        .flat_map(|value| value.split(','))
        .find_map(|version| supported.iter().find(|known| **known == version.trim()).copied())
}

/// How a command ended, as the error stream tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The command ran and exited with this code, which is not 0.
    ExitCode(i32),
    /// The command did not run, or the session broke.
    Failure(String),
}

impl Outcome {
    /// The `metav1.Status` that version 4 sends on the error stream.
    pub fn to_status(&self) -> Value {
        match self {
            Outcome::Success => json!({"metadata": {}, "status": "Success"}),
            Outcome::ExitCode(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failure(error) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {error}"),
                "details": {"causes": [{"message": error}]},
            }),
        }
    }

    /// Reads what came on a version 4 error stream. An empty stream is a success, as upstream's client has it.
    pub fn from_status(bytes: &[u8]) -> Outcome {
        if bytes.is_empty() {
            return Outcome::Success;
        }
        let Ok(status) = serde_json::from_slice::<Value>(bytes) else {
            return Outcome::Failure(String::from_utf8_lossy(bytes).into_owned());
        };
        if status["status"] == "Success" {
            return Outcome::Success;
        }
        let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let code =
            causes.iter().find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str());
        match code.and_then(|code| code.parse().ok()) {
            Some(code) if status["reason"] == "NonZeroExitCode" => Outcome::ExitCode(code),
            _ => Outcome::Failure(status["message"].as_str().unwrap_or("unknown error").to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_order_decides_the_version() {
        assert_eq!(negotiate(["v4.channel.k8s.io", "v3.channel.k8s.io"], &SPDY_PROTOCOLS), Some(PROTOCOL_V4));
        assert_eq!(
            negotiate(["v9.channel.k8s.io, v2.channel.k8s.io,channel.k8s.io"], &SPDY_PROTOCOLS),
            Some("v2.channel.k8s.io")
        );
        assert_eq!(negotiate(["v9.channel.k8s.io"], &SPDY_PROTOCOLS), None);
        assert_eq!(negotiate([], &SPDY_PROTOCOLS), None);
    }

    #[test]
    fn outcomes_survive_the_error_stream() {
        let failure = "Internal error occurred: no such container";
        let cases = [
            (Outcome::Success, Outcome::Success),
            (Outcome::ExitCode(137), Outcome::ExitCode(137)),
            (Outcome::Failure("no such container".to_owned()), Outcome::Failure(failure.to_owned())),
        ];
        for (sent, received) in cases {
            assert_eq!(Outcome::from_status(sent.to_status().to_string().as_bytes()), received);
        }
        assert_eq!(Outcome::from_status(b""), Outcome::Success);
        assert_eq!(Outcome::from_status(b"boom"), Outcome::Failure("boom".to_owned()));
    }
}
