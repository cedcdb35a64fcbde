//! What it costs that commits to a folder are durable: the same commits with and without, side by side. `TMPDIR` picks the
//! disk.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use arrow::array::{Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use bellwether::store::{Settings, Store, columns};

use super::measure::Results;
use super::records::START_MS;

const COMMITS: i64 = 40;
const ROWS: i64 = 20_000;

pub fn run(filter: &str, results: &mut Results) -> Result<()> {
    if !"store/commit".contains(filter) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..4 {
        let durable = round % 2;
        took[durable].extend(runtime.block_on(commits(durable == 1))?);
    }
    let [plain, durable] = took;
    results.add("store/commit_20k_rows", "ms", plain);
    results.add("store/commit_20k_rows_durable", "ms", durable);
    Ok(())
}

/// Returns how long each commit took, in ms.
async fn commits(durable: bool) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    let url = folder.path().display().to_string();
    let store = Store::open(&Settings { url, durable, ..Settings::default() }, columns::record_tables()).await?;
    let schema = store.schema("samples")?;
    let mut took = Vec::new();
    for number in 0..COMMITS {
        let rows = 0..ROWS;
        let at = |row: i64| START_MS * 1000 + (number * ROWS + row) * 1000;
        let columns = schema.fields().iter().map(|field| -> Result<arrow::array::ArrayRef> {
            Ok(match field.name().as_str() {
                "series_id" => Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row % 100))),
                "ts" => {
                    Arc::new(TimestampMicrosecondArray::from_iter_values(rows.clone().map(at)).with_timezone("UTC"))
                }
                "value" => Arc::new(Float64Array::from_iter_values(rows.clone().map(|row| row as f64))),
                other => anyhow::bail!("samples have a column {other} now"),
            })
        });
        let batch = RecordBatch::try_new(schema.clone(), columns.collect::<Result<_>>()?)?;
        store.append("samples", Some(batch), &[("bench/0", number + 1)])?;
        let begun = Instant::now();
        store.commit().await.context("a commit failed")?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(took)
}
