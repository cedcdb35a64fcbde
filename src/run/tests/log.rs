//! What is written to the input topics, made from a seed together with what it means. The meaning is known because it
//! came first: nothing here decodes a record.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::kafka::{Broker, Entry, Topic, Written};
use super::world::DAWN;
use crate::kafka::source::Partition;

pub const NUMBERS: &str = "numbers";
pub const HAPPENINGS: &str = "happenings";
pub const SECOND: i64 = 1_000_000;
/// When event time begins: on a minute, some hours ago.
pub const BEGIN: i64 = DAWN / (60 * SECOND) * (60 * SECOND) - 7200 * SECOND;
/// How long it goes on, in seconds.
const SPAN: i64 = 240;
/// The time of the records that close all windows.
const END: i64 = BEGIN + 600 * SECOND;
/// How far a record may be behind the newest of its partition without being late for any view.
pub const LATENESS: i64 = 5;

/// A topic, a partition and an offset.
pub type Place = (String, i32, i64);

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub place: Place,
    pub service: &'static str,
    pub name: &'static str,
    pub ts: i64,
    pub value: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub place: Place,
    pub id: String,
    pub subject: &'static str,
    pub ts: i64,
    pub failed: bool,
}

/// What the records of a log mean.
#[derive(Clone, Debug, Default)]
pub struct Meaning {
    pub samples: Vec<Sample>,
    pub events: Vec<Event>,
    /// The records that are refused, in the order of their places. A topic made again has the same places once more.
    pub refused: Vec<Place>,
}

/// A log and its meaning.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub entries: BTreeMap<Partition, Vec<Entry>>,
    /// What is written after a topic was deleted and made again.
    pub second_life: BTreeMap<Partition, Vec<Entry>>,
    pub meaning: Meaning,
}

struct Writer {
    random: StdRng,
    /// A time is of its own: so many microseconds into its second.
    unique: i64,
    /// Whether records come later than any view waits for.
    is_late: bool,
    /// The service that has a bad time, and the seconds of it.
    burst: (&'static str, i64, i64),
}

impl Log {
    /// Makes a log, with late records or without; of the latter every third has a topic that is deleted and made again.
    pub fn make(seed: u64, is_late: bool) -> Log {
        let mut random = StdRng::seed_from_u64(seed ^ 0x10_60_10_60);
        let from = random.random_range(20..120);
        let burst = (["a", "b"][random.random_range(0..2)], from, from + random.random_range(20..90));
        let mut writer = Writer { random, unique: 0, is_late, burst };
        let mut log = Log::default();
        for topic in [NUMBERS, HAPPENINGS] {
            for partition in 0..2 {
                let partition = Partition { topic: topic.into(), partition };
                let is_remade = topic == HAPPENINGS && !is_late && seed.is_multiple_of(3);
                let middle = if is_remade { SPAN / 2 } else { SPAN };
                let entries = writer.partition(&partition, 0..middle, &mut log.meaning);
                log.entries.insert(partition.clone(), entries);
                if is_remade {
                    // Later than anything before, as its clock begins anew.
                    let entries = writer.partition(&partition, middle + 10..SPAN, &mut log.meaning);
                    log.second_life.insert(partition, entries);
                }
            }
        }
        log.meaning.refused.sort();
        log
    }

    /// Returns brokers to which nothing of the log is written yet.
    pub fn broker(&self) -> Broker {
        let mut broker = Broker::default();
        for (partition, entries) in &self.entries {
            let new = || Topic { id: format!("id-of-{}", partition.topic), logs: vec![Vec::new(); 2] };
            broker.inputs.entry(partition.topic.clone()).or_insert_with(new);
            broker.unwritten.insert(partition.clone(), VecDeque::from(entries.clone()));
        }
        let second = self.second_life.iter().map(|(partition, entries)| (partition.clone(), entries.clone().into()));
        broker.second_life = second.collect();
        broker
    }
}

/// Writes a record to each partition that makes every window with rows of the log close.
pub fn close(broker: &mut Broker) {
    for partition in broker.partitions() {
        let value = match &*partition.topic {
            NUMBERS => format!(r#"{{"name":"closing","ts":{END},"value":0}}"#),
            _ => format!(r#"{{"type":"closing","subject":"closing","ts":{END}}}"#),
        };
        broker.append(&partition, record(Some(value.into_bytes())));
    }
}

fn record(value: Option<Vec<u8>>) -> Entry {
    let written = Written { key: Some(b"key".to_vec()), value, timestamp_ms: DAWN / 1000, ..Written::default() };
    Entry::Record(Rc::new(written))
}

impl Writer {
    fn partition(&mut self, partition: &Partition, span: Range<i64>, meaning: &mut Meaning) -> Vec<Entry> {
        let (mut entries, mut newest) = (Vec::new(), span.start);
        let is_numbers = &*partition.topic == NUMBERS;
        while newest < span.end {
            newest += self.random.random_range(0..if is_numbers { 6 } else { 9 });
            let place: Place = (partition.topic.to_string(), partition.partition, entries.len() as i64);
            entries.push(match self.random.random_range(0..100) {
                0..6 => Entry::Nothing,
                6..9 => record(None),
                9..14 => {
                    meaning.refused.push(place);
                    record(Some(self.poison(newest)))
                }
                14..15 => {
                    meaning.refused.push(place);
                    let written = Written { timestamp_ms: DAWN / 1000, is_damaged: true, ..Written::default() };
                    Entry::Record(Rc::new(written))
                }
                _ if is_numbers => self.numbers(place, newest, meaning),
                _ => self.happening(place, newest, meaning),
            });
        }
        // Markers at the very end hold no record, and the position must pass them all the same.
        if self.random.random_bool(0.5) {
            entries.push(Entry::Nothing);
        }
        entries
    }

    fn poison(&mut self, newest: i64) -> Vec<u8> {
        let ts = BEGIN + newest * SECOND;
        let future = DAWN + 365 * 86_400 * SECOND;
        let text = match self.random.random_range(0..4) {
            0 => "{".to_owned(),
            1 => format!(r#"{{"name":"load","type":"run","ts":{ts},"value":"many","duration_ms":"long"}}"#),
            2 => format!(r#"{{"name":"load","type":"run","subject":"build","ts":{future},"value":1}}"#),
            // The first is good, and is refused with the second.
            _ => format!(
                r#"[{{"name":"new","labels":{{"service":"{ts}"}},"type":"run","subject":"x","ts":{ts},"value":1}},{{"ts":{ts}}}]"#
            ),
        };
        text.into_bytes()
    }

    /// Returns a time no record has yet, about so many seconds after the beginning.
    fn time(&mut self, newest: i64) -> i64 {
        let back = match self.random.random_range(0..100) {
            0..60 => 0,
            60..88 => self.random.random_range(0..LATENESS),
            _ if self.is_late => self.random.random_range(0..60),
            _ => 0,
        };
        self.unique += 1;
        BEGIN + (newest - back).max(0) * SECOND + self.unique
    }

    fn numbers(&mut self, place: Place, newest: i64, meaning: &mut Meaning) -> Entry {
        let points = if self.random.random_bool(0.2) { 3 } else { 1 };
        let mut texts = Vec::new();
        for _ in 0..points {
            let service = ["a", "b", "c"][self.random.random_range(0..3)];
            let name = if self.random.random_bool(0.9) { "load" } else { "noise" };
            let ts = self.time(newest);
            let second = (ts - BEGIN) / SECOND;
            let bad = self.burst.0 == service && (self.burst.1..self.burst.2).contains(&second);
            let value = self.random.random_range(1..6) * if bad { 20 } else { 1 };
            texts.push(format!(r#"{{"name":"{name}","labels":{{"service":"{service}"}},"ts":{ts},"value":{value}}}"#));
            meaning.samples.push(Sample { place: place.clone(), service, name, ts, value });
        }
        let text = if points == 1 { texts.remove(0) } else { format!("[{}]", texts.join(",")) };
        record(Some(text.into_bytes()))
    }

    fn happening(&mut self, place: Place, newest: i64, meaning: &mut Meaning) -> Entry {
        let subject = ["build", "deploy"][self.random.random_range(0..2)];
        let failed = self.random.random_bool(0.4);
        let (ts, outcome) = (self.time(newest), if failed { "failure" } else { "success" });
        let id = format!("event-{}", self.unique);
        let text = format!(r#"{{"type":"run","id":"{id}","subject":"{subject}","outcome":"{outcome}","ts":{ts}}}"#);
        meaning.events.push(Event { place, id, subject, ts, failed });
        record(Some(text.into_bytes()))
    }
}

/// The inputs by name, as the configuration has them.
pub fn topics() -> [(Arc<str>, &'static str); 2] {
    [(NUMBERS.into(), "json_metrics"), (HAPPENINGS.into(), "json_events")]
}
