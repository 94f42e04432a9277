//! The two kinds that keep a number of pods running, seen through one trait.

use client::Kind;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use kube::core::Selector;
use serde::Serialize;

use super::plan::{Condition, ScaleStatus};
use crate::error::Result;

/// A ReplicaSet or a ReplicationController.
pub trait Replicated: Kind + Serialize + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope> {
    /// Upstream's controller name: service account and event source.
    const IDENTITY: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    /// None selects nothing.
    fn selector(&self) -> Result<Option<Selector>>;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn status(&self) -> ScaleStatus;
    fn set_status(&mut self, status: ScaleStatus);
}

impl Replicated for ReplicaSet {
    const IDENTITY: &'static str = "replicaset-controller";

    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn selector(&self) -> Result<Option<Selector>> {
        crate::owner::selector_of(&self.spec.selector).map(Some)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.template.as_ref()
    }

    fn status(&self) -> ScaleStatus {
        let Some(status) = &self.status else { return ScaleStatus::default() };
        let conditions = status.conditions.iter().flatten().map(|condition| Condition {
            type_: condition.type_.clone().unwrap_or_default(),
            status: condition.status.clone().unwrap_or_default(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_transition_time: condition.last_transition_time.clone(),
        });
        ScaleStatus {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas.unwrap_or(0),
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: conditions.collect(),
        }
    }

    fn set_status(&mut self, status: ScaleStatus) {
        let conditions = status.conditions.into_iter().map(|condition| ReplicaSetCondition {
            type_: Some(condition.type_),
            status: Some(condition.status),
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        });
        self.status = Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.fully_labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            terminating_replicas: Some(status.terminating),
            observed_generation: Some(status.observed_generation),
            conditions: Some(conditions.collect()),
        });
    }
}

impl Replicated for ReplicationController {
    const IDENTITY: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> Result<Option<Selector>> {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.clone()).filter(|labels| !labels.is_empty());
        Ok(labels.map(Selector::from_iter))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn status(&self) -> ScaleStatus {
        let Some(status) = &self.status else { return ScaleStatus::default() };
        let conditions = status.conditions.iter().flatten().map(|condition| Condition {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_transition_time: condition.last_transition_time.clone(),
        });
        ScaleStatus {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: 0,
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: conditions.collect(),
        }
    }

    fn set_status(&mut self, status: ScaleStatus) {
        let conditions = status.conditions.into_iter().map(|condition| ReplicationControllerCondition {
            type_: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            last_transition_time: condition.last_transition_time,
        });
        self.status = Some(ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: Some(status.fully_labeled),
            ready_replicas: Some(status.ready),
            available_replicas: Some(status.available),
            observed_generation: Some(status.observed_generation),
            conditions: Some(conditions.collect()),
        });
    }
}
