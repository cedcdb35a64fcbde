//! What instances tell the one that closes windows, as Kafka records: partial states, and promises. Sends nothing.
//!
//! Both travel in the transaction that commits the offsets they cover, promises after the states.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};

use crate::kafka::sink::Outgoing;
use crate::model::time::EventTime;
use crate::run::incoming::Incoming;
use crate::stream::partial::Increment;

/// Larger records are sent in halves, as brokers take about a million bytes in one.
const RECORD_BYTES_MAX: usize = 768 << 10;
/// The headers: which aggregation partial states are of, and the time that none of them reaches.
const PASS: &str = "pass";
const BEFORE: &str = "before";

/// How far a partition has come, by the word of its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    #[serde(rename = "t")]
    pub topic: String,
    #[serde(rename = "p")]
    pub partition: i32,
    /// No row before this will come any more, but for late ones; none where no row was seen yet.
    #[serde(rename = "w")]
    pub through_micros: Option<i64>,
    /// Whether it is silent, and stands aside.
    #[serde(rename = "i")]
    pub is_idle: bool,
}

/// A record of the topic, read.
pub enum Letter {
    States(Increment),
    Promises(Vec<Promise>),
}

/// Makes records of what was gathered, and of the promises that hold once it is sent.
pub fn records(topic: &str, from: &str, increments: Vec<Increment>, promises: &[Promise]) -> Result<Vec<Outgoing>> {
    let mut records = Vec::new();
    for increment in increments {
        states(topic, from, &increment.pass, increment.before, &increment.rows, &mut records)?;
    }
    let payload = Some(serde_json::to_vec(promises)?);
    records.push(Outgoing { topic: topic.to_owned(), key: from.as_bytes().to_vec(), payload, headers: Vec::new() });
    Ok(records)
}

fn states(
    topic: &str,
    from: &str,
    pass: &str,
    before: EventTime,
    rows: &RecordBatch,
    records: &mut Vec<Outgoing>,
) -> Result<()> {
    let mut writer = StreamWriter::try_new(Vec::new(), rows.schema_ref())?;
    writer.write(rows)?;
    let bytes = writer.into_inner()?;
    if bytes.len() > RECORD_BYTES_MAX && rows.num_rows() > 1 {
        let half = rows.num_rows() / 2;
        states(topic, from, pass, before, &rows.slice(0, half), records)?;
        return states(topic, from, pass, before, &rows.slice(half, rows.num_rows() - half), records);
    }
    let before = before.as_micros().to_string();
    records.push(Outgoing {
        topic: topic.to_owned(),
        key: from.as_bytes().to_vec(),
        payload: Some(bytes),
        headers: vec![(PASS.to_owned(), pass.as_bytes().to_vec()), (BEFORE.to_owned(), before.into_bytes())],
    });
    Ok(())
}

/// Reads a record.
///
/// # Errors
/// One that [`records`] did not make.
pub fn read(record: &impl Incoming) -> Result<Letter> {
    let value = record.value().context("a record without a value")?;
    let headers: BTreeMap<&str, &[u8]> =
        record.headers().into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let Some(pass) = headers.get(PASS) else {
        return Ok(Letter::Promises(serde_json::from_slice(value).context("a record that holds no promises")?));
    };
    let before = headers.get(BEFORE).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let before = EventTime::from_micros(before.context("partial states that do not say of when they are")?);
    let rows = StreamReader::try_new(value, None)?.next().context("partial states without rows")??;
    Ok(Letter::States(Increment { pass: String::from_utf8_lossy(pass).into_owned(), before, rows }))
}
