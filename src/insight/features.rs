//! The feature frame for failure prediction: what was known of a subject just before each of its runs finished.
//!
//! Columns go into polars from slices and come out as plain numbers: four narrow columns are cheaper copied than carried
//! over the C data interface, whose import is unsafe on both sides. No feature of a row may use that row's own outcome
//! or duration, nor anything later.

#[cfg(test)]
mod tests;

use polars::prelude::*;

use crate::model::event::Event;

/// Finished runs, as parallel columns in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runs {
    subject: Vec<String>,
    /// When the run finished, microseconds of event time.
    ts: Vec<i64>,
    failed: Vec<bool>,
    duration_ms: Vec<Option<f64>>,
}

/// The features of every run, in the order the runs were given. What is not known yet, as of a first run, is NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    columns: Vec<(&'static str, Vec<f64>)>,
}

/// Why there is no feature frame.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    #[error("failed to build the feature frame")]
    Build { source: PolarsError },
}

impl Runs {
    /// Takes in an event that tells of a run with a known outcome; returns false, taking nothing in, for any other.
    pub fn push(&mut self, event: &Event) -> bool {
        let Some(failed) = event.outcome.as_deref().and_then(failed) else { return false };
        self.subject.push(event.subject.clone());
        self.ts.push(event.ts.as_micros());
        self.failed.push(failed);
        self.duration_ms.push(event.duration_ms.filter(|duration| duration.is_finite() && *duration >= 0.0));
        true
    }

    pub fn len(&self) -> usize {
        self.ts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ts.is_empty()
    }

    fn frame(&self) -> PolarsResult<LazyFrame> {
        let ts = Column::new("ts".into(), &self.ts).cast(&DataType::Datetime(TimeUnit::Microseconds, None))?;
        let row: Vec<u64> = (0..self.len() as u64).collect();
        let failed: Vec<f64> = self.failed.iter().map(|failed| f64::from(u8::from(*failed))).collect();
        let columns = vec![
            Column::new("row".into(), row),
            Column::new("subject".into(), &self.subject),
            ts,
            Column::new("failed".into(), failed),
            Column::new("duration_ms".into(), &self.duration_ms),
        ];
        Ok(DataFrame::new(self.len(), columns)?.lazy())
    }
}

impl Features {
    /// The features, in the order of their columns.
    pub const NAMES: [&str; 11] = [
        "runs",
        "failure_rate_10",
        "failure_rate_50",
        "failure_rate_ratio",
        "streak",
        "gap_s",
        "hour",
        "weekday",
        "duration_mean_ms",
        "duration_last_ms",
        "duration_ratio",
    ];

    /// Returns one feature of all runs; `None` for a name not in [`Features::NAMES`].
    pub fn column(&self, name: &str) -> Option<&[f64]> {
        self.columns.iter().find(|(own, _)| *own == name).map(|(_, values)| values.as_slice())
    }

    pub fn columns(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        self.columns.iter().map(|(name, values)| (*name, values.as_slice()))
    }
}

/// Computes the features of all runs.
///
/// - `runs`: earlier runs of the subject.
/// - `failure_rate_10`, `failure_rate_50`: share of failures in its last so many runs, smoothed towards the share over
///   all earlier runs of all subjects as if that had been seen [`SMOOTHING`] times; `failure_rate_ratio`: one over the other.
/// - `streak`: how many runs in a row ended as the last one did; negative for successes.
/// - `gap_s`: seconds since its previous run; `hour` 0 to 23 and `weekday` 1 (Monday) to 7, in UTC.
/// - `duration_mean_ms` over its last ten runs, `duration_last_ms` of the last, `duration_ratio`: the last over the mean.
pub fn features(runs: &Runs) -> Result<Features, FeatureError> {
    columns(runs).map(|columns| Features { columns }).map_err(|source| FeatureError::Build { source })
}

/// How many runs the overall failure rate counts for.
const SMOOTHING: f64 = 5.0;
/// The overall failure rate before anything is known.
const FAILURE_RATE_PRIOR: f64 = 0.1;

fn columns(runs: &Runs) -> PolarsResult<Vec<(&'static str, Vec<f64>)>> {
    let frame = past(runs.frame()?)?
        .with_columns([smoothed("failure_rate_10", "failures_10", 10), smoothed("failure_rate_50", "failures_50", 50)])
        .with_columns([
            (col("failure_rate_10") / col("failure_rate_50")).alias("failure_rate_ratio"),
            (col("duration_last_ms") / col("duration_mean_ms")).alias("duration_ratio"),
            (col("run_length") * (col("last_failed") * lit(2.0) - lit(1.0))).alias("streak"),
        ])
        .sort(["row"], SortMultipleOptions::default())
        .select(Features::NAMES.map(|name| col(name).cast(DataType::Float64)))
        .collect()?;
    Features::NAMES
        .into_iter()
        .map(|name| {
            let column = frame.column(name)?.f64()?;
            Ok((name, column.iter().map(|value| value.unwrap_or(f64::NAN)).collect()))
        })
        .collect()
}

/// Adds what is known of the past: every expression looks at the rows shifted by one, within the subject, so that the
/// own row is never in it.
fn past(frame: LazyFrame) -> PolarsResult<LazyFrame> {
    let subject = [col("subject")];
    let last_failed = col("failed").shift(lit(1));
    let last_duration = col("duration_ms").shift(lit(1));
    let frame = frame.sort(["ts", "row"], SortMultipleOptions::default().with_maintain_order(true)).with_columns([
        last_failed.clone().over(subject.clone())?.alias("last_failed"),
        last_failed.clone().rolling_sum(window(10)).over(subject.clone())?.fill_null(lit(0.0)).alias("failures_10"),
        last_failed.clone().rolling_sum(window(50)).over(subject.clone())?.fill_null(lit(0.0)).alias("failures_50"),
        last_failed.cum_count(false).over(subject.clone())?.cast(DataType::Float64).alias("runs"),
        last_duration.clone().over(subject.clone())?.alias("duration_last_ms"),
        last_duration.rolling_mean(window(10)).over(subject.clone())?.alias("duration_mean_ms"),
        (col("ts") - col("ts").shift(lit(1))).over(subject.clone())?.dt().total_microseconds(false).alias("gap_us"),
        col("ts").dt().hour().alias("hour"),
        col("ts").dt().weekday().alias("weekday"),
        overall_rate().alias("overall_rate"),
    ]);
    // A run of equal outcomes is numbered by how many changes came before it.
    let changed = col("last_failed").neq(col("last_failed").shift(lit(1))).fill_null(lit(false));
    let changes = changed.cast(DataType::Int64).cum_sum(false).over(subject)?;
    let frame = frame
        .with_columns([changes.alias("change"), (col("gap_us").cast(DataType::Float64) / lit(1e6)).alias("gap_s")]);
    let run_length = col("last_failed").cum_count(false).over([col("subject"), col("change")])?;
    Ok(frame.with_columns([run_length.cast(DataType::Float64).alias("run_length")]))
}

/// Returns the failure rate over all earlier rows of all subjects, with one row's worth of prior.
fn overall_rate() -> Expr {
    let before = col("failed").shift(lit(1));
    let failures = before.clone().cum_sum(false).fill_null(lit(0.0));
    let rows = before.cum_count(false).cast(DataType::Float64);
    (failures + lit(FAILURE_RATE_PRIOR)) / (rows + lit(1.0))
}

fn smoothed(name: &str, failures: &str, runs_max: u32) -> Expr {
    let seen = when(col("runs").gt(lit(f64::from(runs_max)))).then(lit(f64::from(runs_max))).otherwise(col("runs"));
    ((col(failures) + lit(SMOOTHING) * col("overall_rate")) / (seen + lit(SMOOTHING))).alias(name)
}

fn window(rows: usize) -> RollingOptionsFixedWindow {
    RollingOptionsFixedWindow { window_size: rows, min_periods: 1, ..Default::default() }
}

/// Returns whether an outcome is a failure; `None` where it is neither that nor a success, such as a cancellation.
fn failed(outcome: &str) -> Option<bool> {
    match outcome.to_ascii_lowercase().as_str() {
        "failure" | "failed" | "fail" | "error" | "errored" | "timeout" | "timed_out" => Some(true),
        "success" | "succeeded" | "successful" | "passed" | "ok" | "completed" => Some(false),
        _ => None,
    }
}
