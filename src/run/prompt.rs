//! The prompt of `bellwether sql`: statements over as many lines as they take, a history, and a few commands as psql has
//! them. Asks and prints; knows nothing of tables.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::sql::Source;
use crate::query::format::{self, Format};
use crate::query::statement;

const HELP: &str = "\
Statements end with a semicolon, and may take several lines. Ctrl-C ends one that runs, or what is typed; Ctrl-D leaves.
  \\d            tables and views          \\d NAME       the columns of one
  \\dm           metrics and their labels   \\df           our functions and DataFusion's
  \\timing       how long each takes        \\format NAME  table, csv, json or ndjson
  \\?            this help                  \\q            leave";

/// A query that takes longer than this shows that it is at work.
const PATIENCE: Duration = Duration::from_millis(300);

/// What a line amounts to.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    /// Statements to run.
    Ask(Vec<String>),
    Help,
    Timing,
    Format(Format),
    Quit,
    /// A command that is not known, or not so.
    Unknown(String),
}

/// Asks until the user leaves.
pub async fn run(source: Source, format: Format) -> Result<()> {
    println!("bellwether {} on {}; \\? for help", env!("CARGO_PKG_VERSION"), source.name());
    let mut editor =
        DefaultEditor::new().context("failed to open the terminal (hint: give the statement as an argument)")?;
    let history = history();
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    let (mut format, mut is_timed, mut typed) = (format, false, String::new());
    loop {
        let prompt = if typed.is_empty() { "bellwether=> " } else { "bellwether-> " };
        // Reading keys blocks, and nothing else goes on meanwhile.
        let line = match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                typed.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("failed to read from the terminal"),
        };
        typed.push_str(&line);
        typed.push('\n');
        let Some(wish) = wish(&typed) else { continue };
        let _ = editor.add_history_entry(typed.trim());
        typed.clear();
        match wish {
            Wish::Ask(statements) => {
                for sql in statements {
                    answer(&source, &sql, format, is_timed).await;
                }
            }
            Wish::Help => println!("{HELP}"),
            Wish::Timing => {
                is_timed = !is_timed;
                println!("timing is {}", if is_timed { "on" } else { "off" });
            }
            Wish::Format(other) => format = other,
            Wish::Quit => break,
            Wish::Unknown(what) => eprintln!("error: {what}"),
        }
    }
    if let Some(path) = history {
        save(&mut editor, &path).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Returns what was typed so far wants; none where more is to come.
fn wish(typed: &str) -> Option<Wish> {
    let typed = typed.trim();
    if typed.is_empty() {
        return Some(Wish::Ask(Vec::new()));
    }
    if let Some(command) = typed.strip_prefix('\\') {
        return Some(command_of(command));
    }
    if matches!(typed, "exit" | "quit" | "exit;" | "quit;") {
        return Some(Wish::Quit);
    }
    match statement::split(typed) {
        Ok(statements) => statement::is_ended(typed).then_some(Wish::Ask(statements)),
        // Quotes that are open may be closed in the next line.
        Err(_) => None,
    }
}

fn command_of(command: &str) -> Wish {
    let (command, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim().trim_end_matches(';');
    let ask = |sql: String| Wish::Ask(vec![sql]);
    match (command.trim_end_matches(';'), rest) {
        ("?" | "h" | "help", _) => Wish::Help,
        ("q", _) => Wish::Quit,
        ("timing", _) => Wish::Timing,
        ("d" | "dt" | "dv", "") => ask("SELECT table_schema AS schema, table_name AS name, table_type AS type \
             FROM information_schema.tables WHERE table_schema NOT IN ('information_schema', 'metric') ORDER BY 1, 2"
            .to_owned()),
        ("d", name) => ask(format!("DESCRIBE {name}")),
        ("dm", _) => ask("SELECT name, kind, unit, series, labels FROM system.metrics ORDER BY name".to_owned()),
        ("df", _) => ask(
            "SELECT DISTINCT routine_name AS name, function_type AS type FROM information_schema.routines ORDER BY 1"
                .to_owned(),
        ),
        ("format", name) => match name.parse() {
            Ok(Format::Arrow | Format::Parquet) => Wish::Unknown(format!("{name} is not for a terminal")),
            Ok(format) => Wish::Format(format),
            Err(what) => Wish::Unknown(what),
        },
        (other, _) => Wish::Unknown(format!("expected a command, got \\{other}; \\? lists them")),
    }
}

/// Asks one statement and prints what comes; Ctrl-C gives it up.
async fn answer(source: &Source, sql: &str, format: Format, is_timed: bool) {
    let begun = Instant::now();
    let spinner = ProgressBar::no_length()
        .with_style(ProgressStyle::with_template("{spinner} {elapsed}").unwrap_or(ProgressStyle::default_spinner()));
    let asked = async {
        let mut asked = std::pin::pin!(source.ask(sql));
        match tokio::time::timeout(PATIENCE, &mut asked).await {
            Ok(answer) => answer,
            Err(_) => {
                spinner.enable_steady_tick(Duration::from_millis(100));
                asked.await
            }
        }
    };
    let answered = tokio::select! {
        answered = asked => answered,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("given up")),
    };
    spinner.finish_and_clear();
    let printed = answered.and_then(|(schema, rows)| {
        let mut out = Vec::new();
        format::write(format, &schema, &rows, &mut out)?;
        std::io::stdout().write_all(&out)?;
        Ok(rows.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>())
    });
    match printed {
        Ok(rows) if format == Format::Table => println!("({rows} {})", if rows == 1 { "row" } else { "rows" }),
        Ok(_) => {}
        Err(error) => eprintln!("error: {}", super::service::chain(&*error)),
    }
    if is_timed && std::io::stdout().is_terminal() {
        println!("{:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
}

fn history() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(state.join("bellwether/history"))
}

fn save(editor: &mut DefaultEditor, path: &PathBuf) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(editor.save_history(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_asked_where_it_ends() {
        assert_eq!(wish("SELECT 1\n"), None);
        assert_eq!(wish("SELECT ';\n"), None);
        assert_eq!(wish("SELECT ';';\n"), Some(Wish::Ask(vec!["SELECT ';'".to_owned()])));
        assert_eq!(
            wish("SELECT 1; -- and\nSELECT\n2;"),
            Some(Wish::Ask(vec!["SELECT 1".to_owned(), "-- and\nSELECT\n2".to_owned()]))
        );
        assert_eq!(wish("  \n"), Some(Wish::Ask(Vec::new())));
        assert_eq!(wish("quit\n"), Some(Wish::Quit));
    }

    #[test]
    fn commands_are_told() {
        assert_eq!(wish("\\d metric.cpu_load;\n"), Some(Wish::Ask(vec!["DESCRIBE metric.cpu_load".to_owned()])));
        assert_eq!(wish("\\format csv\n"), Some(Wish::Format(Format::Csv)));
        assert_eq!(wish("\\timing\n"), Some(Wish::Timing));
        assert!(matches!(wish("\\nothing\n"), Some(Wish::Unknown(_))));
        assert!(matches!(wish("\\format parquet\n"), Some(Wish::Unknown(_))));
    }
}
