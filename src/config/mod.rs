//! Config: what was typed in `bellwether.toml` and the environment, read once, checked, every value with its origin.
//!
//! The only user of toml_edit and schemars. Reads the one file it is given and the secret files that file names;
//! never the process environment (it is handed in), the network or a clock. Nothing here prints a secret, and nothing
//! is half accepted: either every value is good, or every problem is reported together with its file and line.

mod check;
mod defaults;
mod environment;
mod error;
mod file;
mod key_path;
mod nearest;
mod origin;
mod property;
pub mod raw;
pub mod reference;
mod schema;
mod show;
mod unit;
pub mod users;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use error::{Errors, Fault, Problem};
pub use key_path::KeyPath;
pub use origin::{Origin, Origins, Reference};
pub use property::Properties;
pub use raw::Config;
pub use schema::schema;
pub use unit::{Size, Span};

/// The environment variable that names the configuration file where no path is given.
pub const PATH_VARIABLE: &str = "BELLWETHER_CONFIG";

/// A configuration that passed every check of this room, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub origin: Origins,
}

/// Reads the configuration: defaults, then the file, then the environment, the later winning key by key.
///
/// Without a `path` the file is the one that `BELLWETHER_CONFIG` names, if any; no file is looked for elsewhere.
/// Values of `env` that are not Unicode must be left out by the caller.
///
/// # Errors
/// All problems at once, in the order of the file and then of the environment. A file that cannot be read or is not
/// TOML is reported alone, since nothing else could be said for certain.
pub fn load(path: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, Errors> {
    let env: BTreeMap<String, String> = env.collect();
    let named = || env.get(PATH_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
    let mut typed = match path.map(Path::to_path_buf).or_else(named) {
        Some(path) => file::read(&path)?,
        None => Typed::default(),
    };
    let schema = schema::inlined();
    let mut problems = environment::overlay(&mut typed, &env, &schema);
    problems.extend(walk::walk(&typed, &schema));
    problems.extend(property::resolve(&mut typed, &env));
    // What is wrong is taken out, so that the rest can still be checked and all be said at once.
    for problem in &problems {
        problem.prune(&mut typed.tree);
    }
    let Typed { tree, origins } = typed;
    match serde_path_to_error::deserialize::<_, Config>(tree) {
        Ok(config) => {
            problems.extend(check::check(&config, &origins));
            match problems.is_empty() {
                true => Ok(Loaded { config, origin: origins }),
                false => Err(Errors::new(problems)),
            }
        }
        // The walk should have refused whatever the types refuse; where it did not, serde's word is better than none.
        Err(error) => {
            if problems.is_empty() {
                let path = KeyPath::from_serde(error.path());
                problems.push(origins.problem(&path, Fault::value(&path, error.into_inner().to_string(), None)));
            }
            Err(Errors::new(problems))
        }
    }
}

impl Loaded {
    /// Renders every effective value as a line `path = value  # origin`, in TOML's notation; secrets as `"***"`.
    pub fn show(&self) -> String {
        show::show(self)
    }

    /// Makes the error for a value that a later stage refuses (a broker's, a view's), at the line where it was typed.
    pub fn refuse(&self, path: &KeyPath, message: impl Into<String>, hint: Option<String>) -> Problem {
        self.origin.problem(path, Fault::value(path, message.into(), hint))
    }
}

/// What was typed so far: one JSON tree of it, and where each of its keys stands.
///
/// A null stands for the values that TOML has and JSON has not: dates, times and numbers that are not finite.
#[derive(Debug)]
struct Typed {
    tree: Value,
    origins: Origins,
}

impl Default for Typed {
    fn default() -> Self {
        Typed { tree: Value::Object(serde_json::Map::new()), origins: Origins::default() }
    }
}
