//! Snapshots by the clock, of which the newest few are kept. The flags are k3s's, without and with its `etcd-`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use apimachinery::cron::Schedule;
use apiserver::object::ObjectStore;
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use super::folder::Folder;

/// Begins the names of snapshots that the schedule took.
pub const SCHEDULED: &str = "scheduled";
/// How many of them are kept unless told otherwise.
pub const RETENTION: usize = 5;

#[derive(Args, Clone, Debug)]
pub struct ScheduleArgs {
    /// When to take snapshots of the embedded store, as a cron schedule in the system's time zone; empty for never
    #[arg(long, visible_alias = "etcd-snapshot-schedule-cron", default_value = "0 */12 * * *", value_name = "CRON")]
    snapshot_schedule: String,
    /// How many scheduled snapshots to keep
    #[arg(long, visible_alias = "etcd-snapshot-retention", default_value_t = RETENTION, value_name = "N")]
    snapshot_retention: usize,
    /// Where snapshots are kept [default: <data-dir>/snapshots]
    #[arg(long, visible_alias = "etcd-snapshot-dir", value_name = "DIR")]
    snapshot_dir: Option<PathBuf>,
}

/// What the flags say, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    schedule: Option<Schedule>,
    retention: usize,
    pub dir: PathBuf,
}

impl ScheduleArgs {
    pub fn into_plan(self, data_dir: &Path) -> Result<Plan> {
        let text = self.snapshot_schedule.trim();
        let schedule = (!text.is_empty()).then(|| Schedule::parse(text)).transpose();
        let dir = match self.snapshot_dir {
            Some(dir) => std::path::absolute(dir).context("--snapshot-dir")?,
            None => Folder::default_of(data_dir),
        };
        let schedule = schedule.map_err(|why| anyhow::anyhow!("--snapshot-schedule {text}: {why}"))?;
        Ok(Plan { schedule, retention: self.snapshot_retention.max(1), dir })
    }
}

/// Takes snapshots by the plan until `shutdown`.
pub async fn keep(plan: Plan, store: ObjectStore, shutdown: CancellationToken) {
    let folder = Folder(plan.dir.clone());
    folder.sweep();
    let Some(schedule) = &plan.schedule else { return };
    let mut last = Timestamp::now();
    loop {
        let zone = schedule.zone().and_then(|name| TimeZone::get(name).ok()).unwrap_or_else(TimeZone::system);
        let Some(next) = schedule.next(last, &zone) else { return };
        if shutdown.run_until_cancelled(until(next)).await.is_none() {
            return;
        }
        // One that the machine has slept through is taken once.
        last = Timestamp::now().max(next);
        match take(&folder, &store, plan.retention).await {
            Ok(path) => tracing::info!(path = %path.display(), "snapshot taken"),
            Err(error) => tracing::error!("the scheduled snapshot failed: {error:#}"),
        }
    }
}

/// Waits for a time of the wall's clock, which may be set meanwhile.
async fn until(at: Timestamp) {
    const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(3600);
    while let Ok(left) = std::time::Duration::try_from(at.duration_since(Timestamp::now()))
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
    }
}

async fn take(folder: &Folder, store: &ObjectStore, retention: usize) -> Result<PathBuf> {
    let path = folder.next_path(SCHEDULED)?;
    store.snapshot(&path).await?;
    folder.prune(SCHEDULED, retention)?;
    Ok(path)
}
