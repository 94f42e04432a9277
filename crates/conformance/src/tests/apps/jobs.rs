//! Jobs.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition [Conformance]" => ignores_disruption;
    "[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early [Conformance]" => fails_early;
    "[sig-apps] Job should apply changes to a job status [Conformance]" => status;
    "[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname [Conformance]" => indexed;
    "[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex [Conformance]" => all_indexes;
    "[sig-apps] Job should manage the lifecycle of a job [Conformance]" => lifecycle;
    "[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy [Conformance]" => fails_index;
    "[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes [Conformance]" => too_many_failed;
    "[sig-apps] Job with successPolicy should succeeded when all indexes succeeded [Conformance]" => succeeds, &ALL_SUCCEED;
    "[sig-apps] Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending [Conformance]" => succeeds, &COUNT;
    "[sig-apps] Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending [Conformance]" => succeeds, &INDEXES;
}

const NAME: &str = "subject";
const SUCCEED: &str = "exit 0";
const FAIL: &str = "exit 1";
const ODD_FAIL: &str = "exit $((JOB_COMPLETION_INDEX % 2))";
const RUN_ON: &str = "sleep 100000 & wait";

/// A job whose pods run a script; more of its spec is laid over.
fn job(script: &str, more: Value) -> Value {
    let mut job = json!({
        "metadata": {"name": NAME},
        "spec": {"backoffLimit": 6, "template": {
            "metadata": {"labels": {"job": NAME}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [shell("main", script)]},
        }},
    });
    crate::tests::lifecycle::overlay(&mut job["spec"], &more);
    job
}

async fn create(cx: &Cx, job: &Value) -> Result<Api> {
    let jobs = cx.api(&kinds::JOB);
    jobs.create(job).await?;
    Ok(jobs)
}

/// Waits for a condition of the job that holds, with a reason where one is given.
async fn reaches(cx: &Cx, kind: &'static str, reason: Option<&'static str>) -> Result<Value> {
    cx.step(format!("job {kind}"));
    let there = |job: &Value| {
        let found = condition(job, kind).filter(|c| text(c, "/status") == "True");
        let fits = found.is_some_and(|c| reason.is_none_or(|reason| text(c, "/reason") == reason));
        when(fits, || format!("no condition {kind} {}: status {}", reason.unwrap_or_default(), at(job, "/status")))
    };
    cx.api(&kinds::JOB).wait_one(NAME, POD, kind, there).await
}

/// Completed, with this reason and this many pods that succeeded.
async fn completes(cx: &Cx, reason: &'static str, succeeded: i64) -> Result<Value> {
    let job = reaches(cx, "Complete", Some(reason)).await?;
    expect(&job, "/status/succeeded", succeeded)?;
    Ok(job)
}

/// Nothing of a finished job is left, and its status says so: two of the numbers are there though they are zero.
fn none_left(job: &Value) -> Result<()> {
    ensure!(number(job, "/status/active") == 0, "active pods of a finished job: {}", job["status"]);
    expect(job, "/status/ready", 0)?;
    expect(job, "/status/terminating", 0)
}

async fn fails_early(cx: Arc<Cx>) -> Result<()> {
    // One pod fails only: without the policy the job would complete.
    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]});
    let node = once_on_a_node(&cx).await?;
    let more = json!({"parallelism": 2, "completions": 4, "podFailurePolicy": policy});
    let script = format!("if mkdir {MARKS}/failed 2>/dev/null; then exit 1; fi; exit 0");
    create(&cx, &with_marks(job(&script, more), &node)).await?;
    reaches(&cx, "Failed", Some("PodFailurePolicy")).await?;
    Ok(())
}

/// Where pods of one node leave marks for each other.
const MARKS: &str = "/marks";

/// A node on which all pods of a job are to run, so that they share a folder.
async fn once_on_a_node(cx: &Cx) -> Result<String> {
    Ok(name(&cx.ready_nodes().await?[0]).to_owned())
}

/// The job's pods on one node, with a folder of that node in which they find what those before them left.
fn with_marks(mut job: Value, node: &str) -> Value {
    let path = format!("/tmp/conformance-{}", rand::random::<u64>());
    let spec = &mut job["spec"]["template"]["spec"];
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    spec["containers"][0]["securityContext"] = json!({"privileged": true});
    spec["volumes"] = json!([{"name": "marks", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "marks", "mountPath": MARKS}]);
    job
}

async fn ignores_disruption(cx: Arc<Cx>) -> Result<()> {
    // Fewer failures are allowed than there will be evictions.
    let policy = json!({"rules": [{
        "action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }]});
    let more = json!({
        "parallelism": 3, "completions": 3, "backoffLimit": 2, "completionMode": "Indexed", "podFailurePolicy": policy,
    });
    let node = once_on_a_node(&cx).await?;
    let script = format!("if mkdir {MARKS}/$JOB_COMPLETION_INDEX 2>/dev/null; then {RUN_ON}; fi; exit 0");
    // The pod ends with an error when it is told to go.
    let mut job = with_marks(job("", more), &node);
    job["spec"]["template"]["spec"]["containers"][0]["command"] =
        json!(["sh", "-c", format!("trap 'exit 143' TERM\n{script}")]);
    let jobs = create(&cx, &job).await?;
    cx.step("three pods ready");
    jobs.wait_one(NAME, POD, "three ready pods", |job| is(job, "/status/ready", 3)).await?;
    let pods = cx.api(&kinds::POD);
    let list = pods.list(&labelled("job=subject")).await?;
    let runs =
        |pod: &&Value| text(pod, "/status/phase") == "Running" && at(pod, "/metadata/deletionTimestamp").is_null();
    let running: Vec<&str> = items(&list, "/items").iter().filter(runs).map(name).collect();
    ensure!(running.len() == 3, "{} running pods", running.len());
    cx.step("evicting them");
    let evictions = running.iter().map(async |pod| {
        let eviction =
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": cx.ns}});
        pods.send("POST", &[pod, "eviction"], &[], Some(&eviction)).await?;
        pods.wait_gone(pod, POD).await
    });
    futures::future::try_join_all(evictions).await?;
    completes(&cx, "CompletionsReached", 3).await?;
    Ok(())
}

async fn indexed(cx: Arc<Cx>) -> Result<()> {
    let more = json!({"parallelism": 2, "completions": 4, "completionMode": "Indexed"});
    create(&cx, &job("echo $JOB_COMPLETION_INDEX $(hostname)", more)).await?;
    completes(&cx, "CompletionsReached", 4).await?;
    let list = cx.api(&kinds::POD).list(&labelled("job=subject")).await?;
    let mut indexes = BTreeSet::new();
    for pod in items(&list, "/items").iter().filter(|pod| text(pod, "/status/phase") == "Succeeded") {
        let index = text(pod, "/metadata/annotations/batch.kubernetes.io~1job-completion-index").to_owned();
        expect(pod, "/spec/hostname", format!("{NAME}-{index}"))?;
        let log = cx.log(name(pod), "main").await?;
        ensure!(log.trim() == format!("{index} {NAME}-{index}"), "the pod of index {index} printed {log:?}");
        indexes.insert(index);
    }
    let wanted: BTreeSet<String> = (0..4).map(|index| index.to_string()).collect();
    ensure!(indexes == wanted, "indexes {indexes:?}, expected {wanted:?}");
    Ok(())
}

/// A job with a success policy.
struct Policy {
    script: &'static str,
    completions: i64,
    backoff_limit: i32,
    rule: fn() -> Value,
    succeeded: i64,
    completed: &'static str,
}

static ALL_SUCCEED: Policy = Policy {
    script: SUCCEED,
    completions: 2,
    backoff_limit: 6,
    rule: || json!({"succeededCount": 2}),
    succeeded: 2,
    completed: "0,1",
};
static COUNT: Policy = Policy {
    script: ODD_FAIL,
    completions: 5,
    backoff_limit: i32::MAX,
    rule: || json!({"succeededCount": 1}),
    succeeded: 1,
    completed: "0",
};
static INDEXES: Policy = Policy {
    script: ODD_FAIL,
    completions: 5,
    backoff_limit: 6,
    rule: || json!({"succeededIndexes": "0"}),
    succeeded: 1,
    completed: "0",
};

async fn succeeds(cx: Arc<Cx>, row: &'static Policy) -> Result<()> {
    let more = json!({
        "parallelism": 2, "completions": row.completions, "completionMode": "Indexed", "backoffLimit": row.backoff_limit,
        "successPolicy": {"rules": [(row.rule)()]},
    });
    create(&cx, &job(row.script, more)).await?;
    reaches(&cx, "SuccessCriteriaMet", Some("SuccessPolicy")).await?;
    let job = completes(&cx, "SuccessPolicy", row.succeeded).await?;
    expect(&job, "/status/completedIndexes", row.completed)?;
    none_left(&job)?;
    if row.script == SUCCEED {
        ensure!(number(&job, "/status/failed") == 0, "failed pods: {}", job["status"]);
    }
    Ok(())
}

async fn all_indexes(cx: Arc<Cx>) -> Result<()> {
    let more = json!({
        "parallelism": 2, "completions": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "backoffLimit": null,
    });
    create(&cx, &job(ODD_FAIL, more)).await?;
    let job = reaches(&cx, "Failed", Some("FailedIndexes")).await?;
    expect(&job, "/status/failedIndexes", "1,3")?;
    expect(&job, "/status/completedIndexes", "0,2")?;
    expect(&job, "/status/failed", 4)?;
    expect(&job, "/status/succeeded", 2)
}

async fn too_many_failed(cx: Arc<Cx>) -> Result<()> {
    let more = json!({
        "parallelism": 1, "completions": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 0,
        "backoffLimit": null,
    });
    create(&cx, &job(FAIL, more)).await?;
    let job = reaches(&cx, "Failed", Some("MaxFailedIndexesExceeded")).await?;
    expect(&job, "/status/failedIndexes", "0")?;
    expect(&job, "/status/failed", 1)
}

async fn fails_index(cx: Arc<Cx>) -> Result<()> {
    let policy = json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]});
    let more = json!({
        "parallelism": 2, "completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "backoffLimit": null,
        "podFailurePolicy": policy,
    });
    create(&cx, &job(ODD_FAIL, more)).await?;
    let job = reaches(&cx, "Failed", Some("FailedIndexes")).await?;
    expect(&job, "/status/failedIndexes", "1")?;
    expect(&job, "/status/completedIndexes", "0")?;
    expect(&job, "/status/failed", 1).context("the index must not be tried again")?;
    expect(&job, "/status/succeeded", 1)
}

async fn status(cx: Arc<Cx>) -> Result<()> {
    const OURS: &str = "CustomConditionType";
    let jobs = create(&cx, &job(RUN_ON, json!({"parallelism": 2, "completions": 4}))).await?;
    cx.step("two pods running");
    let pods = cx.api(&kinds::POD);
    pods.wait(&labelled("job=subject"), POD, "two running pods", |pods| {
        let running = pods.values().filter(|pod| text(pod, "/status/phase") == "Running").count();
        when(running == 2, || format!("{running} run"))
    })
    .await?;
    let made = jobs.get(NAME).await?;
    let since = |job: &Value, time: &str| -> Result<()> {
        let found = condition(job, OURS).with_context(|| format!("no condition {OURS}: {}", job["status"]))?;
        expect(found, "/status", "True")?;
        expect(found, "/lastTransitionTime", time)
    };
    cx.step("patch the status");
    let (first, second) = ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z");
    let patch = json!({
        "metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"conditions": [
            {"type": OURS, "status": "True", "lastProbeTime": null, "lastTransitionTime": first},
        ]},
    });
    let patched = jobs.patch_sub(NAME, "status", Patch::Merge, &patch).await?;
    since(&patched, first)?;
    expect(&patched, "/metadata/annotations/patchedstatus", "true")?;
    cx.step("update the status");
    let updated = jobs.change_sub(NAME, Some("status"), |job| {
        let conditions = job["status"]["conditions"].as_array_mut().into_iter().flatten();
        for condition in conditions.filter(|c| c["type"] == OURS) {
            condition["lastTransitionTime"] = second.into();
        }
    });
    since(&updated.await?, second)?;
    cx.step("get the status");
    let read = jobs.send("GET", &[NAME, "status"], &[], None).await?;
    expect(&read, "/metadata/uid", uid(&made))?;
    since(&read, second)
}

async fn lifecycle(cx: Arc<Cx>) -> Result<()> {
    let selector = format!("conformance-job={}", cx.ns);
    let mine = labelled(&selector);
    let (jobs, everywhere) = (cx.api(&kinds::JOB), cx.cluster_wide(&kinds::JOB));
    let before = jobs.list(&mine).await?;
    let mut subject = job(SUCCEED, json!({"parallelism": 2, "completions": 4, "suspend": true}));
    subject["metadata"]["labels"] = json!({"conformance-job": cx.ns});
    let made = jobs.create(&subject).await?;
    cx.step("patch");
    let patch = json!({"metadata": {"labels": {NAME: "patched"}}});
    let patched = jobs.patch(NAME, Patch::Strategic, &patch).await?;
    expect(&patched, &format!("/metadata/labels/{NAME}"), "patched")?;
    newer(&made, &patched)?;
    let mut watch = jobs.watch_since(&before, &mine).await?;
    let is_patched = |job: &Value| text(job, &format!("/metadata/labels/{NAME}")) == "patched";
    let seen = watch.expect("MODIFIED", "the patched job", SOON, is_patched).await?;
    expect(&seen, "/spec/suspend", true)?;
    cx.step("update, no longer suspended");
    let updated = jobs.change(NAME, |job| {
        set(job, "/metadata/annotations/updated", "true");
        job["spec"]["suspend"] = false.into();
    });
    let updated = updated.await?;
    expect(&updated, "/metadata/annotations/updated", "true")?;
    let mut watch = jobs.watch_since(&patched, &mine).await?;
    watch
        .expect("MODIFIED", "the updated job", SOON, |job| text(job, "/metadata/annotations/updated") == "true")
        .await?;
    cx.step("list in all namespaces");
    let all = everywhere.list(&mine).await?;
    ensure!(items(&all, "/items").len() == 1, "{} jobs by label", items(&all, "/items").len());
    let done = completes(&cx, "CompletionsReached", 4).await?;
    ensure!(!text(&done, "/status/completionTime").is_empty(), "no completion time: {}", done["status"]);
    cx.step("deletecollection");
    jobs.delete_collection_with(&mine, &json!({"propagationPolicy": "Background"})).await?;
    let mut watch = jobs.watch_since(&updated, &mine).await?;
    watch.expect("DELETED", "the job", SOON, |job| name(job) == NAME).await?;
    let left = everywhere.list(&mine).await?;
    ensure!(items(&left, "/items").is_empty(), "the job is still listed");
    cx.step("pods gone");
    cx.api(&kinds::POD).wait_none(&labelled("job=subject"), POD).await
}
