//! How long whole runs took, phase by phase: ours and upstream's, in `conformance/phases.tsv`. Single tests are in the table of results.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

pub const RECORD: &str = "conformance/phases.tsv";
const HEADER: &str = "cluster\tround\tphase\ttests\tworkers\tseconds\tload_before";

/// A phase of a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// `ours` or `upstream`.
    pub cluster: String,
    /// From 1.
    pub round: usize,
    pub name: String,
    pub tests: usize,
    pub workers: usize,
    pub seconds: f64,
    /// Load average of the minute before it began.
    pub load: String,
}

/// How busy the machine has been in the last minute.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// None if there is no file.
pub fn read(path: &Path) -> Result<Vec<Phase>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(Vec::new()) };
    text.lines().skip(1).map(|line| phase(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}

/// Writes a round's phases in place of that round's and later ones of the same cluster.
pub fn record(path: &Path, round: &[Phase]) -> Result<()> {
    let Some(first) = round.first() else { return Ok(()) };
    let mut all = read(path)?;
    all.retain(|phase| phase.cluster != first.cluster || phase.round < first.round);
    all.extend_from_slice(round);
    all.sort_by(|a, b| (&a.cluster, a.round).cmp(&(&b.cluster, b.round)));
    let mut text = format!("{HEADER}\n");
    for Phase { cluster, round, name, tests, workers, seconds, load } in all {
        text.push_str(&format!("{cluster}\t{round}\t{name}\t{tests}\t{workers}\t{seconds:.0}\t{load}\n"));
    }
    Ok(fs::write(path, text)?)
}

fn phase(line: &str) -> Result<Phase> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [cluster, round, name, tests, workers, seconds, load] = fields[..] else { bail!("not seven fields") };
    Ok(Phase {
        cluster: cluster.to_owned(),
        round: round.parse()?,
        name: name.to_owned(),
        tests: tests.parse()?,
        workers: workers.parse()?,
        seconds: seconds.parse()?,
        load: load.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_replaces_itself_and_what_came_after() -> Result<()> {
        let path = std::env::temp_dir().join(format!("coxswain-phases-{}.tsv", std::process::id()));
        let phase = |cluster: &str, round, seconds| Phase {
            cluster: cluster.into(),
            round,
            name: "serial".into(),
            tests: 20,
            workers: 1,
            seconds,
            load: "0.5".into(),
        };
        for each in [phase("upstream", 1, 9.0), phase("ours", 1, 1.0), phase("ours", 2, 2.0), phase("ours", 1, 3.0)] {
            record(&path, &[each])?;
        }
        let read = read(&path)?;
        fs::remove_file(&path)?;
        assert_eq!(read, vec![phase("ours", 1, 3.0), phase("upstream", 1, 9.0)]);
        Ok(())
    }
}
