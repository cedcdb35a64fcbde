//! What can go wrong with a query, whose doing it is, and which limit it met.

use std::error::Error;
use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::DataFusionError;

use super::format::Format;

/// Whose doing an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The statement is at fault; sending it again changes nothing.
    User,
    /// A limit of the service was met; a smaller query, or a later one, may pass.
    Limit,
    /// The service or its storage is at fault.
    Internal,
}

/// Why a query was refused, or failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("expected a statement, got none")]
    Empty,
    #[error("expected one statement, got {count}; send them one at a time")]
    Several { count: usize },
    #[error(
        "expected a query (SELECT, WITH, VALUES), EXPLAIN, SHOW TABLES or DESCRIBE, got {kind}; SQL is read-only here"
    )]
    Refused { kind: String },
    #[error("failed to parse the statement")]
    Parse { source: DataFusionError },
    #[error("expected a known table, got {name:?}; {hint}")]
    UnknownTable { name: String, hint: String },
    #[error("expected a known function, got {name:?}; {hint}")]
    UnknownFunction { name: String, hint: String },
    #[error("{user:?} may not read {name:?}; what they may read is said in the file of users")]
    Forbidden { user: String, name: String },
    #[error("failed to plan the statement")]
    Plan { source: DataFusionError },
    #[error("failed to plan the view {name:?}")]
    View { name: String, source: DataFusionError },
    #[error("failed to evaluate the statement")]
    Evaluate { source: DataFusionError },

    #[error("expected a statement of at most {max} bytes, got {bytes}; the limit is statement_bytes_max")]
    StatementBytes { bytes: usize, max: usize },
    #[error(
        "expected a statement of at most {max} words and operators, got {parts}; use a list (IN, VALUES) or a join"
    )]
    StatementParts { parts: usize, max: usize },
    #[error("expected a statement nested at most {max} levels deep; use WITH to flatten it")]
    Nesting { max: usize },
    #[error("{max} queries were already running for {waited:?}; the limit is concurrency_max, try again later")]
    Busy { max: usize, waited: Duration },
    #[error("the query did not end within {max:?}; the limit is timeout, narrow the time range or aggregate first")]
    Timeout { max: Duration },
    #[error("the answer has more than {max} rows; the limit is rows_max, add LIMIT or aggregate")]
    Rows { max: usize },
    #[error(
        "the query needs more than {max} bytes of memory; the limit is memory_bytes_max, narrow it or aggregate first"
    )]
    Memory { max: usize, source: DataFusionError },
    #[error("the answer has more than {max} bytes; the limit is memory_bytes_max, select fewer rows or columns")]
    AnswerBytes { max: usize },

    #[error("the query was ended by somebody who may")]
    Killed,
    #[error("failed to read the stored data")]
    Read { source: DataFusionError },
    #[error("the query ended without an answer; the log of the service names the cause")]
    Lost,
    #[error("failed to start the query engine")]
    Start { source: std::io::Error },
    #[error("failed to set up the query engine")]
    SetUp { source: DataFusionError },
    #[error("failed to write the answer as {format}")]
    Write { format: Format, source: ArrowError },
}

impl QueryError {
    pub fn class(&self) -> Class {
        match self {
            QueryError::Empty
            | QueryError::Several { .. }
            | QueryError::Refused { .. }
            | QueryError::Parse { .. }
            | QueryError::UnknownTable { .. }
            | QueryError::UnknownFunction { .. }
            | QueryError::Forbidden { .. }
            | QueryError::Plan { .. }
            | QueryError::View { .. }
            | QueryError::Evaluate { .. } => Class::User,
            QueryError::StatementBytes { .. }
            | QueryError::StatementParts { .. }
            | QueryError::Nesting { .. }
            | QueryError::Busy { .. }
            | QueryError::Timeout { .. }
            | QueryError::Rows { .. }
            | QueryError::Memory { .. }
            | QueryError::AnswerBytes { .. }
            | QueryError::Killed => Class::Limit,
            QueryError::Read { .. }
            | QueryError::Lost
            | QueryError::Start { .. }
            | QueryError::SetUp { .. }
            | QueryError::Write { .. } => Class::Internal,
        }
    }

    /// Returns one word for how a query ended, for logs.
    pub fn kind(&self) -> &'static str {
        match (self, self.class()) {
            (QueryError::Killed, _) => "killed",
            (QueryError::Forbidden { .. }, _) => "forbidden",
            (QueryError::Busy { .. }, _) => "busy",
            (QueryError::Timeout { .. }, _) => "timeout",
            (_, Class::User) => "refused",
            (_, Class::Limit) => "limit",
            (_, Class::Internal) => "failed",
        }
    }

    /// Returns whether the same statement may pass later.
    pub fn is_transient(&self) -> bool {
        matches!(self, QueryError::Busy { .. } | QueryError::Memory { .. } | QueryError::Read { .. } | QueryError::Lost)
    }

    /// Returns the whole story in one line, for whoever sent the statement: this error and what caused it, without the
    /// prefixes and backtraces that DataFusion puts around its own.
    pub fn message(&self) -> String {
        let cause = match self {
            QueryError::Parse { source }
            | QueryError::Plan { source }
            | QueryError::View { source, .. }
            | QueryError::Evaluate { source }
            | QueryError::Memory { source, .. }
            | QueryError::Read { source }
            | QueryError::SetUp { source } => plain(source),
            other => match other.source() {
                Some(source) => source.to_string(),
                None => return self.to_string(),
            },
        };
        format!("{self}: {cause}")
    }

    /// Tells an error of execution by its root: memory, the statement's own doing (a cast, a division), or the storage.
    pub(super) fn of_execution(source: DataFusionError, memory_bytes_max: usize) -> Self {
        match source.find_root() {
            DataFusionError::ResourcesExhausted(_) => QueryError::Memory { max: memory_bytes_max, source },
            DataFusionError::Execution(_)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..) => QueryError::Evaluate { source },
            DataFusionError::ArrowError(cause, _) if !matches!(**cause, ArrowError::IoError(..)) => {
                QueryError::Evaluate { source }
            }
            _ => QueryError::Read { source },
        }
    }
}

/// Carries our error through a stream of DataFusion's, to be taken out again by the reverse conversion.
impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<QueryError>() {
                Ok(ours) => *ours,
                Err(other) => QueryError::Read { source: DataFusionError::External(other) },
            },
            source => QueryError::Read { source },
        }
    }
}

fn plain(source: &DataFusionError) -> String {
    let message = match source.find_root() {
        // Its own message is the debug form.
        DataFusionError::SQL(error, _) => error.to_string(),
        root => root.message().into_owned(),
    };
    let message = match message.split_once(DataFusionError::BACK_TRACE_SEP) {
        Some((before, _)) => before,
        None => &message,
    };
    of_arguments(message).unwrap_or(message).to_owned()
}

/// Returns what a function says of its arguments, out of what DataFusion says around it.
fn of_arguments(message: &str) -> Option<&str> {
    let (_, said) = message.split_once("user-defined coercion failed with: ")?;
    let (said, _) = said.rsplit_once(" No function matches the given name")?;
    let said = ["Error during planning: ", "Execution error: "]
        .iter()
        .find_map(|kind| said.strip_prefix(kind))
        .unwrap_or(said);
    Some(said.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_speaks_for_itself() {
        let message = "Execution error: Function 'rate' user-defined coercion failed with: Error during planning: expected \
                       rate(value, ts), got 1 arguments. No function matches the given name and argument types \
                       'rate(Float64)'. You might need to add explicit type casts.\n\tCandidate functions: rate(UserDefined)";
        assert_eq!(of_arguments(message), Some("expected rate(value, ts), got 1 arguments"));
        assert_eq!(of_arguments("No field named x."), None);
    }
}
