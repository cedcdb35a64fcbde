//! The rows of dimension tables, read from their files at start.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;

use crate::stream::definition::Dimension;
use crate::stream::dimension::Table;

/// A dimension table is held in memory, beside every series it is joined with.
const FILE_BYTES_MAX: u64 = 256 << 20;
const BATCH_ROWS: usize = 65_536;

/// Reads the rows of every dimension table.
///
/// # Errors
/// A file that is missing, too large, or does not hold what its declaration says.
pub async fn read(dimensions: &[Dimension]) -> Result<Vec<Table>> {
    let mut tables = Vec::with_capacity(dimensions.len());
    for dimension in dimensions {
        let (schema, header) = dimension.schema().await?;
        let path = path(dimension);
        let rows = rows(&path, &schema, &dimension.format, header);
        let rows = rows.with_context(|| format!("failed to read table {} from {}", dimension.name, path.display()))?;
        tables.push(Table { name: dimension.name.clone(), rows });
    }
    Ok(tables)
}

/// A location is relative to the folder of the file that names it.
fn path(dimension: &Dimension) -> PathBuf {
    let folder = Path::new(&dimension.file).parent().unwrap_or(Path::new(""));
    folder.join(&dimension.location)
}

fn rows(path: &Path, schema: &SchemaRef, format: &str, header: bool) -> Result<RecordBatch> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    anyhow::ensure!(bytes <= FILE_BYTES_MAX, "expected at most {FILE_BYTES_MAX} bytes, got {bytes}");
    let file = BufReader::new(file);
    let batches = match format {
        "CSV" => {
            let reader = arrow::csv::ReaderBuilder::new(Arc::clone(schema)).with_header(header);
            reader.with_batch_size(BATCH_ROWS).build(file)?.collect::<Result<Vec<_>, _>>()?
        }
        _ => {
            let reader = arrow::json::ReaderBuilder::new(Arc::clone(schema)).with_batch_size(BATCH_ROWS);
            reader.build(file)?.collect::<Result<Vec<_>, _>>()?
        }
    };
    Ok(concat_batches(schema, &batches)?)
}
