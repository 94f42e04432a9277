//! The pod's status as the API shows it: a pure function of spec, runtime state, probe verdicts and the status before.
//!
//! Words and order follow upstream's `generateAPIPodStatus`, since people and tests wait for them.

pub mod conditions;
pub mod containers;
pub mod phase;
pub mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateWaiting, HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::plan::Verdicts;
use crate::podutil;
use crate::runtime::Observed;

/// Whether and how the pod is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Nothing of the pod runs any more and nothing will.
    pub finished: bool,
    /// The node itself ends the pod: phase Failed with this reason and message (DeadlineExceeded, Evicted …).
    pub failed: Option<(String, String)>,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    /// By container id.
    pub verdicts: &'a HashMap<String, Verdicts>,
    /// Why containers that ought to run do not, by name: ErrImagePull, CrashLoopBackOff …
    pub waiting: &'a HashMap<String, ContainerStateWaiting>,
    /// Containers, by id, whose postStart hook is under way: not started yet.
    pub starting: Option<&'a str>,
    /// What was determined last, or the API's word after a restart.
    pub previous: &'a PodStatus,
    pub node_ips: &'a [IpAddr],
    /// The scheme of container ids: `containerd`.
    pub runtime_name: &'a str,
    /// Termination messages read from files, by container id.
    pub messages: &'a HashMap<String, String>,
    pub ending: &'a Ending,
    /// The pod with the resources that its running containers have; `pod` has those that are allocated.
    pub actuated: &'a Pod,
    /// What there is to say of a resize.
    pub resize: Vec<PodCondition>,
    pub now: Timestamp,
}

pub fn build(inputs: &Inputs<'_>) -> PodStatus {
    let Inputs { pod, previous, observed, ending, .. } = *inputs;
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        qos_class: Some(podutil::qos_class(pod).to_owned()),
        start_time: previous.start_time.clone().or(Some(Time(inputs.now))),
        nominated_node_name: previous.nominated_node_name.clone(),
        ..PodStatus::default()
    };
    addresses(&mut status, inputs);
    status.init_container_statuses = containers::init(inputs);
    status.container_statuses = Some(containers::main(inputs));
    status.ephemeral_container_statuses = containers::ephemeral(inputs);

    let kept = previous.phase.as_deref().filter(|phase| podutil::is_terminal_phase(phase));
    let phase = match (&ending.failed, kept) {
        (_, Some(kept)) => kept.to_owned(),
        (Some(_), _) => "Failed".to_owned(),
        _ => phase::phase(pod, &status, ending.finished).to_owned(),
    };
    if let Some((reason, message)) = &ending.failed {
        status.reason = Some(reason.clone());
        status.message = Some(message.clone()).filter(|message| !message.is_empty());
    } else if kept.is_some() {
        (status.reason, status.message) = (previous.reason.clone(), previous.message.clone());
    }
    status.phase = Some(phase);
    let sandbox_ready = observed.ready_sandbox().is_some_and(|sandbox| sandbox.host_network || !sandbox.ips.is_empty());
    status.conditions = Some(conditions::conditions(inputs, &status, sandbox_ready));
    status
}

fn addresses(status: &mut PodStatus, inputs: &Inputs<'_>) {
    let Inputs { pod, observed, previous, node_ips, ending, .. } = *inputs;
    status.host_ip = node_ips.first().map(IpAddr::to_string);
    status.host_ips = Some(node_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect());
    let ips: Vec<String> = if podutil::is_host_network(pod) {
        node_ips.iter().map(IpAddr::to_string).collect()
    } else {
        let sandbox = observed.ready_sandbox().or(observed.sandboxes.first());
        sandbox.map(|sandbox| sandbox.ips.iter().map(IpAddr::to_string).collect()).unwrap_or_default()
    };
    if ips.is_empty() && (ending.finished || podutil::deleted_at(pod).is_some()) {
        // A pod that ends keeps the addresses that it had.
        (status.pod_ip, status.pod_ips) = (previous.pod_ip.clone(), previous.pod_ips.clone());
    } else if !ips.is_empty() {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
}
