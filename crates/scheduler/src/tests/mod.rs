//! Tests of the whole core.

mod events;
mod laws;
mod throughput;

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::core::{Core, Failure, Next};
use crate::fixture::{node, pod};

/// A core with a clock, and the part of an API server that answers at once.
pub struct World {
    pub core: Core,
    pub now: Instant,
}

impl World {
    pub fn new() -> Self {
        World { core: Core::new("default-scheduler", StdRng::seed_from_u64(3)), now: Instant::now() }
    }

    pub fn node(&mut self, yaml: &str) {
        self.core.node_applied(&node(yaml), self.now);
    }

    /// A pod of the name, which is its uid too.
    pub fn pod(name: &str, yaml: &str) -> Arc<Pod> {
        let mut pod = pod(yaml);
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some(name.to_owned());
        pod.metadata.namespace.get_or_insert("default".to_owned());
        Arc::new(pod)
    }

    pub fn add(&mut self, name: &str, yaml: &str) -> Arc<Pod> {
        let pod = Self::pod(name, yaml);
        self.core.pod_applied(None, &pod, self.now);
        pod
    }

    pub fn next(&mut self) -> Next {
        self.core.next(self.now)
    }

    /// The next decision, `pod → node`, confirmed by the API server; or the failure's message.
    pub fn step(&mut self) -> String {
        match self.next() {
            Next::Idle(_) => "idle".to_owned(),
            Next::Report(Failure { pod, message, nominated: None, .. }) => format!("{}: {message}", pod.name()),
            Next::Report(Failure { pod, nominated: Some(node), victims, .. }) => {
                let victims: Vec<_> = victims.iter().map(|victim| victim.name()).collect();
                format!("{} waits for {node} without {}", pod.name(), victims.join(", "))
            }
            Next::Bind { pod, node } => {
                let mut bound = (*pod.pod).clone();
                bound.spec.get_or_insert_default().node_name = Some(node.to_string());
                self.core.pod_applied(Some(&pod.pod), &Arc::new(bound), self.now);
                format!("{} → {node}", pod.name())
            }
        }
    }
}
