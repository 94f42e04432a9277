//! gRPC over a unix socket: one lazily connected, self-mending HTTP/2 connection, and calls with deadlines.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

use crate::error::{Error, Result};
use crate::operations::Operations;

/// Upstream's limit of a runtime's answer.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct Transport {
    channel: Channel,
    pub(crate) operations: Arc<Operations>,
}

impl Transport {
    /// Connects at first use and again whenever the connection is lost.
    pub(crate) fn new(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The authority is never resolved: the connector ignores it.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Transport { channel, operations: Arc::default() }
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// One call. `deadline` bounds connecting, sending and the answer together; none means no bound.
    pub(crate) async fn unary<Req, Res>(
        &self,
        method: &'static str,
        request: Req,
        deadline: Option<Duration>,
    ) -> Result<Res>
    where
        Req: prost::Message + Send + Sync + 'static,
        Res: prost::Message + Default + Send + Sync + 'static,
    {
        // Boxed: the state of a call under way is large, and callers hold it many times over.
        let call = Box::pin(async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| unreachable(method, &error))?;
            let codec = ProstCodec::<Req, Res>::default();
            let mut request = tonic::Request::new(request);
            if method.starts_with("/containerd.") {
                let namespace = tonic::metadata::MetadataValue::from_static(crate::events::CRI_NAMESPACE);
                request.metadata_mut().insert("containerd-namespace", namespace);
            }
            if let Some(deadline) = deadline {
                // Told to the runtime too, so that it stops working for nobody.
                request.set_timeout(deadline);
            }
            let answer = grpc.unary(request, PathAndQuery::from_static(method), codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| refused(method, &status))
        });
        let begun = tokio::time::Instant::now();
        let answer = match deadline {
            Some(after) => match tokio::time::timeout(after, call).await {
                Ok(answer) => answer,
                Err(_) => Err(Error::Deadline { method, after }),
            },
            None => call.await,
        };
        self.operations.note(method, begun.elapsed(), answer.is_err());
        answer
    }

    pub(crate) async fn server_stream<Req, Res>(
        &self,
        method: &'static str,
        request: Req,
    ) -> Result<tonic::Streaming<Res>>
    where
        Req: prost::Message + Send + Sync + 'static,
        Res: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| unreachable(method, &error))?;
        let codec = ProstCodec::<Req, Res>::default();
        let answer =
            grpc.server_streaming(tonic::Request::new(request), PathAndQuery::from_static(method), codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refused(method, &status))
    }
}

pub(crate) fn refused(method: &'static str, status: &tonic::Status) -> Error {
    Error::Call { method, code: status.code(), message: status.message().to_owned() }
}

fn unreachable(method: &'static str, error: &tonic::transport::Error) -> Error {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Error::Call { method, code: tonic::Code::Unavailable, message }
}
