//! Logs and metrics. Neither ever contains a prompt, an output or a key.
mod collector;
mod exposition;
mod metrics;
mod steps;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

pub use steps::StepMetrics;

pub(crate) use collector::Observed;
pub(crate) use metrics::{Metrics, ModelMetrics, Outcome, RequestLabels, SequenceTimer};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(
        "the log filter `{filter}` is not valid: {reason}. Use error, warn, info, debug, trace, or TARGET=LEVEL pairs separated by commas"
    )]
    Filter { filter: String, reason: String },
    #[error("logging is already set up")]
    AlreadySet,
}

/// Libraries that report every failed attempt at the levels people read. wick says once what came of it.
const TALKATIVE: [&str; 4] = ["hf_hub", "reqwest_middleware", "reqwest_retry", "xet"];

/// The filter that is meant: a plain level above debug is about wick, not about the libraries under it.
fn meant(filter: &str) -> String {
    let plain = ["error", "warn", "info"].contains(&filter.trim().to_ascii_lowercase().as_str());
    let quiet = TALKATIVE.iter().filter(|_| plain).map(|target| format!(",{target}=off"));
    std::iter::once(filter.to_owned()).chain(quiet).collect()
}

/// Sends the process's log to stderr. `filter`: a level, or tracing's `target=level,…` syntax.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let parsed = EnvFilter::builder().parse(meant(filter));
    let parsed = parsed.map_err(|error| LogError::Filter { filter: filter.to_owned(), reason: error.to_string() })?;
    // Colours are for people: a file or a collector gets plain text.
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr).with_ansi(colours);
    let set = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    set.map_err(|_| LogError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_levels_leave_the_libraries_out() {
        assert!(meant("info").starts_with("info,hf_hub=off,"));
        for filter in ["debug", "wick=info", "info,hf_hub=debug"] {
            assert_eq!(meant(filter), filter);
        }
        for filter in ["info", "debug", "wick=info"] {
            EnvFilter::builder().parse(meant(filter)).unwrap();
        }
    }
}
