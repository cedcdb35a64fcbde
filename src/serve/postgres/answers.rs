//! Rows on their way to a client of Postgres: each column in the type that its clients know.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions as TextOptions};
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch, into_pg_type};
use futures::{Stream, StreamExt as _, stream};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse, Response};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;

use super::statements::refused;
use crate::query::QueryError;

/// Answers with rows as they come.
pub(super) fn respond<E>(
    schema: &SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, E>> + Send + 'static,
    format: &Format,
) -> PgWireResult<Response>
where
    QueryError: From<E>,
    E: Send + 'static,
{
    let fields = Arc::new(fields(schema, format)?);
    let of_rows = fields.clone();
    let rows = batches.then(move |batch| {
        let fields = of_rows.clone();
        async move {
            let batch = batch.map_err(|error| refused(error.into()))?;
            // Encoding is pure computation: not on a thread that serves connections.
            let encoded = tokio::task::spawn_blocking(move || encode(&fields, &batch)).await;
            encoded.unwrap_or_else(|panicked| Err(PgWireError::ApiError(Box::new(panicked))))
        }
    });
    let rows = rows.flat_map(|encoded| match encoded {
        Ok(rows) => stream::iter(rows.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    });
    Ok(Response::Query(QueryResponse::new(fields, rows)))
}

/// Returns what clients are told of the columns.
pub(super) fn fields(schema: &Schema, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    if let Format::Individual(codes) = format
        && codes.len() != schema.fields().len()
    {
        let message = format!("expected a format for each of {} columns, got {}", schema.fields().len(), codes.len());
        let error = ErrorInfo::new("ERROR".to_owned(), "08P01".to_owned(), message);
        return Err(PgWireError::UserError(Box::new(error)));
    }
    let fields = arrow_schema_to_pg_fields(&known(schema), format, None)?;
    let described = fields.into_iter().zip(schema.fields()).enumerate().map(|(at, (info, field))| {
        if !matches!(field.data_type(), DataType::Map(..)) {
            return info;
        }
        let json = FieldInfo::new(field.name().clone(), None, None, Type::JSON, format.format_for(at));
        json.with_format_options(info.format_options().clone())
    });
    Ok(described.collect())
}

fn encode(fields: &Arc<Vec<FieldInfo>>, batch: &RecordBatch) -> PgWireResult<Vec<DataRow>> {
    let failed = |error: ArrowError| PgWireError::ApiError(Box::new(error));
    let columns = batch.columns().iter().zip(batch.schema_ref().fields()).zip(fields.iter());
    let columns = columns.map(|((column, field), info)| {
        let is_ours = matches!(field.data_type(), DataType::Timestamp(..) | DataType::Float64);
        if is_known(field.data_type()) && !(is_ours && info.format() == FieldFormat::Text) {
            return Ok((field.clone(), column.clone()));
        }
        Ok((Arc::new(Field::new(field.name(), DataType::Utf8, true)), text(column)?))
    });
    let (fields_of, columns): (Vec<_>, Vec<_>) =
        columns.collect::<Result<Vec<_>, _>>().map_err(failed)?.into_iter().unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch =
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields_of)), columns, &options).map_err(failed)?;
    encode_recordbatch(fields.clone(), batch).collect()
}

/// Returns the schema with text in the place of every type that Postgres has no name for.
fn known(schema: &Schema) -> Schema {
    let known = |field: &Arc<Field>| match is_known(field.data_type()) {
        true => field.clone(),
        false => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
    };
    Schema::new(schema.fields().iter().map(known).collect::<Vec<_>>())
}

fn is_known(kind: &DataType) -> bool {
    match kind {
        // These it would write as other values than they are where they are absent, or not at all.
        DataType::Interval(_) | DataType::Decimal256(..) => false,
        DataType::Struct(_) => false,
        DataType::List(item) if !is_known(item.data_type()) => false,
        kind => into_pg_type(kind).is_ok(),
    }
}

/// Returns a column as text: a map as a JSON object, times and numbers as Postgres writes them, all else as on a terminal.
fn text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if let Some(numbers) = column.as_primitive_opt::<Float64Type>() {
        return Ok(Arc::new(numbers.iter().map(|value| value.map(number)).collect::<StringArray>()));
    }
    // Arrow writes a time in the zone of its column.
    let in_utc = match column.data_type() {
        DataType::Timestamp(unit, Some(zone)) if &**zone != "UTC" => {
            Some(cast(column, &DataType::Timestamp(*unit, Some("UTC".into())))?)
        }
        _ => None,
    };
    let column = in_utc.as_ref().unwrap_or(column);
    let mut texts = StringBuilder::with_capacity(column.len(), column.len() * 16);
    let is_map = matches!(column.data_type(), DataType::Map(_, _));
    // As Postgres writes times: no fraction where there is none, and the hours from UTC.
    let options = TextOptions::default()
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f+00"));
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.append_null();
        } else if is_map {
            texts.append_value(object(&column.as_map().value(row), &options)?);
        } else {
            texts.append_value(formatter.value(row).to_string());
        }
    }
    Ok(Arc::new(texts.finish()))
}

/// Writes a number in the fewest digits that read as the same, with an exponent where Postgres does.
fn number(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        _ if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ if value == 0.0 || (1e-4..1e15).contains(&value.abs()) => value.to_string(),
        _ => {
            let text = format!("{value:e}");
            if text.contains("e-") { text } else { text.replace('e', "e+") }
        }
    }
}

/// Returns the entries of a map as a JSON object.
fn object(entries: &arrow::array::StructArray, options: &TextOptions<'_>) -> Result<String, ArrowError> {
    let [keys, values] = [0, 1].map(|at| ArrayFormatter::try_new(entries.column(at).as_ref(), options));
    let (keys, values) = (keys?, values?);
    let mut object = serde_json::Map::new();
    for at in 0..entries.len() {
        let value = match entries.column(1).is_null(at) {
            true => serde_json::Value::Null,
            false => values.value(at).to_string().into(),
        };
        object.insert(keys.value(at).to_string(), value);
    }
    Ok(serde_json::Value::Object(object).to_string())
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_written_as_postgres_writes_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (123456789.125, "123456789.125"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (-2.5e300, "-2.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-5"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
            assert!(value.is_nan() || number(value).to_lowercase().parse() == Ok(value));
        }
    }
}
