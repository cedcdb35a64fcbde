//! The path of a key in the configuration, such as `inputs[0].topic`. Text and comparison only.

use std::fmt;

use serde_json::Value;
use serde_path_to_error::Segment;

/// A way from the root of the configuration to one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    /// Returns the path of the whole configuration, which is empty.
    pub fn root() -> Self {
        KeyPath::default()
    }

    /// Returns the path made of these keys.
    pub fn of<const N: usize>(keys: [&str; N]) -> Self {
        KeyPath(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// Returns the path of a key in the table at this path.
    pub fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// Returns the path of an element of the list at this path, counted from 0.
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// Returns the path of the table or list that holds this one; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(KeyPath(rest.to_vec()))
    }

    /// Tells whether this path is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &KeyPath) -> bool {
        self.0.starts_with(&ancestor.0)
    }

    /// Returns the path of the outermost list on the way, or this path where there is none.
    pub(super) fn outermost_list(&self) -> Self {
        let keys = self.0.iter().take_while(|step| matches!(step, Step::Key(_)));
        KeyPath(keys.cloned().collect())
    }

    /// Returns the path at which serde stopped, without what it could not name.
    pub(super) fn from_serde(path: &serde_path_to_error::Path) -> Self {
        let steps = path.iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        KeyPath(steps.collect())
    }

    /// Returns the value at this path, if the tree has one.
    pub(super) fn find<'a>(&self, tree: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(tree, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        })
    }

    /// Puts a value at this path, making the tables on the way. Lists are neither made nor lengthened.
    pub(super) fn put(&self, tree: &mut Value, new: Value) {
        let mut at = tree;
        for step in &self.0 {
            let next = match step {
                Step::Key(key) => {
                    if !at.is_object() {
                        *at = Value::Object(serde_json::Map::new());
                    }
                    at.as_object_mut().map(|table| table.entry(key.clone()).or_insert(Value::Null))
                }
                Step::Index(index) => at.get_mut(index),
            };
            match next {
                Some(next) => at = next,
                None => return,
            }
        }
        *at = new;
    }

    /// Takes the key at this path out of its table. List elements stay, since their neighbours would be renumbered.
    pub(super) fn remove(&self, tree: &mut Value) {
        let Some((Step::Key(last), way)) = self.0.split_last() else { return };
        let table = way.iter().try_fold(tree, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(index) => value.get_mut(index),
        });
        if let Some(table) = table.and_then(Value::as_object_mut) {
            table.remove(last);
        }
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        KeyPath(steps)
    }
}

impl fmt::Display for KeyPath {
    /// TOML's dotted keys, with list elements as `[n]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let dot = if n == 0 { "" } else { "." };
                    write!(f, "{dot}{}", toml_edit::Key::new(key).display_repr())?;
                }
            }
        }
        Ok(())
    }
}
