//! Cron jobs: Jobs made at the times of a schedule.
//!
//! Must not know: pods.

mod plan;
mod times;

use std::collections::HashSet;
use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use kube::api::{Api, DeleteParams, PropagationPolicy};

use plan::{Event, Observed, Plan, plan, schedule_of};
use times::Clock;

use crate::error::{Error, Result, text_of};
use crate::owner::{Owned, controller_of, controller_uid};
use crate::write;

const IDENTITY: &str = "cronjob-controller";
const WORKERS: usize = 5;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.crons.synced().await;
    controller.jobs.synced().await;
    controller.clone().watch();
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    owned: Owned<Job>,
    cron_gate: Gate<CronJob>,
    job_gate: Gate<Job>,
    local: TimeZone,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let crons = context.informers.of::<CronJob>();
        let jobs = context.informers.of::<Job>();
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            client,
            owned: Owned::new(&jobs),
            cron_gate: Gate::new(crons.clone()),
            job_gate: Gate::new(jobs.clone()),
            crons,
            jobs,
            local: TimeZone::system(),
            queue: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let controller = self.clone();
        self.crons.on_change(move |change| controller.cron_changed(&change));
        let queue = self.queue.clone();
        self.jobs.on_change(move |change| {
            let job = change.object();
            let namespace = job.metadata.namespace.clone().unwrap_or_default();
            for seen in change.old().into_iter().chain([job]) {
                if let Some(owner) = controller_of(&seen.metadata).filter(|owner| owner.kind == "CronJob") {
                    queue.add((namespace.clone(), owner.name.clone()));
                }
            }
        });
    }

    /// A new schedule begins with its next time: what it would have started before is not missed.
    fn cron_changed(&self, change: &Change<'_, CronJob>) {
        let cron = change.object();
        let timing = |cron: &CronJob| (cron.spec.schedule.clone(), cron.spec.time_zone.clone());
        if let Change::Applied { old: Some(old), new } = change
            && timing(old) != timing(new)
            && let (schedule, zone) = timing(new)
            && let Some(zone) = zone.map_or(Some(self.local.clone()), |name| TimeZone::get(&name).ok())
        {
            match schedule_of(&schedule, zone) {
                Ok((schedule, zone)) => {
                    let clock = Clock { schedule: &schedule, zone: &zone };
                    if let Some(wait) = clock.wait(new, Timestamp::now()) {
                        self.queue.add_after(key_of(&***new), wait);
                    }
                }
                Err(_) => {
                    let message = format!("unparseable schedule for cronjob: {schedule}");
                    self.recorder.warning(&***new, "UnParseableCronJobSchedule", message);
                }
            }
            return;
        }
        self.queue.add(key_of(&**cron));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.cron_gate.opened(key).await?;
        self.job_gate.opened(key).await?;
        let Some(cron) = self.crons.get(&key.0, &key.1) else {
            self.cron_gate.forget(key);
            self.job_gate.forget(key);
            return Ok(Next::Wait);
        };
        let jobs = self.owned.by(cron.metadata.uid.as_deref().unwrap_or_default());
        let gone = self.gone(key, &cron, &jobs).await?;
        let now = Timestamp::now();
        let mut plan = plan(&Observed { cron: &cron, jobs: &jobs, gone: &gone, local: &self.local, now });
        for Event { warning, reason, message } in std::mem::take(&mut plan.events) {
            if warning {
                self.recorder.warning(&*cron, reason, message);
            } else {
                self.recorder.normal(&*cron, reason, message);
            }
        }
        let done = self.carry_out(key, &cron, &mut plan).await;
        self.write_status(key, &cron, plan.status).await?;
        done?;
        Ok(plan.recheck.map_or(Next::Wait, Next::After))
    }

    /// The UIDs in the list of active Jobs that neither the cache nor the server knows.
    async fn gone(&self, key: &ObjectKey, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<HashSet<String>> {
        let mut gone = HashSet::new();
        let active = cron.status.as_ref().and_then(|status| status.active.as_deref()).unwrap_or_default();
        for one in active {
            let (uid, name) = (one.uid.as_deref().unwrap_or_default(), one.name.as_deref().unwrap_or_default());
            if jobs.iter().any(|job| job.metadata.uid.as_deref() == Some(uid)) {
                continue;
            }
            if client::found(self.job_api(key).get(name).await)?.is_none() {
                gone.insert(uid.to_owned());
            }
        }
        Ok(gone)
    }

    fn job_api(&self, key: &ObjectKey) -> Api<Job> {
        Api::namespaced(self.client.clone(), &key.0)
    }

    async fn carry_out(&self, key: &ObjectKey, cron: &CronJob, plan: &mut Plan) -> Result<()> {
        for job in std::mem::take(&mut plan.delete) {
            // What cannot be deleted now stays in the history until the next look.
            if self.delete(key, cron, &job).await.is_ok() {
                plan.unlist(job.metadata.uid.as_deref());
            }
        }
        for running in std::mem::take(&mut plan.replace) {
            let name = running.name.as_deref().unwrap_or_default();
            match self.job_api(key).get(name).await {
                Ok(job) => self.delete(key, cron, &job).await?,
                Err(error) => {
                    self.recorder.warning(cron, "FailedGet", format!("Get job: {}", text_of(&error)));
                    return Err(error.into());
                }
            }
            plan.unlist(running.uid.as_deref());
        }
        let Some((job, time)) = plan.start.take() else { return Ok(()) };
        if let Some(started) = self.create(key, cron, &job).await? {
            let listed = plan.status.active.iter().flatten().any(|one| one.uid == started.metadata.uid);
            if !listed {
                plan.list(&started, time);
            }
        }
        Ok(())
    }

    /// The Job, new or found under its name; none if it is not to be counted.
    async fn create(&self, key: &ObjectKey, cron: &CronJob, job: &Job) -> Result<Option<Job>> {
        match self.job_api(key).create(&write::post(), job).await {
            Ok(created) => {
                self.job_gate.wrote(key, &created);
                let name = created.metadata.name.as_deref().unwrap_or_default();
                self.recorder.normal(cron, "SuccessfulCreate", format!("Created job {name}"));
                Ok(Some(created))
            }
            Err(error) if client::is_namespace_terminating(&error) => Ok(None),
            Err(error) if client::is_already_exists(&error) => {
                // Ours if we made it and ended before the status was written.
                let name = job.metadata.name.as_deref().unwrap_or_default();
                let found = client::found(self.job_api(key).get(name).await)?;
                let found = found.ok_or(Error::Waiting("a Job of the same name to go"))?;
                let ours = controller_uid(&found.metadata) == cron.metadata.uid.as_deref();
                Ok(Some(found).filter(|_| ours))
            }
            Err(error) => {
                self.recorder.warning(cron, "FailedCreate", format!("Error creating job: {}", text_of(&error)));
                Err(error.into())
            }
        }
    }

    async fn delete(&self, key: &ObjectKey, cron: &CronJob, job: &Job) -> Result<()> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..write::delete_seen(job) };
        let name = job.metadata.name.as_deref().unwrap_or_default();
        match client::found(self.job_api(key).delete(name, &params).await) {
            Ok(_) => {
                self.job_gate.deleted(key, job);
                self.recorder.normal(cron, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(error) => {
                self.recorder.warning(cron, "FailedDelete", format!("Deleted job: {}", text_of(&error)));
                Err(error.into())
            }
        }
    }

    async fn write_status(&self, key: &ObjectKey, cron: &CronJob, status: CronJobStatus) -> Result<()> {
        if cron.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = CronJob { status: Some(status), ..cron.clone() };
        let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.0);
        if let Some(written) = client::found(api.replace_status(&key.1, &write::post(), &updated).await)? {
            self.cron_gate.wrote(key, &written);
        }
        Ok(())
    }
}
