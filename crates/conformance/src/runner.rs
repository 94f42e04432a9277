//! Runs the tests: in parallel, those marked `[Serial]` alone afterwards, each within its time and each failure its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use regex::Regex;
use tokio::task::JoinHandle;

use crate::framework::{Cluster, Cx};
use crate::junit;
use crate::tests::{self as table, Test};

const LIMIT: Duration = Duration::from_secs(180);
const SLOW_LIMIT: Duration = Duration::from_secs(720);

#[derive(clap::Args)]
pub struct Options {
    /// Cluster to test, as its administrator [default: $KUBECONFIG]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Run only tests whose codename matches; may be repeated
    #[arg(long, value_name = "REGEX")]
    focus: Vec<String>,
    /// Leave out tests whose codename matches; may be repeated
    #[arg(long, value_name = "REGEX")]
    skip: Vec<String>,
    /// Tests in hand at any time; those marked [Serial] run alone
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Write the results in JUnit's form as well
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Leave behind what the tests made, for a look
    #[arg(long)]
    keep: bool,
}

/// How a test ended.
pub struct Outcome {
    pub name: &'static str,
    pub took: Duration,
    /// Why it failed, in one line.
    pub cause: Option<String>,
}

/// The tests that the options ask for, in the order of the list.
pub fn chosen(options: &Options) -> Result<Vec<Test>> {
    let compile = |given: &[String]| -> Result<Vec<Regex>> {
        given.iter().map(|text| Regex::new(text).with_context(|| format!("not a regular expression: {text}"))).collect()
    };
    let (focus, skip) = (compile(&options.focus)?, compile(&options.skip)?);
    let wanted = |test: &Test| {
        (focus.is_empty() || focus.iter().any(|f| f.is_match(test.name))) && !skip.iter().any(|s| s.is_match(test.name))
    };
    Ok(table::all().into_iter().filter(wanted).collect())
}

/// Runs what the options ask for, and returns whether everything passed.
pub async fn run(options: Options) -> Result<bool> {
    let tests = chosen(&options)?;
    anyhow::ensure!(!tests.is_empty(), "no test matches");
    let cluster = Arc::new(Cluster::connect(&crate::kubeconfig(options.kubeconfig)?, options.keep).await?);
    let (serial, parallel): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.name.contains("[Serial]"));
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for (tests, at_once) in [(parallel, options.parallel.max(1)), (serial, 1)] {
        let mut running = futures::stream::iter(tests)
            .map(|test| Box::pin(one(Arc::clone(&cluster), test)))
            .buffer_unordered(at_once);
        while let Some(outcome) = running.next().await {
            print(&outcome);
            outcomes.push(outcome);
        }
    }
    let failed = outcomes.iter().filter(|outcome| outcome.cause.is_some()).count();
    println!("{} passed, {failed} failed in {:.0} s", outcomes.len() - failed, started.elapsed().as_secs_f64());
    if let Some(path) = options.junit {
        std::fs::write(&path, junit::report(&outcomes)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(failed == 0)
}

fn print(outcome: &Outcome) {
    let seconds = outcome.took.as_secs_f64();
    match &outcome.cause {
        None => println!("ok {} {seconds:.1}", outcome.name),
        Some(cause) => println!("FAILED {} {seconds:.1}: {cause}", outcome.name),
    }
}

/// Runs one test in a task of its own, so that a panic or a test that hangs is that test's failure only.
async fn one(cluster: Arc<Cluster>, test: Test) -> Outcome {
    let started = Instant::now();
    let limit = if test.name.contains("[Slow]") { SLOW_LIMIT } else { LIMIT };
    let cx = match Cx::new(Arc::clone(&cluster)).await {
        Ok(cx) => Arc::new(cx),
        Err(error) => return outcome(&test, started, Err(error.context("cannot prepare a namespace"))),
    };
    let task = tokio::spawn((test.run)(Arc::clone(&cx)));
    // The test may ask for more time while it runs.
    let result = guarded(task, || limit.max(cx.asked_for()), || cx.last_step()).await;
    let took = outcome(&test, started, result);
    cx.clean_up().await;
    took
}

/// A task's result, where a panic and a task that takes too long are errors. The limit is asked for anew when it is reached.
async fn guarded(
    mut task: JoinHandle<Result<()>>,
    limit: impl Fn() -> Duration,
    step: impl Fn() -> String,
) -> Result<()> {
    let started = Instant::now();
    loop {
        let now = limit();
        match tokio::time::timeout(now.saturating_sub(started.elapsed()), &mut task).await {
            Ok(Ok(result)) => return result,
            Ok(Err(error)) if error.is_panic() => bail!("panicked: {}", panic_text(error.into_panic())),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) if limit() > now => {}
            Err(_) => {
                task.abort();
                bail!("not done after {} s; last step: {}", now.as_secs(), step());
            }
        }
    }
}

fn outcome(test: &Test, started: Instant, result: Result<()>) -> Outcome {
    let cause = result.err().map(|error| one_line(&format!("{error:#}")));
    Outcome { name: test.name, took: started.elapsed(), cause }
}

fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(1500).collect()
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_with_its_text() {
        let task = tokio::spawn(async { panic!("boom {}", 1) });
        let error = guarded(task, || millis(5000), String::new).await.unwrap_err();
        assert_eq!(error.to_string(), "panicked: boom 1");
    }

    #[tokio::test]
    async fn a_test_that_hangs_is_ended_and_says_where_it_was() {
        let task = tokio::spawn(std::future::pending());
        let error = guarded(task, || millis(10), || "waiting".to_owned()).await.unwrap_err();
        assert_eq!(error.to_string(), "not done after 0 s; last step: waiting");
    }

    #[tokio::test]
    async fn a_test_that_asked_for_more_time_gets_it() {
        let asked = Arc::new(AtomicU64::new(0));
        let asking = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            asking.store(5000, Ordering::Relaxed);
            tokio::time::sleep(millis(60)).await;
            Ok(())
        });
        let limit = || millis(20).max(millis(asked.load(Ordering::Relaxed)));
        assert!(guarded(task, limit, String::new).await.is_ok());
    }

    #[test]
    fn a_cause_is_one_line() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
    }
}
