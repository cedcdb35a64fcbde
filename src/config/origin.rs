//! Where each value of the configuration came from. Knows positions and names, never values.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::error::{Fault, Problem};
use super::key_path::KeyPath;

/// Where a value was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the program's default stands.
    Default,
    /// In a file, at the key (or, in a list, at the element). Line and column count from 1, columns in characters.
    File { file: Arc<str>, line: usize, column: usize },
    /// In the environment variable of this name.
    Variable(String),
}

/// What a property is taken from, where it was not typed itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `{ env = "NAME" }`
    Variable(String),
    /// `{ file = "/path" }`
    File(String),
}

/// The origin of every value that was typed, by path.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    typed: BTreeMap<KeyPath, Origin>,
    references: BTreeMap<KeyPath, Reference>,
}

impl Origins {
    /// Returns where the value at `path` was typed.
    ///
    /// A key that was not typed itself is the default, also in a table that was.
    pub fn get(&self, path: &KeyPath) -> Origin {
        self.typed.get(path).cloned().unwrap_or(Origin::Default)
    }

    /// Returns what the property at `path` was taken from, if it was typed as a reference.
    pub fn reference(&self, path: &KeyPath) -> Option<&Reference> {
        self.references.get(path)
    }

    /// Returns the origin of the value at `path`, or of the innermost table around it that was typed.
    pub fn nearest(&self, path: &KeyPath) -> Origin {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            if let Some(origin) = self.typed.get(&path) {
                return origin.clone();
            }
            at = path.parent();
        }
        Origin::Default
    }

    pub(super) fn problem(&self, path: &KeyPath, fault: Fault) -> Problem {
        Problem { at: self.nearest(path), path: path.clone(), fault }
    }

    pub(super) fn insert(&mut self, path: KeyPath, origin: Origin) {
        self.typed.insert(path, origin);
    }

    pub(super) fn insert_reference(&mut self, path: KeyPath, reference: Reference) {
        self.references.insert(path, reference);
    }

    /// Forgets what is at and below `path`, because something else takes its place.
    pub(super) fn forget(&mut self, path: &KeyPath) {
        self.typed.retain(|typed, _| !typed.is_within(path));
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line, .. } => write!(f, "{file}:{line}"),
            Origin::Variable(name) => write!(f, "env {name}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Variable(name) => write!(f, "env {name}"),
            Reference::File(path) => write!(f, "file {path}"),
        }
    }
}
