//! Fixtures: what the runtime has in one line, the status in one line.

use super::*;
use crate::pods::RunState;
use crate::runtime::ContainerView;
use crate::runtime::observed::SandboxView;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn view(name: &str, id: &str, state: &str, restarts: u32) -> ContainerView {
    let exit = state.strip_prefix("exit").map(|code| code.parse().unwrap());
    ContainerView {
        name: name.to_owned(),
        id: id.to_owned(),
        sandbox_id: "s".to_owned(),
        restart_count: restarts,
        state: match state {
            "run" => RunState::Running,
            "created" => RunState::Created,
            _ => RunState::Exited,
        },
        hash: None,
        created_at: at(1),
        started_at: Some(at(2)),
        finished_at: exit.map(|_| at(3)),
        exit_code: exit.unwrap_or(0),
        reason: exit.map(|code| if code == 0 { "Completed" } else { "Error" }).unwrap_or_default().to_owned(),
        message: String::new(),
        image: "busybox:1".to_owned(),
        image_ref: "sha256:0".to_owned(),
        log_path: Default::default(),
        grace_seconds: None,
        message_file: None,
        message_from_logs: false,
    }
}

/// `a:run a:exit1`, newest first; restart counts follow from the number of containers of a name.
fn observed(text: &str) -> Observed {
    let words: Vec<(&str, &str)> = text.split(' ').filter_map(|word| word.split_once(':')).collect();
    let containers = words.iter().enumerate().map(|(index, (name, state))| {
        let older = words[index + 1..].iter().filter(|(other, _)| other == name).count();
        view(name, &format!("{name}{older}"), state, u32::try_from(older).unwrap())
    });
    let sandbox = SandboxView {
        id: "s".to_owned(),
        attempt: 0,
        ready: !text.contains("dead"),
        host_network: false,
        ips: vec!["10.0.0.5".parse().unwrap()],
        created_at: at(0),
    };
    let sandboxes = if text == "nothing" { Vec::new() } else { vec![sandbox] };
    Observed { sandboxes, containers: containers.collect() }
}

struct Case {
    pod: Pod,
    state: &'static str,
    verdicts: Vec<(&'static str, Verdicts)>,
    waiting: Vec<(&'static str, &'static str)>,
    previous: PodStatus,
    ending: Ending,
}

impl Case {
    fn new(policy: &str, spec: serde_json::Value, state: &'static str) -> Self {
        let mut json = json!({"metadata": {"name": "p", "generation": 4}, "spec": {"restartPolicy": policy}});
        json["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        Case {
            pod: serde_json::from_value(json).unwrap(),
            state,
            verdicts: Vec::new(),
            waiting: Vec::new(),
            previous: PodStatus::default(),
            ending: Ending::default(),
        }
    }

    fn build(&self) -> PodStatus {
        let verdicts = self.verdicts.iter().map(|(id, verdicts)| ((*id).to_owned(), *verdicts)).collect();
        let why = |reason: &str| ContainerStateWaiting { reason: Some(reason.to_owned()), message: None };
        let waiting = self.waiting.iter().map(|(name, reason)| ((*name).to_owned(), why(reason))).collect();
        build(&Inputs {
            pod: &self.pod,
            observed: &observed(self.state),
            verdicts: &verdicts,
            waiting: &waiting,
            starting: None,
            previous: &self.previous,
            node_ips: &["192.0.2.1".parse().unwrap()],
            runtime_name: "containerd",
            messages: &HashMap::new(),
            ending: &self.ending,
            actuated: &self.pod,
            resize: Vec::new(),
            now: at(100),
        })
    }

    fn check(&self, expected: &str) -> PodStatus {
        let status = self.build();
        assert_eq!(render(&status), expected, "{}", self.state);
        status
    }
}

/// `Phase [Conditions that are true] container=state(last)rN+started+ready …`
fn render(status: &PodStatus) -> String {
    let short = |state: &k8s_openapi::api::core::v1::ContainerState| match state {
        s if s.running.is_some() => "run".to_owned(),
        s if s.terminated.is_some() => {
            let t = s.terminated.as_ref().unwrap();
            format!("{}{}", t.reason.as_deref().unwrap_or("-"), t.exit_code)
        }
        s => s.waiting.as_ref().map_or_else(|| "-".to_owned(), |w| w.reason.clone().unwrap()),
    };
    let truths = |c: &k8s_openapi::api::core::v1::PodCondition| {
        (c.status == "True").then(|| c.type_.chars().filter(|c| c.is_uppercase()).collect::<String>())
    };
    let conditions: Vec<String> = status.conditions.as_ref().unwrap().iter().filter_map(truths).collect();
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let containers = lists.into_iter().flatten().flatten().map(|c| {
        let last = c.last_state.as_ref().filter(|state| state.terminated.is_some());
        let last = last.map(|state| format!("({})", short(state))).unwrap_or_default();
        let restarts = if c.restart_count > 0 { format!("r{}", c.restart_count) } else { String::new() };
        let flags = format!("{}{}", if c.started == Some(true) { "+s" } else { "" }, if c.ready { "+r" } else { "" });
        format!("{}={}{last}{restarts}{flags}", c.name, short(c.state.as_ref().unwrap()))
    });
    let containers: Vec<String> = containers.collect();
    format!("{} [{}] {}", status.phase.as_deref().unwrap(), conditions.join(" "), containers.join(" "))
}

fn two() -> serde_json::Value {
    json!({"containers": [{"name": "b", "image": "i"}, {"name": "a", "image": "i"}]})
}

fn one() -> serde_json::Value {
    json!({"containers": [{"name": "a", "image": "i"}]})
}

fn with_init() -> serde_json::Value {
    json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]})
}

#[test]
fn a_pod_comes_up() {
    Case::new("Always", two(), "nothing").check("Pending [I PS] a=ContainerCreating b=ContainerCreating");
    Case::new("Always", two(), "a:created").check("Pending [PRTSC I PS] a=ContainerCreating b=ContainerCreating");
    Case::new("Always", two(), "a:run").check("Pending [PRTSC I PS] a=run+s+r b=ContainerCreating");
    let status = Case::new("Always", two(), "b:run a:run").check("Running [PRTSC I R CR PS] a=run+s+r b=run+s+r");
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.5"));
    assert_eq!((status.host_ip.as_deref(), status.observed_generation), (Some("192.0.2.1"), Some(4)));
}

#[test]
fn init_containers() {
    let check =
        |policy: &str, state: &'static str, expected: &str| drop(Case::new(policy, with_init(), state).check(expected));
    check("Always", "-", "Pending [PRTSC PS] i=PodInitializing a=PodInitializing");
    check("Always", "i:run", "Pending [PRTSC PS] i=run+s a=PodInitializing");
    check("Always", "i:exit0", "Pending [PRTSC I PS] i=Completed0+r a=PodInitializing");
    check("Always", "i:exit1", "Pending [PRTSC PS] i=Error1 a=PodInitializing");
    check("Never", "i:exit1", "Failed [PRTSC PS] i=Error1 a=PodInitializing");
    check("Always", "a:run i:exit0", "Running [PRTSC I R CR PS] i=Completed0+r a=run+s+r");
    let mut over = Case::new("Never", with_init(), "dead i:exit1");
    over.ending.finished = true;
    over.check("Failed [PS] i=Error1 a=PodInitializing");
    let mut over = Case::new("Never", two(), "dead a:exit0");
    over.ending.finished = true;
    over.check("Failed [I PS] a=Completed0 b=ContainerStatusUnknown137");
    let mut crashing = Case::new("Always", with_init(), "i:exit1");
    crashing.waiting = vec![("i", "CrashLoopBackOff")];
    crashing.check("Pending [PRTSC PS] i=CrashLoopBackOff(Error1) a=PodInitializing");
}

#[test]
fn restarts_and_ends() {
    let check =
        |policy: &str, state: &'static str, expected: &str| drop(Case::new(policy, one(), state).check(expected));
    check("Always", "a:exit1", "Running [PRTSC I PS] a=Error1");
    check("Always", "a:run a:exit1", "Running [PRTSC I R CR PS] a=run(Error1)r1+s+r");
    check("OnFailure", "a:exit1", "Running [PRTSC I PS] a=Error1");
    check("OnFailure", "a:exit0", "Succeeded [PRTSC I PS] a=Completed0");
    check("Never", "a:exit2", "Failed [PRTSC I PS] a=Error2");
    let mut crashing = Case::new("Always", one(), "a:exit1 a:exit1");
    crashing.waiting = vec![("a", "CrashLoopBackOff")];
    crashing.check("Running [PRTSC I PS] a=CrashLoopBackOff(Error1)r1");
    let mut over = Case::new("Always", one(), "dead a:exit137");
    over.ending = Ending { finished: true, failed: None };
    over.check("Failed [I PS] a=Error137");
    over.ending.failed = Some(("DeadlineExceeded".to_owned(), "late".to_owned()));
    let status = over.check("Failed [I PS] a=Error137");
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("DeadlineExceeded"), Some("late")));
}

#[test]
fn a_container_that_vanished_is_remembered() {
    let mut case = Case::new("Always", one(), "-");
    case.previous = Case::new("Always", one(), "a:run").build();
    let status = case.check("Running [PRTSC I PS] a=ContainerCreating(ContainerStatusUnknown137)r1");
    assert_eq!(status.start_time, case.previous.start_time);
    case.previous = Case::new("Never", one(), "a:exit0").build();
    case.pod.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    case.check("Succeeded [PRTSC I PS] a=Completed0");
}

#[test]
fn probes_decide_readiness() {
    let probed = json!({"containers": [{"name": "a", "readinessProbe": {}, "startupProbe": {}}]});
    let mut case = Case::new("Always", probed, "a:run");
    case.check("Running [PRTSC I PS] a=run");
    case.verdicts = vec![("a0", Verdicts { startup: Some(true), ..Verdicts::default() })];
    case.check("Running [PRTSC I PS] a=run+s");
    case.verdicts[0].1.readiness = Some(true);
    case.check("Running [PRTSC I R CR PS] a=run+s+r");
}

#[test]
fn readiness_gates_and_foreign_conditions() {
    let gated = json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]});
    let mut case = Case::new("Always", gated, "a:run");
    let ready =
        |status: &PodStatus| status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap().clone();
    let before = ready(&case.check("Running [PRTSC I CR PS] a=run+s+r"));
    assert_eq!(before.reason.as_deref(), Some("ReadinessGatesNotReady"));
    let condition = serde_json::from_value(json!({"type": "x/y", "status": "True"})).unwrap();
    case.pod.status = Some(PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() });
    let status = case.build();
    assert_eq!(ready(&status).status, "True");
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "x/y"));
}

#[test]
fn sidecars_delay_the_end_and_count_for_readiness() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let check = |state: &'static str, expected: &str| drop(Case::new("Never", spec.clone(), state).check(expected));
    check("s:run", "Pending [PRTSC I PS] s=run+s+r a=PodInitializing");
    check("a:run s:run", "Running [PRTSC I R CR PS] s=run+s+r a=run+s+r");
    check("a:exit0 s:run", "Running [PRTSC I PS] s=run+s+r a=Completed0");
    check("a:exit0 s:exit0", "Succeeded [PRTSC I PS] s=Completed0 a=Completed0");
}
