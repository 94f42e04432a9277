//! What is counted of auditing, under upstream's names, and where what was not kept is told of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::event::Event;
use super::policy::Level;
use crate::metrics::Text;

/// Bounded: the labels are levels and the names of plugins.
#[derive(Default)]
pub struct Counters {
    events: AtomicU64,
    rejected: AtomicU64,
    levels: [AtomicU64; Level::ALL.len()],
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    pub fn level(&self, level: Level) {
        self.levels[level as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `events`, and writes what can be told of them on one line each to the server's own log.
    pub fn failed(&self, plugin: &'static str, why: &str, events: &[Arc<Event>]) {
        *self.errors.lock().entry(plugin).or_default() += events.len() as u64;
        tracing::error!(plugin, why, affected = events.len(), "error in audit plugin");
        for event in events {
            tracing::error!(plugin, event = event.legacy(), "audit event not kept");
        }
    }

    pub fn render(&self, text: &mut Text) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "apiserver_audit_event_total";
        text.single(name, "counter", "Audit events that were made and sent to the audit backend.", load(&self.events));
        let name = "apiserver_audit_requests_rejected_total";
        text.single(name, "counter", "Requests rejected due to an error in the audit backend.", load(&self.rejected));
        let levels: Vec<(Level, u64)> = Level::ALL.into_iter().zip(self.levels.iter().map(load)).collect();
        if levels.iter().any(|(_, count)| *count > 0) {
            text.family("apiserver_audit_level_total", "counter", "Policy levels of requests, one for each request.");
            for (level, count) in levels.into_iter().filter(|(_, count)| *count > 0) {
                text.sample("apiserver_audit_level_total", &[("level", level.as_str())], count);
            }
        }
        let errors = self.errors.lock();
        if !errors.is_empty() {
            let help = "Audit events that failed to be audited properly, by the plugin affected.";
            text.family("apiserver_audit_error_total", "counter", help);
            for (plugin, count) in &*errors {
                text.sample("apiserver_audit_error_total", &[("plugin", plugin)], count);
            }
        }
    }

    #[cfg(test)]
    pub fn render_text(&self) -> String {
        let mut text = Text::default();
        self.render(&mut text);
        text.into_string()
    }
}
