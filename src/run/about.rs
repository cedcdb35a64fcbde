//! What a running service says of itself, as tables of SQL: what its page of metrics says, and of it what each input brought
//! and how far each partition is behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, MapBuilder, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use crate::query::SystemTable;
use crate::telemetry::{Sample, Telemetry};

/// How the names of our own metrics begin.
const PREFIX: &str = "bellwether_";
/// The columns of `inputs` beside the input, with the counters that they add up.
const OF_INPUTS: [(&str, &str); 6] = [
    ("records", "records_consumed_total"),
    ("bytes", "input_bytes_total"),
    ("decoded", "records_decoded_total"),
    ("rejected", "records_rejected_total"),
    ("series_refused", "series_refused_total"),
    ("deleted_unread", "records_deleted_unread_total"),
];
const LAG: &str = "consumer_lag_records";

/// Returns `system.telemetry`, `system.inputs` and `system.lag`.
pub fn tables(telemetry: &Telemetry) -> Result<Vec<SystemTable>, ArrowError> {
    let table = |name: &'static str, columns: fn(&[Sample]) -> Result<RecordBatch, ArrowError>| {
        let schema: SchemaRef = columns(&[])?.schema();
        let telemetry = telemetry.clone();
        Ok(SystemTable { name, schema, rows: Arc::new(move |_| columns(&telemetry.samples())) })
    };
    [table("telemetry", of_telemetry), table("inputs", of_inputs), table("lag", of_lag)].into_iter().collect()
}

fn of_telemetry(samples: &[Sample]) -> Result<RecordBatch, ArrowError> {
    let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for sample in samples {
        for (name, value) in &sample.labels {
            labels.keys().append_value(name);
            labels.values().append_value(value);
        }
        labels.append(true)?;
    }
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(samples.iter().map(|sample| &sample.name)));
    let values: ArrayRef = Arc::new(Float64Array::from_iter_values(samples.iter().map(|sample| sample.value)));
    RecordBatch::try_from_iter([("name", names), ("labels", Arc::new(labels.finish())), ("value", values)])
}

fn of_inputs(samples: &[Sample]) -> Result<RecordBatch, ArrowError> {
    let mut inputs: BTreeMap<&str, [i64; OF_INPUTS.len()]> = BTreeMap::new();
    for sample in samples {
        let Some(name) = sample.name.strip_prefix(PREFIX) else { continue };
        if let Some(at) = OF_INPUTS.iter().position(|(_, counter)| *counter == name) {
            // One input may have several: its refusals are told apart by their reasons.
            inputs.entry(sample.label("input")).or_default()[at] += sample.value as i64;
        }
    }
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(inputs.keys()));
    let counts = OF_INPUTS.iter().enumerate().map(|(at, (column, _))| {
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(inputs.values().map(|counts| counts[at])));
        (*column, counts)
    });
    RecordBatch::try_from_iter([("input", names)].into_iter().chain(counts))
}

fn of_lag(samples: &[Sample]) -> Result<RecordBatch, ArrowError> {
    let of_partition = |sample: &&Sample| sample.name.strip_prefix(PREFIX) == Some(LAG);
    let lags: Vec<&Sample> = samples.iter().filter(of_partition).collect();
    let partition = |lag: &&Sample| lag.label("partition").parse().unwrap_or(-1);
    let topics: ArrayRef = Arc::new(StringArray::from_iter_values(lags.iter().map(|lag| lag.label("topic"))));
    let partitions: ArrayRef = Arc::new(Int64Array::from_iter_values(lags.iter().map(partition)));
    let records: ArrayRef = Arc::new(Int64Array::from_iter_values(lags.iter().map(|lag| lag.value as i64)));
    RecordBatch::try_from_iter([("topic", topics), ("partition", partitions), ("records", records)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_lags_are_what_was_counted() {
        let telemetry = Telemetry::default();
        telemetry.input.declare("events");
        telemetry.input.consumed("metrics", 10, 900);
        telemetry.input.decoded("metrics", 7);
        telemetry.input.rejected("metrics", "malformed", 2);
        telemetry.input.rejected("metrics", "too_long", 1);
        telemetry.broker.set_lag("metrics", 1, 5);
        let samples = telemetry.samples();
        let inputs = of_inputs(&samples).unwrap();
        let expected: [(&str, ArrayRef); 7] = [
            ("input", Arc::new(StringArray::from(vec!["events", "metrics"]))),
            ("records", Arc::new(Int64Array::from(vec![0, 10]))),
            ("bytes", Arc::new(Int64Array::from(vec![0, 900]))),
            ("decoded", Arc::new(Int64Array::from(vec![0, 7]))),
            ("rejected", Arc::new(Int64Array::from(vec![0, 3]))),
            ("series_refused", Arc::new(Int64Array::from(vec![0, 0]))),
            ("deleted_unread", Arc::new(Int64Array::from(vec![0, 0]))),
        ];
        assert_eq!(inputs, RecordBatch::try_from_iter(expected).unwrap());
        let expected: [(&str, ArrayRef); 3] = [
            ("topic", Arc::new(StringArray::from(vec!["metrics"]))),
            ("partition", Arc::new(Int64Array::from(vec![1]))),
            ("records", Arc::new(Int64Array::from(vec![5]))),
        ];
        assert_eq!(of_lag(&samples).unwrap(), RecordBatch::try_from_iter(expected).unwrap());
        assert_eq!(of_telemetry(&samples).unwrap().num_rows(), samples.len());
    }
}
