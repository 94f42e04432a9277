//! Rollouts played with the pure plan, written as one line a step.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use kube::Resource as _;

use super::plan::{Observed, Plan, plan};
use super::status;
use crate::fixture::{ago, now, yaml};

/// A cluster in which a step's plan is carried out and all pods of a set become available at once.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Templates with this image never become ready.
    broken: &'static str,
}

fn world(spec: &str) -> World {
    let mut deployment: Deployment = yaml(&format!(
        "metadata: {{ name: web, namespace: ns, uid: d1, generation: 1 }}
spec: {{ selector: {{ matchLabels: {{ app: web }} }}, progressDeadlineSeconds: 600, revisionHistoryLimit: 10, {spec} }}"
    ));
    deployment.spec.template = template("v1");
    World { deployment, sets: vec![], broken: "broken" }
}

fn template(image: &str) -> k8s_openapi::api::core::v1::PodTemplateSpec {
    yaml(&format!(
        "{{ metadata: {{ labels: {{ app: web }} }}, spec: {{ containers: [{{ name: c, image: {image} }}] }} }}"
    ))
}

impl World {
    fn plan(&self) -> Plan {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let has_pods = |set: &ReplicaSet| set.status.as_ref().is_some_and(|status| status.replicas > 0);
        plan(&Observed { deployment: &self.deployment, sets: &sets, has_pods: &has_pods, now: now() })
    }

    /// Plans and carries out one step, without pods following.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        let idle = plan.create.is_none() && plan.updates.is_empty() && plan.delete.is_empty();
        if let Some(mut set) = plan.create {
            set.meta_mut().creation_timestamp = Some(ago(1000 - self.sets.len() as i64));
            set.meta_mut().uid = set.metadata.name.clone();
            self.sets.push(set);
        }
        for update in plan.updates {
            let name = &update.wanted.metadata.name;
            let slot = self.sets.iter_mut().find(|set| set.metadata.name == *name).expect("known");
            *slot = update.wanted;
        }
        self.sets.retain(|set| !plan.delete.iter().any(|gone| gone.metadata.name == set.metadata.name));
        if let Some(revision) = plan.revision {
            self.deployment
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(super::revision::REVISION.into(), revision);
        }
        self.deployment.status = Some(plan.status);
        !idle
    }

    fn pods_follow(&mut self) {
        for set in &mut self.sets {
            let replicas = set.spec.replicas.unwrap_or(0);
            let image = set.spec.template.as_ref().and_then(|t| t.spec.as_ref()?.containers[0].image.as_deref());
            let ready = if image == Some(self.broken) { 0 } else { replicas };
            set.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: Some(ready),
                available_replicas: Some(ready),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    /// Sizes of the sets after each step until nothing changes, oldest set first: `1/3 2/2`.
    fn play(&mut self) -> String {
        let mut line = Vec::new();
        for _ in 0..50 {
            if !self.step() {
                break;
            }
            line.push(self.sizes());
            self.pods_follow();
        }
        self.step();
        line.join(" ")
    }

    fn sizes(&self) -> String {
        let sizes: Vec<String> = self.sets.iter().map(|set| set.spec.replicas.unwrap_or(0).to_string()).collect();
        sizes.join("/")
    }

    fn set_image(&mut self, image: &str) {
        self.deployment.spec.template = template(image);
        *self.deployment.metadata.generation.get_or_insert_default() += 1;
    }

    fn scale(&mut self, replicas: i32) {
        self.deployment.spec.replicas = Some(replicas);
        *self.deployment.metadata.generation.get_or_insert_default() += 1;
    }

    fn condition(&self, type_: &str) -> String {
        let conditions = self.deployment.status.as_ref().and_then(|status| status.conditions.as_deref());
        match status::find(conditions.unwrap_or_default(), type_) {
            None => "none".into(),
            Some(c) => {
                format!("{} {}", c.status.as_deref().unwrap_or_default(), c.reason.as_deref().unwrap_or_default())
            }
        }
    }

    fn revisions(&self) -> Vec<i64> {
        self.sets.iter().map(super::revision::revision_of).collect()
    }
}

const ROLLING: &str = "strategy: { type: RollingUpdate, rollingUpdate: { maxSurge: 1, maxUnavailable: 1 } }";

#[test]
fn a_rolling_update_moves_within_surge_and_unavailability() {
    let mut world = world(&format!("replicas: 3, {ROLLING}"));
    assert_eq!(world.play(), "3");
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
    world.set_image("v2");
    assert_eq!(world.play(), "3/1 1/1 1/3 0/3");
    assert_eq!(world.revisions(), [1, 2]);
    assert_eq!(world.deployment.metadata.annotations.as_ref().expect("annotated")[super::revision::REVISION], "2");
}

#[test]
fn undoing_makes_the_old_set_the_newest_revision() {
    let mut world = world(&format!("replicas: 2, {ROLLING}"));
    world.play();
    world.set_image("v2");
    world.play();
    world.set_image("v1");
    world.play();
    assert_eq!((world.sizes().as_str(), world.revisions()), ("2/0", vec![3, 2]));
}

#[test]
fn a_rollover_takes_from_the_unhealthy_first() {
    let mut world = world(&format!("replicas: 3, {ROLLING}"));
    world.play();
    world.set_image("broken");
    assert_eq!(world.play(), "3/1 2/1 2/2", "stuck within the bounds");
    world.set_image("v3");
    assert!(world.play().ends_with("0/0/3"));
}

#[test]
fn recreating_waits_for_the_old_pods() {
    let mut world = world("replicas: 2, strategy: { type: Recreate }");
    world.play();
    world.set_image("v2");
    assert!(world.step());
    assert_eq!(world.sizes(), "0");
    assert!(!world.step(), "the old pods are still there");
    world.pods_follow();
    assert_eq!(world.play(), "0/2");
}

#[test]
fn recreating_settles_two_sets_that_run_at_once() {
    let mut world = world("replicas: 2, strategy: { type: Recreate }");
    world.play();
    world.set_image("v2");
    world.play();
    world.sets[0].spec.replicas = Some(1);
    world.pods_follow();
    world.scale(3);
    assert!(world.play().ends_with("0/3"));
}

#[test]
fn scaling_during_a_rollout_is_proportional_and_the_rollout_goes_on() {
    let mut world = world("replicas: 10, strategy: { rollingUpdate: { maxSurge: 3, maxUnavailable: 2 } }");
    world.play();
    world.set_image("broken");
    world.play();
    assert_eq!(world.sizes(), "8/5");
    world.scale(15);
    assert!(world.step());
    assert_eq!(world.sizes(), "11/7");
    world.set_image("v3");
    assert!(world.play().ends_with("0/0/15"));
}

#[test]
fn paused_follows_scale_but_not_templates() {
    let mut world = world(&format!("replicas: 3, {ROLLING}"));
    world.play();
    world.deployment.spec.paused = Some(true);
    world.set_image("v2");
    world.scale(5);
    assert_eq!(world.play(), "5");
    assert_eq!(world.condition("Progressing"), "Unknown DeploymentPaused");
    world.deployment.spec.paused = Some(false);
    assert!(world.play().ends_with("0/5"));
}

#[test]
fn history_is_cut_to_its_limit_oldest_first() {
    let mut world = world(&format!("replicas: 1, {ROLLING}"));
    world.deployment.spec.revision_history_limit = Some(1);
    for image in ["v1", "v2", "v3", "v4"] {
        world.set_image(image);
        world.play();
    }
    assert_eq!(world.revisions(), [3, 4]);
}

#[test]
fn a_stuck_rollout_times_out_and_says_when_to_look() {
    let mut world = world(&format!("replicas: 1, {ROLLING}"));
    world.set_image("broken");
    world.play();
    assert_eq!(world.condition("Progressing"), "True ReplicaSetUpdated");
    assert_eq!(world.plan().recheck.map(|wait| wait.as_secs()), Some(601));
    let conditions = world.deployment.status.as_mut().and_then(|s| s.conditions.as_mut()).expect("set");
    conditions.iter_mut().for_each(|condition| condition.last_update_time = Some(ago(601)));
    world.step();
    assert_eq!(world.condition("Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
    assert_eq!(world.plan().recheck, None);
}

#[test]
fn a_planned_state_that_is_reached_changes_nothing_more() {
    let mut world = world(&format!("replicas: 3, {ROLLING}"));
    world.play();
    let plan = world.plan();
    assert_eq!(Some(plan.status), world.deployment.status);
    assert!(plan.updates.is_empty() && plan.create.is_none() && plan.revision.is_none() && plan.recheck.is_none());
}
