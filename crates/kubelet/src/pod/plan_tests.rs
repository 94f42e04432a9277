//! Fixtures: a pod in one line each, what the runtime has, and the plan as text.

use super::*;
use crate::runtime::observed::SandboxView;

struct Open;
impl Gate for Open {
    fn blocked(&self, _: &str, _: Option<&ContainerView>, _: Timestamp) -> Option<Timestamp> {
        None
    }
}

struct Closed(i64);
impl Gate for Closed {
    fn blocked(&self, _: &str, _: Option<&ContainerView>, _: Timestamp) -> Option<Timestamp> {
        Timestamp::from_second(self.0).ok()
    }
}

fn pod(policy: &str, init: &[&str], main: &[&str]) -> Pod {
    let container = |text: &&str| {
        let (name, sidecar) = text.strip_suffix('*').map_or((*text, false), |name| (name, true));
        let (name, probed) = name.strip_suffix('?').map_or((name, false), |name| (name, true));
        let mut json = serde_json::json!({"name": name, "image": "i"});
        if sidecar {
            json["restartPolicy"] = "Always".into();
        }
        if probed {
            json["startupProbe"] = serde_json::json!({"tcpSocket": {"port": 1}});
        }
        json
    };
    let list = |names: &[&str]| names.iter().map(container).collect::<Vec<_>>();
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p"},
        "spec": {"restartPolicy": policy, "initContainers": list(init), "containers": list(main)},
    }))
    .unwrap()
}

/// `a:run b:exit1 c:created d:unknown`, all in one ready sandbox unless `dead` is among the words.
fn observed(text: &str) -> Observed {
    let mut observed = Observed::default();
    if text == "nothing" {
        return observed;
    }
    observed.sandboxes.push(SandboxView {
        id: "s".to_owned(),
        attempt: 0,
        ready: !text.split(' ').any(|word| word == "dead"),
        host_network: false,
        ips: vec!["10.0.0.1".parse().unwrap()],
        created_at: Timestamp::UNIX_EPOCH,
    });
    for (name, state) in text.split(' ').filter_map(|word| word.split_once(':')) {
        let exit = state.strip_prefix("exit").map(|code| code.parse().unwrap());
        observed.containers.push(ContainerView {
            name: name.to_owned(),
            id: format!("id-{name}"),
            sandbox_id: "s".to_owned(),
            restart_count: 0,
            state: match state {
                "run" | "old" => RunState::Running,
                "created" => RunState::Created,
                "unknown" => RunState::Unknown,
                _ => RunState::Exited,
            },
            hash: Some(if state == "old" {
                0
            } else {
                container_hash(&Container {
                    name: name.to_owned(),
                    image: Some("i".to_owned()),
                    ..Container::default()
                })
            }),
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code: exit.unwrap_or(0),
            reason: String::new(),
            message: String::new(),
            image: String::new(),
            image_ref: String::new(),
            log_path: Default::default(),
            grace_seconds: None,
            message_file: None,
            message_from_logs: false,
        });
    }
    observed
}

fn render(plan: &Plan) -> String {
    let words: Vec<String> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::StopSandboxes => "stop".to_owned(),
            Action::CreateSandbox { attempt } => format!("sandbox{attempt}"),
            Action::Kill { name, reason, .. } => format!("kill-{name}-{reason:?}"),
            Action::Start { kind, name } => format!("start-{name}-{kind:?}"),
            Action::Resize => "resize".to_owned(),
            Action::Finish => "finish".to_owned(),
        })
        .collect();
    words.join(" ")
}

/// Nothing is resized.
fn still() -> Resize {
    Resize::load(Default::default(), &Pod::default())
}

fn check(pod: &Pod, state: &str, verdicts: &[(&str, Verdicts)], expected: &str) {
    let verdicts = verdicts.iter().map(|(name, verdicts)| (format!("id-{name}"), *verdicts)).collect();
    let observed = observed(state);
    let inputs = Inputs {
        pod,
        observed: &observed,
        verdicts: &verdicts,
        gate: &Open,
        resize: &still(),
        now: Timestamp::UNIX_EPOCH,
    };
    assert_eq!(render(&plan(&inputs)), expected, "{state}");
}

#[test]
fn a_plain_pod_from_nothing_to_running_and_back() {
    let pod = pod("Always", &[], &["a", "b"]);
    check(&pod, "nothing", &[], "sandbox0");
    check(&pod, "-", &[], "start-a-Main start-b-Main");
    check(&pod, "a:run", &[], "start-b-Main");
    check(&pod, "a:run b:run", &[], "");
    check(&pod, "a:run b:exit0", &[], "start-b-Main");
    check(&pod, "a:run b:unknown", &[], "kill-b-Unknown start-b-Main");
    check(&pod, "a:created b:run", &[], "start-a-Main");
    check(&pod, "a:run b:old", &[], "kill-b-Changed");
    check(&pod, "dead a:run b:exit0", &[], "stop sandbox1");
}

#[test]
fn restart_policies() {
    let never = pod("Never", &[], &["a", "b"]);
    check(&never, "a:exit1 b:run", &[], "");
    check(&never, "a:exit1 b:exit0", &[], "finish");
    check(&never, "dead a:exit0", &[], "finish");
    check(&never, "dead", &[], "sandbox1");
    let on_failure = pod("OnFailure", &[], &["a", "b"]);
    check(&on_failure, "a:exit0 b:exit1", &[], "start-b-Main");
    check(&on_failure, "a:exit0 b:exit0", &[], "finish");
    check(&on_failure, "dead a:exit0 b:exit0", &[], "finish");
    check(&on_failure, "dead a:exit0 b:run", &[], "stop sandbox1");
}

#[test]
fn init_containers_run_one_after_another() {
    let pod = pod("Always", &["i", "j"], &["a"]);
    check(&pod, "-", &[], "start-i-Init");
    check(&pod, "i:run", &[], "");
    check(&pod, "i:exit0", &[], "start-j-Init");
    check(&pod, "i:exit0 j:exit1", &[], "start-j-Init");
    check(&pod, "i:exit0 j:exit0", &[], "start-a-Main");
    // Init containers may have been collected by then.
    check(&pod, "a:exit1", &[], "start-a-Main");
    let never = super::tests::pod("Never", &["i"], &["a"]);
    check(&never, "i:exit1", &[], "finish");
}

#[test]
fn sidecars_start_in_order_stay_up_and_do_not_keep_the_pod_alive() {
    let pod = pod("Never", &["s?*", "i"], &["a"]);
    check(&pod, "s:run", &[], "");
    let up = Verdicts { startup: Some(true), ..Verdicts::default() };
    check(&pod, "s:run", &[("s", up)], "start-i-Init");
    check(&pod, "s:exit0", &[], "start-s-Init");
    check(&pod, "s:run i:exit0", &[("s", up)], "start-a-Main");
    check(&pod, "s:exit1 i:exit0 a:run", &[], "start-s-Init");
    check(&pod, "s:run i:exit0 a:exit0", &[("s", up)], "finish");
}

#[test]
fn probes_kill() {
    let dead = Verdicts { liveness: Some(false), ..Verdicts::default() };
    let slow = Verdicts { startup: Some(false), ..Verdicts::default() };
    check(&pod("Always", &[], &["a"]), "a:run", &[("a", dead)], "kill-a-Liveness");
    check(&pod("Always", &[], &["a"]), "a:run", &[("a", slow)], "kill-a-Startup");
    check(&pod("Never", &[], &["a", "b"]), "a:run b:run", &[("a", dead)], "kill-a-Liveness");
    check(&pod("Never", &[], &["a"]), "a:run", &[("a", dead)], "kill-a-Liveness finish");
}

#[test]
fn rules_on_exit_codes_override_the_policy() {
    let mut pod = pod("Never", &[], &["a"]);
    pod.spec.as_mut().unwrap().containers[0] = serde_json::from_value(serde_json::json!({
        "name": "a", "image": "i", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
    }))
    .unwrap();
    check(&pod, "a:exit42", &[], "start-a-Main");
    check(&pod, "a:exit1", &[], "finish");
}

#[test]
fn a_closed_gate_gives_a_time_instead_of_an_action() {
    let (pod, observed) = (pod("Always", &[], &["a"]), observed("a:exit1"));
    let verdicts = HashMap::new();
    let inputs = Inputs {
        pod: &pod,
        observed: &observed,
        verdicts: &verdicts,
        gate: &Closed(10),
        resize: &still(),
        now: Timestamp::UNIX_EPOCH,
    };
    let plan = plan(&inputs);
    assert_eq!((render(&plan).as_str(), plan.wake_at), ("", Timestamp::from_second(10).ok()));
}

proptest::proptest! {
    /// Carrying out plans with containers that come up always ends in a pod that needs nothing more.
    #[test]
    fn plans_converge(main in 1usize..4, init in 0usize..4, sidecars in proptest::collection::vec(proptest::bool::ANY, 4)) {
        let names = |prefix: &str, count: usize, star: bool| -> Vec<String> {
            (0..count).map(|n| format!("{prefix}{n}{}", if star && sidecars[n] { "*" } else { "" })).collect()
        };
        let (init, main) = (names("i", init, true), names("m", main, false));
        let borrowed = |list: &[String]| list.iter().map(|name| name.clone().leak() as &str).collect::<Vec<_>>();
        let pod = pod("Always", &borrowed(&init), &borrowed(&main));
        let (mut state, verdicts) = (observed("nothing"), HashMap::new());
        let mut steps = 0;
        loop {
            let inputs = Inputs { pod: &pod, observed: &state, verdicts: &verdicts, gate: &Open, resize: &still(), now: Timestamp::UNIX_EPOCH };
            let plan = plan(&inputs);
            let Some(action) = plan.actions.first() else { break };
            match action {
                Action::CreateSandbox { .. } => state = observed("-"),
                Action::Start { kind, name } => {
                    let once = *kind == ContainerKind::Init
                        && !podutil::is_sidecar(podutil::find_container(&pod, name).unwrap().1);
                    let more = observed(&format!("{name}:{}", if once { "exit0" } else { "run" }));
                    state.containers.splice(0..0, more.containers);
                }
                other => panic!("unexpected {other:?}"),
            }
            steps += 1;
            proptest::prop_assert!(steps <= init.len() + main.len() + 1);
        }
        proptest::prop_assert!(state.running().count() >= main.len());
    }
}
