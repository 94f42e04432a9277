//! `/healthz`, `/livez` and `/readyz`, with upstream's per-check paths and `?verbose`.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

use crate::http::query::Query;
use crate::http::{Response, respond};

/// What must be true before the server is ready.
#[derive(Debug, Default)]
pub struct Health {
    /// Set once the objects that every cluster starts with exist.
    bootstrapped: AtomicBool,
    stopping: AtomicBool,
    draining: CancellationToken,
}

impl Health {
    pub fn set_bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    /// From here on `/readyz` fails, so that load balancers turn away while requests in hand are finished.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// From here on watches end, so that connections can.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    fn checks(&self, endpoint: &str) -> Vec<(&'static str, bool)> {
        let mut checks = vec![("ping", true), ("log", true), ("etcd", true)];
        if endpoint != "livez" {
            checks.push(("poststarthook/rbac/bootstrap-roles", self.bootstrapped.load(Ordering::Acquire)));
        }
        if endpoint == "readyz" {
            checks.push(("shutdown", !self.stopping.load(Ordering::Acquire)));
        }
        checks
    }

    /// Answers `/<endpoint>` or `/<endpoint>/<check>`.
    pub fn answer(&self, endpoint: &str, check: &str, query: &Query) -> Option<Response> {
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut checks = self.checks(endpoint);
        if !check.is_empty() {
            checks.retain(|(name, _)| *name == check);
            if checks.is_empty() {
                return None;
            }
        }
        checks.retain(|(name, _)| !excluded.contains(name));
        let healthy = checks.iter().all(|(_, ok)| *ok);
        if healthy && query.get("verbose").is_none() {
            return Some(respond::text(200, "ok"));
        }
        let mut text = String::new();
        for (name, ok) in checks {
            let line = if ok { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
            text.push_str(&line);
        }
        text.push_str(&format!("{endpoint} check {}\n", if healthy { "passed" } else { "failed" }));
        Some(respond::text(if healthy { 200 } else { 500 }, text))
    }
}
