//! The configuration file: its text, and every key of it with line and column. Knows TOML, not what keys mean.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use toml_edit::{Document, Item, TableLike};

use super::Typed;
use super::error::{Errors, Fault, Problem};
use super::key_path::KeyPath;
use super::origin::{Origin, Origins};

/// Most bytes in the configuration file.
const BYTES_MAX: u64 = 1 << 20;

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Typed, Errors> {
    let name: Arc<str> = path.display().to_string().into();
    let whole = |fault| only(Origin::File { file: name.clone(), line: 0, column: 0 }, fault);
    let bytes = read_at_most(path, BYTES_MAX).map_err(|source| whole(Fault::Read { source }))?;
    let bytes = bytes.ok_or_else(|| whole(Fault::TooLong { bytes_max: BYTES_MAX }))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| whole(Fault::Syntax { expected: "UTF-8 text", message: error.utf8_error().to_string() }))?;
    parse(&text, name)
}

/// Returns the bytes of a file; `None` where it has more than `bytes_max`.
pub(super) fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
}

/// Returns a TOML value as JSON; null for what JSON does not have.
pub(super) fn json(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::from(text.value().as_str()),
        toml_edit::Value::Integer(number) => Value::from(*number.value()),
        toml_edit::Value::Boolean(truth) => Value::from(*truth.value()),
        // Infinities and not-a-number become null here.
        toml_edit::Value::Float(number) => Value::from(*number.value()),
        toml_edit::Value::Datetime(_) => Value::Null,
        toml_edit::Value::Array(list) => list.iter().map(json).collect(),
        toml_edit::Value::InlineTable(table) => json_table(table),
    }
}

/// Returns a TOML table as JSON.
pub(super) fn json_table(table: &dyn TableLike) -> Value {
    let of_item = |item: &Item| match item {
        Item::None => Value::Null,
        Item::Value(value) => json(value),
        Item::Table(table) => json_table(table),
        Item::ArrayOfTables(list) => list.iter().map(|table| json_table(table)).collect(),
    };
    Value::Object(table.iter().map(|(key, item)| (key.to_owned(), of_item(item))).collect())
}

/// Reads the text of a file of this name.
pub(super) fn parse(text: &str, file: Arc<str>) -> Result<Typed, Errors> {
    let lines = Lines::new(text, file);
    let document = Document::parse(text).map_err(|error| {
        only(lines.origin(error.span()), Fault::Syntax { expected: "TOML", message: error.message().to_owned() })
    })?;
    let mut origins = Origins::default();
    lines.record_table(document.as_table(), &KeyPath::root(), &mut origins);
    Ok(Typed { tree: json_table(document.as_table()), origins })
}

fn only(at: Origin, fault: Fault) -> Errors {
    Errors::new(vec![Problem { at, path: KeyPath::root(), fault }])
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    file: Arc<str>,
    /// Offsets of the first byte of each line, ascending, the first 0.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, file: Arc<str>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, file, starts }
    }

    /// Notes where each key of a table stands, and all below it.
    fn record_table(&self, table: &dyn TableLike, path: &KeyPath, origins: &mut Origins) {
        for (key, item) in table.iter() {
            let path = path.key(key);
            let span = table.get_key_value(key).and_then(|(key, _)| key.span());
            origins.insert(path.clone(), self.origin(span.or_else(|| item.span())));
            self.record(item, &path, origins);
        }
    }

    fn record(&self, item: &Item, path: &KeyPath, origins: &mut Origins) {
        match item {
            Item::None => {}
            Item::Value(value) => self.record_value(value, path, origins),
            Item::Table(table) => self.record_table(table, path, origins),
            Item::ArrayOfTables(list) => {
                for (index, table) in list.iter().enumerate() {
                    let path = path.index(index);
                    origins.insert(path.clone(), self.origin(table.span()));
                    self.record_table(table, &path, origins);
                }
            }
        }
    }

    fn record_value(&self, value: &toml_edit::Value, path: &KeyPath, origins: &mut Origins) {
        match value {
            toml_edit::Value::InlineTable(table) => self.record_table(table, path, origins),
            toml_edit::Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    let path = path.index(index);
                    origins.insert(path.clone(), self.origin(value.span()));
                    self.record_value(value, &path, origins);
                }
            }
            _ => {}
        }
    }

    fn origin(&self, span: Option<Range<usize>>) -> Origin {
        let at = span.map_or(0, |span| span.start.min(self.text.len()));
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count()) + 1;
        Origin::File { file: self.file.clone(), line, column }
    }
}
