//! Rows, on the terminal and in the file of recorded runs.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

/// One measurement. What a row does not have is left out.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub name: String,
    pub per_second: Option<f64>,
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// Seconds of the server's processor time for 1,000 operations.
    pub cpu_per_1000: Option<f64>,
    pub rss_before_kib: u64,
    pub rss_after_kib: u64,
    pub note: String,
}

impl Row {
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

#[derive(Default)]
pub struct Report {
    /// Each with the machine's load average when it was known.
    rows: Vec<(Row, String)>,
}

const COLUMNS: &str = "date\tcommit\tcores\tmemory GiB\trow\tops/s\tp50 ms\tp99 ms\tcpu s/1000\trss MiB\tload";

impl Report {
    /// Shows a row as soon as it is known.
    pub fn add(&mut self, row: Row) {
        if self.rows.is_empty() {
            println!(
                "{:<22} {:>9} {:>9} {:>9} {:>11} {:>16}  note",
                "row", "ops/s", "p50 ms", "p99 ms", "cpu s/1000", "rss MiB"
            );
        }
        println!(
            "{:<22} {:>9} {:>9} {:>9} {:>11} {:>7.1} → {:>6.1}  {}",
            row.name,
            rate(row.per_second),
            number(row.p50.map(millis), 2),
            number(row.p99.map(millis), 2),
            number(row.cpu_per_1000, 4),
            mebibytes(row.rss_before_kib),
            mebibytes(row.rss_after_kib),
            row.note
        );
        self.rows.push((row, load_average()));
    }

    /// Appends the rows to `file`, with what they were measured on.
    pub fn record(&self, file: &Path) -> Result<()> {
        let mut text = if file.exists() { String::new() } else { format!("{COLUMNS}\n") };
        let date = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%MZ");
        let (commit, cores, memory) = (commit(), cores(), memory_gib());
        for (row, load) in &self.rows {
            writeln!(
                text,
                "{date}\t{commit}\t{cores}\t{memory:.0}\t{}\t{}\t{}\t{}\t{}\t{}\t{load}",
                row.name,
                rate(row.per_second),
                number(row.p50.map(millis), 3),
                number(row.p99.map(millis), 3),
                number(row.cpu_per_1000, 4),
                number((row.rss_after_kib > 0).then(|| mebibytes(row.rss_after_kib)), 1),
            )?;
        }
        fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(text.as_bytes())?;
        Ok(())
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
}

/// Small rates need their fractions.
fn rate(value: Option<f64>) -> String {
    number(value, if value.is_some_and(|rate| rate < 100.0) { 2 } else { 0 })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Of the last minute: how many wanted a core at a time, on average.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn memory_gib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0.0) / (1024.0 * 1024.0)
}
