//! DefaultPreemption: whom to remove so that a more important pod fits.
//!
//! For nodes where that can help, all less important pods are taken away in thought and given back one by one, the most
//! important first, as long as the pod still fits; whoever cannot be given back is a victim. The node whose victims are
//! missed least is chosen.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use rand::Rng;

use crate::budget::Budgets;
use crate::cluster::Cluster;
use crate::decide::Decider;
use crate::diagnosis::{Diagnosis, summary};
use crate::framework::Rejection;
use crate::pod::PodInfo;

/// Nodes looked at: this share of those where it may help …
const SHARE_PERCENT: usize = 10;
/// … but at least so many.
const AT_LEAST: usize = 100;

#[derive(Debug)]
pub struct Plan {
    pub slot: u32,
    pub victims: Vec<Arc<PodInfo>>,
}

struct Candidate {
    plan: Plan,
    violations: usize,
}

/// The plan, or why there is none, in upstream's words.
pub fn plan(
    decider: &mut Decider,
    cluster: &mut Cluster,
    pod: &PodInfo,
    diagnosis: &Diagnosis,
    budgets: &Budgets,
    rng: &mut impl Rng,
) -> Result<Plan, String> {
    eligible(cluster, pod)?;
    let hopeful: Vec<u32> =
        diagnosis.rejected.iter().filter(|rejected| rejected.why.resolvable).map(|rejected| rejected.slot).collect();
    let wanted = (hopeful.len() * SHARE_PERCENT / 100).max(AT_LEAST);
    let offset = if hopeful.is_empty() { 0 } else { rng.random_range(0..hopeful.len()) };
    decider.prepare(cluster, pod);
    let (mut candidates, mut failures) = (Vec::new(), Vec::new());
    for slot in hopeful.iter().cycle().skip(offset).take(hopeful.len()) {
        match candidate(decider, cluster, pod, *slot, budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(why) => failures.push(why),
        }
        if candidates.len() >= wanted {
            break;
        }
    }
    match candidates.into_iter().min_by_key(cost) {
        Some(candidate) => Ok(candidate.plan),
        None => Err(unhelpful(cluster.node_count(), &failures)),
    }
}

/// Whether the pod may have others removed at all.
fn eligible(cluster: &Cluster, pod: &PodInfo) -> Result<(), String> {
    if pod.pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err("preemption: not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let Some(node) = pod.nominated_node().and_then(|name| cluster.slot_of(name)).map(|slot| cluster.node(slot)) else {
        return Ok(());
    };
    if node.pods.iter().any(|victim| victim.priority < pod.priority && is_leaving_for_others(victim)) {
        return Err("preemption: not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    Ok(())
}

fn is_leaving_for_others(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    pod.terminating
        && conditions.into_iter().any(|condition| {
            condition.type_ == "DisruptionTarget" && condition.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

fn unhelpful(nodes: usize, failures: &[Rejection]) -> String {
    let looked_at = failures.iter().flat_map(|why| why.reasons.iter().map(AsRef::as_ref));
    let others = std::iter::repeat_n("Preemption is not helpful for scheduling", nodes.saturating_sub(failures.len()));
    format!("preemption: {}", summary(nodes, looked_at.chain(others)))
}

/// What it takes to make room on one node. The cluster is as before afterwards.
fn candidate(
    decider: &mut Decider,
    cluster: &mut Cluster,
    pod: &PodInfo,
    slot: u32,
    budgets: &Budgets,
) -> Result<Candidate, Rejection> {
    let mut lesser: Vec<_> =
        cluster.node(slot).pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return Err(Rejection::final_("No preemption victims found for incoming pod"));
    }
    lesser.sort_by_key(|other| (Reverse(other.priority), start_time(other)));
    let version = cluster.version();
    for other in &lesser {
        cluster.detach(other, slot);
    }
    if let Err(rejected) = decider.fits(cluster, pod, slot) {
        for other in &lesser {
            cluster.attach(other, slot);
        }
        cluster.restore_version(version);
        return Err(rejected.why);
    }
    let (violating, harmless) = budgets.split(lesser);
    let mut reprieve = |others: Vec<Arc<PodInfo>>| -> Vec<Arc<PodInfo>> {
        let is_victim = |other: &Arc<PodInfo>| {
            cluster.attach(other, slot);
            let fits = decider.fits(cluster, pod, slot).is_ok();
            if !fits {
                cluster.detach(other, slot);
            }
            !fits
        };
        others.into_iter().filter(is_victim).collect()
    };
    let mut victims = reprieve(violating);
    let violations = victims.len();
    victims.extend(reprieve(harmless));
    for victim in &victims {
        cluster.attach(victim, slot);
    }
    cluster.restore_version(version);
    victims.sort_by_key(|victim| (Reverse(victim.priority), start_time(victim)));
    Ok(Candidate { plan: Plan { slot, victims }, violations })
}

/// Fewest violated budgets, then the least important victim, then the least of them all together, then the fewest, then those
/// that have run for the shortest time.
fn cost(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
    let victims = &candidate.plan.victims;
    let highest = victims.first().map_or(i32::MIN, |victim| victim.priority);
    // Priorities may be negative, and more victims must not look cheaper.
    let sum = victims.iter().map(|victim| i64::from(victim.priority) + i64::from(i32::MAX) + 1).sum();
    let earliest = victims.iter().filter(|victim| victim.priority == highest).map(|victim| start_time(victim)).min();
    (candidate.violations, highest, sum, victims.len(), Reverse(earliest))
}

/// Pods that have not started count as started last.
fn start_time(pod: &PodInfo) -> Timestamp {
    let started = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.map_or(Timestamp::MAX, |time| time.0)
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    const NODES: [&str; 2] = [
        "metadata: {name: a}\nstatus: {allocatable: {cpu: 2, memory: 1Gi, pods: 10}}",
        "metadata: {name: b}\nstatus: {allocatable: {cpu: 2, memory: 1Gi, pods: 10}}",
    ];

    fn running(name: &str, node: &str, priority: i32, cpu: &str) -> String {
        format!(
            "metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}, priority: {priority}, containers: [{{name: c, resources: {{requests: {{cpu: {cpu}}}}}}}]}}"
        )
    }

    fn pod(priority: i32, cpu: &str) -> String {
        format!("spec: {{priority: {priority}, containers: [{{name: c, resources: {{requests: {{cpu: {cpu}}}}}}}]}}")
    }

    #[test]
    fn the_least_important_pods_give_way_and_no_more_than_needed() {
        let mut fixture = Fixture::new(&NODES);
        for (name, node, priority, cpu) in [("a-high", "a", 5, "2"), ("b-low", "b", 1, "1"), ("b-lower", "b", 0, "1")] {
            fixture.run(&running(name, node, priority, cpu));
        }
        assert_eq!(fixture.preempts(&pod(10, "1")), Ok(("b".to_owned(), vec!["b-lower".to_owned()])));
        assert_eq!(
            fixture.preempts(&pod(10, "2")),
            Ok(("b".to_owned(), vec!["b-low".to_owned(), "b-lower".to_owned()]))
        );
    }

    #[test]
    fn budgets_are_spared_if_they_can_be() {
        let mut fixture = Fixture::new(&NODES);
        fixture.run(&running("guarded", "a", 0, "2"));
        fixture.run(&running("important", "b", 5, "2"));
        fixture.budget("metadata: {name: p, namespace: default}\nspec: {selector: {matchLabels: {app: guarded}}}\nstatus: {disruptionsAllowed: 0}");
        assert_eq!(fixture.preempts(&pod(10, "1")), Ok(("b".to_owned(), vec!["important".to_owned()])));
    }

    #[test]
    fn it_says_why_it_does_not_help() {
        let mut fixture = Fixture::new(&NODES);
        fixture.run(&running("a", "a", 10, "2"));
        fixture.run(&running("b", "b", 10, "2"));
        let no_victims = "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        assert_eq!(fixture.preempts(&pod(10, "1")), Err(no_victims.to_owned()));
        let not_helpful = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(fixture.preempts(&pod(20, "5")), Err(not_helpful.to_owned()));
        let never =
            "spec: {preemptionPolicy: Never, priority: 20, containers: [{name: c, resources: {requests: {cpu: 1}}}]}";
        assert_eq!(fixture.preempts(never), Err("preemption: not eligible due to preemptionPolicy=Never.".to_owned()));
    }
}
