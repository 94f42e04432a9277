//! What a plugin is.
//!
//! A decision asks each plugin to [`Plugin::begin`] with a pod. The [`Pass`] that it answers with then judges nodes: which
//! can take the pod, and how well each suits. It is asked about all nodes in one call, so that the loop over nodes is compiled
//! together with the judgement.
//!
//! A plugin that rejected a pod is asked about every later event whether that may have changed its mind: this is what wakes
//! pods that could not be scheduled. Nothing is tried again for any other reason.

use std::borrow::Cow;

use crate::cluster::{Cluster, Node, NodeChange};
use crate::pod::PodInfo;

/// The best score that a plugin gives.
pub const MAX_SCORE: i64 = 100;

/// Why a node cannot take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether it might help to remove pods from the node.
    pub resolvable: bool,
}

impl Rejection {
    /// Other pods are in the way.
    pub fn resolvable(reason: &'static str) -> Self {
        Rejection { reasons: vec![Cow::Borrowed(reason)], resolvable: true }
    }

    /// The node itself is the wrong one.
    pub fn final_(reason: &'static str) -> Self {
        Rejection { reasons: vec![Cow::Borrowed(reason)], resolvable: false }
    }
}

/// A change in the cluster that may make a pod schedulable.
pub enum Event<'a> {
    NodeAdded(&'a Node),
    NodeChanged(&'a Node, NodeChange),
    NodeRemoved,
    /// A pod has come to be on a node, or its labels have changed there.
    PodAssigned(&'a PodInfo),
    /// A pod has gone from a node, or needs less than before.
    PodRemoved(&'a PodInfo),
    NamespaceChanged,
    ClaimChanged {
        namespace: &'a str,
        name: &'a str,
    },
    VolumeChanged,
    /// A service, or a controller that makes pods.
    WorkloadChanged,
}

/// How a plugin takes part in one decision.
pub enum Begin<'a> {
    /// Not at all.
    Skip,
    /// No node will do, because of this.
    Reject(String),
    Run(Box<dyn Pass + 'a>),
}

impl<'a> Begin<'a> {
    pub fn run(pass: impl Pass + 'a) -> Self {
        Begin::Run(Box::new(pass))
    }
}

pub trait Plugin: Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// What its scores count relative to those of others.
    fn weight(&self) -> i64 {
        1
    }

    /// Whether the judgement depends on nothing but the pod's class and what the node object says. It is then remembered.
    fn is_static(&self) -> bool {
        false
    }

    /// Has the cluster count what this pod asks about.
    fn prepare(&self, _pod: &PodInfo, _cluster: &mut Cluster) {}

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a>;

    /// Whether an event may make a pod schedulable that this plugin rejected.
    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, cluster: &Cluster) -> bool;
}

/// The nodes still in question, and those that are out.
#[derive(Default)]
pub struct Sieve {
    /// Slots.
    pub nodes: Vec<u32>,
    pub rejected: Vec<Rejected>,
}

#[derive(Clone)]
pub struct Rejected {
    pub slot: u32,
    /// Index of the plugin.
    pub plugin: usize,
    pub why: Rejection,
}

/// One plugin's part in one decision.
pub trait Pass {
    /// Whether the node can take the pod.
    fn check(&self, _node: &Node) -> Result<(), Rejection> {
        Ok(())
    }

    /// Whether [`Pass::check`] ever rejects.
    fn filters(&self) -> bool {
        false
    }

    /// Whether [`Pass::score`] ever differs between nodes.
    fn scores(&self) -> bool {
        false
    }

    /// Any number; [`Pass::normalise`] makes it one from 0 to [`MAX_SCORE`].
    fn score(&self, _node: &Node) -> i64 {
        0
    }

    fn normalise(&self, _scores: &mut [i64]) {}

    fn filter_all(&self, plugin: usize, cluster: &Cluster, sieve: &mut Sieve) {
        let Sieve { nodes, rejected } = sieve;
        nodes.retain(|slot| match self.check(cluster.node(*slot)) {
            Ok(()) => true,
            Err(why) => {
                rejected.push(Rejected { slot: *slot, plugin, why });
                false
            }
        });
    }

    fn score_all(&self, cluster: &Cluster, nodes: &[u32]) -> Vec<i64> {
        nodes.iter().map(|slot| self.score(cluster.node(*slot))).collect()
    }
}

/// Scales scores so that the greatest becomes [`MAX_SCORE`]; with `reverse` the least is best.
pub fn normalise_by_greatest(scores: &mut [i64], reverse: bool) {
    let greatest = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if greatest == 0 { 0 } else { MAX_SCORE * *score / greatest };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}
