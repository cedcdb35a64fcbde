//! The part of the work that one instance does for all: reads the topic of partial states, closes the windows once every
//! partition of every input has promised to be past them, and runs the loop. The others stand by.
//!
//! Whoever becomes the owner begins at the first record that an open window is made of, as the owner before committed it,
//! and closes nothing until it has read what that one had.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::{error, info, warn};

use super::wire::{self, Letter, Promise};
use super::{
    GAUGES_INTERVAL, LAST_FLUSH, OFFSETS_INTERVAL, OUTBOX_MAX, PATIENCE, QUESTION_TIMEOUT, Shared, commit_store,
};
use crate::kafka::sink::Offset;
use crate::kafka::source::{Assigned, BEGINNING, SourceEvent};
use crate::model::time::EventTime;
use crate::run::clock::Clock;
use crate::run::core::{Core, Input, VIEW_APP, source_of};
use crate::run::feed::Feed;
use crate::run::incoming::{Incoming, Records};
use crate::run::memory::Memory;
use crate::run::outlet::{Exit, Flush, Landed};
use crate::run::partition::Emitted;
use crate::run::service::{self, Board, OnTick};
use crate::run::{latest, resume};
use crate::stream::Source;
use crate::stream::partial::Merged;
use crate::stream::watermark::PartitionKey;

/// How often records that no window needs any more are deleted.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// How often the partitions of the inputs are counted anew.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);

pub struct Finisher<F, E, C> {
    shared: Shared<C>,
    // Dropped in this order: what is on its way goes under the membership that the source holds.
    outlet: E,
    source: F,
    board: Board,
    on_tick: OnTick,
    /// The work, while this instance has it.
    duty: Option<Duty>,
    /// The number of the last flush.
    flush: i64,
    flushed_at: Instant,
    gauges_at: Instant,
    trimmed_at: Instant,
}

/// The work of the one that finishes.
struct Duty {
    core: Core,
    memory: Memory,
    topic_id: String,
    /// The next offset to be read.
    next: i64,
    /// Up to here the log is read again for the open windows alone.
    replay_until: i64,
    is_replaying: bool,
    /// Whether it is known which partitions have to promise.
    knows_partitions: bool,
    counted_at: Instant,
    /// Of each record with partial states that may be needed again: its offset, and a time that none of them reaches.
    states: VecDeque<(i64, EventTime)>,
    /// Where each partition's newest promise stands.
    promises: BTreeMap<PartitionKey, i64>,
    /// Whether anything was read since the last flush.
    moved: bool,
    /// The first offset that was needed as of the last flush, and up to where records were deleted.
    needed_from: i64,
    deleted_before: i64,
}

impl<F: Feed, E: Exit, C: Clock> Finisher<F, E, C> {
    pub fn new(shared: Shared<C>, source: F, outlet: E, board: Board, on_tick: OnTick) -> Self {
        let now = shared.clock.now();
        Finisher {
            shared,
            source,
            outlet,
            board,
            on_tick,
            duty: None,
            flush: 0,
            flushed_at: now,
            gauges_at: now,
            trimmed_at: now,
        }
    }

    /// Works until told to stop, then sends what is in hand.
    pub fn run(mut self) -> Result<()> {
        while !self.shared.is_stopped() {
            self.turn()?;
        }
        self.end()
    }

    /// Sends what is in hand, and leaves the group.
    pub(super) fn end(mut self) -> Result<()> {
        let done = self.send_all();
        drop(self.outlet);
        self.source.stop();
        done
    }

    /// Takes what the source has next, and does what is due.
    pub(super) fn turn(&mut self) -> Result<()> {
        let (waiting, bytes) =
            self.duty.as_ref().map_or((0, 0), |duty| (duty.core.outbox_len(), duty.core.outbox_bytes()));
        let bytes_max = self.shared.settings.store.head_bytes_max;
        if waiting > OUTBOX_MAX || self.shared.store.head_bytes() + bytes > bytes_max {
            let waited = self.shared.clock.now().duration_since(self.flushed_at);
            if self.outlet.in_flight() && waited > LAST_FLUSH {
                return Err(super::unsent(&mut self.outlet));
            }
            self.shared.clock.wait(PATIENCE);
        } else if let Some(event) = self.source.next(PATIENCE)? {
            self.take(event)?;
        }
        if let Some(duty) = self.duty.as_mut().filter(|duty| !duty.is_replaying && duty.knows_partitions) {
            for tick in &self.shared.runtime.block_on(duty.core.advance())? {
                latest::show(&self.shared.telemetry, &duty.core.closed_loop, tick);
                (self.on_tick)(tick);
            }
        }
        self.settle(Duration::ZERO)?;
        self.flush_if_due()?;
        self.show_gauges();
        Ok(())
    }

    fn take(&mut self, event: SourceEvent<F::Batch>) -> Result<()> {
        match event {
            SourceEvent::Batch(batch) => {
                if let Some(duty) = &mut self.duty {
                    batch.iter().try_for_each(|record| duty.take(&record))?;
                }
            }
            SourceEvent::Assigned { partitions, start } => {
                ensure!(
                    partitions.iter().all(|partition| partition.partition == 0),
                    "the topic {} has more than one partition, and windows are closed by one instance (hint: make it \
                     again with one)",
                    self.shared.partials
                );
                let mut starts = Vec::new();
                for partition in &partitions {
                    starts.push(self.begin(partition)?);
                }
                start.send(starts);
                self.shared.on_duty.store(true, Ordering::SeqCst);
            }
            SourceEvent::Revoked { lost, done, .. } => {
                self.shared.on_duty.store(false, Ordering::SeqCst);
                if lost {
                    self.outlet.call_off();
                    commit_store(&self.shared)?;
                } else {
                    self.send_all()?;
                }
                self.stand_by();
                done.send(());
            }
            SourceEvent::Eof { position, .. } => {
                if let Some(duty) = &mut self.duty {
                    duty.moved |= position > duty.next;
                    duty.next = duty.next.max(position);
                    duty.end_replay_at(position);
                }
            }
            SourceEvent::Unreadable { offset, reason, .. } => {
                warn!(
                    offset,
                    reason,
                    topic = self.shared.partials,
                    "partial states cannot be read and are passed over"
                );
            }
            SourceEvent::Failed(error) => return Err(error.into()),
            // The other part of the instance hears and says the same.
            SourceEvent::Missing { .. } | SourceEvent::Down { .. } | SourceEvent::Up => {}
        }
        Ok(())
    }

    /// Lets go of the work, and of all that was shown of it.
    fn stand_by(&mut self) {
        self.duty = None;
        self.board.set(Vec::new());
        self.shared.telemetry.latest.clear();
        info!("another instance closes the windows now");
    }

    /// Takes the work up where it was committed last; returns the first offset to read.
    fn begin(&mut self, partition: &Assigned) -> Result<i64> {
        let shared = &self.shared;
        let before = Emitted::parse(&partition.metadata)
            .filter(|before| before.topic_id.is_empty() || before.topic_id == partition.topic_id);
        let committed = partition.committed.filter(|_| before.is_some());
        let needs_from = before.as_ref().and_then(|before| before.needs_from).or(committed);
        if let Some(needs_from) = needs_from.filter(|&needs_from| needs_from < partition.low) {
            ensure!(
                shared.settings.skip_deleted,
                "partial states [{needs_from}, {}) of {} were deleted while windows were still made of them (hint: raise \
                 the topic's retention; to go on without them, set kafka.deleted_unread = \"skip\")",
                partition.low,
                shared.partials
            );
            warn!(
                from = needs_from,
                to = partition.low,
                "partial states were deleted before their windows were closed"
            );
        }
        let mut core = shared.runtime.block_on(async {
            let engine = service::engine(&shared.settings).await?.finishing();
            let mut core = service::new_core(&shared.settings, engine, &shared.store, &shared.telemetry).await?;
            resume::finisher(&mut core, &shared.store).await?;
            Ok::<_, anyhow::Error>(core)
        })?;
        if let Some(before) = &before {
            core.emitted_before = before.through();
        }
        let start = needs_from.map_or(BEGINNING, |from| from.max(partition.low));
        let replay_until = committed.unwrap_or(0);
        info!(from = start, again_until = replay_until, "this instance closes the windows now");
        let mut duty = Duty {
            core,
            memory: Memory::new(shared.clock.now()),
            topic_id: partition.topic_id.clone(),
            next: start.max(partition.low),
            replay_until,
            is_replaying: true,
            knows_partitions: false,
            counted_at: shared.clock.now(),
            states: VecDeque::new(),
            promises: BTreeMap::new(),
            moved: false,
            needed_from: 0,
            deleted_before: 0,
        };
        duty.end_replay_at(duty.next);
        duty.learn_partitions(&self.source, &self.shared.settings.inputs);
        self.duty = Some(duty);
        Ok(start)
    }

    fn flush_if_due(&mut self) -> Result<()> {
        let Some(duty) = self.duty.as_ref().filter(|duty| !duty.is_replaying) else { return Ok(()) };
        if self.outlet.in_flight() {
            return Ok(());
        }
        let waited = self.shared.clock.now().duration_since(self.flushed_at);
        let effects = duty.core.outbox_len() > 0 && waited >= self.shared.settings.flush_interval;
        if effects || (duty.moved && waited >= OFFSETS_INTERVAL) { self.flush() } else { Ok(()) }
    }

    /// Sends all effects on their way, with the offset and the tick they cover, and where the next owner has to begin.
    fn flush(&mut self) -> Result<()> {
        let Some(duty) = self.duty.as_mut().filter(|duty| !duty.is_replaying) else { return Ok(()) };
        let now = self.shared.clock.now();
        let through = duty.core.closed_loop.tick();
        duty.memory.take(&mut duty.core, &self.shared.store, through, now)?;
        let needs_from = self.shared.runtime.block_on(duty.needs_from(&self.shared.store))?;
        duty.needed_from = needs_from;
        let frontier = |source| duty.core.engine.frontier_of(source).map(EventTime::as_micros);
        self.flush = Emitted::next_flush(self.flush, self.shared.clock.time_of_day());
        let emitted = Emitted {
            flush: self.flush,
            through_micros: through.unwrap_or(EventTime::MIN).max(duty.core.emitted_before).as_micros(),
            topic_id: duty.topic_id.clone(),
            needs_from: Some(needs_from),
            frontiers_micros: Some([frontier(Source::Metrics), frontier(Source::Events)]),
            ..Emitted::default()
        };
        let offset = Offset {
            topic: self.shared.partials.clone(),
            topic_id: duty.topic_id.clone(),
            partition: 0,
            next: duty.next,
            metadata: emitted.to_metadata(),
        };
        self.outlet.send(Flush { records: duty.core.take_outbox(), offsets: vec![offset], through })?;
        (self.flushed_at, duty.moved) = (now, false);
        Ok(())
    }

    fn settle(&mut self, wait: Duration) -> Result<()> {
        match (self.outlet.landed(wait)?, &mut self.duty) {
            (Some(Landed::Failed(error)), _) => Err(error).context("effects can no longer be emitted"),
            (Some(Landed::Done { through }), Some(duty)) => {
                duty.memory.landed(&self.shared.store, through)?;
                let now = self.shared.clock.now();
                if duty.needed_from > duty.deleted_before && now.duration_since(self.trimmed_at) >= TRIM_INTERVAL {
                    (self.trimmed_at, duty.deleted_before) = (now, duty.needed_from);
                    (self.shared.trim)(duty.needed_from);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Brings everything in hand to rest: effects into Kafka, rows into the store.
    ///
    /// # Errors
    /// Kafka does not take it in time. It must not be sent later, when another instance may have the work; that one says
    /// the same under the same ids.
    fn send_all(&mut self) -> Result<()> {
        if let Some(duty) = &mut self.duty {
            duty.memory.hurry();
        }
        self.settle(LAST_FLUSH)?;
        if !self.outlet.in_flight() {
            self.flush()?;
            self.settle(LAST_FLUSH)?;
        }
        super::come_to_rest(&self.shared, &mut self.outlet)
    }

    fn show_gauges(&mut self) {
        let now = self.shared.clock.now();
        if now.duration_since(self.gauges_at) < GAUGES_INTERVAL {
            return;
        }
        self.gauges_at = now;
        let telemetry = &self.shared.telemetry;
        for (partition, lag) in self.source.lag() {
            telemetry.broker.set_lag(&partition.topic, partition.partition, lag.max(0) as u64);
        }
        let Some(duty) = &mut self.duty else { return };
        if !duty.knows_partitions || now.duration_since(duty.counted_at) >= COUNT_INTERVAL {
            duty.counted_at = now;
            duty.learn_partitions(&self.source, &self.shared.settings.inputs);
        }
        let now = self.shared.clock.time_of_day();
        for at in duty.core.engine.progress() {
            if at.closed_through > EventTime::MIN {
                telemetry.views.set_watermark_delay(at.view, now.since(at.closed_through));
            }
            telemetry.views.set_state(at.view, at.bytes as u64, at.counts.refused);
        }
        self.board.set(duty.core.engine.explain());
    }
}

impl Duty {
    /// Asks which partitions there are: windows wait for the promise of each. Tried again later where nobody answers.
    fn learn_partitions(&mut self, source: &impl Feed, inputs: &[Input]) {
        for input in inputs {
            match source.partition_count(&input.topic, QUESTION_TIMEOUT) {
                Ok(count) => {
                    let clock = self.core.engine.clock(source_of(input.format));
                    (0..count).for_each(|number| clock.add((input.topic.as_str().into(), number as i32)));
                }
                Err(error) => {
                    warn!(error = service::chain(&error), "the partitions of the inputs are not known");
                    return;
                }
            }
        }
        self.knows_partitions = true;
    }

    fn take(&mut self, record: &impl Incoming) -> Result<()> {
        let offset = record.offset();
        if offset < self.next {
            return Ok(());
        }
        self.end_replay_at(offset);
        (self.next, self.moved) = (offset + 1, true);
        match wire::read(record) {
            Ok(Letter::States(increment)) => {
                match self.core.engine.merge(&increment.pass, &increment.rows)? {
                    Merged::Unwanted => {
                        warn!(offset, "partial states of a view that is not here, or another here, are passed over");
                    }
                    // Read again, much of it is of windows that are closed.
                    Merged::Taken { closed } if closed > 0 && !self.is_replaying => {
                        error!(offset, groups = closed, "partial states came after their windows had closed");
                    }
                    Merged::Taken { .. } => {}
                }
                self.states.push_back((offset, increment.before));
            }
            Ok(Letter::Promises(promises)) => promises.iter().for_each(|promise| self.hear(promise, offset)),
            // Somebody else writes to the topic: that must not stop everything, at every start anew.
            Err(why) => error!(offset, error = format!("{why:#}"), "a record that no instance sent is passed over"),
        }
        Ok(())
    }

    fn hear(&mut self, promise: &Promise, offset: i64) {
        let key: PartitionKey = (promise.topic.as_str().into(), promise.partition);
        let Ok(source) = self.core.source_of_topic(&promise.topic) else { return };
        let clock = self.core.engine.clock(source);
        clock.add(key.clone());
        if let Some(through) = promise.through_micros {
            clock.observe(&key, EventTime::from_micros(through));
        }
        if promise.is_idle {
            clock.set_idle(&key);
        }
        self.promises.insert(key, offset);
    }

    /// Ends the reading again, once it is past what was dealt with before.
    fn end_replay_at(&mut self, offset: i64) {
        if self.is_replaying && offset >= self.replay_until {
            self.is_replaying = false;
            self.core.engine.rebuilt();
            info!(offset, "open windows are complete");
        }
    }

    /// Returns the first offset that whoever takes the work up has to read.
    async fn needs_from(&mut self, store: &crate::store::Store) -> Result<i64> {
        let mut stored = BTreeMap::new();
        let views: Vec<_> = self.core.engine.views().map(|(view, _)| view.name.clone()).collect();
        for view in views {
            let through = store.position(&view, VIEW_APP).await?;
            stored.insert(view, through.map_or(EventTime::MIN, EventTime::from_micros));
        }
        let bears_from = self.core.engine.bears_from(|view| stored.get(view).copied().unwrap_or(EventTime::MIN));
        self.states.retain(|(_, before)| *before > bears_from);
        let first = self.states.front().map(|(offset, _)| *offset);
        Ok(first.into_iter().chain(self.promises.values().copied()).min().unwrap_or(self.next))
    }
}
