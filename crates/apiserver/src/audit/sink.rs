//! The way of events to where they are kept: truncated if too large, then at once or in batches from a bounded queue, to a log or a
//! webhook (upstream's `plugin/pkg/audit/{truncate,buffered,log,webhook}`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::event::Event;
use super::file::Output;
use super::metrics::Counters;
use super::policy::Level;
use super::webhook::Webhook;

/// Whether requests wait for their events to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do not: events wait in a queue, and are dropped where it is full.
    Batch,
    Blocking,
    /// And are refused where they cannot be recorded when they come.
    BlockingStrict,
}

/// Of [`Mode::Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Events that wait at most.
    pub buffer_size: usize,
    /// Events of one batch at most.
    pub max_size: usize,
    /// How long an event waits for its batch to fill.
    pub max_wait: Duration,
    /// Batches per second, and how many at once after a pause; none: no bound.
    pub throttle: Option<(f64, u32)>,
}

/// An event with more bytes of JSON loses its objects, and if that is not enough it is dropped. Upstream's bound of batches has no
/// effect: events come to be truncated one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    pub max_event_size: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub mode: Mode,
    pub batch: Batch,
    pub truncation: Option<Truncation>,
}

/// How an event looks in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

pub enum Target {
    Log(Output, Format),
    Webhook(Box<Webhook>),
}

impl Target {
    /// The name of the plugin in metrics and in the server's log.
    fn name(&self) -> &'static str {
        match self {
            Target::Log(..) => "log",
            Target::Webhook(_) => "webhook",
        }
    }

    /// Whether all were kept. Those that were not are counted.
    async fn keep(&self, events: &[Arc<Event>], counters: &Counters) -> bool {
        match self {
            Target::Log(output, format) => write(output, *format, events, counters),
            Target::Webhook(webhook) => match webhook.post(events).await {
                Ok(()) => true,
                Err(why) => {
                    counters.failed(self.name(), &why, events);
                    false
                }
            },
        }
    }
}

fn write(output: &Output, format: Format, events: &[Arc<Event>], counters: &Counters) -> bool {
    let mut all = true;
    for event in events {
        let written = match format {
            Format::Json => event.line().map_err(std::io::Error::from).and_then(|line| output.write(&line)),
            Format::Legacy => output.write(&(event.legacy() + "\n")),
        };
        if let Err(error) = written {
            counters.failed("log", &error.to_string(), std::slice::from_ref(event));
            all = false;
        }
    }
    all
}

/// One target, and how events get there.
pub struct Sink {
    target: Arc<Target>,
    mode: Mode,
    truncation: Option<Truncation>,
    /// Only of batches.
    queue: Option<mpsc::Sender<Arc<Event>>>,
    counters: Arc<Counters>,
}

/// What writes a sink's batches.
pub type Worker = JoinHandle<()>;

impl Sink {
    /// With the task that empties its queue, if it has one; `stop` makes it empty the queue a last time and end.
    pub fn new(
        target: Target,
        delivery: &Delivery,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) -> (Self, Option<Worker>) {
        let target = Arc::new(target);
        let (mut queue, mut worker) = (None, None);
        if delivery.mode == Mode::Batch {
            let (sender, events) = mpsc::channel(delivery.batch.buffer_size.max(1));
            let batcher = Batcher {
                target: target.clone(),
                batch: delivery.batch.clone(),
                counters: counters.clone(),
                events,
                under_way: TaskTracker::new(),
            };
            queue = Some(sender);
            worker = Some(tokio::spawn(batcher.run(stop)));
        }
        (Sink { target, mode: delivery.mode, truncation: delivery.truncation, queue, counters }, worker)
    }

    /// Hands an event on. False where it must be kept and was not.
    pub async fn process(&self, event: &Arc<Event>) -> bool {
        match self.offer(event) {
            Offered::Done(kept) => kept,
            Offered::Waits(event) => {
                let (target, counters) = (self.target.clone(), self.counters.clone());
                // By itself, so that it goes on if the client does not wait.
                let kept = tokio::spawn(async move { target.keep(&[event], &counters).await }).await;
                kept.unwrap_or(false) || self.mode != Mode::BlockingStrict
            }
        }
    }

    /// The same for those who cannot wait: what takes long goes on by itself.
    pub fn process_detached(&self, event: &Arc<Event>) {
        let Offered::Waits(event) = self.offer(event) else { return };
        let (target, counters) = (self.target.clone(), self.counters.clone());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { target.keep(&[event], &counters).await })),
            Err(_) => counters.failed(target.name(), "the server has stopped", &[event]),
        }
    }

    fn offer(&self, event: &Arc<Event>) -> Offered {
        let event = match self.truncated(event) {
            Ok(event) => event,
            // As upstream: what is too large for its target is no reason to refuse the request.
            Err(why) => {
                self.counters.failed("truncate", why, std::slice::from_ref(event));
                return Offered::Done(true);
            }
        };
        if let Some(queue) = &self.queue {
            if let Err(refused) = queue.try_send(event) {
                let (event, why) = match refused {
                    mpsc::error::TrySendError::Full(event) => (event, "audit buffer queue blocked"),
                    mpsc::error::TrySendError::Closed(event) => (event, "audit backend shut down"),
                };
                self.counters.failed("buffered", why, &[event]);
            }
            return Offered::Done(true);
        }
        match &*self.target {
            // A write to a file ends in the page cache: that is no more than a lock takes.
            Target::Log(output, format) => {
                let kept = write(output, *format, &[event], &self.counters);
                Offered::Done(kept || self.mode != Mode::BlockingStrict)
            }
            Target::Webhook(_) => Offered::Waits(event),
        }
    }

    fn truncated(&self, event: &Arc<Event>) -> Result<Arc<Event>, &'static str> {
        let Some(bound) = self.truncation else { return Ok(event.clone()) };
        let fits = |event: &Event| event.line().is_ok_and(|line| line.len() <= bound.max_event_size);
        if fits(event) {
            return Ok(event.clone());
        }
        let mut smaller = Event { request_object: None, response_object: None, ..Event::clone(event) };
        smaller.annotations.insert("audit.k8s.io/truncated".to_owned(), "true".to_owned());
        if event.level >= Level::Request && fits(&smaller) {
            return Ok(Arc::new(smaller));
        }
        Err("event is too large even after truncating")
    }
}

enum Offered {
    Done(bool),
    Waits(Arc<Event>),
}

struct Batcher {
    target: Arc<Target>,
    batch: Batch,
    counters: Arc<Counters>,
    events: mpsc::Receiver<Arc<Event>>,
    under_way: TaskTracker,
}

impl Batcher {
    async fn run(mut self, stop: CancellationToken) {
        let mut throttle = self.batch.throttle.map(|(per_second, burst)| Throttle::new(per_second, burst));
        while !stop.is_cancelled() {
            let batch = self.collect(&stop).await;
            self.send(batch, &mut throttle).await;
        }
        self.events.close();
        let mut rest = Vec::new();
        while let Some(event) = self.events.recv().await {
            rest.push(event);
        }
        for batch in rest.chunks(self.batch.max_size) {
            self.send(batch.to_vec(), &mut throttle).await;
        }
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// The next batch; what there is of it where the server stops. The wait begins with its first event, so that a server without
    /// requests never wakes for it.
    async fn collect(&mut self, stop: &CancellationToken) -> Vec<Arc<Event>> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.batch.max_size {
            let full_enough = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => {
                        until.get_or_insert_with(|| Instant::now() + self.batch.max_wait);
                        batch.push(event);
                    }
                    None => break,
                },
                () = full_enough => break,
                () = stop.cancelled() => break,
            }
        }
        batch
    }

    /// A log is written to by one at a time; webhooks may be slow, so the next batch does not wait for the last.
    async fn send(&self, batch: Vec<Arc<Event>>, throttle: &mut Option<Throttle>) {
        if batch.is_empty() {
            return;
        }
        if let Some(throttle) = throttle {
            throttle.turn().await;
        }
        let (target, counters) = (self.target.clone(), self.counters.clone());
        match &*self.target {
            Target::Log(..) => drop(target.keep(&batch, &counters).await),
            Target::Webhook(_) => drop(self.under_way.spawn(async move { target.keep(&batch, &counters).await })),
        }
    }
}

/// A bucket of turns that fills by `per_second`, up to `burst`.
struct Throttle {
    per_second: f64,
    burst: f64,
    turns: f64,
    at: Instant,
}

impl Throttle {
    fn new(per_second: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Throttle { per_second, burst, turns: burst, at: Instant::now() }
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * self.per_second;
        (self.turns, self.at) = ((self.turns + earned).min(self.burst) - 1.0, now);
        if self.turns < 0.0 {
            let pause = Duration::try_from_secs_f64(-self.turns / self.per_second).unwrap_or(Duration::MAX);
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::tests::event;
    use crate::audit::file::Rotation;

    fn delivery(mode: Mode) -> Delivery {
        let batch = Batch { buffer_size: 3, max_size: 2, max_wait: Duration::from_millis(50), throttle: None };
        Delivery { mode, batch, truncation: None }
    }

    struct Log {
        path: std::path::PathBuf,
        sink: Sink,
        worker: Option<Worker>,
        counters: Arc<Counters>,
        stop: CancellationToken,
    }

    impl Log {
        fn new(name: &str, delivery: &Delivery) -> Self {
            let path = std::env::temp_dir().join(format!("coxswain-audit-sink-{name}-{}.log", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let rotation = Rotation { max_megabytes: 0, max_age_days: 0, max_backups: 0, compress: false };
            let output = Output::open(path.to_str().unwrap(), rotation).unwrap();
            let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
            let (sink, worker) = Sink::new(Target::Log(output, Format::Json), delivery, counters.clone(), stop.clone());
            Log { path, sink, worker, counters, stop }
        }

        fn lines(&self) -> usize {
            std::fs::read_to_string(&self.path).unwrap().lines().count()
        }

        async fn until(&self, lines: usize) {
            let there = async {
                while self.lines() < lines {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), there).await.unwrap();
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_a_stop_loses_nothing() {
        let mut log = Log::new("full", &delivery(Mode::Batch));
        // The worker has not run yet: nothing here waits.
        for _ in 0..5 {
            log.sink.process_detached(&Arc::new(event()));
        }
        assert!(log.counters.render_text().contains("apiserver_audit_error_total{plugin=\"buffered\"} 2\n"));
        // A full batch at once, the rest in a while.
        log.until(2).await;
        log.until(3).await;
        assert!(log.sink.process(&Arc::new(event())).await);
        log.stop.cancel();
        log.worker.take().unwrap().await.unwrap();
        assert_eq!(log.lines(), 4);
        assert!(log.sink.process(&Arc::new(event())).await);
        assert!(log.counters.render_text().contains("apiserver_audit_error_total{plugin=\"buffered\"} 3\n"));
    }

    #[tokio::test]
    async fn blocking_is_kept_at_once_and_strict_says_what_is_not() {
        let log = Log::new("blocking", &delivery(Mode::Blocking));
        assert!(log.sink.process(&Arc::new(event())).await);
        assert_eq!(log.lines(), 1);
        for (mode, kept) in [(Mode::Blocking, true), (Mode::BlockingStrict, false)] {
            let rotation = Rotation { max_megabytes: 0, max_age_days: 0, max_backups: 0, compress: false };
            // Whatever is written there is refused by the system.
            let output = Output::open("/dev/full", rotation).unwrap();
            let counters = Arc::<Counters>::default();
            let target = Target::Log(output, Format::Legacy);
            let (sink, _) = Sink::new(target, &delivery(mode), counters.clone(), CancellationToken::new());
            assert_eq!(sink.process(&Arc::new(event())).await, kept);
            assert!(counters.render_text().contains("apiserver_audit_error_total{plugin=\"log\"} 1\n"));
        }
    }

    #[tokio::test]
    async fn what_is_too_large_loses_its_objects_or_goes() {
        let size = event().line().unwrap().len();
        let mut delivery = delivery(Mode::BlockingStrict);
        let bound = |max_event_size| Some(Truncation { max_event_size });
        delivery.truncation = bound(size);
        let log = Log::new("fits", &delivery);
        assert!(log.sink.process(&Arc::new(event())).await);
        assert!(std::fs::read_to_string(&log.path).unwrap().contains("requestObject"));
        delivery.truncation = bound(size - 1);
        let log = Log::new("small", &delivery);
        let large = serde_json::value::RawValue::from_string(format!("{:?}", "x".repeat(size))).unwrap();
        let large = Arc::new(Event { request_object: Some(Arc::from(large)), ..event() });
        delivery.truncation = bound(size + 50);
        let larger = Log::new("larger", &delivery);
        assert!(larger.sink.process(&large).await);
        let text = std::fs::read_to_string(&larger.path).unwrap();
        assert!(text.contains("\"annotations\":{\"audit.k8s.io/truncated\":\"true\"}"), "{text}");
        assert!(!text.contains("requestObject"), "{text}");
        assert!(log.sink.process(&Arc::new(Event { level: Level::Metadata, ..Event::clone(&large) })).await);
        assert_eq!(log.lines(), 0);
        assert!(log.counters.render_text().contains("apiserver_audit_error_total{plugin=\"truncate\"} 1\n"));
    }

    #[tokio::test]
    async fn batches_are_throttled() {
        let began = Instant::now();
        let mut throttle = Throttle::new(20.0, 2);
        for _ in 0..4 {
            throttle.turn().await;
        }
        // Two at once, and two turns of 50 ms.
        assert!(began.elapsed() >= Duration::from_millis(99), "{:?}", began.elapsed());
    }
}
