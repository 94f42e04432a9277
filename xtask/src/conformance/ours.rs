//! Our own tests, of what the suite is too old for: the program `conformance`, run against the same cluster.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::suite;
use super::table::{Outcome, Verdict};
use crate::e2e::host;

/// The names of the conformance tests of v1.37 that v1.20 does not have.
pub fn wanted() -> Result<BTreeSet<String>> {
    let path = crate::root().join("crates/conformance/data/names.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect())
}

/// Builds the program, if it is written yet.
pub fn build() -> Result<Option<PathBuf>> {
    if !crate::root().join("crates/conformance/Cargo.toml").is_file() {
        return Ok(None);
    }
    let words = ["build", "--quiet", "--release", "--package", "conformance"];
    host::run(Command::new("cargo").args(words).current_dir(crate::root()))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(Some(target.join("release/conformance")))
}

/// The tests that the program has, of those that match `focus` and not `skip`.
pub fn list(program: &Path, focus: Option<&str>, skip: Option<&str>) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.arg("--list").args(focus.iter().flat_map(|focus| ["--focus", focus]));
    command.args(skip.iter().flat_map(|skip| ["--skip", skip]));
    let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("{} lists nothing: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Runs the tests of these names and tells each outcome as it comes.
pub fn run(
    program: &Path,
    kubeconfig: &Path,
    names: &[String],
    parallel: usize,
    logs: &Path,
    tell: &dyn Fn(Outcome),
) -> Result<()> {
    let escaped: Vec<String> = names.iter().map(|name| suite::escape(name)).collect();
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(kubeconfig).arg("--junit").arg(logs.join("ours.xml"));
    command.args(["--parallel", &parallel.to_string(), "--focus", &format!("^({})$", escaped.join("|"))]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(logs.join("ours.txt"))?);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let output = child.stdout.take().context("its output is a pipe")?;
    for line in BufReader::new(output).lines() {
        if let Some(outcome) = outcome(&line?) {
            tell(outcome);
        }
    }
    // It fails if a test does, which the table says better.
    child.wait()?;
    Ok(())
}

/// `ok NAME SECONDS` or `FAILED NAME SECONDS: CAUSE`; the name has spaces, and may have colons.
fn outcome(line: &str) -> Option<Outcome> {
    let made = |name: &str, verdict, seconds, cause: &str| Outcome {
        name: name.trim().to_owned(),
        verdict,
        seconds,
        cause: cause.trim().to_owned(),
    };
    if let Some(rest) = line.strip_prefix("ok ") {
        let (name, seconds) = rest.trim_end().rsplit_once(' ')?;
        return Some(made(name, Verdict::Passed, number(seconds)?, ""));
    }
    let rest = line.strip_prefix("FAILED ")?;
    // The first colon that seconds stand before.
    let ends = rest.match_indices(':').map(|(at, _)| (&rest[..at], &rest[at + 1..]));
    ends.into_iter().find_map(|(head, cause)| {
        let (name, seconds) = head.rsplit_once(' ')?;
        Some(made(name, Verdict::Failed, number(seconds)?, cause))
    })
}

fn number(word: &str) -> Option<f64> {
    word.trim_end_matches('s').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program_are_read() {
        let found = outcome("ok [sig-a] a test: of colons [Conformance] 1.5").map(|o| (o.name, o.verdict, o.seconds));
        assert_eq!(found, Some(("[sig-a] a test: of colons [Conformance]".to_owned(), Verdict::Passed, 1.5)));
        let found = outcome("FAILED [sig-a] b: c [Conformance] 2.0: status 404: gone").map(|o| (o.name, o.cause));
        assert_eq!(found, Some(("[sig-a] b: c [Conformance]".to_owned(), "status 404: gone".to_owned())));
        assert!(outcome("12 passed, 1 failed").is_none());
    }
}
