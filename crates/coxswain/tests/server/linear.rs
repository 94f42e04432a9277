//! Histories of concurrent clients of the real binary, with and without kills, judged by the checker of `histories`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use histories::api::{Api, Body, Transport};
use histories::check::assert_correct;
use histories::drive::{Load, run};
use histories::rounds;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::datastore::{self, Etcd};
use crate::support::{Client, Server, Site};

/// Connects anew when the server has gone.
#[derive(Clone)]
struct Carrier {
    data: PathBuf,
    pair: Arc<(String, String)>,
    client: Arc<tokio::sync::Mutex<Option<Client>>>,
}

impl Carrier {
    fn new(data: PathBuf) -> Self {
        let read = |name: &str| std::fs::read_to_string(data.join("tls").join(name)).unwrap();
        let pair = Arc::new((read("admin.crt"), read("admin.key")));
        Carrier { data, pair, client: Arc::default() }
    }

    async fn client(&self) -> Option<Client> {
        let mut client = self.client.lock().await;
        if client.is_none() {
            *client = Client::connect_as(&self.data, Some((&self.pair.0, &self.pair.1))).await.ok();
        }
        client.clone()
    }
}

struct Answer(Incoming);

impl Transport for Carrier {
    type Body = Answer;

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Option<(u16, Answer)> {
        let client = self.client().await?;
        match client.open(method, path, body.as_ref()).await {
            Ok(response) => Some((response.status().as_u16(), Answer(response.into_body()))),
            Err(_) => {
                *self.client.lock().await = None;
                None
            }
        }
    }
}

impl Body for Answer {
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = self.0.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(data.to_vec());
            }
        }
    }
}

#[test]
fn histories_are_linearizable() {
    let site = Site::new();
    let _server = site.start_api();
    for seed in rounds::seeds(1).take(1) {
        let load = Load { seed, puts: false, calls: if rounds::long() { 3000 } else { 150 }, ..Load::default() };
        let history = site.block_on(async {
            let api = Api::new(Carrier::new(site.data()), 1).await;
            run(api, load, std::future::ready(())).await
        });
        assert_correct(&history);
    }
}

/// Clients of a server that is started with `flags`, while `fault` happens to it four times: it gets the server, and gives one back.
fn under_faults(site: &Site, seed: u64, flags: &[&str], mut fault: impl FnMut(Server, u64) -> Server) {
    let mut rng = StdRng::seed_from_u64(seed);
    let load = Load { seed, puts: false, calls: 100, patience: Duration::from_secs(60), ..Load::default() };
    let mut server = site.start(flags);
    // Servers start in this thread's namespaces, and block it; so the clients have a runtime and threads of their own.
    let carrier = Carrier::new(site.data());
    let (calm, faults) = tokio::sync::oneshot::channel::<()>();
    let clients = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Api::new(carrier, 1).await;
            // That the sender has gone means the same.
            run(api, load, async { _ = faults.await }).await
        })
    });
    for number in 0..4 {
        std::thread::sleep(Duration::from_millis(rng.random_range(300..1200)));
        server = fault(server, number);
    }
    std::thread::sleep(Duration::from_millis(200));
    calm.send(()).unwrap();
    let history = clients.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_correct(&history);
    drop(server);
}

#[test]
fn histories_over_kill_9_are_linearizable() {
    rounds::each("linear: the binary under kill -9", 1, |seed| {
        let site = Site::new();
        under_faults(&site, seed, &["--disable-agent"], |server, _| {
            server.kill();
            site.start_api()
        });
    });
}

/// The same with the state in an etcd: the server and the etcd are killed in turn.
#[test]
fn histories_on_etcd_over_kill_9_are_linearizable() {
    rounds::each("linear: the binary on etcd under kill -9", 1, |seed| {
        let site = Site::new();
        let etcd = std::cell::RefCell::new(Etcd::start(&site));
        let endpoint = datastore::endpoint();
        let flags = ["--disable-agent", &endpoint];
        under_faults(&site, seed, &flags, |server, number| {
            if number % 2 == 1 {
                etcd.borrow_mut().kill_and_restart(&site);
                return server;
            }
            server.kill();
            site.start(&flags)
        });
    });
}
