//! What start-up does, told to whoever watches the terminal.

use std::fmt::Display;
use std::io::Write as _;
use std::time::Instant;

/// Prints each step with the time since the process started.
pub struct Progress {
    started: Instant,
}

impl Progress {
    pub fn start() -> Self {
        Progress { started: Instant::now() }
    }

    pub fn step(&self, text: impl Display) {
        self.print(format_args!("[{:>7.3}s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// A line that is not a step. Nobody may be listening any more, as with `| head`: that must not end a cluster.
    pub fn print(&self, line: impl Display) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}
