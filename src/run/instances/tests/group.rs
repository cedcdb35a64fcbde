//! A consumer group in memory, of several members. Its rules are Kafka's: a member is asked to give up a partition before
//! another gets it, unless the group goes on without that member; and whoever is counted in may commit any offset.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kafka::error::KafkaError;
use crate::kafka::source::{Partition, Reply, SourceEvent};
use crate::model::time::EventTime;
use crate::run::clock::Clock;
use crate::run::feed::Feed;
use crate::run::tests::feed::{Event, Reading};
use crate::run::tests::kafka::{Broken, CLUSTER, SimulatedBatch, Who};
use crate::run::tests::process::Carrier;
use crate::run::tests::world::{At, Shared, World, live};

pub struct Group {
    partitions: Vec<Partition>,
    members: BTreeSet<Who>,
    /// Who is to have each partition.
    wanted: BTreeMap<Partition, Who>,
    /// Who has each partition, until it has given it up.
    holders: BTreeMap<Partition, Who>,
    /// Who has yet to hear that the group went on without it.
    left_behind: BTreeSet<Who>,
}

impl Group {
    pub fn over(partitions: Vec<Partition>) -> Rc<RefCell<Group>> {
        let (members, wanted, holders, left_behind) = Default::default();
        Rc::new(RefCell::new(Group { partitions, members, wanted, holders, left_behind }))
    }

    pub fn join(&mut self, who: Who, world: &mut World) {
        self.members.insert(who);
        world.broker.members.insert(who);
        self.rebalance(world);
    }

    /// Goes on without a member: it left, died, or was silent for too long.
    pub fn go_on_without(&mut self, who: Who, world: &mut World) {
        self.members.remove(&who);
        world.broker.members.remove(&who);
        self.holders.retain(|_, holder| *holder != who);
        self.rebalance(world);
    }

    /// Goes on without a member that lives, and will hear of it.
    pub fn leave_behind(&mut self, who: Who, world: &mut World) {
        self.go_on_without(who, world);
        self.left_behind.insert(who);
    }

    /// Gives the partitions out anew.
    pub fn rebalance(&mut self, world: &mut World) {
        let members: Vec<Who> = self.members.iter().copied().collect();
        self.wanted.clear();
        if !members.is_empty() {
            let mut any = || members[world.below(members.len())];
            self.wanted = self.partitions.iter().map(|partition| (partition.clone(), any())).collect();
        }
    }

    fn is_for(&self, partition: &Partition, who: Who) -> bool {
        self.wanted.get(partition) == Some(&who)
    }

    /// Takes the partitions that a member can have at once.
    fn take(&mut self, who: Who, broken: Broken) -> Vec<Partition> {
        let is_free = |holder: Option<&Who>| match holder {
            None => true,
            Some(holder) => *holder != who && broken == Broken::PartitionsTaken,
        };
        let free = |partition: &&Partition| self.is_for(partition, who) && is_free(self.holders.get(*partition));
        let taken: Vec<Partition> = self.partitions.iter().filter(free).cloned().collect();
        self.holders.extend(taken.iter().map(|partition| (partition.clone(), who)));
        taken
    }

    fn give_up(&mut self, who: Who, partitions: &[Partition]) {
        self.holders.retain(|partition, holder| *holder != who || !partitions.contains(partition));
    }
}

/// A member of a group, as one part of an instance sees it.
pub struct GroupFeed {
    world: Shared,
    group: Rc<RefCell<Group>>,
    who: Who,
    carrier: Rc<RefCell<Carrier>>,
    /// Up to where the topic of partial states is to be deleted.
    trimmed: Arc<AtomicI64>,
    reading: Reading,
    asked: Option<(Vec<Partition>, Receiver<Vec<i64>>)>,
    giving_up: Option<(Vec<Partition>, bool, Receiver<()>)>,
    knows_it_is_away: bool,
}

impl GroupFeed {
    pub fn join(
        world: Shared,
        group: Rc<RefCell<Group>>,
        who: Who,
        carrier: Rc<RefCell<Carrier>>,
        trimmed: Arc<AtomicI64>,
    ) -> GroupFeed {
        group.borrow_mut().join(who, &mut world.borrow_mut());
        GroupFeed {
            world,
            group,
            who,
            carrier,
            trimmed,
            reading: Reading::default(),
            asked: None,
            giving_up: None,
            knows_it_is_away: false,
        }
    }

    fn take_answers(&mut self) {
        let (world, group) = (&mut *self.world.borrow_mut(), &mut *self.group.borrow_mut());
        if let Some((partitions, answer)) = self.asked.take() {
            let starts = answer.try_recv().expect("an assignment is answered");
            for (partition, start) in partitions.into_iter().zip(starts) {
                world.tell(format!("{}: {partition} is read from {start}", self.who));
                self.reading.begin(partition, start.max(0));
            }
        }
        if let Some((partitions, lost, answer)) = self.giving_up.take() {
            answer.try_recv().expect("a revocation is answered");
            match lost {
                true => group.join(self.who, world),
                false => group.give_up(self.who, &partitions),
            }
        }
    }

    /// Returns what the group has to say, where it says something now.
    fn group_event(&mut self) -> Option<Event> {
        let (world, group) = (&mut *self.world.borrow_mut(), &mut *self.group.borrow_mut());
        if group.left_behind.remove(&self.who) {
            let partitions = self.reading.partitions();
            world.tell(format!("{}: {} partitions are lost", self.who, partitions.len()));
            self.reading.end(&partitions);
            let (done, answer) = Reply::new();
            self.giving_up = Some((partitions.clone(), true, answer));
            return Some(SourceEvent::Revoked { partitions, lost: true, done });
        }
        let mut moving = self.reading.partitions();
        moving.retain(|partition| !group.is_for(partition, self.who));
        if !moving.is_empty() && world.happens(0.5) {
            world.tell(format!("{}: {} partitions are revoked", self.who, moving.len()));
            self.reading.end(&moving);
            let (done, answer) = Reply::new();
            self.giving_up = Some((moving.clone(), false, answer));
            return Some(SourceEvent::Revoked { partitions: moving, lost: false, done });
        }
        if !world.happens(0.5) {
            return None;
        }
        let partitions = group.take(self.who, world.broker.broken);
        if partitions.is_empty() {
            return None;
        }
        world.tell(format!("{}: {} partitions are assigned", self.who, partitions.len()));
        let assigned = partitions.iter().map(|partition| world.broker.assigned(partition, 0)).collect();
        let (start, answer) = Reply::new();
        self.asked = Some((partitions, answer));
        Some(SourceEvent::Assigned { partitions: assigned, start })
    }
}

impl Feed for GroupFeed {
    type Batch = SimulatedBatch;

    fn next(&mut self, _patience: Duration) -> Result<Option<Event>> {
        live(&self.world, At::Turn);
        self.take_answers();
        let (carries, is_away) = {
            let world = &mut *self.world.borrow_mut();
            let trimmed = self.trimmed.load(Ordering::SeqCst);
            world.broker.partials_low = world.broker.partials_low.max(trimmed);
            (world.happens(0.3), world.broker.is_away)
        };
        if carries && self.carrier.borrow().answer.is_none() {
            self.carrier.borrow_mut().go_on();
        }
        if is_away != self.knows_it_is_away {
            self.knows_it_is_away = is_away;
            let down = SourceEvent::Down { message: "simulated".to_owned() };
            return Ok(Some(if is_away { down } else { SourceEvent::Up }));
        }
        if is_away {
            return Ok(None);
        }
        Ok(self.group_event().or_else(|| self.reading.read(&mut self.world.borrow_mut())))
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
        self.reading.lag(&self.world.borrow().broker)
    }

    fn stop(self) {
        self.group.borrow_mut().go_on_without(self.who, &mut self.world.borrow_mut());
    }
}

/// The clock of an instance.
#[derive(Clone)]
pub struct GroupClock(pub Shared);

impl Clock for GroupClock {
    fn time_of_day(&self) -> EventTime {
        self.0.borrow().time_of_day()
    }

    fn now(&self) -> Instant {
        live(&self.0, At::Clock);
        self.0.borrow().now()
    }

    fn wait(&self, wait: Duration) {
        live(&self.0, At::Clock);
        self.0.borrow_mut().pass(wait);
    }
}
