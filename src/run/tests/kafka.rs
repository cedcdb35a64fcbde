//! Kafka in memory: input logs with gaps, a topic of partial states, the offsets of groups, and transactions that land,
//! fail, or are answered wrongly. Knows nothing of what the records mean.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::world::{At, Shared, World, live};
use crate::kafka::error::KafkaError;
use crate::kafka::sink::{Offset, Outgoing};
use crate::kafka::source::{Assigned, Partition};
use crate::kafka::tests::{fenced, lost_group};
use crate::run::incoming::{Incoming, Records};
use crate::run::outlet::Transactions;

pub const CLUSTER: &str = "simulated";
/// The topic of partial states, of one partition.
pub const PARTIALS: &str = "partials";

/// A member of a group, which is also a transactional producer. A process that is started again has new ones.
pub type Who = usize;

/// What a producer wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    pub key: Option<Vec<u8>>,
    /// None is a tombstone.
    pub value: Option<Vec<u8>>,
    pub timestamp_ms: i64,
    /// Its batch does not unpack.
    pub is_damaged: bool,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What has an offset.
#[derive(Clone, Debug)]
pub enum Entry {
    Record(Rc<Written>),
    /// The marker of a transaction, or a record of one that was aborted.
    Nothing,
}

/// Promises that the simulated world breaks on purpose; the comparison must notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Broken {
    #[default]
    Nothing,
    /// Offsets are committed after the effects, not with them.
    OffsetsApart,
    /// Whether a transaction landed is always answered with no.
    LandedDenied,
    /// Consumers of effects read what was aborted too.
    AbortedRead,
    /// Reading starts at the offset of the effects, though the store is behind.
    StartAtEffects,
    /// Positions in the store are looked up under another name after each start.
    PositionsForgotten,
    /// The disk loses bytes that it was told to keep.
    BytesForgotten,
    /// The disk loses names that it was told to keep.
    NamesForgotten,
    /// Who is no member any more may commit offsets all the same.
    MembersKept,
    /// Windows that rows came too late for are left as they are.
    Uncorrected,
    /// A partition goes to its next member before the one that has it was asked.
    PartitionsTaken,
}

pub struct Topic {
    pub id: String,
    pub logs: Vec<Vec<Entry>>,
}

/// A transaction whose producer does not know what became of it.
struct Open {
    records: Vec<Outgoing>,
    offsets: Vec<Offset>,
    lands: bool,
}

#[derive(Default)]
pub struct Broker {
    pub inputs: BTreeMap<Arc<str>, Topic>,
    /// What is still to be written, by partition.
    pub unwritten: BTreeMap<Partition, VecDeque<Entry>>,
    /// What is still to be written to a topic once it has been deleted and made again.
    pub second_life: BTreeMap<Partition, VecDeque<Entry>>,
    /// What a reader of effects sees, in order.
    pub effects: Vec<Outgoing>,
    /// What instances told the one that closes windows, and the first offset that is not deleted.
    partials: Vec<Entry>,
    pub partials_low: i64,
    committed: BTreeMap<Partition, (i64, String)>,
    open: BTreeMap<Who, Open>,
    /// Whom their groups count in.
    pub members: BTreeSet<Who>,
    pub is_away: bool,
    pub broken: Broken,
}

impl Broker {
    pub fn end(&self, partition: &Partition) -> i64 {
        self.log(partition).len() as i64
    }

    pub fn log(&self, partition: &Partition) -> &[Entry] {
        if &*partition.topic == PARTIALS {
            return &self.partials;
        }
        &self.inputs[&partition.topic].logs[partition.partition as usize]
    }

    /// Answers for the number of partitions of an input.
    pub fn partition_count(&self, topic: &str) -> Result<usize, KafkaError> {
        match self.is_away {
            true => Err(timed_out("ask for partitions")),
            false => Ok(self.inputs.get(topic).map_or(0, |topic| topic.logs.len())),
        }
    }

    /// Says whether nothing stands behind a position; none while it is away.
    pub fn ends_at(&self, partition: &Partition, position: i64) -> Option<bool> {
        (!self.is_away).then(|| self.end(partition) <= position)
    }

    /// Returns the partitions of the inputs.
    pub fn partitions(&self) -> Vec<Partition> {
        let of = |(topic, inputs): (&Arc<str>, &Topic)| {
            let topic = topic.clone();
            (0..inputs.logs.len() as i32).map(move |partition| Partition { topic: topic.clone(), partition })
        };
        self.inputs.iter().flat_map(of).collect()
    }

    /// Writes the next entry of a partition.
    pub fn produce(&mut self, partition: &Partition) {
        let Some(entry) = self.unwritten.get_mut(partition).and_then(VecDeque::pop_front) else { return };
        self.append(partition, entry);
        self.unwritten.retain(|_, left| !left.is_empty());
    }

    pub fn append(&mut self, partition: &Partition, entry: Entry) {
        let topic = self.inputs.get_mut(&partition.topic).unwrap();
        topic.logs[partition.partition as usize].push(entry);
    }

    /// Returns the id of a topic, as the process with this number is told it.
    pub fn topic_id(&self, topic: &Arc<str>, start: u64) -> String {
        if &**topic == PARTIALS {
            return format!("id-of-{PARTIALS}");
        }
        let id = &self.inputs[topic].id;
        if self.broken == Broken::PositionsForgotten { format!("{id}-{start}") } else { id.clone() }
    }

    /// Tells a member about a partition. Offsets of an open transaction make it wait until that has ended.
    pub fn assigned(&mut self, partition: &Partition, start: u64) -> Assigned {
        self.end_open();
        let committed = self.committed.get(partition);
        Assigned {
            topic: partition.topic.clone(),
            topic_id: self.topic_id(&partition.topic, start),
            partition: partition.partition,
            committed: committed.map(|(next, _)| *next),
            metadata: committed.map(|(_, metadata)| metadata.clone()).unwrap_or_default(),
            low: if &*partition.topic == PARTIALS { self.partials_low } else { 0 },
            high: self.end(partition),
        }
    }

    /// Deletes the topic that has a second life, with its committed offsets, and makes it again under another id.
    pub fn remake(&mut self) {
        self.unwritten.append(&mut self.second_life);
        for (name, topic) in &mut self.inputs {
            if self.unwritten.keys().any(|partition| partition.topic == *name) {
                topic.id.push('+');
                topic.logs.iter_mut().for_each(Vec::clear);
                self.committed.retain(|partition, _| partition.topic != *name);
            }
        }
    }

    pub fn committed(&self, partition: &Partition) -> Option<i64> {
        self.committed.get(partition).map(|(next, _)| *next)
    }

    /// Returns what was committed beside an offset.
    pub fn metadata(&self, partition: &Partition) -> Option<&str> {
        self.committed.get(partition).map(|(_, metadata)| metadata.as_str())
    }

    /// Ends what producers left open, as the next one with an id makes the broker do, or time.
    pub fn end_open(&mut self) {
        let all: Vec<Who> = self.open.keys().copied().collect();
        all.into_iter().for_each(|who| self.end_open_of(who));
    }

    fn end_open_of(&mut self, who: Who) {
        if let Some(open) = self.open.remove(&who)
            && open.lands
        {
            self.land_records(&open.records);
            self.land_offsets(&open.offsets);
        }
    }

    fn land_records(&mut self, records: &[Outgoing]) {
        for record in records {
            if record.topic != PARTIALS {
                self.effects.push(record.clone());
                continue;
            }
            let Outgoing { key, payload, headers, .. } = record.clone();
            let written = Written { key: Some(key), value: payload, headers, ..Written::default() };
            self.partials.push(Entry::Record(Rc::new(written)));
        }
        if records.iter().any(|record| record.topic == PARTIALS) {
            // The marker of the transaction.
            self.partials.push(Entry::Nothing);
        }
    }

    fn land_offsets(&mut self, offsets: &[Offset]) {
        for offset in offsets {
            self.committed.insert(named(offset), (offset.next, offset.metadata.clone()));
        }
    }

    fn is_gone(&self, offset: &Offset) -> bool {
        let forgets = self.broken == Broken::PositionsForgotten || offset.topic == PARTIALS;
        !forgets && self.inputs.get(offset.topic.as_str()).is_none_or(|topic| topic.id != offset.topic_id)
    }
}

fn named(offset: &Offset) -> Partition {
    Partition { topic: offset.topic.as_str().into(), partition: offset.partition }
}

pub fn timed_out(operation: &str) -> KafkaError {
    KafkaError::Timeout { operation: operation.to_owned(), after: Duration::from_secs(20) }
}

/// The transactions of one producer.
pub struct SimulatedTransactions<'a>(pub &'a Shared, pub Who);

impl SimulatedTransactions<'_> {
    fn answers(&self) -> Result<(), KafkaError> {
        if self.0.borrow().broker.is_away { Err(timed_out("ask a broker that is away")) } else { Ok(()) }
    }

    fn land(&self, records: &[Outgoing], offsets: &[Offset]) {
        let broken = self.0.borrow().broker.broken;
        if broken == Broken::OffsetsApart {
            self.0.borrow_mut().broker.land_records(records);
            live(self.0, At::Landed);
            self.0.borrow_mut().broker.land_offsets(offsets);
        } else {
            self.0.borrow_mut().broker.land_records(records);
            self.0.borrow_mut().broker.land_offsets(offsets);
            live(self.0, At::Landed);
        }
    }

    /// Does something else than what a transaction is there for.
    fn go_wrong(&self, records: &[Outgoing], offsets: &[Offset]) -> Result<(), KafkaError> {
        let way = self.0.borrow_mut().below(16);
        self.0.borrow_mut().tell(format!("a transaction goes wrong, way {way}"));
        match way {
            // It never reached the broker.
            0..4 => {}
            // It landed, and the answer was lost.
            4..9 => self.land(records, offsets),
            // It is on its way still; the next who asks makes the broker end it.
            9..15 => {
                let mut world = self.0.borrow_mut();
                let lands = world.happens(0.5);
                let broken = world.broker.broken;
                if broken == Broken::AbortedRead && !lands {
                    world.broker.land_records(records);
                }
                let open = Open { records: records.to_vec(), offsets: offsets.to_vec(), lands };
                world.broker.open.insert(self.1, open);
            }
            _ => return Err(fenced()),
        }
        Err(timed_out("commit a transaction"))
    }
}

impl Transactions for SimulatedTransactions<'_> {
    fn reconnect(&mut self) -> Result<(), KafkaError> {
        self.answers()?;
        self.0.borrow_mut().broker.end_open_of(self.1);
        Ok(())
    }

    fn commit(&mut self, records: &[Outgoing], offsets: &[Offset]) -> Result<(), KafkaError> {
        live(self.0, At::Transaction);
        if records.is_empty() && offsets.is_empty() {
            return Ok(());
        }
        self.answers()?;
        {
            let broker = &self.0.borrow().broker;
            assert!(
                !broker.open.contains_key(&self.1),
                "a producer that begins a transaction has ended the one before"
            );
            if offsets.iter().any(|offset| broker.is_gone(offset)) {
                return Err(timed_out("commit an offset of a topic that is gone"));
            }
            let is_member = broker.members.contains(&self.1) || broker.broken == Broken::MembersKept;
            if !offsets.is_empty() && !is_member {
                return Err(lost_group());
            }
        }
        let goes_wrong = {
            let world = &mut *self.0.borrow_mut();
            world.happens(world.trouble.transactions)
        };
        if goes_wrong {
            return self.go_wrong(records, offsets);
        }
        self.land(records, offsets);
        Ok(())
    }

    fn holds(&self, offsets: &[Offset]) -> Result<bool, KafkaError> {
        self.answers()?;
        let broker = &self.0.borrow().broker;
        let same = |offset: &Offset| {
            broker.committed.get(&named(offset)).is_some_and(|(next, m)| *next == offset.next && *m == offset.metadata)
        };
        Ok(broker.broken != Broken::LandedDenied && !offsets.is_empty() && offsets.iter().all(same))
    }

    fn gone(&self, offsets: &[Offset]) -> Result<Vec<String>, KafkaError> {
        self.answers()?;
        let broker = &self.0.borrow().broker;
        let mut gone: Vec<String> =
            offsets.iter().filter(|offset| broker.is_gone(offset)).map(|offset| offset.topic.clone()).collect();
        gone.dedup();
        Ok(gone)
    }
}

/// A record as it is handed over.
pub struct Delivered {
    pub partition: Partition,
    pub offset: i64,
    pub written: Rc<Written>,
}

pub struct SimulatedBatch(pub Vec<Delivered>);

impl Records for SimulatedBatch {
    fn iter(&self) -> impl Iterator<Item = impl Incoming> {
        self.0.iter()
    }
}

impl Incoming for &Delivered {
    fn topic(&self) -> &Arc<str> {
        &self.partition.topic
    }

    fn partition(&self) -> i32 {
        self.partition.partition
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp_ms(&self) -> Option<i64> {
        Some(self.written.timestamp_ms)
    }

    fn key(&self) -> Option<&[u8]> {
        self.written.key.as_deref()
    }

    fn value(&self) -> Option<&[u8]> {
        self.written.value.as_deref()
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        self.written.headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice()))).collect()
    }
}

impl World {
    /// Writes some of what is still to be written, at partitions that chance names.
    pub fn produce(&mut self, entries: usize) {
        for _ in 0..entries {
            let left: Vec<Partition> = self.broker.unwritten.keys().cloned().collect();
            if left.is_empty() {
                return;
            }
            let at = self.below(left.len());
            self.broker.produce(&left[at]);
        }
    }
}
