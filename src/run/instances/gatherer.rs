//! The part of the work that is shared: reads the partitions that the group gave to this instance, stores their rows, and
//! sends what it aggregated with the offsets that it covers.
//!
//! No state moves with a partition. What was gathered of it is sent before it is given up; and where it is lost, whoever
//! gets it reads again from the offsets that were committed last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::{info, warn};

use super::wire::{self, Promise};
use super::{Frontiers, LAST_FLUSH, OFFSETS_INTERVAL, OUTBOX_MAX, Overtaken, PATIENCE, Shared, commit_store};
use crate::kafka::sink::Offset;
use crate::kafka::source::{Assigned, BEGINNING, Partition, SourceEvent};
use crate::model::time::EventTime;
use crate::run::clock::Clock;
use crate::run::core::Core;
use crate::run::feed::Feed;
use crate::run::idleness::Idleness;
use crate::run::incoming::Records;
use crate::run::outlet::{Exit, Flush, Landed};
use crate::run::partition::{DoneBefore, Emitted, StoredAs};
use crate::stream::Source;
use crate::stream::watermark::PartitionKey;

/// How long what was gathered waits to be sent.
const SEND_INTERVAL: Duration = Duration::from_millis(250);
/// How much of the stream may be gathered while what was gathered before is not sent.
const UNSENT_MAX: Duration = Duration::from_secs(5);
/// How often the finisher is asked how far event time has come, while partitions stand aside.
const FRONTIERS_INTERVAL: Duration = Duration::from_millis(500);

pub struct Gatherer<F, E, C> {
    shared: Shared<C>,
    core: Core,
    // Dropped in this order: what is on its way goes under the membership that the source holds.
    outlet: E,
    source: F,
    ask: Frontiers,
    cluster: Option<String>,
    /// Where each partition was begun with.
    starts: BTreeMap<PartitionKey, i64>,
    idleness: Idleness,
    frontiers: [Option<EventTime>; 2],
    asked_at: Instant,
    /// The number of the last flush.
    flush: i64,
    flushed_at: Instant,
    gauges_at: Instant,
    /// Whether an offset moved since the last flush.
    moved: bool,
}

impl<F: Feed, E: Exit, C: Clock> Gatherer<F, E, C> {
    pub fn new(shared: Shared<C>, core: Core, source: F, outlet: E, ask: Frontiers) -> Self {
        let now = shared.clock.now();
        Gatherer {
            shared,
            core,
            source,
            outlet,
            ask,
            cluster: None,
            starts: BTreeMap::new(),
            idleness: Idleness::default(),
            frontiers: [None; 2],
            asked_at: now,
            flush: 0,
            flushed_at: now,
            gauges_at: now,
            moved: false,
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
        if self.is_overfull() {
            // The source is not listened to meanwhile, and may have to say that the membership is gone under which the
            // flush is tried: it would never land.
            if self.has_waited(LAST_FLUSH) {
                return Err(super::unsent(&mut self.outlet));
            }
            self.shared.clock.wait(PATIENCE);
        } else if let Some(event) = self.source.next(PATIENCE)? {
            self.take(event)?;
        }
        let clock = &self.shared.clock;
        self.idleness.set_idle(&mut self.core, &self.source, self.shared.settings.idle_timeout, || clock.now());
        self.ask_frontiers();
        self.settle(Duration::ZERO)?;
        let waited = self.shared.clock.now().duration_since(self.flushed_at);
        if waited >= SEND_INTERVAL && !self.outlet.in_flight() {
            self.flush_if_moved()?;
        }
        self.show_gauges();
        Ok(())
    }

    /// Tells whether records have to wait: for the store, or for Kafka, which has not taken what was gathered for long.
    fn is_overfull(&self) -> bool {
        let held = self.shared.store.head_bytes() + self.core.outbox_bytes();
        self.has_waited(UNSENT_MAX)
            || held > self.shared.settings.store.head_bytes_max
            || self.core.outbox_len() > OUTBOX_MAX
    }

    /// Tells whether the flush on its way has been there for longer than this.
    fn has_waited(&self, longer: Duration) -> bool {
        self.outlet.in_flight() && self.shared.clock.now().duration_since(self.flushed_at) > longer
    }

    fn take(&mut self, event: SourceEvent<F::Batch>) -> Result<()> {
        match event {
            SourceEvent::Batch(batch) => {
                self.idleness.heard(&batch);
                let bounds = self.shared.settings.bounds(self.shared.clock.time_of_day());
                self.core.gather(batch.iter(), bounds)?;
                self.moved = true;
            }
            SourceEvent::Assigned { partitions, start } => {
                let starts = self.assign(&partitions)?;
                start.send(starts);
                self.shared.obstacles.clear("kafka");
            }
            SourceEvent::Revoked { partitions, lost, done } => {
                self.give_up(&partitions, lost)?;
                done.send(());
            }
            SourceEvent::Eof { partition, position } => {
                let key = (partition.topic, partition.partition);
                self.moved |= self.core.skip_to(&key, position)?;
                self.idleness.at_end(key, self.shared.clock.now());
            }
            SourceEvent::Unreadable { partition, offset, reason } => {
                let key = (partition.topic, partition.partition);
                self.core.pass_over(&key, offset, reason, self.shared.clock.time_of_day())?;
                self.moved = true;
            }
            SourceEvent::Missing { message } => warn!(message, "an input topic is missing"),
            SourceEvent::Down { message } => {
                self.shared.telemetry.broker.set_up(false);
                warn!(message, "no broker answers");
                self.shared.obstacles.set("broker", message);
                self.idleness.wake(&mut self.core);
            }
            SourceEvent::Up => {
                self.shared.telemetry.broker.set_up(true);
                self.shared.obstacles.clear("broker");
            }
            SourceEvent::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Says where to start each partition: at the lower of what the store holds and what was sent. Each path then passes
    /// over what it has.
    fn assign(&mut self, partitions: &[Assigned]) -> Result<Vec<i64>> {
        if self.cluster.is_none() {
            self.cluster = self.source.cluster_id(Duration::from_secs(10));
        }
        // Offsets are kept under this name: a guess would read everything a second time.
        let cluster = self.cluster.clone().context("no broker told the id of its cluster")?;
        let app_of = |partition: &Assigned| format!("{cluster}/{}/{}", partition.topic_id, partition.partition);
        let claimed = self.claim(&partitions.iter().map(app_of).collect::<Vec<_>>())?;
        // Of a partition that the group has never had, windows may be closed already, as nobody could wait for it.
        if partitions.iter().any(|partition| partition.metadata.is_empty()) {
            self.learn_frontiers();
        }
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let app = app_of(partition);
            let before = Emitted::parse(&partition.metadata)
                .filter(|before| before.topic_id.is_empty() || before.topic_id == partition.topic_id);
            // An offset of a topic that was deleted says nothing about one made again under its name.
            let is_of_this = before.is_some() || partition.metadata.is_empty();
            let sent = partition.committed.filter(|_| is_of_this);
            // Without a promise nothing was ever gathered of it: windows that are open are made of what is still there.
            let gathered = sent.filter(|_| before.as_ref().is_none_or(|before| before.promised_micros.is_some()));
            let (start, done_before) = self.position(partition, claimed.get(&app), sent, gathered)?;
            let key: PartitionKey = (partition.topic.clone(), partition.partition);
            let name = StoredAs { app, topic_id: partition.topic_id.clone() };
            self.core.assign(key.clone(), name, start, done_before)?;
            let promised = match before {
                Some(before) => before.promised_micros.map(EventTime::from_micros),
                None => self.frontiers[self.core.source_of_topic(&key.0)? as usize],
            };
            let at = self.core.partitions.find(&key.0, key.1);
            if let Some(held) = at.and_then(|at| self.core.partitions.get_mut(at)) {
                held.promised = promised;
            }
            starts.push(start);
            self.starts.insert(key, start);
        }
        // Their first promises have to be told, else windows wait for them.
        self.moved = true;
        self.shared.telemetry.broker.set_up(true);
        info!(partitions = partitions.len(), "reading begins");
        Ok(starts)
    }

    /// Takes partitions over from whoever stored their rows before; returns where each stands in each table.
    fn claim(&self, apps: &[String]) -> Result<BTreeMap<String, BTreeMap<&'static str, i64>>> {
        let names: Vec<&str> = apps.iter().map(String::as_str).collect();
        let mut claimed: BTreeMap<String, BTreeMap<&str, i64>> = BTreeMap::new();
        for table in ["samples", "events", "rejected", "late"] {
            let at = self.shared.runtime.block_on(self.shared.store.claim(table, &names))?;
            for (app, at) in apps.iter().zip(at) {
                claimed.entry(app.clone()).or_default().extend(at.map(|at| (table, at)));
            }
        }
        Ok(claimed)
    }

    fn position(
        &self,
        partition: &Assigned,
        claimed: Option<&BTreeMap<&'static str, i64>>,
        sent: Option<i64>,
        gathered: Option<i64>,
    ) -> Result<(i64, DoneBefore)> {
        let stored_in = |table: &str| claimed?.get(table).copied();
        let stored = stored_in(self.core.table_of(&partition.topic)?);
        let (rejected, late) = (stored_in("rejected"), stored_in("late"));
        let low = partition.low;
        if let Some(needed) = stored.into_iter().chain(sent).min().filter(|&needed| needed < low) {
            let (topic, number) = (&*partition.topic, partition.partition);
            ensure!(
                self.shared.settings.skip_deleted,
                "records [{needed}, {low}) of {topic}[{number}] were deleted before they were read (hint: raise the \
                 topic's retention; to go on without them, set kafka.deleted_unread = \"skip\")"
            );
            warn!(topic, partition = number, from = needed, to = low, "records were deleted before they were read");
            self.shared.telemetry.broker.deleted_unread(topic, (low - needed) as u64);
        }
        let paths = [stored, sent, gathered].map(|at| at.unwrap_or(BEGINNING));
        let start = paths.into_iter().min().unwrap_or(BEGINNING).max(low);
        let done_before = DoneBefore {
            stored: stored.unwrap_or(0),
            rejected: rejected.unwrap_or(0),
            late: late.unwrap_or(0),
            effects: sent.unwrap_or(0),
            gathered: Some(gathered.unwrap_or(0)),
        };
        Ok((start, done_before))
    }

    fn give_up(&mut self, partitions: &[Partition], lost: bool) -> Result<()> {
        let keys: Vec<PartitionKey> = partitions.iter().map(|of| (of.topic.clone(), of.partition)).collect();
        if lost && !self.outlet.in_flight() && keys.iter().all(|key| self.is_untouched(key)) {
            info!(partitions = keys.len(), "partitions were taken back before they were read");
        } else if lost {
            // Whoever has them now reads on from what was committed; so what they gave here must never be sent. It
            // cannot be told from what others gave: all of it goes, and all of them are read again.
            let others = self.core.partitions.iter().any(|held| !keys.contains(&held.key));
            if others {
                self.outlet.call_off();
                let what = "the group took some partitions away, and what they gave is mixed with what others gave";
                return Err(Overtaken(what.to_owned()).into());
            }
            self.outlet.call_off();
            self.core.forget_unsent()?;
            commit_store(&self.shared)?;
        } else {
            self.send_all()?;
        }
        for key in keys {
            self.core.revoke(&key);
            self.idleness.forget(&key);
            self.starts.remove(&key);
            self.shared.telemetry.broker.forget(&key.0, key.1);
        }
        Ok(())
    }

    /// Tells whether nothing of a partition was read here.
    fn is_untouched(&self, key: &PartitionKey) -> bool {
        let held = self.core.partitions.find(&key.0, key.1).and_then(|at| self.core.partitions.get(at));
        held.is_none_or(|held| self.starts.get(key) == Some(&held.next))
    }

    /// While partitions stand aside, asks how far event time has come by the others.
    fn ask_frontiers(&mut self) {
        let idle = self.core.has_idle(Source::Metrics) || self.core.has_idle(Source::Events);
        let now = self.shared.clock.now();
        if !idle || now.duration_since(self.asked_at) < FRONTIERS_INTERVAL {
            return;
        }
        self.asked_at = now;
        self.learn_frontiers();
    }

    fn learn_frontiers(&mut self) {
        match (self.ask)() {
            Ok(frontiers) => self.frontiers = frontiers,
            Err(error) => warn!(error = format!("{error:#}"), "how far event time has come is not known"),
        }
    }

    fn flush_if_moved(&mut self) -> Result<()> {
        let promised = self.core.promise(self.frontiers);
        let offsets_due = self.shared.clock.now().duration_since(self.flushed_at) >= OFFSETS_INTERVAL;
        match promised || self.core.outbox_len() > 0 || (self.moved && offsets_due) {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Sends what was gathered and said, with the offsets and the promises that it covers.
    fn flush(&mut self) -> Result<()> {
        self.core.promise(self.frontiers);
        self.flush = Emitted::next_flush(self.flush, self.shared.clock.time_of_day());
        let (mut offsets, mut promises) = (Vec::new(), Vec::new());
        for partition in self.core.partitions.iter() {
            let promised_micros = partition.promised.map(EventTime::as_micros);
            let (flush, topic_id) = (self.flush, partition.topic_id.clone());
            let emitted = Emitted { flush, topic_id, promised_micros, ..Emitted::default() };
            let (topic, number) = (partition.key.0.to_string(), partition.key.1);
            promises.push(Promise {
                topic: topic.clone(),
                partition: number,
                through_micros: promised_micros,
                is_idle: partition.told_idle,
            });
            // What was sent once stays sent, however far back the store made us start.
            let next = partition.next.max(partition.done_before.effects).max(0);
            let (topic_id, metadata) = (partition.topic_id.clone(), emitted.to_metadata());
            offsets.push(Offset { topic, topic_id, partition: number, next, metadata });
        }
        (self.flushed_at, self.moved) = (self.shared.clock.now(), false);
        if offsets.is_empty() {
            return Ok(());
        }
        let mut records = self.core.take_outbox();
        let increments = self.core.drain()?;
        records.extend(wire::records(&self.shared.partials, &self.shared.instance, increments, &promises)?);
        self.outlet.send(Flush { records, offsets, through: None })
    }

    fn settle(&mut self, wait: Duration) -> Result<()> {
        match self.outlet.landed(wait)? {
            Some(Landed::Failed(error)) => Err(error).context("effects can no longer be emitted"),
            Some(Landed::Done { .. } | Landed::CalledOff) | None => Ok(()),
        }
    }

    /// Brings everything in hand to rest: what was gathered into Kafka, rows into the store.
    ///
    /// # Errors
    /// Kafka does not take it in time. It must not be sent later, when the partitions may be somebody else's; a restart
    /// reads the same records again.
    fn send_all(&mut self) -> Result<()> {
        self.settle(LAST_FLUSH)?;
        if !self.outlet.in_flight() {
            self.flush()?;
            self.settle(LAST_FLUSH)?;
        }
        super::come_to_rest(&self.shared, &mut self.outlet)
    }

    fn show_gauges(&mut self) {
        let now = self.shared.clock.now();
        if now.duration_since(self.gauges_at) < super::GAUGES_INTERVAL {
            return;
        }
        self.gauges_at = now;
        let clock = &self.shared.clock;
        let topic = self.shared.settings.inputs.first().map_or("", |input| &input.topic);
        self.idleness.probe(&mut self.core, &self.source, topic, || clock.now());
        for (partition, lag) in self.source.lag() {
            self.shared.telemetry.broker.set_lag(&partition.topic, partition.partition, lag.max(0) as u64);
        }
        self.shared.telemetry.store.set_head(self.shared.store.head_rows(), self.shared.store.head_bytes());
        self.shared.telemetry.queues.set_depth("outbox", self.core.outbox_len());
    }
}
