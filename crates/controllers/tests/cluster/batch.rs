//! Jobs and cron jobs.

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Cluster, end_pod, eventually};

/// A Job named `job` whose pods end as `finish` says, or run until the test ends them.
fn job(spec: Value, finish: Option<&str>) -> Value {
    let mut labels = json!({ "app": "job" });
    if let Some(finish) = finish {
        labels["finish"] = json!(finish);
    }
    let pod = json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }] });
    let mut job = json!({ "metadata": { "name": "job" }, "spec": spec });
    job["spec"]["template"] = json!({ "metadata": { "labels": labels }, "spec": pod });
    job
}

/// Types of the conditions that are true, with their reasons.
fn conditions(status: &JobStatus) -> Vec<String> {
    let conditions = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
    conditions.map(|c| format!("{}:{}", c.type_, c.reason.as_deref().unwrap_or_default())).collect()
}

async fn status_when(cluster: &Cluster, what: &str, met: impl Fn(&JobStatus) -> bool) -> JobStatus {
    let api = cluster.api::<Job>();
    eventually(what, || async { api.get("job").await.ok()?.status.filter(|status| met(status)) }).await
}

async fn running(cluster: &Cluster, count: usize) -> Vec<Pod> {
    eventually("running pods", || async {
        let mut pods = cluster.pods("job").await;
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        pods.retain(|pod| phase(pod).as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none());
        (pods.len() == count).then_some(pods)
    })
    .await
}

async fn end(cluster: &Cluster, pod: &Pod, phase: &str, code: i32) {
    let name = pod.metadata.name.as_deref().expect("named");
    end_pod(&cluster.api(), name, phase, code).await.expect("patched");
}

fn is_free(pod: &Pod) -> bool {
    pod.metadata.finalizers.as_ref().is_none_or(|finalizers| finalizers.is_empty())
}

#[tokio::test]
async fn a_job_completes_and_its_pods_are_let_go() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Job>(job(json!({ "parallelism": 2, "completions": 5 }), Some("Succeeded"))).await;
    let status = status_when(&cluster, "the end", |status| status.completion_time.is_some()).await;
    assert_eq!(conditions(&status), ["SuccessCriteriaMet:CompletionsReached", "Complete:CompletionsReached"]);
    assert_eq!((status.succeeded, status.failed, status.active), (Some(5), None, None));
    assert_eq!((status.ready, status.terminating), (Some(0), Some(0)));
    let pods = cluster.pods("job").await;
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(is_free));
    let events = cluster.told("job", "Completed: Job completed").await;
    assert_eq!(events.iter().filter(|event| event.starts_with("SuccessfulCreate: Created pod: job-")).count(), 5);

    cluster.api::<Job>().delete("job", &DeleteParams::background()).await.expect("deleted");
    eventually("no pods", || async { cluster.pods("job").await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn failures_end_a_job_once_too_many() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Job>(job(json!({ "parallelism": 2, "completions": 2, "backoffLimit": 0 }), None)).await;
    let pods = running(&cluster, 2).await;
    status_when(&cluster, "two ready", |status| status.ready == Some(2)).await;
    end(&cluster, &pods[0], "Failed", 1).await;
    let status = status_when(&cluster, "the end", |status| conditions(status).len() == 2).await;
    assert_eq!(conditions(&status), ["FailureTarget:BackoffLimitExceeded", "Failed:BackoffLimitExceeded"]);
    assert_eq!((status.failed, status.active, status.completion_time), (Some(2), None, None));
    cluster.told("job", "BackoffLimitExceeded: Job has reached the specified backoff limit").await;
    eventually("the other pod's end", || async { (cluster.pods("job").await.len() == 1).then_some(()) }).await;
}

#[tokio::test]
async fn an_indexed_job_takes_each_index_once() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let spec = json!({ "completionMode": "Indexed", "parallelism": 3, "completions": 3, "backoffLimitPerIndex": 0 });
    cluster.create::<Job>(job(spec, None)).await;
    let pods = running(&cluster, 3).await;
    for (index, pod) in pods.iter().enumerate() {
        let name = pod.metadata.name.as_deref().expect("named");
        assert!(name.starts_with(&format!("job-{index}-")), "{name}");
        let label = &pod.metadata.labels.as_ref().expect("labelled")["batch.kubernetes.io/job-completion-index"];
        assert_eq!(*label, index.to_string());
        assert_eq!(pod.spec.as_ref().expect("a spec").hostname, Some(format!("job-{index}")));
    }
    end(&cluster, &pods[0], "Succeeded", 0).await;
    end(&cluster, &pods[1], "Failed", 1).await;
    let half = status_when(&cluster, "one each", |s| s.failed_indexes.as_deref() == Some("1")).await;
    assert_eq!(half.succeeded.unwrap_or(0), half.completed_indexes.map_or(0, |_| 1));
    end(&cluster, &pods[2], "Succeeded", 0).await;
    let status = status_when(&cluster, "the end", |status| conditions(status).len() == 2).await;
    assert_eq!(conditions(&status), ["FailureTarget:FailedIndexes", "Failed:FailedIndexes"]);
    assert_eq!(status.completed_indexes.as_deref(), Some("0,2"));
    assert_eq!((status.succeeded, status.failed), (Some(2), Some(1)));
}

#[tokio::test]
async fn policies_end_a_job_early() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let rule = json!({ "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } });
    let spec = json!({ "parallelism": 2, "completions": 2, "podFailurePolicy": { "rules": [rule] } });
    cluster.create::<Job>(job(spec, None)).await;
    let pods = running(&cluster, 2).await;
    end(&cluster, &pods[0], "Failed", 42).await;
    let status = status_when(&cluster, "failure", |status| conditions(status).len() == 2).await;
    assert_eq!(conditions(&status), ["FailureTarget:PodFailurePolicy", "Failed:PodFailurePolicy"]);
    let message = status.conditions.expect("two")[1].message.clone().expect("a message");
    let name = pods[0].metadata.name.as_deref().expect("named");
    let told = format!("Container c for pod test/{name} failed with exit code 42 matching FailJob rule at index 0");
    assert_eq!(message, told);
    cluster.api::<Job>().delete("job", &DeleteParams::background()).await.expect("deleted");
    eventually("no pods", || async { cluster.pods("job").await.is_empty().then_some(()) }).await;

    let policy = json!({ "rules": [{ "succeededIndexes": "1" }] });
    let spec = json!({ "completionMode": "Indexed", "parallelism": 3, "completions": 3, "successPolicy": policy });
    cluster.create::<Job>(job(spec, None)).await;
    let pods = running(&cluster, 3).await;
    end(&cluster, &pods[1], "Succeeded", 0).await;
    let status = status_when(&cluster, "success", |status| conditions(status).len() == 2).await;
    assert_eq!(conditions(&status), ["SuccessCriteriaMet:SuccessPolicy", "Complete:SuccessPolicy"]);
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(1), Some("1")));
}

#[tokio::test]
async fn a_job_is_suspended_and_resumed() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Job>(job(json!({ "parallelism": 2, "completions": 2 }), None)).await;
    running(&cluster, 2).await;
    cluster.merge::<Job>("job", json!({ "spec": { "suspend": true } })).await;
    let status = status_when(&cluster, "suspension", |status| !conditions(status).is_empty()).await;
    assert_eq!(conditions(&status), ["Suspended:JobSuspended"]);
    assert_eq!((status.start_time, status.active, status.failed), (None, None, None));
    eventually("no pods", || async { cluster.pods("job").await.is_empty().then_some(()) }).await;

    cluster.merge::<Job>("job", json!({ "spec": { "suspend": false } })).await;
    let pods = running(&cluster, 2).await;
    let status = status_when(&cluster, "resumption", |status| status.start_time.is_some()).await;
    assert_eq!(conditions(&status), Vec::<String>::new());
    for pod in &pods {
        end(&cluster, pod, "Succeeded", 0).await;
    }
    let status = status_when(&cluster, "the end", |status| status.completion_time.is_some()).await;
    assert_eq!((status.succeeded, status.failed), (Some(2), None), "pods that were suspended have not failed");
}

#[tokio::test]
async fn pods_are_adopted_released_and_orphaned() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let created = cluster.create::<Job>(job(json!({ "parallelism": 2, "completions": 2 }), None)).await;
    let pods = running(&cluster, 2).await;
    let name = pods[0].metadata.name.clone().expect("named");
    let owned = |pod: &Pod| {
        pod.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == created.metadata.uid.as_ref())
    };
    cluster.merge::<Pod>(&name, json!({ "metadata": { "ownerReferences": null } })).await;
    eventually("adoption", || async { owned(&cluster.api::<Pod>().get(&name).await.ok()?).then_some(()) }).await;

    let labels = json!({ "batch.kubernetes.io/controller-uid": null, "controller-uid": null });
    cluster.merge::<Pod>(&name, json!({ "metadata": { "labels": labels } })).await;
    eventually("release", || async {
        let pod = cluster.api::<Pod>().get(&name).await.ok()?;
        (!owned(&pod) && is_free(&pod)).then_some(())
    })
    .await;
    eventually("its replacement", || async { (cluster.pods("job").await.len() == 3).then_some(()) }).await;

    cluster.api::<Job>().delete("job", &DeleteParams::orphan()).await.expect("deleted");
    eventually("freedom", || async {
        let pods = cluster.pods("job").await;
        pods.iter().all(|pod| !owned(pod) && is_free(pod)).then_some(())
    })
    .await;
    assert_eq!(cluster.pods("job").await.len(), 3);
}

#[tokio::test]
async fn a_job_goes_when_its_time_is_up_and_others_manage_theirs() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let spec = json!({ "completions": 1, "ttlSecondsAfterFinished": 1 });
    cluster.create::<Job>(job(spec, Some("Succeeded"))).await;
    let api = cluster.api::<Job>();
    eventually("the Job's end", || async { api.get_opt("job").await.ok()?.is_none().then_some(()) }).await;
    eventually("its pod's", || async { cluster.pods("job").await.is_empty().then_some(()) }).await;

    cluster.create::<Job>(job(json!({ "completions": 1, "managedBy": "example.com/other" }), None)).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let untouched = api.get("job").await.expect("there").status.unwrap_or_default();
    assert_eq!(untouched, JobStatus::default());
    assert!(cluster.api::<Pod>().list(&ListParams::default()).await.expect("listed").items.is_empty());
}

/// An hourly cron job named `cron` that was due twenty minutes ago; `more` is merged into its spec.
async fn cron(cluster: &Cluster, more: Value) -> CronJob {
    let mut template = job(json!({ "completions": 1 }), None);
    template["metadata"] = json!({ "labels": { "from": "cron" } });
    let mut spec = json!({ "schedule": "@every 1h", "jobTemplate": template, "suspend": true });
    for (key, value) in more.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    cluster.create::<CronJob>(json!({ "metadata": { "name": "cron" }, "spec": spec })).await;
    due(cluster, 20).await;
    cluster.merge::<CronJob>("cron", json!({ "spec": { "suspend": false } })).await
}

/// Sets the last start such that the next was due so many minutes ago.
async fn due(cluster: &Cluster, minutes: i64) {
    let at = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_mins(60 + minutes);
    let patch =
        Patch::Merge(json!({ "status": { "lastScheduleTime": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() } }));
    let api = cluster.api::<CronJob>();
    api.patch_status("cron", &PatchParams::default(), &patch).await.expect("patched");
}

async fn started(cluster: &Cluster, count: usize) -> Vec<Job> {
    eventually("the Jobs", || async {
        let jobs = cluster.api::<Job>().list(&ListParams::default().labels("from=cron")).await.expect("listed").items;
        (jobs.len() == count).then_some(jobs)
    })
    .await
}

async fn active(cluster: &Cluster, count: usize) -> CronJobStatus {
    let api = cluster.api::<CronJob>();
    eventually("active Jobs", || async {
        let status = api.get("cron").await.ok()?.status.unwrap_or_default();
        (status.active.as_ref().map_or(0, Vec::len) == count).then_some(status)
    })
    .await
}

#[tokio::test]
async fn a_cron_job_starts_jobs_and_keeps_their_history() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cron(&cluster, json!({ "successfulJobsHistoryLimit": 0, "timeZone": "Asia/Tokyo" })).await;
    let jobs = started(&cluster, 1).await;
    let status = active(&cluster, 1).await;
    let reference = &status.active.as_ref().expect("one")[0];
    assert_eq!((&reference.name, &reference.uid), (&jobs[0].metadata.name, &jobs[0].metadata.uid));
    let time = status.last_schedule_time.as_ref().expect("started").0;
    assert_eq!(jobs[0].metadata.name, Some(format!("cron-{}", time.as_second() / 60)));
    let scheduled =
        &jobs[0].metadata.annotations.as_ref().expect("annotated")["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert!(scheduled.ends_with("+09:00"), "{scheduled}");
    assert_eq!(scheduled.parse().ok(), Some(time));

    let pods = running(&cluster, 1).await;
    end(&cluster, &pods[0], "Succeeded", 0).await;
    let status = active(&cluster, 0).await;
    assert!(status.last_successful_time.is_some());
    started(&cluster, 0).await;
    let name = jobs[0].metadata.name.as_deref().expect("named");
    let told = [
        format!("SuccessfulCreate: Created job {name}"),
        format!("SawCompletedJob: Saw completed job: {name}, condition: Complete"),
        format!("SuccessfulDelete: Deleted job {name}"),
    ];
    eventually("the events", || async {
        let events = cluster.events("cron").await;
        told.iter().all(|event| events.contains(event)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cron_job_waits_for_or_replaces_its_last_job() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cron(&cluster, json!({ "concurrencyPolicy": "Forbid" })).await;
    let first = started(&cluster, 1).await;
    active(&cluster, 1).await;
    due(&cluster, 5).await;
    let told = "JobAlreadyActive: Not starting job because prior execution is running and concurrency policy is Forbid";
    cluster.told("cron", told).await;
    assert_eq!(started(&cluster, 1).await[0].metadata.uid, first[0].metadata.uid);

    cluster.merge::<CronJob>("cron", json!({ "spec": { "concurrencyPolicy": "Replace" } })).await;
    let name = first[0].metadata.name.as_deref().expect("named");
    eventually("its successor", || async {
        let jobs = cluster.api::<Job>().list(&ListParams::default().labels("from=cron")).await.expect("listed").items;
        (jobs.len() == 1 && jobs[0].metadata.uid != first[0].metadata.uid).then_some(())
    })
    .await;
    cluster.told("cron", &format!("SuccessfulDelete: Deleted job {name}")).await;
    let status = active(&cluster, 1).await;
    assert_ne!(status.active.expect("one")[0].uid, first[0].metadata.uid);
}
