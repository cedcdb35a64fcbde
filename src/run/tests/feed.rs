//! What a process under test is given in place of its source: records, rebalances, outages and reloads, as chance says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::kafka::{Broken, Broker, CLUSTER, Delivered, Entry, SimulatedBatch, Who};
use super::log;
use super::process::{Carrier, Committer};
use super::world::{At, Shared, World, live};
use crate::kafka::error::KafkaError;
use crate::kafka::source::{Partition, Reply, SourceEvent};
use crate::run::core::Prepared;
use crate::run::feed::Feed;
use crate::run::reload::Request;
use crate::run::service;
use crate::run::settings::Settings;

/// Reads the same configuration again: nothing may come of it.
pub struct Reloader {
    pub runtime: Handle,
    pub settings: Arc<Settings>,
    pub requests: Sender<Request>,
}

impl Reloader {
    fn reload(&self) -> Result<()> {
        let settings = self.settings.clone();
        let prepared = self.runtime.block_on(async {
            let engine = service::engine(&settings).await?;
            let rules = service::rules(&settings, &engine).await?;
            anyhow::Ok(Prepared { settings, engine, rules })
        })?;
        let (done, _) = oneshot::channel();
        anyhow::ensure!(self.requests.send(Request { prepared, done }).is_ok(), "the conductor is gone");
        Ok(())
    }
}

/// The partitions that a member reads, and where.
#[derive(Default)]
pub struct Reading(BTreeMap<Partition, Held>);

struct Held {
    next: i64,
    told_end: bool,
}

impl Reading {
    pub fn begin(&mut self, partition: Partition, next: i64) {
        self.0.insert(partition, Held { next, told_end: false });
    }

    pub fn end(&mut self, partitions: &[Partition]) {
        self.0.retain(|partition, _| !partitions.contains(partition));
    }

    pub fn partitions(&self) -> Vec<Partition> {
        self.0.keys().cloned().collect()
    }

    pub fn has(&self, partition: &Partition) -> bool {
        self.0.contains_key(partition)
    }

    /// Tells whether a partition is read to its end, and that was said.
    pub fn is_at_end(&self, partition: &Partition, broker: &Broker) -> bool {
        self.0.get(partition).is_some_and(|held| held.told_end && held.next == broker.end(partition))
    }

    pub fn lag(&self, broker: &Broker) -> Vec<(Partition, i64)> {
        self.0.iter().map(|(partition, held)| (partition.clone(), broker.end(partition) - held.next)).collect()
    }

    /// Returns what the logs have next, where chance lets it through.
    pub fn read(&mut self, world: &mut World) -> Option<Event> {
        if world.broker.is_away || world.happens(0.15) {
            return None;
        }
        let at_end: Vec<Partition> = (self.0.iter())
            .filter(|(partition, held)| !held.told_end && held.next == world.broker.end(partition))
            .map(|(partition, _)| partition.clone())
            .collect();
        if !at_end.is_empty() && world.happens(0.3) {
            let partition = at_end[world.below(at_end.len())].clone();
            let held = self.0.get_mut(&partition).unwrap();
            held.told_end = true;
            return Some(SourceEvent::Eof { partition, position: held.next });
        }
        let mut batch = Vec::new();
        let mut behind: Vec<Partition> = (self.0.iter())
            .filter(|(partition, held)| held.next < world.broker.end(partition))
            .map(|(partition, _)| partition.clone())
            .collect();
        for _ in 0..1 + world.below(2) {
            if behind.is_empty() {
                break;
            }
            let partition = behind.swap_remove(world.below(behind.len()));
            let most = if world.happens(0.3) { 60 } else { 12 };
            let mut left = 1 + world.below(most);
            let held = self.0.get_mut(&partition).unwrap();
            while left > 0 && held.next < world.broker.end(&partition) {
                let (offset, entry) = (held.next, world.broker.log(&partition)[held.next as usize].clone());
                match entry {
                    Entry::Record(written) if written.is_damaged && !batch.is_empty() => break,
                    Entry::Record(written) if written.is_damaged => {
                        (held.next, held.told_end) = (offset + 1, false);
                        let reason = "simulated".to_owned();
                        return Some(SourceEvent::Unreadable { partition, offset, reason });
                    }
                    Entry::Record(written) => {
                        batch.push(Delivered { partition: partition.clone(), offset, written });
                        left -= 1;
                    }
                    Entry::Nothing => {}
                }
                (held.next, held.told_end) = (offset + 1, false);
            }
        }
        (!batch.is_empty()).then(|| SourceEvent::Batch(SimulatedBatch(batch)))
    }
}

/// How the life of a process ends, where it does not die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is told to stop after so many turns.
    Stops(usize),
    /// It goes on until it dies, at the latest when all is read.
    Dies,
    /// It reads all there is and some records more, and is told to stop.
    Finishes,
}

pub struct SimulatedFeed {
    pub world: Shared,
    pub committer: Rc<RefCell<Committer>>,
    pub carrier: Rc<RefCell<Carrier>>,
    pub stop: Arc<AtomicBool>,
    pub reloader: Reloader,
    pub ending: Ending,
    /// How many processes there were before.
    pub start: u64,
    held: Reading,
    asked: Option<(Vec<Partition>, Receiver<Vec<i64>>)>,
    giving_up: Option<Receiver<()>>,
    /// Turns until the next assignment, while partitions are elsewhere.
    back_in: Option<usize>,
    /// Turns until a lost membership is noticed.
    noticed_in: Option<usize>,
    back_up_in: Option<usize>,
    turns: usize,
    quiet: usize,
    closed: bool,
}

pub type Event = SourceEvent<SimulatedBatch>;

/// The one member there is.
pub const THE_ONE: Who = 0;

/// Far more turns than anything takes.
const TURNS_MAX: usize = 20_000;

impl SimulatedFeed {
    pub fn new(
        world: Shared,
        committer: Rc<RefCell<Committer>>,
        carrier: Rc<RefCell<Carrier>>,
        stop: Arc<AtomicBool>,
        reloader: Reloader,
        ending: Ending,
        start: u64,
    ) -> SimulatedFeed {
        SimulatedFeed {
            world,
            committer,
            carrier,
            stop,
            reloader,
            ending,
            start,
            held: Reading::default(),
            asked: None,
            giving_up: None,
            back_in: Some(0),
            noticed_in: None,
            back_up_in: None,
            turns: 0,
            quiet: 0,
            closed: false,
        }
    }

    /// Takes the answers to the last questions: the conductor must have given them.
    fn take_answers(&mut self) {
        if let Some((partitions, answer)) = self.asked.take() {
            let starts = answer.try_recv().expect("an assignment is answered");
            assert_eq!(starts.len(), partitions.len(), "one start for each partition");
            let world = &mut *self.world.borrow_mut();
            world.broker.members.insert(THE_ONE);
            for (partition, start) in partitions.into_iter().zip(starts) {
                let broken = world.broker.broken;
                let effects = world.broker.committed(&partition).filter(|_| broken == Broken::StartAtEffects);
                let next = effects.unwrap_or(start).max(0);
                world.tell(format!("{partition} is read from {next}"));
                self.held.begin(partition, next);
            }
        }
        if let Some(answer) = self.giving_up.take() {
            answer.try_recv().expect("a revocation is answered");
        }
    }

    /// Returns an event about the group or the brokers, where chance has one.
    fn upheaval(&mut self) -> Option<Event> {
        if let Some(left) = self.back_up_in {
            self.back_up_in = left.checked_sub(1);
            if self.back_up_in.is_none() {
                self.world.borrow_mut().broker.is_away = false;
                return Some(SourceEvent::Up);
            }
            return None;
        }
        if let Some(left) = self.noticed_in {
            self.noticed_in = left.checked_sub(1);
            return if self.noticed_in.is_none() { Some(self.revoke(true)) } else { None };
        }
        if let Some(left) = self.back_in {
            self.back_in = left.checked_sub(1);
            return if self.back_in.is_none() { Some(self.assign()) } else { None };
        }
        if let Some(remade) = self.remake() {
            return Some(remade);
        }
        let (moves, goes_away) = {
            let world = &mut *self.world.borrow_mut();
            (world.happens(world.trouble.rebalances), world.happens(world.trouble.outages))
        };
        if goes_away {
            let turns = self.world.borrow_mut().below(8);
            self.back_up_in = Some(turns);
            self.world.borrow_mut().broker.is_away = true;
            return Some(SourceEvent::Down { message: "simulated".to_owned() });
        }
        if moves {
            if self.world.borrow_mut().happens(0.4) {
                let world = &mut *self.world.borrow_mut();
                world.broker.members.clear();
                world.tell("the group goes on without us");
                self.noticed_in = Some(world.below(6));
                return None;
            }
            return Some(self.revoke(false));
        }
        None
    }

    fn revoke(&mut self, lost: bool) -> Event {
        self.committer.borrow_mut().drain();
        let all = self.held.partitions();
        let mut world = self.world.borrow_mut();
        // Some go to another member and come back with all the rest later.
        let some = !lost && world.happens(0.4);
        let partitions: Vec<Partition> =
            if some { all.into_iter().filter(|_| world.happens(0.5)).collect() } else { all };
        world.tell(format!("{} partitions are revoked, lost: {lost}", partitions.len()));
        self.held.end(&partitions);
        self.back_in = Some(world.below(6));
        let (done, answer) = Reply::new();
        self.giving_up = Some(answer);
        SourceEvent::Revoked { partitions, lost, done }
    }

    fn assign(&mut self) -> Event {
        let world = &mut *self.world.borrow_mut();
        let missing: Vec<Partition> =
            world.broker.partitions().into_iter().filter(|partition| !self.held.has(partition)).collect();
        let some = missing.len() > 1 && self.ending != Ending::Finishes && world.happens(0.1);
        let partitions: Vec<Partition> =
            if some { missing[..1 + world.below(missing.len() - 1)].to_vec() } else { missing };
        if some {
            self.back_in = Some(1 + world.below(10));
        }
        world.tell(format!("{} partitions are assigned", partitions.len()));
        let assigned = partitions.iter().map(|partition| world.broker.assigned(partition, self.start)).collect();
        let (start, answer) = Reply::new();
        self.asked = Some((partitions, answer));
        SourceEvent::Assigned { partitions: assigned, start }
    }

    /// Tells whether everything written is read, and nothing more will be.
    fn is_drained(&self) -> bool {
        let world = self.world.borrow();
        let read = |partition: &Partition| self.held.is_at_end(partition, &world.broker);
        world.broker.unwritten.is_empty()
            && world.broker.second_life.is_empty()
            && world.broker.partitions().iter().all(read)
    }

    /// Deletes a topic and makes it again, where that is due and all of it is known to be in the store and in the effects:
    /// nothing is to be lost by it. The group notices by a rebalance.
    fn remake(&mut self) -> Option<Event> {
        let remade: Vec<Partition> = {
            let broker = &self.world.borrow().broker;
            let is_sent = |partition: &Partition| broker.committed(partition) == Some(broker.end(partition));
            let is_due = broker.unwritten.is_empty() && broker.second_life.keys().all(is_sent);
            if is_due { broker.second_life.keys().cloned().collect() } else { Vec::new() }
        };
        if remade.is_empty() || !remade.iter().all(|partition| self.held.has(partition)) {
            return None;
        }
        let mut committer = self.committer.borrow_mut();
        committer.drain();
        committer.runtime.block_on(committer.store.commit()).ok()?;
        for partition in &remade {
            let id = self.world.borrow().broker.topic_id(&partition.topic, self.start);
            let app = format!("{CLUSTER}/{id}/{}", partition.partition);
            let stored = committer.runtime.block_on(committer.store.position("events", &app)).ok()?;
            if stored != Some(self.world.borrow().broker.end(partition)) {
                return None;
            }
        }
        let mut world = self.world.borrow_mut();
        world.broker.remake();
        world.tell("a topic is deleted and made again");
        self.held.end(&remade);
        self.back_in = Some(world.below(6));
        let (done, answer) = Reply::new();
        self.giving_up = Some(answer);
        Some(SourceEvent::Revoked { partitions: remade, lost: false, done })
    }

    /// Brings the life of the process to its end.
    fn end(&mut self) {
        if matches!(self.ending, Ending::Stops(turns) if self.turns >= turns) {
            self.stop();
        }
        if !self.is_drained() {
            self.quiet = 0;
            return;
        }
        self.quiet += 1;
        match self.ending {
            Ending::Stops(_) | Ending::Dies if self.quiet > 12 => {
                self.world.borrow().doom.die();
                live(&self.world, At::Turn);
            }
            Ending::Finishes if !self.closed => {
                self.closed = true;
                self.world.borrow_mut().trouble = Default::default();
                log::close(&mut self.world.borrow_mut().broker);
            }
            Ending::Finishes if self.quiet > 5 => self.stop(),
            _ => {}
        }
    }

    fn stop(&mut self) {
        self.committer.borrow_mut().drain();
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Feed for SimulatedFeed {
    type Batch = SimulatedBatch;

    fn next(&mut self, _patience: Duration) -> Result<Option<Event>> {
        live(&self.world, At::Turn);
        self.turns += 1;
        anyhow::ensure!(self.turns < TURNS_MAX, "nothing comes to an end");
        self.take_answers();
        {
            let world = &mut *self.world.borrow_mut();
            let steps = [0, 0, 20, 20, 200, 1000, 3000, 9000];
            let step = steps[world.below(steps.len())];
            world.pass(Duration::from_millis(step));
            let entries = world.below(24);
            world.produce(entries);
        }
        let carries = self.world.borrow_mut().happens(0.3);
        if carries && self.carrier.borrow().answer.is_none() {
            self.carrier.borrow_mut().go_on();
        }
        self.committer.borrow_mut().go_on();
        if let Some(error) = self.committer.borrow_mut().failed.take() {
            return Err(error.into());
        }
        let reloads = {
            let world = &mut *self.world.borrow_mut();
            world.happens(world.trouble.reloads)
        };
        if reloads {
            self.world.borrow_mut().tell("the configuration is read again");
            self.reloader.reload()?;
        }
        self.end();
        if self.stop.load(Ordering::SeqCst) {
            return Ok(None);
        }
        Ok(self.upheaval().or_else(|| self.held.read(&mut self.world.borrow_mut())))
    }

    fn cluster_id(&self, _timeout: Duration) -> Option<String> {
        Some(CLUSTER.to_owned())
    }

    fn partition_count(&self, topic: &str, _timeout: Duration) -> Result<usize, KafkaError> {
        self.world.borrow().broker.partition_count(topic)
    }

    fn ends_at(&self, partition: &Partition, position: i64, _timeout: Duration) -> Option<bool> {
        self.world.borrow().broker.ends_at(partition, position)
    }

    fn answers(&self, _topic: &str, _timeout: Duration) -> bool {
        !self.world.borrow().broker.is_away
    }

    fn lag(&self) -> Vec<(Partition, i64)> {
        self.held.lag(&self.world.borrow().broker)
    }

    fn stop(self) {}
}
