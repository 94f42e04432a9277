//! A lean HTTP client: a connection is one TLS stream and carries one request after the other.
//!
//! Must not know: what the requests are for.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kubeconfig::Access;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// A server to talk to. Cloning is cheap.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    tls: TlsConnector,
    authorization: Option<HeaderValue>,
    protocol: Protocol,
}

impl Target {
    pub fn new(access: &Access, protocol: Protocol) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for authority in &access.authorities {
            roots.add(authority.clone()).context("the certificate authority is not one")?;
        }
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let mut config = match &access.certificate {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        let authorization = match &access.token {
            Some(token) => Some(format!("Bearer {token}").parse()?),
            None => None,
        };
        Ok(Target {
            host: access.server.host().context("the server's URL has no host")?.trim_matches(['[', ']']).to_owned(),
            port: access.server.port_u16().unwrap_or(443),
            tls: TlsConnector::from(Arc::new(config)),
            authorization,
            protocol,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub async fn connect(&self) -> Result<Connection> {
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TokioIo::new(self.tls.connect(name, socket).await.context("TLS")?);
        // An error ends the requests of the connection too, where it is reported.
        let sender = match self.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(async move { connection.await.ok() });
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(4 << 20)
                    .initial_connection_window_size(16 << 20)
                    .handshake(stream)
                    .await?;
                tokio::spawn(async move { connection.await.ok() });
                Sender::Http2(sender)
            }
        };
        Ok(Connection { sender, target: self.clone() })
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>> {
        let authority = format!("{}:{}", self.host, self.port);
        let uri = match self.protocol {
            Protocol::Http1 => call.path.clone(),
            Protocol::Http2 => format!("https://{authority}{}", call.path),
        };
        let mut request = Request::builder().method(call.method).uri(uri);
        if self.protocol == Protocol::Http1 {
            request = request.header(header::HOST, authority);
        }
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request = request.header(header::ACCEPT, "application/json").header(header::USER_AGENT, "bench");
        if let Some(media) = call.media {
            request = request.header(header::CONTENT_TYPE, media);
        }
        Ok(request.body(Full::new(call.body))?)
    }
}

/// A request, less what every one of them has.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub media: Option<&'static str>,
    pub body: Bytes,
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Call { method: Method::GET, path: path.into(), media: None, body: Bytes::new() }
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Call { method: Method::DELETE, path: path.into(), media: None, body: Bytes::new() }
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Call { method: Method::POST, path: path.into(), media: Some("application/json"), body: body.into() }
    }

    pub fn patch(path: impl Into<String>, media: &'static str, body: impl Into<Bytes>) -> Self {
        Call { method: Method::PATCH, path: path.into(), media: Some(media), body: body.into() }
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub struct Connection {
    sender: Sender,
    target: Target,
}

impl Connection {
    /// Sends one request; the body of the answer is still to come.
    pub async fn open(&mut self, call: Call) -> Result<Response<Incoming>> {
        let request = self.target.request(call)?;
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        Ok(response)
    }

    /// Sends one request and drops its answer as it comes. Returns the answer's size in bytes; fails unless it is a success.
    pub async fn drain(&mut self, call: Call) -> Result<usize> {
        let mut response = self.open(call).await?;
        if !response.status().is_success() {
            bail!("{}", explain(response).await);
        }
        let mut size = 0;
        while let Some(frame) = response.body_mut().frame().await {
            size += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(size)
    }
}

/// The status and the start of the body of an answer that is not wanted.
pub async fn explain(response: Response<Incoming>) -> String {
    let status = response.status();
    let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(400)]))
}
