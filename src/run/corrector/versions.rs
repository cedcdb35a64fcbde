//! What the tables of a view hold of some windows: the newest version of each, in a form that can be compared.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use datafusion::logical_expr::col;
use datafusion::prelude::SessionContext;
use serde_json::Value;

use crate::model::time::{EventTime, Span};
use crate::query::{REVISION, WITHDRAWN};
use crate::run::rows;
use crate::run::stored::{column, each_batch, time};

/// The newest version of a window.
#[derive(Default)]
pub struct Version {
    /// Zero for what was emitted.
    pub revision: i64,
    /// As text, in order of the text.
    pub rows: Vec<String>,
}

/// Returns the newest version that a table has of each window of a run, in the columns of the view.
pub async fn newest(
    context: &SessionContext,
    table: &str,
    schema: &SchemaRef,
    run: &[Span],
) -> Result<BTreeMap<Span, Version>> {
    let mut windows: BTreeMap<Span, Version> = BTreeMap::new();
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(windows) };
    let of_run = col("window_end").between(time(first.end), time(last.end));
    each_batch(context.table(table).await?.filter(of_run)?, |batch| {
        let is_of_run: BooleanArray =
            spans(batch)?.iter().map(|window| Some(run.binary_search(window).is_ok())).collect();
        let batch = filter_record_batch(batch, &is_of_run)?;
        let names = schema.fields().iter().map(|field| batch.schema_ref().index_of(field.name()));
        let rows = batch.project(&names.collect::<Result<Vec<_>, _>>()?)?;
        let revisions = batch.column_by_name(REVISION).map(|of| of.as_primitive::<Int64Type>());
        let withdrawn = batch.column_by_name(WITHDRAWN).map(|of| of.as_boolean());
        for (row, (window, text)) in spans(&batch)?.into_iter().zip(texts(&rows)).enumerate() {
            let revision = revisions.map_or(0, |of| of.value(row));
            let known = windows.entry(window).or_default();
            if revision > known.revision {
                *known = Version { revision, rows: Vec::new() };
            }
            if revision == known.revision && !withdrawn.is_some_and(|of| of.value(row)) {
                known.rows.push(text);
            }
        }
        Ok(())
    })
    .await
    .with_context(|| format!("failed to read the windows of {table}"))?;
    windows.values_mut().for_each(|version| version.rows.sort_unstable());
    Ok(windows)
}

/// Returns the rows of a window as those of a [`Version`].
pub fn comparable(rows: &RecordBatch) -> Vec<String> {
    let mut texts: Vec<String> = texts(rows).collect();
    texts.sort_unstable();
    texts
}

fn spans(batch: &RecordBatch) -> Result<Vec<Span>> {
    let bounds = |name| Ok::<_, anyhow::Error>(column(batch, name)?.as_primitive::<TimestampMicrosecondType>());
    let (starts, ends) = (bounds("window_start")?, bounds("window_end")?);
    let at = EventTime::from_micros;
    Ok((0..batch.num_rows()).map(|row| Span::new(at(starts.value(row)), at(ends.value(row)))).collect())
}

fn texts(batch: &RecordBatch) -> impl Iterator<Item = String> + use<> {
    rows::as_json(batch).into_iter().map(|(_, row)| rounded(row).to_string())
}

/// Takes off what the order of an addition can change.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            Value::String(format!("{:.11e}", number.as_f64().unwrap_or_default()))
        }
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, rounded(value))).collect(),
        Value::Array(values) => values.into_iter().map(rounded).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_an_addition_makes_no_version() {
        let row = |sum: f64| rounded(serde_json::json!({"n": 3, "sums": [sum], "service": "api"}));
        assert_eq!(row(0.1 + 0.2 + 0.3), row(0.3 + 0.2 + 0.1));
        assert_ne!(row(0.6), row(0.600_000_001));
    }
}
