//! Cron jobs. Their clock ticks in minutes, so these take long.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::framework::*;
use crate::tests::lifecycle::{Row, operations};

tests! {
    "[sig-apps] CronJob should not schedule jobs when suspended [Conformance] [Slow]" => suspended;
    "[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent [Conformance] [Slow]" => forbids;
    "[sig-apps] CronJob should replace jobs when ReplaceConcurrent [Conformance]" => replaces;
    "[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]" => concurrently;
    "[sig-apps] CronJob should support CronJob API operations [Conformance]" => operations, &ROW;
}

const NAME: &str = "subject";
/// How long must nothing happen for it to count as not happening: several ticks.
const QUIET: Duration = Duration::from_secs(300);
/// Two ticks, and what pods need to start.
const TWO_TICKS: Duration = Duration::from_secs(165);

/// Every minute, with jobs that do not end.
fn cron_job(policy: &str) -> Value {
    let pod = json!({"spec": {
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 1, "containers": [idle("main")],
    }});
    json!({
        "metadata": {"name": NAME},
        "spec": {"schedule": "*/1 * * * ?", "concurrencyPolicy": policy, "jobTemplate": {"spec": {"template": pod}}},
    })
}

static ROW: Row = Row {
    kind: &kinds::CRON_JOB,
    object: |_, _| {
        let mut cron_job = cron_job("Forbid");
        cron_job["metadata"] = json!({});
        // Never due while the test runs.
        cron_job["spec"]["schedule"] = "* */1 29 2 *".into();
        cron_job
    },
    patch: || json!({"spec": {"suspend": true}}),
    update: || json!({"spec": {"suspend": false}}),
    status: Some(|| json!({"lastScheduleTime": "2026-01-01T00:00:00Z"})),
};

/// Waits until at least so many jobs are active at once.
async fn active(cx: &Cx, count: usize) -> Result<Value> {
    cx.step(format!("{count} active jobs"));
    let enough = |cron_job: &Value| {
        let active = items(cron_job, "/status/active").len();
        when(active >= count, || format!("{active} active, status {}", at(cron_job, "/status")))
    };
    cx.api(&kinds::CRON_JOB).wait_one(NAME, TWO_TICKS, "active jobs", enough).await
}

/// Jobs of the namespace that have not ended.
async fn unfinished(cx: &Cx) -> Result<Vec<String>> {
    let list = cx.api(&kinds::JOB).list(&[]).await?;
    let running = |job: &&Value| {
        !holds(job, "Complete") && !holds(job, "Failed") && at(job, "/metadata/deletionTimestamp").is_null()
    };
    Ok(items(&list, "/items").iter().filter(running).map(|job| name(job).to_owned()).collect())
}

/// No job may come in a while, beyond those that there are.
async fn quiet(cx: &Cx, known: usize) -> Result<()> {
    cx.step(format!("no more than {known} jobs for {} s", QUIET.as_secs()));
    let jobs = cx.api(&kinds::JOB);
    let list = jobs.list(&[]).await?;
    ensure!(items(&list, "/items").len() == known, "{} jobs, expected {known}", items(&list, "/items").len());
    let until = Instant::now() + QUIET;
    let mut watch = jobs.watch_since(&list, &[]).await?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, watch.next(QUIET)).await {
            Err(_) => return Ok(()),
            Ok(Ok(Some(event))) if event.kind == "ADDED" => bail!("job {} came", name(&event.object)),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => {
                let list = jobs.list(&[]).await?;
                ensure!(
                    items(&list, "/items").len() == known,
                    "{} jobs, expected {known}",
                    items(&list, "/items").len()
                );
                watch = jobs.watch_since(&list, &[]).await?;
            }
            Ok(Err(_)) if Instant::now() >= until => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
    }
}

async fn remove(cx: &Cx) -> Result<()> {
    let cron_jobs = cx.api(&kinds::CRON_JOB);
    cron_jobs.delete_with(NAME, &json!({"propagationPolicy": "Background"})).await?;
    cron_jobs.wait_gone(NAME, SOON).await
}

async fn concurrently(cx: Arc<Cx>) -> Result<()> {
    cx.api(&kinds::CRON_JOB).create(&cron_job("Allow")).await?;
    active(&cx, 2).await?;
    let running = unfinished(&cx).await?;
    ensure!(running.len() >= 2, "running jobs {running:?}, expected two at least");
    remove(&cx).await
}

async fn suspended(cx: Arc<Cx>) -> Result<()> {
    let mut subject = cron_job("Allow");
    subject["spec"]["suspend"] = true.into();
    cx.api(&kinds::CRON_JOB).create(&subject).await?;
    quiet(&cx, 0).await?;
    // That nothing came was due to the suspension.
    cx.api(&kinds::CRON_JOB).patch(NAME, Patch::Merge, &json!({"spec": {"suspend": false}})).await?;
    active(&cx, 1).await?;
    remove(&cx).await
}

async fn forbids(cx: Arc<Cx>) -> Result<()> {
    cx.api(&kinds::CRON_JOB).create(&cron_job("Forbid")).await?;
    active(&cx, 1).await?;
    let running = unfinished(&cx).await?;
    ensure!(running.len() == 1, "running jobs {running:?}, expected one");
    quiet(&cx, 1).await?;
    let subject = cx.api(&kinds::CRON_JOB).get(NAME).await?;
    ensure!(items(&subject, "/status/active").len() == 1, "active {}", at(&subject, "/status/active"));
    remove(&cx).await
}

async fn replaces(cx: Arc<Cx>) -> Result<()> {
    cx.api(&kinds::CRON_JOB).create(&cron_job("Replace")).await?;
    let first = active(&cx, 1).await?;
    let replaced = text(&first, "/status/active/0/name").to_owned();
    let running = unfinished(&cx).await?;
    ensure!(running == [replaced.clone()], "running jobs {running:?}, active {replaced}");
    cx.step("the job is replaced");
    // At no moment two that are not being deleted, and in the end another.
    let mut together = Vec::new();
    let alone = |jobs: &Objects| {
        let stays = |job: &&Value| at(job, "/metadata/deletionTimestamp").is_null();
        let alive: Vec<&str> = jobs.values().filter(stays).map(name).collect();
        if alive.len() > 1 {
            together = alive.iter().map(|job| (*job).to_owned()).collect();
            return Ok(());
        }
        when(alive.first().is_some_and(|job| *job != replaced), || format!("alive {alive:?}"))
    };
    cx.api(&kinds::JOB).wait(&[], Duration::from_secs(90), "another job", alone).await?;
    ensure!(together.is_empty(), "jobs side by side: {together:?}");
    let other = |cron_job: &Value| {
        let active = items(cron_job, "/status/active");
        when(active.len() == 1 && text(&active[0], "/name") != replaced, || format!("active {active:?}"))
    };
    let next = cx.api(&kinds::CRON_JOB).wait_one(NAME, SOON, "replacement", other).await?;
    cx.api(&kinds::JOB).wait_gone(&replaced, SOON).await?;
    let running = unfinished(&cx).await?;
    ensure!(running == [text(&next, "/status/active/0/name")], "running jobs {running:?}");
    remove(&cx).await
}
