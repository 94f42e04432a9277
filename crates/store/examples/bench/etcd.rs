//! Debian's etcd in a process of its own, and a client that does no more than gRPC needs.
//!
//! The fields are those of etcd's `rpc.proto` and `kv.proto` that are used here.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::load::Side;
use crate::ours::{cpu, resident_bytes, sum};

/// Requests are spread over so many.
const CONNECTIONS: usize = 8;
const PORT: u16 = 23790;

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Done {}

#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Listing {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<Range>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone)]
pub struct Etcd {
    channels: Vec<Channel>,
    next: Arc<AtomicUsize>,
    process: Arc<Process>,
}

struct Process(parking_lot::Mutex<Option<Child>>, u32);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.lock().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn spawn(directory: &Path) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{PORT}"), format!("http://127.0.0.1:{}", PORT + 1));
    Command::new("etcd")
        .arg("--data-dir")
        .arg(directory)
        .args(["--name", "n", "--initial-cluster", &format!("n={peer}"), "--quota-backend-bytes", "8589934592"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--logger", "zap", "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("apt-get install etcd-server")
}

async fn channel() -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{PORT}")).unwrap();
    let endpoint = endpoint.tcp_nodelay(true).initial_stream_window_size(16 << 20);
    endpoint.initial_connection_window_size(64 << 20).connect().await.ok()
}

/// Until it answers a read.
async fn ready() {
    loop {
        if let Some(channel) = channel().await
            && range(channel, Range { key: Bytes::from_static(b"/x"), range_end: Bytes::new() }).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn grpc(channel: Channel) -> Grpc<Channel> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    grpc
}

fn path(text: &'static str) -> http::uri::PathAndQuery {
    http::uri::PathAndQuery::from_static(text)
}

async fn range(channel: Channel, range: Range) -> Result<Listing, tonic::Status> {
    let codec: ProstCodec<Range, Listing> = ProstCodec::default();
    let answer = grpc(channel).await.unary(tonic::Request::new(range), path("/etcdserverpb.KV/Range"), codec).await?;
    Ok(answer.into_inner())
}

/// The first key behind all that begin with `prefix`.
fn end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    end.into()
}

impl Etcd {
    pub async fn start(directory: &Path) -> Self {
        let child = spawn(directory);
        let pid = child.id();
        let process = Arc::new(Process(parking_lot::Mutex::new(Some(child)), pid));
        ready().await;
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(channel().await.unwrap());
        }
        Etcd { channels, next: Arc::default(), process }
    }

    pub fn resident_bytes(&self) -> u64 {
        resident_bytes(&self.process.1.to_string())
    }

    /// As it would be: with SIGTERM.
    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.1).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        if let Some(mut child) = self.process.0.lock().take() {
            child.wait().unwrap();
        }
    }

    fn channel(&self) -> Channel {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[next % self.channels.len()].clone()
    }
}

impl Side for Etcd {
    async fn put(&self, key: String, value: Bytes) {
        let codec: ProstCodec<Put, Done> = ProstCodec::default();
        let request = tonic::Request::new(Put { key: key.into(), value });
        grpc(self.channel()).await.unary(request, path("/etcdserverpb.KV/Put"), codec).await.unwrap();
    }

    async fn read(&self, prefix: &str, one: bool) -> usize {
        let range_end = if one { Bytes::new() } else { end(prefix) };
        let key = Bytes::copy_from_slice(prefix.as_bytes());
        let listing = range(self.channel(), Range { key, range_end }).await.unwrap();
        listing.kvs.iter().filter(|kv| sum(&kv.value) > 0).count()
    }

    async fn watch(&self, number: usize, prefix: String, count: usize, watching: Arc<AtomicU64>) {
        let codec: ProstCodec<WatchRequest, WatchResponse> = ProstCodec::default();
        let range_end = end(&prefix);
        let create = WatchRequest { create: Some(Range { key: prefix.into(), range_end }) };
        // The stream of requests stays open as long as the watch.
        let requests = futures::stream::once(std::future::ready(create)).chain(futures::stream::pending());
        let channel = self.channels[number % self.channels.len()].clone();
        let mut grpc = grpc(channel).await;
        let answer = grpc.streaming(tonic::Request::new(requests), path("/etcdserverpb.Watch/Watch"), codec).await;
        let mut answers = answer.unwrap().into_inner();
        let mut seen = 0;
        while seen < count {
            let answer = answers.message().await.unwrap().unwrap();
            if answer.created {
                watching.fetch_add(1, Ordering::Relaxed);
            }
            let values = answer.events.iter().filter_map(|event| event.kv.as_ref());
            seen += values.filter(|kv| sum(&kv.value) > 0).count();
        }
    }

    fn cpu(&self) -> Duration {
        cpu(&self.process.1.to_string())
    }
}

/// Returns how long it takes from the start of a process to its first answer, and what memory it then has.
pub fn start(directory: &Path) -> (Duration, u64) {
    let start = Instant::now();
    let child = spawn(directory);
    let pid = child.id();
    let process = Process(parking_lot::Mutex::new(Some(child)), pid);
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(ready()));
    let took = start.elapsed();
    let memory = resident_bytes(&pid.to_string());
    drop(process);
    (took, memory)
}
