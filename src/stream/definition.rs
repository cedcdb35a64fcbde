//! The files of views and of dimension tables, read: names, options, windows, and each query with its window taken out.
//! Plans nothing, and opens no table.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::parser::{CreateExternalTable, DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{CreateTableOptions, CreateView, SqlOption, Statement as Sql, visit_relations};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;

use super::StreamError;
use super::window::{self, Found, Window, duration, text_of};
use crate::query;

/// How many windows back window functions see where a view does not say.
const LOOKBACK_WINDOWS: u32 = 60;
/// The shortest that rows are kept: what was just emitted may yet be compared with what a late row makes of it.
const RETENTION_MIN: Duration = Duration::from_secs(3600);

/// Ends of names that stand for something made of a view.
const KEPT_SUFFIXES: [&str; 2] = [query::CORRECTED, query::EMITTED];

/// What the file of a view says.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: Arc<str>,
    /// Where it was read from, for messages.
    pub file: String,
    /// The comment at the head of the file.
    pub description: String,
    /// Its own window, or that of the views it reads.
    pub window: Window,
    /// The column its own window is over; none where it takes the windows of the views it reads as they are.
    pub windowed_on: Option<String>,
    /// How long after the newest row of its partition a row may still come.
    pub lateness: Duration,
    /// How far back window functions like `lag` see.
    pub lookback: Duration,
    /// How much of what is stored already it takes in where it is new.
    pub backfill: Duration,
    /// How often windows that rows came too late for are computed anew, in versions beside what was emitted; none where
    /// what was emitted is the last word.
    pub correct_every: Option<Duration>,
    /// How long its rows are kept, by the newest of them; for good where it says nothing.
    pub retention: Option<Duration>,
    /// The topic its rows go to, where it asks for one.
    pub topic: Option<String>,
    /// The topic its late rows go to, where it asks for one.
    pub late_topic: Option<String>,
    /// Bytes of open windows beyond which no new group is taken in.
    pub state_bytes_max: usize,
    /// The tables it names: sources, views, dimension tables.
    pub reads: Vec<String>,
    /// The query, with `window_start` and `window_end` in place of the window function.
    pub query: String,
}

/// What views inherit where they say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub lateness: Duration,
    pub state_bytes_max: usize,
}

/// A table of fixed rows that streams can be joined with, as its file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimension {
    pub name: String,
    /// Where the declaration was read from.
    pub file: String,
    /// Where its rows are, relative to the folder of `file`.
    pub location: String,
    /// `CSV` or `JSON`.
    pub format: String,
    /// The declaration itself, which carries the columns and their types.
    pub statement: String,
}

/// All that a folder of SQL files declares.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// A view after all that it reads.
    pub views: Vec<Definition>,
    pub dimensions: Vec<Dimension>,
}

/// A view's file, before it is known what windows the views it reads have.
struct Draft {
    name: String,
    file: String,
    description: String,
    options: Options,
    /// Its own window and the column that is over.
    own_window: Option<Found>,
    reads: Vec<String>,
    query: String,
}

impl Definitions {
    /// Reads files of `CREATE MATERIALIZED VIEW name WITH (…) AS SELECT …` and of `CREATE EXTERNAL TABLE …`: their paths
    /// and texts.
    ///
    /// # Errors
    /// The first file that does not read, that takes a name twice, or that reads itself by a detour.
    pub fn read<P: AsRef<str>, T: AsRef<str>>(
        files: &[(P, T)],
        defaults: Defaults,
    ) -> Result<Definitions, StreamError> {
        let mut drafts: Vec<Draft> = Vec::new();
        let mut dimensions: Vec<Dimension> = Vec::new();
        for (file, text) in files {
            let (file, text) = (file.as_ref(), text.as_ref());
            let (name, other) = match statement(file, text)? {
                Statement::CreateExternalTable(table) => {
                    let dimension = dimension(file, text, &table)?;
                    let other = dimensions.iter().find(|d| d.name == dimension.name).map(|d| d.file.clone());
                    dimensions.push(dimension);
                    (table.name.to_string(), other)
                }
                Statement::Statement(statement) => {
                    let draft = Draft::of(file, text, *statement, defaults)?;
                    let name = draft.name.clone();
                    let other = drafts.iter().find(|d| d.name == name).map(|d| d.file.clone());
                    drafts.push(draft);
                    (name, other)
                }
                _ => return Err(unsupported(file, EXPECTED)),
            };
            if let Some(first) = other {
                return Err(StreamError::Duplicate { view: name, first, second: file.to_owned() });
            }
        }
        Ok(Definitions { views: arrange(drafts)?, dimensions })
    }
}

const EXPECTED: &str = "expected one CREATE MATERIALIZED VIEW … AS SELECT … or CREATE EXTERNAL TABLE …";

fn unsupported(file: &str, message: impl Into<String>) -> StreamError {
    StreamError::Unsupported { file: file.to_owned(), message: message.into() }
}

fn statement(file: &str, text: &str) -> Result<Statement, StreamError> {
    let parsed = DFParserBuilder::new(text).with_dialect(&PostgreSqlDialect {}).build();
    let parsed = parsed.and_then(|mut parser| parser.parse_statements());
    let mut statements = parsed.map_err(|error| syntax(file, &error.to_string()))?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(unsupported(file, EXPECTED)),
    }
}

fn syntax(file: &str, message: &str) -> StreamError {
    // The parser names the place at the end of its message: "… at Line: 3, Column: 7".
    let line = message.rsplit_once("Line: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    StreamError::Syntax { file: file.to_owned(), line: line.unwrap_or(1), message: message.to_owned() }
}

fn dimension(file: &str, text: &str, table: &CreateExternalTable) -> Result<Dimension, StreamError> {
    let format = table.file_type.to_ascii_uppercase();
    if !matches!(format.as_str(), "CSV" | "JSON") {
        return Err(unsupported(file, format!("a dimension table is STORED AS CSV or JSON, got {format}")));
    }
    if table.columns.is_empty() {
        return Err(unsupported(file, "a dimension table names its columns and their types"));
    }
    let [location] = table.locations.as_slice() else {
        return Err(unsupported(file, "a dimension table has one LOCATION"));
    };
    let name = table.name.to_string();
    check_name(&name).map_err(|message| unsupported(file, message))?;
    Ok(Dimension {
        name,
        file: file.to_owned(),
        location: location.clone(),
        format,
        // As it was written: the parser does not print the columns.
        statement: text.to_owned(),
    })
}

impl Draft {
    fn of(file: &str, text: &str, statement: Sql, defaults: Defaults) -> Result<Draft, StreamError> {
        let refused = |message: String| unsupported(file, message);
        let Sql::CreateView(CreateView { materialized, name, query, options, .. }) = statement else {
            return Err(unsupported(file, EXPECTED));
        };
        if !materialized {
            return Err(unsupported(file, "expected CREATE MATERIALIZED VIEW (hint: add MATERIALIZED)"));
        }
        let options = Options::read(&options, defaults).map_err(refused)?;
        let mut query = *query;
        let own_window = window::take(&mut query).map_err(refused)?;
        let name = name.to_string();
        check_name(&name).map_err(refused)?;
        let mut reads = BTreeSet::new();
        let _ = visit_relations(&query, |relation| {
            reads.insert(relation.to_string());
            ControlFlow::<()>::Continue(())
        });
        Ok(Draft {
            name,
            file: file.to_owned(),
            description: leading_comment(text),
            options,
            own_window,
            reads: reads.into_iter().collect(),
            query: query.to_string(),
        })
    }

    fn reads(&self, other: &Draft) -> bool {
        self.reads.contains(&other.name)
    }

    /// Gives a view without a window of its own the window of what it reads; `before` are the views that it may read.
    fn complete(self, before: &[Definition]) -> Result<Definition, StreamError> {
        let window = match &self.own_window {
            Some(own) => own.window,
            None => window_of_inputs(&self, before)?,
        };
        if self.options.correct_every.is_some() {
            self.check_corrections(window, before)?;
        }
        let Options { lateness, lookback, backfill, correct_every, retention, topic, late_topic, state_bytes_max } =
            self.options;
        Ok(Definition {
            name: self.name.into(),
            file: self.file,
            description: self.description,
            window,
            windowed_on: self.own_window.map(|own| own.on),
            lateness,
            lookback: lookback.unwrap_or_else(|| window.slide().saturating_mul(LOOKBACK_WINDOWS)),
            backfill,
            correct_every,
            retention,
            topic,
            late_topic,
            state_bytes_max,
            reads: self.reads,
            query: self.query,
        })
    }
}

impl Draft {
    /// A late row may join sessions that were emitted, so that no window of theirs has one successor.
    fn check_corrections(&self, window: Window, before: &[Definition]) -> Result<(), StreamError> {
        let family = family(before, &self.reads);
        let is_session = |window: &Window| matches!(window, Window::Session { .. });
        match is_session(&window) || family.iter().any(|view| is_session(&view.window)) {
            false => Ok(()),
            true => Err(unsupported(
                &self.file,
                "sessions cannot be corrected (hint: leave out correct_every, or use tumble or hop)",
            )),
        }
    }
}

/// Returns the views that are read, directly or through others, in their order.
pub fn family<'a>(views: &'a [Definition], reads: &[String]) -> Vec<&'a Definition> {
    let mut wanted: BTreeSet<&str> = reads.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for view in views.iter().rev() {
        if wanted.contains(&*view.name) {
            wanted.extend(view.reads.iter().map(String::as_str));
            found.push(view);
        }
    }
    found.reverse();
    found
}

/// Puts each view after those it reads, and gives those without a window of their own the window of what they read.
fn arrange(mut drafts: Vec<Draft>) -> Result<Vec<Definition>, StreamError> {
    let mut views: Vec<Definition> = Vec::with_capacity(drafts.len());
    while !drafts.is_empty() {
        let waits = |draft: &Draft| drafts.iter().any(|other| draft.reads(other));
        let Some(ready) = drafts.iter().position(|draft| !waits(draft)) else {
            let names: Vec<&str> = drafts.iter().map(|draft| draft.name.as_str()).collect();
            let message = format!("views read each other in a circle: {}", names.join(", "));
            return Err(unsupported(&drafts[0].file, message));
        };
        let view = drafts.remove(ready).complete(&views)?;
        views.push(view);
    }
    Ok(views)
}

fn window_of_inputs(draft: &Draft, before: &[Definition]) -> Result<Window, StreamError> {
    let mut inputs = before.iter().filter(|view| draft.reads.iter().any(|read| **read == *view.name));
    let source = draft.reads.iter().find(|read| matches!(read.as_str(), "metrics" | "events"));
    let (Some(first), None) = (inputs.next(), source) else {
        let hint = "hint: add tumble(ts, INTERVAL '1 minute'), hop(ts, slide, width) or session(ts, gap)";
        return Err(unsupported(&draft.file, format!("GROUP BY has no window ({hint})")));
    };
    match inputs.find(|other| other.window != first.window) {
        None => Ok(first.window),
        Some(other) => {
            let message =
                format!("views that are joined need the same window; {} and {} differ", first.name, other.name);
            Err(unsupported(&draft.file, message))
        }
    }
}

fn leading_comment(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.trim().strip_prefix("--"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// A view's name is a table's folder, a topic's part and a metric's part, so it is kept to what all of them allow.
fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !plain || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.len() > 64 {
        return Err(format!("name {name:?} must be lower-case letters, digits and _, a letter first, at most 64"));
    }
    match KEPT_SUFFIXES.iter().find(|suffix| name.ends_with(**suffix)) {
        None => Ok(()),
        Some(suffix) => Err(format!("name {name:?} ends in {suffix}, which is kept for the corrections of views")),
    }
}

struct Options {
    lateness: Duration,
    lookback: Option<Duration>,
    backfill: Duration,
    correct_every: Option<Duration>,
    retention: Option<Duration>,
    topic: Option<String>,
    late_topic: Option<String>,
    state_bytes_max: usize,
}

impl Options {
    fn read(given: &CreateTableOptions, defaults: Defaults) -> Result<Options, String> {
        let Defaults { lateness, state_bytes_max } = defaults;
        let (lookback, backfill, correct_every, retention, topic, late_topic) = Default::default();
        let mut options =
            Options { lateness, lookback, backfill, correct_every, retention, topic, late_topic, state_bytes_max };
        let CreateTableOptions::With(given) = given else { return Ok(options) };
        for option in given {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(format!("option {option} must be written as key = 'value'"));
            };
            let Some(value) = text_of(value) else {
                return Err(format!("option {key} must be a text in single quotes, got {value}"));
            };
            match key.value.as_str() {
                "lateness" => options.lateness = duration(&value)?,
                "lookback" => options.lookback = Some(duration(&value)?),
                "backfill" => options.backfill = duration(&value)?,
                "correct_every" => match duration(&value)? {
                    Duration::ZERO => return Err("option correct_every must be above zero".to_owned()),
                    every => options.correct_every = Some(every),
                },
                "retention" => match duration(&value)? {
                    short if short < RETENTION_MIN => return Err("option retention must be at least 1h".to_owned()),
                    keep => options.retention = Some(keep),
                },
                "topic" => options.topic = Some(value),
                "late_topic" => options.late_topic = Some(value),
                "state_max" => options.state_bytes_max = bytes(&value)?,
                other => {
                    let known = "lateness, lookback, backfill, correct_every, retention, topic, late_topic, state_max";
                    return Err(format!("option {other:?} is not known (hint: {known})"));
                }
            }
        }
        Ok(options)
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    let refused = || format!("expected a size like '64MiB', got {text:?}");
    let (number, scale) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))
        .ok_or_else(refused)?;
    let number: usize = number.trim().parse().map_err(|_| refused())?;
    number.checked_mul(1 << scale).filter(|bytes| *bytes > 0).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults { lateness: Duration::from_secs(10), state_bytes_max: 1 << 20 };

    fn parse(text: &str) -> Result<Definition, StreamError> {
        Ok(Definitions::read(&[("a.sql", text)], DEFAULTS)?.views.remove(0))
    }

    #[test]
    fn a_view_is_read_whole() {
        let view = parse(
            "-- What it is.\nCREATE MATERIALIZED VIEW v WITH (lateness = '5s', topic = 't', state_max = '2MiB') AS \
             SELECT window_end, count(*) AS n FROM metrics GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5' MINUTE)",
        )
        .unwrap();
        assert_eq!((&*view.name, view.description.as_str()), ("v", "What it is."));
        assert_eq!(view.window, Window::Hop { width: Duration::from_secs(300), slide: Duration::from_secs(60) });
        assert_eq!((view.lateness, view.topic.as_deref()), (Duration::from_secs(5), Some("t")));
        assert_eq!((view.lookback, view.state_bytes_max), (Duration::from_secs(3600), 2 << 20));
        assert!(view.query.ends_with("GROUP BY window_start, window_end"), "{}", view.query);
    }

    #[test]
    fn views_come_after_what_they_read_and_take_over_its_windows() {
        let tumble = "SELECT 1 FROM metrics GROUP BY tumble(ts, INTERVAL '1s')";
        let files = [
            ("c", "CREATE MATERIALIZED VIEW c AS SELECT * FROM a JOIN b ON a.window_end = b.window_end".to_owned()),
            ("b", format!("CREATE MATERIALIZED VIEW b AS {tumble}")),
            ("a", format!("CREATE MATERIALIZED VIEW a AS {tumble}")),
        ];
        let read = Definitions::read(&files, DEFAULTS).unwrap();
        let names: Vec<&str> = read.views.iter().map(|view| &*view.name).collect();
        assert_eq!(names, ["b", "a", "c"]);
        assert_eq!(read.views[2].window, read.views[0].window);
        assert_eq!(read.views[2].windowed_on, None);
    }

    #[test]
    fn a_dimension_table_is_read() {
        let text = "CREATE EXTERNAL TABLE owners (service VARCHAR NOT NULL, team VARCHAR) STORED AS CSV \
                    LOCATION 'owners.csv' OPTIONS ('format.has_header' 'true')";
        let read = Definitions::read(&[("dir/owners.sql", text)], DEFAULTS).unwrap();
        let table = &read.dimensions[0];
        assert_eq!((table.name.as_str(), table.location.as_str()), ("owners", "owners.csv"));
    }

    #[test]
    fn what_is_wrong_with_a_view_is_said() {
        let of = |query: &str| parse(&format!("CREATE MATERIALIZED VIEW v AS {query}")).unwrap_err().to_string();
        for (query, said) in [
            ("SELECT 1 FROM metrics", "no window"),
            ("SELECT 1 FROM m GROUP BY tumble(ts, 5)", "expected INTERVAL"),
            ("SELECT 1 FROM m GROUP BY hop(ts, INTERVAL '2s', INTERVAL '1s')", "at most the width"),
            ("SELECT 1 FROM m GROUP BY session(ts, INTERVAL '0s')", "above zero"),
            ("SELECT tumble(ts, INTERVAL '1s') FROM m GROUP BY tumble(ts, INTERVAL '1s')", "GROUP BY alone"),
            ("SELECT 1 UNION SELECT 2", "plain SELECT"),
            ("SELECT window_start FROM v", "in a circle"),
        ] {
            assert!(of(query).contains(said), "{query}: {}", of(query));
        }
        let broken = parse("CREATE MATERIALIZED VIEW v AS\nSELECT count(* FROM m").unwrap_err().to_string();
        assert!(broken.starts_with("a.sql:2:"), "{broken}");
        let corrected = |query: &str| {
            let text = format!("CREATE MATERIALIZED VIEW v WITH (correct_every = '1s') AS {query}");
            let session = "CREATE MATERIALIZED VIEW s AS SELECT 1 FROM metrics GROUP BY session(ts, INTERVAL '5s')";
            Definitions::read(&[("v.sql", text.as_str()), ("s.sql", session)], DEFAULTS).map(|_| ())
        };
        assert!(corrected("SELECT 1 FROM metrics GROUP BY tumble(ts, INTERVAL '5s')").is_ok());
        for query in ["SELECT 1 FROM metrics GROUP BY session(ts, INTERVAL '5s')", "SELECT window_end FROM s"] {
            assert!(corrected(query).unwrap_err().to_string().contains("sessions cannot be corrected"), "{query}");
        }
        let kept = "CREATE MATERIALIZED VIEW v_corrected AS SELECT 1 FROM metrics GROUP BY tumble(ts, INTERVAL '5s')";
        assert!(parse(kept).unwrap_err().to_string().contains("kept for"));
        let option = parse("CREATE MATERIALIZED VIEW v WITH (nonsense = '1') AS SELECT 1").unwrap_err().to_string();
        assert!(option.contains("lateness, lookback"), "{option}");
        let short = parse("CREATE MATERIALIZED VIEW v WITH (retention = '59m') AS SELECT 1").unwrap_err().to_string();
        assert!(short.contains("at least 1h"), "{short}");
    }
}
