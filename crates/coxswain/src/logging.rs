//! Structured logs to standard error.

use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `level` is a level (`info`) or a filter by module (`info,apiserver=debug`).
pub fn filter(level: &str) -> Result<EnvFilter> {
    for part in level.split(',') {
        // A word alone is read as a module by the filter, which would silence everything else.
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            bail!("--log-level {part}: not one of error, warn, info, debug, trace, off");
        }
    }
    Ok(EnvFilter::try_new(level)?)
}

pub fn start(filter: EnvFilter, format: LogFormat) {
    // Colours are for eyes, not for files and journals.
    let colours = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert!(filter("info").is_ok() && filter("info,apiserver=debug,kubelet::pod=trace").is_ok());
        for bad in ["", "loud", "info,apiserver=loud", "info,apiserver"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
