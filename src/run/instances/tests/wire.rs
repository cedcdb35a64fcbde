//! What travels between instances comes out as it went in.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};

use super::super::wire::{self, Letter, Promise};
use crate::kafka::sink::Outgoing;
use crate::model::time::EventTime;
use crate::run::incoming::Incoming;
use crate::stream::partial::Increment;

/// A record as it comes back from its topic.
struct Carried(Arc<str>, Outgoing);

impl Incoming for Carried {
    fn topic(&self) -> &Arc<str> {
        &self.0
    }

    fn partition(&self) -> i32 {
        0
    }

    fn offset(&self) -> i64 {
        0
    }

    fn timestamp_ms(&self) -> Option<i64> {
        None
    }

    fn key(&self) -> Option<&[u8]> {
        Some(&self.1.key)
    }

    fn value(&self) -> Option<&[u8]> {
        self.1.payload.as_deref()
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        self.1.headers.iter().map(|(name, value)| (name.as_str(), Some(value.as_slice()))).collect()
    }
}

fn increment(rows: i64) -> Increment {
    let times = Arc::new(Int64Array::from_iter_values(0..rows));
    let texts = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{row:0>100}"))));
    let rows = RecordBatch::try_from_iter([("from", times.clone() as _), ("to", times as _), ("c2", texts as _)]);
    Increment { pass: "abc".to_owned(), before: EventTime::from_micros(42), rows: rows.unwrap() }
}

#[test]
fn states_and_promises_come_out_as_they_went_in_however_large() {
    let promise =
        |partition, through_micros| Promise { topic: "t".to_owned(), partition, through_micros, is_idle: true };
    let promises = vec![promise(0, None), promise(1, Some(-5))];
    for (rows, records) in [(1, 2), (100, 2), (20_000, 5)] {
        let sent = wire::records("partials", "a", vec![increment(rows)], &promises).unwrap();
        assert_eq!(sent.len(), records, "{rows} rows");
        let mut read = Vec::new();
        for record in sent {
            assert!(record.payload.as_ref().is_some_and(|payload| payload.len() < 1_000_000));
            match wire::read(&Carried("partials".into(), record)).unwrap() {
                Letter::States(Increment { pass, before, rows }) => {
                    assert_eq!((pass.as_str(), before.as_micros()), ("abc", 42));
                    read.push(rows);
                }
                Letter::Promises(told) => assert_eq!(told, promises),
            }
        }
        let whole = arrow::compute::concat_batches(&read[0].schema(), &read).unwrap();
        assert_eq!(whole, increment(rows).rows);
    }
}

#[test]
fn a_record_that_is_none_of_ours_is_refused() {
    let record = |payload: &[u8], headers: &[(&str, &[u8])]| Outgoing {
        topic: "partials".to_owned(),
        key: Vec::new(),
        payload: Some(payload.to_vec()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect(),
    };
    for (record, why) in [
        (record(b"{", &[]), "a record that holds no promises"),
        (record(b"x", &[("pass", b"a")]), "partial states that do not say of when they are"),
        (record(b"x", &[("pass", b"a"), ("before", b"1")]), ""),
        (Outgoing { payload: None, ..record(b"", &[]) }, "a record without a value"),
    ] {
        let refused = wire::read(&Carried("partials".into(), record)).err().expect("it should be refused");
        assert!(refused.to_string().contains(why), "{refused}");
    }
}
