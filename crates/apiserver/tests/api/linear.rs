//! Histories of concurrent clients, over both transports, judged by the checker of `histories`.

use std::sync::Arc;
use std::time::Duration;

use histories::api::{Api as Secrets, Body as Carried, Transport};
use histories::check::assert_correct;
use histories::drive::{Load, run};
use histories::rounds;
use http_body_util::BodyExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::harness::{Api, over_both};

over_both!(without_faults, over_compactions);

#[derive(Clone)]
struct Carrier(Arc<Api>);

struct Answer(apiserver::http::Body);

impl Transport for Carrier {
    type Body = Answer;

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Option<(u16, Answer)> {
        let headers = [("content-type", "application/json")];
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let response = self.0.open(&format!("{method} {path}"), &headers, text).await;
        Some((response.status().as_u16(), Answer(response.into_body())))
    }
}

impl Carried for Answer {
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = self.0.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(data.to_vec());
            }
        }
    }
}

/// Longer in the long form, which has the seed from outside.
async fn without_faults(api: Api) {
    let secrets = Secrets::new(Carrier(Arc::new(api)), 1).await;
    let seed = rounds::seeds(1).next().unwrap_or_default();
    let load = Load { seed, puts: false, calls: if rounds::long() { 2000 } else { 150 }, ..Load::default() };
    assert_correct(&run(secrets, load, std::future::ready(())).await);
}

async fn over_compactions(api: Api) {
    let api = Arc::new(api);
    let store = api.server.view.store().clone();
    let secrets = Secrets::new(Carrier(api), 1).await;
    let seed = rounds::seeds(1).next().unwrap_or_default();
    let load = Load { seed, puts: false, calls: if rounds::long() { 2000 } else { 150 }, ..Load::default() };
    let faults = async {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..40))).await;
            store.compact(store.revision()).unwrap();
        }
    };
    assert_correct(&run(secrets, load, faults).await);
}
