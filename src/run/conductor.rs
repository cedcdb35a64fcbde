//! The core's thread: takes what the source says, keeps the core going, and times flushes, saves and idleness.
//!
//! The wall clock matters here for when things are done, never for what they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::clock;
use super::core::{Core, LOOP_APP};
use super::latest;
use super::outlet::{Flush, Landed, Outlet};
use super::partition::{DoneBefore, Emitted};
use super::service::{self, Obstacles, OnTick};
use super::settings::Settings;
use crate::kafka::sink::Offset;
use crate::kafka::source::{Assigned, BEGINNING, Source, SourceEvent};
use crate::model::time::EventTime;
use crate::store::{Store, columns};
use crate::stream::watermark::PartitionKey;
use crate::telemetry::Telemetry;

/// How long the thread waits for the source before it looks at its other duties.
const PATIENCE: Duration = Duration::from_millis(20);
/// Offsets that moved without an effect are committed at least this often.
const OFFSETS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the loop's memory is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
const GAUGES_INTERVAL: Duration = Duration::from_secs(1);
/// How long a question to the broker may hold up the thread.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Effects that may wait while their sink is away, before records are made to wait too.
const OUTBOX_MAX: usize = 200_000;
/// How long a shutdown or a rebalance waits for the last flush.
const LAST_FLUSH: Duration = Duration::from_secs(30);

pub struct Parts {
    pub core: Core,
    pub settings: Arc<Settings>,
    pub store: Arc<Store>,
    pub telemetry: Telemetry,
    pub obstacles: Obstacles,
    pub source: Source,
    pub runtime: Handle,
    pub on_tick: OnTick,
}

struct Conductor {
    parts: Parts,
    outlet: Outlet,
    cluster: Option<String>,
    begun: bool,
    /// How many partitions the inputs have; none until the broker told.
    partitions_total: Option<usize>,
    /// When each partition was last caught up with; a record takes it out.
    caught_up: BTreeMap<PartitionKey, Instant>,
    flushed_at: Instant,
    moved: bool,
    saved_at: Instant,
    /// The loop's memory as of the flush on its way, to be saved once that has landed.
    memory: Option<(EventTime, String)>,
    gauges_at: Instant,
}

/// Runs the core until told to stop, then commits what is in hand.
pub fn conduct(parts: Parts, events: Receiver<SourceEvent>, stop: Arc<AtomicBool>) -> Result<()> {
    let settings = &parts.settings;
    let outlet = Outlet::start(
        settings.kafka.clone(),
        settings.topics_wanted.clone(),
        parts.source.group(),
        parts.telemetry.clone(),
    )?;
    let now = Instant::now();
    let mut conductor = Conductor {
        parts,
        outlet,
        cluster: None,
        begun: false,
        partitions_total: None,
        caught_up: BTreeMap::new(),
        flushed_at: now,
        moved: false,
        saved_at: now,
        memory: None,
        gauges_at: now,
    };
    while !stop.load(Ordering::SeqCst) {
        conductor.turn(&events)?;
    }
    conductor.finish()
}

impl Conductor {
    /// One turn: at most one event of the source, then whatever is due.
    fn turn(&mut self, events: &Receiver<SourceEvent>) -> Result<()> {
        if self.overfull() {
            // The source keeps its place in the group meanwhile and stops fetching when its queue is full.
            std::thread::park_timeout(PATIENCE);
        } else {
            match events.recv_timeout(PATIENCE) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the source has stopped"),
            }
        }
        self.set_idle();
        if self.holds_all() {
            self.advance()?;
        }
        self.settle(Duration::ZERO)?;
        self.flush_if_due()?;
        self.show_gauges();
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
        let head = self.parts.store.head_bytes();
        let full = head > self.parts.settings.store.head_bytes_max || self.parts.core.outbox_len() > OUTBOX_MAX;
        self.parts.telemetry.queues.set_depth("outbox", self.parts.core.outbox_len());
        full
    }

    fn take(&mut self, event: SourceEvent) -> Result<()> {
        match event {
            SourceEvent::Batch(batch) => {
                for message in batch.iter() {
                    // Cheap enough per batch of thousands: most are of partitions that are already awake.
                    if self.caught_up.is_empty() {
                        break;
                    }
                    self.caught_up.remove(&(message.topic().clone(), message.partition()));
                }
                let bounds = self.parts.settings.bounds(clock::now());
                self.parts.core.ingest(batch.iter(), bounds)?;
                self.moved = true;
            }
            SourceEvent::Assigned { partitions, start } => {
                let offsets = self.assign(&partitions)?;
                start.send(offsets);
                self.count_partitions();
            }
            SourceEvent::Revoked { partitions, done } => {
                self.commit_all()?;
                for partition in partitions {
                    let key = (partition.topic.clone(), partition.partition);
                    self.parts.core.revoke(&key);
                    self.caught_up.remove(&key);
                    self.parts.telemetry.broker.forget(&partition.topic, partition.partition);
                }
                done.send(());
                self.count_partitions();
            }
            SourceEvent::Eof(partition) => {
                self.caught_up.entry((partition.topic, partition.partition)).or_insert_with(Instant::now);
            }
            SourceEvent::Missing { message } => {
                warn!(message, "an input topic is missing");
            }
            SourceEvent::Down { message } => {
                self.parts.telemetry.broker.set_up(false);
                warn!(message, "no broker answers");
                self.parts.obstacles.set("broker", message);
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
        let cluster = self.cluster.clone().unwrap_or_else(|| "unknown".to_owned());
        let mut starts = Vec::with_capacity(partitions.len());
        let mut emitted = EventTime::MIN;
        for partition in partitions {
            let app = format!("{cluster}/{}/{}", partition.topic_id, partition.partition);
            let (start, done_before) = self.position(partition, &app)?;
            let key: PartitionKey = (partition.topic.clone(), partition.partition);
            self.parts.core.assign(key, app, start, done_before)?;
            starts.push(start);
            emitted = Emitted::parse(&partition.metadata).map_or(emitted, |e| emitted.max(e.through()));
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

    fn position(&self, partition: &Assigned, app: &str) -> Result<(i64, DoneBefore)> {
        let table = self.parts.core.table_of(&partition.topic)?;
        let stored_in = |table: &str| self.parts.runtime.block_on(self.parts.store.position(table, app));
        let stored = stored_in(table)?;
        let (rejected, late) = (stored_in("rejected")?, stored_in("late")?);
        let effects = partition.committed;
        let low = partition.low;
        if let Some(stored) = stored.filter(|&stored| stored < low) {
            anyhow::bail!(
                "records [{stored}, {low}) of {}[{}] were deleted before they were read (hint: raise the topic's \
                 retention; to go on without them, start with an empty store and a new kafka.group_id)",
                partition.topic,
                partition.partition
            );
        }
        let start = stored.unwrap_or(BEGINNING).min(effects.unwrap_or(BEGINNING)).max(low);
        let done_before = DoneBefore {
            stored: stored.unwrap_or(0),
            rejected: rejected.unwrap_or(0),
            late: late.unwrap_or(0),
            effects: effects.unwrap_or(0),
        };
        Ok((start, done_before))
    }

    fn set_idle(&mut self) {
        let timeout = self.parts.settings.idle_timeout;
        let idle: Vec<PartitionKey> = self
            .caught_up
            .iter()
            .filter(|(_, since)| since.elapsed() >= timeout)
            .map(|(partition, _)| partition.clone())
            .collect();
        for partition in idle {
            self.parts.core.set_idle(&partition);
        }
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
        if self.outlet.in_flight || !self.begun {
            return Ok(());
        }
        let waited = self.flushed_at.elapsed();
        let effects = self.parts.core.outbox_len() > 0 && waited >= self.parts.settings.flush_interval;
        let offsets = self.moved && waited >= OFFSETS_INTERVAL;
        if effects || offsets { self.flush() } else { Ok(()) }
    }

    /// Sends all effects on their way, with the offsets and the tick they cover.
    fn flush(&mut self) -> Result<()> {
        let core = &mut self.parts.core;
        let through = core.closed_loop.tick();
        let emitted =
            Emitted { through_micros: through.unwrap_or(EventTime::MIN).max(core.emitted_before).as_micros() };
        let offsets: Vec<Offset> = core
            .partitions
            .iter()
            .map(|partition| Offset {
                topic: partition.key.0.to_string(),
                partition: partition.key.1,
                // What was emitted once stays emitted, however far back the store made us start.
                next: partition.next.max(partition.done_before.effects),
                metadata: emitted.to_metadata(),
            })
            .filter(|offset| offset.next >= 0)
            .collect();
        if self.saved_at.elapsed() >= SAVE_INTERVAL
            && let Some(tick) = through
        {
            self.memory = core.closed_loop.save()?.map(|text| (tick, text));
            self.saved_at = Instant::now();
        }
        self.outlet.send(Flush { records: core.take_outbox(), offsets, through })?;
        (self.flushed_at, self.moved) = (Instant::now(), false);
        Ok(())
    }

    /// Sees whether the flush on its way has landed, waiting up to `wait` for it.
    fn settle(&mut self, wait: Duration) -> Result<()> {
        match self.outlet.landed(wait)? {
            None => Ok(()),
            Some(Landed::Failed(error)) => Err(error).context("effects can no longer be emitted"),
            Some(Landed::Done { through }) => {
                // The memory must never be ahead of what was emitted: a restart from it would leave a gap.
                let Some((tick, body)) = self.memory.take_if(|(tick, _)| Some(*tick) <= through) else { return Ok(()) };
                let row = columns::StateRow { watermark: tick, body };
                let store = &self.parts.store;
                let batch = columns::records(&[row], &store.spec("state")?.schema)?;
                Ok(store.append("state", Some(batch), &[(LOOP_APP, tick.as_micros())])?)
            }
        }
    }

    /// Brings everything in hand to rest: effects into Kafka, rows into the store.
    fn commit_all(&mut self) -> Result<()> {
        self.settle(LAST_FLUSH)?;
        if self.begun && !self.outlet.in_flight {
            self.flush()?;
            self.settle(LAST_FLUSH)?;
        }
        if self.outlet.in_flight {
            warn!("the last effects have not landed; they will be emitted after the next start");
        }
        Ok(self.parts.runtime.block_on(service::commit(&self.parts.store, &self.parts.telemetry))?)
    }

    fn finish(mut self) -> Result<()> {
        self.saved_at = self.saved_at.checked_sub(SAVE_INTERVAL).unwrap_or(self.saved_at);
        let done = self.commit_all();
        drop(self.outlet);
        self.parts.source.stop();
        done
    }

    fn show_gauges(&mut self) {
        if self.gauges_at.elapsed() < GAUGES_INTERVAL {
            return;
        }
        self.gauges_at = Instant::now();
        if self.begun && self.partitions_total.is_none() {
            self.count_partitions();
        }
        let telemetry = &self.parts.telemetry;
        for (partition, lag) in self.parts.source.lag() {
            telemetry.broker.set_lag(&partition.topic, partition.partition, lag.max(0) as u64);
        }
        let now = clock::now();
        for (view, through, _) in self.parts.core.engine.progress() {
            if through > EventTime::MIN {
                telemetry.views.set_watermark_delay(view, now.since(through));
            }
        }
        telemetry.store.set_head(self.parts.store.head_rows(), self.parts.store.head_bytes());
    }
}
