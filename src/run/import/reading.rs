//! The reading side of an import, on a thread of its own: a file becomes chunks that are committed one by one. Where a
//! chunk ends depends on nothing but the file, and on where the tables stand in it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use arrow::array::RecordBatch;
use indicatif::{HumanCount, ProgressBar};
use tokio::sync::mpsc;

use super::input::{Form, Into, Opened};
use crate::ingest::Bounds;
use crate::model::batch::Decoded;
use crate::model::reject::{Provenance, Reason, Reject, Rejected};
use crate::model::series::Interner;
use crate::model::time::EventTime;
use crate::store::columns;

/// The position of a file that is in the store as a whole.
pub const DONE: u64 = i64::MAX as u64;
/// A chunk ends once it has as many samples or events, or as many refusals: about 100 MiB with all that becomes of it.
const CHUNK_ROWS: usize = 2_000_000;
const CHUNK_REFUSED_MAX: usize = 50_000;
const CHUNK_REFUSED_BYTES: usize = 16 << 20;
/// Refusals that are shown one by one.
const COMPLAINTS_MAX: usize = 5;
/// After how many lines or batches it is shown how far it is.
const SHOWN_EVERY: u64 = 10_000;

/// Rows that are committed together.
pub struct Chunk {
    /// Series that the store did not know before.
    pub series: RecordBatch,
    pub rejected: RecordBatch,
    pub rows: RecordBatch,
    /// How far the file is read with it.
    pub end: u64,
}

/// What a file brought.
#[derive(Debug, Default)]
pub struct Tally {
    pub rows: u64,
    /// Which series there were, by their numbers.
    seen: Vec<bool>,
    pub times: Option<(i64, i64)>,
    by_reason: BTreeMap<&'static str, u64>,
    pub complaints: Vec<String>,
}

impl Tally {
    pub fn refused(&self) -> u64 {
        self.by_reason.values().sum()
    }

    pub fn add(&mut self, other: &Tally) {
        self.rows += other.rows;
        self.seen.resize(self.seen.len().max(other.seen.len()), false);
        other.seen.iter().zip(&mut self.seen).for_each(|(more, seen)| *seen |= more);
        self.times = [self.times, other.times].into_iter().flatten().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        for (reason, count) in &other.by_reason {
            *self.by_reason.entry(reason).or_default() += count;
        }
    }

    /// Tells it to people.
    pub fn told(&self, took: Duration) -> String {
        let mut text = format!("{} rows", HumanCount(self.rows));
        let series = self.seen.iter().filter(|seen| **seen).count();
        if series > 0 {
            text += &format!(" of {} series", HumanCount(series as u64));
        }
        if let Some((oldest, newest)) = self.times {
            text += &format!(", {} to {}", EventTime::from_micros(oldest), EventTime::from_micros(newest));
        }
        let rate = self.rows as f64 / took.as_secs_f64().max(1e-3);
        text += &format!(", in {took:.1?} ({} a second)", HumanCount(rate as u64));
        if !self.by_reason.is_empty() {
            let reasons: Vec<String> = self.by_reason.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
            text += &format!("; {} refused: {}", HumanCount(self.refused()), reasons.join(", "));
        }
        text
    }

    fn take(&mut self, decoded: &Decoded) {
        let (samples, events) = (&decoded.samples, &decoded.events);
        self.rows += (samples.len() + events.len()) as u64;
        for &series in &samples.series {
            let at = series as usize;
            if self.seen.len() <= at {
                self.seen.resize(at + 1, false);
            }
            self.seen[at] = true;
        }
        let times = samples.ts.iter().copied().chain(events.iter().map(|event| event.ts.as_micros()));
        self.times = times.fold(self.times, |known, at| {
            let (oldest, newest) = known.unwrap_or((at, at));
            Some((oldest.min(at), newest.max(at)))
        });
    }
}

/// A file about to be read.
pub struct Reading {
    pub opened: Opened,
    pub form: Form,
    /// What stands for a topic in what is refused.
    pub topic: String,
    pub bounds: Bounds,
    /// The time of samples that have none.
    pub fallback: EventTime,
    /// The time of day.
    pub now: EventTime,
    /// Where the tables stand: chunks end there, too.
    pub cuts: Vec<u64>,
    pub strict: bool,
    pub bar: ProgressBar,
}

impl Reading {
    /// Reads the file through and keeps nothing.
    ///
    /// # Errors
    /// Where it is strict, what cannot be read.
    pub fn check(mut self, interner: &mut Interner) -> Result<()> {
        let (mut tally, mut decoded, mut rejected) = (Tally::default(), Decoded::default(), Vec::new());
        while self.fill(interner, &mut decoded, &mut rejected, &mut tally)? {
            decoded.clear();
            rejected.clear();
        }
        Ok(())
    }

    /// Reads the file through, and gives it to `chunks` for as long as somebody takes them.
    pub fn run(mut self, interner: &mut Interner, chunks: &mpsc::Sender<Chunk>) -> Result<Tally> {
        let (mut tally, mut decoded, mut rejected) = (Tally::default(), Decoded::default(), Vec::new());
        let mut more = true;
        while more {
            let known = interner.len();
            decoded.clear();
            rejected.clear();
            more = self.fill(interner, &mut decoded, &mut rejected, &mut tally)?;
            tally.take(&decoded);
            let end = if more { self.opened.position() } else { DONE };
            let chunk = self.chunk(interner, known, &decoded, &rejected, end)?;
            if chunks.blocking_send(chunk).is_err() {
                break;
            }
        }
        Ok(tally)
    }

    /// Reads until a chunk is full; false at the end of the file.
    fn fill(
        &mut self,
        interner: &mut Interner,
        out: &mut Decoded,
        rejected: &mut Vec<Rejected>,
        tally: &mut Tally,
    ) -> Result<bool> {
        let (mut refused_bytes, mut stopped, begun) = (0, None, self.opened.position());
        loop {
            let (topic, now, strict) = (&self.topic, self.now, self.strict);
            let mut refused = |at: u64, why: Reject, value: Vec<u8>| {
                refused_bytes += value.len();
                *tally.by_reason.entry(why.reason.as_str()).or_default() += 1;
                if tally.complaints.len() < COMPLAINTS_MAX {
                    tally.complaints.push(format!("line {at}: {why}"));
                }
                if strict {
                    stopped.get_or_insert_with(|| format!("line {at}: {why}"));
                }
                let from = Provenance { topic: topic.clone(), partition: 0, offset: at as i64 };
                rejected.push(Rejected { from, at: now, why, key: None, value: Some(value), headers: Vec::new() });
            };
            let mut into = Into { fallback: self.fallback, bounds: self.bounds, interner, out, refused: &mut refused };
            let more = self.opened.next(&mut into)?;
            if let Some(complaint) = stopped {
                bail!(
                    "{complaint}; nothing of the file is imported (hint: without --strict it goes to the table rejected, \
                     and the import goes on)"
                );
            }
            let at = self.opened.position();
            if !more {
                return Ok(false);
            }
            if at.is_multiple_of(SHOWN_EVERY) {
                self.bar.set_message(format!("{} rows", HumanCount(tally.rows + out.samples.len() as u64)));
            }
            if rejected.last().is_some_and(|last| last.why.reason == Reason::Cardinality) && interner.is_full() {
                bail!(
                    "there are as many series as limits.series_max allows, {} (hint: raise it; the same command goes on \
                     from where it was)",
                    HumanCount(interner.len() as u64)
                );
            }
            let is_full = out.samples.len() + out.events.len() >= CHUNK_ROWS
                || rejected.len() >= CHUNK_REFUSED_MAX
                || refused_bytes >= CHUNK_REFUSED_BYTES;
            if is_full || self.cuts.iter().any(|cut| begun < *cut && *cut <= at) {
                return Ok(true);
            }
        }
    }

    fn chunk(
        &self,
        interner: &Interner,
        known: usize,
        decoded: &Decoded,
        rejected: &[Rejected],
        end: u64,
    ) -> Result<Chunk> {
        let schema = |table: &str| {
            let spec = columns::record_tables().into_iter().find(|spec| spec.name == table);
            spec.map(|spec| spec.schema).expect("a table of records")
        };
        let rows = match self.form.table() {
            "events" => columns::events(&decoded.events, &schema("events"))?,
            _ => columns::samples(&decoded.samples, interner, &schema("samples"))?,
        };
        Ok(Chunk {
            series: columns::series(interner.range(known..interner.len()), self.now, &schema("series"))?,
            rejected: columns::rejected(rejected, &schema("rejected"))?,
            rows,
            end,
        })
    }
}
