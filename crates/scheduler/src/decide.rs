//! One decision: pod and cluster in, node or reasons out. Pure but for what is remembered of earlier questions.

use std::collections::HashMap;

use rand::Rng;

use crate::cluster::{Cluster, Node};
use crate::diagnosis::Diagnosis;
use crate::framework::{Begin, Event, Pass, Plugin, Rejected, Rejection, Sieve};
use crate::pod::PodInfo;

/// Classes whose judgements of nodes are remembered.
const REMEMBERED_CLASSES: usize = 256;
/// Static plugins whose scores are remembered; there are fewer.
const STATIC_PLUGINS: usize = 4;

pub enum Decision {
    /// The slot of a node.
    Node(u32),
    Nowhere(Diagnosis),
}

pub struct Decider {
    plugins: Vec<Box<dyn Plugin>>,
    memory: HashMap<u64, Memory>,
    clock: u64,
}

/// What the static plugins said of each node about one class.
#[derive(Default)]
struct Memory {
    by_slot: Vec<Judgement>,
    used: u64,
}

#[derive(Clone, Default)]
struct Judgement {
    /// Of the node as it was judged; zero is never.
    generation: u64,
    rejected: Option<(usize, Rejection)>,
    scores: [i64; STATIC_PLUGINS],
}

/// The plugins that take part in one decision.
struct Round<'a> {
    /// In the order of all static plugins.
    fixed: Vec<Part<'a>>,
    moving: Vec<Part<'a>>,
}

struct Part<'a> {
    /// Index of the plugin.
    plugin: usize,
    /// None if it has nothing to say.
    pass: Option<Box<dyn Pass + 'a>>,
}

/// One plugin rejected the pod as such.
struct Refused {
    plugin: usize,
    reason: String,
}

impl Decider {
    pub fn new(plugins: Vec<Box<dyn Plugin>>) -> Self {
        debug_assert!(plugins.iter().filter(|plugin| plugin.is_static()).count() <= STATIC_PLUGINS);
        Decider { plugins, memory: HashMap::new(), clock: 0 }
    }

    /// Chooses the node for a pod; `rng` among equals.
    pub fn decide(&mut self, cluster: &mut Cluster, pod: &PodInfo, rng: &mut impl Rng) -> Decision {
        match self.favourites(cluster, pod) {
            Ok(nodes) => Decision::Node(nodes[rng.random_range(0..nodes.len())]),
            Err(diagnosis) => Decision::Nowhere(diagnosis),
        }
    }

    /// The nodes that suit a pod best, at least one, all equally.
    pub fn favourites(&mut self, cluster: &mut Cluster, pod: &PodInfo) -> Result<Vec<u32>, Diagnosis> {
        self.prepare(cluster, pod);
        if let Some(slot) = self.nominated(cluster, pod) {
            return Ok(vec![slot]);
        }
        let contested = contested(cluster, pod);
        let mut sieve = self.filter(cluster, pod, cluster.slots().to_vec())?;
        if !contested.is_empty() {
            self.filter_contested(cluster, pod, &contested, &mut sieve);
        }
        match sieve.nodes.len() {
            0 => Err(diagnose(cluster, sieve)),
            1 => Ok(sieve.nodes),
            _ => Ok(self.best(cluster, pod, sieve.nodes)),
        }
    }

    /// Has the cluster count what the plugins will ask about this pod.
    pub fn prepare(&self, cluster: &mut Cluster, pod: &PodInfo) {
        for plugin in &self.plugins {
            plugin.prepare(pod, cluster);
        }
    }

    /// Whether one node can take a pod, also if the pods come that room is being made for there. [`Decider::prepare`] first.
    pub fn fits(&mut self, cluster: &mut Cluster, pod: &PodInfo, slot: u32) -> Result<(), Rejected> {
        let rivals = rivals(cluster.node(slot), pod);
        for rival in &rivals {
            cluster.attach(rival, slot);
        }
        let mut fits = self.fits_now(cluster, pod, slot);
        for rival in &rivals {
            cluster.detach(rival, slot);
        }
        // Nor may the pod depend on those that may yet go elsewhere.
        if !rivals.is_empty() && fits.is_ok() {
            fits = self.fits_now(cluster, pod, slot);
        }
        fits
    }

    fn fits_now(&mut self, cluster: &Cluster, pod: &PodInfo, slot: u32) -> Result<(), Rejected> {
        match self.filter(cluster, pod, vec![slot]) {
            Ok(sieve) => sieve.rejected.into_iter().next().map_or(Ok(()), Err),
            Err(refused) => {
                let reasons = refused.before_nodes.into_iter().map(Into::into).collect();
                let plugin = refused.plugins.trailing_zeros() as usize;
                Err(Rejected { slot, plugin, why: Rejection { reasons, resolvable: false } })
            }
        }
    }

    /// Whether an event may have changed the mind of any of the plugins (one bit each) that rejected a pod.
    pub fn may_help(&self, event: &Event<'_>, pod: &PodInfo, rejecting: u32, cluster: &Cluster) -> bool {
        let rejected = |index: usize| rejecting & (1 << index) != 0;
        self.plugins.iter().enumerate().any(|(index, plugin)| rejected(index) && plugin.may_help(event, pod, cluster))
    }

    pub fn plugin_names(&self, plugins: u32) -> Vec<&'static str> {
        let names = self.plugins.iter().enumerate().filter(|(index, _)| plugins & (1 << index) != 0);
        names.map(|(_, plugin)| plugin.name()).collect()
    }

    /// The node that room was made on for this pod, if it can go there now.
    fn nominated(&mut self, cluster: &mut Cluster, pod: &PodInfo) -> Option<u32> {
        let slot = cluster.slot_of(pod.nominated_node()?)?;
        self.fits(cluster, pod, slot).is_ok().then_some(slot)
    }

    /// The nodes of `nodes` that can take the pod. Fails if a plugin rejected the pod as such.
    fn filter(&mut self, cluster: &Cluster, pod: &PodInfo, nodes: Vec<u32>) -> Result<Sieve, Diagnosis> {
        let round = match begin(&self.plugins, cluster, pod) {
            Ok(round) => round,
            Err(Refused { plugin, reason }) => {
                let nodes = cluster.node_count();
                return Err(Diagnosis {
                    nodes,
                    before_nodes: Some(reason),
                    plugins: 1 << plugin,
                    ..Diagnosis::default()
                });
            }
        };
        let mut sieve = Sieve { nodes, rejected: Vec::new() };
        let memory = remember(&mut self.memory, &mut self.clock, pod.class.id);
        filter_fixed(memory, &round.fixed, cluster, &mut sieve);
        for part in &round.moving {
            if let Some(pass) = part.pass.as_ref().filter(|pass| pass.filters()) {
                pass.filter_all(part.plugin, cluster, &mut sieve);
            }
        }
        Ok(sieve)
    }

    /// Looks again at nodes where room is being made for other pods.
    fn filter_contested(&mut self, cluster: &mut Cluster, pod: &PodInfo, contested: &[u32], sieve: &mut Sieve) {
        let Sieve { nodes, rejected } = sieve;
        nodes.retain(|slot| {
            let fits = if contested.contains(slot) { self.fits(cluster, pod, *slot) } else { Ok(()) };
            let keep = fits.is_ok();
            rejected.extend(fits.err());
            keep
        });
    }

    fn best(&mut self, cluster: &Cluster, pod: &PodInfo, nodes: Vec<u32>) -> Vec<u32> {
        let mut totals = vec![0; nodes.len()];
        if let Ok(round) = begin(&self.plugins, cluster, pod) {
            let memory = remember(&mut self.memory, &mut self.clock, pod.class.id);
            for (index, part) in round.fixed.iter().enumerate() {
                let Some(pass) = part.pass.as_ref().filter(|pass| pass.scores()) else { continue };
                let scores = nodes.iter().map(|slot| memory.by_slot[*slot as usize].scores[index]).collect();
                add(&mut totals, scores, &**pass, self.plugins[part.plugin].weight());
            }
            for part in &round.moving {
                let Some(pass) = part.pass.as_ref().filter(|pass| pass.scores()) else { continue };
                let scores = pass.score_all(cluster, &nodes);
                add(&mut totals, scores, &**pass, self.plugins[part.plugin].weight());
            }
        }
        let best = totals.iter().copied().max().unwrap_or(0);
        nodes.into_iter().zip(totals).filter(|(_, total)| *total == best).map(|(slot, _)| slot).collect()
    }
}

fn begin<'a>(plugins: &[Box<dyn Plugin>], cluster: &'a Cluster, pod: &'a PodInfo) -> Result<Round<'a>, Refused> {
    let mut round = Round { fixed: Vec::new(), moving: Vec::new() };
    for (index, plugin) in plugins.iter().enumerate() {
        let pass = match plugin.begin(pod, cluster) {
            Begin::Skip => None,
            Begin::Run(pass) => Some(pass),
            Begin::Reject(reason) => return Err(Refused { plugin: index, reason }),
        };
        let parts = if plugin.is_static() { &mut round.fixed } else { &mut round.moving };
        parts.push(Part { plugin: index, pass });
    }
    Ok(round)
}

fn remember<'a>(memory: &'a mut HashMap<u64, Memory>, clock: &mut u64, class: u64) -> &'a mut Memory {
    if memory.len() >= REMEMBERED_CLASSES
        && !memory.contains_key(&class)
        && let Some(oldest) = memory.iter().min_by_key(|(_, memory)| memory.used).map(|(class, _)| *class)
    {
        memory.remove(&oldest);
    }
    *clock += 1;
    let memory = memory.entry(class).or_default();
    memory.used = *clock;
    memory
}

fn filter_fixed(memory: &mut Memory, parts: &[Part<'_>], cluster: &Cluster, sieve: &mut Sieve) {
    let Sieve { nodes, rejected } = sieve;
    nodes.retain(|slot| {
        let node = cluster.node(*slot);
        let at = *slot as usize;
        if memory.by_slot.len() <= at {
            memory.by_slot.resize_with(at + 1, Judgement::default);
        }
        if memory.by_slot[at].generation != node.generation {
            memory.by_slot[at] = judge(parts, node);
        }
        match &memory.by_slot[at].rejected {
            None => true,
            Some((plugin, why)) => {
                rejected.push(Rejected { slot: *slot, plugin: *plugin, why: why.clone() });
                false
            }
        }
    });
}

fn judge(parts: &[Part<'_>], node: &Node) -> Judgement {
    let mut judgement = Judgement { generation: node.generation, ..Judgement::default() };
    for (index, part) in parts.iter().enumerate() {
        let Some(pass) = &part.pass else { continue };
        if let Err(why) = pass.check(node) {
            judgement.rejected = Some((part.plugin, why));
            return judgement;
        }
        if pass.scores() {
            judgement.scores[index] = pass.score(node);
        }
    }
    judgement
}

fn add(totals: &mut [i64], mut scores: Vec<i64>, pass: &dyn Pass, weight: i64) {
    // Where all are alike, nothing is decided.
    if scores.windows(2).all(|pair| pair[0] == pair[1]) {
        return;
    }
    pass.normalise(&mut scores);
    for (total, score) in totals.iter_mut().zip(scores) {
        *total += weight * score;
    }
}

/// The nodes where room is being made for pods that this one must not take it from.
fn contested(cluster: &Cluster, pod: &PodInfo) -> Vec<u32> {
    if !cluster.has_nominations() {
        return Vec::new();
    }
    cluster.nodes().filter(|node| !rivals(node, pod).is_empty()).map(|node| node.slot).collect()
}

fn rivals(node: &Node, pod: &PodInfo) -> Vec<std::sync::Arc<PodInfo>> {
    let rival = |other: &&std::sync::Arc<PodInfo>| other.uid != pod.uid && other.priority >= pod.priority;
    node.nominated.iter().filter(rival).cloned().collect()
}

fn diagnose(cluster: &Cluster, sieve: Sieve) -> Diagnosis {
    let plugins = sieve.rejected.iter().fold(0, |plugins, rejected| plugins | 1 << rejected.plugin);
    Diagnosis { nodes: cluster.node_count(), before_nodes: None, rejected: sieve.rejected, plugins }
}
