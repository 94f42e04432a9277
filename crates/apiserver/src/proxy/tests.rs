//! The proxy against a kubelet made of our own SPDY server: whole requests over loopback, TLS towards the kubelet included.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use streaming::remotecommand::{self, Options, Outcome, PROTOCOL_HEADER, PROTOCOL_V4};
use streaming::spdy::{Connection, Headers, Role};
use streaming::websocket::{self, ChannelEvent, ChannelProtocol, Message, Tunnel};
use streaming::{Io, upgrade};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Body, Dialer, Links, StreamKind, Target};
use crate::audit::testing::Log;

const ALL: Options = Options { stdin: true, stdout: true, stderr: true, tty: false };

struct Kubelet {
    dialer: Dialer,
    port: u16,
}

impl Kubelet {
    /// A TLS server on loopback that answers as `answer` does.
    async fn start(answer: fn(Request<Incoming>) -> Response<Full<Bytes>>) -> Kubelet {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| async move { Ok::<_, hyper::Error>(answer(request)) });
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(TokioIo::new(tls), service).with_upgrades().await;
                });
            }
        });
        Kubelet { dialer: Dialer::new(&client), port }
    }

    fn target(&self, path: &str) -> Target {
        self.dialer.kubelet("127.0.0.1", self.port, path).unwrap()
    }
}

/// The API server's side of one connection: what `handle` answers, over HTTP/1.1 in memory.
fn serve<F>(handle: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> impl Io
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let handle = handle.clone();
            async move { Ok::<_, hyper::Error>(handle(request).await) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), service)
            .with_upgrades()
            .await;
    });
    near
}

async fn ask(target: Target, kind: StreamKind, request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let io = serve(move |request| super::stream(request, target.clone(), kind));
    upgrade::send(io, request).await.unwrap()
}

fn spdy_request(protocol: &str) -> Request<Empty<Bytes>> {
    let mut request =
        Request::post("/x").header(PROTOCOL_HEADER, protocol).header("host", "api").body(Empty::new()).unwrap();
    upgrade::ask_for(request.headers_mut(), upgrade::SPDY);
    request
}

fn websocket_request(protocol: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::get("/x")
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .header(header::AUTHORIZATION, "Bearer secret")
        .header(header::HOST, "api")
        .body(Empty::new())
        .unwrap();
    upgrade::ask_for(request.headers_mut(), upgrade::WEBSOCKET);
    request
}

/// A kubelet whose containers run `tr a-z A-Z`, say how large the terminal is, and exit with the number of bytes that they read.
fn shouting_kubelet(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    assert!(!request.headers().contains_key(header::AUTHORIZATION), "the user's token reached the kubelet");
    assert_eq!(request.method(), "POST");
    if request.uri().path() != "/exec" {
        let refusal = Full::from(r#"container not found ("gone")"#);
        return Response::builder().status(404).body(refusal).unwrap();
    }
    let tty = request.uri().query() == Some("tty=1");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (connection, mut incoming) = Connection::start(TokioIo::new(upgraded.await.unwrap()), Role::Server);
        let options = Options { tty, stderr: !tty, ..ALL };
        let mut streams = remotecommand::accept(&mut incoming, options, Duration::from_secs(5)).await.unwrap();
        if let Some(resize) = &mut streams.resize {
            let mut size = [0; 24];
            resize.read_exact(&mut size).await.unwrap();
            streams.stdout.as_mut().unwrap().write_all(&size).await.unwrap();
        }
        let mut input = Vec::new();
        streams.stdin.as_mut().unwrap().read_to_end(&mut input).await.unwrap();
        streams.stdout.as_mut().unwrap().write_all(&input.to_ascii_uppercase()).await.unwrap();
        if let Some(stderr) = &mut streams.stderr {
            stderr.write_all(b"done").await.unwrap();
        }
        let outcome = if input.is_empty() { Outcome::Success } else { Outcome::ExitCode(input.len() as i32) };
        streams.error.write_all(outcome.to_status().to_string().as_bytes()).await.unwrap();
        // As containerd does: everything is dropped at once, and the connection closed.
        drop(streams);
        connection.close();
    });
    upgrade::switching_protocols(upgrade::SPDY, Some(PROTOCOL_V4))
}

/// What a WebSocket client hears until the end: the bytes of each channel, and whether the end was a normal one.
async fn hear<T: Io>(socket: &mut websocket::WebSocketStream<T>, protocol: ChannelProtocol) -> (Vec<Vec<u8>>, bool) {
    let mut heard = vec![Vec::new(); 5];
    while let Some(Ok(message)) = socket.next().await {
        if message == websocket::normal_closure() {
            return (heard, true);
        }
        if let ChannelEvent::Data(channel, data) = protocol.decode(message) {
            heard[usize::from(channel)].extend_from_slice(&data);
        }
    }
    (heard, false)
}

async fn open_websocket(response: Response<Incoming>) -> websocket::WebSocketStream<impl Io> {
    assert_eq!(response.status(), 101);
    websocket::client(TokioIo::new(hyper::upgrade::on(response).await.unwrap())).await
}

#[tokio::test]
async fn exec_over_websocket_version_five() {
    let kubelet = Kubelet::start(shouting_kubelet).await;
    let name = "v5.channel.k8s.io";
    let response = ask(kubelet.target("/exec"), StreamKind::RemoteCommand(ALL), websocket_request(name)).await;
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], name);
    let protocol = ChannelProtocol::negotiate(&[name]).unwrap();
    let mut socket = open_websocket(response).await;
    socket.send(protocol.encode(0, b"hello ")).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    socket.send(protocol.encode(0, b"world")).await.unwrap();
    socket.send(protocol.encode_close(0).unwrap()).await.unwrap();
    let (heard, normal) = hear(&mut socket, protocol).await;
    assert_eq!(heard[1], b"HELLO WORLD");
    assert_eq!(heard[2], b"done");
    assert_eq!(Outcome::from_status(&heard[3]), Outcome::ExitCode(11));
    assert!(normal);
}

#[tokio::test]
async fn a_terminal_over_base64_channels() {
    let kubelet = Kubelet::start(shouting_kubelet).await;
    let name = "v4.base64.channel.k8s.io";
    let options = Options { tty: true, stderr: false, ..ALL };
    let response =
        ask(kubelet.target("/exec?tty=1"), StreamKind::RemoteCommand(options), websocket_request(name)).await;
    let protocol = ChannelProtocol::negotiate(&[name]).unwrap();
    let mut socket = open_websocket(response).await;
    assert_eq!(protocol.decode(socket.next().await.unwrap().unwrap()), ChannelEvent::Data(1, Bytes::new()));
    socket.send(protocol.encode(4, br#"{"Width":80,"Height":24}"#)).await.unwrap();
    assert_eq!(
        protocol.decode(socket.next().await.unwrap().unwrap()),
        ChannelEvent::Data(1, Bytes::from_static(br#"{"Width":80,"Height":24}"#))
    );
    // This version cannot end the input alone; the client leaves.
    socket.send(websocket::normal_closure()).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn what_the_kubelet_refuses_comes_on_the_error_channel() {
    let kubelet = Kubelet::start(shouting_kubelet).await;
    let message = r#"Internal error occurred: unable to upgrade connection: container not found ("gone")"#;
    for (name, is_object) in [("v5.channel.k8s.io", true), ("channel.k8s.io", false)] {
        let response = ask(kubelet.target("/gone"), StreamKind::RemoteCommand(ALL), websocket_request(name)).await;
        let mut socket = open_websocket(response).await;
        let (heard, normal) = hear(&mut socket, ChannelProtocol::negotiate(&[name]).unwrap()).await;
        if is_object {
            assert_eq!(Outcome::from_status(&heard[3]), Outcome::Failure(message.to_owned()));
        } else {
            assert_eq!(heard[3], message.as_bytes());
        }
        assert!(normal);
    }
}

#[tokio::test]
async fn exec_over_spdy_is_passed_through() {
    let kubelet = Kubelet::start(shouting_kubelet).await;
    let response = ask(kubelet.target("/exec"), StreamKind::RemoteCommand(ALL), spdy_request(PROTOCOL_V4)).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[PROTOCOL_HEADER], PROTOCOL_V4);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let (connection, _incoming) = Connection::start(io, Role::Client);
    let mut streams = remotecommand::open(&connection, ALL).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"ok").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut status = Vec::new();
    let _ = streams.error.read_to_end(&mut status).await;
    assert_eq!(Outcome::from_status(&status), Outcome::ExitCode(2));
}

#[tokio::test]
async fn refusals_and_requests_that_are_no_upgrade() {
    let kubelet = Kubelet::start(shouting_kubelet).await;
    let kind = StreamKind::RemoteCommand(ALL);
    let response = ask(kubelet.target("/gone"), kind, spdy_request(PROTOCOL_V4)).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), r#"container not found ("gone")"#);

    let plain = Request::get("/x").header("host", "api").body(Empty::new()).unwrap();
    let response = ask(kubelet.target("/exec"), kind, plain).await;
    assert_eq!(response.status(), 400);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("Upgrade request required"));

    assert_eq!(ask(kubelet.target("/exec"), kind, websocket_request("chat")).await.status(), 403);

    let nowhere = kubelet.dialer.kubelet("127.0.0.1", 1, "/exec").unwrap();
    let response = ask(nowhere, kind, spdy_request(PROTOCOL_V4)).await;
    assert_eq!(response.status(), 500);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let expected = "error dialing backend: dial tcp 127.0.0.1:1: connect: connection refused";
    assert!(String::from_utf8_lossy(&body).contains(expected), "{body:?}");
}

#[tokio::test]
async fn a_session_is_on_record_until_it_ends() {
    let ways = [
        (shouting_kubelet as fn(Request<Incoming>) -> Response<Full<Bytes>>, "/exec", spdy_request(PROTOCOL_V4)),
        (shouting_kubelet, "/exec", websocket_request("v5.channel.k8s.io")),
        (echoing_kubelet, "/portForward", websocket_request("SPDY/3.1+portforward.k8s.io")),
    ];
    for (answer, path, request) in ways {
        let kubelet = Kubelet::start(answer).await;
        let kind = if path == "/exec" { StreamKind::RemoteCommand(ALL) } else { StreamKind::PortForward };
        let log = Arc::new(Log::new());
        let (target, records) = (kubelet.target(path), log.clone());
        let io = serve(move |mut request| {
            let (target, log) = (target.clone(), records.clone());
            async move {
                let record = log.begin("watch").await;
                request.extensions_mut().insert(record.hold());
                let response = super::stream(request, target, kind).await;
                record.answered(response).await
            }
        });
        let response = upgrade::send(io, request).await.unwrap();
        let session = hyper::upgrade::on(response).await.unwrap();
        // Whatever would end by itself has by now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(log.told(), ["ResponseStarted 101 null"], "{path}");
        drop(session);
        for _ in 0..400 {
            if log.told().len() > 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(log.told(), ["ResponseStarted 101 null", "ResponseComplete 101 null"], "{path}");
    }
}

/// A kubelet whose pods echo what is forwarded to port 80.
fn echoing_kubelet(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    assert_eq!(request.headers()[PROTOCOL_HEADER], "portforward.k8s.io");
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (_connection, mut incoming) = Connection::start(TokioIo::new(upgraded.await.unwrap()), Role::Server);
        while let Some(offer) = incoming.next().await {
            let stream = offer.accept().unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
        }
    });
    upgrade::switching_protocols(upgrade::SPDY, Some("portforward.k8s.io"))
}

#[tokio::test]
async fn port_forward_through_a_websocket() {
    let kubelet = Kubelet::start(echoing_kubelet).await;
    let request = websocket_request("SPDY/3.1+portforward.k8s.io");
    let response = ask(kubelet.target("/portForward"), StreamKind::PortForward, request).await;
    assert_eq!(response.headers()[header::SEC_WEBSOCKET_PROTOCOL], "SPDY/3.1+portforward.k8s.io");
    let (connection, _incoming) = Connection::start(Tunnel::new(open_websocket(response).await), Role::Client);
    let mut stream = connection.open(Headers::default().with("streamType", "data").with("port", "80")).await.unwrap();
    let sent = vec![b'x'; 300_000];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut back = Vec::new();
    let (written, read) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    written.unwrap();
    read.unwrap();
    assert_eq!(back, sent);
}

fn logging_kubelet(request: Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/containerLogs/ns/web/app" => Response::new(Full::from("line\n")),
        _ => {
            let words = r#"container "app" in pod "web" is waiting to start: ContainerCreating"#;
            Response::builder().status(400).body(Full::from(words)).unwrap()
        }
    }
}

#[tokio::test]
async fn logs_and_their_refusal() {
    let kubelet = Kubelet::start(logging_kubelet).await;
    let response = super::logs(&kubelet.target("/containerLogs/ns/web/app")).await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "line\n");
    let error = super::logs(&kubelet.target("/containerLogs/ns/web/new")).await.unwrap_err();
    assert_eq!((error.code, error.reason), (400, "BadRequest"));
    assert_eq!(error.message, r#"container "app" in pod "web" is waiting to start: ContainerCreating"#);
}

fn web_page(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let seen =
        |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    match request.uri().path() {
        "/moved" => Response::builder().status(302).header("location", "/new?a=b").body(Full::default()).unwrap(),
        "/page" => Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .body(Full::from(r#"<a href="/next">"#))
            .unwrap(),
        _ => Response::new(Full::from(format!("{} {}", request.uri(), seen("x-forwarded-uri")))),
    }
}

#[tokio::test]
async fn pages_of_a_pod() {
    let pod = Kubelet::start(web_page).await;
    let get = async |path: &'static str| {
        let target = pod.dialer.kubelet("127.0.0.1", pod.port, if path.is_empty() { "/" } else { path }).unwrap();
        let links = Links {
            prefix: "/p/proxy".to_owned(),
            target_host: target.authority(),
            request_host: "api:6443".to_owned(),
        };
        let request = Request::get("/p/proxy").body(Empty::<Bytes>::new()).unwrap();
        let response = super::forward(request, target, path, links).await;
        let location = response.headers().get("location").map(|location| location.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, location.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(get("/a?b=c").await, (200, String::new(), "/a?b=c /p/proxy/a?b=c".to_owned()));
    assert_eq!(get("/moved").await, (302, "/p/proxy/new?a=b".to_owned(), String::new()));
    assert_eq!(get("/page").await, (200, String::new(), r#"<a href="/p/proxy/next">"#.to_owned()));
    assert_eq!(get("").await, (301, "/p/proxy/".to_owned(), String::new()));
}
