//! What is recorded of requests, and where: upstream's flags of kube-apiserver about audit, and the auditor that they make.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use apiserver::audit::{
    Auditor, Batch, Delivery, Format, LogOptions, Mode, Options, Policy, Rotation, Truncation, WebhookOptions,
};
use clap::{ArgAction, Args};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Audit")]
pub struct AuditArgs {
    /// File of the policy (audit.k8s.io/v1) that says which requests are recorded; without one none is
    #[arg(long, value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    webhook: WebhookArgs,
}

#[derive(Args, Clone, Debug)]
struct LogArgs {
    /// File that events are appended to; `-` is standard output
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<String>,
    /// Days that a log which was put aside is kept; 0 is for ever
    #[arg(long, value_name = "DAYS", default_value_t = 366, allow_negative_numbers = true)]
    audit_log_maxage: i64,
    /// How many logs that were put aside are kept; 0 is all
    #[arg(long, value_name = "COUNT", default_value_t = 100, allow_negative_numbers = true)]
    audit_log_maxbackup: i64,
    /// Megabytes at which a log is put aside; 0 is never
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100, allow_negative_numbers = true)]
    audit_log_maxsize: i64,
    /// `json`, an object on each line, or `legacy`, a line of text
    #[arg(long, default_value = "json")]
    audit_log_format: String,
    /// Version of the events; there is one
    #[arg(long, default_value = "audit.k8s.io/v1")]
    audit_log_version: String,
    /// Compress logs that were put aside
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    audit_log_compress: bool,
    /// `batch`: requests do not wait for their events; `blocking`: they do; `blocking-strict`: and are refused without
    #[arg(long, default_value = "blocking")]
    audit_log_mode: String,
    /// Events that wait at most; further ones are dropped and counted (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, allow_negative_numbers = true)]
    audit_log_batch_buffer_size: i64,
    /// Events of one batch at most (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 1, allow_negative_numbers = true)]
    audit_log_batch_max_size: i64,
    /// How long an event waits for its batch to fill (batch)
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = apimachinery::cron::duration)]
    audit_log_batch_max_wait: Duration,
    /// Bound the rate of batches (batch)
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    audit_log_batch_throttle_enable: bool,
    /// Batches per second (batch)
    #[arg(long, value_name = "RATE", default_value_t = 0.0, allow_negative_numbers = true)]
    audit_log_batch_throttle_qps: f32,
    /// Batches at once after a pause (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 0, allow_negative_numbers = true)]
    audit_log_batch_throttle_burst: i64,
    /// Take the objects out of events that are too large
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    audit_log_truncate_enabled: bool,
    /// Bytes of a batch at most, where larger ones are split
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024, allow_negative_numbers = true)]
    audit_log_truncate_max_batch_size: i64,
    /// Bytes of an event at most; one that is larger even without its objects is dropped and counted
    #[arg(long, value_name = "BYTES", default_value_t = 100 * 1024, allow_negative_numbers = true)]
    audit_log_truncate_max_event_size: i64,
}

#[derive(Args, Clone, Debug)]
struct WebhookArgs {
    /// Kubeconfig of a server that events are posted to
    #[arg(long, value_name = "FILE")]
    audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before a failed post is tried again for the first time
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = apimachinery::cron::duration)]
    audit_webhook_initial_backoff: Duration,
    /// Deprecated: --audit-webhook-initial-backoff
    #[arg(long, value_name = "DURATION", value_parser = apimachinery::cron::duration, hide = true)]
    audit_webhook_batch_initial_backoff: Option<Duration>,
    /// Version of the events; there is one
    #[arg(long, default_value = "audit.k8s.io/v1")]
    audit_webhook_version: String,
    /// As --audit-log-mode
    #[arg(long, default_value = "batch")]
    audit_webhook_mode: String,
    /// As --audit-log-batch-buffer-size
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, allow_negative_numbers = true)]
    audit_webhook_batch_buffer_size: i64,
    /// Events of one post at most (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 400, allow_negative_numbers = true)]
    audit_webhook_batch_max_size: i64,
    /// As --audit-log-batch-max-wait
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = apimachinery::cron::duration)]
    audit_webhook_batch_max_wait: Duration,
    /// Bound the rate of posts (batch)
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true")]
    audit_webhook_batch_throttle_enable: bool,
    /// Posts per second (batch)
    #[arg(long, value_name = "RATE", default_value_t = 10.0, allow_negative_numbers = true)]
    audit_webhook_batch_throttle_qps: f32,
    /// Posts at once after a pause (batch)
    #[arg(long, value_name = "COUNT", default_value_t = 15, allow_negative_numbers = true)]
    audit_webhook_batch_throttle_burst: i64,
    /// As --audit-log-truncate-enabled
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    audit_webhook_truncate_enabled: bool,
    /// As --audit-log-truncate-max-batch-size
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024, allow_negative_numbers = true)]
    audit_webhook_truncate_max_batch_size: i64,
    /// As --audit-log-truncate-max-event-size
    #[arg(long, value_name = "BYTES", default_value_t = 100 * 1024, allow_negative_numbers = true)]
    audit_webhook_truncate_max_event_size: i64,
}

/// The flags that log and webhook have both.
struct Ways<'a> {
    plugin: &'a str,
    mode: &'a str,
    buffer_size: i64,
    max_size: i64,
    max_wait: Duration,
    throttle: Option<(f32, i64)>,
    truncates: bool,
    max_batch_bytes: i64,
    max_event_bytes: i64,
    version: &'a str,
}

impl Ways<'_> {
    /// The faults, in upstream's words and order, or what they mean.
    fn delivery(&self) -> Result<Delivery, Vec<String>> {
        let plugin = self.plugin;
        let mut faults = Vec::new();
        let mode = match self.mode {
            "batch" => Mode::Batch,
            "blocking" => Mode::Blocking,
            "blocking-strict" => Mode::BlockingStrict,
            other => {
                let known = "batch,blocking,blocking-strict";
                faults.push(format!("invalid audit {plugin} mode {other}, allowed modes are {known:?}"));
                Mode::Batch
            }
        };
        let positive = "must be a positive number";
        if faults.is_empty() && mode == Mode::Batch {
            let sizes = [("buffer size", self.buffer_size), ("max batch size", self.max_size)];
            let size = sizes.into_iter().find(|(_, size)| *size <= 0);
            faults.extend(size.map(|(what, size)| format!("invalid audit batch {plugin} {what} {size}, {positive}")));
        }
        if faults.is_empty()
            && mode == Mode::Batch
            && let Some((rate, burst)) = self.throttle
        {
            if rate.is_nan() || rate <= 0.0 {
                faults.push(format!("invalid audit batch {plugin} throttle QPS {rate}, {positive}"));
            } else if burst <= 0 {
                faults.push(format!("invalid audit batch {plugin} throttle burst {burst}, {positive}"));
            }
        }
        let (event, batch) = (self.max_event_bytes, self.max_batch_bytes);
        if event <= 0 {
            faults.push(format!("invalid audit truncate {plugin} max event size {event}, {positive}"));
        } else if batch < event {
            faults.push(format!(
                "invalid audit truncate {plugin} max batch size {batch}, must be greater than max event size ({event})"
            ));
        }
        if self.version != "audit.k8s.io/v1" {
            faults.push("invalid group version, allowed versions are [\"audit.k8s.io/v1\"]".to_owned());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let count = |number: i64| usize::try_from(number).unwrap_or_default();
        let throttle = self.throttle.map(|(rate, burst)| (f64::from(rate), u32::try_from(burst).unwrap_or(u32::MAX)));
        Ok(Delivery {
            mode,
            batch: Batch {
                buffer_size: count(self.buffer_size),
                max_size: count(self.max_size),
                max_wait: self.max_wait,
                throttle,
            },
            truncation: self.truncates.then(|| Truncation { max_event_size: count(event) }),
        })
    }
}

impl LogArgs {
    fn options(&self) -> Result<Option<LogOptions>, Vec<String>> {
        let Some(path) = self.audit_log_path.clone().filter(|path| !path.is_empty()) else { return Ok(None) };
        let ways = Ways {
            plugin: "log",
            mode: &self.audit_log_mode,
            buffer_size: self.audit_log_batch_buffer_size,
            max_size: self.audit_log_batch_max_size,
            max_wait: self.audit_log_batch_max_wait,
            throttle: self
                .audit_log_batch_throttle_enable
                .then_some((self.audit_log_batch_throttle_qps, self.audit_log_batch_throttle_burst)),
            truncates: self.audit_log_truncate_enabled,
            max_batch_bytes: self.audit_log_truncate_max_batch_size,
            max_event_bytes: self.audit_log_truncate_max_event_size,
            version: &self.audit_log_version,
        };
        let (mut faults, delivery) = match ways.delivery() {
            Ok(delivery) => (Vec::new(), Some(delivery)),
            Err(faults) => (faults, None),
        };
        let format = match &*self.audit_log_format {
            "json" => Format::Json,
            "legacy" => Format::Legacy,
            other => {
                faults.push(format!("invalid audit log format {other}, allowed formats are \"legacy,json\""));
                Format::Json
            }
        };
        let mut bound = |flag: &str, number: i64| {
            u64::try_from(number).unwrap_or_else(|_| {
                faults.push(format!("--audit-log-{flag} {number} can't be a negative number"));
                0
            })
        };
        let rotation = Rotation {
            max_age_days: bound("maxage", self.audit_log_maxage),
            max_backups: usize::try_from(bound("maxbackup", self.audit_log_maxbackup)).unwrap_or(usize::MAX),
            max_megabytes: bound("maxsize", self.audit_log_maxsize),
            compress: self.audit_log_compress,
        };
        match delivery {
            Some(delivery) if faults.is_empty() => Ok(Some(LogOptions { path, format, rotation, delivery })),
            _ => Err(faults),
        }
    }
}

impl WebhookArgs {
    fn options(&self) -> Result<Option<WebhookOptions>, Vec<String>> {
        let Some(config_file) = self.audit_webhook_config_file.clone() else { return Ok(None) };
        let ways = Ways {
            plugin: "webhook",
            mode: &self.audit_webhook_mode,
            buffer_size: self.audit_webhook_batch_buffer_size,
            max_size: self.audit_webhook_batch_max_size,
            max_wait: self.audit_webhook_batch_max_wait,
            throttle: self
                .audit_webhook_batch_throttle_enable
                .then_some((self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst)),
            truncates: self.audit_webhook_truncate_enabled,
            max_batch_bytes: self.audit_webhook_truncate_max_batch_size,
            max_event_bytes: self.audit_webhook_truncate_max_event_size,
            version: &self.audit_webhook_version,
        };
        let initial_backoff = self.audit_webhook_batch_initial_backoff.unwrap_or(self.audit_webhook_initial_backoff);
        Ok(Some(WebhookOptions { config_file, initial_backoff, delivery: ways.delivery()? }))
    }
}

impl AuditArgs {
    /// What cannot be meant, in upstream's words.
    pub fn check(&self) -> Result<()> {
        self.options().map(drop)
    }

    fn options(&self) -> Result<Options> {
        match (self.log.options(), self.webhook.options()) {
            (Ok(log), Ok(webhook)) => Ok(Options { log, webhook }),
            (log, webhook) => {
                let faults: Vec<String> = log.err().into_iter().chain(webhook.err()).flatten().collect();
                match faults.as_slice() {
                    [one] => bail!("{one}"),
                    several => bail!("[{}]", several.join(", ")),
                }
            }
        }
    }

    /// None unless there is a policy and somewhere for its events to go. To be called within a runtime.
    pub fn auditor(&self) -> Result<Option<Arc<Auditor>>> {
        let options = self.options()?;
        let Some(file) = &self.audit_policy_file else {
            if options != Options::default() {
                tracing::info!("there is no --audit-policy-file, so nothing is recorded");
            }
            return Ok(None);
        };
        let failed = |why: String| anyhow!("loading audit policy file: {why}");
        let text =
            std::fs::read(file).with_context(|| format!("failed to read file path {:?}", file.display().to_string()));
        let text = text.map_err(|error| failed(format!("{error:#}")))?;
        let policy = Policy::parse(&text).map_err(|why| failed(format!("{why}: from file {}", file.display())))?;
        if options == Options::default() {
            return Ok(None);
        }
        Auditor::new(policy, &options).map(Some).map_err(|why| anyhow!(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    fn args(words: &[&str]) -> AuditArgs {
        let command = AuditArgs::augment_args(clap::Command::new("server"));
        let matches = command.try_get_matches_from(std::iter::once(&"server").chain(words)).unwrap();
        AuditArgs::from_arg_matches(&matches).unwrap()
    }

    fn refused(words: &[&str]) -> String {
        args(words).check().unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_upstreams() {
        assert_eq!(args(&[]).options().unwrap(), Options::default());
        let options = args(&["--audit-log-path=/x", "--audit-webhook-config-file=/y"]).options().unwrap();
        let (log, webhook) = (options.log.unwrap(), options.webhook.unwrap());
        assert_eq!((log.format, log.delivery.mode), (Format::Json, Mode::Blocking));
        let rotation = Rotation { max_megabytes: 100, max_age_days: 366, max_backups: 100, compress: false };
        assert_eq!(log.rotation, rotation);
        assert_eq!((log.delivery.batch.buffer_size, log.delivery.batch.max_size), (10_000, 1));
        assert_eq!(webhook.initial_backoff, Duration::from_secs(10));
        let batch =
            Batch { buffer_size: 10_000, max_size: 400, max_wait: Duration::from_secs(30), throttle: Some((10.0, 15)) };
        assert_eq!(webhook.delivery, Delivery { mode: Mode::Batch, batch, truncation: None });
    }

    #[test]
    fn flags_are_heard() {
        let words = [
            "--audit-log-path=-",
            "--audit-log-mode=batch",
            "--audit-log-format=legacy",
            "--audit-log-truncate-enabled",
            "--audit-log-truncate-max-event-size=10",
            "--audit-log-compress",
            "--audit-webhook-config-file=/y",
            "--audit-webhook-mode=blocking-strict",
            "--audit-webhook-batch-throttle-enable=false",
            "--audit-webhook-batch-initial-backoff=2s",
        ];
        let options = args(&words).options().unwrap();
        let (log, webhook) = (options.log.unwrap(), options.webhook.unwrap());
        assert_eq!((log.format, log.delivery.mode, log.rotation.compress), (Format::Legacy, Mode::Batch, true));
        assert_eq!(log.delivery.truncation, Some(Truncation { max_event_size: 10 }));
        assert_eq!((webhook.delivery.mode, webhook.delivery.batch.throttle), (Mode::BlockingStrict, None));
        assert_eq!(webhook.initial_backoff, Duration::from_secs(2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_upstreams_words() {
        let log = |words: &[&str]| refused(&[&["--audit-log-path=/x"], words].concat());
        assert_eq!(
            log(&["--audit-log-mode=lazy"]),
            "invalid audit log mode lazy, allowed modes are \"batch,blocking,blocking-strict\""
        );
        assert_eq!(
            log(&["--audit-log-format=xml", "--audit-log-maxage=-1"]),
            "[invalid audit log format xml, allowed formats are \"legacy,json\", --audit-log-maxage -1 can't be a negative number]"
        );
        assert_eq!(
            log(&["--audit-log-mode=batch", "--audit-log-batch-buffer-size=-3"]),
            "invalid audit batch log buffer size -3, must be a positive number"
        );
        assert_eq!(
            log(&["--audit-log-mode=batch", "--audit-log-batch-throttle-enable"]),
            "invalid audit batch log throttle QPS 0, must be a positive number"
        );
        assert_eq!(
            log(&["--audit-log-truncate-max-event-size=20000000"]),
            "invalid audit truncate log max batch size 10485760, must be greater than max event size (20000000)"
        );
        let version = "invalid group version, allowed versions are [\"audit.k8s.io/v1\"]";
        assert_eq!(log(&["--audit-log-version=audit.k8s.io/v1beta1"]), version);
        let hook = ["--audit-webhook-config-file=/y", "--audit-webhook-batch-max-size=0"];
        assert_eq!(refused(&hook), "invalid audit batch webhook max batch size 0, must be a positive number");
        // What is not used is not looked at.
        assert!(args(&["--audit-log-mode=lazy"]).check().is_ok());
    }

    #[tokio::test]
    async fn a_policy_and_a_target_make_an_auditor() {
        let folder = std::env::temp_dir().join(format!("coxswain-audit-flags-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (policy, log) = (folder.join("policy.yaml"), folder.join("audit.log"));
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n").unwrap();
        let policy_flag = format!("--audit-policy-file={}", policy.display());
        let log_flag = format!("--audit-log-path={}", log.display());
        assert!(args(&[]).auditor().unwrap().is_none());
        assert!(args(&[&log_flag]).auditor().unwrap().is_none());
        assert!(args(&[&policy_flag]).auditor().unwrap().is_none());
        assert!(!log.exists());
        assert!(args(&[&policy_flag, &log_flag]).auditor().unwrap().is_some());
        assert!(log.exists());
        std::fs::write(&policy, "apiVersion: audit.k8s.io/v1\nkind: Policy\n").unwrap();
        let why = args(&[&policy_flag, &log_flag]).auditor().err().unwrap().to_string();
        let file = policy.display();
        assert_eq!(why, format!("loading audit policy file: loaded illegal policy with 0 rules: from file {file}"));
        std::fs::remove_dir_all(&folder).unwrap();
        let why = args(&[&policy_flag]).auditor().err().unwrap().to_string();
        assert!(why.starts_with("loading audit policy file: failed to read file path \""), "{why}");
    }
}
