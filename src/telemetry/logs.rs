//! Logs: one subscriber for the process, to standard error, as text for people or JSON for machines.
//!
//! Standard output stays free for what was asked for (query results, configuration).

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line for people, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object a line, fields of the event at its top level.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("failed to read log level {filter:?}; expected one such as \"info\" or \"info,bellwether::store=debug\"")]
    Filter { filter: String, source: ParseError },
    #[error("logs are already set up in this process")]
    AlreadySetUp { source: Box<dyn std::error::Error + Send + Sync> },
}

/// Sets up logs for the whole process. To be called once.
///
/// `filter` is a level (`info`) or a list of directives (`info,bellwether::store=debug`), as in `RUST_LOG`.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = parse_filter(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(format == LogFormat::Text && stderr().is_terminal());
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|source| LogError::AlreadySetUp { source })
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_directives_are_taken() {
        for filter in ["info", "WARN", "info,bellwether::store=debug"] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
    }

    #[test]
    fn a_misspelt_directive_is_named() {
        let error = parse_filter("bellwether=loud").unwrap_err();
        assert!(error.to_string().contains("bellwether=loud"), "{error}");
    }

    #[test]
    fn a_second_set_up_is_refused() {
        // Another test of this process may have been first; the second call must be refused in either case.
        let _ = init_logs("off", LogFormat::Json);
        assert!(matches!(init_logs("off", LogFormat::Text), Err(LogError::AlreadySetUp { .. })));
    }
}
