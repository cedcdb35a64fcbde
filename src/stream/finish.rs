//! From the groups of a closed window to the rows of its view.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, Scalar, TimestampMicrosecondArray};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

use super::operand::{evaluate, holds};
use super::per_window::WindowQuery;
use super::plan::WINDOW_COLUMNS;
use super::window::Window;
use crate::model::time::{EventTime, Span};

/// The name under which a query over a window reads the groups.
pub(super) const GROUPS: &str = "groups_of_the_window";

/// A column of the aggregate's output that is not an aggregate.
#[derive(Clone, Copy)]
pub(super) enum GroupColumn {
    WindowStart,
    WindowEnd,
    Key(usize),
}

/// A column of the aggregate's output that is one. By number among the view's aggregates.
#[derive(Clone, Copy)]
pub(super) enum Output {
    Plain(usize),
    /// A quantile of a sketch that several quantiles share.
    Quantile(usize, f64),
}

/// What is done with the groups of a window.
pub(super) enum Step {
    /// HAVING.
    Keep(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    Query(WindowQuery),
}

pub(super) struct Finish {
    pub groups: Vec<GroupColumn>,
    pub outputs: Vec<Output>,
    pub aggregated: SchemaRef,
    pub steps: Vec<Step>,
    pub schema: SchemaRef,
}

/// The groups of windows before, for functions that look back.
#[derive(Default)]
pub(super) struct History {
    windows: VecDeque<(EventTime, RecordBatch)>,
}

impl History {
    /// Keeps the rows of a window, where they fit below a bound of bytes; returns how many did not.
    pub fn push(&mut self, end: EventTime, rows: RecordBatch, bytes_max: usize) -> u64 {
        if self.bytes().saturating_add(rows.get_array_memory_size()) > bytes_max {
            return rows.num_rows() as u64;
        }
        self.windows.push_back((end, rows));
        0
    }

    /// Forgets the windows that end at or before `horizon`.
    pub fn forget_through(&mut self, horizon: EventTime) {
        while self.windows.pop_front_if(|(end, _)| *end <= horizon).is_some() {}
    }

    /// Returns the windows there are, cut as a view cuts time.
    pub fn windows(&self, by: &Window) -> Vec<Span> {
        self.windows.iter().map(|(end, _)| by.ending(*end)).collect()
    }

    /// Returns the rows of the windows that end in `(after, through]`.
    pub fn between(&self, after: EventTime, through: EventTime) -> Vec<RecordBatch> {
        let within = self.windows.iter().filter(|(end, _)| after < *end && *end <= through);
        within.map(|(_, rows)| rows.clone()).collect()
    }

    pub fn rows(&self) -> Vec<RecordBatch> {
        self.windows.iter().map(|(_, rows)| rows.clone()).collect()
    }

    pub fn bytes(&self) -> usize {
        self.windows.iter().map(|(_, rows)| rows.get_array_memory_size()).sum()
    }
}

impl Finish {
    /// Tells whether rows depend on the windows before.
    pub fn looks_back(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Query(query) if query.looks_back))
    }

    /// Puts bounds, keys and results into the columns of the aggregate.
    pub fn groups(&self, bounds: [ArrayRef; 2], keys: &[ArrayRef], results: &[ArrayRef]) -> Result<RecordBatch> {
        let [start, end] = bounds;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.aggregated.fields().len());
        for group in &self.groups {
            columns.push(match group {
                GroupColumn::WindowStart => Arc::clone(&start),
                GroupColumn::WindowEnd => Arc::clone(&end),
                GroupColumn::Key(at) => Arc::clone(&keys[*at]),
            });
        }
        for output in &self.outputs {
            columns.push(match output {
                Output::Plain(at) => Arc::clone(&results[*at]),
                Output::Quantile(at, q) => crate::query::functions::hdr_quantile_of(&results[*at], *q)?,
            });
        }
        named(&self.aggregated, columns)
    }

    /// Turns the groups of a window into the rows of the view. `before` has the groups of earlier windows.
    pub async fn rows(&self, window: Span, groups: RecordBatch, before: Vec<RecordBatch>) -> Result<RecordBatch> {
        let mut rows = groups;
        for step in &self.steps {
            rows = match step {
                Step::Keep(condition) => filter_record_batch(&rows, &holds(&evaluate(condition, &rows)?)?)?,
                Step::Project(exprs, schema) => {
                    let columns = exprs.iter().map(|expr| evaluate(expr, &rows));
                    named(schema, columns.collect::<Result<_>>()?)?
                }
                Step::Query(query) => {
                    let all = before.iter().cloned().chain([rows]).collect();
                    let rows = query.run([(GROUPS, all)]).await?;
                    if query.looks_back { of_window(rows, window)? } else { rows }
                }
            };
        }
        stored(&self.schema, &rows)
    }
}

/// Keeps the rows of one window.
pub(super) fn of_window(rows: RecordBatch, window: Span) -> Result<RecordBatch> {
    let Some(ends) = rows.column_by_name(WINDOW_COLUMNS[1]) else { return Ok(rows) };
    let ends = cast(ends, &timestamp())?;
    let end = Scalar::new(TimestampMicrosecondArray::from(vec![window.end.as_micros()]).with_timezone("UTC"));
    Ok(filter_record_batch(&rows, &eq(&ends, &end)?)?)
}

/// Puts rows under the types a view's table keeps.
pub(super) fn stored(schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch> {
    let fields = schema.fields().iter().zip(rows.columns());
    let columns = fields.map(|(field, column)| cast(column, field.data_type()));
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect::<Result<_, _>>()?, &options)?)
}

/// Returns the columns of a view's table, given those of its query.
pub(super) fn stored_schema(query: &Schema) -> SchemaRef {
    let fields = query.fields().iter().map(|field| Field::new(field.name(), storable(field.data_type()), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

pub(super) fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The type a column is kept under: Delta has signed integers, microseconds and plain strings.
fn storable(of: &DataType) -> DataType {
    use DataType::{Binary, Boolean, Date32, Float16, Float32, Float64, Int8, Int16, Int32, Int64, Timestamp, Utf8};
    match of {
        Int8 | Int16 | Int32 | Int64 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            Int64
        }
        Float16 | Float32 | Float64 | DataType::Decimal128(..) => Float64,
        Timestamp(..) => timestamp(),
        Boolean => Boolean,
        Date32 => Date32,
        Binary | DataType::LargeBinary | DataType::BinaryView => Binary,
        DataType::Map(..) => of.clone(),
        _ => Utf8,
    }
}

/// Puts columns under the names of a schema, whatever it says of their nullability.
fn named(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        schema.fields().iter().zip(&columns).map(|(f, c)| Field::new(f.name(), c.data_type().clone(), true)).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
