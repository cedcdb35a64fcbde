//! Tables that other programs wrote, CSV or Parquet: each row is a sample, or one for every column of numbers.
//!
//! A row is accepted whole or refused whole. What is neither time, name nor number is a label.

use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::intake::{Intake, Spelling, at, clip};
use super::{Bounds, Limits};
use crate::model::batch::Decoded;
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, Interner, Kind};
use crate::model::time::EventTime;

/// What a column is called where nobody says.
const TIMES: [&str; 5] = ["ts", "time", "timestamp", "_time", "datetime"];
const NAMES: [&str; 3] = ["name", "metric", "__name__"];
const VALUES: [&str; 3] = ["value", "_value", "val"];
/// Columns of an export of `metrics`.
const LABELS: &str = "labels";
const KIND: &str = "kind";
const UNIT: &str = "unit";
const SERIES_ID: &str = "series_id";

/// What is said of the columns of a table. What is not said is told by their names.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    pub time: Option<String>,
    /// The column with the metric's name.
    pub name: Option<String>,
    /// The columns with numbers.
    pub values: Vec<String>,
    /// The metric's name, where no column has it.
    pub metric: Option<String>,
}

/// What a column is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Number,
    /// Text, or what can be written as such.
    Text,
    /// What can be neither name nor label.
    Other,
}

impl Holds {
    /// Returns what a column of a type holds.
    pub fn of(held: &DataType) -> Holds {
        match held {
            held if held.is_numeric() => Holds::Number,
            held if held.is_nested() || matches!(held, DataType::FixedSizeBinary(_)) => Holds::Other,
            _ => Holds::Text,
        }
    }
}

/// Why the columns of a table could not be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnsError {
    #[error("there is no column {column:?}, only {found}")]
    Absent { column: String, found: String },
    #[error("none of the columns {found} is known to be {wanted} (hint: say which with {option})")]
    Untold { wanted: &'static str, option: &'static str, found: String },
}

/// Which column of a table is what, by their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    header: Vec<String>,
    time: usize,
    name: Option<usize>,
    /// The metric's name, or how it begins.
    metric: Option<String>,
    /// With what each adds to the metric's name.
    values: Vec<(usize, Option<String>)>,
    labels: Vec<(usize, String)>,
    left_out: Vec<usize>,
    /// Columns of an export of `metrics`: a map of labels, the kind and the unit.
    map: Option<usize>,
    kind: Option<usize>,
    unit: Option<usize>,
}

impl Columns {
    /// Finds the columns in a header. `holds` tells of a place what its column is known to hold.
    ///
    /// # Errors
    /// A column that is said and not there, or one that must be there and could not be told.
    pub fn find(&self, header: &[&str], holds: impl Fn(usize) -> Holds) -> Result<Layout, ColumnsError> {
        let found = || header.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let place = |column: &str| header.iter().position(|name| *name == column);
        let said = |column: &String| {
            place(column).ok_or_else(|| ColumnsError::Absent { column: column.clone(), found: found() })
        };
        let known = |names: &[&str]| {
            names.iter().find_map(|known| header.iter().position(|name| name.eq_ignore_ascii_case(known)))
        };
        let untold = |wanted, option| ColumnsError::Untold { wanted, option, found: found() };
        let time = match &self.time {
            Some(column) => said(column)?,
            None => known(&TIMES).ok_or_else(|| untold("the time", "--time COLUMN"))?,
        };
        let name = match &self.name {
            Some(column) => Some(said(column)?),
            None if self.metric.is_none() => known(&NAMES),
            None => None,
        };
        let map = place(LABELS);
        let [kind, unit] = [KIND, UNIT].map(|column| map.and_then(|_| place(column)));
        let is_taken = |at: usize| {
            [Some(time), name, map, kind, unit].contains(&Some(at)) || (map.is_some() && header[at] == SERIES_ID)
        };
        let values = match self.values.as_slice() {
            [] => match known(&VALUES) {
                Some(at) => vec![at],
                None => (0..header.len()).filter(|at| !is_taken(*at) && holds(*at) == Holds::Number).collect(),
            },
            said_of => said_of.iter().map(said).collect::<Result<_, _>>()?,
        };
        if values.is_empty() {
            return Err(untold("numbers", "--value COLUMN"));
        }
        let has_name = name.is_some() || self.metric.is_some();
        let is_plain = |at: usize| values.len() == 1 && has_name && VALUES.contains(&&*header[at].to_ascii_lowercase());
        let suffix = |&at: &usize| (at, (!is_plain(at)).then(|| header[at].to_owned()));
        let others = (0..header.len()).filter(|at| !is_taken(*at) && !values.contains(at));
        // What has no name, as the numbers of rows that some write, is no label; nor is what is no text.
        let (labels, left_out): (Vec<usize>, Vec<usize>) =
            others.partition(|at| !header[*at].is_empty() && holds(*at) != Holds::Other);
        Ok(Layout {
            header: header.iter().map(|&name| name.to_owned()).collect(),
            time,
            name,
            metric: self.metric.clone(),
            labels: labels.iter().map(|&at| (at, header[at].to_owned())).collect(),
            left_out,
            values: values.iter().map(suffix).collect(),
            map,
            kind,
            unit,
        })
    }
}

impl fmt::Display for Layout {
    /// Says which column was taken for what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |at: usize| self.header.get(at).map_or("", String::as_str);
        let list = |columns: &mut dyn Iterator<Item = usize>| columns.map(named).collect::<Vec<_>>().join(", ");
        write!(f, "time: {}; numbers: {}", named(self.time), list(&mut self.values.iter().map(|(at, _)| *at)))?;
        if let Some(at) = self.name {
            write!(f, "; name: {}", named(at))?;
        }
        let labels = list(&mut self.map.into_iter().chain(self.labels.iter().map(|(at, _)| *at)));
        if !labels.is_empty() {
            write!(f, "; labels: {labels}")?;
        }
        match self.left_out.as_slice() {
            [] => Ok(()),
            places => {
                let places: Vec<String> = places.iter().map(|at| format!("{:?}", named(*at))).collect();
                write!(f, "; left out: {}", places.join(", "))
            }
        }
    }
}

/// The cells of one row.
trait Row {
    fn time(&self, column: usize) -> Result<EventTime, Reject>;
    /// `None` where there is nothing.
    fn text(&self, column: usize) -> Option<&str>;
    fn number(&self, column: usize) -> Result<Option<f64>, Reject>;
    /// Gives each pair of a map to a function.
    fn pairs<'a>(&'a self, column: usize, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<(), Reject>;
}

/// Reads rows under one layout.
pub struct Tabular {
    limits: Limits,
    layout: Layout,
    spelling: Spelling,
    /// The metric's name with what a column adds to it.
    name: String,
}

impl Tabular {
    const TAG: u8 = b't';

    pub fn new(layout: Layout, limits: Limits) -> Tabular {
        Tabular { limits, layout, spelling: Spelling::default(), name: String::new() }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads the cells of a row of text. Missing cells are empty.
    ///
    /// # Errors
    /// A [`Reject`]; `out` is then as it was before.
    pub fn csv(
        &mut self,
        cells: &csv::StringRecord,
        bounds: Bounds,
        interner: &mut Interner,
        out: &mut Decoded,
    ) -> Result<(), Reject> {
        self.row(&Csv(cells, Default::default()), bounds, interner, out)
    }

    /// Reads all rows of a batch; gives each that is refused to a function, by its place in the batch.
    ///
    /// # Errors
    /// A column whose type cannot be read as what it should be.
    pub fn batch(
        &mut self,
        batch: &RecordBatch,
        bounds: Bounds,
        interner: &mut Interner,
        out: &mut Decoded,
        mut refused: impl FnMut(usize, Reject),
    ) -> Result<(), ArrowError> {
        let columns = Arrays::of(batch, &self.layout)?;
        for row in 0..batch.num_rows() {
            if let Err(reject) = self.row(&ArrayRow { columns: &columns, row }, bounds, interner, out) {
                refused(row, reject);
            }
        }
        Ok(())
    }

    fn row(
        &mut self,
        row: &impl Row,
        bounds: Bounds,
        interner: &mut Interner,
        out: &mut Decoded,
    ) -> Result<(), Reject> {
        let mark = out.mark();
        let mut intake = Intake::new(&self.limits, bounds, interner, out);
        let taken = take(&self.layout, row, &mut self.spelling, &mut self.name, &mut intake);
        if taken.is_err() {
            out.rewind(mark);
        }
        taken
    }
}

fn take(
    layout: &Layout,
    row: &impl Row,
    spelling: &mut Spelling,
    name: &mut String,
    intake: &mut Intake<'_>,
) -> Result<(), Reject> {
    let time = row.time(layout.time)?;
    let metric = match layout.name {
        Some(column) => row.text(column).ok_or_else(|| Reject::new(Reason::Missing, "expected a name, got none"))?,
        None => layout.metric.as_deref().unwrap_or_default(),
    };
    let mut labels = Vec::with_capacity(layout.labels.len());
    let of_columns = layout.labels.iter().filter_map(|(at, name)| Some((name.as_str(), row.text(*at)?)));
    labels.extend(of_columns.filter(|(_, value)| !value.is_empty()));
    if let Some(map) = layout.map {
        row.pairs(map, &mut labels)?;
    }
    let kind = layout.kind.and_then(|at| row.text(at)).and_then(Kind::parse).unwrap_or_default();
    let unit = layout.unit.and_then(|at| row.text(at)).unwrap_or_default();
    spelling.start(Tabular::TAG).part(metric.as_bytes()).part(kind.as_str().as_bytes()).part(unit.as_bytes());
    for (name, value) in &labels {
        spelling.part(name.as_bytes()).part(value.as_bytes());
    }
    let common = spelling.len();
    for (column, suffix) in &layout.values {
        // A NaN is how many say that there is none.
        let Some(value) = row.number(*column)?.filter(|value| !value.is_nan()) else { continue };
        spelling.truncate(common);
        let hash = spelling.part(suffix.as_deref().unwrap_or_default().as_bytes()).hash();
        let series = match intake.recall(hash) {
            Some(series) => series,
            None => {
                name.clear();
                name.push_str(metric);
                if let Some(suffix) = suffix {
                    name.push_str(if metric.is_empty() { "" } else { "_" });
                    name.push_str(suffix);
                }
                intake.intern(hash, &mut Descriptor { name, labels: labels.clone(), kind, unit })?
            }
        };
        intake.sample(series, time, value)?;
    }
    Ok(())
}

/// A row of text. A map of labels is read once it is asked for, and kept beside.
struct Csv<'a>(&'a csv::StringRecord, std::cell::OnceCell<Vec<(String, String)>>);

impl Csv<'_> {
    fn cell(&self, column: usize) -> &str {
        self.0.get(column).unwrap_or_default().trim_ascii()
    }
}

impl Row for Csv<'_> {
    fn time(&self, column: usize) -> Result<EventTime, Reject> {
        time_of(self.cell(column)).map_err(at(format_args!("column {}", column + 1)))
    }

    fn text(&self, column: usize) -> Option<&str> {
        Some(self.cell(column)).filter(|cell| !cell.is_empty())
    }

    fn number(&self, column: usize) -> Result<Option<f64>, Reject> {
        match self.cell(column) {
            cell if is_nothing(cell) => Ok(None),
            cell => cell.parse().map(Some).map_err(|_| no_number(column, cell)),
        }
    }

    fn pairs<'a>(&'a self, column: usize, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<(), Reject> {
        let cell = self.cell(column);
        if cell.is_empty() {
            return Ok(());
        }
        let read: std::collections::BTreeMap<String, String> = serde_json::from_str(cell).map_err(|error| {
            let message = format!("column {}: expected labels as a JSON object of texts: {error}", column + 1);
            Reject::new(Reason::Syntax, message)
        })?;
        let kept = self.1.get_or_init(|| read.into_iter().collect());
        pairs.extend(kept.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        Ok(())
    }
}

fn is_nothing(cell: &str) -> bool {
    matches!(cell, "" | "null" | "NULL")
}

fn no_number(column: usize, cell: &str) -> Reject {
    Reject::new(Reason::Type, format!("column {}: expected a number, got {:?}", column + 1, clip(cell)))
}

/// The columns of a batch, each as what the layout wants of it.
struct Arrays {
    times: ArrayRef,
    texts: Vec<Option<StringArray>>,
    /// With what they were read from, where that is text.
    numbers: Vec<Option<(ArrayRef, Option<StringArray>)>>,
    map: Option<ArrayRef>,
}

impl Arrays {
    fn of(batch: &RecordBatch, layout: &Layout) -> Result<Arrays, ArrowError> {
        let (mut texts, mut numbers) = (vec![None; batch.num_columns()], vec![None; batch.num_columns()]);
        let words = layout.labels.iter().map(|(at, _)| *at).chain(layout.name).chain(layout.kind).chain(layout.unit);
        for at in words {
            texts[at] = Some(cast(batch.column(at), &DataType::Utf8)?.as_string::<i32>().clone());
        }
        for (at, _) in &layout.values {
            let column = batch.column(*at);
            let text = Holds::of(column.data_type()) != Holds::Number;
            let text = text.then(|| cast(column, &DataType::Utf8)).transpose()?;
            numbers[*at] = Some((cast(column, &DataType::Float64)?, text.map(|text| text.as_string::<i32>().clone())));
        }
        let map = layout.map.map(|at| as_map(batch.column(at))).transpose()?;
        Ok(Arrays { times: times_of(batch.column(layout.time))?, texts, numbers, map })
    }
}

/// Returns times, or what times are told by: numbers or texts.
fn times_of(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let strictly = CastOptions { safe: false, ..CastOptions::default() };
    match column.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => cast_with_options(column, &utc, &strictly),
        of if of.is_integer() => cast_with_options(column, &DataType::Int64, &strictly),
        of if of.is_floating() => cast(column, &DataType::Float64),
        _ => cast(column, &DataType::Utf8),
    }
}

fn as_map(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                let plain = |at: usize, nullable| {
                    fields[at].as_ref().clone().with_data_type(DataType::Utf8).with_nullable(nullable)
                };
                let entry = DataType::Struct(vec![plain(0, false), plain(1, true)].into());
                let entries = entries.as_ref().clone().with_data_type(entry);
                cast(column, &DataType::Map(entries.into(), *sorted))
            }
            _ => Err(ArrowError::SchemaError("labels: expected a map of texts".to_owned())),
        },
        other => Err(ArrowError::SchemaError(format!("labels: expected a map of texts, found {other}"))),
    }
}

struct ArrayRow<'a> {
    columns: &'a Arrays,
    row: usize,
}

impl Row for ArrayRow<'_> {
    fn time(&self, _: usize) -> Result<EventTime, Reject> {
        let (times, row) = (&self.columns.times, self.row);
        if times.is_null(row) {
            return Err(Reject::new(Reason::Missing, "expected a time, got none"));
        }
        match times.data_type() {
            DataType::Timestamp(..) => {
                Ok(EventTime::from_micros(times.as_primitive::<TimestampMicrosecondType>().value(row)))
            }
            DataType::Int64 => Ok(EventTime::from_epoch_guess(times.as_primitive::<Int64Type>().value(row))),
            DataType::Float64 => {
                let number = times.as_primitive::<Float64Type>().value(row);
                let refused = || Reject::new(Reason::NotFinite, format!("expected a time, got {number}"));
                EventTime::from_epoch_guess_f64(number).ok_or_else(refused)
            }
            _ => time_of(times.as_string::<i32>().value(row)),
        }
    }

    fn text(&self, column: usize) -> Option<&str> {
        let texts = self.columns.texts[column].as_ref()?;
        texts.is_valid(self.row).then(|| texts.value(self.row))
    }

    fn number(&self, column: usize) -> Result<Option<f64>, Reject> {
        let Some((numbers, text)) = &self.columns.numbers[column] else { return Ok(None) };
        if numbers.is_valid(self.row) {
            return Ok(Some(numbers.as_primitive::<Float64Type>().value(self.row)));
        }
        match text.as_ref().filter(|text| text.is_valid(self.row)).map(|text| text.value(self.row)) {
            Some(text) if !is_nothing(text) => Err(no_number(column, text)),
            _ => Ok(None),
        }
    }

    fn pairs<'a>(&'a self, _: usize, pairs: &mut Vec<(&'a str, &'a str)>) -> Result<(), Reject> {
        let Some(map) = self.columns.map.as_ref().map(|map| map.as_map()).filter(|map| map.is_valid(self.row)) else {
            return Ok(());
        };
        let (keys, values) = (map.keys().as_string::<i32>(), map.values().as_string::<i32>());
        let ends = map.value_offsets();
        let (from, to) = (ends[self.row] as usize, ends[self.row + 1] as usize);
        pairs.extend((from..to).filter(|at| values.is_valid(*at)).map(|at| (keys.value(at), values.value(at))));
        Ok(())
    }
}

/// Reads a time: RFC 3339, a date with or without a time of day in UTC, or a number since the epoch whose unit is told by
/// its size.
fn time_of(text: &str) -> Result<EventTime, Reject> {
    if text.is_empty() {
        return Err(Reject::new(Reason::Missing, "expected a time, got none"));
    }
    let text = text.strip_suffix(" UTC").unwrap_or(text);
    let of_day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    let plain = || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok();
    let zoned = || DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z").ok();
    let iso = || NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").ok();
    let read = text
        .parse()
        .ok()
        .map(EventTime::from_epoch_guess)
        .or_else(|| EventTime::parse_rfc3339(text))
        .or_else(|| {
            plain().or_else(iso).or_else(of_day).map(|at| EventTime::from_micros(at.and_utc().timestamp_micros()))
        })
        .or_else(|| zoned().map(|at| EventTime::from_micros(at.timestamp_micros())))
        .or_else(|| EventTime::from_epoch_guess_f64(text.parse().ok()?));
    let expected = "a time such as 2026-03-01T12:00:00Z or 1772366400";
    read.ok_or_else(|| Reject::new(Reason::Type, format!("expected {expected}, got {:?}", clip(text))))
}
