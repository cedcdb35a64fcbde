//! `bellwether sql`: statements to a running service, or straight to the tables of a folder; given as an argument, read
//! from a file or standard input, or typed at a prompt.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use url::Url;

use super::store::warn_of_damage;
use super::{ConfigFile, client, prompt, settings, tables};
use crate::query::format::{self, Format};
use crate::query::{Engine, Settings, statement};
use crate::store::Store;

#[derive(clap::Args)]
pub struct Options {
    /// One or more statements, separated by semicolons. Without it they are read from standard input, or typed at a
    /// prompt where that is a terminal.
    sql: Option<String>,
    /// Read statements from this file.
    #[arg(long, value_name = "FILE", conflicts_with = "sql")]
    file: Option<PathBuf>,
    /// The service to ask; without it the one that the configuration describes.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    url: Option<Url>,
    /// Read the tables of this folder (or object-store URL) instead of asking a service.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// How to write the answer: table, csv, json, ndjson, arrow, parquet.
    #[arg(short, long, default_value = "table")]
    format: String,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<()> {
    let format = Format::from_str(&options.format).map_err(anyhow::Error::msg)?;
    let is_binary = matches!(format, Format::Arrow | Format::Parquet);
    anyhow::ensure!(
        !(is_binary && options.output.is_none() && std::io::stdout().is_terminal()),
        "{} is not for a terminal (hint: add --output FILE)",
        options.format
    );
    let source = Source::of(options.data.as_deref(), options.url.clone(), &options.config).await?;
    let statements = match read_statements(&options)? {
        Some(text) => statement::split(&text).context("failed to tell the statements apart")?,
        None => return prompt::run(source, format).await,
    };
    anyhow::ensure!(
        !is_binary || statements.len() <= 1,
        "{} holds the answer of one statement, got {}",
        options.format,
        statements.len()
    );
    let mut out: Box<dyn Write + Send> = match &options.output {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("failed to write {}", path.display()))?;
            Box::new(std::io::BufWriter::new(file))
        }
        None => Box::new(std::io::stdout()),
    };
    let count = statements.len();
    for (at, sql) in statements.iter().enumerate() {
        let which = || format!("statement {} of {count}", at + 1);
        let answered = source.ask(sql).await;
        let (schema, rows) = if count > 1 { answered.with_context(which)? } else { answered? };
        format::write(format, &schema, &rows, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// Returns what is to be run; none where it is to be typed.
fn read_statements(options: &Options) -> Result<Option<String>> {
    if let Some(path) = &options.file {
        return std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display())).map(Some);
    }
    match options.sql.as_deref() {
        Some(sql) if sql != "-" => Ok(Some(sql.to_owned())),
        None if std::io::stdin().is_terminal() => Ok(None),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("failed to read the statements")?;
            Ok(Some(text))
        }
    }
}

/// Returns where the service answers that a configuration describes.
pub fn url_of(config: &ConfigFile) -> Result<Url> {
    Ok(Url::parse(&format!("http://{}", config.load()?.config.serve.listen))?)
}

/// Who answers.
pub enum Source {
    Folder { name: String, engine: Engine },
    Service(Url),
}

impl Source {
    async fn of(data: Option<&str>, url: Option<Url>, config: &ConfigFile) -> Result<Source> {
        let Some(folder) = data else {
            return Ok(Source::Service(url.map_or_else(|| url_of(config), Ok)?));
        };
        let settings = settings::store(&config.load()?.config, data);
        let store = Store::inspect(&settings).await?;
        warn_of_damage(&store);
        let engine = tables::engine(Settings::default(), Arc::new(store), Vec::new())?;
        Ok(Source::Folder { name: folder.to_owned(), engine })
    }

    /// Returns who it is, for people to read.
    pub fn name(&self) -> &str {
        match self {
            Source::Folder { name, .. } => name,
            Source::Service(url) => url.as_str(),
        }
    }

    /// Asks one statement.
    pub async fn ask(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        match self {
            Source::Folder { engine, .. } => {
                let said = |error: crate::query::QueryError| anyhow::Error::msg(error.message());
                let answer = engine.run(sql).await.map_err(said)?;
                let schema = answer.schema.clone();
                Ok((schema, answer.collect().await.map_err(said)?))
            }
            Source::Service(url) => {
                let (url, sql) = (url.clone(), sql.to_owned());
                let asking = move || client::post_sql(&url, Format::Arrow.as_str(), &sql);
                let bytes = tokio::task::spawn_blocking(asking).await??;
                let answer = StreamReader::try_new(bytes.as_slice(), None).context("the answer is no Arrow stream")?;
                Ok((answer.schema(), answer.collect::<Result<_, _>>().context("the answer is cut off")?))
            }
        }
    }
}
