//! From the rows of both sides to one table of ours, upstream's and the ratio. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A row of `bench/results.tsv`: its cells after date, commit and machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub per_second: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Seconds for 1,000 operations, or for 1,000 seconds of doing nothing.
    pub cpu: Option<f64>,
    pub rss_mib: Option<f64>,
    /// The machine's load average when the row was known.
    pub load: Option<f64>,
}

/// By name, and the names in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub order: Vec<String>,
    pub by_name: BTreeMap<String, Row>,
}

/// Columns of a record before its row's name.
const BEFORE_NAME: usize = 4;

impl Rows {
    /// Reads records as the bench writes them. A row that comes again replaces what was there.
    pub fn parse(text: &str) -> Self {
        let mut rows = Rows::default();
        for line in text.lines().filter(|line| !line.starts_with("date\t")) {
            let mut cells = line.split('\t').skip(BEFORE_NAME);
            let Some(name) = cells.next() else { continue };
            let mut number = || cells.next().and_then(|cell| cell.parse().ok());
            let row = Row {
                per_second: number(),
                p50_ms: number(),
                p99_ms: number(),
                cpu: number(),
                rss_mib: number(),
                load: number(),
            };
            if rows.by_name.insert(name.to_owned(), row).is_none() {
                rows.order.push(name.to_owned());
            }
        }
        rows
    }
}

/// What of a row is compared.
struct Measure {
    title: &'static str,
    of: fn(&Row) -> Option<f64>,
    more_is_better: bool,
    /// The rows that have it, by the start of their names. Elsewhere the figure means nothing.
    rows: &'static [&'static str],
}

const MEASURES: [Measure; 7] = [
    Measure { title: "time, ms", of: |row| row.p50_ms, more_is_better: false, rows: &["ready", "node ready"] },
    Measure {
        title: "a second",
        of: |row| row.per_second,
        more_is_better: true,
        rows: &["create", "get pod", "merge", "server-side", "watch", "schedule", "run", "node 30 pods"],
    },
    Measure {
        title: "p50, ms",
        of: |row| row.p50_ms,
        more_is_better: false,
        rows: &["create pod", "get pod", "merge", "server-side", "list", "schedule", "node pod"],
    },
    Measure {
        title: "p99, ms",
        of: |row| row.p99_ms,
        more_is_better: false,
        rows: &["create pod", "get pod", "merge", "server-side", "list", "schedule", "node pod"],
    },
    Measure {
        title: "CPU s per 1,000",
        of: |row| row.cpu,
        more_is_better: false,
        rows: &["create", "get pod", "merge", "server-side", "list", "watch", "schedule"],
    },
    Measure {
        title: "CPU s per 1,000 s",
        of: |row| row.cpu,
        more_is_better: false,
        rows: &["idle", "1000 nodes", "5000 nodes", "node idle"],
    },
    Measure {
        title: "memory, MiB",
        of: |row| row.rss_mib,
        more_is_better: false,
        rows: &["idle", "memory", "1000 nodes", "5000 nodes", "node idle"],
    },
];

/// One line of the comparison. `advantage` is how many times better ours is, whichever way that is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub row: String,
    pub what: &'static str,
    pub ours: f64,
    pub upstream: Option<f64>,
    pub advantage: Option<f64>,
    /// Load averages of the machine, ours and upstream's.
    pub loads: [Option<f64>; 2],
}

/// What both have, row by row. What upstream lacks is shown without a ratio.
pub fn lines(ours: &Rows, upstream: &Rows) -> Vec<Line> {
    let mut lines = Vec::new();
    for name in &ours.order {
        let (Some(own), other) = (ours.by_name.get(name), upstream.by_name.get(name)) else { continue };
        for measure in MEASURES.iter().filter(|measure| measure.rows.iter().any(|start| name.starts_with(start))) {
            let Some(value) = (measure.of)(own) else { continue };
            let theirs = other.and_then(measure.of);
            let advantage = theirs.map(|theirs| if measure.more_is_better { value / theirs } else { theirs / value });
            let advantage = advantage.filter(|times| times.is_finite());
            let loads = [own.load, other.and_then(|row| row.load)];
            lines.push(Line {
                row: name.clone(),
                what: measure.title,
                ours: value,
                upstream: theirs,
                advantage,
                loads,
            });
        }
    }
    lines
}

/// The table as Markdown, and below it the lines of the smallest advantage.
pub fn markdown(lines: &[Line], worst: usize) -> String {
    let mut text = "| row | measure | ours | upstream | ours is better by | load, ours and upstream |\n|---|---|---|---|---|---|\n".to_owned();
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            line.row,
            line.what,
            figure(Some(line.ours)),
            figure(line.upstream),
            line.advantage.map_or_else(|| "–".to_owned(), |times| format!("{times:.1}×")),
            line.loads.map(|load| load.map_or_else(|| "?".to_owned(), |load| format!("{load:.1}"))).join(", "),
        );
    }
    let mut ranked: Vec<&Line> = lines.iter().filter(|line| line.advantage.is_some()).collect();
    ranked.sort_by(|a, b| a.advantage.partial_cmp(&b.advantage).unwrap_or(std::cmp::Ordering::Equal));
    text.push_str("\nSmallest advantages: ");
    let named = ranked
        .iter()
        .take(worst)
        .map(|line| format!("{}, {} ({:.1}×)", line.row, line.what, line.advantage.unwrap_or_default()));
    text.push_str(&named.collect::<Vec<_>>().join("; "));
    text.push_str(".\n");
    text
}

/// Three digits that count.
fn figure(value: Option<f64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "date\tcommit\tcores\tmemory GiB\trow\tops/s\tp50 ms\tp99 ms\tcpu s/1000\trss MiB
d\tc\t2\t24\tready\t-\t40.0\t-\t-\t37.0
d\tc\t2\t24\tcreate pod\t5000\t5.0\t9.0\t0.1000\t50.0
d\tc\t2\t24\tnode pod start\t7\t130.0\t150.0\t38.0\t95.0
d\tc\t2\t24\tcreate pod\t6000\t5.0\t9.0\t0.1000\t50.0
";
    const UPSTREAM: &str = "d\tc\t2\t24\tready\t-\t4000.0\t-\t-\t370.0
d\tc\t2\t24\tcreate pod\t800\t40.0\t90.0\t2.0000\t500.0\t3.5
";

    #[test]
    fn ratios_say_how_much_better_ours_is() {
        let lines = lines(&Rows::parse(OURS), &Rows::parse(UPSTREAM));
        let shown: Vec<(String, Option<f64>)> =
            lines.iter().map(|line| (format!("{}, {}", line.row, line.what), line.advantage)).collect();
        let of = |what: &str| shown.iter().find(|(name, _)| name == what).map(|(_, times)| *times);
        assert_eq!(of("ready, time, ms"), Some(Some(100.0)));
        assert_eq!(of("create pod, a second"), Some(Some(7.5)), "the later row counts");
        assert_eq!(of("create pod, CPU s per 1,000"), Some(Some(20.0)));
        assert_eq!(of("node pod start, p50, ms"), Some(None), "upstream has none");
        assert_eq!(of("create pod, memory, MiB"), None, "no measure of that row");
    }

    #[test]
    fn the_table_names_the_worst() {
        let text = markdown(&lines(&Rows::parse(OURS), &Rows::parse(UPSTREAM)), 1);
        assert!(text.contains("| create pod | CPU s per 1,000 | 0.1000 | 2.00 | 20.0× | ?, 3.5 |"), "{text}");
        assert!(text.ends_with("Smallest advantages: create pod, a second (7.5×).\n"), "{text}");
    }
}
