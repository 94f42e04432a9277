//! `apiserver_flowcontrol_*`.

use std::sync::atomic::Ordering::Relaxed;

use super::Fairness;
use super::levels::{Counters, Inner};
use super::queues::Refusal;
use crate::metrics::{Histogram, Text};

type OfLevel = (&'static str, &'static str, fn(&Inner) -> f64);
type OfFlow = (&'static str, &'static str, &'static str, fn(&Counters) -> f64);

const LEVELS: [OfLevel; 10] = [
    ("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", |i| {
        i.seats.nominal.into()
    }),
    ("lower_limit_seats", "Configured lower bound on number of execution seats of each priority level", |i| {
        i.seats.low.into()
    }),
    ("upper_limit_seats", "Configured upper bound on number of execution seats of each priority level", |i| {
        i.seats.high.into()
    }),
    ("current_limit_seats", "Number of execution seats that each priority level may use now", |i| {
        i.seats.current.into()
    }),
    ("demand_seats_high_watermark", "Highest demand for seats in the last adjustment period", |i| {
        i.seats.demand.high.into()
    }),
    ("demand_seats_average", "Time-weighted average demand for seats in the last adjustment period", |i| {
        i.seats.demand.average
    }),
    ("demand_seats_stdev", "Time-weighted standard deviation of demand for seats in the last adjustment period", |i| {
        i.seats.demand.deviation
    }),
    ("demand_seats_smoothed", "Smoothed seat demands", |i| i.seats.demand.smoothed),
    ("target_seats", "Seat allocation targets", |i| i.seats.target),
    ("current_r", "R(time of last change)", |i| i.queues.r_seconds()),
];

const FLOWS: [OfFlow; 5] = [
    ("dispatched_requests_total", "counter", "Number of requests executed by API Priority and Fairness", |c| {
        c.dispatched.load(Relaxed) as f64
    }),
    ("current_inqueue_requests", "gauge", "Number of requests now waiting in queues", |c| {
        c.waiting.load(Relaxed) as f64
    }),
    ("current_inqueue_seats", "gauge", "Number of seats that requests now waiting in queues ask for", |c| {
        c.waiting_seats.load(Relaxed) as f64
    }),
    (
        "current_executing_requests",
        "gauge",
        "Number of requests in initial (for a watch) or any execution stage",
        |c| c.executing.load(Relaxed) as f64,
    ),
    ("current_executing_seats", "gauge", "Number of seats that requests now executing occupy", |c| {
        c.executing_seats.load(Relaxed) as f64
    }),
];

const REFUSALS: [Refusal; 3] = [Refusal::ConcurrencyLimit, Refusal::QueueFull, Refusal::TimeOut];

fn name(short: &str) -> String {
    format!("apiserver_flowcontrol_{short}")
}

impl Fairness {
    pub fn render(&self, text: &mut Text) {
        self.adjust_if_due(self.now());
        let plan = self.plan();
        let fraction = self.adjusting.lock().fair_fraction;
        text.single(
            &name("seat_fair_frac"),
            "gauge",
            "Fair fraction of the server's seats for each priority level that can use it",
            fraction,
        );
        for (short, help, value) in LEVELS {
            text.family(&name(short), "gauge", help);
            for level in plan.levels.values() {
                let value = value(&level.inner.lock());
                text.sample(&name(short), &[("priority_level", &level.name)], value);
            }
        }
        let all: Vec<&Counters> = plan.flows.iter().map(|flow| &*flow.counters).collect();
        for (short, kind, help, value) in FLOWS {
            text.family(&name(short), kind, help);
            for counters in &all {
                text.sample(&name(short), &labels(counters), value(counters));
            }
        }
        refused(text, &all);
        histograms(
            text,
            "request_wait_duration_seconds",
            "Length of time a request spent waiting in its queue",
            &all,
            |c| vec![(Some(("execute", "true")), &c.waited[0]), (Some(("execute", "false")), &c.waited[1])],
        );
        histograms(
            text,
            "request_execution_seconds",
            "Duration of request execution (of its initial stage for a watch)",
            &all,
            |c| vec![(Some(("type", "regular")), &c.executed[0]), (Some(("type", "watch")), &c.executed[1])],
        );
        histograms(
            text,
            "request_queue_length_after_enqueue",
            "Requests that wait, as each that was queued saw it",
            &all,
            |c| vec![(None, &c.lengths)],
        );
        histograms(text, "watch_count_samples", "Count of watchers for mutating requests", &all, |c| {
            vec![(None, &c.watches)]
        });
        histograms(text, "work_estimated_seats", "Number of estimated seats of requests", &all, |c| {
            vec![(None, &c.widths)]
        });
    }
}

fn labels(counters: &Counters) -> [(&'static str, &str); 2] {
    [("flow_schema", &counters.schema), ("priority_level", &counters.level)]
}

/// As upstream, only what has been counted at least once.
fn refused(text: &mut Text, all: &[&Counters]) {
    let name = name("rejected_requests_total");
    text.family(&name, "counter", "Number of requests rejected by API Priority and Fairness");
    for counters in all {
        for why in REFUSALS {
            let count = counters.refused[why as usize].load(Relaxed);
            if count > 0 {
                let [schema, level] = labels(counters);
                text.sample(&name, &[schema, level, ("reason", why.as_str())], count);
            }
        }
    }
}

type Labelled<'a> = Vec<(Option<(&'static str, &'static str)>, &'a Histogram)>;

fn histograms<'a>(
    text: &mut Text,
    short: &str,
    help: &str,
    all: &[&'a Counters],
    of: fn(&'a Counters) -> Labelled<'a>,
) {
    let name = name(short);
    text.family(&name, "histogram", help);
    for counters in all {
        for (label, histogram) in of(counters) {
            if histogram.is_empty() {
                continue;
            }
            let [schema, level] = labels(counters);
            let labels: Vec<_> = [schema, level].into_iter().chain(label).collect();
            text.histogram(&name, &labels, histogram);
        }
    }
}
