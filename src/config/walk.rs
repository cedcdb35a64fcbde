//! Compares what was typed with the JSON Schema, key by key, and finds all that is unknown, missing or of another kind.
//!
//! Accepts nothing that the structs in `raw` refuse. Never repeats a value of a property, which may be a secret.

use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::Typed;
use super::error::{Fault, Problem};
use super::key_path::KeyPath;
use super::nearest::nearest;
use super::property;
use super::raw::SOCKET_FORMAT;
use super::schema;
use super::unit::{SIZE_FORMAT, SPAN_FORMAT, Size, Span};

/// Longest piece of a value that a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// Returns every place where what was typed does not fit the schema.
pub(super) fn walk(typed: &Typed, schema: &Value) -> Vec<Problem> {
    let mut walk = Walk { typed, root: schema, problems: Vec::new() };
    walk.value(&typed.tree, schema, &KeyPath::root());
    walk.problems
}

/// Says what a schema asks for.
pub(super) fn expected(schema: &Value) -> String {
    let schema = schema::required(schema);
    let choices = schema::choices(schema);
    if !choices.is_empty() {
        let quoted: Vec<_> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        return format!("one of {}", quoted.join(", "));
    }
    if schema.get("anyOf").is_some() {
        return property::EXPECTED.to_owned();
    }
    match (schema::kind(schema), schema.get("format").and_then(Value::as_str)) {
        (_, Some(SPAN_FORMAT)) => "a duration such as \"30s\" or \"5m\"".to_owned(),
        (_, Some(SIZE_FORMAT)) => "a size such as \"64MiB\" or \"1GB\"".to_owned(),
        (_, Some(SOCKET_FORMAT)) => "an address and port such as \"127.0.0.1:9464\"".to_owned(),
        (Some("string"), _) => "text in quotes".to_owned(),
        (Some("integer"), _) => format!("a whole number{}", range(schema)),
        (Some("number"), _) => format!("a number{}", range(schema)),
        (Some("boolean"), _) => "true or false".to_owned(),
        (Some("array"), _) => match schema.get("items").and_then(schema::kind) {
            Some("object") => "a list of tables".to_owned(),
            _ => "a list of texts".to_owned(),
        },
        _ => "a table".to_owned(),
    }
}

struct Walk<'a> {
    typed: &'a Typed,
    root: &'a Value,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value, schema: &Value, path: &KeyPath) {
        let schema = schema::required(schema);
        if let Some(alternative) = alternative(value, schema) {
            return self.value(value, alternative, path);
        }
        match (value, schema::kind(schema)) {
            (Value::Object(table), Some("object")) => self.table(table, schema, path),
            (Value::Array(list), Some("array")) => {
                let of = schema.get("items").unwrap_or(&Value::Null);
                for (index, value) in list.iter().enumerate() {
                    self.value(value, of, &path.index(index));
                }
            }
            (Value::String(text), Some("string")) if text_fits(text, schema) => {}
            (Value::Bool(_), Some("boolean")) => {}
            (Value::Number(number), Some("integer")) if number.is_i64() && number_fits(value, schema) => {}
            (Value::Number(_), Some("number")) if number_fits(value, schema) => {}
            _ => self.wrong(value, schema, path),
        }
    }

    fn table(&mut self, table: &Map<String, Value>, schema: &Value, path: &KeyPath) {
        for (key, value) in table {
            let path = path.key(key);
            let fixed = schema::keys(schema).find(|(name, _)| name == key).map(|(_, schema)| schema);
            // A schema here is one for the values under free keys; `false` forbids them.
            match fixed.or_else(|| schema.get("additionalProperties").filter(|free| free.is_object())) {
                Some(schema) => self.value(value, schema, &path),
                None => {
                    let hint = self.hint(key, schema);
                    self.push(&path, Fault::UnknownKey { path: path.clone(), hint });
                }
            }
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        for key in required.filter_map(Value::as_str).filter(|key| !table.contains_key(*key)) {
            let expected = schema::keys(schema).find(|(name, _)| *name == key).map(|(_, schema)| expected(schema));
            let path = path.key(key);
            self.push(&path, Fault::Missing { path: path.clone(), expected: expected.unwrap_or_default() });
        }
    }

    fn wrong(&mut self, value: &Value, schema: &Value, path: &KeyPath) {
        let came = if property::is_within(path) { kind_of(value).to_owned() } else { came(value) };
        self.push(path, Fault::Type { path: path.clone(), expected: expected(schema), came });
    }

    fn push(&mut self, path: &KeyPath, fault: Fault) {
        self.problems.push(self.typed.origins.problem(path, fault));
    }

    /// Says what an unknown key may have been meant to be: a key beside it, the same key elsewhere, or one of those
    /// that are known here.
    fn hint(&self, typed: &str, schema: &Value) -> String {
        if let Some(near) = nearest(typed, schema::keys(schema).map(|(key, _)| key)) {
            return format!("did you mean {near}?");
        }
        for (section, schema) in schema::keys(self.root) {
            let schema = schema.get("items").unwrap_or(schema);
            if schema::keys(schema).any(|(key, _)| key == typed) {
                return format!("did you mean {section}.{typed}?");
            }
        }
        let known: Vec<_> = schema::keys(schema).map(|(key, _)| key).collect();
        format!("known here are {}", known.join(", "))
    }
}

/// Returns the alternative of a schema that a value is meant for: of its kind, and for a table with exactly its keys.
/// `None` where there is none, or nothing to choose from.
fn alternative<'a>(value: &Value, schema: &'a Value) -> Option<&'a Value> {
    let meant = |one: &&Value| match value {
        Value::Object(table) => {
            schema::kind(one) == Some("object") && schema::keys(one).map(|(key, _)| key).eq(table.keys())
        }
        Value::String(_) => schema::kind(one) == Some("string"),
        _ => false,
    };
    schema::alternatives(schema).find(meant)
}

fn text_fits(text: &str, schema: &Value) -> bool {
    let choices = schema::choices(schema);
    if !choices.is_empty() {
        return choices.iter().any(|(word, _)| *word == text);
    }
    match schema.get("format").and_then(Value::as_str) {
        Some(SPAN_FORMAT) => text.parse::<Span>().is_ok(),
        Some(SIZE_FORMAT) => text.parse::<Size>().is_ok(),
        Some(SOCKET_FORMAT) => text.parse::<SocketAddr>().is_ok(),
        _ => true,
    }
}

fn number_fits(value: &Value, schema: &Value) -> bool {
    let Some(number) = value.as_f64() else { return false };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    bound("minimum").is_none_or(|min| number >= min)
        && bound("maximum").is_none_or(|max| number <= max)
        && bound("exclusiveMinimum").is_none_or(|min| number > min)
        && bound("exclusiveMaximum").is_none_or(|max| number < max)
}

/// Says which numbers a schema takes, as words to follow "a number"; nothing where it takes all.
fn range(schema: &Value) -> String {
    let bound = |name: &str, words: &str| schema.get(name).map(|bound| format!("{words} {bound}"));
    if let (Some(from), Some(to)) = (bound("minimum", " from"), bound("maximum", " to")) {
        return from + &to;
    }
    let least = bound("minimum", " of at least").or_else(|| bound("exclusiveMinimum", " greater than"));
    let most = bound("maximum", " at most").or_else(|| bound("exclusiveMaximum", " less than"));
    let and = if least.is_some() && most.is_some() { " and" } else { "" };
    least.unwrap_or_default() + and + &most.unwrap_or_default()
}

fn came(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > QUOTED_CHARS_MAX => {
            let start: String = text.chars().take(QUOTED_CHARS_MAX).collect();
            format!("the text {start:?}...")
        }
        Value::String(text) => format!("the text {text:?}"),
        Value::Number(number) => format!("the number {number}"),
        Value::Bool(truth) => truth.to_string(),
        _ => kind_of(value).to_owned(),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "a date, a time or a number that is not finite",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}
