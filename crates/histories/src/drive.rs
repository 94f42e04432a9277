//! Makes a history: clients that write and read a few keys at once, and watchers that come, go, resume and are slow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::history::{Answer, Call, History, Listing, Note, Op, Revision, Stream, Time, Value, Watcher};

/// What is tested. Clones talk to the same store, each as a client of its own.
pub trait Subject: Clone + Send + Sync + 'static {
    type Events: Events;

    /// Never fails: what went wrong is an [`Answer`] too.
    fn call(&self, key: &str, op: Op) -> impl Future<Output = Answer> + Send;
    /// All keys, newest or at a revision; none if there was no answer, or the revision is compacted.
    fn list(&self, at: Option<Revision>) -> impl Future<Output = Option<Items>> + Send;
    fn watch(&self, after: Revision) -> impl Future<Output = Opened<Self::Events>> + Send;
}

/// A listing's revision, and value and revision of each key's newest write.
pub type Items = (Revision, BTreeMap<String, (Value, Revision)>);

pub enum Opened<E> {
    Stream(E),
    /// Events after this revision are not all there any more.
    Compacted,
    /// Try again.
    Unreachable,
}

pub trait Events: Send + 'static {
    /// The next ones; none if the stream has ended. The future may be dropped.
    fn next(&mut self) -> impl Future<Output = Vec<Note>> + Send;
    /// Of a stream that has ended: whether that was because what would be next is compacted.
    fn is_compacted(&self) -> bool {
        false
    }
}

/// What to do to a subject.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub seed: u64,
    pub clients: usize,
    pub keys: usize,
    /// By each client, at least; they go on slowly as long as there are faults.
    pub calls: usize,
    /// Besides the witness.
    pub watchers: usize,
    /// Whether there are writes without a condition.
    pub puts: bool,
    /// How long the end of a stream may be waited for.
    pub patience: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Load { seed: 0, clients: 6, keys: 4, calls: 100, watchers: 4, puts: true, patience: Duration::from_secs(20) }
    }
}

/// The key that is written after all others.
const END: &str = "end";
/// After a call without an answer, and by clients that have done their part.
const PAUSE: Duration = Duration::from_millis(3);
/// Among so many of a stream's newest notes is the last write's event, if it came.
const NEWEST: usize = 500;

struct Shared<S> {
    subject: S,
    load: Load,
    began: Instant,
    values: AtomicU64,
    /// There will be no more faults.
    calm: AtomicBool,
    /// Revision of the last write, once it is there.
    last: AtomicU64,
}

impl<S: Subject> Shared<S> {
    fn now(&self) -> Time {
        Time::try_from(self.began.elapsed().as_nanos()).unwrap_or(Time::MAX)
    }

    fn value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    async fn call(&self, client: usize, key: &str, op: Op) -> Call {
        let start = self.now();
        let answer = self.subject.call(key, op).await;
        Call { client, key: key.to_owned(), op, start, end: self.now(), answer }
    }

    async fn list(&self, at: Option<Revision>) -> Option<Listing> {
        let start = self.now();
        let (revision, items) = self.subject.list(at).await?;
        Some(Listing { start, end: self.now(), past: at.is_some(), revision, items })
    }

    async fn list_at_last(&self) -> Listing {
        loop {
            match self.list(None).await {
                Some(listing) => return listing,
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Runs clients and watchers against an empty `subject` until `faults` is over and everybody has done their part.
pub async fn run<S: Subject>(subject: S, load: Load, faults: impl Future<Output = ()>) -> History {
    let shared = Arc::new(Shared {
        subject,
        load,
        began: Instant::now(),
        values: AtomicU64::new(1),
        calm: AtomicBool::new(false),
        last: AtomicU64::new(0),
    });
    let first = shared.list_at_last().await;
    assert!(first.items.is_empty(), "a history begins with no keys");
    let mut history = History { first_revision: first.revision, ..History::default() };
    let mut watchers = JoinSet::new();
    for number in 0..=load.watchers {
        watchers.spawn(watch(shared.clone(), number, first.revision));
    }
    let mut clients = JoinSet::new();
    for client in 0..load.clients {
        clients.spawn(work(shared.clone(), client));
    }
    faults.await;
    shared.calm.store(true, Ordering::Relaxed);
    for (calls, listings) in clients.join_all().await {
        history.calls.extend(calls);
        history.listings.extend(listings);
    }
    finish(&shared, &mut history).await;
    for (watcher, listings) in watchers.join_all().await {
        history.watchers.push(watcher);
        history.listings.extend(listings);
    }
    history
}

/// The last write, and a last look.
async fn finish<S: Subject>(shared: &Shared<S>, history: &mut History) {
    loop {
        let call = shared.call(shared.load.clients, END, Op::Create(shared.value())).await;
        let (answer, again) = (call.answer, Op::Get);
        history.calls.push(call);
        if let Answer::Written(Some(revision)) = answer {
            shared.last.store(revision, Ordering::Relaxed);
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let call = shared.call(shared.load.clients, END, again).await;
        let answer = call.answer;
        history.calls.push(call);
        if let Answer::Found(_, revision) = answer {
            shared.last.store(revision, Ordering::Relaxed);
            break;
        }
    }
    history.listings.push(shared.list_at_last().await);
}

/// What a client remembers of keys: their revisions, some of them old.
type Known = BTreeMap<String, Revision>;

fn choose(rng: &mut StdRng, known: &Known, key: &str, load: &Load, value: impl FnOnce() -> Value) -> Op {
    let revision = known.get(key).copied();
    match rng.random_range(0..100) {
        0..20 => Op::Create(value()),
        20..30 if load.puts => Op::Put(value()),
        30..65 => revision.map_or(Op::Get, |revision| Op::Update(value(), revision)),
        65..72 => Op::Delete(None),
        72..78 => revision.map_or(Op::Get, |revision| Op::Delete(Some(revision))),
        _ => Op::Get,
    }
}

async fn work<S: Subject>(shared: Arc<Shared<S>>, client: usize) -> (Vec<Call>, Vec<Listing>) {
    let load = shared.load;
    let mut rng = StdRng::seed_from_u64(load.seed ^ (client as u64 + 1) << 32);
    let (mut calls, mut listings) = (Vec::new(), Vec::<Listing>::new());
    let mut known = Known::new();
    while calls.len() < load.calls || !shared.calm.load(Ordering::Relaxed) {
        if calls.len() >= load.calls {
            tokio::time::sleep(PAUSE).await;
        }
        if rng.random_ratio(1, 20) {
            let at = listings.last().filter(|_| rng.random_ratio(1, 3)).map(|listing| listing.revision);
            match shared.list(at).await {
                Some(listing) => {
                    known.extend(listing.items.iter().map(|(key, (_, revision))| (key.clone(), *revision)));
                    listings.push(listing);
                }
                None => tokio::time::sleep(PAUSE).await,
            }
            continue;
        }
        let key = format!("k{}", rng.random_range(0..load.keys));
        let op = choose(&mut rng, &known, &key, &load, || shared.value());
        let call = shared.call(client, &key, op).await;
        match call.answer {
            Answer::Written(Some(revision)) | Answer::Found(_, revision) => _ = known.insert(key, revision),
            Answer::Unknown => tokio::time::sleep(PAUSE).await,
            _ => {}
        }
        calls.push(call);
    }
    (calls, listings)
}

/// How a watcher behaves.
struct Manner {
    /// Gives its stream up after about so many notes, and resumes it.
    resumes_after: Option<u32>,
    /// Waits about so long before it takes the next notes.
    slow: Option<Duration>,
}

/// Number 0 is the witness.
fn manner(number: usize) -> Manner {
    let (resumes_after, slow) = match number % 4 {
        0 => (None, None),
        1 => (Some(6), None),
        2 => (None, Some(Duration::from_millis(8))),
        _ => (Some(40), Some(Duration::from_millis(1))),
    };
    Manner { resumes_after, slow }
}

async fn watch<S: Subject>(shared: Arc<Shared<S>>, number: usize, first: Revision) -> (Watcher, Vec<Listing>) {
    let mut rng = StdRng::seed_from_u64(shared.load.seed ^ (number as u64 + 1) << 48);
    let mut watcher = Watcher { until_the_end: true, ..Watcher::default() };
    let mut listings = Vec::new();
    let (mut after, mut since) = (first, shared.now());
    let mut deadline = None;
    loop {
        let opened = shared.subject.watch(after).await;
        match opened {
            Opened::Stream(events) => {
                let mut stream = Stream { after, since, notes: Vec::new() };
                let end = follow(&shared, &manner(number), &mut rng, events, &mut stream, &mut deadline).await;
                after = crate::log::told(&stream);
                since = shared.now();
                watcher.streams.push(stream);
                match end {
                    End::Done => return (watcher, listings),
                    End::Resume => {}
                    End::Compacted => again(&shared, &mut listings, &mut after, &mut since).await,
                }
            }
            Opened::Compacted => again(&shared, &mut listings, &mut after, &mut since).await,
            Opened::Unreachable => tokio::time::sleep(PAUSE).await,
        }
        if over(&shared, &mut deadline) {
            // What it has not seen by now is found to be missing.
            return (watcher, listings);
        }
    }
}

/// Lists again.
async fn again<S: Subject>(shared: &Shared<S>, listings: &mut Vec<Listing>, after: &mut Revision, since: &mut Time) {
    let listing = shared.list_at_last().await;
    (*after, *since) = (listing.revision, listing.end);
    listings.push(listing);
}

/// Why a watcher stops to follow a stream.
enum End {
    /// It has seen the last write, or waited for it too long.
    Done,
    Resume,
    Compacted,
}

/// Whether the last write was so long ago that waiting for it makes no sense.
fn over<S>(shared: &Shared<S>, deadline: &mut Option<Instant>) -> bool {
    if shared.last.load(Ordering::Relaxed) == 0 {
        return false;
    }
    Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + shared.load.patience)
}

async fn follow<S: Subject>(
    shared: &Shared<S>,
    manner: &Manner,
    rng: &mut StdRng,
    mut events: S::Events,
    stream: &mut Stream,
    deadline: &mut Option<Instant>,
) -> End {
    loop {
        let notes = tokio::time::timeout(Duration::from_millis(20), events.next()).await;
        let time = shared.now();
        let ended = notes.as_ref().is_ok_and(Vec::is_empty);
        for note in notes.unwrap_or_default() {
            stream.notes.push((time, note));
        }
        let last = shared.last.load(Ordering::Relaxed);
        let seen = stream.notes.iter().rev().take(NEWEST).any(|(_, note)| match note {
            Note::Event { revision, .. } => *revision >= last,
            Note::Bookmark(_) => false,
        });
        if last > 0 && (seen || stream.after >= last) {
            return End::Done;
        }
        if over(shared, deadline) {
            return End::Done;
        }
        if ended || manner.resumes_after.is_some_and(|notes| rng.random_ratio(1, notes)) {
            return if ended && events.is_compacted() { End::Compacted } else { End::Resume };
        }
        if let Some(pause) = manner.slow {
            tokio::time::sleep(pause.mul_f64(rng.random::<f64>() * 2.0)).await;
        }
    }
}
