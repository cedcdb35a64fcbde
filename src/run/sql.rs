//! `bellwether sql`: one question to a running service, or straight to the tables of a folder.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use url::Url;

use super::{client, service};
use crate::config;
use crate::query::format::{self, Format};
use crate::query::{Engine, Settings};
use crate::store::{self, Store};

#[derive(clap::Args)]
pub struct Options {
    /// The statement; read from standard input where it is `-` or not given.
    sql: Option<String>,
    /// The service to ask; without it the one that ./bellwether.toml describes.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    url: Option<Url>,
    /// Read the tables of this folder (or object-store URL) instead of asking a service.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
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
    let binary = matches!(format, Format::Arrow | Format::Parquet);
    anyhow::ensure!(
        !(binary && options.output.is_none() && std::io::stdout().is_terminal()),
        "{} is not for a terminal (hint: add --output FILE)",
        options.format
    );
    let sql = match options.sql.as_deref() {
        Some(sql) if sql != "-" => sql.to_owned(),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("failed to read the statement")?;
            text
        }
    };
    let answer = match &options.data {
        Some(folder) => of_folder(folder, &sql, format).await?,
        None => {
            let url = match options.url {
                Some(url) => url,
                None => default_url()?,
            };
            tokio::task::spawn_blocking(move || client::post_sql(&url, format.as_str(), &sql)).await??
        }
    };
    match options.output {
        Some(path) => std::fs::write(&path, answer).with_context(|| format!("failed to write {}", path.display())),
        None => Ok(std::io::stdout().lock().write_all(&answer)?),
    }
}

/// Returns where the service answers that ./bellwether.toml describes.
pub fn default_url() -> Result<Url> {
    let here = PathBuf::from("bellwether.toml");
    let loaded = config::load(here.exists().then_some(here.as_path()), std::env::vars())?;
    Ok(Url::parse(&format!("http://{}", loaded.config.serve.listen))?)
}

async fn of_folder(folder: &str, sql: &str, format: Format) -> Result<Vec<u8>> {
    let settings = store::Settings { url: folder.to_owned(), ..store::Settings::default() };
    let tables = Arc::new(Store::read(&settings).await?);
    let has = |name: &str| tables.iter().any(|(table, _)| table == name);
    let views = match has("samples") && has("series") {
        true => vec![("metrics".to_owned(), service::METRICS_VIEW.to_owned())],
        false => Vec::new(),
    };
    let pin: crate::query::Pin = Arc::new(move || tables.as_ref().clone());
    let engine = Engine::new(Settings::default(), pin, views)?;
    let answer = engine.run(sql).await?;
    let schema = answer.schema.clone();
    let batches = answer.collect().await?;
    let mut out = Vec::new();
    format::write(format, &schema, &batches, &mut out)?;
    Ok(out)
}
