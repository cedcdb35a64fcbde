//! Tests of the room against the embedded broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::admin::{self, Ensured, Topic};
use super::broker::EmbeddedBroker;
use super::error::{Fault, KafkaError};
use super::producer::Producer;
use super::settings::Settings;
use super::sink::{Offset, Outgoing, Sink};
use super::source::{Assigned, BEGINNING, Partition, Source, SourceEvent};
use super::tail::Tail;

/// Long enough for any machine; nothing waits for it to pass unless something is broken.
const DEADLINE: Duration = Duration::from_secs(15);

/// A key of a partition for maps in tests.
type Place = (String, i32);

/// What a receiver has seen so far. Answers every question from `starts`, else with where it is, else the beginning.
#[derive(Default)]
struct Seen {
    starts: BTreeMap<Place, i64>,
    assigned: BTreeMap<Place, Assigned>,
    offsets: BTreeMap<Place, Vec<i64>>,
    eofs: BTreeSet<Place>,
    revoked: Vec<Place>,
    downs: usize,
    ups: usize,
    missing: Vec<String>,
    failures: Vec<KafkaError>,
}

impl Seen {
    fn total(&self) -> usize {
        self.offsets.values().map(Vec::len).sum()
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Assigned { partitions, start } => {
                let answer = partitions.iter().map(|p| self.start(&(p.topic.to_string(), p.partition))).collect();
                self.assigned.extend(partitions.into_iter().map(|p| ((p.topic.to_string(), p.partition), p)));
                start.send(answer);
            }
            SourceEvent::Revoked { partitions, done, .. } => {
                for partition in partitions {
                    let place = place(&partition);
                    self.assigned.remove(&place);
                    self.revoked.push(place);
                }
                done.send(());
            }
            SourceEvent::Batch(batch) => {
                assert!(!batch.is_empty());
                for message in batch.iter() {
                    assert_eq!(batch.topics()[message.topic_index()], *message.topic());
                    let place = (message.topic().to_string(), message.partition());
                    self.offsets.entry(place).or_default().push(message.offset());
                }
            }
            SourceEvent::Eof { partition, .. } => {
                self.eofs.insert(place(&partition));
            }
            SourceEvent::Down { message } => {
                assert!(!message.is_empty());
                self.downs += 1;
            }
            SourceEvent::Up => self.ups += 1,
            SourceEvent::Missing { message } => self.missing.push(message),
            SourceEvent::Unreadable { partition, offset, .. } => {
                panic!("{partition} has no record that does not unpack, got {offset}")
            }
            SourceEvent::Failed(error) => self.failures.push(error),
        }
    }

    fn start(&self, place: &Place) -> i64 {
        let here = self.offsets.get(place).and_then(|offsets| offsets.last()).map(|last| last + 1);
        here.or(self.starts.get(place).copied()).unwrap_or(BEGINNING)
    }

    /// Takes events until `done`, which has to come before the deadline.
    fn until(&mut self, events: &Receiver<SourceEvent>, done: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(event) => self.take(event),
                Err(error) => {
                    let counts: Vec<_> = self.offsets.iter().map(|(place, offsets)| (place, offsets.len())).collect();
                    panic!("{error}: {counts:?}, {:?}", self.failures)
                }
            }
        }
    }
}

fn place(partition: &Partition) -> Place {
    (partition.topic.to_string(), partition.partition)
}

/// Writes `count` records to each partition of each topic: key `k<n>`, value `v<n>`, a header and a time of `n` ms.
fn fill(broker: &EmbeddedBroker, topics: &[&str], partitions: i32, count: usize) {
    let producer = Producer::open(&broker.settings("filler", &[])).unwrap();
    for topic in topics {
        for partition in 0..partitions {
            for n in 0..count {
                let (key, value) = (format!("k{n}"), format!("v{n}"));
                let headers = [("n", key.as_bytes())];
                let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
                producer.send(topic, Some(partition), key, value, &headers, Some(1 + n as i64)).unwrap();
            }
        }
    }
    producer.flush(DEADLINE).unwrap();
}

#[test]
fn reads_everything_from_where_the_receiver_says() {
    let topics = ["a", "b"];
    let broker = EmbeddedBroker::start(&[("a", 3), ("b", 3)]).unwrap();
    fill(&broker, &topics, 3, 1700);
    let (source, events) = Source::start(&broker.settings("readers", &topics), 4).unwrap();
    let mut seen = Seen::default();
    for (index, topic) in topics.iter().enumerate() {
        for partition in 0..3 {
            seen.starts.insert((topic.to_string(), partition), 100 * (index as i64 + 1) + i64::from(partition));
        }
    }
    let expected: BTreeMap<Place, Vec<i64>> =
        seen.starts.iter().map(|(place, start)| (place.clone(), (*start..1700).collect())).collect();
    seen.until(&events, |seen| seen.eofs.len() == 6);

    assert_eq!(seen.offsets, expected);
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    for assigned in seen.assigned.values() {
        assert_eq!((assigned.committed, assigned.metadata.as_str()), (None, ""));
        assert_eq!((assigned.low, assigned.high), (0, 1700));
        assert!(!assigned.topic_id.is_empty());
    }
    let lag = source.lag();
    assert_eq!(lag.len(), 6);
    assert!(lag.iter().all(|(_, behind)| *behind == 0), "{lag:?}");
    assert!(source.cluster_id(DEADLINE).is_some());
    source.stop();
    assert!(events.recv_timeout(Duration::ZERO).is_err(), "a stopped source says nothing more");
}

#[test]
fn a_message_reads_as_it_was_written() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    let producer = Producer::open(&broker.settings("writer", &[])).unwrap();
    producer.send("a", Some(0), Some(b"key"), Some(b"value"), &[("h", b"1"), ("h", b"")], Some(1234)).unwrap();
    producer.send("a", Some(0), None, None, &[], Some(1235)).unwrap();
    producer.send("a", Some(0), Some(b""), Some(b""), &[], Some(1236)).unwrap();
    producer.flush(DEADLINE).unwrap();
    let (source, events) = Source::start(&broker.settings("reader", &["a"]), 4).unwrap();
    let mut batches = Vec::new();
    let mut seen = Seen::default();
    while batches.iter().map(super::batch::Batch::len).sum::<usize>() < 3 {
        match events.recv_timeout(DEADLINE).unwrap() {
            SourceEvent::Batch(batch) => batches.push(batch),
            other => seen.take(other),
        }
    }
    // A batch outlives its source, and may be read and dropped elsewhere.
    source.stop();
    let read = std::thread::spawn(move || {
        let messages = batches.iter().flat_map(|batch| batch.iter());
        let copy = |m: super::batch::Message<'_>| {
            let headers: Vec<_> =
                m.headers().into_iter().map(|(k, v)| (k.to_string(), v.map(<[u8]>::to_vec))).collect();
            (m.key().map(<[u8]>::to_vec), m.value().map(<[u8]>::to_vec), headers, m.timestamp_ms())
        };
        messages.map(copy).collect::<Vec<_>>()
    });
    let headers = vec![("h".to_string(), Some(b"1".to_vec())), ("h".to_string(), Some(Vec::new()))];
    let expected = [
        (Some(b"key".to_vec()), Some(b"value".to_vec()), headers, Some(1234)),
        (None, None, vec![], Some(1235)),
        (Some(vec![]), Some(vec![]), vec![], Some(1236)),
    ];
    assert_eq!(read.join().unwrap(), expected);
}

#[test]
fn a_second_run_goes_on_where_the_first_was() {
    let broker = EmbeddedBroker::start(&[("a", 3)]).unwrap();
    fill(&broker, &["a"], 3, 500);
    let mut seen = Seen::default();
    let settings = Settings { batch_messages_max: 64, ..broker.settings("readers", &["a"]) };
    let (source, events) = Source::start(&settings, 1).unwrap();
    seen.until(&events, |seen| seen.total() >= 300);
    source.stop();
    let (source, events) = Source::start(&settings, 1).unwrap();
    seen.until(&events, |seen| seen.total() >= 1500);
    source.stop();
    let whole: Vec<i64> = (0..500).collect();
    assert!(seen.offsets.values().all(|offsets| *offsets == whole), "each record once, in order");
}

#[test]
fn a_second_member_takes_over_a_part_and_gives_it_back() {
    let broker = EmbeddedBroker::start(&[("a", 4)]).unwrap();
    // From version 7 on this broker puts an injected error on the whole answer, where librdkafka keeps it to itself.
    broker.limit_version(RDKafkaApiKey::Fetch, 6).unwrap();
    fill(&broker, &["a"], 4, 10);
    let settings = broker.settings("readers", &["a"]);
    let mut seen = Seen::default();
    let (source, events) = Source::start(&settings, 4).unwrap();
    seen.until(&events, |seen| seen.total() == 40);
    // An error event before a rebalance: the batch call moves librdkafka's position past it.
    broker.fail_next(RDKafkaApiKey::Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN; 4]).unwrap();

    let (other, other_events) = Source::start(&settings, 4).unwrap();
    let mut other_seen = Seen { starts: (0..4).map(|p| (("a".into(), p), 10)).collect(), ..Seen::default() };
    let deadline = Instant::now() + DEADLINE;
    while seen.assigned.len() != 2 || other_seen.assigned.len() != 2 {
        assert!(Instant::now() < deadline, "{:?} and {:?}", seen.assigned.keys(), other_seen.assigned.keys());
        for (seen, events) in [(&mut seen, &events), (&mut other_seen, &other_events)] {
            events.try_iter().for_each(|event| seen.take(event));
        }
        if let Ok(event) = events.recv_timeout(Duration::from_millis(10)) {
            seen.take(event);
        }
    }
    assert!(seen.assigned.keys().all(|place| !other_seen.assigned.contains_key(place)));
    other.stop();
    seen.until(&events, |seen| seen.assigned.len() == 4);
    fill(&broker, &["a"], 4, 10);
    seen.until(&events, |seen| seen.total() == 80);
    let whole: Vec<i64> = (0..20).collect();
    assert!(seen.offsets.values().all(|offsets| *offsets == whole), "{:?}", seen.offsets);
    source.stop();
}

#[test]
fn reading_goes_on_after_the_broker_was_down() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    fill(&broker, &["a"], 1, 10);
    let (source, events) = Source::start(&broker.settings("readers", &["a"]), 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.total() == 10);
    broker.take_down().unwrap();
    seen.until(&events, |seen| seen.downs == 1);
    broker.bring_up().unwrap();
    seen.until(&events, |seen| seen.ups == 1);
    fill(&broker, &["a"], 1, 10);
    seen.until(&events, |seen| seen.total() == 20);
    assert_eq!(seen.offsets.into_values().collect::<Vec<_>>(), [(0..20).collect::<Vec<i64>>()]);
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    source.stop();
}

#[test]
fn a_broker_that_is_down_at_start_is_waited_for() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    fill(&broker, &["a"], 1, 1);
    broker.take_down().unwrap();
    let (source, events) = Source::start(&broker.settings("readers", &["a"]), 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.downs == 1);
    broker.bring_up().unwrap();
    seen.until(&events, |seen| seen.total() == 1);
    source.stop();
}

#[test]
fn a_position_that_retention_has_passed_is_told_with_the_lost_range() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    let producer = Producer::open(&broker.settings("writer", &[])).unwrap();
    // The broker keeps 5 MiB of a partition. Compression works on a batch, so the bytes must not repeat.
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    for _ in 0..40 {
        let value: Vec<u8> = (0..400_000).map(|_| noise()).collect();
        producer.send("a", Some(0), None, Some(&value), &[], None).unwrap();
        producer.flush(DEADLINE).unwrap();
    }
    let (source, events) = Source::start(&broker.settings("readers", &["a"]), 4).unwrap();
    let mut seen = Seen { starts: [(("a".into(), 0), 3)].into(), ..Seen::default() };
    seen.until(&events, |seen| !seen.failures.is_empty());
    let low = seen.assigned.values().next().unwrap().low;
    assert!(low > 3, "the broker has dropped something: {low}");
    assert!(matches!(
        seen.failures[0],
        KafkaError::OutOfRange { partition: 0, position: 3, low: l, high: 40, .. } if l == low
    ));
    assert!(seen.failures[0].to_string().contains(&format!("[3, {low})")), "{}", seen.failures[0]);
    assert_eq!(seen.total(), 0, "nothing is skipped in silence");
    source.stop();
}

#[test]
fn a_position_past_the_end_is_told() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    fill(&broker, &["a"], 1, 5);
    let (source, events) = Source::start(&broker.settings("readers", &["a"]), 4).unwrap();
    let mut seen = Seen { starts: [(("a".into(), 0), 9)].into(), ..Seen::default() };
    seen.until(&events, |seen| !seen.failures.is_empty());
    assert!(matches!(seen.failures[0], KafkaError::OutOfRange { position: 9, low: 0, high: 5, .. }));
    source.stop();
}

#[test]
fn a_missing_topic_is_told_and_the_others_are_read() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    fill(&broker, &["a"], 1, 5);
    let (source, events) = Source::start(&broker.settings("readers", &["a", "nowhere"]), 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.total() == 5 && !seen.missing.is_empty());
    assert!(seen.missing[0].contains("nowhere"), "{:?}", seen.missing);
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    source.stop();
}

#[test]
fn a_wrong_answer_and_a_dropped_question_are_failures_and_do_not_hang() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    for answer in [None, Some(vec![]), Some(vec![-7])] {
        let (source, events) = Source::start(&broker.settings("readers", &["a"]), 4).unwrap();
        match events.recv_timeout(DEADLINE).unwrap() {
            SourceEvent::Assigned { start, .. } => match answer {
                Some(answer) => start.send(answer),
                None => drop(start),
            },
            _ => panic!("an assignment comes first"),
        }
        match events.recv_timeout(DEADLINE).unwrap() {
            SourceEvent::Failed(error) => assert_eq!(error.fault(), Fault::Internal, "{error}"),
            _ => panic!("a failure comes next"),
        }
        source.stop();
    }
}

#[test]
fn a_source_can_be_stopped_while_it_asks() {
    let broker = EmbeddedBroker::start(&[("a", 2)]).unwrap();
    let settings = broker.settings("readers", &["a"]);
    let (source, events) = Source::start(&settings, 4).unwrap();
    let asked = events.recv_timeout(DEADLINE).unwrap();
    assert!(matches!(asked, SourceEvent::Assigned { .. }));
    source.stop();

    let (source, events) = Source::start(&settings, 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.assigned.len() == 2);
    let (other, other_events) = Source::start(&settings, 4).unwrap();
    let revoked = events.iter().find(|event| matches!(event, SourceEvent::Revoked { .. }));
    assert!(revoked.is_some());
    source.stop();
    let mut other_seen = Seen::default();
    other_seen.until(&other_events, |seen| seen.assigned.len() == 2);
    other.stop();
}

#[test]
fn a_receiver_that_does_not_read_keeps_its_partitions_and_its_memory() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    fill(&broker, &["a"], 1, 2000);
    let mut settings = broker.settings("readers", &["a"]);
    settings.batch_messages_max = 100;
    for (key, value) in [("session.timeout.ms", "1000"), ("max.poll.interval.ms", "1000")] {
        settings.client.insert(key.into(), value.into());
    }
    settings.client.insert("heartbeat.interval.ms".into(), "200".into());
    let (source, events) = Source::start(&settings, 1).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.total() == 100);
    // Long past the time after which the group throws out a member that does not poll.
    let full_since = Instant::now();
    while full_since.elapsed() < Duration::from_millis(3500) {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let behind: i64 = source.lag().iter().map(|(_, behind)| behind).sum();
    assert!(behind >= 1600, "only what fits in the channel was taken: {behind}");
    seen.until(&events, |seen| seen.total() == 2000);
    assert!(seen.revoked.is_empty(), "{:?}", seen.revoked);
    source.stop();
}

fn outgoing(n: usize) -> Outgoing {
    Outgoing {
        topic: "out".into(),
        key: format!("k{n}").into_bytes(),
        payload: Some(format!("v{n}").into_bytes()),
        headers: vec![("ce_id".into(), format!("{n}").into_bytes())],
    }
}

#[test]
fn what_the_sink_commits_can_be_read() {
    let broker = EmbeddedBroker::start(&[("in", 1), ("out", 1)]).unwrap();
    fill(&broker, &["in"], 1, 3);
    let settings = broker.settings("service", &["in"]);
    let (source, events) = Source::start(&settings, 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.total() == 3);
    let mut sink = Sink::open(&settings, DEADLINE).unwrap();
    let offsets =
        [Offset { topic: "in".into(), topic_id: String::new(), partition: 0, next: 3, metadata: "w=17".into() }];
    let mut records: Vec<Outgoing> = (0..100).map(outgoing).collect();
    records.push(Outgoing { key: b"gone".to_vec(), payload: None, headers: vec![], ..outgoing(0) });
    records.push(Outgoing { key: vec![], ..outgoing(101) });
    sink.commit(&records, &offsets, Some(&source.group())).unwrap();
    sink.commit(&[], &[], Some(&source.group())).unwrap();
    sink.commit(&[], &offsets, Some(&source.group())).unwrap();

    let mut tail = Tail::open(&settings, &["out"]).unwrap();
    for (offset, record) in records.iter().enumerate() {
        let message = tail.next(Instant::now() + DEADLINE).unwrap();
        let headers: Vec<_> = record.headers.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
        assert_eq!((message.topic.as_str(), message.offset as usize), ("out", offset));
        assert_eq!(message.key, (!record.key.is_empty()).then(|| record.key.clone()));
        assert_eq!((message.value, message.headers), (record.payload.clone(), headers));
    }
    source.stop();
}

#[test]
fn a_commit_does_not_wait_for_a_poll_interval() {
    let broker = EmbeddedBroker::start(&[("in", 1), ("out", 1)]).unwrap();
    fill(&broker, &["in"], 1, 1);
    let settings = broker.settings("service", &["in"]);
    let (source, events) = Source::start(&settings, 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| seen.total() == 1);
    let mut sink = Sink::open(&settings, DEADLINE).unwrap();
    let offsets =
        [Offset { topic: "in".into(), topic_id: String::new(), partition: 0, next: 1, metadata: String::new() }];
    let group = source.group();
    let mut took: Vec<Duration> = (0..50)
        .map(|n| {
            let started = Instant::now();
            sink.commit(&[outgoing(n)], &offsets, Some(&group)).unwrap();
            started.elapsed()
        })
        .collect();
    took.sort();
    // The median, as the machine may be busy. An unpolled producer takes 100 ms each time.
    assert!(took[25] < Duration::from_millis(60), "{took:?}");
    println!("commit: median {:?}, least {:?}, most {:?}", took[25], took[0], took[49]);
    source.stop();
}

#[test]
fn a_failed_commit_says_what_to_do_and_the_next_one_works() {
    use RDKafkaApiKey as Request;
    use RDKafkaRespErr as E;
    let broker = EmbeddedBroker::start(&[("in", 1), ("out", 1)]).unwrap();
    let settings = broker.settings("service", &["in"]);
    let (source, events) = Source::start(&settings, 4).unwrap();
    let mut seen = Seen::default();
    seen.until(&events, |seen| !seen.assigned.is_empty());
    let mut sink = Sink::open(&settings, DEADLINE).unwrap();
    let offsets =
        [Offset { topic: "in".into(), topic_id: String::new(), partition: 0, next: 0, metadata: String::new() }];
    let group = source.group();

    broker.fail_next(Request::TxnOffsetCommit, &[E::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION]).unwrap();
    let error = sink.commit(&[outgoing(0)], &offsets, Some(&group)).unwrap_err();
    assert!(error.is_lost_group() && !error.is_retriable(), "{error:?}");
    sink.commit(&[outgoing(1)], &offsets, Some(&group)).unwrap();

    broker.fail_next(Request::Produce, &[E::RD_KAFKA_RESP_ERR_INVALID_RECORD]).unwrap();
    let error = sink.commit(&[outgoing(2)], &offsets, Some(&group)).unwrap_err();
    assert!(!error.is_retriable() && error.fault() == Fault::User, "{error:?}");
    sink.commit(&[outgoing(3)], &offsets, Some(&group)).unwrap();

    broker.fail_next(Request::EndTxn, &[E::RD_KAFKA_RESP_ERR_PRODUCER_FENCED]).unwrap();
    let error = sink.commit(&[outgoing(4)], &offsets, Some(&group)).unwrap_err();
    assert!(error.is_fenced(), "{error:?}");
    assert!(sink.commit(&[outgoing(5)], &offsets, Some(&group)).unwrap_err().is_fenced(), "for good");
    source.stop();
}

#[test]
fn a_sink_outlives_a_broker_that_is_away() {
    let broker = EmbeddedBroker::start(&[("out", 1)]).unwrap();
    let settings = broker.settings("service", &[]);
    let mut sink = Sink::open(&settings, Duration::from_secs(2)).unwrap();
    sink.commit(&[outgoing(0)], &[], None).unwrap();
    broker.take_down().unwrap();
    for _ in 0..2 {
        let error = sink.commit(&[outgoing(1)], &[], None).unwrap_err();
        assert!(error.is_retriable(), "{error:?}");
        assert_eq!(error.fault(), Fault::External, "{error:?}");
    }
    broker.bring_up().unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = sink.commit(&[outgoing(1)], &[], None) {
        assert!(error.is_retriable() && Instant::now() < deadline, "{error:?}");
    }
}

#[test]
fn topics_are_made_once_and_told_apart_from_those_that_were_there() {
    let broker = EmbeddedBroker::start(&[("a", 3)]).unwrap();
    let settings = broker.settings("service", &["a", "b"]);
    let topic = |name: &str| Topic {
        name: name.into(),
        partitions: 4,
        replication: None,
        config: BTreeMap::from([("cleanup.policy".into(), "compact".into())]),
    };
    let topics = [topic("a"), topic("b")];
    let reachable = admin::reach(&settings, DEADLINE).unwrap();
    assert_eq!(reachable.missing, ["b"]);
    assert_eq!(reachable.brokers, [broker.bootstrap_servers()]);
    let ensured = admin::ensure_topics(&settings, &topics, DEADLINE).unwrap();
    assert_eq!(ensured, [Ensured::Existed { partitions: 3 }, Ensured::Created]);
    let ensured = admin::ensure_topics(&settings, &topics, DEADLINE).unwrap();
    assert_eq!(ensured, [Ensured::Existed { partitions: 3 }, Ensured::Existed { partitions: 4 }]);
    assert!(admin::reach(&settings, DEADLINE).unwrap().missing.is_empty());
}

#[test]
fn an_unreachable_broker_is_named_with_the_reason_and_a_hint() {
    // Port 1 of localhost: nothing listens there.
    let settings = Settings { brokers: "127.0.0.1:1".into(), ..Settings::default() };
    let short = Duration::from_secs(2);
    let errors = [admin::reach(&settings, short).unwrap_err(), Sink::open(&settings, short).map(|_| ()).unwrap_err()];
    for error in errors {
        let text = error.to_string();
        assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
        assert!(text.contains("127.0.0.1:1") && text.contains("refused") && text.contains("check that"), "{text}");
        assert!(error.is_retriable() && error.fault() == Fault::External);
    }
}

#[test]
fn a_topic_that_is_not_there_cannot_be_tailed() {
    let broker = EmbeddedBroker::start(&[]).unwrap();
    let error = Tail::open(&broker.settings("reader", &[]), &["nowhere"]).map(|_| ()).unwrap_err();
    assert!(matches!(error, KafkaError::TopicMissing { .. }), "{error:?}");
}

#[test]
fn a_record_too_large_to_send_is_the_senders_fault() {
    let broker = EmbeddedBroker::start(&[("a", 1)]).unwrap();
    let producer = Producer::open(&broker.settings("writer", &[])).unwrap();
    let error = producer.send("a", None, None, Some(&vec![0; 2_000_000]), &[], None).unwrap_err();
    assert_eq!((error.fault(), error.is_retriable()), (Fault::User, false), "{error:?}");
    producer.flush(DEADLINE).unwrap();
}

#[test]
fn settings_refuse_what_cannot_be_and_print_no_secret() {
    let with = |key: &str, value: &str| Settings {
        client: BTreeMap::from([(key.to_string(), value.to_string())]),
        ..Settings::default()
    };
    Settings::default().check().unwrap();
    with("security.protocol", "SASL_SSL").check().unwrap();
    let refused = [
        (Settings { brokers: " ".into(), ..Settings::default() }, "brokers"),
        (Settings { topics: vec!["a b".into()], ..Settings::default() }, "topics"),
        (Settings { batch_messages_max: 0, ..Settings::default() }, "batch_messages_max"),
        (with("enable.auto.commit", "true"), "enable.auto.commit"),
        (with("no.such.property", "1"), "no.such.property"),
        (with("security.protocol", "s3cret"), "security.protocol"),
    ];
    for (settings, key) in refused {
        let error = settings.check().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("`{key}`")), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(error.fault(), Fault::User);
    }
    let text = format!("{:?}", with("sasl.password", "s3cret"));
    assert!(text.contains("sasl.password") && !text.contains("s3cret"), "{text}");
}

#[test]
fn batches_and_handles_may_change_threads() {
    fn is_send<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    is_send::<super::batch::Batch>();
    is_send::<SourceEvent>();
    is_send::<Sink>();
    is_shared::<super::source::GroupHandle>();
    is_shared::<Arc<Producer>>();
    is_shared::<EmbeddedBroker>();
}

/// What a commit is answered after the group went on without its member.
pub(crate) fn lost_group() -> KafkaError {
    let source = rdkafka::error::KafkaError::Global(rdkafka::error::RDKafkaErrorCode::IllegalGeneration);
    KafkaError::LostGroup { operation: "commit a transaction", source }
}

/// What a producer is answered after another has taken over its id.
pub(crate) fn fenced() -> KafkaError {
    let source = rdkafka::error::KafkaError::Global(rdkafka::error::RDKafkaErrorCode::Fenced);
    KafkaError::Fenced { operation: "commit a transaction", source }
}
