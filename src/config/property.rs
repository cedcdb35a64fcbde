//! Properties for a client library: texts by name, typed in place or taken from the environment or a file.
//!
//! Reads the secret files that are named, nothing else. Must never let a secret out: `Debug` and `Serialize` mask it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::Typed;
use super::error::{Fault, Problem};
use super::file;
use super::key_path::KeyPath;
use super::origin::{Origin, Reference};

/// What stands where a secret would.
pub(super) const MASK: &str = "***";
/// What the value of a property may look like.
pub(super) const EXPECTED: &str = r#"text in quotes, { env = "NAME" } or { file = "/path" }"#;

/// The tables of properties.
const TABLES: [[&str; 2]; 2] = [["kafka", "client"], ["store", "options"]];
/// Most bytes in a file that holds the value of a property.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the names of secrets contain. Object stores call theirs keys.
const SECRET_WORDS: [&str; 14] = [
    "password",
    "passphrase",
    "secret",
    "token",
    "credential",
    "jaas",
    "key.pem",
    "private_key",
    "access_key",
    "account_key",
    "master_key",
    "storage_key",
    "sas_key",
    "customer_key",
];
/// How names end that only say where a secret is: masked all the same, but not refused in plain text.
const POINTER_ENDINGS: [&str; 7] = [".url", "_url", "_file", "_path", ".location", "_endpoint", "_credentials"];

/// Properties by name, with their values as they are handed to the library: references are already followed.
///
/// Secrets are masked in `Debug` and `Serialize`; only [`Properties::iter`] and [`Properties::into_map`] give them out.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Returns names and values, secrets included, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Gives up names and values, secrets included.
    pub fn into_map(self) -> BTreeMap<String, String> {
        self.0
    }

    fn masked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().map(|(name, value)| (name, if is_secret(name) { MASK } else { value }))
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.masked()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.masked())
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> Cow<'static, str> {
        "Properties".into()
    }

    /// The schema of what is typed, not of what is kept.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let reference = |key: &str, meaning: &str| {
            json_schema!({
                "type": "object",
                "properties": { key: { "type": "string", "description": meaning } },
                "required": [key],
                "additionalProperties": false,
            })
        };
        json_schema!({
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    { "type": "string" },
                    reference("env", "Environment variable that holds the value."),
                    reference("file", "File that holds the value; a line break at its end does not count."),
                ],
            },
        })
    }
}

/// Tells whether a property's value must never be printed. Ids are no secrets, whatever they identify.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.ends_with("_id") && SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Tells whether a path lies in a table of properties, where any value may be a secret.
pub(super) fn is_within(path: &KeyPath) -> bool {
    TABLES.into_iter().any(|table| path.is_within(&KeyPath::of(table)))
}

/// Returns the environment variables that properties are taken from.
pub(super) fn variables(tree: &Value) -> impl Iterator<Item = &str> {
    let tables = TABLES.into_iter().filter_map(|table| KeyPath::of(table).find(tree)?.as_object());
    tables.flat_map(|table| table.values()).filter_map(|value| value.get("env")?.as_str())
}

/// Replaces references by what they refer to, and refuses secrets that stand in the file in plain text.
///
/// Values that are neither text nor a reference are left for the walk over the schema to report.
pub(super) fn resolve(typed: &mut Typed, env: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for table in TABLES.map(KeyPath::of) {
        let Some(properties) = table.find(&typed.tree).and_then(Value::as_object).cloned() else { continue };
        for (name, value) in &properties {
            let path = table.key(name);
            match resolve_one(name, value, &path, typed, env) {
                Ok(Some((text, reference))) => {
                    path.put(&mut typed.tree, text.into());
                    typed.origins.insert_reference(path, reference);
                }
                Ok(None) => {}
                Err(fault) => problems.push(typed.origins.problem(&path, fault)),
            }
        }
    }
    problems
}

/// Returns what a property refers to; `None` where its value is no reference.
fn resolve_one(
    name: &str,
    value: &Value,
    path: &KeyPath,
    typed: &Typed,
    env: &BTreeMap<String, String>,
) -> Result<Option<(String, Reference)>, Fault> {
    let reference = |key| value.get(key).and_then(Value::as_str);
    match (reference("env"), reference("file")) {
        (Some(variable), None) => match env.get(variable) {
            Some(text) => Ok(Some((text.clone(), Reference::Variable(variable.to_owned())))),
            None => Err(Fault::VariableNotSet { path: path.clone(), name: variable.to_owned() }),
        },
        (None, Some(file)) => match read_secret(Path::new(file)) {
            Ok(text) => Ok(Some((text, Reference::File(file.to_owned())))),
            Err(source) => Err(Fault::SecretFile { path: path.clone(), file: file.to_owned(), source }),
        },
        _ => {
            let in_file = matches!(typed.origins.nearest(path), Origin::File { .. });
            match value.is_string() && in_file && is_secret(name) && !is_pointer(name) {
                true => Err(Fault::PlainSecret { path: path.clone() }),
                false => Ok(None),
            }
        }
    }
}

fn is_pointer(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    POINTER_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn read_secret(path: &Path) -> io::Result<String> {
    let other = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let bytes = file::read_at_most(path, FILE_BYTES_MAX)?
        .ok_or_else(|| other(&format!("expected at most {FILE_BYTES_MAX} bytes, came more")))?;
    let text = String::from_utf8(bytes).map_err(|_| other("expected UTF-8 text, came other bytes"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
