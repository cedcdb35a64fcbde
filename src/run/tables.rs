//! What SQL can read: the tables of a store, the view that puts samples and series together, and what the program knows
//! about itself.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use futures::FutureExt as _;

use crate::query::{Engine, Pin, Pinned, Settings, SystemTable};
use crate::store::{Store, columns};

/// The view that joins samples with what their series say.
const METRICS_VIEW: &str = "SELECT s.ts, r.name, r.labels, s.value, r.kind, r.unit, s.series_id \
                            FROM samples s JOIN series r ON s.series_id = r.series_id";

/// Makes the engine that answers from a store. `about`: tables of the schema `system` beside what the store says of itself.
pub fn engine(settings: Settings, store: Arc<Store>, about: Vec<SystemTable>) -> Result<Engine> {
    let has_metrics = ["samples", "series"].iter().all(|table| store.schema(table).is_ok());
    let views = has_metrics.then(|| ("metrics".to_owned(), METRICS_VIEW.to_owned())).into_iter().collect();
    let pin: Pin = Arc::new(move || {
        let of_series = store.clone();
        let series =
            async move { of_series.series().await.map_err(|failed| DataFusionError::External(Box::new(failed))) };
        Pinned {
            tables: store.pin(),
            series: has_metrics.then_some(series.boxed()),
            system: about.iter().cloned().chain([files(store.clone())]).collect(),
        }
    });
    Ok(Engine::new(settings, pin, views)?)
}

/// Returns `system.files`: every live file of every table.
fn files(store: Arc<Store>) -> SystemTable {
    let schema = Arc::new(Schema::new(vec![
        Field::new("table", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("bytes", DataType::Int64, false),
        Field::new("oldest", columns::timestamp(), true),
        Field::new("newest", columns::timestamp(), true),
    ]));
    let rows = {
        let schema = schema.clone();
        move |_: &[Expr]| {
            let files = store.files();
            let time = |of: fn((i64, i64)) -> i64| -> ArrayRef {
                let times = files.iter().map(|(_, file)| file.times.map(of));
                Arc::new(TimestampMicrosecondArray::from_iter(times).with_timezone("UTC"))
            };
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(files.iter().map(|(table, _)| table))),
                Arc::new(StringArray::from_iter_values(files.iter().map(|(_, file)| &file.path))),
                Arc::new(Int64Array::from_iter_values(files.iter().map(|(_, file)| file.rows as i64))),
                Arc::new(Int64Array::from_iter_values(files.iter().map(|(_, file)| file.bytes as i64))),
                time(|(oldest, _)| oldest),
                time(|(_, newest)| newest),
            ];
            RecordBatch::try_new(schema.clone(), columns)
        }
    };
    SystemTable { name: "files", schema, rows: Arc::new(rows) }
}
