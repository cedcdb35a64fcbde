//! The core: records in; rows to the store, windows to the loop, effects out. Everything between the source and the two
//! sinks happens here, on one thread, in one direction.
//!
//! Never talks to Kafka and never waits for a commit.

mod gather;
mod reload;
mod ticks;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing::debug;

use super::closed_loop::ClosedLoop;
use super::effects::{self, Topics};
use super::incoming::{Incoming, Tally, Unreadable};
use super::partition::{DoneBefore, Finder, Held, HeldPartition, Partition, Partitions, StoredAs};
use crate::ingest::{Bounds, Decoder, Feeds, Format, Record};
use crate::kafka::sink::Outgoing;
use crate::model::batch::Decoded;
use crate::model::reject::{Provenance, Reason, Reject, Rejected};
use crate::model::series::Interner;
use crate::model::time::EventTime;
use crate::store::{Store, columns};
use crate::stream::watermark::PartitionKey;
use crate::stream::{Engine, Late, Source};
use crate::telemetry::Telemetry;
use crate::telemetry::instruments::Stage;

use gather::Paths;
pub use reload::Prepared;

/// The name under which a view's table remembers its last window.
pub const VIEW_APP: &str = "bellwether/view";
/// The name under which the loop's tables remember the last tick.
pub const LOOP_APP: &str = "bellwether/loop";
/// The tables that ticks are recorded in.
pub const LOOP_TABLES: [&str; 4] = ["anomalies", "forecasts", "alerts", "decisions"];

/// One input topic.
#[derive(Clone, Debug)]
pub struct Input {
    pub topic: String,
    pub format: Format,
    pub dead_letter_topic: String,
}

/// Where the records of one batch ended up, record by record.
#[derive(Clone, Copy)]
struct Trace {
    samples: u32,
    events: u32,
    partition: usize,
    offset: i64,
}

pub struct Core {
    inputs: Vec<Input>,
    decoders: Vec<Box<dyn Decoder>>,
    pub interner: Interner,
    series_stored: usize,
    pub engine: Engine,
    pub closed_loop: ClosedLoop,
    pub partitions: Partitions,
    /// What others see of them.
    pub held: Held,
    store: Arc<Store>,
    topics: Topics,
    telemetry: Telemetry,
    /// Effects of ticks at or before this were emitted by an earlier run.
    pub emitted_before: EventTime,
    /// The last tick that each of the loop's tables holds.
    pub recorded_before: BTreeMap<&'static str, EventTime>,
    /// Effects that wait for their transaction.
    outbox: Vec<Outgoing>,
    /// Of the dead letters in it, which alone can be large.
    outbox_bytes: usize,
    decoded: Decoded,
    rejected: Vec<Rejected>,
    traces: Vec<Trace>,
    late: Vec<Late>,
    view_topics: Vec<(Arc<str>, String)>,
    /// Of each view, the topic of its late rows.
    late_topics: Vec<Option<String>>,
}

/// What a core is made of.
pub struct Parts {
    pub inputs: Vec<Input>,
    pub decoders: Vec<Box<dyn Decoder>>,
    pub interner: Interner,
    pub engine: Engine,
    pub closed_loop: ClosedLoop,
    pub store: Arc<Store>,
    pub topics: Topics,
    pub telemetry: Telemetry,
}

impl Core {
    pub fn new(parts: Parts) -> Core {
        let Parts { inputs, decoders, interner, engine, closed_loop, store, topics, telemetry } = parts;
        let mut core = Core {
            inputs,
            decoders,
            series_stored: interner.len(),
            interner,
            engine,
            closed_loop,
            partitions: Partitions::default(),
            held: Held::default(),
            store,
            topics,
            telemetry,
            emitted_before: EventTime::MIN,
            recorded_before: BTreeMap::new(),
            outbox: Vec::new(),
            outbox_bytes: 0,
            decoded: Decoded::default(),
            rejected: Vec::new(),
            traces: Vec::new(),
            late: Vec::new(),
            view_topics: Vec::new(),
            late_topics: Vec::new(),
        };
        core.read_outputs();
        core
    }

    /// Begins with a partition: its records hold the clock of its source from now on.
    pub fn assign(&mut self, key: PartitionKey, name: StoredAs, start: i64, done_before: DoneBefore) -> Result<()> {
        let input = self.inputs.iter().position(|input| *input.topic == *key.0);
        let input = input.with_context(|| format!("topic {} was assigned but is no input", key.0))?;
        self.engine.clock(source_of(self.inputs[input].format)).add(key.clone());
        let StoredAs { app, topic_id } = name;
        let (unsent, late_before) = Default::default();
        self.held.hold(HeldPartition { key: key.clone(), app: app.clone(), table: self.table_of(&key.0)? });
        self.partitions.insert(Partition {
            key,
            input,
            app,
            topic_id,
            done_before,
            unsent,
            late_before,
            next: start,
            newest: None,
            promised: None,
            told_idle: false,
        });
        Ok(())
    }

    /// Returns the topic of a view's late rows, where it has one.
    fn late_topic(&self, view: &str) -> Option<&str> {
        let number = self.engine.views().position(|(known, _)| *known.name == *view)?;
        self.late_topics.get(number)?.as_deref()
    }

    /// Tells whether late rows of any view go to a topic.
    pub fn sends_late(&self) -> bool {
        self.late_topics.iter().any(Option::is_some)
    }

    /// Takes in a late row that an earlier run stored and did not send. No window will tell of it again: it is sent when
    /// its record is read again, so that it goes with the offset that covers it.
    pub fn send_late_again(&mut self, key: &PartitionKey, row: &columns::LateRow) {
        let Some(topic) = self.late_topic(&row.view) else { return };
        let record = effects::late_row(topic, row);
        if let Some(partition) = self.partitions.of_mut(key) {
            partition.unsent.entry(row.offset).or_default().push(record);
        }
    }

    /// Takes in the late rows that an earlier run stored without their records, by offset: read again, they are not noted
    /// twice, and what is late only now is noted.
    pub fn know_late_before(&mut self, key: &PartitionKey, rows: BTreeMap<i64, Vec<columns::LateRow>>) {
        if let Some(partition) = self.partitions.of_mut(key) {
            partition.late_before = Some(rows);
        }
    }

    pub fn revoke(&mut self, key: &PartitionKey) {
        self.held.let_go(key);
        self.engine.drop_partition(key);
        self.partitions.remove(key);
    }

    /// Returns what the records of a topic feed.
    pub fn source_of_topic(&self, topic: &str) -> Result<Source> {
        let input = self.inputs.iter().find(|input| input.topic == topic);
        Ok(source_of(input.with_context(|| format!("topic {topic} was assigned but is no input"))?.format))
    }

    /// Returns the table that the records of a topic go to.
    pub fn table_of(&self, topic: &str) -> Result<&'static str> {
        Ok(match self.source_of_topic(topic)? {
            Source::Metrics => "samples",
            Source::Events => "events",
        })
    }

    /// Moves a partition's position past what is no record: markers of transactions. The store too must know, else they
    /// would look like records that were deleted unread. Tells whether it moved.
    pub fn skip_to(&mut self, key: &PartitionKey, position: i64) -> Result<bool> {
        let table = self.table_of(&key.0)?;
        let Some(partition) = self.partitions.of_mut(key).filter(|partition| partition.next < position) else {
            return Ok(false);
        };
        partition.next = position;
        if position > partition.done_before.stored {
            self.store.append(table, None, &[(&partition.app, position)])?;
        }
        Ok(true)
    }

    /// Takes note of a record that cannot be had: a dead letter without its bytes.
    pub fn pass_over(&mut self, key: &PartitionKey, offset: i64, reason: String, now: EventTime) -> Result<()> {
        let Some(at) = self.partitions.find(&key.0, key.1) else { return Ok(()) };
        if let Some(partition) = self.partitions.get_mut(at) {
            partition.next = offset + 1;
        }
        self.reject(at, &Unreadable { at: key, offset }, now, Reject::new(Reason::Encoding, reason));
        self.traces.push(Trace { samples: 0, events: 0, partition: at, offset });
        self.hand_over(Paths::BOTH)
    }

    /// Lets a partition that is read to its end and silent step aside.
    pub fn set_idle(&mut self, key: &PartitionKey) {
        if let Some(partition) = self.partitions.of_mut(key) {
            self.engine.clock(source_of(self.inputs[partition.input].format)).set_idle(key);
        }
    }

    /// Tells whether a partition stands aside.
    pub fn is_idle(&self, key: &PartitionKey) -> bool {
        self.engine.is_idle(key)
    }

    /// Tells whether any partition stands aside.
    pub fn any_idle(&self) -> bool {
        self.partitions.iter().any(|partition| self.engine.is_idle(&partition.key))
    }

    /// Takes every partition for awake.
    pub fn wake(&mut self) {
        self.engine.wake();
    }

    /// Takes in a batch of records, each accepted whole or refused whole.
    pub fn ingest<M: Incoming>(&mut self, batch: impl Iterator<Item = M>, bounds: Bounds) -> Result<()> {
        {
            let _decode = self.telemetry.stages.time(Stage::Decode);
            let mut tally = vec![Tally::default(); self.inputs.len()];
            let mut finder = Finder::default();
            for message in batch {
                // A partition given up since the record was fetched: its new owner reads it.
                let found = finder.find(&self.partitions, message.topic(), message.partition());
                let Some(at) = found else { continue };
                self.decode(at, &message, bounds, &mut tally);
            }
            self.count(&tally);
        }
        let _window = self.telemetry.stages.time(Stage::Window);
        self.hand_over(Paths::BOTH)
    }

    fn decode(&mut self, at: usize, message: &impl Incoming, bounds: Bounds, tally: &mut [Tally]) {
        let Some(partition) = self.partitions.get_mut(at) else { return };
        let offset = message.offset();
        partition.next = offset + 1;
        let tally = &mut tally[partition.input];
        tally.records += 1;
        tally.bytes += message.value().map_or(0, <[u8]>::len) as u64;
        let Some(value) = message.value() else {
            debug!(topic = &*partition.key.0, offset, "tombstone skipped");
            // The store moves past it all the same, else it would look like a record that was deleted unread.
            return self.trace(at, offset);
        };
        let decoder = &mut self.decoders[partition.input];
        let headers = if decoder.wants_headers() { message.headers() } else { Vec::new() };
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, v)| (*name, v.unwrap_or_default())).collect();
        let timestamp =
            message.timestamp_ms().map_or(bounds.newest, |ms| EventTime::from_micros(ms.saturating_mul(1000)));
        let record = Record { value, timestamp, headers: &headers };
        let (mark, series) = (self.decoded.mark(), self.interner.mark());
        let before = (self.decoded.samples.len(), self.decoded.events.len());
        match decoder.decode(&record, bounds, &mut self.interner, &mut self.decoded) {
            Ok(()) => {
                tally.decoded += 1;
                let samples = self.decoded.samples.ts[before.0..].iter().copied().map(EventTime::from_micros);
                let events = self.decoded.events[before.1..].iter().map(|event| event.ts);
                partition.newest = samples.chain(events).chain(partition.newest).max();
                if partition.done_before.has_stored(offset) && partition.done_before.has_windowed(offset) {
                    // Dealt with; only the clock needs to know.
                    self.decoded.rewind(mark);
                    self.outbox.extend(partition.unsent.remove(&offset).into_iter().flatten());
                }
            }
            Err(why) => {
                self.interner.rewind(series);
                self.reject(at, message, timestamp, why);
            }
        }
        self.trace(at, offset);
    }

    /// Notes that a record is dealt with, whatever it gave.
    fn trace(&mut self, at: usize, offset: i64) {
        let (samples, events) = (self.decoded.samples.len() as u32, self.decoded.events.len() as u32);
        self.traces.push(Trace { samples, events, partition: at, offset });
    }

    fn reject(&mut self, at: usize, message: &impl Incoming, timestamp: EventTime, why: Reject) {
        let Some(partition) = self.partitions.get(at) else { return };
        let input = &self.inputs[partition.input];
        self.telemetry.input.rejected(&input.topic, why.reason.as_str(), 1);
        if why.reason == Reason::Cardinality {
            self.telemetry.input.series_refused(&input.topic, 1);
        }
        let (topic, number, offset) = (partition.key.0.to_string(), partition.key.1, message.offset());
        let headers = message.headers().into_iter().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)));
        let rejected = Rejected {
            from: Provenance { topic, partition: number, offset },
            at: timestamp,
            why,
            key: message.key().map(<[u8]>::to_vec),
            value: message.value().map(<[u8]>::to_vec),
            headers: headers.collect(),
        };
        if offset >= partition.done_before.effects {
            let letter = effects::dead_letter(&input.dead_letter_topic, &rejected);
            self.outbox_bytes += letter.payload.as_ref().map_or(0, Vec::len);
            self.outbox.push(letter);
        }
        if offset >= partition.done_before.rejected {
            self.rejected.push(rejected);
        }
    }

    fn count(&self, tally: &[Tally]) {
        for (input, tally) in self.inputs.iter().zip(tally).filter(|(_, tally)| tally.records > 0) {
            tally.tell(&self.telemetry.input, &input.topic);
        }
        self.telemetry.input.set_series(self.interner.len());
    }

    /// Gives what was decoded to the store and the stream. The order is the order of the tables' commits: whatever cut
    /// a commit makes, labels are there before samples, and refusals before the offsets that pass over them.
    fn hand_over(&mut self, paths: Paths) -> Result<()> {
        let (decoded, traces) = (std::mem::take(&mut self.decoded), std::mem::take(&mut self.traces));
        let rejected = std::mem::take(&mut self.rejected);
        self.store_new_series()?;
        self.store_rejected(&rejected)?;
        let events = columns::events(&decoded.events, &self.store.schema("events")?)?;
        let mut late = std::mem::take(&mut self.late);
        if paths.windows && !decoded.samples.is_empty() {
            self.engine.push_samples(&decoded.samples, &self.interner, &mut late)?;
            self.store_late(&late, &decoded, &traces, Source::Metrics)?;
            late.clear();
        }
        if paths.windows && !decoded.events.is_empty() {
            self.engine.push_events(&events, &mut late)?;
            self.store_late(&late, &decoded, &traces, Source::Events)?;
            late.clear();
        }
        let touched = touched(&traces);
        if paths.store {
            let samples = columns::samples(&decoded.samples, &self.interner, &self.store.schema("samples")?)?;
            self.store.append("samples", Some(samples), &self.positions(&touched, Some(Source::Metrics)))?;
            self.store.append("events", Some(events), &self.positions(&touched, Some(Source::Events)))?;
        }
        for &at in &touched {
            let Some(partition) = self.partitions.get_mut(at) else { continue };
            if let Some(newest) = partition.newest.take() {
                self.engine.clock(source_of(self.inputs[partition.input].format)).observe(&partition.key, newest);
            }
        }
        // The buffers go back emptied: they have grown to the size of a batch.
        (self.decoded, self.traces, self.rejected, self.late) = (decoded, traces, rejected, late);
        self.decoded.clear();
        self.traces.clear();
        self.rejected.clear();
        Ok(())
    }

    fn store_new_series(&mut self) -> Result<()> {
        let new = self.interner.range(self.series_stored..self.interner.len());
        let batch = columns::series(new, super::clock::now(), &self.store.schema("series")?)?;
        self.store.append("series", Some(batch), &[])?;
        self.series_stored = self.interner.len();
        Ok(())
    }

    fn store_rejected(&self, rejected: &[Rejected]) -> Result<()> {
        if rejected.is_empty() {
            return Ok(());
        }
        let mut partitions: Vec<usize> = rejected
            .iter()
            .filter_map(|one| self.partitions.find(&Arc::from(one.from.topic.as_str()), one.from.partition))
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        let batch = columns::rejected(rejected, &self.store.schema("rejected")?)?;
        Ok(self.store.append("rejected", Some(batch), &self.positions(&partitions, None))?)
    }

    /// Returns where some partitions stand, of all or of those that feed a source.
    fn positions(&self, partitions: &[usize], of: Option<Source>) -> Vec<(&str, i64)> {
        let mine = partitions.iter().filter_map(|&at| self.partitions.get(at));
        let mine = mine.filter(|partition| of.is_none_or(|of| source_of(self.inputs[partition.input].format) == of));
        let moved = mine.filter(|partition| of.is_none() || partition.next > partition.done_before.stored);
        moved.map(|partition| (partition.app.as_str(), partition.next)).collect()
    }

    fn store_late(&mut self, late: &[Late], decoded: &Decoded, traces: &[Trace], source: Source) -> Result<()> {
        if late.is_empty() {
            return Ok(());
        }
        let names: Vec<Arc<str>> = self.engine.views().map(|(view, _)| view.name.clone()).collect();
        let mut rows = Vec::with_capacity(late.len());
        let mut partitions = Vec::new();
        for one in late {
            let filled = |trace: &Trace| if source == Source::Metrics { trace.samples } else { trace.events };
            let Some(trace) = traces.get(traces.partition_point(|trace| filled(trace) <= one.row)) else { continue };
            let Some(partition) = self.partitions.get(trace.partition) else { continue };
            let view = &names[one.view];
            self.telemetry.views.late(view, 1);
            let row = columns::LateRow {
                view: view.to_string(),
                ts: one.ts,
                closed_through: one.closed_through,
                topic: partition.key.0.to_string(),
                partition: partition.key.1,
                offset: trace.offset,
                series_id: (source == Source::Metrics)
                    .then(|| decoded.samples.series.get(one.row as usize))
                    .flatten()
                    .and_then(|&series| self.interner.ids().get(series as usize))
                    .map(|id| id.0),
                value: (source == Source::Metrics)
                    .then(|| decoded.samples.value.get(one.row as usize).copied())
                    .flatten(),
                event_id: (source == Source::Events)
                    .then(|| decoded.events.get(one.row as usize).map(|event| event.id.clone()))
                    .flatten(),
            };
            if let Some(topic) = self.late_topics.get(one.view).and_then(Option::as_deref)
                && trace.offset >= partition.done_before.effects
            {
                self.outbox.push(effects::late_row(topic, &row));
            }
            if trace.offset >= partition.done_before.late || partition.is_newly_late(&row) {
                partitions.push(trace.partition);
                rows.push(row);
            }
        }
        partitions.sort_unstable();
        partitions.dedup();
        let batch = columns::records(&rows, &self.store.schema("late")?)?;
        let mine = partitions.iter().filter_map(|&at| self.partitions.get(at));
        // Where an earlier run came further, what lies between is noted already.
        let at: Vec<_> = mine.map(|of| (of.app.as_str(), of.next.max(of.done_before.late))).collect();
        Ok(self.store.append("late", Some(batch), &at)?)
    }

    /// Returns the number of effects that wait.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Returns the bytes of the dead letters among them.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Hands over the effects that wait.
    pub fn take_outbox(&mut self) -> Vec<Outgoing> {
        self.outbox_bytes = 0;
        std::mem::take(&mut self.outbox)
    }
}

/// Which stream a format feeds.
pub fn source_of(format: Format) -> Source {
    match format.feeds() {
        Feeds::Samples => Source::Metrics,
        Feeds::Events => Source::Events,
    }
}

fn touched(traces: &[Trace]) -> Vec<usize> {
    let mut partitions: Vec<usize> = traces.iter().map(|trace| trace.partition).collect();
    partitions.dedup();
    partitions.sort_unstable();
    partitions.dedup();
    partitions
}
