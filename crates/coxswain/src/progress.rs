//! What start-up does, told to whoever watches the terminal.

use std::time::Instant;

/// Prints each step with the time since the process started.
pub struct Progress {
    started: Instant,
}

impl Progress {
    pub fn start() -> Self {
        Progress { started: Instant::now() }
    }

    pub fn step(&self, text: impl std::fmt::Display) {
        println!("[{:>7.3}s] {text}", self.started.elapsed().as_secs_f64());
    }
}
