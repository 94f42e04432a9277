//! How a call of a webhook ends badly, in upstream's words, and the counts of such ends.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::{Mutex as StdMutex, OnceLock};

use apimachinery::status::{Details, StatusError};
use apimachinery::{Value, meta};
use parking_lot::Mutex;

use super::{Attempt, Hook, Phase};

/// Why a call did not end with leave.
pub enum Failure {
    /// The webhook could not be asked: its failure policy decides (`ErrCallingWebhook`).
    Calling(String),
    /// It said no (`ErrWebhookRejection`).
    Rejected(StatusError),
    /// The server's own refusal, whatever the policy.
    Refused(StatusError),
}

/// `failed calling webhook "x": …`, as the server's error.
pub fn failed_calling(hook: &str, why: &str) -> StatusError {
    StatusError::internal(format!("failed calling webhook {hook:?}: {why}"))
}

/// A denial, with the status that the webhook chose (`ToStatusErr`).
pub fn denied(hook: &str, status: &Value) -> StatusError {
    let by = format!("admission webhook {hook:?} denied the request");
    let (message, reason) = (meta::str_at(status, &["message"]), meta::str_at(status, &["reason"]));
    let text = match (message, reason) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code =
        status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
    let mut error = StatusError::new(code.unwrap_or(400), interned(reason), text);
    let details = status.get("details").filter(|details| details.is_object());
    if let Some(details) = details.and_then(|details| serde_json::from_value::<Details>(details.clone()).ok()) {
        error = error.with_details(details);
    }
    error
}

/// As many reasons of webhooks' own making are passed on; configurations name few webhooks, and those few reasons.
const REASONS_MAX: usize = 1024;

/// `reason` for as long as the process lives, which is what an error has it for.
fn interned(reason: &str) -> &'static str {
    static REASONS: OnceLock<StdMutex<HashSet<&'static str>>> = OnceLock::new();
    let Ok(mut known) = REASONS.get_or_init(StdMutex::default).lock() else { return "" };
    match known.get(reason) {
        Some(reason) => reason,
        None if known.len() >= REASONS_MAX => "",
        None => {
            let kept: &'static str = Box::leak(reason.to_owned().into_boxed_str());
            known.insert(kept);
            kept
        }
    }
}

/// Counts of calls, under upstream's metric names. Bounded by the webhooks that are configured.
#[derive(Default)]
pub struct Tally {
    series: Mutex<BTreeMap<(&'static str, String), u64>>,
}

const REQUESTS: &str = "apiserver_admission_webhook_request_total";
const REJECTIONS: &str = "apiserver_admission_webhook_rejection_count";
const FAIL_OPEN: &str = "apiserver_admission_webhook_fail_open_count";

impl Tally {
    pub(super) fn called(&self, hook: &Hook, phase: Phase, attempt: &Attempt<'_>, outcome: Option<&Failure>) {
        let kind = match phase {
            Phase::Mutating => "admit",
            Phase::Validating => "validating",
        };
        let (operation, name) = (attempt.operation.as_str(), &hook.name);
        let code = match outcome {
            None => 200,
            Some(Failure::Rejected(error) | Failure::Refused(error)) => error.code,
            Some(Failure::Calling(_)) => 0,
        };
        let open = hook.fails_open && matches!(outcome, Some(Failure::Calling(_)));
        let rejected = outcome.is_some() && !open;
        let mut series = self.series.lock();
        let mut count = |metric: &'static str, labels: String| *series.entry((metric, labels)).or_default() += 1;
        count(
            REQUESTS,
            format!("code=\"{code}\",name={name:?},operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\""),
        );
        if open {
            count(FAIL_OPEN, format!("name={name:?},type=\"{kind}\""));
        }
        let error_type = match outcome {
            Some(Failure::Calling(_)) => "calling_webhook_error",
            Some(Failure::Rejected(_)) => "no_error",
            _ => "apiserver_internal_error",
        };
        if rejected {
            let labels = format!(
                "error_type=\"{error_type}\",name={name:?},operation=\"{operation}\",rejection_code=\"{code}\",type=\"{kind}\""
            );
            count(REJECTIONS, labels);
        }
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut last = "";
        for ((metric, labels), count) in &*self.series.lock() {
            if *metric != last {
                let _ = writeln!(out, "# TYPE {metric} counter");
                last = metric;
            }
            let _ = writeln!(out, "{metric}{{{labels}}} {count}");
        }
        out
    }
}
