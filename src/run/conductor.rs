//! The core's thread: takes what the source says, keeps the core going, and times flushes, saves and idleness.
//!
//! The wall clock matters here for when things are done, never for what they are.

mod gauges;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::clock::Clock;
use super::core::Core;
use super::feed::Feed;
use super::idleness::Idleness;
use super::incoming::Records;
use super::latest;
use super::memory::Memory;
use super::outlet::{Exit, Flush, Landed};
use super::partition::{DoneBefore, Emitted, StoredAs};
use super::reload::Request;
use super::resume;
use super::service::{self, Board, Obstacles, OnTick};
use super::settings::Settings;
use crate::kafka::sink::Offset;
use crate::kafka::source::{Assigned, BEGINNING, SourceEvent};
use crate::model::time::EventTime;
use crate::store::Store;
use crate::stream::watermark::PartitionKey;
use crate::telemetry::Telemetry;

/// How long the thread waits for the source before it looks at its other duties.
const PATIENCE: Duration = Duration::from_millis(20);
/// Offsets that moved without an effect are committed at least this often.
const OFFSETS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a question to the broker may hold up the thread.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Effects that may wait while their sink is away, before records are made to wait too.
const OUTBOX_MAX: usize = 200_000;
/// How long a shutdown or a rebalance waits for the last flush.
const LAST_FLUSH: Duration = Duration::from_secs(30);

/// What a conductor is made of, and the world outside as it sees it.
pub struct Parts<F, E, C> {
    pub core: Core,
    pub settings: Arc<Settings>,
    pub store: Arc<Store>,
    pub telemetry: Telemetry,
    pub obstacles: Obstacles,
    pub board: Board,
    pub source: F,
    pub outlet: E,
    pub clock: C,
    pub reloads: Receiver<Request>,
    pub runtime: Handle,
    pub on_tick: OnTick,
}

struct Conductor<F, E, C> {
    parts: Parts<F, E, C>,
    stop: Arc<AtomicBool>,
    cluster: Option<String>,
    begun: bool,
    /// How many partitions the inputs have; none until the broker told.
    partitions_total: Option<usize>,
    /// How far the effects of partitions were handed over that this process once held, by their names in the store: a
    /// topic made again has others.
    handed: BTreeMap<String, i64>,
    /// Partitions given up while effects waited: those must not go without the offsets that cover them.
    owed: BTreeSet<PartitionKey>,
    idleness: Idleness,
    /// The number of the last flush.
    flush: i64,
    flushed_at: Instant,
    moved: bool,
    memory: Memory,
    gauges_at: Instant,
}

/// Runs the core until told to stop, then commits what is in hand.
pub fn conduct<F: Feed, E: Exit, C: Clock>(parts: Parts<F, E, C>, stop: Arc<AtomicBool>) -> Result<()> {
    let now = parts.clock.now();
    let mut conductor = Conductor {
        parts,
        stop: stop.clone(),
        cluster: None,
        begun: false,
        partitions_total: None,
        handed: BTreeMap::new(),
        owed: BTreeSet::new(),
        idleness: Idleness::default(),
        flush: 0,
        flushed_at: now,
        moved: false,
        memory: Memory::new(now),
        gauges_at: now,
    };
    while !stop.load(Ordering::SeqCst) {
        conductor.turn()?;
    }
    conductor.finish()
}

impl<F: Feed, E: Exit, C: Clock> Conductor<F, E, C> {
    /// One turn: at most one event of the source, then whatever is due.
    fn turn(&mut self) -> Result<()> {
        if self.overfull() {
            // The source keeps its place in the group meanwhile and stops fetching when its queue is full.
            self.parts.clock.wait(PATIENCE);
        } else if let Some(event) = self.parts.source.next(PATIENCE)? {
            self.take(event)?;
        }
        if let Ok(request) = self.parts.reloads.try_recv() {
            self.reload(request)?;
        }
        let Parts { core, source, settings, clock, .. } = &mut self.parts;
        self.idleness.set_idle(core, source, settings.idle_timeout, || clock.now());
        if self.holds_all() {
            self.advance()?;
        }
        self.settle(Duration::ZERO)?;
        self.flush_if_due()?;
        self.show_gauges();
        Ok(())
    }

    /// Goes on with other settings and views.
    fn reload(&mut self, Request { prepared, done }: Request) -> Result<()> {
        let settings = prepared.settings.clone();
        let adopted = self.parts.runtime.block_on(self.parts.core.reload(prepared))?;
        self.parts.settings = settings;
        self.parts.board.set(self.parts.core.engine.explain());
        let _ = done.send(adopted);
        Ok(())
    }

    /// Windows are closed only while every partition of every input is here. A member that died without a word still
    /// holds its share until its session ends, and rows of a share that is elsewhere would find their windows closed.
    fn holds_all(&mut self) -> bool {
        self.begun && self.partitions_total.is_some_and(|total| self.parts.core.partitions.iter().count() >= total)
    }

    /// Asks how many partitions there are, and says what is missing of them.
    fn count_partitions(&mut self) {
        let mut total = 0;
        for input in &self.parts.settings.inputs {
            match self.parts.source.partition_count(&input.topic, QUESTION_TIMEOUT) {
                Ok(count) => total += count,
                Err(error) => {
                    warn!(error = service::chain(&error), "the partitions of the inputs are not known");
                    self.partitions_total = None;
                    return;
                }
            }
        }
        self.partitions_total = Some(total);
        let held = self.parts.core.partitions.iter().count();
        match held < total {
            false => self.parts.obstacles.clear("kafka"),
            true => {
                let why = format!(
                    "holds {held} of {total} partitions, and windows stay open until it holds all (hint: another member \
                     of group {} has the others; one that died lets go after its session timeout)",
                    self.parts.settings.kafka.group_id
                );
                warn!(held, total, "waiting for the other partitions");
                self.parts.obstacles.set("kafka", why);
            }
        }
    }

    fn overfull(&self) -> bool {
        let held = self.parts.store.head_bytes() + self.parts.core.outbox_bytes();
        let full = held > self.parts.settings.store.head_bytes_max || self.parts.core.outbox_len() > OUTBOX_MAX;
        self.parts.telemetry.queues.set_depth("outbox", self.parts.core.outbox_len());
        full
    }

    fn take(&mut self, event: SourceEvent<F::Batch>) -> Result<()> {
        match event {
            SourceEvent::Batch(batch) => {
                self.idleness.heard(&batch);
                let bounds = self.parts.settings.bounds(self.parts.clock.time_of_day());
                self.parts.core.ingest(batch.iter(), bounds)?;
                self.moved = true;
            }
            SourceEvent::Assigned { partitions, start } => {
                let offsets = self.assign(&partitions)?;
                start.send(offsets);
                self.count_partitions();
            }
            SourceEvent::Revoked { partitions, lost, done } => {
                // What the group took away cannot be committed under our name; the answer must not wait for it.
                self.commit_all(if lost { Duration::ZERO } else { LAST_FLUSH })?;
                let owes = self.parts.core.outbox_len() > 0;
                for partition in partitions {
                    let key = (partition.topic, partition.partition);
                    let at = self.parts.core.partitions.find(&key.0, key.1);
                    if let Some(held) = at.and_then(|at| self.parts.core.partitions.get(at)) {
                        // Given up before it was read again that far, it was handed that far all the same.
                        self.handed.insert(held.app.clone(), held.next.max(held.done_before.effects));
                    }
                    self.parts.core.revoke(&key);
                    self.idleness.forget(&key);
                    self.parts.telemetry.broker.forget(&key.0, key.1);
                    if owes {
                        self.owed.insert(key);
                    }
                }
                done.send(());
                self.count_partitions();
            }
            SourceEvent::Eof { partition, position } => {
                let key = (partition.topic, partition.partition);
                self.moved |= self.parts.core.skip_to(&key, position)?;
                self.idleness.at_end(key, self.parts.clock.now());
            }
            SourceEvent::Unreadable { partition, offset, reason } => {
                let key = (partition.topic, partition.partition);
                self.parts.core.pass_over(&key, offset, reason, self.parts.clock.time_of_day())?;
                self.moved = true;
            }
            SourceEvent::Missing { message } => {
                warn!(message, "an input topic is missing");
            }
            SourceEvent::Down { message } => {
                self.parts.telemetry.broker.set_up(false);
                warn!(message, "no broker answers");
                self.parts.obstacles.set("broker", message);
                self.idleness.wake(&mut self.parts.core);
            }
            SourceEvent::Up => {
                self.parts.telemetry.broker.set_up(true);
                self.parts.obstacles.clear("broker");
            }
            SourceEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Says where to start each partition: at the lower of what the store holds and what was emitted. Each path then
    /// passes over what it has.
    fn assign(&mut self, partitions: &[Assigned]) -> Result<Vec<i64>> {
        if self.cluster.is_none() {
            self.cluster = self.parts.source.cluster_id(Duration::from_secs(10));
        }
        // Offsets are kept under this name: a guess would read everything a second time.
        let cluster = self.cluster.clone().context("no broker told the id of its cluster")?;
        let mut starts = Vec::with_capacity(partitions.len());
        let mut emitted = EventTime::MIN;
        for partition in partitions {
            let app = format!("{cluster}/{}/{}", partition.topic_id, partition.partition);
            let emitted_for = Emitted::parse(&partition.metadata);
            // An offset of a topic that was deleted says nothing about one made again under its name.
            let same = emitted_for.as_ref().is_none_or(|e| e.topic_id.is_empty() || e.topic_id == partition.topic_id);
            let effects = partition.committed.filter(|_| same);
            let (start, done_before) = self.position(partition, &app, effects)?;
            let key: PartitionKey = (partition.topic.clone(), partition.partition);
            let name = StoredAs { app, topic_id: partition.topic_id.clone() };
            self.parts.core.assign(key.clone(), name, start, done_before)?;
            let Parts { core, store, runtime, .. } = &mut self.parts;
            runtime.block_on(resume::late_before_reading(core, store, &key, done_before))?;
            self.owed.remove(&key);
            starts.push(start);
            emitted = emitted_for.map_or(emitted, |e| emitted.max(e.through()));
        }
        self.parts.telemetry.broker.set_up(true);
        // Every share may carry the newest word on what was emitted.
        self.parts.core.emitted_before = self.parts.core.emitted_before.max(emitted);
        self.begun = true;
        match emitted > EventTime::MIN {
            true => info!(partitions = partitions.len(), emitted_through = %emitted, "reading begins"),
            false => info!(partitions = partitions.len(), "reading begins; nothing was emitted before"),
        }
        Ok(starts)
    }

    fn position(&self, partition: &Assigned, app: &str, effects: Option<i64>) -> Result<(i64, DoneBefore)> {
        let table = self.parts.core.table_of(&partition.topic)?;
        let stored_in = |table: &str| self.parts.runtime.block_on(self.parts.store.position(table, app));
        let stored = stored_in(table)?;
        let (rejected, late) = (stored_in("rejected")?, stored_in("late")?);
        let handed = self.handed.get(app).copied();
        let low = partition.low;
        if let Some(stored) = stored.filter(|&stored| stored < low) {
            let (topic, number) = (&*partition.topic, partition.partition);
            anyhow::ensure!(
                self.parts.settings.skip_deleted,
                "records [{stored}, {low}) of {topic}[{number}] were deleted before they were read (hint: raise the \
                 topic's retention; to go on without them, set kafka.deleted_unread = \"skip\")"
            );
            warn!(topic, partition = number, from = stored, to = low, "records were deleted before they were read");
            self.parts.telemetry.broker.deleted_unread(topic, (low - stored) as u64);
        }
        if let Some(effects) = effects.filter(|&effects| effects < low) {
            let (topic, number) = (&*partition.topic, partition.partition);
            warn!(topic, partition = number, from = effects, to = low, "dead letters of deleted records are not sent");
        }
        let start = stored.unwrap_or(BEGINNING).min(effects.unwrap_or(BEGINNING)).max(low);
        let done_before = DoneBefore {
            stored: stored.unwrap_or(0),
            rejected: rejected.unwrap_or(0),
            late: late.unwrap_or(0),
            // What this process handed to its sink before is on its way, even where the broker does not know yet.
            effects: effects.max(handed).unwrap_or(0),
            gathered: None,
        };
        Ok((start, done_before))
    }

    fn advance(&mut self) -> Result<()> {
        let ticks = self.parts.runtime.block_on(self.parts.core.advance())?;
        for tick in &ticks {
            latest::show(&self.parts.telemetry, &self.parts.core.closed_loop, tick);
            (self.parts.on_tick)(tick);
        }
        Ok(())
    }

    fn flush_if_due(&mut self) -> Result<()> {
        if !self.may_flush() {
            return Ok(());
        }
        let waited = self.since(self.flushed_at);
        let effects = self.parts.core.outbox_len() > 0 && waited >= self.parts.settings.flush_interval;
        let offsets = self.moved && waited >= OFFSETS_INTERVAL;
        if effects || offsets { self.flush() } else { Ok(()) }
    }

    fn may_flush(&self) -> bool {
        self.begun && self.owed.is_empty() && !self.parts.outlet.in_flight()
    }

    /// Sends all effects on their way, with the offsets and the tick they cover.
    fn flush(&mut self) -> Result<()> {
        let now = self.parts.clock.now();
        self.flush = Emitted::next_flush(self.flush, self.parts.clock.time_of_day());
        let flush = self.flush;
        let core = &mut self.parts.core;
        let through = core.closed_loop.tick();
        let through_micros = through.unwrap_or(EventTime::MIN).max(core.emitted_before).as_micros();
        let offsets: Vec<Offset> = core
            .partitions
            .iter()
            .map(|partition| Offset {
                topic: partition.key.0.to_string(),
                topic_id: partition.topic_id.clone(),
                partition: partition.key.1,
                // What was emitted once stays emitted, however far back the store made us start.
                next: partition.next.max(partition.done_before.effects),
                metadata: Emitted { through_micros, topic_id: partition.topic_id.clone(), flush, ..Emitted::default() }
                    .to_metadata(),
            })
            .filter(|offset| offset.next >= 0)
            .collect();
        self.memory.take(core, &self.parts.store, through, now)?;
        self.parts.outlet.send(Flush { records: core.take_outbox(), offsets, through })?;
        (self.flushed_at, self.moved) = (self.parts.clock.now(), false);
        Ok(())
    }

    /// Sees whether the flush on its way has landed, waiting up to `wait` for it.
    fn settle(&mut self, wait: Duration) -> Result<()> {
        match self.parts.outlet.landed(wait)? {
            None => Ok(()),
            // Nothing is called off where there is one instance: what is given up comes back, and its effects wait for it.
            Some(Landed::CalledOff) => Ok(()),
            Some(Landed::Failed(error)) => Err(error).context("effects can no longer be emitted"),
            Some(Landed::Done { through }) => self.memory.landed(&self.parts.store, through),
        }
    }

    /// Brings everything in hand to rest: effects into Kafka, rows into the store.
    ///
    /// Waits up to `patience` for Kafka.
    fn commit_all(&mut self, patience: Duration) -> Result<()> {
        self.settle(patience)?;
        if self.may_flush() && !patience.is_zero() {
            self.flush()?;
            self.settle(patience)?;
        }
        if self.parts.outlet.in_flight() || !self.owed.is_empty() {
            warn!("the last effects have not landed; they will be emitted after the next start");
        }
        // What passes must be waited for: to go on with rows uncommitted would have them read, and stored, again.
        let mut wait = PATIENCE;
        loop {
            match self.parts.runtime.block_on(service::commit(&self.parts.store, &self.parts.telemetry)) {
                Err(error) if error.retriable() && !self.stop.load(Ordering::SeqCst) => {
                    self.parts.clock.wait(wait);
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
                done => return Ok(done?),
            }
        }
    }

    fn finish(mut self) -> Result<()> {
        self.memory.hurry();
        let done = self.commit_all(LAST_FLUSH);
        drop(self.parts.outlet);
        self.parts.source.stop();
        done
    }

    fn since(&self, moment: Instant) -> Duration {
        self.parts.clock.now().duration_since(moment)
    }
}
