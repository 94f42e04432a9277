//! The pod's conditions, in upstream's order, with reasons and messages as it words them. A condition's transition time moves
//! only when its status does.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::pod::resize;
use crate::podutil;

/// The conditions that the kubelet decides; others are kept as they are.
const OWNED: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// Own conditions that exist only while they are true.
pub const TRANSIENT: [&str; 2] = [resize::PENDING, resize::IN_PROGRESS];

fn is_own(kind: &str) -> bool {
    OWNED.contains(&kind) || TRANSIENT.contains(&kind)
}

struct Verdict {
    ok: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn plain(ok: bool) -> Self {
        Verdict { ok, reason: None, message: None }
    }

    fn of(ok: bool, reason: &'static str, message: Option<String>) -> Self {
        Verdict { ok, reason: Some(reason), message }
    }
}

pub fn conditions(inputs: &Inputs<'_>, status: &PodStatus, sandbox_ready: bool) -> Vec<PodCondition> {
    let Inputs { pod, previous, now, .. } = *inputs;
    let before = previous.conditions.as_deref().unwrap_or_default();
    let in_api = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let containers_ready = containers_ready(pod, status);
    let ready = ready(pod, in_api, &containers_ready);
    let verdicts = [
        ("PodReadyToStartContainers", Verdict::plain(sandbox_ready)),
        ("Initialized", initialized(pod, status)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::plain(true)),
    ];
    let mut conditions: Vec<PodCondition> = verdicts
        .into_iter()
        .map(|(kind, verdict)| {
            let known = |list: &[PodCondition]| list.iter().find(|condition| condition.type_ == kind).cloned();
            condition(kind, verdict, known(before).or_else(|| known(in_api)), pod, now)
        })
        .collect();
    conditions.extend(inputs.resize.iter().map(|condition| {
        let known = before.iter().chain(in_api).find(|known| known.type_ == condition.type_);
        let since = known.and_then(|known| known.last_transition_time.clone());
        PodCondition { last_transition_time: since.or(condition.last_transition_time.clone()), ..condition.clone() }
    }));
    let foreign = in_api.iter().filter(|condition| !is_own(&condition.type_));
    conditions.extend(foreign.cloned());
    conditions
}

fn condition(kind: &str, verdict: Verdict, before: Option<PodCondition>, pod: &Pod, now: Timestamp) -> PodCondition {
    let status = if verdict.ok { "True" } else { "False" };
    let unchanged = before.filter(|before| before.status == status);
    let since = unchanged.as_ref().and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: since.or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

fn initialized(pod: &Pod, status: &PodStatus) -> Verdict {
    if status.phase.as_deref() == Some("Succeeded") {
        return Verdict::of(true, "PodCompleted", None);
    }
    let main_made = status.container_statuses.iter().flatten().any(|status| status.container_id.is_some());
    let list = status.init_container_statuses.as_deref().unwrap_or_default();
    let mut incomplete = Vec::new();
    for container in podutil::init_containers(pod) {
        let Some(status) = list.iter().find(|status| status.name == container.name) else { continue };
        let done = if podutil::is_sidecar(container) { status.started == Some(true) } else { status.ready };
        if !done && !main_made {
            incomplete.push(container.name.as_str());
        }
    }
    if incomplete.is_empty() {
        Verdict::plain(true)
    } else {
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Verdict::of(false, "ContainersNotInitialized", Some(message))
    }
}

fn containers_ready(pod: &Pod, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return Verdict::of(false, "PodCompleted", None),
        Some("Failed") => return Verdict::of(false, "PodFailed", None),
        _ => {}
    }
    let sidecars = podutil::init_containers(pod).iter().filter(|container| podutil::is_sidecar(container));
    let main = podutil::spec(pod).containers.iter();
    let of = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        list.as_ref().and_then(|list| list.iter().find(|status| status.name == name)).map(|status| status.ready)
    };
    let states = sidecars
        .map(|c| (&c.name, of(&status.init_container_statuses, &c.name)))
        .chain(main.map(|c| (&c.name, of(&status.container_statuses, &c.name))));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for (name, ready) in states {
        match ready {
            None => unknown.push(name.as_str()),
            Some(false) => unready.push(name.as_str()),
            Some(true) => {}
        }
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unready.is_empty() {
        messages.push(format!("containers with unready status: [{}]", unready.join(" ")));
    }
    if messages.is_empty() {
        Verdict::plain(true)
    } else {
        Verdict::of(false, "ContainersNotReady", Some(messages.join(", ")))
    }
}

/// Ready is ContainersReady and every readiness gate that the spec names.
fn ready(pod: &Pod, in_api: &[PodCondition], containers_ready: &Verdict) -> Verdict {
    if !containers_ready.ok {
        return Verdict { ok: false, reason: containers_ready.reason, message: containers_ready.message.clone() };
    }
    let mut messages = Vec::new();
    for gate in podutil::spec(pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match in_api.iter().find(|condition| condition.type_ == *kind) {
            None => messages.push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(condition) if condition.status != "True" => messages
                .push(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", condition.status)),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        Verdict::plain(true)
    } else {
        Verdict::of(false, "ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}
