//! Tests of the engine: what the windows hold against a naive model, whatever the order of arrival within the lateness.

mod partial;
mod reload;
mod sessions;
mod sharing;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, Schema, TimestampMicrosecondType};
use proptest::prelude::*;

use futures::executor::block_on;

use super::definition::{Defaults, Definitions};
use super::rebuild::LateBefore;
use super::*;
use crate::model::series::{Descriptor, SeriesRef};

const SECOND: i64 = 1_000_000;

fn engine(sql: &str) -> Engine {
    engine_of(&[sql.to_owned()])
}

fn engine_of(views: &[String]) -> Engine {
    let defaults = Defaults { lateness: Duration::from_secs(10), state_bytes_max: usize::MAX };
    let files: Vec<(String, &String)> = views.iter().enumerate().map(|(at, sql)| (format!("{at}.sql"), sql)).collect();
    let views = Definitions::read(&files, defaults).unwrap().views;
    block_on(Engine::new(views, &[], &Arc::new(Schema::empty()))).unwrap()
}

/// An engine that reads samples of one partition, its watermark moved after every push.
struct Running {
    engine: Engine,
    interner: Interner,
    newest: i64,
}

fn partition() -> PartitionKey {
    ("t".into(), 0)
}

impl Running {
    fn new(sql: &str, services: usize) -> Running {
        Running::of(&[sql.to_owned()], services)
    }

    fn of(views: &[String], services: usize) -> Running {
        let mut engine = engine_of(views);
        engine.clock(Source::Metrics).add(partition());
        Running { engine, interner: interner(services), newest: i64::MIN }
    }

    fn push(&mut self, rows: &[(u32, i64, f64)]) -> (Vec<Emission>, Vec<Late>) {
        let mut late = Vec::new();
        self.engine.push_samples(&samples(rows), &self.interner, &mut late).unwrap();
        self.observe(rows.iter().map(|row| row.1).max().unwrap_or(i64::MIN));
        (block_on(self.engine.advance()).unwrap(), late)
    }

    fn observe(&mut self, newest: i64) {
        self.newest = self.newest.max(newest);
        self.engine.clock(Source::Metrics).observe(&partition(), EventTime::from_micros(self.newest));
    }

    /// Closes everything that is open.
    fn end(&mut self) -> Vec<Emission> {
        self.observe(self.newest.max(0) + 1_000_000 * SECOND);
        block_on(self.engine.advance()).unwrap()
    }

    /// Takes the one view up where it had closed through, with the rows that the store holds.
    fn resume(&mut self, through: EventTime, stored: &[(u32, i64, f64)], late: &mut LateBefore) {
        if through > EventTime::MIN {
            self.engine.resume("v", through);
        }
        self.rebuild(stored, late);
    }

    fn rebuild(&mut self, stored: &[(u32, i64, f64)], late: &mut LateBefore) {
        let from = self.engine.needs_from(Source::Metrics).unwrap_or(EventTime::MIN).as_micros();
        let needed: Vec<_> = stored.iter().copied().filter(|row| row.1 >= from).collect();
        self.engine.rebuild_from_samples(&samples(&needed), &self.interner, late).unwrap();
        self.engine.rebuilt();
    }
}

fn refused(query: &str) -> String {
    let sql = format!("CREATE MATERIALIZED VIEW v AS {query}");
    let defaults = Defaults { lateness: Duration::ZERO, state_bytes_max: usize::MAX };
    let error = Definitions::read(&[("v.sql", sql)], defaults)
        .and_then(|read| block_on(Engine::new(read.views, &[], &Arc::new(Schema::empty()))))
        .err()
        .expect("the view should be refused");
    std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source()).map(|e| format!("{e}; ")).collect()
}

fn interner(services: usize) -> Interner {
    let mut interner = Interner::new(1000);
    for service in 0..services {
        let name = format!("s{service}");
        let labels = vec![("service", name.as_str())];
        interner.intern(&mut Descriptor { name: "m", labels, ..Descriptor::default() }).unwrap();
    }
    interner.intern(&mut Descriptor { name: "other", ..Descriptor::default() }).unwrap();
    interner
}

fn samples(rows: &[(u32, i64, f64)]) -> Samples {
    let mut samples = Samples::default();
    for &(series, ts, value) in rows {
        samples.push(SeriesRef(series), EventTime::from_micros(ts), value);
    }
    samples
}

/// Rows of steps: each moves time on by seconds, and lies so many seconds back.
fn rows_of(steps: &[(u32, i64, i64, i64)]) -> Vec<(u32, i64, f64)> {
    let mut now = 1_000;
    let row = |&(series, step, back, value): &(u32, i64, i64, i64)| {
        now += step;
        (series, (now - back) * SECOND, value as f64)
    };
    steps.iter().map(row).collect()
}

/// (end of window, service) to (count, sum).
type Windows = BTreeMap<(i64, String), (i64, f64)>;

fn read(emissions: &[Emission]) -> Windows {
    let mut windows = Windows::new();
    for Emission { rows, .. } in emissions {
        let column = |rows: &RecordBatch, name: &str| rows.column_by_name(name).unwrap().clone();
        let (ends, services) = (column(rows, "window_end"), column(rows, "service"));
        let (counts, sums) = (column(rows, "n"), column(rows, "total"));
        for row in 0..rows.num_rows() {
            let end = ends.as_primitive::<TimestampMicrosecondType>().value(row);
            let key = (end, services.as_string::<i32>().value(row).to_owned());
            let value = (counts.as_primitive::<Int64Type>().value(row), sums.as_primitive::<Float64Type>().value(row));
            assert_eq!(windows.insert(key, value), None, "a window emitted twice");
        }
    }
    windows
}

/// Every window of the rows, by looking at each row for each window.
fn naive(rows: &[(u32, i64, f64)], services: u32, width: i64, slide: i64, through: i64) -> Windows {
    let mut windows = Windows::new();
    for &(series, ts, value) in rows.iter().filter(|(series, ..)| *series < services) {
        let mut start = (ts - width).div_euclid(slide) * slide + slide;
        while start <= ts {
            if start + width <= through {
                let window = windows.entry((start + width, format!("s{series}"))).or_insert((0, 0.0));
                *window = (window.0 + 1, window.1 + value);
            }
            start += slide;
        }
    }
    windows
}

fn view(window: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW v WITH (lateness = '5s') AS \
         SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, sum(value) AS total \
         FROM metrics WHERE name = 'm' GROUP BY {window}, labels['service']"
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn windows_equal_a_naive_model_however_rows_arrive(
        slide in 1i64..8,
        per_width in 1i64..6,
        extra in 0i64..3,
        steps in prop::collection::vec((0u32..4, 0i64..4_000_000, -4_000_000i64..0, -100i32..100), 1..300),
        batch in 1usize..40,
    ) {
        let (slide_us, width_us) = (slide * SECOND, (slide * per_width + extra.min(slide - 1).max(0)) * SECOND);
        let sql = view(&format!("hop(ts, INTERVAL '{slide} seconds', INTERVAL '{} seconds')", width_us / SECOND));
        let interner = interner(3);
        let mut engine = engine(&sql);
        let partition: PartitionKey = ("t".into(), 0);
        engine.clock(Source::Metrics).add(partition.clone());
        // Time moves on by the second number; each row comes up to four seconds out of order, less than the lateness.
        let mut now = 1_000 * SECOND;
        let rows: Vec<(u32, i64, f64)> = steps
            .iter()
            .map(|&(series, step, back, value)| {
                now += step;
                (series, now + back, f64::from(value))
            })
            .collect();
        let (mut emitted, mut late, mut newest) = (Vec::new(), Vec::new(), i64::MIN);
        for rows in rows.chunks(batch) {
            engine.push_samples(&samples(rows), &interner, &mut late).unwrap();
            newest = rows.iter().map(|row| row.1).max().unwrap_or(newest).max(newest);
            engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(newest));
            emitted.extend(block_on(engine.advance()).unwrap());
        }
        prop_assert_eq!(late.len(), 0);
        let through = newest - 5 * SECOND;
        prop_assert_eq!(read(&emitted), naive(&rows, 3, width_us, slide_us, through));
        let ends: Vec<_> = emitted.iter().map(|emission| emission.window.end).collect();
        prop_assert!(ends.is_sorted());
    }
}

#[test]
fn a_row_after_its_last_window_is_late_and_changes_nothing() {
    let interner = interner(1);
    let mut engine = engine(&view("tumble(ts, INTERVAL '10 seconds')"));
    let partition: PartitionKey = ("t".into(), 0);
    engine.clock(Source::Metrics).add(partition.clone());
    let mut late = Vec::new();
    engine.push_samples(&samples(&[(0, SECOND, 1.0), (0, 26 * SECOND, 1.0)]), &interner, &mut late).unwrap();
    engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(26 * SECOND));
    assert_eq!(block_on(engine.advance()).unwrap().len(), 1);
    // The watermark is at 21 s: 9 s and 19 s are past their windows, 20 s is not.
    let rows = [(0, 9 * SECOND, 1.0), (0, 19 * SECOND, 1.0), (0, 20 * SECOND, 1.0)];
    engine.push_samples(&samples(&rows), &interner, &mut late).unwrap();
    assert_eq!(late.iter().map(|late| late.row).collect::<Vec<_>>(), [0, 1]);
    engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(60 * SECOND));
    let windows = read(&block_on(engine.advance()).unwrap());
    assert_eq!(windows.into_values().map(|(n, _)| n).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_resumed_view_rebuilds_open_windows_and_emits_no_closed_one_again() {
    let interner = interner(2);
    let sql = view("hop(ts, INTERVAL '10 seconds', INTERVAL '30 seconds')");
    let rows: Vec<(u32, i64, f64)> = (0..120).map(|s| ((s % 2) as u32, s * SECOND, s as f64)).collect();
    let partition: PartitionKey = ("t".into(), 0);
    let run = |engine: &mut Engine, rows: &[(u32, i64, f64)]| {
        engine.push_samples(&samples(rows), &interner, &mut Vec::new()).unwrap();
        let newest = rows.last().map(|row| row.1).unwrap();
        engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(newest));
        block_on(engine.advance()).unwrap()
    };
    let mut whole = engine(&sql);
    whole.clock(Source::Metrics).add(partition.clone());
    let mut expected = run(&mut whole, &rows[..70]);
    let through = expected.last().map(|emission| emission.window.end).unwrap();
    expected.extend(run(&mut whole, &rows[70..]));

    let mut resumed = engine(&sql);
    resumed.resume("v", through);
    assert_eq!(resumed.needs_from(Source::Metrics), Some(through - Duration::from_secs(30)));
    resumed.push_samples(&samples(&rows[..70]), &interner, &mut Vec::new()).unwrap();
    resumed.clock(Source::Metrics).add(partition.clone());
    let after = run(&mut resumed, &rows[70..]);
    let later: Vec<Emission> = expected.into_iter().filter(|emission| emission.window.end > through).collect();
    assert_eq!(read(&after), read(&later));
}

#[test]
fn having_filters_and_expressions_are_applied() {
    let interner = interner(2);
    let mut engine = engine(
        "CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, coalesce(labels['service'], 'none') AS service, \
         count(*) FILTER (WHERE value > 5) AS n, sum(value) / 2 AS total FROM metrics \
         WHERE name = 'm' AND value < 100 GROUP BY tumble(ts, INTERVAL '10 seconds'), coalesce(labels['service'], 'none') \
         HAVING count(*) > 1",
    );
    let partition: PartitionKey = ("t".into(), 0);
    engine.clock(Source::Metrics).add(partition.clone());
    let rows = [(0, 0, 4.0), (0, SECOND, 6.0), (0, SECOND, 500.0), (1, SECOND, 1.0), (2, SECOND, 1.0)];
    engine.push_samples(&samples(&rows), &interner, &mut Vec::new()).unwrap();
    engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(60 * SECOND));
    let windows = read(&block_on(engine.advance()).unwrap());
    assert_eq!(windows.into_iter().collect::<Vec<_>>(), [((10 * SECOND, "s0".to_owned()), (1, 5.0))]);
}

#[test]
fn an_expression_that_fails_for_one_row_is_null_for_it_and_no_more() {
    let mut interner = Interner::new(10);
    for code in ["7", "seven"] {
        let labels = vec![("code", code), ("service", "s")];
        interner.intern(&mut Descriptor { name: "m", labels, ..Descriptor::default() }).unwrap();
    }
    let mut engine = engine(
        "CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, labels['service'] AS service, \
         count(*) FILTER (WHERE CAST(labels['code'] AS INT) > 5) AS n, CAST(10 / (count(*) - 2) AS DOUBLE) AS total \
         FROM metrics GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']",
    );
    let partition: PartitionKey = ("t".into(), 0);
    engine.clock(Source::Metrics).add(partition.clone());
    engine.push_samples(&samples(&[(0, 0, 1.0), (1, 0, 1.0)]), &interner, &mut Vec::new()).unwrap();
    engine.clock(Source::Metrics).observe(&partition, EventTime::from_micros(60 * SECOND));
    let rows = block_on(engine.advance()).unwrap().remove(0).rows;
    assert_eq!(rows.column_by_name("n").unwrap().as_primitive::<Int64Type>().value(0), 1);
    assert_eq!(rows.column_by_name("total").unwrap().null_count(), 1, "a division by zero");
}

#[test]
fn what_a_view_may_not_do_is_said_when_it_is_planned() {
    for (query, said) in [
        ("SELECT window_start, window_end, count(*) n FROM nothing GROUP BY tumble(ts, INTERVAL '1s')", "nothing"),
        ("SELECT window_start, window_end, nothing FROM metrics GROUP BY tumble(ts, INTERVAL '1s')", "nothing"),
        ("SELECT window_end, count(*) n FROM metrics GROUP BY tumble(ts, INTERVAL '1s')", "must select window_start"),
        (
            "SELECT window_start, window_end, count(*) FROM metrics GROUP BY tumble(ts, INTERVAL '1s')",
            "needs a plain name",
        ),
        (
            "SELECT window_start, window_end, array_agg(value ORDER BY ts) n FROM metrics GROUP BY tumble(ts, INTERVAL '1s')",
            "first_by_time",
        ),
        (
            "SELECT window_start, window_end, count(*) n FROM metrics a JOIN metrics b ON a.name = b.name \
             GROUP BY tumble(ts, INTERVAL '1s')",
            "mbiguous",
        ),
        (
            "SELECT window_start, window_end, lag(count(*)) OVER (ORDER BY window_start) n FROM metrics \
             GROUP BY tumble(ts, INTERVAL '1s') LIMIT 3",
            "LIMIT cannot follow",
        ),
    ] {
        let message = refused(query);
        assert!(message.contains(said), "{query}: {message}");
    }
}

#[test]
fn a_plan_is_explained_as_a_person_writes_it() {
    let engine = engine(
        "CREATE MATERIALIZED VIEW v AS SELECT window_start, window_end, labels['service'] AS service, count(*) AS n, \
         hdr_quantile(value, 0.9) AS p90, avg(value) FILTER (WHERE labels['status'] >= '500') AS failed FROM metrics \
         WHERE name = 'm' AND value / 2 > 1 GROUP BY tumble(ts, INTERVAL '10 seconds'), labels['service']",
    );
    let plan = engine.explain().remove(0).plan;
    let said: Vec<&str> = plan.iter().map(String::as_str).take(6).collect();
    assert_eq!(
        said,
        [
            "where (name = 'm'), once per series",
            "where ((value / 2.0) > 1.0)",
            "key labels['service'], once per series",
            "aggregate count(*)",
            "aggregate hdr_sketch(value)",
            "aggregate avg(value) FILTER (WHERE (labels['status'] >= '500'))",
        ]
    );
}
