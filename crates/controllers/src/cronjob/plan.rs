//! What a cron job does now: which Jobs it deletes and starts, and its status. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::times::Clock;
use crate::job::end_of;
use crate::owner::reference_to;

/// The start that a Job was made for, in the cron job's zone.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub struct Observed<'a> {
    pub cron: &'a CronJob,
    /// The Jobs that the cron job owns.
    pub jobs: &'a [Arc<Job>],
    /// UIDs of Jobs in the status of which the server said that they are gone.
    pub gone: &'a HashSet<String>,
    /// The zone of this machine, for cron jobs that name none.
    pub local: &'a TimeZone,
    pub now: Timestamp,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Ended Jobs beyond the limits of history.
    pub delete: Vec<Arc<Job>>,
    /// Running Jobs to delete before the next one starts.
    pub replace: Vec<ObjectReference>,
    /// The Job to create, and the start that it is for.
    pub start: Option<(Box<Job>, Timestamp)>,
    /// The status before anything of the above is done.
    pub status: CronJobStatus,
    pub events: Vec<Event>,
    /// Until the next start is due.
    pub recheck: Option<Duration>,
}

fn normal(reason: &'static str, message: String) -> Event {
    Event { warning: false, reason, message }
}

fn warning(reason: &'static str, message: String) -> Event {
    Event { warning: true, reason, message }
}

fn name<K: kube::Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// The name under which the Job of one start is made, so that it is made once.
pub fn job_name(cron: &CronJob, start: Timestamp) -> String {
    format!("{}-{}", name(cron), start.as_second().div_euclid(60))
}

pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan { status: observed.cron.status.clone().unwrap_or_default(), ..Plan::default() };
    let spec = &observed.cron.spec;
    plan.forget_history(observed, spec);
    plan.note_jobs(observed);
    plan.note_missing(observed);
    if observed.cron.metadata.deletion_timestamp.is_none() {
        plan.start(observed, spec);
    }
    plan
}

impl Plan {
    /// Ended Jobs beyond the limits, the oldest first.
    fn forget_history(&mut self, observed: &Observed<'_>, spec: &CronJobSpec) {
        for (type_, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let ended = |job: &&Arc<Job>| end_of(job).is_some_and(|end| end.type_ == type_);
            let mut ended: Vec<Arc<Job>> = observed.jobs.iter().filter(ended).cloned().collect();
            // Those without a start time come last.
            ended.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
                (started.is_none(), started, name(&**job).to_owned())
            });
            let excess = ended.len().saturating_sub(limit);
            ended.truncate(excess);
            self.delete.extend(ended.into_iter().filter(|job| job.metadata.deletion_timestamp.is_none()));
        }
    }

    /// Takes ended Jobs off the list of active ones, and notes the last success.
    fn note_jobs(&mut self, observed: &Observed<'_>) {
        for job in observed.jobs {
            let uid = job.metadata.uid.as_deref();
            let listed = self.status.active.iter().flatten().any(|active| active.uid.as_deref() == uid);
            let Some(end) = end_of(job) else {
                if !listed {
                    let message = format!("Saw a job that the controller did not create or forgot: {}", name(&**job));
                    self.events.push(warning("UnexpectedJob", message));
                }
                continue;
            };
            if listed {
                self.unlist(uid);
                let message = format!("Saw completed job: {}, condition: {}", name(&**job), end.type_);
                self.events.push(normal("SawCompletedJob", message));
            }
            let completed = job.status.as_ref().and_then(|status| status.completion_time.clone());
            if end.type_ == "Complete" && completed.as_ref().map(|time| time.0) > self.last_success() {
                self.status.last_successful_time = completed;
            }
        }
    }

    fn last_success(&self) -> Option<Timestamp> {
        self.status.last_successful_time.as_ref().map(|time| time.0)
    }

    pub fn unlist(&mut self, uid: Option<&str>) {
        let active = self.status.active.take().unwrap_or_default();
        let rest: Vec<ObjectReference> = active.into_iter().filter(|one| one.uid.as_deref() != uid).collect();
        self.status.active = Some(rest).filter(|rest| !rest.is_empty());
    }

    fn note_missing(&mut self, observed: &Observed<'_>) {
        for active in self.status.active.clone().unwrap_or_default() {
            let uid = active.uid.clone().unwrap_or_default();
            if observed.gone.contains(&uid) {
                let message = format!("Active job went missing: {}", active.name.unwrap_or_default());
                self.events.push(normal("MissingJob", message));
                self.unlist(Some(&uid));
            }
        }
    }

    fn start(&mut self, observed: &Observed<'_>, spec: &CronJobSpec) {
        let wanted = match spec.time_zone.as_deref().map(|name| (name, TimeZone::get(name))) {
            None => observed.local.clone(),
            Some((_, Ok(zone))) => zone,
            Some((name, Err(_))) => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                self.events.push(warning("UnknownTimeZone", message));
                return;
            }
        };
        if spec.suspend == Some(true) {
            return;
        }
        let text = &spec.schedule;
        if text.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {text:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            );
            self.events.push(warning("UnsupportedSchedule", message));
        }
        let schedule = match schedule_of(text, wanted) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {text:?} : {why}");
                self.events.push(warning("UnparseableSchedule", message));
                return;
            }
        };
        let clock = Clock { schedule: &schedule.0, zone: &schedule.1 };
        let due = match clock.due(observed.cron, observed.now) {
            Ok(due) => due,
            Err(why) => {
                let message = format!("invalid schedule: {text} : {why}");
                self.events.push(warning("InvalidSchedule", message));
                return;
            }
        };
        self.recheck = clock.wait(observed.cron, observed.now);
        let Some((time, many)) = due else { return };
        if many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.events.push(warning("TooManyMissedTimes", message.to_owned()));
        }
        self.start_at(observed, spec, time);
    }

    fn start_at(&mut self, observed: &Observed<'_>, spec: &CronJobSpec, time: Timestamp) {
        let late =
            |seconds: i64| time.checked_add(SignedDuration::from_secs(seconds)).is_ok_and(|by| by < observed.now);
        if spec.starting_deadline_seconds.is_some_and(late) {
            let message = format!("Missed scheduled time to start a job: {}", time.strftime("%a, %d %b %Y %T +0000"));
            self.events.push(warning("MissSchedule", message));
            return;
        }
        let name = job_name(observed.cron, time);
        let active = self.status.active.clone().unwrap_or_default();
        let last = self.status.last_schedule_time.as_ref().map(|time| time.0);
        if active.iter().any(|one| one.name.as_ref() == Some(&name)) || last == Some(time) {
            return;
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.events.push(normal("JobAlreadyActive", message.to_owned()));
                return;
            }
            Some("Replace") => self.replace = active,
            _ => {}
        }
        self.start = Some((Box::new(job_for(observed.cron, spec, time)), time));
    }

    /// The status with a Job that was started.
    pub fn list(&mut self, job: &Job, time: Timestamp) {
        let reference = ObjectReference {
            api_version: Some("batch/v1".to_owned()),
            kind: Some("Job".to_owned()),
            name: job.metadata.name.clone(),
            namespace: job.metadata.namespace.clone(),
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
            field_path: None,
        };
        self.status.active.get_or_insert_default().push(reference);
        self.status.last_schedule_time = Some(Time(time));
    }
}

/// The schedule with the zone whose clocks it goes by.
pub fn schedule_of(text: &str, zone: TimeZone) -> Result<(Schedule, TimeZone), String> {
    let schedule = Schedule::parse(text)?;
    let zone = match schedule.zone() {
        None => zone,
        Some(name) => {
            TimeZone::get(name).map_err(|_| format!("provided bad location {name}: unknown time zone {name}"))?
        }
    };
    Ok((schedule, zone))
}

fn job_for(cron: &CronJob, spec: &CronJobSpec, time: Timestamp) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut job = Job { spec: spec.job_template.spec.clone(), ..Job::default() };
    job.metadata.name = Some(job_name(cron, time));
    job.metadata.namespace = cron.metadata.namespace.clone();
    job.metadata.labels = meta.labels;
    let zone = spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
    let mut scheduled = time.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    if let Some(utc) = scheduled.strip_suffix("+00:00") {
        scheduled = format!("{utc}Z");
    }
    let annotations = job.metadata.annotations.insert(meta.annotations.unwrap_or_default());
    annotations.insert(SCHEDULED.to_owned(), scheduled);
    job.metadata.owner_references = Some(vec![reference_to(cron)]);
    job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{names, yaml};

    fn cron(spec: &str, status: &str) -> CronJob {
        yaml(&format!(
            "{{ metadata: {{ name: c, namespace: ns, uid: u, creationTimestamp: '2026-01-01T00:00:30Z' }}, spec: {{ schedule: '*/10 * * * *', {spec} jobTemplate: {{ metadata: {{ labels: {{ a: b }}, annotations: {{ x: y }} }}, spec: {{ template: {{}} }} }} }}, status: {status} }}"
        ))
    }

    fn job(name: &str, status: &str) -> Arc<Job> {
        let owner = "ownerReferences: [{ apiVersion: batch/v1, kind: CronJob, name: c, uid: u, controller: true }]";
        Arc::new(yaml(&format!(
            "{{ metadata: {{ name: {name}, namespace: ns, uid: uid-{name}, {owner} }}, spec: {{ template: {{}} }}, status: {status} }}"
        )))
    }

    fn ended(name: &str, type_: &str, minute: u32) -> Arc<Job> {
        let times =
            format!("startTime: '2026-01-01T00:{minute:02}:00Z', completionTime: '2026-01-01T00:{minute:02}:30Z'");
        job(name, &format!("{{ {times}, conditions: [{{ type: {type_}, status: 'True' }}] }}"))
    }

    fn planned(cron: &CronJob, jobs: &[Arc<Job>], now: &str) -> Plan {
        let now = format!("2026-01-01T{now}Z").parse().expect("a time");
        plan(&Observed { cron, jobs, gone: &HashSet::from(["uid-lost".to_owned()]), local: &TimeZone::UTC, now })
    }

    /// `start -deleted !replaced *active ?event`
    fn told(plan: &Plan) -> String {
        let mut words: Vec<String> = plan.start.iter().map(|(job, _)| format!("+{}", name(&**job))).collect();
        words.extend(names(&plan.delete).into_iter().map(|name| format!("-{name}")));
        words.extend(plan.replace.iter().map(|one| format!("!{}", one.name.clone().unwrap_or_default())));
        let active = plan.status.active.iter().flatten();
        words.extend(active.map(|one| format!("*{}", one.name.clone().unwrap_or_default())));
        words.extend(plan.events.iter().map(|event| format!("?{}", event.reason)));
        words.join(" ")
    }

    const ACTIVE: &str = "{ lastScheduleTime: '2026-01-01T00:10:00Z', active: [{ name: c-1, uid: uid-c-1 }] }";

    #[test]
    fn a_start_makes_one_job() {
        let minute = 1_767_225_600 / 60 + 10;
        let plan = planned(&cron("timeZone: Asia/Kathmandu,", "{}"), &[], "00:10:05");
        assert_eq!(told(&plan), format!("+c-{}", minute - 5), "at 5:50 in Kathmandu");
        let plan = planned(&cron("", "{}"), &[], "00:10:05");
        assert_eq!(told(&plan), format!("+c-{minute}"));
        assert_eq!(plan.recheck.map(|wait| wait.as_secs()), Some(595));
        let (job, time) = plan.start.expect("started");
        assert_eq!(time.as_second(), minute * 60);
        let annotations = job.metadata.annotations.expect("annotated");
        assert_eq!((annotations["x"].as_str(), annotations[SCHEDULED].as_str()), ("y", "2026-01-01T00:10:00Z"));
        assert_eq!(job.metadata.labels.expect("labelled")["a"], "b");
        let zoned = planned(&cron("timeZone: America/New_York,", "{}"), &[], "00:10:05").start.expect("started").0;
        assert_eq!(zoned.metadata.annotations.expect("annotated")[SCHEDULED], "2025-12-31T19:10:00-05:00");

        assert_eq!(told(&planned(&cron("", "{}"), &[], "00:09:59")), "");
        assert_eq!(told(&planned(&cron("suspend: true,", "{}"), &[], "00:10:05")), "");
        let done = "{ lastScheduleTime: '2026-01-01T00:10:00Z' }";
        assert_eq!(told(&planned(&cron("", done), &[], "00:10:05")), "");
    }

    #[test]
    fn a_job_that_still_runs_is_joined_waited_for_or_replaced() {
        let running = [job("c-1", "{}")];
        let next = format!("+c-{}", 1_767_225_600 / 60 + 20);
        let of = |policy: &str| {
            told(&planned(&cron(&format!("concurrencyPolicy: {policy},"), ACTIVE), &running, "00:20:01"))
        };
        assert_eq!(of("Allow"), format!("{next} *c-1"));
        assert_eq!(of("Forbid"), "*c-1 ?JobAlreadyActive");
        assert_eq!(of("Replace"), format!("{next} !c-1 *c-1"));
    }

    #[test]
    fn ended_lost_and_strange_jobs_are_noted() {
        let plan = planned(&cron("", ACTIVE), &[ended("c-1", "Complete", 12)], "00:15:00");
        assert_eq!(told(&plan), "?SawCompletedJob");
        assert_eq!(plan.events[0].message, "Saw completed job: c-1, condition: Complete");
        assert_eq!(plan.last_success().map(|time| time.to_string()), Some("2026-01-01T00:12:30Z".into()));
        let lost = "{ lastScheduleTime: '2026-01-01T00:10:00Z', active: [{ name: lost, uid: uid-lost }] }";
        assert_eq!(told(&planned(&cron("", lost), &[], "00:15:00")), "?MissingJob");
        assert_eq!(told(&planned(&cron("", "{}"), &[job("x", "{}")], "00:05:00")), "?UnexpectedJob");
    }

    #[test]
    fn history_has_limits() {
        let jobs = [
            ended("b", "Complete", 2),
            ended("a", "Complete", 1),
            ended("d", "Complete", 3),
            ended("e", "Failed", 1),
            ended("f", "Failed", 2),
        ];
        let limits = "successfulJobsHistoryLimit: 1, failedJobsHistoryLimit: 0,";
        assert_eq!(told(&planned(&cron(limits, "{}"), &jobs, "00:05:00")), "-a -b -e -f");
        assert_eq!(told(&planned(&cron("", "{}"), &jobs, "00:05:00")), "", "without limits all is kept");
    }

    #[test]
    fn what_cannot_be_is_told() {
        let mut wrong = cron("", "{}");
        wrong.spec.schedule = "61 * * * *".into();
        let plan = planned(&wrong, &[], "00:10:05");
        let told = "unparseable schedule: \"61 * * * *\" : end of range (61) above maximum (59): 61";
        assert_eq!(plan.events[0].message, told);
        assert_eq!(plan.recheck, None);
        wrong.spec.schedule = "59 23 31 2 *".into();
        let told = "invalid schedule: 59 23 31 2 * : time difference between two schedules is less than 1 second";
        assert_eq!(planned(&wrong, &[], "00:10:05").events[0].message, told);
        let plan = planned(&cron("timeZone: Mars/Olympus,", "{}"), &[], "00:10:05");
        assert_eq!(plan.events[0].message, "invalid timeZone: \"Mars/Olympus\": unknown time zone Mars/Olympus");
        let late = cron("startingDeadlineSeconds: 2,", "{}");
        assert!(planned(&late, &[], "00:10:05").start.is_none());
    }
}
