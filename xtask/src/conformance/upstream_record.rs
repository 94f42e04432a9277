//! What upstream's own cluster needs for each test, in the record of ours; and both compared, for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::cache::VERSION;
use super::phases::{self, Phase};
use super::table::{Kind, Outcome, Row, Table, Verdict};
use super::{Outcomes, RECORD};

const README: &str = "conformance/README.md";
const BEGIN: &str = "<!-- from here to the end mark: cargo xtask conformance compare -->";
const END: &str = "<!-- end -->";
/// A difference of fewer seconds is the machine's.
const NOTICED: f64 = 2.0;
/// How many of the largest gains are named.
const GAINS: usize = 10;

/// The best outcome of each test in several rounds.
fn best(rounds: &[Outcomes]) -> Vec<&Outcome> {
    let mut all: Vec<&Outcome> = rounds.iter().flat_map(|round| round.values().map(|(_, outcome)| outcome)).collect();
    all.sort_by(|a, b| (&a.name, a.verdict).cmp(&(&b.name, b.verdict)).then(a.seconds.total_cmp(&b.seconds)));
    all.dedup_by(|later, kept| later.name == kept.name);
    all
}

/// Prints counts, writes all that was found out to `found`, and if `record`, the times of what passed to the record, where nothing else
/// changes. What was run and did not pass loses its time.
pub fn conclude(rounds: &[Outcomes], found: &Path, record: bool) -> Result<()> {
    let best = best(rounds);
    let row = |outcome: &Outcome| Row {
        kind: Kind::Official,
        verdict: outcome.verdict,
        seconds: outcome.seconds,
        upstream_seconds: String::new(),
        dropped: false,
        cause: outcome.cause.clone(),
    };
    let run = Table { rows: best.iter().map(|outcome| (outcome.name.clone(), row(outcome))).collect() };
    println!("\nupstream's cluster:\n{}", run.counts());
    run.write(found)?;
    if !record {
        return Ok(());
    }
    let path = crate::root().join(RECORD);
    // As it is now: a run of ours may have written it meanwhile.
    let mut table = Table::read(&path)?;
    times(&mut table, &best);
    table.write(&path)?;
    println!("recorded in {RECORD}");
    Ok(())
}

fn times(table: &mut Table, outcomes: &[&Outcome]) {
    for outcome in outcomes {
        if let Some(row) = table.rows.get_mut(&outcome.name) {
            let passed = outcome.verdict == Verdict::Passed;
            row.upstream_seconds = if passed { format!("{:.1}", outcome.seconds) } else { String::new() };
        }
    }
}

/// `cargo xtask conformance compare`: writes the section of the README that compares what is recorded.
pub fn compare() -> Result<()> {
    let table = Table::read(&crate::root().join(RECORD))?;
    let phases = phases::read(&crate::root().join(phases::RECORD))?;
    let path = crate::root().join(README);
    let text = fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("{README} has no {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{README} has no {END}"))?;
    let section = section(&table, &phases);
    println!("{section}");
    Ok(fs::write(path, format!("{before}{BEGIN}\n{section}{END}{after}"))?)
}

/// A test that passed on both.
struct Both<'a> {
    name: &'a str,
    ours: f64,
    upstream: f64,
}

fn section(table: &Table, recorded: &[Phase]) -> String {
    let official = || table.rows.iter().filter(|(_, row)| row.kind == Kind::Official);
    let ours = official().filter(|(_, row)| row.verdict == Verdict::Passed).count();
    let upstream = official().filter(|(_, row)| !row.upstream_seconds.is_empty()).count();
    let passed_both = |(name, row): (&'_ String, &'_ Row)| {
        let time: f64 = row.upstream_seconds.parse().ok()?;
        (row.verdict == Verdict::Passed).then(|| (name.clone(), row.seconds, time))
    };
    let both: Vec<(String, f64, f64)> = official().filter_map(passed_both).collect();
    let mut both: Vec<Both<'_>> =
        both.iter().map(|(name, ours, upstream)| Both { name, ours: *ours, upstream: *upstream }).collect();
    let sum = |of: fn(&Both<'_>) -> f64| both.iter().map(of).sum::<f64>();
    let mut text = String::new();
    let mut line = |words: String| writeln!(text, "{words}").unwrap_or_default();
    line(format!(
        "Of the {} official tests, {ours} pass on ours and {upstream} on upstream's cluster of {VERSION}.",
        official().count()
    ));
    line(format!(
        "The {} that pass on both take {:.0} s of ours and {:.0} s of upstream's, added up; the median test takes {:.2} of upstream's time.\n",
        both.len(),
        sum(|test| test.ours),
        sum(|test| test.upstream),
        median(both.iter().map(|test| test.ours / test.upstream.max(0.1)).collect()),
    ));
    line("| phase | cluster | round | tests | at a time | seconds | load average before |\n|---|---|---|---|---|---|---|".to_owned());
    for Phase { cluster, round, name, tests, workers, seconds, load } in recorded {
        line(format!("| {name} | {cluster} | {round} | {tests} | {workers} | {seconds:.0} | {load} |"));
    }
    both.sort_by(|a, b| (a.ours - a.upstream).total_cmp(&(b.ours - b.upstream)));
    let slower: Vec<&Both<'_>> = both.iter().rev().take_while(|test| test.ours - test.upstream > NOTICED).collect();
    line(format!("\nSlower on ours by more than {NOTICED} s: {} of {}.\n", slower.len(), both.len()));
    rows(&mut line, slower.into_iter());
    line("\nThe largest gains:\n".to_owned());
    rows(&mut line, both.iter().take_while(|test| test.ours < test.upstream).take(GAINS));
    text
}

fn rows<'a>(line: &mut impl FnMut(String), tests: impl Iterator<Item = &'a Both<'a>>) {
    let mut tests = tests.peekable();
    if tests.peek().is_some() {
        line("| test | ours, s | upstream, s | difference, s |\n|---|---|---|---|".to_owned());
    }
    for Both { name, ours, upstream } in tests {
        line(format!("| {} | {ours:.1} | {upstream:.1} | {:+.1} |", name.replace('|', "\\|"), ours - upstream));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn outcome(name: &str, verdict: Verdict, seconds: f64) -> Outcome {
        Outcome { name: name.into(), verdict, seconds, cause: String::new() }
    }

    fn round(outcomes: &[Outcome]) -> Outcomes {
        outcomes.iter().map(|outcome| (outcome.name.clone(), (Kind::Official, outcome.clone()))).collect()
    }

    fn row(seconds: f64, upstream_seconds: &str) -> Row {
        Row {
            kind: Kind::Official,
            verdict: Verdict::Passed,
            seconds,
            upstream_seconds: upstream_seconds.into(),
            dropped: false,
            cause: String::new(),
        }
    }

    #[test]
    fn the_better_of_two_rounds_counts_and_a_failure_has_no_time() {
        let rounds = [
            round(&[outcome("x", Verdict::Passed, 9.0), outcome("y", Verdict::Failed, 1.0)]),
            round(&[outcome("x", Verdict::Passed, 4.0), outcome("y", Verdict::Failed, 2.0)]),
        ];
        let rows = ["x", "y", "z"].map(|name| (name.to_owned(), row(1.0, "7.0")));
        let mut table = Table { rows: BTreeMap::from(rows) };
        times(&mut table, &best(&rounds));
        let times: Vec<&str> = table.rows.values().map(|row| row.upstream_seconds.as_str()).collect();
        assert_eq!(times, ["4.0", "", "7.0"]);
    }

    #[test]
    fn a_pass_is_better_than_a_faster_failure() {
        let rounds = [round(&[outcome("x", Verdict::Failed, 1.0)]), round(&[outcome("x", Verdict::Passed, 5.0)])];
        assert_eq!(best(&rounds)[0].seconds, 5.0);
    }

    #[test]
    fn what_is_slower_and_what_gains_are_told_apart() {
        let rows =
            [("fast", row(1.0, "9.0")), ("same", row(5.0, "4.0")), ("slow", row(9.5, "4.0")), ("alone", row(1.0, ""))];
        let table = Table { rows: rows.map(|(name, row)| (name.to_owned(), row)).into() };
        let text = section(&table, &[]);
        assert!(text.contains("Of the 4 official tests, 4 pass on ours and 3 on upstream's"), "{text}");
        let (slower, gains) = text.split_once("The largest gains").expect("both lists");
        assert!(slower.contains("| slow | 9.5 | 4.0 | +5.5 |") && !slower.contains("| same"), "{text}");
        assert!(gains.contains("| fast | 1.0 | 9.0 | -8.0 |") && !gains.contains("| slow"), "{text}");
    }
}
