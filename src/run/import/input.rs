//! Files to be imported: which format they have, what unpacks them, and their lines and rows one after the other.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow, ensure};
use arrow::array::RecordBatch;
use clap::ValueEnum;
use indicatif::ProgressBar;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use xxhash_rust::xxh3::Xxh3;

use crate::ingest::tabular::{Columns, Holds, Layout, Tabular};
use crate::ingest::{self, Bounds, Decoder, Format, Limits, Record};
use crate::model::batch::Decoded;
use crate::model::reject::{Reason, Reject};
use crate::model::series::Interner;
use crate::model::time::EventTime;

const STANDARD_INPUT: &str = "-";
const BUFFER_BYTES: usize = 1 << 20;
const PARQUET_ROWS: usize = 8192;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Prometheus' text format or OpenMetrics (.prom, .om, .openmetrics, .txt).
    Prometheus,
    /// Influx line protocol (.lp, .influx, .line).
    Influx,
    /// Comma-separated values with a header (.csv), or separated by tabs (.tsv).
    Csv,
    /// Parquet (.parquet).
    Parquet,
    /// Samples as JSON, one a line (.json, .jsonl, .ndjson).
    JsonMetrics,
    /// Events as JSON, one a line.
    JsonEvents,
}

impl Form {
    fn of_extension(extension: &str) -> Option<Form> {
        Some(match extension {
            "prom" | "om" | "openmetrics" | "txt" => Form::Prometheus,
            "lp" | "influx" | "line" => Form::Influx,
            "csv" | "tsv" => Form::Csv,
            "parquet" => Form::Parquet,
            "json" | "jsonl" | "ndjson" => Form::JsonMetrics,
            _ => return None,
        })
    }

    /// Returns the table that the rows go to.
    pub fn table(self) -> &'static str {
        if self == Form::JsonEvents { "events" } else { "samples" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A file to be imported, as it is found.
pub struct Input {
    path: PathBuf,
    /// The file's own name.
    pub name: String,
    pub form: Form,
    packing: Packing,
    separator: u8,
    /// None of standard input.
    pub bytes: Option<u64>,
    /// When it was last changed.
    pub changed: Option<EventTime>,
}

impl Input {
    /// Looks at a file. `form` says what it holds; without it, its name.
    pub fn of(path: &Path, form: Option<Form>) -> Result<Input> {
        if path.as_os_str() == STANDARD_INPUT {
            let form = form.context("standard input has no name to tell its format by (hint: add --format)")?;
            ensure!(form != Form::Parquet, "Parquet cannot be read from standard input (hint: name the file)");
            let (path, name) = (path.to_owned(), "standard input".to_owned());
            return Ok(Input {
                path,
                name,
                form,
                packing: Packing::Plain,
                separator: b',',
                bytes: None,
                changed: None,
            });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.with_context(|| format!("{} is no file", path.display()))?;
        let about = path.metadata().with_context(|| format!("failed to read {}", path.display()))?;
        ensure!(about.is_file(), "{} is no file", path.display());
        let (packing, inner) = match name.rsplit_once('.') {
            Some((inner, "gz")) => (Packing::Gzip, inner),
            Some((inner, "zst")) => (Packing::Zstd, inner),
            _ => (Packing::Plain, name.as_str()),
        };
        let extension = inner.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
        let form = form
            .or_else(|| Form::of_extension(&extension))
            .with_context(|| format!("what {name} holds cannot be told by its name (hint: add --format)"))?;
        ensure!(
            form != Form::Parquet || packing == Packing::Plain,
            "{name}: a Parquet file is packed inside (hint: unpack it first)"
        );
        let changed = about.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Ok(Input {
            path: path.to_owned(),
            form,
            packing,
            separator: if extension == "tsv" { b'\t' } else { b',' },
            bytes: Some(about.len()),
            changed: changed.map(|since| EventTime::from_micros(since.as_micros() as i64)),
            name,
        })
    }

    /// Returns a hash of what is in the file and how it is read; none of standard input, which is read only once.
    pub fn digest(&self, columns: &Columns, at: Option<EventTime>) -> Result<Option<u128>> {
        let Some(bytes) = self.bytes else { return Ok(None) };
        let mut hash = Xxh3::new();
        let is_table = matches!(self.form, Form::Csv | Form::Parquet);
        hash.write(format!("{:?} {:?} {at:?}", self.form, is_table.then_some((columns, self.separator))).as_bytes());
        let mut file = BufReader::with_capacity(BUFFER_BYTES, self.file()?.take(bytes));
        loop {
            let read = file.fill_buf()?;
            if read.is_empty() {
                return Ok(Some(hash.digest128()));
            }
            hash.update(read);
            let count = read.len();
            file.consume(count);
        }
    }

    fn file(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("failed to read {}", self.path.display()))
    }

    /// Begins to read.
    pub fn open(&self, columns: &Columns, limits: &Limits, bar: ProgressBar) -> Result<Opened> {
        if self.form == Form::Parquet {
            return Parquet::open(self.file()?, columns, limits, bar, self.bytes.unwrap_or_default())
                .map(Opened::Parquet);
        }
        let packed: Box<dyn Read + Send> = match self.bytes {
            None => Box::new(bar.wrap_read(io::stdin())),
            // What comes to a file meanwhile is not of what was hashed.
            Some(bytes) => Box::new(bar.wrap_read(self.file()?.take(bytes))),
        };
        let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
        let plain: Box<dyn Read + Send> = match self.packing {
            Packing::Plain => Box::new(packed),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(packed)?),
        };
        let decoder = match self.form {
            Form::Csv => return Csv::open(plain, self.separator, columns, limits).map(Opened::Csv),
            Form::Prometheus => ingest::exposition(limits.clone()),
            Form::Influx => ingest::decoder(Format::InfluxLine, limits.clone()),
            Form::JsonMetrics => ingest::decoder(Format::JsonMetrics, limits.clone()),
            Form::JsonEvents | Form::Parquet => ingest::decoder(Format::JsonEvents, limits.clone()),
        };
        let reader: Box<dyn BufRead + Send> = Box::new(BufReader::with_capacity(BUFFER_BYTES, plain));
        Ok(Opened::Lines(Lines { reader, decoder, line: Vec::new(), bytes_max: limits.payload_bytes_max, at: 0 }))
    }
}

/// Where what was read goes.
pub struct Into<'a> {
    /// The time of what has none.
    pub fallback: EventTime,
    pub bounds: Bounds,
    pub interner: &'a mut Interner,
    pub out: &'a mut Decoded,
    /// Takes what is refused: the number of its line or row, from one, why, and what was read.
    pub refused: &'a mut dyn FnMut(u64, Reject, Vec<u8>),
}

/// A file that is being read.
pub enum Opened {
    Lines(Lines),
    Csv(Csv),
    Parquet(Parquet),
}

impl Opened {
    /// Returns what was taken for what, of a table.
    pub fn layout(&self) -> Option<&Layout> {
        match self {
            Opened::Lines(_) => None,
            Opened::Csv(csv) => Some(csv.tabular.layout()),
            Opened::Parquet(parquet) => Some(parquet.tabular.layout()),
        }
    }

    /// Returns how many lines or rows were read.
    pub fn position(&self) -> u64 {
        match self {
            Opened::Lines(lines) => lines.at,
            Opened::Csv(csv) => csv.at,
            Opened::Parquet(parquet) => parquet.at,
        }
    }

    /// Reads the next line or rows; false at the end.
    pub fn next(&mut self, into: &mut Into<'_>) -> Result<bool> {
        match self {
            Opened::Lines(lines) => lines.next(into),
            Opened::Csv(csv) => csv.next(into),
            Opened::Parquet(parquet) => parquet.next(into),
        }
    }
}

pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    decoder: Box<dyn Decoder>,
    line: Vec<u8>,
    bytes_max: usize,
    at: u64,
}

impl Lines {
    fn next(&mut self, into: &mut Into<'_>) -> Result<bool> {
        self.line.clear();
        // One more than may be, for the decoder to refuse it.
        let count = (&mut self.reader).take(self.bytes_max as u64 + 1).read_until(b'\n', &mut self.line)?;
        if count == 0 {
            return Ok(false);
        }
        self.at += 1;
        if count > self.bytes_max && self.line.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n')?;
        }
        let value = self.line.trim_ascii();
        if value.is_empty() {
            return Ok(true);
        }
        let record = Record { value, timestamp: into.fallback, headers: &[] };
        if let Err(reject) = self.decoder.decode(&record, into.bounds, into.interner, into.out) {
            (into.refused)(self.at, reject, value.to_owned());
        }
        Ok(true)
    }
}

pub struct Csv {
    reader: csv::Reader<Capped>,
    ends: Arc<AtomicU64>,
    tabular: Tabular,
    columns: usize,
    record: csv::ByteRecord,
    at: u64,
}

/// Stops reading where one record has no end, as after a quote that nobody closed.
struct Capped {
    inner: Box<dyn Read + Send>,
    read: u64,
    /// Where the last record ended.
    ends: Arc<AtomicU64>,
    bytes_max: u64,
}

impl Read for Capped {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let ends = self.ends.load(Ordering::Relaxed);
        if self.read.saturating_sub(ends) > self.bytes_max {
            let max = self.bytes_max;
            return Err(io::Error::other(format!(
                "the row that begins at byte {ends} does not end within {max} bytes (hint: is a quote not closed?)"
            )));
        }
        let count = self.inner.read(to)?;
        self.read += count as u64;
        Ok(count)
    }
}

impl Csv {
    fn open(inner: Box<dyn Read + Send>, separator: u8, columns: &Columns, limits: &Limits) -> Result<Csv> {
        let ends = Arc::new(AtomicU64::new(0));
        let bytes_max = limits.payload_bytes_max as u64 + BUFFER_BYTES as u64;
        let capped = Capped { inner, read: 0, ends: ends.clone(), bytes_max };
        let mut reader = csv::ReaderBuilder::new().flexible(true).delimiter(separator).from_reader(capped);
        let header: Vec<String> = reader.headers()?.iter().map(|name| name.trim().to_owned()).collect();
        let names: Vec<&str> = header.iter().map(String::as_str).collect();
        let layout = columns.find(&names, |_| Holds::Text)?;
        let tabular = Tabular::new(layout, limits.clone());
        Ok(Csv { reader, ends, tabular, columns: names.len(), record: csv::ByteRecord::new(), at: 0 })
    }

    fn next(&mut self, into: &mut Into<'_>) -> Result<bool> {
        if !self.reader.read_byte_record(&mut self.record)? {
            return Ok(false);
        }
        self.at += 1;
        self.ends.store(self.reader.position().byte(), Ordering::Relaxed);
        let (got, columns) = (self.record.len(), self.columns);
        let taken = if got == columns {
            match csv::StringRecord::from_byte_record(std::mem::take(&mut self.record)) {
                Ok(cells) => {
                    let taken = self.tabular.csv(&cells, into.bounds, into.interner, into.out);
                    self.record = cells.into_byte_record();
                    taken
                }
                Err(error) => {
                    let message = format!("expected UTF-8 text: {}", error.utf8_error());
                    self.record = error.into_byte_record();
                    Err(Reject::new(Reason::Encoding, message))
                }
            }
        } else {
            Err(Reject::new(Reason::Syntax, format!("expected {columns} cells, got {got}")))
        };
        if let Err(reject) = taken {
            let line = self.record.position().map_or(self.at, csv::Position::line);
            (into.refused)(line, reject, written(&self.record));
        }
        Ok(true)
    }
}

fn written(record: &csv::ByteRecord) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let _ = writer.write_byte_record(record);
    writer.into_inner().unwrap_or_default().trim_ascii_end().to_owned()
}

pub struct Parquet {
    batches: ParquetRecordBatchReader,
    tabular: Tabular,
    rows: u64,
    bytes: u64,
    bar: ProgressBar,
    at: u64,
}

impl Parquet {
    fn open(file: File, columns: &Columns, limits: &Limits, bar: ProgressBar, bytes: u64) -> Result<Parquet> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let schema = builder.schema().clone();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let layout = columns.find(&names, |at| Holds::of(schema.field(at).data_type()))?;
        let rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
        let batches = builder.with_batch_size(PARQUET_ROWS).build()?;
        Ok(Parquet { batches, tabular: Tabular::new(layout, limits.clone()), rows, bytes, bar, at: 0 })
    }

    fn next(&mut self, into: &mut Into<'_>) -> Result<bool> {
        let Some(batch) = self.batches.next().transpose()? else { return Ok(false) };
        let before = self.at;
        let refused = &mut *into.refused;
        let refused = |row: usize, reject| refused(before + row as u64 + 1, reject, as_json(&batch.slice(row, 1)));
        self.tabular
            .batch(&batch, into.bounds, into.interner, into.out, refused)
            .map_err(|error| anyhow!(error).context("a column cannot be read as what it should be"))?;
        self.at += batch.num_rows() as u64;
        self.bar.set_position((self.bytes as f64 * self.at as f64 / self.rows.max(1) as f64) as u64);
        Ok(true)
    }
}

fn as_json(row: &RecordBatch) -> Vec<u8> {
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    let _ = writer.write(row);
    writer.into_inner().trim_ascii_end().to_owned()
}
