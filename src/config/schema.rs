//! The JSON Schema of the configuration, made from the structs in `raw`. Describes; reads and checks nothing.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::raw::Config;

/// Returns the JSON Schema (draft 2020-12) of `bellwether.toml`, for editors and other tools.
///
/// Rules that span keys are not in it; `load` checks those as well.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "Settings of Bellwether".into());
    }
    // A section's default repeats the defaults of its keys.
    if let Some(sections) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for section in sections.values_mut().filter_map(Value::as_object_mut) {
            section.remove("default");
        }
    }
    schema
}

/// Returns the same schema without references, for walking.
pub(super) fn inlined() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

/// Returns the schema of the keys of a table, by name; empty where the schema is not of a table with fixed keys.
pub(super) fn keys(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let keys = schema.get("properties").and_then(Value::as_object);
    keys.into_iter().flatten().map(|(key, schema)| (key.as_str(), schema))
}

/// Returns the only alternative that is not null, where a schema is of an optional value; else the schema itself.
pub(super) fn required(schema: &Value) -> &Value {
    let mut some = alternatives(schema).filter(|one| one.get("type").and_then(Value::as_str) != Some("null"));
    match (some.next(), some.next()) {
        (Some(one), None) => one,
        _ => schema,
    }
}

/// Returns the alternatives of a schema that has several.
pub(super) fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    schema.get("anyOf").and_then(Value::as_array).into_iter().flatten()
}

/// Returns the JSON type that a schema asks for, null aside.
pub(super) fn kind(schema: &Value) -> Option<&str> {
    match schema.get("type") {
        Some(Value::String(kind)) => Some(kind),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        // Words with a meaning each are alternatives of one type.
        _ => schema.get("oneOf")?.as_array()?.first().and_then(kind),
    }
}

/// Returns the words that a schema allows, with what each means; empty where it does not list any.
pub(super) fn choices(schema: &Value) -> Vec<(&str, Option<&str>)> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let mut words: Vec<_> = listed.filter_map(Value::as_str).map(|word| (word, None)).collect();
    for one in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
        match one.get("const").and_then(Value::as_str) {
            Some(word) => words.push((word, one.get("description").and_then(Value::as_str))),
            None => words.extend(choices(one)),
        }
    }
    words
}
