//! What stands in the tables and on the topics when all is over, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::TableProvider;
use datafusion::prelude::SessionContext;
use serde_json::Value;

use super::log::{Meaning, Place, SECOND, Sample};
use super::model::{self, Rows, Transitions};
use crate::kafka::sink::Outgoing;
use crate::kafka::source::Partition;
use crate::store::{self, Store};

type Wrong = Result<(), String>;

/// Everything a reader finds.
pub struct Outcome {
    tables: BTreeMap<String, Vec<Value>>,
    effects: Vec<Outgoing>,
    unsure: Unsure,
}

/// Records of which it was decided twice whether they are late.
pub struct Unsure {
    /// Ahead in the table `late` when a process died.
    pub torn: Vec<(Partition, Range<i64>)>,
    /// Ahead in the effects.
    pub ahead: Vec<(Partition, Range<i64>)>,
}

fn holds(ranges: &[(Partition, Range<i64>)], place: &Place) -> bool {
    let is_in = |(partition, range): &(Partition, Range<i64>)| {
        *partition.topic == *place.0 && partition.partition == place.1 && range.contains(&place.2)
    };
    ranges.iter().any(is_in)
}

impl Outcome {
    /// Reads every table of a store; files may be torn.
    pub async fn read(folder: &Path, effects: Vec<Outgoing>, unsure: Unsure) -> Result<Outcome, String> {
        let settings = store::Settings { url: folder.display().to_string(), ..store::Settings::default() };
        let reading = tokio::spawn(async move {
            let found = Store::inspect(&settings).await.map_err(|error| format!("{error:?}"))?.pin();
            let mut tables = BTreeMap::new();
            for name in found.iter().map(|(name, _)| name.clone()) {
                let rows = table(found.clone(), &name).await?;
                tables.insert(name, rows);
            }
            Ok::<_, String>(tables)
        });
        let tables = reading.await.map_err(|_| "a file cannot be read".to_owned())??;
        Ok(Outcome { tables, effects, unsure })
    }

    /// Returns the effects on all topics as text, sorted: the same whatever the order in which they came.
    pub fn effects(&self) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut all: Vec<String> = self
            .effects
            .iter()
            .map(|effect| {
                // Why a time was refused tells of the time of day, which is the one thing that is not the same again.
                let headers = effect.headers.iter().filter(|(name, _)| !name.ends_with(".exception.message"));
                let headers: Vec<String> = headers.map(|(name, value)| format!("{name}={}", text(value))).collect();
                let payload = text(effect.payload.as_deref().unwrap_or_default());
                format!("{} {} {payload} {}", effect.topic, text(&effect.key), headers.join(" "))
            })
            .collect();
        all.sort();
        all
    }

    fn table(&self, name: &str) -> &[Value] {
        self.tables.get(name).map_or(&[], Vec::as_slice)
    }

    fn on<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a Outgoing> {
        self.effects.iter().filter(move |effect| effect.topic == topic)
    }

    /// Holds everything against a log of which no record is late.
    pub fn check(&self, meaning: &Meaning) -> Wrong {
        self.check_records(meaning)?;
        if let Some(late) = self.table("late").first() {
            return Err(format!("nothing is late, but {late}"));
        }
        let expected = model::expected(meaning);
        for (view, rows) in &expected.views {
            same(view, &self.view(view)?, rows)?;
        }
        same("alerts", &self.transitions()?, &expected.transitions)?;
        self.check_ids()?;
        for table in ["anomalies", "alerts", "decisions"] {
            same(&format!("the topic and the table of {table}"), &self.sent(table)?, &self.recorded(table)?)?;
        }
        same("the topic of load_10s", &self.sent_rows()?, &self.view("load_10s")?)
    }

    /// Holds everything against a log with records that come too late for some windows. What is late depends on the order
    /// in which partitions were read, so the table `late` is taken at its word, and held to it.
    pub fn check_late(&self, meaning: &Meaning) -> Wrong {
        self.check_records(meaning)?;
        self.check_ids()?;
        let late = self.late()?;
        let in_time = |view: &str| {
            let late: BTreeSet<i64> = late.iter().filter(|(v, ..)| v == view).map(|(_, ts, _)| *ts).collect();
            move |ts: i64| !late.contains(&ts)
        };
        for (view, ts, closed_through) in &late {
            let width = if view == "failures_30s" { 30 } else { 10 } * SECOND;
            let end = ts.div_euclid(width) * width + width;
            if (view == "load_10s" || view == "failures_30s") && end > *closed_through {
                return Err(format!("{ts} is called late for {view}, which had closed through {closed_through} only"));
            }
        }
        let (loads, runs) = (&meaning.samples, &meaning.events);
        let is_torn = |place: &Place| holds(&self.unsure.torn, place);
        let unsure = model::load_10s(loads.iter().filter(|sample| is_torn(&sample.place)));
        let sure = |mut rows: Rows| {
            rows.retain(|window, _| !unsure.contains_key(window));
            rows
        };
        let tens = in_time("load_10s");
        let tens = model::load_10s(loads.iter().filter(|sample| tens(sample.ts)));
        let found = self.view("load_10s")?;
        same("load_1m", &self.view("load_1m")?, &model::load_1m(&found))?;
        same("load_10s", &sure(found), &sure(tens))?;
        let unsure = model::failures_30s(runs.iter().filter(|event| is_torn(&event.place)));
        let sure = |mut rows: Rows| {
            rows.retain(|window, _| !unsure.contains_key(window));
            rows
        };
        let thirties = in_time("failures_30s");
        let thirties = model::failures_30s(runs.iter().filter(|event| thirties(event.ts)));
        same("failures_30s", &sure(self.view("failures_30s")?), &sure(thirties))?;
        let sent = self.late_sent()?;
        same("the late rows on their topic", &sent, &self.late_stored()?)?;
        self.check_corrected(meaning)
    }

    /// The newest version of each window has every row, however late it came.
    fn check_corrected(&self, meaning: &Meaning) -> Wrong {
        let tens = model::load_10s(&meaning.samples);
        for (view, rows) in [
            ("load_1m", model::load_1m(&tens)),
            ("load_10s", tens),
            ("load_1m_by_20s", model::load_1m_by_20s(&meaning.samples)),
            ("failures_30s", model::failures_30s(&meaning.events)),
        ] {
            same(&format!("{view}, corrected"), &self.newest(view)?, &rows)?;
        }
        Ok(())
    }

    /// Returns the newest version of each window of a view.
    fn newest(&self, view: &str) -> Result<Rows, String> {
        let window = |row: &Value| Ok::<_, String>((time(row, "window_start")?, time(row, "window_end")?));
        let mut newest: BTreeMap<(i64, i64), (i64, Vec<&Value>)> = BTreeMap::new();
        for row in self.table(view) {
            newest.entry(window(row)?).or_default().1.push(row);
        }
        for row in self.table(&format!("{view}_corrected")) {
            let revision = number(row, "revision")?;
            let known = newest.entry(window(row)?).or_default();
            if revision > known.0 {
                *known = (revision, Vec::new());
            }
            if revision == known.0 && row["withdrawn"] != true {
                known.1.push(row);
            }
        }
        let rows = newest.iter().flat_map(|((start, end), (_, rows))| rows.iter().map(|row| Ok((*start, *end, *row))));
        view_rows(view, rows)
    }

    /// Returns the times of the late rows of `load_10s` on their topic, of records that were decided on once.
    fn late_sent(&self) -> Result<Vec<i64>, String> {
        let rows: Vec<Value> =
            self.on("out.late").filter_map(|e| serde_json::from_slice(e.payload.as_ref()?).ok()).collect();
        self.late_times(&rows)
    }

    fn late_stored(&self) -> Result<Vec<i64>, String> {
        let rows: Vec<Value> = self.table("late").iter().filter(|row| row["view"] == "load_10s").cloned().collect();
        self.late_times(&rows)
    }

    fn late_times(&self, rows: &[Value]) -> Result<Vec<i64>, String> {
        let mut times = Vec::new();
        for row in rows {
            let place: Place = (text(row, "topic")?, number(row, "partition")? as i32, number(row, "offset")?);
            if !holds(&self.unsure.torn, &place) && !holds(&self.unsure.ahead, &place) {
                times.push(time(row, "ts")?);
            }
        }
        times.sort_unstable();
        Ok(times)
    }

    /// Every record stands exactly once where it belongs.
    fn check_records(&self, meaning: &Meaning) -> Wrong {
        let mut series = BTreeMap::new();
        for row in self.table("series") {
            let named = (text(row, "name")?, row["labels"]["service"].as_str().unwrap_or_default().to_owned());
            if series.insert(number(row, "series_id")?, named).is_some() {
                return Err(format!("a series stands twice: {row}"));
            }
        }
        let mut samples = Vec::new();
        for row in self.table("samples") {
            let (name, service) =
                series.get(&number(row, "series_id")?).ok_or_else(|| format!("{row} has no series"))?;
            samples.push((number(row, "ts")?, name.clone(), service.clone(), number(row, "value")?));
        }
        samples.retain(|(_, name, ..)| name != "closing");
        samples.sort();
        let of = |s: &Sample| (s.ts, s.name.to_owned(), s.service.to_owned(), s.value);
        let mut expected: Vec<_> = meaning.samples.iter().map(of).collect();
        expected.sort();
        same("samples", &samples, &expected)?;

        let mut events = Vec::new();
        for row in self.table("events").iter().filter(|row| row["type"] != "closing") {
            events.push((text(row, "id")?, text(row, "subject")?, number(row, "ts")?));
        }
        events.sort();
        let mut expected: Vec<_> = meaning.events.iter().map(|e| (e.id.clone(), e.subject.to_owned(), e.ts)).collect();
        expected.sort();
        same("events", &events, &expected)?;

        let mut rejected = Vec::new();
        for row in self.table("rejected") {
            rejected.push((text(row, "topic")?, number(row, "partition")? as i32, number(row, "offset")?));
        }
        rejected.sort();
        same("rejected", &rejected, &meaning.refused)?;
        let mut letters: Vec<Place> = self.effects.iter().filter_map(place).collect();
        letters.sort();
        same("the dead letters", &letters, &meaning.refused)
    }

    /// No id stands twice, neither in a table nor on a topic. Where late rows are decided on anew and what was said of them
    /// was sent already, an alert may come to the same transition a second time, a tick later: its id tells.
    fn check_ids(&self) -> Wrong {
        for table in ["anomalies", "alerts", "decisions"] {
            self.recorded(table)?;
            if self.unsure.ahead.is_empty() || self.table("late").is_empty() {
                self.sent(table)?;
            }
        }
        for topic in ["out.load", "out.late"] {
            unique(topic, self.on(topic).map(|effect| header(effect, "ce_id")))?;
        }
        Ok(())
    }

    fn sent(&self, table: &str) -> Result<BTreeSet<String>, String> {
        unique(&format!("the topic of {table}"), self.on(&format!("out.{table}")).map(|effect| header(effect, "ce_id")))
    }

    fn recorded(&self, table: &str) -> Result<BTreeSet<String>, String> {
        unique(table, self.table(table).iter().map(|row| text(row, "id")))
    }

    fn view(&self, view: &str) -> Result<Rows, String> {
        view_rows(
            view,
            self.table(view).iter().map(|row| Ok((time(row, "window_start")?, time(row, "window_end")?, row))),
        )
    }

    /// Returns the rows of `load_10s` as its topic has them.
    fn sent_rows(&self) -> Result<Rows, String> {
        let rows: Vec<Value> =
            self.on("out.load").filter_map(|e| serde_json::from_slice(e.payload.as_ref()?).ok()).collect();
        view_rows(
            "the topic of load_10s",
            rows.iter().map(|row| Ok((time(row, "window_start")?, time(row, "window_end")?, row))),
        )
    }

    fn transitions(&self) -> Result<Transitions, String> {
        let mut transitions = Transitions::new();
        for row in self.table("alerts") {
            let key = row["labels"]["key"].as_str().unwrap_or_default().to_owned();
            transitions.insert((text(row, "rule")?, key, text(row, "state")?, number(row, "at")?));
        }
        Ok(transitions)
    }

    /// Returns view, time and how far the view had closed, of every late row.
    fn late(&self) -> Result<BTreeSet<(String, i64, i64)>, String> {
        let mut rows = BTreeMap::new();
        for row in self.table("late") {
            let key = (text(row, "view")?, number(row, "ts")?);
            if rows.insert(key, number(row, "closed_through")?).is_some() {
                return Err(format!("a late row stands twice: {row}"));
            }
        }
        Ok(rows.into_iter().map(|((view, ts), closed)| (view, ts, closed)).collect())
    }
}

fn view_rows<'a>(
    view: &str,
    rows: impl Iterator<Item = Result<(i64, i64, &'a Value), String>>,
) -> Result<Rows, String> {
    let mut found = Rows::new();
    for row in rows {
        let (start, end, row) = row?;
        let columns = ["n", "total", "failures", "top"];
        let numbers = columns.iter().filter(|name| !row[**name].is_null()).map(|name| number(row, name));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        if found.insert((start, end, text(row, "key")?), numbers).is_some() {
            return Err(format!("a row of {view} stands twice: {row}"));
        }
    }
    Ok(found)
}

/// Returns the rows of a table.
pub async fn table(tables: Vec<(String, Arc<dyn TableProvider>)>, name: &str) -> Result<Vec<Value>, String> {
    let found = tables.into_iter().find(|(found, _)| found == name);
    let (_, provider) = found.ok_or_else(|| format!("there is no table {name}"))?;
    let frame = SessionContext::new().read_table(provider).map_err(|error| error.to_string())?;
    let batches = frame.collect().await.map_err(|error| format!("{name}: {error}"))?;
    Ok(batches.iter().flat_map(rows).collect())
}

/// Returns the rows of a batch as JSON objects, times as microseconds.
fn rows(batch: &RecordBatch) -> Vec<Value> {
    let schema = batch.schema();
    let plain = |(field, column): (&Arc<Field>, &arrow::array::ArrayRef)| match field.data_type() {
        DataType::Timestamp(..) => {
            let micros = cast(column, &DataType::Int64).unwrap();
            (Field::new(field.name(), DataType::Int64, true), micros)
        }
        of => (Field::new(field.name(), of.clone(), true), column.clone()),
    };
    let (fields, columns): (Vec<Field>, Vec<_>) = schema.fields().iter().zip(batch.columns()).map(plain).unzip();
    let batch = RecordBatch::try_new(Schema::new(fields).into(), columns).unwrap();
    crate::run::rows::as_json(&batch).into_iter().map(|(_, row)| row).collect()
}

fn text(row: &Value, column: &str) -> Result<String, String> {
    row[column].as_str().map(str::to_owned).ok_or_else(|| format!("{row} has no text {column}"))
}

fn number(row: &Value, column: &str) -> Result<i64, String> {
    let number = row[column].as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64);
    row[column].as_i64().or(number).ok_or_else(|| format!("{row} has no whole number {column}"))
}

/// Returns a time: microseconds, or text as on a topic.
fn time(row: &Value, column: &str) -> Result<i64, String> {
    match row[column].as_str() {
        Some(text) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(at) => Ok(at.timestamp_micros()),
            Err(error) => Err(format!("{row}: {error}")),
        },
        None => number(row, column),
    }
}

fn header(effect: &Outgoing, name: &str) -> Result<String, String> {
    let found = effect.headers.iter().find(|(key, _)| key == name);
    found
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .ok_or_else(|| format!("{effect:?} has no {name}"))
}

/// Returns where a dead letter came from; none of another effect.
fn place(effect: &Outgoing) -> Option<Place> {
    let of = |name: &str| header(effect, &format!("__connect.errors.{name}")).ok();
    Some((of("topic")?, of("partition")?.parse().ok()?, of("offset")?.parse().ok()?))
}

fn unique(what: &str, ids: impl Iterator<Item = Result<String, String>>) -> Result<BTreeSet<String>, String> {
    let mut seen = BTreeSet::new();
    for id in ids {
        let id = id?;
        if !seen.insert(id.clone()) {
            return Err(format!("{what} has {id} twice"));
        }
    }
    Ok(seen)
}

/// Compares two collections and names some of what differs.
pub fn same<T, C>(what: &str, found: &C, expected: &C) -> Wrong
where
    T: std::fmt::Debug + PartialEq,
    C: PartialEq + Clone + IntoIterator<Item = T>,
{
    if found == expected {
        return Ok(());
    }
    let (found, expected): (Vec<T>, Vec<T>) =
        (found.clone().into_iter().collect(), expected.clone().into_iter().collect());
    let some = |of: &[T], without: &[T]| {
        let mut left: Vec<&T> = without.iter().collect();
        let mut only = Vec::new();
        for one in of {
            match left.iter().position(|other| *other == one) {
                Some(at) => drop(left.swap_remove(at)),
                None => only.push(one),
            }
        }
        let text: Vec<String> = only.iter().take(5).map(|one| format!("{one:?}")).collect();
        format!("{} [{}]", only.len(), text.join(", "))
    };
    Err(format!(
        "{what}: {} found, {} expected; too many: {}; missing: {}",
        found.len(),
        expected.len(),
        some(&found, &expected),
        some(&expected, &found)
    ))
}
