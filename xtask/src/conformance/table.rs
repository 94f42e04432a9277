//! The table of results: a line for each test, checked in, compared with the run before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const HEADER: &str = "name\tkind\tsig\tresult\tseconds\tupstream_seconds\tin_v1.37\tcause";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Passed,
    Failed,
    /// Cannot be run here, or would mean nothing: never a pass.
    NotRunnable,
    /// Nobody has written it.
    Absent,
}

impl Verdict {
    const ALL: [(Verdict, &str); 4] = [
        (Verdict::Passed, "passed"),
        (Verdict::Failed, "failed"),
        (Verdict::NotRunnable, "not-runnable"),
        (Verdict::Absent, "absent"),
    ];

    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, word)| word)
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(verdict, _)| *verdict)
    }
}

/// What a run found out about a test.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub name: String,
    pub verdict: Verdict,
    pub seconds: f64,
    /// One line; empty for a pass.
    pub cause: String,
}

/// Whose test it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Upstream's own, run by upstream's program.
    Official,
    /// Our black-box test of what upstream's test of that name checks.
    Ours,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Official => "official",
            Kind::Ours => "ours",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub kind: Kind,
    pub verdict: Verdict,
    pub seconds: f64,
    /// What upstream needs for the same test on the same machine; empty until measured.
    pub upstream_seconds: String,
    /// Whether v1.37 still has the test.
    pub dropped: bool,
    pub cause: String,
}

/// Rows by name.
#[derive(Clone, Default)]
pub struct Table {
    pub rows: BTreeMap<String, Row>,
}

/// `sig-apps` of `[sig-apps] …`. Tests that v1.20 has under no group went to sig-node in v1.21.
pub fn sig(name: &str) -> &str {
    name.find("[sig-").and_then(|at| name[at + 1..].split(']').next()).unwrap_or("sig-node")
}

impl Table {
    /// An empty table if there is no file.
    pub fn read(path: &Path) -> Result<Self> {
        let Ok(text) = fs::read_to_string(path) else { return Ok(Table::default()) };
        let rows = text.lines().skip(1).map(|line| row(line).with_context(|| format!("{}: {line}", path.display())));
        Ok(Table { rows: rows.collect::<Result<_>>()? })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{HEADER}\n");
        for (name, row) in &self.rows {
            let fields = [
                name.as_str(),
                row.kind.word(),
                sig(name),
                row.verdict.word(),
                &format!("{:.1}", row.seconds),
                &row.upstream_seconds,
                if row.dropped { "dropped" } else { "yes" },
                &row.cause,
            ];
            text.push_str(&fields.map(|field| field.replace(['\t', '\n'], " ")).join("\t"));
            text.push('\n');
        }
        Ok(fs::write(path, text)?)
    }

    /// Seconds that each test took when last run.
    pub fn seconds(&self) -> BTreeMap<String, f64> {
        self.rows.iter().map(|(name, row)| (name.clone(), row.seconds)).collect()
    }

    /// Counts by group and verdict, as text.
    pub fn counts(&self) -> String {
        let mut text = String::new();
        for kind in [Kind::Official, Kind::Ours] {
            let mut groups: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
            for (name, row) in self.rows.iter().filter(|(_, row)| row.kind == kind) {
                for group in [sig(name), "total"] {
                    groups.entry(group).or_default()[row.verdict as usize] += 1;
                }
            }
            if groups.is_empty() {
                continue;
            }
            let head = Verdict::ALL.map(|(_, word)| format!("{word:>14}")).concat();
            text.push_str(&format!("{:<22}{head}\n", kind.word()));
            for (group, counts) in groups {
                text.push_str(&format!("  {group:<20}{}\n", counts.map(|count| format!("{count:>14}")).concat()));
            }
        }
        text
    }

    /// Tests of `self` whose verdict differs from `before`.
    pub fn difference(&self, before: &Table) -> Vec<(Verdict, Verdict, String)> {
        let changed = |(name, row): (&String, &Row)| {
            let old = before.rows.get(name)?;
            (old.verdict != row.verdict).then(|| (old.verdict, row.verdict, name.clone()))
        };
        self.rows.iter().filter_map(changed).collect()
    }
}

fn row(line: &str) -> Result<(String, Row)> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, kind, _, result, seconds, upstream, known, cause] = fields[..] else { bail!("not eight fields") };
    let kind = match kind {
        "official" => Kind::Official,
        "ours" => Kind::Ours,
        _ => bail!("no kind {kind:?}"),
    };
    let verdict = Verdict::parse(result).with_context(|| format!("no result {result:?}"))?;
    let row = Row {
        kind,
        verdict,
        seconds: seconds.parse()?,
        upstream_seconds: upstream.to_owned(),
        dropped: known == "dropped",
        cause: cause.to_owned(),
    };
    Ok((name.to_owned(), row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(seconds: f64) -> Row {
        let upstream_seconds = String::new();
        Row {
            kind: Kind::Official,
            verdict: Verdict::Passed,
            seconds,
            upstream_seconds,
            dropped: false,
            cause: String::new(),
        }
    }

    #[test]
    fn a_table_survives_its_file() -> Result<()> {
        let path = std::env::temp_dir().join(format!("coxswain-table-{}.tsv", std::process::id()));
        let failed = Row { verdict: Verdict::Failed, cause: "a\tb\nc".into(), dropped: true, ..passed(2.0) };
        let table = Table { rows: BTreeMap::from([("[sig-a] x".into(), passed(1.25)), ("y".into(), failed)]) };
        table.write(&path)?;
        let read = Table::read(&path)?;
        fs::remove_file(&path)?;
        assert_eq!(read.rows["y"].cause, "a b c");
        assert!(read.rows["y"].dropped && !read.rows["[sig-a] x"].dropped);
        assert!(read.difference(&table).is_empty());
        Ok(())
    }

    #[test]
    fn the_difference_names_what_changed_only() {
        let before = Table { rows: BTreeMap::from([("x".into(), passed(1.0)), ("y".into(), passed(1.0))]) };
        let mut after = before.clone();
        after.rows.insert("y".into(), Row { verdict: Verdict::Failed, ..passed(1.0) });
        after.rows.insert("z".into(), passed(1.0));
        assert_eq!(after.difference(&before), vec![(Verdict::Passed, Verdict::Failed, "y".to_owned())]);
    }

    #[test]
    fn a_name_tells_its_group() {
        assert_eq!(sig("[k8s.io] [sig-node] PreStop x"), "sig-node");
        assert_eq!(sig("[k8s.io] Pods x"), "sig-node");
        assert_eq!(sig("[sig-apps] x"), "sig-apps");
    }
}
