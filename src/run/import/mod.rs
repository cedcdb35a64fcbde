//! `bellwether import`: what other systems have kept, read from files into the store, beside a running service or without
//! one.
//!
//! Rows go into the tables alone: no window, alert or decision comes of them. How far a file was read is committed with its
//! rows, under a name that is a hash of what is in the file; so a file that is imported again, or goes on after it was
//! interrupted, is in the store once.

mod input;
mod reading;

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures::FutureExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::clock::{self, Clock as _, WallClock};
use super::service::chain;
use super::store::Place;
use super::{settings, stored};
use crate::ingest::tabular::Columns;
use crate::ingest::{Bounds, Limits};
use crate::model::series::Interner;
use crate::model::time::EventTime;
use crate::store::{Store, columns};
use input::{Form, Input};
use reading::{Chunk, Reading, Tally};

/// How often a commit that failed for a reason that may pass is tried again.
const RETRIES_MAX: u32 = 8;
const RETRY_WAIT: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub struct Options {
    /// The files, plain or packed as .gz or .zst; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// What the files hold; without it their names tell.
    #[arg(short, long, value_enum)]
    format: Option<Form>,
    /// CSV, Parquet: the column with the time; without it the one called ts, time or timestamp.
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// CSV, Parquet: the column with the metric's name; without it the one called name or metric.
    #[arg(long, value_name = "COLUMN")]
    name: Option<String>,
    /// CSV, Parquet: a column with numbers, given once for each; without it the one called value, or in Parquet all
    /// columns of numbers. Every other column is a label.
    #[arg(long, value_name = "COLUMN")]
    value: Vec<String>,
    /// CSV, Parquet: the metric's name; a column called name is a label then. With several columns of numbers, how the
    /// metrics' names begin.
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    metric: Option<String>,
    /// The time of samples that come without one; without it when the file was last changed.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<EventTime>,
    /// Import nothing of a file in which a line or row cannot be read, rather than putting that into the table `rejected`.
    #[arg(long)]
    strict: bool,
    /// Import a file once more that was imported before.
    #[arg(long)]
    again: bool,
    /// Only tell what would be imported.
    #[arg(long)]
    dry_run: bool,
}

fn parse_time(text: &str) -> Result<EventTime, String> {
    EventTime::parse_rfc3339(text).ok_or_else(|| format!("expected a time such as 2026-03-01T12:00:00Z, got {text:?}"))
}

impl Options {
    fn columns(&self) -> Columns {
        Columns {
            time: self.time.clone(),
            name: self.name.clone(),
            values: self.value.clone(),
            metric: self.metric.clone(),
        }
    }
}

/// Imports the files, one after the other.
pub async fn run(options: Options) -> Result<()> {
    let config = options.place.config()?;
    let limits = settings::limits(&config);
    let now = WallClock.time_of_day();
    let bounds = Bounds { oldest: EventTime::from_micros(0), newest: now + config.limits.ahead_max.get() };
    // What can be told of all files is told before the first is touched.
    let inputs = options.files.iter().map(|path| Input::of(path, options.format)).collect::<Result<Vec<_>>>()?;
    let store = match options.dry_run {
        true => None,
        false => Some(Store::open_beside(&options.place.settings()?, columns::record_tables()).await?),
    };
    let mut interner = Interner::new(config.limits.series_max);
    if let Some(store) = &store {
        let session = stored::session(store)?;
        stored::intern(&mut interner, session.table("series").await?, |_| true).await?;
    }
    let mut job = Job { options, limits, bounds, store, interner };
    let mut sum = Tally::default();
    let (count, begun) = (inputs.len(), Instant::now());
    let interrupted = super::interrupted().shared();
    for input in inputs {
        let done = job.import(&input, interrupted.clone()).await;
        sum.add(&done.with_context(|| format!("failed to import {}", input.name))?);
    }
    if count > 1 {
        println!("{count} files: {}", sum.told(begun.elapsed()));
    }
    Ok(())
}

struct Job {
    options: Options,
    limits: Limits,
    bounds: Bounds,
    /// None where nothing is to be written.
    store: Option<Store>,
    interner: Interner,
}

/// How far a file is in the store.
struct Standing {
    app: String,
    rejected: u64,
    rows: u64,
}

impl Job {
    async fn import(&mut self, input: &Input, interrupted: impl Future<Output = ()>) -> Result<Tally> {
        let (begun, name) = (Instant::now(), &input.name);
        let standing = self.standing(input).await?;
        if standing.as_ref().is_some_and(|standing| standing.rows.min(standing.rejected) == reading::DONE) {
            println!("{name}: imported before, nothing to do (hint: --again imports it once more)");
            return Ok(Tally::default());
        }
        let bar = bar(input.bytes, name);
        let cuts = standing.iter().flat_map(|standing| [standing.rows, standing.rejected]).collect::<Vec<_>>();
        if self.options.strict {
            self.reading(input, Vec::new(), &bar)?.check(&mut Interner::new(u32::MAX as usize))?;
            bar.reset();
        }
        let reading = self.reading(input, cuts, &bar)?;
        if let Some(layout) = reading.opened.layout() {
            bar.suspend(|| eprintln!("{name}: {layout}"));
        }
        let (chunks, mut received) = mpsc::channel::<Chunk>(1);
        let (done, read) = oneshot::channel();
        let mut interner = std::mem::replace(&mut self.interner, Interner::new(0));
        // A thread of its own, which nobody waits for where there is no more to read for now.
        std::thread::spawn(move || {
            let tally = reading.run(&mut interner, &chunks);
            let _ = done.send((interner, tally));
        });
        let committed = tokio::select! {
            committed = self.commit_all(&mut received, standing.as_ref(), input.form.table()) => committed,
            () = interrupted => Err(anyhow!("interrupted")),
        };
        bar.finish_and_clear();
        let stored = committed.with_context(|| self.left_behind(input))?;
        drop(received);
        let (interner, tally) = read.await.context("the thread that reads stopped")?;
        self.interner = interner;
        let tally = match tally {
            Err(error) if stored > 0 => return Err(error.context(self.left_behind(input))),
            tally => tally?,
        };
        tally.complaints.iter().for_each(|complaint| eprintln!("{name}: {complaint}"));
        println!("{name}: {}", tally.told(begun.elapsed()));
        if tally.refused() > 0 && self.store.is_some() {
            println!("{name}: what was refused: SELECT * FROM rejected WHERE topic = 'import/{name}'");
        }
        Ok(tally)
    }

    fn reading(&self, input: &Input, cuts: Vec<u64>, bar: &ProgressBar) -> Result<Reading> {
        Ok(Reading {
            topic: format!("import/{}", input.name),
            opened: input.open(&self.options.columns(), &self.limits, bar.clone())?,
            form: input.form,
            bounds: self.bounds,
            fallback: self.options.at.or(input.changed).unwrap_or_else(clock::now),
            now: clock::now(),
            cuts,
            strict: self.options.strict,
            bar: bar.clone(),
        })
    }

    /// Says what there is to know where an import ended before its file did.
    fn left_behind(&self, input: &Input) -> &'static str {
        match input.bytes.is_some() && !self.options.again {
            true => {
                "what was read before is in the store (hint: the same command goes on from there; a file that was changed \
                 counts as another, and would be there twice in part)"
            }
            false => "what was read before may be in the store (hint: the same command would import it twice)",
        }
    }

    /// Returns how far a file is in the store; none where there is no telling, or nothing is to be written.
    async fn standing(&self, input: &Input) -> Result<Option<Standing>> {
        let (Some(store), Some(digest)) = (&self.store, input.digest(&self.options.columns(), self.options.at)?) else {
            return Ok(None);
        };
        let mut app = format!("import/{digest:032x}");
        if self.options.again {
            app = format!("{app}/{}", uuid::Uuid::new_v4());
        }
        let table = input.form.table();
        let position = async |table: &str| {
            Ok::<_, anyhow::Error>(store.position(table, &app).await?.map_or(0, |position| position as u64))
        };
        let (rejected, rows) = (position("rejected").await?, position(table).await?);
        Ok(Some(Standing { app, rejected, rows }))
    }

    /// Returns how many chunks there were.
    async fn commit_all(
        &self,
        chunks: &mut mpsc::Receiver<Chunk>,
        standing: Option<&Standing>,
        table: &str,
    ) -> Result<usize> {
        let mut count = 0;
        while let Some(chunk) = chunks.recv().await {
            let Some(store) = &self.store else { continue };
            append(store, chunk, standing, table)?;
            commit(store).await?;
            count += 1;
        }
        Ok(count)
    }
}

/// Gives a chunk to the tables that lack it.
fn append(store: &Store, chunk: Chunk, standing: Option<&Standing>, table: &str) -> Result<()> {
    let end = i64::try_from(chunk.end)?;
    let lacks = |has: fn(&Standing) -> u64| standing.is_none_or(|standing| has(standing) < chunk.end);
    let positions: Vec<(&str, i64)> = standing.map(|standing| (standing.app.as_str(), end)).into_iter().collect();
    store.append("series", Some(chunk.series), &[])?;
    if lacks(|standing| standing.rejected) {
        store.append("rejected", Some(chunk.rejected), &positions)?;
    }
    if lacks(|standing| standing.rows) {
        store.append(table, Some(chunk.rows), &positions)?;
    }
    Ok(())
}

async fn commit(store: &Store) -> Result<()> {
    let mut failures = 0;
    loop {
        match store.commit().await {
            Ok(_) => break,
            Err(error) if error.retriable() && failures < RETRIES_MAX => {
                failures += 1;
                warn!(error = chain(&error), "committing again");
                tokio::time::sleep(RETRY_WAIT * 2u32.pow(failures)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    store.maintain().await?;
    Ok(())
}

fn bar(bytes: Option<u64>, name: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => {
            (ProgressBar::new(bytes), "{prefix}  {bar:30} {binary_bytes}/{binary_total_bytes}  {eta}  {msg}")
        }
        None => (ProgressBar::new_spinner(), "{prefix}  {binary_bytes}  {msg}"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_prefix(name.to_owned())
}
