//! For tests: a log of all that happens at one auditor.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apimachinery::Value;
use http::HeaderMap;

use super::{Arrival, Auditor, Batch, Delivery, Format, LogOptions, Micros, Mode, Options, Policy, Record, Rotation};
use crate::request::RequestInfo;
use crate::warnings::Warnings;

pub struct Log {
    path: PathBuf,
    auditor: Arc<Auditor>,
}

impl Log {
    /// Of answers and ends, at the level of metadata.
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("coxswain-audit-record-{}-{count}.log", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let batch = Batch { buffer_size: 1, max_size: 1, max_wait: Duration::ZERO, throttle: None };
        let options = LogOptions {
            path: path.to_str().unwrap().to_owned(),
            format: Format::Json,
            rotation: Rotation { max_megabytes: 0, max_age_days: 0, max_backups: 0, compress: false },
            delivery: Delivery { mode: Mode::Blocking, batch, truncation: None },
        };
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        let policy = format!("{head}omitStages: [RequestReceived]\nrules: [{{level: Metadata}}]");
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        let auditor = Auditor::new(policy, &Options { log: Some(options), webhook: None }).unwrap();
        Log { path, auditor }
    }

    /// A request of nobody.
    pub async fn begin(&self, verb: &str) -> Arc<Record> {
        let arrival = Arrival {
            user: None,
            info: &RequestInfo { verb: verb.to_owned(), ..RequestInfo::default() },
            uri: &"/".parse().unwrap(),
            headers: &HeaderMap::new(),
            address: None,
            received: Micros::now(),
            audit_id: "id",
            notes: &Warnings::default(),
        };
        self.auditor.begin(arrival).await.unwrap().unwrap()
    }

    /// Stage, code and message of each event.
    pub fn told(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let event = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            let status = &event["responseStatus"];
            format!("{} {} {}", event["stage"], status["code"], status["message"]).replace('"', "")
        };
        text.lines().map(event).collect()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
