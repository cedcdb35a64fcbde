//! The reference of the configuration, made from the structs in `raw`: `deploy/bellwether.toml` and
//! `docs/configuration.md`. Says what the code says, so that it cannot grow old; a test compares.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;
use toml_edit::{Item, TableLike};

use super::raw::{Anomaly, Config, Forecast, Format, Input, Insight, Outlier, Scaling};
use super::unit::Span;
use super::{environment, schema, show, walk};

/// Longest line of the reference file, in characters.
const LINE_CHARS_MAX: usize = 118;

/// Renders the reference file: every key with its meaning, commented out at its default.
///
/// A `#` with no space after it hides a key or the head of a list; with all of these taken away the file still loads.
pub fn toml() -> String {
    let mut text = String::from(TOML_HEAD);
    let schema = schema::inlined();
    for Section { path, schema, table, is_list } in sections(&schema, show::document(&example()).as_table()) {
        text.push('\n');
        comment(&mut text, description(schema));
        match is_list {
            true => line(&mut text, format_args!("#[[{path}]]")),
            false => line(&mut text, format_args!("[{path}]")),
        }
        for (key, schema, value) in keys(schema, &table) {
            comment(&mut text, description(schema));
            if let Some(example) = example_of(schema) {
                line(&mut text, format_args!("# For example: {key} = {example}"));
            }
            line(&mut text, format_args!("#{key} = {value}"));
        }
    }
    text
}

/// Renders the page of documentation: the rules, then a table of keys per section.
pub fn markdown() -> String {
    let mut text = String::from(MARKDOWN_HEAD);
    let schema = schema::inlined();
    for Section { path, schema, table, is_list } in sections(&schema, show::document(&example()).as_table()) {
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        match is_list {
            true => line(&mut text, format_args!("\n## `[[{path}]]`\n")),
            false => line(&mut text, format_args!("\n## `[{path}]`\n")),
        }
        line(&mut text, format_args!("{}\n", description(schema)));
        if is_list {
            let steps: Vec<&str> = path.split('.').collect();
            line(
                &mut text,
                format_args!("Any number of entries; all of them at once as `{}`.\n", environment::variable(&steps)),
            );
        }
        line(&mut text, format_args!("| key | takes | default | meaning |\n|---|---|---|---|"));
        for (key, schema, value) in keys(schema, &table) {
            let default = match schema.get("default") {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                Some(Value::Null) | None => "–".to_owned(),
                Some(_) => format!("`{value}`"),
            };
            let (takes, meaning) = (walk::expected(schema), description(schema));
            line(&mut text, format_args!("| `{key}` | {takes} | {default} | {meaning} |"));
        }
    }
    text
}

const TOML_HEAD: &str = "\
# Reference of bellwether.toml: every key, what it means, and its default. Made by `config::reference`.
# A line that begins with '#' and no space is a key at its default (in a list: an example); take the '#' away to set it.
# Every key can also be set by the environment, as BELLWETHER_<SECTION>__<KEY>, which wins over this file.
# Durations: 200ms, 5s, 1h 30m, 400d. Sizes: 4096B, 64MiB, 1GB. `bellwether config show` prints what is in force.
";

const MARKDOWN_HEAD: &str = "\
# Configuration

Made from the code by `config::reference`; `deploy/bellwether.toml` is the same as a file to start from, and
`schemas/config.schema.json` as a JSON Schema for editors.

- Values come from the defaults, then the file (`--config` or `BELLWETHER_CONFIG`), then the environment; the later
  wins, key by key. `bellwether config show` prints every value in force and where it came from.
- The variable of a key is `BELLWETHER_<SECTION>__<KEY>`, such as `BELLWETHER_KAFKA__BROKERS`. It is read as a TOML
  value, and as plain text where it is none. Lists and tables are given whole:
  `BELLWETHER_INPUTS='[{ topic = \"metrics\", format = \"json_metrics\" }]'`.
- Unknown keys and unknown variables that begin with `BELLWETHER_` are refused, with the nearest that is known.
  `BELLWETHER_LOG` (directives for logs) and what Kubernetes sets for services are left alone.
- Durations are text with a unit: `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w`, alone or in sequence (`\"1h 30m\"`). Sizes
  are text with a unit: `B`, `kB`, `KiB`, `MB`, `MiB`, `GB`, `GiB`, `TB`, `TiB`.
- Secrets (passwords, keys, tokens in `kafka.client` and `store.options`) are taken from a variable or a file, by
  `{ env = \"NAME\" }` or `{ file = \"/path\" }`; in plain text they are refused, and they are never printed.
- Relative paths start at the working directory.
";

/// A table of the configuration, or an entry of a list of tables.
struct Section<'a> {
    path: String,
    schema: &'a Value,
    table: Vec<(String, Item)>,
    is_list: bool,
}

/// Returns every section in the order of the structs; a list within a section follows the section.
fn sections<'a>(root: &'a Value, config: &dyn TableLike) -> Vec<Section<'a>> {
    let mut sections = Vec::new();
    collect(root, config, "", &mut sections);
    sections
}

fn collect<'a>(schema: &'a Value, table: &dyn TableLike, prefix: &str, sections: &mut Vec<Section<'a>>) {
    for (key, item) in table.iter() {
        let path = format!("{prefix}{key}");
        let Some((_, schema)) = schema::keys(schema).find(|(name, _)| *name == key) else { continue };
        let items = schema.get("items").filter(|items| schema::kind(items) == Some("object"));
        let (schema, content) = match items {
            Some(items) => (
                items,
                item.as_array().and_then(|list| list.get(0)?.as_inline_table()).map(|entry| entry as &dyn TableLike),
            ),
            None => (schema, item.as_table_like().filter(|_| schema.get("properties").is_some())),
        };
        let Some(content) = content else { continue };
        let table = content.iter().map(|(key, item)| (key.to_owned(), item.clone())).collect();
        sections.push(Section { path: path.clone(), schema, table, is_list: items.is_some() });
        collect(schema, content, &format!("{path}."), sections);
    }
}

/// Returns the keys of a section that are no sections themselves, each with its schema and its value as TOML.
fn keys<'a>(schema: &'a Value, table: &'a [(String, Item)]) -> impl Iterator<Item = (&'a String, &'a Value, String)> {
    table.iter().filter_map(move |(key, item)| {
        let (_, schema) = schema::keys(schema).find(|(name, _)| name == key)?;
        let is_list_of_tables = schema.get("items").and_then(schema::kind) == Some("object");
        (!is_list_of_tables).then(|| (key, schema, item.to_string().trim().to_owned()))
    })
}

/// Returns the defaults with one entry in every list, so that there is something to describe. The views are shipped.
fn example() -> Config {
    let input =
        Input { topic: "metrics".to_owned(), format: Format::JsonMetrics, table: None, dead_letter_topic: None };
    let service = || vec!["service".to_owned()];
    let anomaly = Anomaly { view: "service_latency_1m".to_owned(), column: "p95".to_owned(), by: service() };
    let outlier = Outlier {
        view: "replica_latency_30s".to_owned(),
        column: "p95".to_owned(),
        group: service(),
        member: "replica".to_owned(),
        windows: Outlier::default_windows(),
        windows_min: Outlier::default_windows_min(),
    };
    let forecast = Forecast {
        view: "service_throughput_1m".to_owned(),
        column: "per_second".to_owned(),
        by: service(),
        season: Some(Span::from_secs(86_400)),
        horizon: Forecast::default_horizon(),
        level: Forecast::default_level(),
    };
    let scaling = Scaling {
        target: "checkout".to_owned(),
        view: "service_throughput_1m".to_owned(),
        column: "per_second".to_owned(),
        key: [("service".to_owned(), "checkout".to_owned())].into(),
        capacity_per_replica: 100.0,
        utilization: Scaling::default_utilization(),
        replicas_min: Scaling::default_replicas_min(),
        replicas_max: 20,
        startup: Scaling::default_startup(),
        cooldown: Scaling::default_cooldown(),
        cost_per_replica_hour: 0.0,
        stale_after: Scaling::default_stale_after(),
        history_min: Scaling::default_history_min(),
    };
    let insight =
        Insight { anomaly: vec![anomaly], outlier: vec![outlier], forecast: vec![forecast], ..Insight::default() };
    Config { inputs: vec![input], insight, scaling: vec![scaling], ..Config::default() }.effective()
}

/// Returns a schema's description on one line.
fn description(schema: &Value) -> String {
    schema.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ")
}

/// Returns the first example that a schema gives, as TOML.
fn example_of(schema: &Value) -> Option<String> {
    let example = schema.get("examples")?.get(0)?;
    Some(example.serialize(toml_edit::ser::ValueSerializer::new()).ok()?.to_string())
}

/// Writes a comment, broken between words.
fn comment(text: &mut String, words: String) {
    let mut row = String::from("#");
    for word in words.split_whitespace() {
        if row.chars().count() + 1 + word.chars().count() > LINE_CHARS_MAX {
            line(text, format_args!("{row}"));
            row = String::from("#");
        }
        row.push(' ');
        row.push_str(word);
    }
    line(text, format_args!("{row}"));
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes whatever is written to it");
}
