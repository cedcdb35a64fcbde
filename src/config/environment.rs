//! The environment: `BELLWETHER_<SECTION>__<KEY>` over what the file says.
//!
//! Is handed the variables and never asks for them; must not repeat their text, which may be a secret.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Typed;
use super::error::{Fault, Problem};
use super::file;
use super::key_path::KeyPath;
use super::nearest::nearest;
use super::origin::{Origin, Origins};
use super::property;
use super::schema;

const PREFIX: &str = "BELLWETHER_";
/// Ours, but not of the configuration: the file's path, and directives for logs.
const OTHERS: [&str; 2] = [super::PATH_VARIABLE, "BELLWETHER_LOG"];

/// Puts every value that the environment gives in its place, and returns what is wrong with the variables.
pub(super) fn overlay(typed: &mut Typed, env: &BTreeMap<String, String>, schema: &Value) -> Vec<Problem> {
    let known = known(schema);
    let mut problems = Vec::new();
    let mut unknown = Vec::new();
    let ours = env.iter().filter(|(name, _)| name.starts_with(PREFIX) && !OTHERS.contains(&name.as_str()));
    for (name, text) in ours {
        let Some((path, schema)) = known.get(name) else {
            unknown.push((name, text));
            continue;
        };
        match parse(text, schema) {
            Ok(value) => {
                typed.origins.forget(path);
                record(&value, path, name, &mut typed.origins);
                path.put(&mut typed.tree, value);
            }
            Err(message) => problems.push(Problem {
                at: Origin::Variable(name.clone()),
                path: path.clone(),
                fault: Fault::Syntax { expected: "a TOML value", message },
            }),
        }
    }
    // A property may be taken from a variable of any name, also one that begins as ours do.
    unknown.retain(|(name, _)| !property::variables(&typed.tree).any(|taken| taken == name.as_str()));
    unknown.retain(|(name, text)| !is_service_link(name, text));
    problems.extend(unknown.into_iter().map(|(name, _)| Problem {
        at: Origin::Variable(name.clone()),
        path: KeyPath::root(),
        fault: Fault::UnknownVariable { hint: hint(name, &known) },
    }));
    problems
}

/// Returns the variable of a key, or of a list of tables as a whole.
pub(super) fn variable(path: &[&str]) -> String {
    format!("{PREFIX}{}", path.join("__").to_ascii_uppercase())
}

/// Returns every variable that is known, with the path and the schema of its value.
fn known(root: &Value) -> BTreeMap<String, (KeyPath, &Value)> {
    let mut known = BTreeMap::new();
    for (section, schema) in schema::keys(root) {
        if schema::kind(schema) == Some("array") {
            known.insert(variable(&[section]), (KeyPath::of([section]), schema));
        }
        for (key, schema) in schema::keys(schema) {
            known.insert(variable(&[section, key]), (KeyPath::of([section, key]), schema));
        }
    }
    known
}

/// Reads a variable's text as a TOML value. Where it is none, or where the key takes text only, the text is the value.
fn parse(text: &str, schema: &Value) -> Result<Value, String> {
    let text_only = schema::kind(schema::required(schema)) == Some("string");
    match text.parse::<toml_edit::Value>() {
        Ok(toml_edit::Value::String(quoted)) => Ok(quoted.into_value().into()),
        Ok(_) if text_only => Ok(text.into()),
        Ok(value) => Ok(file::json(&value)),
        // Brackets were meant as TOML: its parser's word helps more than that text came.
        Err(error) if !text_only && text.trim_start().starts_with(['[', '{']) => Err(error.message().to_owned()),
        Err(_) => Ok(text.into()),
    }
}

/// Notes a variable as the origin of a value and of all below it.
fn record(value: &Value, path: &KeyPath, name: &str, origins: &mut Origins) {
    origins.insert(path.clone(), Origin::Variable(name.to_owned()));
    match value {
        Value::Object(table) => table.iter().for_each(|(key, value)| record(value, &path.key(key), name, origins)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| record(value, &path.index(index), name, origins));
        }
        _ => {}
    }
}

/// Tells whether Kubernetes set a variable to announce a service whose name begins with `bellwether`: it tells every
/// pod of the namespace about every service, and our own is among them.
fn is_service_link(name: &str, text: &str) -> bool {
    let words: Vec<&str> = name.split('_').skip(1).collect();
    let is_port = |word: &str| word.parse::<u16>().is_ok();
    let is_protocol = |word: &str| matches!(word, "TCP" | "UDP" | "SCTP");
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    match words.as_slice() {
        [.., "SERVICE", "HOST" | "PORT"] => true,
        [.., "PORT", port, protocol] if is_port(port) && is_protocol(protocol) => true,
        [.., "PORT", port, protocol, "ADDR" | "PORT" | "PROTO"] if is_port(port) && is_protocol(protocol) => true,
        [.., "PORT"] if is_address => true,
        // A port with a name of its own.
        words => words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) && is_port(text),
    }
}

fn hint(name: &str, known: &BTreeMap<String, (KeyPath, &Value)>) -> String {
    let section = format!("{name}__");
    if let Some((of_section, _)) = known.range(section.clone()..).next().filter(|(key, _)| key.starts_with(&section)) {
        return format!("that is a whole section; set one key at a time, such as {of_section}");
    }
    // The prefix is right in any case, and would make every name look near.
    let known = known.keys().filter_map(|name| name.strip_prefix(PREFIX));
    match nearest(name.strip_prefix(PREFIX).unwrap_or(name), known) {
        Some(near) => format!("did you mean {PREFIX}{near}?"),
        None => "a key's variable is BELLWETHER_<SECTION>__<KEY>, such as BELLWETHER_KAFKA__BROKERS".to_owned(),
    }
}
