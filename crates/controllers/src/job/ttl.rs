//! Deletes Jobs a given time after they have ended (`spec.ttlSecondsAfterFinished`).

use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Informer, Next, ObjectKey, Queue, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, PropagationPolicy};

use super::end_of;
use crate::error::Result;
use crate::write;

const IDENTITY: &str = "ttl-after-finished-controller";
const WORKERS: usize = 5;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let jobs = context.informers.of::<Job>();
    jobs.synced().await;
    let queue: Queue<ObjectKey> = Queue::default();
    let feed = queue.clone();
    jobs.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && remaining(new, Timestamp::now()).is_some()
        {
            feed.add(key_of(&**new));
        }
    });
    let controller = Arc::new((client, jobs));
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { reconcile(&controller.0, &controller.1, &key).await }
    })
    .await;
}

/// The time left to a Job that has ended, zero if it is up; none for any other, and for one that is being deleted.
fn remaining(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = u64::try_from(job.spec.as_ref()?.ttl_seconds_after_finished?).unwrap_or(0);
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ended = end_of(job)?.last_transition_time.as_ref()?.0;
    let elapsed = Duration::try_from(now.duration_since(ended)).unwrap_or_default();
    Some(Duration::from_secs(ttl).saturating_sub(elapsed))
}

async fn reconcile(client: &kube::Client, jobs: &Informer<Job>, key: &ObjectKey) -> Result<Next> {
    let Some(job) = jobs.get(&key.0, &key.1) else { return Ok(Next::Wait) };
    match remaining(&job, Timestamp::now()) {
        None => return Ok(Next::Wait),
        Some(Duration::ZERO) => {}
        Some(left) => return Ok(Next::After(left)),
    }
    // The time may have been raised since: only the server knows.
    let api: Api<Job> = Api::namespaced(client.clone(), &key.0);
    let Some(live) = client::found(api.get(&key.1).await)? else { return Ok(Next::Wait) };
    match remaining(&live, Timestamp::now()) {
        Some(Duration::ZERO) => {
            let params =
                DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..write::delete_seen(&live) };
            client::found(api.delete(&key.1, &params).await)?;
            Ok(Next::Wait)
        }
        Some(left) => Ok(Next::After(left)),
        None => Ok(Next::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, now, yaml};

    #[test]
    fn only_ended_jobs_with_a_ttl_have_their_days_counted() {
        let job = |ttl: &str, ended: Option<i64>| {
            let mut job: Job = yaml(&format!("{{ spec: {{ {ttl} template: {{}} }} }}"));
            if let Some(seconds) = ended {
                let end = super::super::plan::new_condition("Failed", "True", "", "", ago(seconds).0);
                job.status.get_or_insert_default().conditions = Some(vec![end]);
            }
            job
        };
        let left = |job: &Job| remaining(job, now()).map(|left| left.as_secs());
        assert_eq!(left(&job("ttlSecondsAfterFinished: 30,", Some(10))), Some(20));
        assert_eq!(left(&job("ttlSecondsAfterFinished: 0,", Some(0))), Some(0));
        assert_eq!(left(&job("ttlSecondsAfterFinished: 30,", None)), None);
        assert_eq!(left(&job("", Some(10))), None);
    }
}
