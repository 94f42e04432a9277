//! All hollow nodes as one state machine: watches, clock and answers in, writes out. No I/O.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::watcher::Event;
use tokio::time::Instant;

use super::Config;
use super::network::{Network, Pool};
use super::node::{self, NodeView};
use super::pod::{self, Plan, PodView};
use super::round::Round;
use super::write::{Call, MERGE, Outcome, STRATEGIC, Write};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// With nothing else to wait for, the clock is looked at this often.
const LONG: Duration = Duration::from_secs(3600);

/// Something to write.
#[derive(Clone, Debug)]
pub struct Job {
    what: What,
    /// Times that it failed.
    attempts: u32,
}

#[derive(Clone, Debug)]
enum What {
    /// The Node, with its status.
    Register(u32),
    Status(u32),
    Lease(u32),
    Pod(Box<PodView>, PodWrite),
}

#[derive(Clone, Copy, Debug)]
enum PodWrite {
    Run { ip: IpAddr, host: IpAddr },
    Fail,
    End,
}

#[derive(Default)]
struct Node {
    /// Of the object, once it is known to exist.
    uid: Option<Box<str>>,
    /// Of the lease as last written.
    lease_version: Option<Box<str>>,
    pool: Option<Box<Pool>>,
    /// When it became ready, as far as this process knows.
    ready_since: Option<Timestamp>,
    registering: bool,
    lease_waits: bool,
    status_waits: bool,
}

/// What is kept of a pod on one of our nodes.
struct Pod {
    node: u32,
    /// Its address, once it has one.
    ip: Option<IpAddr>,
    /// Of the write that is asked for and not answered.
    asked: Asked,
    /// When it is looked at again.
    deadline: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Status,
    End,
}

pub struct Fleet {
    config: Config,
    nodes: Vec<Node>,
    pods: HashMap<Box<str>, Pod>,
    /// Pods of nodes that have no network yet, or no free address.
    waiting: HashMap<u32, Vec<PodView>>,
    /// Pods with a deadline, by the time of the next look at them.
    deadlines: BinaryHeap<Reverse<Later<(Timestamp, PodView)>>>,
    retries: BinaryHeap<Reverse<Later<Job>>>,
    /// Heartbeats go first: a node that is taken for dead loses its pods.
    urgent: VecDeque<Job>,
    jobs: VecDeque<Job>,
    leases: Round,
    statuses: Round,
    /// What the list that is being read has shown: nodes, and pods' UIDs.
    listed_nodes: HashSet<u32>,
    listed_pods: HashSet<Box<str>>,
    /// Whether it was said that a node has no network.
    complained: bool,
}

/// Something that is due at a time; ordered by that alone.
struct Later<T>(Instant, T);

impl<T> PartialEq for Later<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Later<T> {}
impl<T> PartialOrd for Later<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Later<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

fn take_due<T>(heap: &mut BinaryHeap<Reverse<Later<T>>>, now: Instant) -> Option<T> {
    if heap.peek().is_none_or(|Reverse(next)| next.0 > now) {
        return None;
    }
    heap.pop().map(|Reverse(Later(_, thing))| thing)
}

impl Fleet {
    pub fn new(config: Config, now: Instant) -> Self {
        let mut nodes = Vec::new();
        nodes.resize_with(config.nodes as usize, Node::default);
        Fleet {
            leases: Round::new(now, config.lease_duration / 4, config.nodes),
            statuses: Round::new(now, config.status_period, config.nodes),
            config,
            nodes,
            pods: HashMap::new(),
            waiting: HashMap::new(),
            deadlines: BinaryHeap::new(),
            retries: BinaryHeap::new(),
            urgent: VecDeque::new(),
            jobs: VecDeque::new(),
            listed_nodes: HashSet::new(),
            listed_pods: HashSet::new(),
            complained: false,
        }
    }

    /// When [`Fleet::tick`] has something to do next.
    pub fn wakes_at(&self, now: Instant) -> Instant {
        let retry = self.retries.peek().map(|Reverse(next)| next.0);
        let deadline = self.deadlines.peek().map(|Reverse(next)| next.0);
        let rounds = self.leases.next_at().min(self.statuses.next_at()).min(now + LONG);
        retry.into_iter().chain(deadline).fold(rounds, Instant::min)
    }

    /// Makes jobs of what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(index) = self.leases.take_due(now) {
            self.renew(index);
        }
        while let Some(index) = self.statuses.take_due(now) {
            self.report(index);
        }
        while let Some(job) = take_due(&mut self.retries, now) {
            self.enqueue(job);
        }
        while let Some((deadline, pod)) = take_due(&mut self.deadlines, now) {
            let known = self.pods.get(pod.metadata.uid.as_deref().unwrap_or_default());
            if known.is_some_and(|known| known.deadline == Some(deadline)) {
                self.push(What::Pod(Box::new(pod), PodWrite::Fail));
            }
        }
    }

    fn push(&mut self, what: What) {
        self.enqueue(Job { what, attempts: 0 });
    }

    fn enqueue(&mut self, job: Job) {
        match job.what {
            What::Lease(_) => self.urgent.push_back(job),
            _ => self.jobs.push_back(job),
        }
    }

    fn renew(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        if node.uid.is_some() && !std::mem::replace(&mut node.lease_waits, true) {
            self.push(What::Lease(index));
        }
    }

    fn report(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        if node.uid.is_some() && !std::mem::replace(&mut node.status_waits, true) {
            self.push(What::Status(index));
        }
    }

    fn register(&mut self, index: u32) {
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        node.uid = None;
        if !std::mem::replace(&mut node.registering, true) {
            self.push(What::Register(index));
        }
    }

    pub fn node_event(&mut self, event: Event<NodeView>, time: Timestamp) {
        match event {
            Event::Init => self.listed_nodes.clear(),
            Event::InitApply(node) => {
                self.listed_nodes.extend(self.config.node_index(node.metadata.name.as_deref().unwrap_or_default()));
                self.node_seen(&node, time);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed_nodes);
                (0..self.config.nodes).filter(|index| !listed.contains(index)).for_each(|index| self.register(index));
            }
            Event::Apply(node) => self.node_seen(&node, time),
            Event::Delete(node) => {
                // As a kubelet whose Node somebody deleted.
                if let Some(index) = self.config.node_index(node.metadata.name.as_deref().unwrap_or_default()) {
                    self.register(index);
                }
            }
        }
    }

    fn node_seen(&mut self, view: &NodeView, time: Timestamp) {
        let Some(index) = self.config.node_index(view.metadata.name.as_deref().unwrap_or_default()) else { return };
        let Some(node) = self.nodes.get_mut(index as usize) else { return };
        let uid = view.metadata.uid.as_deref().unwrap_or_default();
        let is_new = node.uid.as_deref() != Some(uid);
        if is_new {
            node.uid = Some(uid.into());
            node.lease_version = None;
        }
        if !view.is_ready() || node.ready_since.is_none() {
            node.ready_since = Some(time);
        }
        let network: Option<Network> = view.spec.pod_cidr.parse().ok();
        let changed = network.is_some() && node.pool.as_ref().map(|pool| pool.network()) != network;
        if changed {
            node.pool = network.map(|network| Box::new(Pool::new(network)));
        }
        if is_new {
            self.renew(index);
        }
        if !view.is_ready() {
            self.report(index);
        }
        if changed {
            self.reserve(index);
            self.run_waiting(index);
        }
    }

    /// The addresses of pods that run already are taken from the start.
    fn reserve(&mut self, index: u32) {
        if let Some(pool) = self.nodes.get_mut(index as usize).and_then(|node| node.pool.as_mut()) {
            self.pods.values().filter(|pod| pod.node == index).filter_map(|pod| pod.ip).for_each(|ip| pool.reserve(ip));
        }
    }

    pub fn pod_event(&mut self, event: Event<PodView>, time: Timestamp, now: Instant) {
        match event {
            Event::Init => self.listed_pods.clear(),
            Event::InitApply(pod) => {
                self.listed_pods.extend(pod.metadata.uid.as_deref().map(Into::into));
                self.pod_seen(pod, time, now);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed_pods);
                let gone: Vec<Box<str>> = self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| self.forget(uid));
            }
            Event::Apply(pod) => self.pod_seen(pod, time, now),
            Event::Delete(pod) => self.forget(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn pod_seen(&mut self, pod: PodView, time: Timestamp, now: Instant) {
        let Some(node) = self.config.node_index(&pod.spec.node_name) else { return };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let plan = pod::plan(&pod, time);
        if plan == Plan::Over {
            return self.forget(uid);
        }
        let known =
            self.pods.entry(uid.into()).or_insert(Pod { node, ip: None, asked: Asked::Nothing, deadline: None });
        if known.ip.is_none()
            && let Some(ip) = pod.status.pod_ip.filter(|_| !pod.spec.host_network)
        {
            // Of an earlier life of this process.
            known.ip = Some(ip);
            if let Some(pool) = self.nodes.get_mut(node as usize).and_then(|node| node.pool.as_mut()) {
                pool.reserve(ip);
            }
        }
        match plan {
            Plan::Over => {}
            Plan::Nothing { look_again } => {
                if let Some(at) = look_again.filter(|at| known.deadline != Some(*at)) {
                    known.deadline = Some(at);
                    let wait = Duration::try_from(at.duration_since(time)).unwrap_or_default();
                    self.deadlines.push(Reverse(Later(now + wait, (at, pod))));
                }
            }
            Plan::End if known.asked == Asked::End => {}
            Plan::End => {
                known.asked = Asked::End;
                self.push(What::Pod(Box::new(pod), PodWrite::End));
            }
            Plan::Run | Plan::Fail if known.asked != Asked::Nothing => {}
            Plan::Run => self.run(node, pod),
            Plan::Fail => {
                known.asked = Asked::Status;
                self.push(What::Pod(Box::new(pod), PodWrite::Fail));
            }
        }
    }

    /// Gives the pod its address and has its status written; without a network to have one from, it waits.
    fn run(&mut self, index: u32, pod: PodView) {
        let host = IpAddr::V4(self.config.node_address(index));
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(known) = self.pods.get_mut(uid) else { return };
        if known.ip.is_none() && !pod.spec.host_network {
            let pool = self.nodes.get_mut(index as usize).and_then(|node| node.pool.as_mut());
            known.ip = pool.and_then(|pool| pool.take());
        }
        let ip = if pod.spec.host_network { Some(host) } else { known.ip };
        let Some(ip) = ip else {
            let waiting = self.waiting.entry(index).or_default();
            waiting.retain(|other| other.metadata.uid != pod.metadata.uid);
            waiting.push(pod);
            if !std::mem::replace(&mut self.complained, true) {
                let node = self.config.node_name(index);
                tracing::warn!(node, "no network for pods, or no free address; pods wait until the node has a podCIDR");
            }
            return;
        };
        known.asked = Asked::Status;
        self.push(What::Pod(Box::new(pod), PodWrite::Run { ip, host }));
    }

    fn run_waiting(&mut self, index: u32) {
        for pod in self.waiting.remove(&index).unwrap_or_default() {
            self.run(index, pod);
        }
    }

    fn forget(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        if let Some(waiting) = self.waiting.get_mut(&pod.node) {
            waiting.retain(|other| other.metadata.uid.as_deref() != Some(uid));
        }
        let pool = self.nodes.get_mut(pod.node as usize).and_then(|node| node.pool.as_mut());
        if let (Some(ip), Some(pool)) = (pod.ip, pool) {
            pool.release(ip);
            self.run_waiting(pod.node);
        }
    }

    /// The next thing to write, as requests.
    pub fn next_write(&mut self, now: Timestamp) -> Option<Write> {
        let job = self.urgent.pop_front().or_else(|| self.jobs.pop_front())?;
        let since = |index: u32| self.nodes.get(index as usize).and_then(|node| node.ready_since).unwrap_or(now);
        let config = &self.config;
        let (first, second) = match &job.what {
            What::Register(index) => (Call::post(node::NODES, node::object(config, *index, now)), None),
            What::Status(index) => {
                let path = format!("{}/{}/status", node::NODES, config.node_name(*index));
                let body = serde_json::json!({"status": node::status(config, *index, since(*index), now)});
                (Call::patch(path, STRATEGIC, body), None)
            }
            What::Lease(index) => (self.lease(*index, job.attempts, now), None),
            What::Pod(pod, PodWrite::Run { ip, host }) => {
                (Call::patch(pod::path(pod) + "/status", STRATEGIC, pod::running(pod, *ip, *host, now)), None)
            }
            What::Pod(pod, PodWrite::Fail) => {
                (Call::patch(pod::path(pod) + "/status", STRATEGIC, pod::failed(pod, now)), None)
            }
            What::Pod(pod, PodWrite::End) => {
                let delete = Call::delete(pod::path(pod), pod::delete_options(pod));
                if pod.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
                    (delete, None)
                } else {
                    // Whoever set the finalizers wants to see how the pod ended.
                    (Call::patch(pod::path(pod) + "/status", STRATEGIC, pod::ended(pod, now)), Some(delete))
                }
            }
        };
        Some(Write { job, first, second })
    }

    /// Replaces the version that is known; else patches, which tells the version, or creates.
    fn lease(&self, index: u32, attempts: u32, now: Timestamp) -> Call {
        let config = &self.config;
        let path = format!("{}/{}", node::LEASES, config.node_name(index));
        let node = self.nodes.get(index as usize);
        let uid = node.and_then(|node| node.uid.as_deref()).unwrap_or_default();
        match node.and_then(|node| node.lease_version.as_deref()) {
            Some(version) => Call::put(path, node::lease(config, index, uid, Some(version), now)),
            None if attempts.is_multiple_of(2) => Call::post(node::LEASES, node::lease(config, index, uid, None, now)),
            None => Call::patch(path, MERGE, node::lease(config, index, uid, None, now)),
        }
    }

    /// What came of a write. What failed for no reason of the object's own is tried again.
    pub fn written(&mut self, job: Job, outcome: Outcome, now: Instant) {
        match &job.what {
            What::Register(index) => {
                let registered = match &outcome {
                    Ok(_) => true,
                    // The watch shows it, or did; its status may be old.
                    Err(error) => client::is_already_exists(error),
                };
                if registered {
                    self.node(*index, |node| node.registering = false);
                    if outcome.is_err() {
                        self.report(*index);
                    }
                    return;
                }
            }
            What::Status(index) => {
                let gone = outcome.as_ref().err().is_some_and(client::is_not_found);
                if outcome.is_ok() || gone {
                    return self.node(*index, |node| node.status_waits = false);
                }
            }
            What::Lease(index) => match &outcome {
                Ok(reply) => {
                    let version = Some(reply.metadata.resource_version.as_str().into());
                    return self.node(*index, |node| (node.lease_version, node.lease_waits) = (version, false));
                }
                // Without a node there is no lease; it comes with the node.
                Err(_) if self.nodes.get(*index as usize).is_none_or(|node| node.uid.is_none()) => {
                    return self.node(*index, |node| node.lease_waits = false);
                }
                // Somebody else wrote or deleted it.
                Err(_) => self.node(*index, |node| node.lease_version = None),
            },
            What::Pod(pod, _) => {
                let settled = |error: &kube::Error| client::is_not_found(error) || client::is_conflict(error);
                if outcome.as_ref().err().is_none_or(settled) {
                    // The watch shows what became of it.
                    let known = self.pods.get_mut(pod.metadata.uid.as_deref().unwrap_or_default());
                    if let Some(known) = known.filter(|known| known.asked == Asked::Status || outcome.is_err()) {
                        known.asked = Asked::Nothing;
                    }
                    return;
                }
            }
        }
        if let Err(error) = outcome {
            let delay = FIRST_RETRY.saturating_mul(1 << job.attempts.min(10)).min(LONGEST_RETRY);
            if job.attempts > 2 {
                tracing::warn!(%error, attempts = job.attempts, "a hollow node's write failed");
            }
            self.retries.push(Reverse(Later(now + delay, Job { attempts: job.attempts + 1, ..job })));
        }
    }

    fn node(&mut self, index: u32, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(index as usize) {
            change(node);
        }
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
