//! What the store holds, read back: its tables as of one moment, and their rows as the engine takes them in. Changes
//! nothing.

use anyhow::{Context, Result};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::StreamExt;

use crate::model::batch::Samples;
use crate::model::series::{Interner, SeriesId};
use crate::model::time::EventTime;
use crate::store::Store;
use crate::store::columns::{self, LateRow};
use crate::stream::Source;

/// Opens the tables of a store, as of now, for reading back.
pub fn session(store: &Store) -> Result<SessionContext> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for (name, table) in store.pin() {
        context.register_table(name.as_str(), table)?;
    }
    Ok(context)
}

pub fn time(at: EventTime) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(at.as_micros()), Some("UTC".into())))
}

/// Takes stored series into an interner: those that `wanted` says.
pub async fn intern(interner: &mut Interner, stored: DataFrame, wanted: impl Fn(SeriesId) -> bool) -> Result<()> {
    each_batch(stored, |batch| {
        columns::each_series(batch, |id, described, _| {
            if wanted(id) {
                interner.restore(id, described);
            }
        })?;
        Ok(())
    })
    .await
    .context("failed to read the stored series")
}

/// Returns the stored samples of a batch under the numbers that an interner has for their series.
pub fn samples(interner: &Interner, batch: &RecordBatch) -> Result<Samples> {
    let ids = column(batch, "series_id")?.as_primitive::<Int64Type>();
    let ts = column(batch, "ts")?.as_primitive::<TimestampMicrosecondType>();
    let values = column(batch, "value")?.as_primitive::<Float64Type>();
    let mut samples = Samples::default();
    for row in 0..batch.num_rows() {
        let series = interner.find(SeriesId(ids.value(row))).context("a stored sample has no stored series")?;
        samples.push(series, EventTime::from_micros(ts.value(row)), values.value(row));
    }
    Ok(samples)
}

/// Returns the rows of a batch of the table `late`.
pub fn late_rows(batch: &RecordBatch) -> Result<Vec<LateRow>> {
    let words = |name| Ok::<_, anyhow::Error>(column(batch, name)?.as_string::<i32>());
    let time = |name| Ok::<_, anyhow::Error>(column(batch, name)?.as_primitive::<TimestampMicrosecondType>());
    let (views, topics, events) = (words("view")?, words("topic")?, words("event_id")?);
    let (ts, closed_through) = (time("ts")?, time("closed_through")?);
    let partitions = column(batch, "partition")?.as_primitive::<Int32Type>();
    let offsets = column(batch, "offset")?.as_primitive::<Int64Type>();
    let series = column(batch, "series_id")?.as_primitive::<Int64Type>();
    let values = column(batch, "value")?.as_primitive::<Float64Type>();
    let row = |row: usize| LateRow {
        view: views.value(row).to_owned(),
        ts: EventTime::from_micros(ts.value(row)),
        closed_through: EventTime::from_micros(closed_through.value(row)),
        topic: topics.value(row).to_owned(),
        partition: partitions.value(row),
        offset: offsets.value(row),
        series_id: series.is_valid(row).then(|| series.value(row)),
        value: values.is_valid(row).then(|| values.value(row)),
        event_id: events.is_valid(row).then(|| events.value(row).to_owned()),
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Returns the table that the rows of a source are in.
pub fn table_of(source: Source) -> &'static str {
    match source {
        Source::Metrics => "samples",
        Source::Events => "events",
    }
}

/// Stored rows of `[from, to)`, either end open where it is none.
pub struct Slice {
    pub from: Option<EventTime>,
    pub to: Option<EventTime>,
}

impl Slice {
    pub async fn of(&self, context: &SessionContext, table: &str) -> Result<DataFrame> {
        let mut rows = context.table(table).await?;
        if let Some(from) = self.from {
            rows = rows.filter(col("ts").gt_eq(time(from)))?;
        }
        if let Some(to) = self.to {
            rows = rows.filter(col("ts").lt(time(to)))?;
        }
        Ok(rows)
    }
}

/// Returns a column of a stored table.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).with_context(|| format!("the stored table has no column {name}"))
}

/// Gives each batch of a query to a function, one at a time, so that memory stays flat.
pub async fn each_batch(frame: DataFrame, mut f: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
    let mut stream = frame.execute_stream().await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        if batch.num_rows() > 0 {
            f(&batch)?;
        }
    }
    Ok(())
}
