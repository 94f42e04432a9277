//! What a Job decides and counts, step by step, and over whole lives of random pods.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;

use super::account::{Outcome, account};
use super::backoff::Record;
use super::facts::{FINALIZER, INDEX, Observed, condition, end_of, index_of, is_tracked, uid};
use super::plan::{Action, Decision, decide};
use super::pod;
use crate::fixture::{ago, names, now, yaml};
use crate::pods;

fn job(spec: &str, status: &str) -> Job {
    yaml(&format!(
        "{{ metadata: {{ name: j, namespace: ns, uid: u }}, spec: {{ template: {{ spec: {{ restartPolicy: Never, containers: [] }} }}, {spec} }}, status: {status} }}"
    ))
}

/// Pods with the finalizer, but for those whose name begins with `free`.
fn tracked(lines: &str) -> Vec<Arc<Pod>> {
    let track = |pod: Arc<Pod>| {
        let mut pod = (*pod).clone();
        let free = pod.metadata.name.as_deref().is_some_and(|name| name.starts_with("free"));
        pod.metadata.finalizers = (!free).then(|| vec![FINALIZER.to_owned()]);
        Arc::new(pod)
    };
    crate::fixture::pods(lines).into_iter().map(track).collect()
}

fn indexed(name: &str, index: i32, rest: &str) -> String {
    format!("{{ name: {name}, annotations: {{ {INDEX}: '{index}' }}, {rest} }}\n")
}

fn outcome_of(decision: &Decision<'_>) -> Outcome {
    let created = match &decision.action {
        Action::Create(new) => new.len(),
        _ => 0,
    };
    Outcome { created, deleted: true }
}

/// `action | active/ready/terminating succeeded/failed [completed] {failed indexes} conditions | released`
fn step(job: &Job, lines: &str) -> String {
    step_with(job, lines, Record::default())
}

fn step_with(job: &Job, lines: &str, record: Record) -> String {
    let pods = tracked(lines);
    let observed = Observed { job, pods: &pods, record, now: now() };
    let decision = decide(&observed).expect("a spec");
    let action = match &decision.action {
        Action::Nothing => "=".to_owned(),
        Action::Create(new) => {
            let index = |new: &super::plan::NewPod| new.index.map_or("+".to_owned(), |index| format!("+{index}"));
            new.iter().map(index).collect::<Vec<_>>().join(" ")
        }
        Action::Drop(pods) => format!("drop {}", names(pods).join(" ")),
        Action::Stop(pods) => format!("stop {}", names(pods).join(" ")),
    };
    let wait = decision.recheck.map_or(String::new(), |wait| format!(" in {}s", wait.as_secs()));
    let account = account(&decision, outcome_of(&decision));
    let mut released = names(&account.release);
    released.sort();
    format!("{action}{wait} | {} | {}", told(&account.status), released.join(" "))
}

fn told(status: &JobStatus) -> String {
    let or0 = |number: Option<i32>| number.unwrap_or(0);
    let counts = [status.active, status.ready, status.terminating].map(or0);
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let more = |list: Option<Vec<String>>| list.map_or(String::new(), |list| format!("+{}", list.len()));
    let mut text = format!(
        "{}/{}/{} {}{}/{}{}",
        counts[0],
        counts[1],
        counts[2],
        or0(status.succeeded),
        more(uncounted.succeeded),
        or0(status.failed),
        more(uncounted.failed)
    );
    if let Some(indexes) = &status.completed_indexes {
        text += &format!(" [{indexes}]");
    }
    if let Some(indexes) = &status.failed_indexes {
        text += &format!(" {{{indexes}}}");
    }
    for condition in status.conditions.iter().flatten() {
        let sign = if condition.status == "True" { "" } else { "!" };
        text += &format!(" {sign}{}:{}", condition.type_, condition.reason.as_deref().unwrap_or_default());
    }
    text
}

#[test]
fn runs_as_many_as_asked_for_and_no_more() {
    let three = job("parallelism: 2, completions: 3", "{}");
    assert_eq!(step(&three, ""), "+ + | 2/0/0 0/0 | ");
    assert_eq!(step(&three, "{ name: a, ready: 1 }\n{ name: b }"), "= | 2/1/0 0/0 | ");
    let ended = "{ name: a, phase: Succeeded }\n{ name: b }";
    assert_eq!(step(&three, ended), "+ | 2/0/0 0+1/0 | a");
    let last = job("parallelism: 2, completions: 3", "{ succeeded: 2 }");
    assert_eq!(step(&last, "{ name: c }"), "= | 1/0/0 2/0 | ");
    assert_eq!(step(&last, "{ name: c }\n{ name: d, node: n }"), "drop c | 1/0/1 2/0 | ", "the unbound one goes");
    let done = "= | 0/0/0 2+1/0 SuccessCriteriaMet:CompletionsReached | c";
    assert_eq!(step(&last, "{ name: c, phase: Succeeded }"), done);
    let none = job("parallelism: 2, completions: 0", "{}");
    assert_eq!(step(&none, ""), "= | 0/0/0 0/0 SuccessCriteriaMet:CompletionsReached | ");
}

#[test]
fn without_completions_the_first_success_is_the_last_start() {
    let queue = job("parallelism: 2", "{}");
    assert_eq!(step(&queue, "{ name: a, phase: Failed, age: 99 }"), "+ + | 2/0/0 0/0+1 | a");
    let one = "{ name: a, phase: Succeeded }\n{ name: b }";
    assert_eq!(step(&queue, one), "= | 1/0/0 0+1/0 | a");
    assert_eq!(
        step(&job("parallelism: 2", "{ succeeded: 1 }"), "{ name: b, phase: Failed }"),
        "= | 0/0/0 1/0+1 SuccessCriteriaMet:CompletionsReached | b"
    );
}

#[test]
fn failures_are_waited_out_and_limited() {
    let spec = "parallelism: 1, completions: 1, backoffLimit: 2";
    assert_eq!(step(&job(spec, "{}"), "{ name: a, phase: Failed, age: 4 }"), "= in 6s | 0/0/0 0/0+1 | a");
    let record = Record { failures: 1, last: Some(ago(90).0) };
    let again = "{ name: b, phase: Failed, age: 5 }";
    assert_eq!(step_with(&job(spec, "{ failed: 1 }"), again, record), "= in 15s | 0/0/0 0/1+1 | b");
    let past = "{ name: c, phase: Failed, age: 99 }\n{ name: d }";
    assert_eq!(
        step(&job(spec, "{ failed: 2 }"), past),
        "stop d | 0/0/1 0/2+2 FailureTarget:BackoffLimitExceeded | c d"
    );
    let target = "{ failed: 3, conditions: [{ type: FailureTarget, status: 'True', reason: BackoffLimitExceeded }] }";
    assert_eq!(step(&job(spec, target), ""), "stop  | 0/0/0 0/3 FailureTarget:BackoffLimitExceeded | ");
    let counted = "{ failed: 2, uncountedTerminatedPods: { failed: [uid-c, uid-gone] } }";
    let seen = "{ name: c, phase: Failed }";
    assert_eq!(
        step(&job(spec, counted), seen),
        "stop  | 0/0/0 0/3+1 FailureTarget:BackoffLimitExceeded | c",
        "what lost its finalizer is counted, what is noted is not noted again"
    );
}

#[test]
fn restarts_within_a_pod_count_where_containers_are_restarted() {
    let mut restarting = job("completions: 1, backoffLimit: 3", "{}");
    let spec = restarting.spec.as_mut().expect("a spec");
    spec.template.spec.as_mut().expect("a pod").restart_policy = Some("OnFailure".into());
    assert_eq!(step(&restarting, "{ name: a, restarts: 2 }"), "= | 1/0/0 0/0 | ");
    let over = "stop a | 0/0/1 0/0+1 FailureTarget:BackoffLimitExceeded | a";
    assert_eq!(step(&restarting, "{ name: a, restarts: 3 }"), over);
}

#[test]
fn time_is_limited_while_active() {
    let started = format!("{{ startTime: '{}' }}", ago(20).0);
    let limited = job("completions: 1, activeDeadlineSeconds: 30", &started);
    assert_eq!(step(&limited, "{ name: a }"), "= in 10s | 1/0/0 0/0 | ");
    let short = job("completions: 1, activeDeadlineSeconds: 20", &started);
    assert_eq!(step(&short, "{ name: a }"), "stop a | 0/0/1 0/0+1 FailureTarget:DeadlineExceeded | a");
}

#[test]
fn a_suspended_job_stands_still() {
    let started = format!("{{ startTime: '{}' }}", ago(20).0);
    let suspended = job("completions: 2, activeDeadlineSeconds: 5, suspend: true", &started);
    assert_eq!(step(&suspended, "{ name: a, ready: 3 }"), "drop a | 0/0/1 0/0 Suspended:JobSuspended | ");
    let pods = tracked("");
    let observed = Observed { job: &suspended, pods: &pods, record: Record::default(), now: now() };
    let decision = decide(&observed).expect("a spec");
    let rest = account(&decision, Outcome { created: 0, deleted: true });
    assert_eq!(rest.status.start_time, None, "the deadline starts anew");
    assert_eq!(rest.events[0].reason, "Suspended");

    let mut resumed = job("completions: 2", "{}");
    resumed.status = Some(rest.status);
    assert_eq!(step(&resumed, ""), "+ | 1/0/0 0/0 !Suspended:JobResumed | ");
}

#[test]
fn deleted_pods_are_replaced_at_once_or_after_their_end() {
    let spec = "parallelism: 1, completions: 1";
    let line = "{ name: a, deleting: true, age: 60 }";
    assert_eq!(step(&job(spec, "{}"), line), "= in 9s | 0/0/1 0/0+1 | a", "as any failure");
    let noted = "{ failed: 1 }";
    let free = line.replace("name: a", "name: free");
    assert_eq!(step(&job(spec, noted), &free), "+ | 1/0/1 0/1 | ");
    let patient = format!("{spec}, podReplacementPolicy: Failed");
    assert_eq!(step(&job(&patient, "{}"), line), "= | 0/0/1 0/0 | ");
    let ended = line.replace("name: a,", "name: a, phase: Failed,");
    assert_eq!(step(&job(&patient, "{}"), &ended), "= in 9s | 0/0/0 0/0+1 | a");
    let free = free.replace("name: free,", "name: free, phase: Failed,");
    assert_eq!(step(&job(&patient, noted), &free), "+ | 1/0/0 0/1 | ");
}

#[test]
fn indexes_run_once_each() {
    let four = job("completionMode: Indexed, parallelism: 3, completions: 4", "{ completedIndexes: '1' }");
    assert_eq!(step(&four, ""), "+0 +2 +3 | 3/0/0 1/0 [1] | ");
    let twice = indexed("a", 0, "ready: 9") + &indexed("b", 0, "") + &indexed("c", 7, "") + "{ name: d }";
    assert_eq!(step(&four, &twice), "drop c d b | 1/1/3 1/0 [1] | ");
    let some = indexed("a", 0, "phase: Succeeded") + &indexed("b", 2, "") + &indexed("e", 9, "phase: Succeeded");
    assert_eq!(step(&four, &some), "+3 | 2/0/0 2/0 [0,1] | a e", "an index beyond the last does not count");
    let rest = indexed("a", 0, "phase: Succeeded")
        + &indexed("b", 2, "phase: Succeeded")
        + &indexed("c", 3, "phase: Succeeded");
    assert_eq!(step(&four, &rest), "= | 0/0/0 4/0 [0-3] SuccessCriteriaMet:CompletionsReached | a b c");
}

#[test]
fn each_index_has_its_own_retries() {
    let spec =
        "completionMode: Indexed, parallelism: 3, completions: 3, backoffLimit: 2147483647, backoffLimitPerIndex: 1";
    let failed = |name: &str, index: i32, failures: i32, age: i32| {
        format!(
            "{{ name: {name}, phase: Failed, age: {age}, annotations: {{ {INDEX}: '{index}', batch.kubernetes.io/job-index-failure-count: '{failures}' }} }}\n"
        )
    };
    let first = failed("a", 0, 0, 4) + &failed("b", 1, 0, 60);
    assert_eq!(step(&job(spec, "{}"), &first), "+1 +2 in 6s | 2/0/0 0/0 {} | ", "the counts are still to be handed on");
    let pods = tracked(&first);
    let job_ = job(spec, "{}");
    let observed = Observed { job: &job_, pods: &pods, record: Record::default(), now: now() };
    let Action::Create(new) = decide(&observed).expect("a spec").action else { panic!("creates") };
    assert_eq!(new[0].failures, Some((1, 0)));
    assert_eq!(new[1].failures, Some((0, 0)));

    let replaced = failed("b", 1, 0, 60) + &indexed("c", 1, "") + &indexed("d", 2, "") + &indexed("e", 0, "");
    assert_eq!(step(&job(spec, "{}"), &replaced), "= | 3/0/0 0/0+1 {} | b");
    let last = failed("c", 1, 1, 60) + &indexed("d", 2, "") + &indexed("e", 0, "phase: Succeeded");
    assert_eq!(step(&job(spec, "{}"), &last), "= | 1/0/0 1/0+1 [0] {1} | c e");
    let end = "{ failedIndexes: '1', completedIndexes: '0' }";
    assert_eq!(
        step(&job(spec, end), &indexed("d", 2, "phase: Succeeded")),
        "stop  | 0/0/0 2/0 [0,2] {1} FailureTarget:FailedIndexes | d"
    );
    let capped = format!("{spec}, maxFailedIndexes: 0");
    assert_eq!(
        step(&job(&capped, "{ failedIndexes: '1' }"), &indexed("d", 2, "")),
        "stop d | 0/0/1 0/0+1 {1} FailureTarget:MaxFailedIndexesExceeded | d"
    );
}

#[test]
fn policies_decide_about_failures_and_success() {
    let rules =
        "podFailurePolicy: { rules: [{ action: Ignore, onPodConditions: [{ type: Ready, status: 'False' }] }] }";
    let ignoring = job(&format!("completions: 1, backoffLimit: 0, {rules}"), "{}");
    assert_eq!(step(&ignoring, "{ name: a, phase: Failed, age: 60 }"), "+ | 1/0/0 0/0 | a");
    let fatal = job(&format!("completions: 2, parallelism: 2, {}", rules.replace("Ignore", "FailJob")), "{}");
    let stopped = "stop b | 0/0/1 0/0+2 FailureTarget:PodFailurePolicy | a b";
    assert_eq!(step(&fatal, "{ name: a, phase: Failed }\n{ name: b, ready: 3 }"), stopped);

    let early = job(
        "completionMode: Indexed, completions: 5, parallelism: 5, successPolicy: { rules: [{ succeededIndexes: '0' }] }",
        "{}",
    );
    let pods = indexed("a", 0, "phase: Succeeded") + &indexed("b", 1, "ready: 1") + &indexed("c", 2, "phase: Failed");
    assert_eq!(
        step(&early, &pods),
        "stop b | 0/0/1 1/0+1 [0] SuccessCriteriaMet:SuccessPolicy | a b c",
        "what is stopped by success has not failed"
    );
}

#[test]
fn the_end_waits_until_all_is_counted_and_gone() {
    let job = job("completions: 1", "{}");
    let pods = tracked("{ name: a, phase: Succeeded }");
    let observed = Observed { job: &job, pods: &pods, record: Record::default(), now: now() };
    let conclude = |released: &[&str], all: bool| {
        let decision = decide(&observed).expect("a spec");
        let account = account(&decision, Outcome { created: 0, deleted: true });
        let status = account.status.clone();
        let released: HashSet<String> = released.iter().map(|uid| uid.to_string()).collect();
        let (status, events) = account.settle(status, &released, all);
        let reasons: Vec<String> = events.into_iter().map(|event| event.reason).collect();
        (told(&status), status.completion_time.is_some(), reasons)
    };
    let met = "0/0/0 0+1/0 SuccessCriteriaMet:CompletionsReached";
    assert_eq!(conclude(&[], false), (met.to_owned(), false, vec![]));
    let done = "0/0/0 1/0 SuccessCriteriaMet:CompletionsReached Complete:CompletionsReached";
    assert_eq!(conclude(&["uid-a"], true), (done.to_owned(), true, vec!["Completed".to_owned()]));
}

/// A cluster in which one Job's pods come and go at random.
struct World {
    job: Job,
    pods: BTreeMap<String, Pod>,
    record: Record,
    now: Timestamp,
    made: usize,
    /// By UID: how each pod that the Job did not drop has ended.
    succeeded: BTreeMap<String, Option<i32>>,
    failed: BTreeSet<String>,
    dropped: BTreeSet<String>,
}

impl World {
    fn new(spec: &str) -> Self {
        World {
            job: job(spec, "{}"),
            pods: BTreeMap::new(),
            record: Record::default(),
            now: now(),
            made: 0,
            succeeded: BTreeMap::new(),
            failed: BTreeSet::new(),
            dropped: BTreeSet::new(),
        }
    }

    /// One reconcile, which may stop after any of its writes.
    fn reconcile(&mut self, steps: u8, losses: &[bool]) {
        if end_of(&self.job).is_some() {
            return;
        }
        let pods: Vec<Arc<Pod>> = self.pods.values().cloned().map(Arc::new).collect();
        let job = self.job.clone();
        let observed = Observed { job: &job, pods: &pods, record: self.record, now: self.now };
        let decision = decide(&observed).expect("a spec");
        match &decision.action {
            Action::Nothing => {}
            Action::Create(new) => {
                let template = pod::template(&job, decision.wish.indexed);
                for new in new {
                    self.made += 1;
                    let mut pod = pod::pod(&template, &job, new);
                    let name = format!("p{:04}", self.made);
                    pod.metadata.uid = Some(format!("uid-{name}"));
                    pod.metadata.name = Some(name.clone());
                    pod.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
                    pod.status.get_or_insert_default().phase = Some("Pending".into());
                    self.pods.insert(name, pod);
                }
            }
            Action::Drop(pods) => pods.iter().for_each(|pod| {
                self.dropped.insert(uid(pod).to_owned());
                self.pods.remove(pod.metadata.name.as_deref().unwrap_or_default());
            }),
            Action::Stop(pods) => pods.iter().for_each(|pod| {
                let pod = self.pods.get_mut(pod.metadata.name.as_deref().unwrap_or_default()).expect("there");
                pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            }),
        }
        if steps == 0 {
            return;
        }
        let outcome = outcome_of(&decision);
        let mut account = account(&decision, outcome);
        self.record = decision.facts.record;
        self.job.status = Some(account.status.clone());
        if steps == 1 {
            return;
        }
        let release = std::mem::take(&mut account.release);
        let mut released = HashSet::new();
        for (place, pod) in release.iter().enumerate() {
            if losses.get(place % losses.len().max(1)) == Some(&true) {
                continue;
            }
            released.insert(uid(pod).to_owned());
            if let Some(pod) = self.pods.get_mut(pod.metadata.name.as_deref().unwrap_or_default()) {
                pod.metadata.finalizers = None;
            }
        }
        if steps == 2 {
            return;
        }
        let all = released.len() == release.len();
        let (status, _) = account.settle(account_status(&self.job), &released, all);
        self.job.status = Some(status);
    }

    /// A pod moves on: it starts, succeeds, fails, or is deleted by somebody.
    fn happen(&mut self, which: usize, what: u8) {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        let Some(name) = names.get(which % names.len().max(1)) else { return };
        let pod = self.pods.get_mut(name).expect("there");
        let gone = pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod);
        let phase = |pod: &mut Pod, phase: &str| pod.status.get_or_insert_default().phase = Some(phase.into());
        match what {
            0 | 1 if !gone => phase(pod, "Running"),
            2..=5 if !gone => {
                phase(pod, "Succeeded");
                self.succeeded.insert(uid(pod).to_owned(), index_of(pod));
            }
            6 if !gone => {
                phase(pod, "Failed");
                self.failed.insert(uid(pod).to_owned());
            }
            7 if !gone => {
                pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
                self.failed.insert(uid(pod).to_owned());
            }
            _ if gone && !is_tracked(pod) => {
                self.pods.remove(name);
            }
            _ => {}
        }
    }

    fn running(&self) -> usize {
        self.pods.values().filter(|pod| pods::is_active(pod)).count()
    }
}

fn account_status(job: &Job) -> JobStatus {
    job.status.clone().unwrap_or_default()
}

type Moment = (usize, u8, u8, Vec<bool>);

fn history() -> impl Strategy<Value = Vec<Moment>> {
    let losses = proptest::collection::vec(any::<bool>(), 1..4);
    proptest::collection::vec((0usize..50, 0u8..9, 0u8..5, losses), 0..120)
}

fn live(world: &mut World, history: Vec<Moment>, parallelism: usize) {
    for (which, what, steps, losses) in history {
        world.happen(which, what);
        world.now += Duration::from_secs(700);
        world.reconcile(steps, &losses);
        assert!(world.running() <= parallelism, "{} run", world.running());
    }
    // Then all goes well.
    for _ in 0..200 {
        let names: Vec<String> = world.pods.keys().cloned().collect();
        (0..names.len()).for_each(|which| world.happen(which, 3));
        world.now += Duration::from_secs(700);
        world.reconcile(9, &[false]);
        assert!(world.running() <= parallelism);
        if end_of(&world.job).is_some() {
            return;
        }
        // Pods that are deleted come to their end.
        world.pods.retain(|_, pod| pod.metadata.deletion_timestamp.is_none() || is_tracked(pod));
    }
    panic!("no end: {}", told(&account_status(&world.job)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Never more than `parallelism` run; the Job completes with exactly the wanted successes; each pod counts once,
    /// although any write may be the last before a crash, and some finalizers are not removed at first.
    #[test]
    fn a_job_converges(history in history(), parallelism in 1i32..5, completions in 1i32..8) {
        let spec = format!("parallelism: {parallelism}, completions: {completions}, backoffLimit: 1000");
        let mut world = World::new(&spec);
        live(&mut world, history, parallelism as usize);
        let status = account_status(&world.job);
        prop_assert!(condition(&status, "Complete").is_some());
        prop_assert!(status.succeeded.unwrap_or(0) >= completions);
        prop_assert_eq!(status.succeeded.unwrap_or(0) as usize, world.succeeded.len());
        prop_assert_eq!(status.failed.unwrap_or(0) as usize, world.failed.len());
        prop_assert_eq!(status.active, None);
    }

    /// The same of an Indexed Job: every index succeeds.
    #[test]
    fn an_indexed_job_converges(history in history(), parallelism in 1i32..5, completions in 1i32..8, by_index in any::<bool>()) {
        let limit = if by_index { ", backoffLimitPerIndex: 1000" } else { "" };
        let spec = format!("completionMode: Indexed, parallelism: {parallelism}, completions: {completions}, backoffLimit: 1000{limit}");
        let mut world = World::new(&spec);
        live(&mut world, history, parallelism as usize);
        let status = account_status(&world.job);
        prop_assert!(condition(&status, "Complete").is_some());
        prop_assert_eq!(status.succeeded, Some(completions));
        let indexes: BTreeSet<i32> = world.succeeded.values().flatten().copied().collect();
        prop_assert_eq!(indexes.len() as i32, completions);
        prop_assert_eq!(status.failed.unwrap_or(0) as usize, world.failed.len());
    }
}
