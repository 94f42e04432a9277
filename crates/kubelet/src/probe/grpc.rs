//! gRPC probes: the standard health service (`grpc.health.v1.Health/Check`), without TLS.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::client::Grpc;
use tonic::transport::{Endpoint, Uri};
use tonic_prost::ProstCodec;

use super::{Outcome, net};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, ::prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub async fn probe(host: &str, port: u16, service: String, timeout: Duration) -> Outcome {
    let address = net::join_host_port(host, port);
    match tokio::time::timeout(timeout, check(host, port, service)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!("timeout: failed to connect service \"{address}\" within {timeout:?}")),
    }
}

async fn check(host: &str, port: u16, service: String) -> Outcome {
    let address = net::join_host_port(host, port);
    let stream = match net::connect(host, port, Duration::from_secs(3600)).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Failure(format!("error: failed to connect to \"{address}\": {error}")),
    };
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
        return Outcome::Errored(format!("invalid address {address}"));
    };
    let endpoint = endpoint.user_agent("kube-probe/1.37").unwrap_or_else(|_| Endpoint::from_static("http://localhost"));
    let channel = match endpoint.connect_with_connector(connector).await {
        Ok(channel) => channel,
        Err(error) => return Outcome::Failure(format!("error: failed to connect to \"{address}\": {error}")),
    };
    let mut grpc = Grpc::new(channel);
    if let Err(error) = grpc.ready().await {
        return Outcome::Failure(format!("error: health rpc probe failed: {error}"));
    }
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = ::http::uri::PathAndQuery::from_static(CHECK);
    match grpc.unary(tonic::Request::new(HealthCheckRequest { service: service.clone() }), path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Outcome::Success,
        Ok(answer) => {
            let status = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let index = usize::try_from(answer.get_ref().status).unwrap_or(0);
            let word = status.get(index).unwrap_or(&"UNKNOWN");
            Outcome::Failure(format!("service unhealthy (responded with \"{word}\")"))
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => Outcome::Failure(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
        ),
        Err(status) => Outcome::Failure(format!("error: health rpc failed: {}", status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{HeaderMap, HeaderValue, Request, Response};
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::{Bytes, Frame, Incoming};
    use prost::Message as _;

    /// A health service that knows one service, `up`, and says of every other that it does not serve.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(answer);
                let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        port
    }

    async fn answer(
        request: Request<Incoming>,
    ) -> Result<
        Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>,
        std::convert::Infallible,
    > {
        let known = request.uri().path() == CHECK;
        let message = request.into_body().collect().await.unwrap().to_bytes();
        let asked = HealthCheckRequest::decode(&message[5..]).unwrap();
        let status = if asked.service == "up" { SERVING } else { 2 };
        let reply = HealthCheckResponse { status }.encode_to_vec();
        let mut framed = vec![0, 0, 0, 0, u8::try_from(reply.len()).unwrap()];
        framed.extend(reply);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "12" }));
        let frames = [Ok(Frame::data(Bytes::from(framed))), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Ok(response)
    }

    #[tokio::test]
    async fn only_serving_is_success() {
        let port = server().await;
        let ask = |service: &str| probe("127.0.0.1", port, service.to_owned(), Duration::from_secs(5));
        assert_eq!(ask("up").await, Outcome::Success);
        let down = Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned());
        assert_eq!(ask("down").await, down);
    }

    #[tokio::test]
    async fn a_closed_port_is_a_failure_not_an_error() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let outcome = probe("127.0.0.1", port, String::new(), Duration::from_secs(5)).await;
        assert!(matches!(outcome, Outcome::Failure(text) if text.contains("connection refused")));
    }
}
