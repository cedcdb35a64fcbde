//! Renders what is in force and where it came from. Prints no secret.

use std::fmt::Write;

use toml_edit::{DocumentMut, Item};

use super::key_path::KeyPath;
use super::raw::Config;
use super::{Loaded, property};

/// Returns one line `path = value  # origin` per effective value, in the order of the reference.
pub(super) fn show(loaded: &Loaded) -> String {
    let mut lines = String::new();
    item(document(&loaded.config.effective()).as_item(), &KeyPath::root(), loaded, &mut lines);
    lines
}

/// Returns a configuration as TOML, keys in the order of the structs, secrets masked, absent values left out.
pub(super) fn document(config: &Config) -> DocumentMut {
    toml_edit::ser::to_document(config)
        .expect("settings are tables and lists of texts, booleans and numbers within i64")
}

fn item(item_: &Item, path: &KeyPath, loaded: &Loaded, lines: &mut String) {
    if let Some(table) = item_.as_table_like().filter(|table| !table.is_empty()) {
        for (key, value) in table.iter() {
            item(value, &path.key(key), loaded, lines);
        }
        return;
    }
    let tables = item_.as_array().filter(|list| list.iter().any(|value| value.is_inline_table()));
    if let Some(tables) = tables {
        for (index, value) in tables.iter().enumerate() {
            item(&Item::Value(value.clone()), &path.index(index), loaded, lines);
        }
        return;
    }
    let origin = loaded.origin.get(path);
    let value = item_.to_string();
    let from = loaded.origin.reference(path).map(|reference| format!(", from {reference}")).unwrap_or_default();
    debug_assert!(property::is_within(path) || from.is_empty(), "only properties are taken from elsewhere");
    writeln!(lines, "{path} = {}  # {origin}{from}", value.trim()).expect("a string takes whatever is written to it");
}
