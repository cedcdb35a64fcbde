//! A view's file, read: its name, its options, its window, and the query with the window taken out. Plans nothing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use datafusion::sql::sqlparser::ast::{
    CreateTableOptions, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, Query,
    SetExpr, SqlOption, Statement, Value, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};

use super::StreamError;

/// Windows of equal width, one starting every `slide`, aligned to the Unix epoch. Tumbling where the two are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub width: Duration,
    pub slide: Duration,
}

/// What the file of a view says.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: Arc<str>,
    /// Where it was read from, for messages.
    pub file: String,
    /// The comment at the head of the file.
    pub description: String,
    pub window: Window,
    /// How long after the newest row of its partition a row may still come.
    pub lateness: Duration,
    /// The topic its rows go to, where it asks for one.
    pub topic: Option<String>,
    /// The query, with `window_start` and `window_end` in place of the window function.
    pub query: String,
}

/// What views inherit where they say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub lateness: Duration,
}

impl Definition {
    /// Reads `CREATE MATERIALIZED VIEW name WITH (…) AS SELECT … GROUP BY tumble(ts, INTERVAL '…'), …`.
    pub fn parse(file: &str, text: &str, defaults: Defaults) -> Result<Definition, StreamError> {
        let unsupported = |message: String| StreamError::Unsupported { file: file.to_owned(), message };
        let mut statements =
            Parser::parse_sql(&PostgreSqlDialect {}, text).map_err(|error| syntax(file, error.clone()))?;
        let (Some(Statement::CreateView(view)), true) = (statements.pop(), statements.is_empty()) else {
            return Err(unsupported("expected one CREATE MATERIALIZED VIEW … AS SELECT …".to_owned()));
        };
        if !view.materialized {
            return Err(unsupported("expected CREATE MATERIALIZED VIEW (hint: add MATERIALIZED)".to_owned()));
        }
        let options = Options::read(&view.options, defaults).map_err(unsupported)?;
        let mut query = *view.query;
        let window = take_window(&mut query).map_err(unsupported)?;
        let name = view.name.to_string();
        check_name(&name).map_err(unsupported)?;
        Ok(Definition {
            name: name.into(),
            file: file.to_owned(),
            description: leading_comment(text),
            window,
            lateness: options.lateness,
            topic: options.topic,
            query: query.to_string(),
        })
    }
}

fn syntax(file: &str, error: ParserError) -> StreamError {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_owned(),
    };
    // The parser names the place at the end of its message: "… at Line: 3, Column: 7".
    let line = message.rsplit_once("Line: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    StreamError::Syntax { file: file.to_owned(), line: line.unwrap_or(1), message }
}

fn leading_comment(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.trim().strip_prefix("--"));
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// A view's name is a table's folder, a topic's part and a metric's part, so it is kept to what all of them allow.
fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    match plain && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.len() <= 64 {
        true => Ok(()),
        false => {
            Err(format!("view name {name:?} must be lower-case letters, digits and _, a letter first, at most 64"))
        }
    }
}

struct Options {
    lateness: Duration,
    topic: Option<String>,
}

impl Options {
    fn read(given: &CreateTableOptions, defaults: Defaults) -> Result<Options, String> {
        let mut options = Options { lateness: defaults.lateness, topic: None };
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
                "topic" => options.topic = Some(value),
                other => return Err(format!("option {other:?} is not known (hint: lateness, topic)")),
            }
        }
        Ok(options)
    }
}

fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            Value::Number(number, _) => Some(number.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|e| format!("expected a duration like '10s' or '5 minutes', got {text:?}: {e}"))
}

/// Finds the one window function among the group keys and puts the window's two bounds in its place.
fn take_window(query: &mut Query) -> Result<Window, String> {
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err("expected a plain SELECT (hint: UNION and VALUES cannot be continuous)".to_owned());
    };
    let GroupByExpr::Expressions(keys, _) = &mut select.group_by else {
        return Err("GROUP BY ALL is not supported (hint: name the keys and the window)".to_owned());
    };
    let mut window = None;
    let mut rewritten = Vec::with_capacity(keys.len() + 1);
    for key in keys.drain(..) {
        match as_window(&key)? {
            None => rewritten.push(key),
            Some(_) if window.is_some() => return Err("GROUP BY has more than one window".to_owned()),
            Some(found) => {
                window = Some(found);
                rewritten.push(Expr::Identifier(Ident::new("window_start")));
                rewritten.push(Expr::Identifier(Ident::new("window_end")));
            }
        }
    }
    *keys = rewritten;
    if mentions_window(query) {
        return Err("tumble and hop belong in GROUP BY alone (hint: select window_start, window_end)".to_owned());
    }
    window.ok_or_else(|| {
        "GROUP BY has no window (hint: add tumble(ts, INTERVAL '1 minute') or hop(ts, slide, width))".to_owned()
    })
}

fn as_window(expr: &Expr) -> Result<Option<Window>, String> {
    let Expr::Function(function) = expr else { return Ok(None) };
    let name = function.name.to_string().to_ascii_lowercase();
    let arguments = match name.as_str() {
        "tumble" | "hop" => arguments(function),
        "session" => return Err("session windows are not supported yet (hint: use tumble or hop)".to_owned()),
        _ => return Ok(None),
    };
    let (Some((Expr::Identifier(on), intervals)), true) = (arguments.split_first(), arguments.len() > 1) else {
        return Err(format!("expected {name}(ts, INTERVAL '…'), got {function}"));
    };
    if on.value != "ts" {
        return Err(format!("windows are over ts, the event time, got {on}"));
    }
    let lengths = intervals.iter().map(|arg| interval(arg)).collect::<Result<Vec<_>, _>>()?;
    let window = match (name.as_str(), lengths.as_slice()) {
        ("tumble", &[width]) => Window { width, slide: width },
        ("hop", &[slide, width]) => Window { width, slide },
        _ => return Err(format!("expected tumble(ts, width) or hop(ts, slide, width), got {function}")),
    };
    if window.slide.is_zero() || window.slide > window.width {
        return Err(format!("expected a slide above zero and at most the width, got {function}"));
    }
    Ok(Some(window))
}

fn arguments(function: &Function) -> Vec<Expr> {
    let FunctionArguments::List(list) = &function.args else { return Vec::new() };
    let unnamed = list.args.iter().filter_map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    unnamed.collect()
}

fn interval(expr: &Expr) -> Result<Duration, String> {
    let Expr::Interval(interval) = expr else {
        return Err(format!("expected INTERVAL '1 minute' or the like, got {expr}"));
    };
    let number = text_of(&interval.value).ok_or_else(|| format!("expected a text in {expr}"))?;
    let unit = interval.leading_field.as_ref().map(|unit| unit.to_string().to_ascii_lowercase());
    let length = duration(&format!("{number} {}", unit.unwrap_or_default()))?;
    match length.subsec_nanos() % 1_000_000 {
        0 => Ok(length),
        _ => Err(format!("expected whole milliseconds, got {expr}")),
    }
}

fn mentions_window(query: &Query) -> bool {
    let found = visit_expressions(query, |expr| match expr {
        Expr::Function(f) if matches!(f.name.to_string().to_ascii_lowercase().as_str(), "tumble" | "hop") => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Definition, StreamError> {
        Definition::parse("a.sql", text, Defaults { lateness: Duration::from_secs(10) })
    }

    #[test]
    fn a_view_is_read_whole() {
        let view = parse(
            "-- What it is.\nCREATE MATERIALIZED VIEW v WITH (lateness = '5s', topic = 't') AS \
             SELECT window_end, count(*) AS n FROM metrics GROUP BY hop(ts, INTERVAL '1 minute', INTERVAL '5' MINUTE)",
        )
        .unwrap();
        assert_eq!((&*view.name, view.description.as_str()), ("v", "What it is."));
        assert_eq!(view.window, Window { width: Duration::from_secs(300), slide: Duration::from_secs(60) });
        assert_eq!((view.lateness, view.topic.as_deref()), (Duration::from_secs(5), Some("t")));
        assert!(view.query.ends_with("GROUP BY window_start, window_end"), "{}", view.query);
    }

    #[test]
    fn what_is_wrong_with_a_view_is_said() {
        let of = |query: &str| parse(&format!("CREATE MATERIALIZED VIEW v AS {query}")).unwrap_err().to_string();
        for (query, said) in [
            ("SELECT 1", "no window"),
            ("SELECT 1 FROM m GROUP BY tumble(ts, 5)", "expected INTERVAL"),
            ("SELECT 1 FROM m GROUP BY tumble(other, INTERVAL '1s')", "windows are over ts"),
            ("SELECT 1 FROM m GROUP BY hop(ts, INTERVAL '2s', INTERVAL '1s')", "at most the width"),
            ("SELECT tumble(ts, INTERVAL '1s') FROM m GROUP BY tumble(ts, INTERVAL '1s')", "GROUP BY alone"),
            ("SELECT 1 UNION SELECT 2", "plain SELECT"),
        ] {
            assert!(of(query).contains(said), "{query}: {}", of(query));
        }
        let broken = parse("CREATE MATERIALIZED VIEW v AS\nSELECT count(* FROM m").unwrap_err().to_string();
        assert!(broken.starts_with("a.sql:2:"), "{broken}");
        let option = parse("CREATE MATERIALIZED VIEW v WITH (nonsense = '1') AS SELECT 1").unwrap_err().to_string();
        assert!(option.contains("lateness, topic"), "{option}");
    }
}
