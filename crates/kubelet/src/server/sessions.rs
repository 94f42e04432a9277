//! Exec, attach and port-forward: the runtime says where its streaming server takes the session, and bytes are passed there.

use cri::messages::streaming::{AttachRequest, ExecRequest};
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use streaming::{tunnel, upgrade};
use tokio::net::TcpStream;

use super::request::{ContainerPath, Session};
use super::{Body, Query, Refusal, Response, Server, text};

/// The streams that a request asks for.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn from_query(query: &Query) -> Result<Self, Refusal> {
        let tty = query.flag("tty");
        // A terminal has one output.
        let stderr = query.flag("error") && !tty;
        let streams = Streams { stdin: query.flag("input"), stdout: query.flag("output"), stderr, tty };
        if !streams.stdin && !streams.stdout && !streams.stderr {
            return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(streams)
    }
}

impl Server {
    pub(super) async fn session(
        &self,
        request: Request<Incoming>,
        session: Session,
        query: &Query,
    ) -> Result<Response, Refusal> {
        let runtime = &self.parts.runtime;
        let url = match session {
            Session::Exec(path) => {
                let Streams { stdin, stdout, stderr, tty } = Streams::from_query(query)?;
                let container_id = self.running_container(&path)?;
                let cmd = query.all("command").to_vec();
                runtime.exec(ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await
            }
            Session::Attach(path) => {
                let Streams { stdin, stdout, stderr, .. } = Streams::from_query(query)?;
                let container_id = self.running_container(&path)?;
                // Whether the process has a terminal was settled when it started. A client that expects otherwise is refused by
                // the runtime; kubectl then shows the logs instead.
                let tty = self.container_has_tty(&path);
                runtime.attach(AttachRequest { container_id, stdin, tty, stdout, stderr }).await
            }
            Session::PortForward { namespace, pod, uid } => {
                let record = self.pod(&namespace, &pod, uid.as_deref())?;
                let sandbox = record.sandbox_id.as_deref();
                let sandbox =
                    sandbox.ok_or_else(|| Refusal::internal(format!("pod {pod}_{namespace} is not running")))?;
                let ports = query.all("port").iter().map(|port| port.parse::<u16>().map(i32::from));
                let ports = ports.collect::<Result<Vec<_>, _>>();
                runtime.port_forward(sandbox, ports.map_err(|_| Refusal::bad_request("invalid port"))?).await
            }
        };
        pass_on(request, &url.map_err(Refusal::runtime)?).await
    }

    fn container_has_tty(&self, path: &ContainerPath) -> bool {
        let Some(record) = self.parts.pods.get(&path.namespace, &path.pod) else { return false };
        let Some(spec) = &record.pod.spec else { return false };
        let main = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| (&c.name, c.tty));
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, c.tty));
        main.chain(ephemeral).any(|(name, tty)| *name == path.container && tty == Some(true))
    }

    /// Runs a command to its end and answers its output (`/run`).
    pub(super) async fn run(&self, path: &ContainerPath, query: &Query) -> Result<Response, Refusal> {
        let container_id = self.running_container(path)?;
        let command = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let output = self.parts.runtime.exec_sync(&container_id, command).await.map_err(Refusal::runtime)?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        match output.exit_code {
            0 => Ok(text(StatusCode::OK, said)),
            code => Err(Refusal::internal(format!("command terminated with exit code {code}: {said}"))),
        }
    }
}

/// Sends an upgrade on to the runtime's streaming server and, where that agrees, connects the two sides.
async fn pass_on(mut request: Request<Incoming>, url: &str) -> Result<Response, Refusal> {
    if !upgrade::is_upgrade(request.headers()) {
        return Err(Refusal::bad_request("Upgrade request required"));
    }
    let unusable = || Refusal::internal(format!("the runtime's streaming URL {url:?} cannot be used"));
    let url: Uri = url.parse().map_err(|_| unusable())?;
    // Streaming servers listen on loopback, in the clear.
    let authority = url.authority().filter(|_| url.scheme_str() == Some("http")).ok_or_else(unusable)?;
    let host = authority.host().trim_matches(['[', ']']);
    let dialled = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await;
    let tcp = dialled.map_err(|error| Refusal::internal(format!("error dialing backend: {error}")))?;
    tcp.set_nodelay(true).map_err(Refusal::internal)?;

    let client = hyper::upgrade::on(&mut request);
    let mut onward = Request::new(Empty::<Bytes>::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = url.path_and_query().cloned().map(Uri::from).ok_or_else(unusable)?;
    *onward.headers_mut() = onward_headers(request.headers(), authority.as_str())?;
    let mut answer = upgrade::send(tcp, onward)
        .await
        .map_err(|error| Refusal::internal(format!("error dialing backend: {error}")))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = hyper::upgrade::on(&mut answer);
        tunnel::connect(client, backend, ());
        return Ok(answer.map(|_| Body::default()));
    }
    let mut refused = http::Response::new(Body::default());
    *refused.status_mut() = answer.status();
    if let Some(kind) = answer.headers().get(header::CONTENT_TYPE) {
        refused.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    *refused.body_mut() = answer.into_body().map_err(Into::into).boxed_unsync();
    Ok(refused)
}

/// The client's headers without its credentials, which are none of the runtime's business.
fn onward_headers(headers: &HeaderMap, host: &str) -> Result<HeaderMap, Refusal> {
    let mut headers = headers.clone();
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, host.parse().map_err(Refusal::internal)?);
    Ok(headers)
}
