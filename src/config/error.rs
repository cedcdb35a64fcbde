//! What can be wrong with a configuration, each problem with the place where it was typed. Never holds a secret.

use std::fmt;
use std::io;

use serde_json::Value;

use super::key_path::KeyPath;
use super::origin::Origin;

/// Everything that is wrong with a configuration, in the order of the file and then of the environment.
#[derive(Debug)]
pub struct Errors(Vec<Problem>);

/// One thing that is wrong, and where.
#[derive(Debug)]
pub struct Problem {
    pub at: Origin,
    pub path: KeyPath,
    pub fault: Fault,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("failed to read the configuration")]
    Read { source: io::Error },
    #[error("expected at most {bytes_max} bytes of configuration, came more")]
    TooLong { bytes_max: u64 },
    #[error("failed to read it as {expected}: {message}")]
    Syntax { expected: &'static str, message: String },
    #[error("{path} is not a known key")]
    UnknownKey { path: KeyPath, hint: String },
    #[error("not a known variable")]
    UnknownVariable { hint: String },
    #[error("{path} is missing: expected {expected}")]
    Missing { path: KeyPath, expected: String },
    #[error("{path}: expected {expected}, came {came}")]
    Type { path: KeyPath, expected: String, came: String },
    #[error("{path}: {message}")]
    Value { path: KeyPath, message: String, hint: Option<String> },
    #[error("{path} is a secret and stands in plain text")]
    PlainSecret { path: KeyPath },
    #[error("{path} names the environment variable {name}, which is not set")]
    VariableNotSet { path: KeyPath, name: String },
    #[error("{path}: failed to read the file {file}")]
    SecretFile { path: KeyPath, file: String, source: io::Error },
}

impl Errors {
    /// Makes the list, sorted by place. There must be at least one problem.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "errors without a problem");
        problems.sort_by_cached_key(|problem| match &problem.at {
            Origin::Default => (0, 0, 0, String::new()),
            Origin::File { line, column, .. } => (1, *line, *column, String::new()),
            Origin::Variable(name) => (2, 0, 0, name.clone()),
        });
        Errors(problems)
    }

    /// Returns the problems; there is at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    /// One problem per line, each with its causes: a list has no single source that whoever prints it could follow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            let end = if n == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    /// `file:line:column: what is wrong: cause; hint`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            // No value was typed; the fault itself names what is missing.
            Origin::Default => {}
            // Line 0 is the file as a whole.
            Origin::File { file, line: 0, .. } => write!(f, "{file}: ")?,
            Origin::File { file, line, column } => write!(f, "{file}:{line}:{column}: ")?,
            Origin::Variable(name) => write!(f, "env {name}: ")?,
        }
        write!(f, "{}", self.fault)?;
        if let Some(cause) = std::error::Error::source(&self.fault) {
            write!(f, ": {cause}")?;
        }
        match self.fault.hint() {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// Takes what is wrong out of the tree, so that what is left can be checked: an unknown key alone, a wrong value so
    /// that its default stands, and where a list's entry is wrong the whole list, since an entry has no default.
    pub(super) fn prune(&self, tree: &mut Value) {
        match &self.fault {
            Fault::UnknownKey { path, .. } => path.remove(tree),
            _ => self.path.outermost_list().remove(tree),
        }
    }
}

impl Fault {
    pub(super) fn value(path: &KeyPath, message: impl Into<String>, hint: Option<String>) -> Self {
        Fault::Value { path: path.clone(), message: message.into(), hint }
    }

    /// Returns what the user could do about it, where there is more to say than what was expected.
    pub fn hint(&self) -> Option<String> {
        match self {
            Fault::Read { .. } => Some(
                "name the file with --config or BELLWETHER_CONFIG, or start from deploy/bellwether.toml".to_owned(),
            ),
            Fault::UnknownKey { hint, .. } | Fault::UnknownVariable { hint } => Some(hint.clone()),
            Fault::Value { hint, .. } => hint.clone(),
            Fault::PlainSecret { .. } => Some(r#"write { env = "NAME" } or { file = "/path" } instead"#.to_owned()),
            Fault::VariableNotSet { .. } => Some("set it before the start".to_owned()),
            _ => None,
        }
    }
}
