//! The official suite's program: lists its conformance tests and runs some of them in one process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cache::Cache;
use super::junit::{self, State};
use super::table::{Outcome, Verdict};

/// A test that takes longer has failed. Upstream's own waits end after fifteen minutes, and then say what they waited for.
const TEST_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How the suite reaches the cluster.
pub struct Suite {
    pub program: PathBuf,
    pub kubectl: PathBuf,
    pub source: PathBuf,
    pub kubeconfig: PathBuf,
    /// `application/json` or protobuf's.
    pub content_type: &'static str,
    /// Logs and reports.
    pub logs: PathBuf,
}

/// The conformance tests of the suite that match `focus` and not `skip`, regular expressions of Go's, in the order of names.
pub fn list(cache: &Cache, focus: Option<&str>, skip: Option<&str>) -> Result<Vec<String>> {
    let output = Command::new(cache.program("e2e.test"))
        .args(["--provider=local", "--ginkgo.dryRun", "--ginkgo.noColor"])
        .arg(format!("--ginkgo.focus={}", focus.unwrap_or("Conformance")))
        .arg(format!("--ginkgo.skip={}", skip.unwrap_or_default()))
        .arg(format!("--repo-root={}", cache.at("source").display()))
        .output()
        .context("cannot run the suite")?;
    if !output.status.success() {
        bail!("the suite lists nothing: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut names: Vec<String> =
        text.lines().filter_map(finished).map(|(_, name)| name).filter(|n| n.contains("[Conformance]")).collect();
    names.sort();
    Ok(names)
}

/// The suite tells each test's end in a line of JSON, after ginkgo's own sign: whether it passed, and its name.
fn finished(line: &str) -> Option<(bool, String)> {
    let report: serde_json::Value = serde_json::from_str(line.get(line.find("{\"msg\":")?..)?).ok()?;
    let (verdict, name) = report["msg"].as_str()?.split_once(' ')?;
    match verdict {
        "PASSED" => Some((true, name.to_owned())),
        "FAILED" => Some((false, name.to_owned())),
        _ => None,
    }
}

/// A regular expression that matches these tests and no others.
fn focus(tests: &[String]) -> String {
    let escaped: Vec<String> = tests.iter().map(|name| escape(name)).collect();
    format!("({})$", escaped.join("|"))
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

impl Suite {
    /// Runs `tests` one after the other in a process of their own, which is number `turn`. Tests without an outcome in what returns
    /// were not reached: the process hung or died before.
    pub fn run(&self, tests: &[String], turn: usize) -> Result<Vec<Outcome>> {
        let reports = self.logs.join(format!("{turn:03}"));
        fs::create_dir_all(&reports)?;
        let log = reports.join("log.txt");
        let errors = File::create(reports.join("errors.txt"))?;
        let mut child = self
            .command(tests, &reports)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot run the suite")?;
        let (seen, whole) = follow(&mut child, &log)?;
        let reported = fs::read_to_string(reports.join("junit_01.xml")).unwrap_or_default();
        // A report has a line for each of thousands of tests that were not asked for.
        let cases: BTreeMap<String, junit::Case> =
            junit::cases(&reported).into_iter().map(|case| (case.name.clone(), case)).collect();
        let text = fs::read_to_string(&log).unwrap_or_default();
        let mut outcomes: Vec<Outcome> = tests.iter().filter_map(|name| outcome(name, &cases, &seen, &text)).collect();
        if let ([only], true) = (tests, outcomes.is_empty()) {
            let setup = cases.values().find_map(|case| match &case.state {
                State::Failed(message) => Some(junit::cause(message)),
                _ => None,
            });
            let why =
                if whole { "the suite ended without a result" } else { "took longer than the limit of 20 minutes" };
            let cause = setup.unwrap_or_else(|| why.to_owned());
            outcomes.push(Outcome {
                name: only.clone(),
                verdict: Verdict::Failed,
                seconds: TEST_LIMIT.as_secs_f64(),
                cause,
            });
        }
        let _ = fs::remove_file(reports.join("junit_01.xml"));
        Ok(outcomes)
    }

    fn command(&self, tests: &[String], reports: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let path = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command
            .args(["--provider=local", "--ginkgo.noColor", "--container-runtime=remote"])
            .arg("--non-blocking-taints=node-role.kubernetes.io/control-plane,node-role.kubernetes.io/master")
            .args(["--node-schedulable-timeout=2m", "--system-pods-startup-timeout=2m"])
            .arg("--disable-log-dump")
            .arg(format!("--kube-api-content-type={}", self.content_type))
            .arg(format!("--ginkgo.focus={}", focus(tests)))
            .arg(path("kubeconfig", &self.kubeconfig))
            .arg(path("kubectl-path", &self.kubectl))
            .arg(path("repo-root", &self.source))
            .arg(path("report-dir", reports))
            .arg(path("e2e-output-dir", reports))
            .current_dir(reports);
        command
    }
}

/// A test that ended: whether it passed, and how long it took (from the end of the one before).
type Seen = BTreeMap<String, (bool, f64)>;

/// Writes what the suite says to `log`, until it ends or nothing ended for too long, when it is killed. Returns the tests that
/// ended, and whether the process ended by itself.
fn follow(child: &mut Child, log: &Path) -> Result<(Seen, bool)> {
    let output = child.stdout.take().context("the suite's output is a pipe")?;
    let (send, receive) = mpsc::channel();
    let log = log.to_owned();
    let reader = std::thread::spawn(move || -> Result<()> {
        let mut file = File::create(log)?;
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            std::io::Write::write_all(&mut file, &line)?;
            std::io::Write::write_all(&mut file, b"\n")?;
            if let Some(end) = finished(&String::from_utf8_lossy(&line)) {
                let _ = send.send(end);
            }
        }
        Ok(())
    });
    let mut seen = Seen::new();
    let mut last = Instant::now();
    let whole = loop {
        match receive.recv_timeout(TEST_LIMIT.saturating_sub(last.elapsed())) {
            Ok((passed, name)) => {
                seen.insert(name, (passed, last.elapsed().as_secs_f64()));
                last = Instant::now();
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill()?;
                break false;
            }
        }
    };
    child.wait()?;
    // A kubectl that the suite left behind may hold the pipe open; what it says is of no use then.
    if whole {
        let _ = reader.join();
    }
    Ok((seen, whole))
}

fn outcome(name: &str, cases: &BTreeMap<String, junit::Case>, seen: &Seen, log: &str) -> Option<Outcome> {
    let of = |verdict, seconds, cause| Some(Outcome { name: name.to_owned(), verdict, seconds, cause });
    let Some(case) = cases.get(name) else {
        // No report is written by a process that was killed.
        let (passed, seconds) = *seen.get(name)?;
        let cause = if passed { String::new() } else { logged_cause(name, log) };
        return of(if passed { Verdict::Passed } else { Verdict::Failed }, seconds, cause);
    };
    match &case.state {
        State::Passed => of(Verdict::Passed, case.seconds, String::new()),
        State::Failed(message) => of(Verdict::Failed, case.seconds, junit::cause(message)),
        State::Skipped if log.contains("[SKIPPING]") => of(Verdict::NotRunnable, case.seconds, skipped(name, log)),
        // After an interrupt or a failed set-up, ginkgo calls all that it did not reach skipped.
        State::Skipped => None,
    }
}

/// The last failure that the log has before it says that this test failed.
fn logged_cause(name: &str, log: &str) -> String {
    let end = log.lines().find(|line| finished(line).is_some_and(|(passed, ended)| !passed && ended == name));
    let before = end.and_then(|line| log.find(line)).map_or(log, |at| &log[..at]);
    let failure = before.rsplit_once("FAIL: ").map(|(_, failure)| junit::cause(failure));
    failure.unwrap_or_else(|| "the log has no cause".to_owned())
}

/// Why the suite itself skipped a test, which stands some lines below the sign.
fn skipped(name: &str, log: &str) -> String {
    let own = log.split("S [SKIPPING]").skip(1).find(|part| {
        let head: Vec<&str> = part.lines().take(6).map(str::trim).collect();
        head.join(" ").contains(name.split(" [").last().unwrap_or(name)) || part.contains(name)
    });
    let reason = own.or_else(|| log.split("S [SKIPPING]").nth(1)).and_then(|part| {
        part.lines().skip(1).map(str::trim).find(|line| {
            let words = line.split_whitespace().count();
            words > 2
                && !line.starts_with('/')
                && !line.starts_with('[')
                && line.contains(['(', ':', '-'])
                && !name.contains(*line)
        })
    });
    format!("skipped by the suite: {}", reason.unwrap_or("no reason given"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_end_is_read_behind_ginkgos_sign() {
        let line = r#"• {"msg":"PASSED [sig-a] x \"y\" [Conformance]","total":3,"completed":1,"skipped":2,"failed":0}"#;
        assert_eq!(finished(line), Some((true, "[sig-a] x \"y\" [Conformance]".to_owned())));
        assert_eq!(finished(r#"{"msg":"Test Suite completed","total":3}"#), None);
        assert_eq!(finished("PASSED by"), None);
    }

    #[test]
    fn a_cause_is_found_in_the_log_of_a_process_that_was_killed() {
        let log = "Nov 23 18:02:52.640: FAIL: first\n{\"msg\":\"FAILED [sig-a] x\",\"total\":1}\n\
                   Nov 23 18:02:53.640: FAIL: second\nFull Stack Trace\nk8s.io/x(0x1)\n\t/g/test/e2e/apps/y.go:7 +0x1\n\
                   {\"msg\":\"FAILED [sig-a] y\",\"total\":1}\n";
        assert_eq!(logged_cause("[sig-a] x", log), "first");
        assert_eq!(logged_cause("[sig-a] y", log), "second (y.go:7)");
    }

    #[test]
    fn a_focus_takes_names_literally_to_their_end() {
        assert_eq!(focus(&["[a] b (c).".to_owned(), "d".to_owned()]), r"(\[a\] b \(c\)\.|d)$");
    }
}
