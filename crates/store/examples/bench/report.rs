//! The table.

use std::fmt::Write as _;
use std::time::Duration;

use crate::load::{OBJECTS, Sample};

pub struct Row {
    name: String,
    ours: String,
    etcd: String,
    /// How many times better ours is.
    ratio: f64,
}

pub struct Table {
    rows: Vec<Row>,
    load: String,
}

/// The machine's load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn per_second(sample: &Sample) -> f64 {
    sample.times.len() as f64 / sample.took.as_secs_f64()
}

/// The median of the samples in words.
fn rate(mut samples: Vec<Sample>) -> String {
    samples.sort_by(|a, b| per_second(a).total_cmp(&per_second(b)));
    let (least, most) = (per_second(&samples[0]), per_second(&samples[samples.len() - 1]));
    let sample = &samples[samples.len() / 2];
    let rate = per_second(sample);
    let p99 = sample.times[sample.times.len() * 99 / 100];
    let cpu = sample.cpu.as_secs_f64() * 1000.0 / (sample.times.len() as f64 / 1000.0);
    format!("{rate:.0}/s ({least:.0}–{most:.0}), p99 {p99:.2?}, CPU {cpu:.1} ms/1000")
}

impl Row {
    pub fn rates(name: &str, ours: Vec<Sample>, etcd: Vec<Sample>) -> Row {
        let mut ratios: Vec<f64> =
            ours.iter().zip(&etcd).map(|(ours, etcd)| per_second(ours) / per_second(etcd)).collect();
        ratios.sort_by(f64::total_cmp);
        Row { name: name.to_owned(), ours: rate(ours), etcd: rate(etcd), ratio: ratios[ratios.len() / 2] }
    }

    pub fn times(name: &str, [ours, etcd]: [Duration; 2]) -> Row {
        let ratio = etcd.as_secs_f64() / ours.as_secs_f64();
        Row { name: name.to_owned(), ours: format!("{ours:.1?}"), etcd: format!("{etcd:.1?}"), ratio }
    }

    /// Of all objects together.
    pub fn bytes(name: &str, [ours, etcd]: [u64; 2]) -> Row {
        let text = |bytes: u64| format!("{} ({} MiB)", bytes / OBJECTS as u64, bytes >> 20);
        Row { name: name.to_owned(), ours: text(ours), etcd: text(etcd), ratio: etcd as f64 / ours as f64 }
    }
}

impl Table {
    pub fn start() -> Table {
        Table { rows: Vec::new(), load: load() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("{}: {} | {} | load average {}", row.name, row.ours, row.etcd, load());
        self.rows.push(row);
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("Load average {} before, {} after.\n\n", self.load, load());
        text.push_str("| work | the store | etcd | ratio |\n|---|---|---|---|\n");
        for row in &self.rows {
            _ = writeln!(text, "| {} | {} | {} | {:.1}× |", row.name, row.ours, row.etcd, row.ratio);
        }
        text
    }
}
