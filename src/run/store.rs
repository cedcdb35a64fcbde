//! `bellwether store`: what a store holds, whether it is sound, and its upkeep by hand.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chrono::{DateTime, SecondsFormat};
use clap::Subcommand;
use futures::{StreamExt as _, stream};
use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressStyle};

use super::clock::{Clock as _, WallClock};
use super::settings;
use super::{ConfigFile, service};
use crate::config::raw::Config;
use crate::store::{Due, Eagerness, Held, Merged, Store};

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what every table holds.
    Stats {
        #[command(flatten)]
        place: Place,
        /// Write JSON, one object a table.
        #[arg(long)]
        json: bool,
    },
    /// Read every file through, and tell what is damaged or missing; exits non-zero where something is.
    Verify {
        #[command(flatten)]
        place: Place,
        /// Only this table.
        #[arg(long)]
        table: Option<String>,
    },
    /// Merge small files now, into as few as there can be. Not beside a running service on a folder: that merges by itself.
    Compact {
        #[command(flatten)]
        place: Place,
    },
    /// Delete files that were taken out of their table, or that a killed writer left behind.
    Vacuum {
        #[command(flatten)]
        place: Place,
        /// Leave what readers may still hold on to: files that left their table more recently than this.
        #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = humantime::parse_duration)]
        keep: Duration,
        /// Only tell what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where the store lies.
#[derive(clap::Args)]
pub struct Place {
    /// The folder (or object-store URL) of the store; without it the one of the configuration.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
}

impl Place {
    /// Returns the configuration, at its defaults where there is none.
    pub fn config(&self) -> Result<Config> {
        Ok(self.config.load()?.config)
    }

    /// Returns where the store is, and how it behaves.
    pub fn settings(&self) -> Result<crate::store::Settings> {
        Ok(settings::store(&self.config()?, self.data.as_deref()))
    }
}

/// Carries out the command.
pub async fn run(options: Options) -> Result<()> {
    match options.command {
        Command::Stats { place, json } => {
            let store = Store::inspect(&place.settings()?).await?;
            warn_of_damage(&store);
            stats(&store.held(), json)
        }
        Command::Verify { place, table } => verify(&Store::inspect(&place.settings()?).await?, table).await,
        Command::Compact { place } => compact(&Store::adopt(&place.settings()?).await?).await,
        Command::Vacuum { place, keep, dry_run } => {
            let settings = place.settings()?;
            let store = if dry_run { Store::inspect(&settings).await? } else { Store::adopt(&settings).await? };
            let done = store.vacuum(keep, WallClock.time_of_day(), dry_run).await?;
            let verb = if dry_run { "would delete" } else { "deleted" };
            println!("{verb} {} files, {}", HumanCount(done.files as u64), BinaryBytes(done.bytes));
            Ok(())
        }
    }
}

/// Tells people of tables that cannot be read; the others are answered from.
pub fn warn_of_damage(store: &Store) {
    for damage in store.damaged() {
        eprintln!("warning: table {}: {}", damage.table, damage.what);
    }
}

fn stats(held: &[Held], json: bool) -> Result<()> {
    if json {
        for table in held {
            println!("{}", serde_json::to_string(table)?);
        }
        return Ok(());
    }
    let width = held.iter().map(|table| table.table.len()).max().unwrap_or_default().max("all".len());
    let line = |name: &str, cells: [String; 6]| {
        let [rows, files, bytes, each, oldest, newest] = cells;
        println!("{name:width$}  {rows:>14}  {files:>7}  {bytes:>11}  {each:>9}  {oldest:20}  {newest}");
    };
    line("table", ["rows", "files", "size", "bytes/row", "oldest row", "newest row"].map(str::to_owned));
    let cells = |rows: u64, files: usize, bytes: u64, times: Option<(i64, i64)>| {
        let each = if rows == 0 { "-".to_owned() } else { format!("{:.2}", bytes as f64 / rows as f64) };
        let [oldest, newest] = times.map_or([String::new(), String::new()], |(a, b)| [a, b].map(time));
        [
            HumanCount(rows).to_string(),
            HumanCount(files as u64).to_string(),
            BinaryBytes(bytes).to_string(),
            each,
            oldest,
            newest,
        ]
    };
    for table in held {
        line(&table.table, cells(table.rows, table.files, table.bytes, table.times));
    }
    let sum = |of: fn(&Held) -> u64| held.iter().map(of).sum::<u64>();
    line("all", cells(sum(|t| t.rows), held.iter().map(|t| t.files).sum(), sum(|t| t.bytes), None));
    Ok(())
}

async fn verify(store: &Store, only: Option<String>) -> Result<()> {
    let (mut held, mut unreadable) = (store.held(), store.damaged().to_vec());
    if let Some(only) = &only {
        held.retain(|table| table.table == *only);
        unreadable.retain(|damage| damage.table == *only);
        ensure!(
            !held.is_empty() || !unreadable.is_empty(),
            "no table is called {only} (hint: bellwether store stats lists them)"
        );
    }
    let bar = bar(held.iter().map(|table| table.bytes).sum());
    let (mut lost, mut damaged, mut seen) = (0, 0, 0);
    for damage in &unreadable {
        println!("{}: {}", damage.table, damage.what);
    }
    for table in &held {
        bar.set_message(table.table.clone());
        let (verified, damages) = store.verify(&table.table, |bytes| bar.inc(bytes)).await?;
        seen += verified.files;
        damaged += damages.len();
        lost += damages.iter().map(|damage| damage.rows).sum::<u64>();
        for damage in damages {
            let times = damage.times.map_or(String::new(), |(a, b)| format!(", {} to {}", time(a), time(b)));
            let file = damage.file.unwrap_or_default();
            bar.suspend(|| {
                println!("{}/{file}: {} ({} rows{times})", damage.table, damage.what, HumanCount(damage.rows))
            });
        }
    }
    bar.finish_and_clear();
    ensure!(
        unreadable.is_empty(),
        "{} tables cannot be read at all, and {damaged} of {seen} files of the others are damaged (hint: take what is \
         named above out of a backup; the rest is sound)",
        unreadable.len()
    );
    ensure!(
        damaged == 0,
        "{damaged} of {seen} files are damaged; {} rows cannot be read any more (hint: take the files named above out of a \
         backup; all others are sound)",
        HumanCount(lost)
    );
    println!("{seen} files of {} tables are sound", held.len());
    Ok(())
}

async fn compact(store: &Store) -> Result<()> {
    let (begun, before) = (Instant::now(), store.held());
    let mut sum = Merged::default();
    let mut failed = None;
    // What is merged may be due again: many files at once take two rounds.
    loop {
        let due = store.due(Eagerness::Thorough);
        let bar = bar(due.iter().map(Due::bytes).sum());
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let merges = due.iter().map(|due| async move { (due, store.merge(due).await) });
        let mut merges = stream::iter(merges).buffer_unordered(at_once);
        let mut merged_any = false;
        while let Some((due, done)) = merges.next().await {
            bar.inc(due.bytes());
            bar.set_message(due.table().to_owned());
            match done {
                Ok(Some(merged)) => {
                    merged_any = true;
                    sum.rows += merged.rows;
                    sum.bytes_before += merged.bytes_before;
                }
                Ok(None) => {}
                Err(error) => {
                    bar.suspend(|| eprintln!("{}: {}", due.table(), service::chain(&error)));
                    failed = Some(error);
                }
            }
        }
        bar.finish_and_clear();
        if !merged_any || failed.is_some() {
            break;
        }
    }
    let after = store.held();
    let of = |held: &[Held]| (held.iter().map(|t| t.files).sum::<usize>(), held.iter().map(|t| t.bytes).sum::<u64>());
    let ((files, bytes), (left, smaller)) = (of(&before), of(&after));
    println!(
        "{} files, {} → {} files, {}; {} rows rewritten in {:.1?}",
        HumanCount(files as u64),
        BinaryBytes(bytes),
        HumanCount(left as u64),
        BinaryBytes(smaller),
        HumanCount(sum.rows),
        begun.elapsed(),
    );
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn bar(bytes: u64) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {binary_bytes}/{binary_total_bytes}  {eta}  {msg}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn time(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or("-".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}
