//! The points of each kind of metric: from their messages to samples. Knows nothing of names and labels.

use super::naming::Suffix;
use super::wire::{Fields, Value};
use super::{Metric, Otlp, Role};
use crate::ingest::intake::{Intake, at, missing, refuse};
use crate::model::reject::{Reason, Reject};
use crate::model::series::Kind;
use crate::model::time::EventTime;

/// The flag of a point that stands for "no value here": the series stopped.
const NO_RECORDED_VALUE: u64 = 1;

/// Fields of the metric's data messages.
const POINTS: u32 = 1;
const TEMPORALITY: u32 = 2;
const MONOTONIC: u32 = 3;

/// The bucket arrays of the point at hand, kept to spare their allocation for each point.
#[derive(Default)]
pub(super) struct Buckets {
    counts: Vec<u64>,
    negative: Vec<u64>,
    bounds: Vec<u64>,
}

/// What all points have.
#[derive(Default)]
struct Head {
    nanos: u64,
    flags: u64,
}

impl Head {
    fn is_recorded(&self) -> bool {
        self.flags & NO_RECORDED_VALUE == 0
    }

    fn time(&self) -> Result<EventTime, Reject> {
        match self.nanos {
            0 => Err(missing("time_unix_nano")),
            nanos => Ok(EventTime::from_micros((nanos / 1_000) as i64)),
        }
    }
}

/// A point being read: its message, the field its attributes stand in, its spelling once known, and its metric.
#[derive(Clone, Copy)]
struct Point<'a> {
    metric: &'a Metric<'a>,
    message: &'a [u8],
    attributes: u32,
    spelling: u128,
    time: EventTime,
}

impl Otlp {
    /// Reads the data message of a metric, `number` being its field.
    pub(super) fn data(
        &mut self,
        number: u32,
        data: &[u8],
        mut metric: Metric<'_>,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        let (mut temporality, mut monotonic) = (0, false);
        let mut fields = Fields::of(data);
        while let Some((field, value)) = fields.next()? {
            match field {
                TEMPORALITY => temporality = value.varint("aggregation_temporality")?,
                MONOTONIC => monotonic = value.varint("is_monotonic")? != 0,
                _ => {}
            }
        }
        let accumulated = match temporality {
            1 => Ok(Kind::Delta),
            2 => Ok(Kind::Counter),
            other => Err(other.to_string()),
        }
        .map_err(|got| refuse(Reason::Unsupported, "aggregation_temporality", "1 (delta) or 2 (cumulative)", &got));
        let read: Read = match number {
            5 => {
                metric.suffix = Suffix::Ratio;
                Otlp::number
            }
            7 => {
                let kind = accumulated?;
                metric.kind = if kind == Kind::Counter && !monotonic { Kind::Gauge } else { kind };
                metric.suffix = if monotonic { Suffix::Total } else { Suffix::None };
                Otlp::number
            }
            9 => {
                metric.kind = accumulated?;
                Otlp::histogram
            }
            10 => {
                metric.kind = accumulated?;
                Otlp::exponential_histogram
            }
            _ => Otlp::summary,
        };
        self.points(data, &metric, read, intake)
    }

    fn points(&mut self, data: &[u8], metric: &Metric<'_>, read: Read, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let prefix = self.start_spelling(metric);
        let (mut fields, mut index) = (Fields::of(data), 0_usize);
        while let Some((field, value)) = fields.next()? {
            if field == POINTS {
                self.spelling.truncate(prefix);
                value
                    .bytes("data_points")
                    .and_then(|message| read(self, message, metric, intake))
                    .map_err(at(format_args!("point {index}")))?;
                index += 1;
            }
        }
        Ok(())
    }

    fn number(&mut self, message: &[u8], metric: &Metric<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        const ATTRIBUTES: u32 = 7;
        let (mut head, mut number) = (Head::default(), None);
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                ATTRIBUTES => drop(self.spelling.part(value.bytes("attributes")?)),
                3 => head.nanos = value.fixed64("time_unix_nano")?,
                4 => number = Some(value.double("as_double")?),
                6 => number = Some(value.fixed64("as_int")? as i64 as f64),
                8 => head.flags = value.varint("flags")?,
                _ => {}
            }
        }
        if !head.is_recorded() {
            return Ok(());
        }
        let number = number.ok_or_else(|| missing("as_double or as_int"))?;
        let point = self.point(message, ATTRIBUTES, &head, metric)?;
        self.emit(Role::Value, number, &point, intake)
    }

    fn histogram(&mut self, message: &[u8], metric: &Metric<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        const ATTRIBUTES: u32 = 9;
        let (mut head, mut count, mut sum) = (Head::default(), 0, None);
        let mut buckets = std::mem::take(&mut self.buckets);
        buckets.counts.clear();
        buckets.bounds.clear();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                ATTRIBUTES => drop(self.spelling.part(value.bytes("attributes")?)),
                3 => head.nanos = value.fixed64("time_unix_nano")?,
                4 => count = value.fixed64("count")?,
                5 => sum = Some(value.double("sum")?),
                6 => value.fixed64s("bucket_counts", &mut buckets.counts)?,
                7 => value.fixed64s("explicit_bounds", &mut buckets.bounds)?,
                10 => head.flags = value.varint("flags")?,
                _ => {}
            }
        }
        if head.is_recorded() {
            let point = self.point(message, ATTRIBUTES, &head, metric)?;
            self.explicit_buckets(&buckets, count, &point, intake)?;
            self.count_and_sum(count, sum, &point, intake)?;
        }
        self.buckets = buckets;
        Ok(())
    }

    fn explicit_buckets(
        &self,
        buckets: &Buckets,
        count: u64,
        point: &Point<'_>,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        let (bounds, counts) = (&buckets.bounds, &buckets.counts);
        if counts.len() != bounds.len() + 1 && !(counts.is_empty() && bounds.is_empty()) {
            let got = format!("{} counts and {} bounds", counts.len(), bounds.len());
            return Err(refuse(Reason::Type, "bucket_counts", "one more than explicit_bounds", &got));
        }
        let (mut below, mut previous) = (0_u64, f64::NEG_INFINITY);
        for (bits, n) in bounds.iter().zip(counts) {
            let bound = f64::from_bits(*bits);
            if !bound.is_finite() {
                return Err(refuse(Reason::NotFinite, "explicit_bounds", "finite bounds", &bound.to_string()));
            }
            if bound <= previous {
                let got = format!("{bound} after {previous}");
                return Err(refuse(Reason::Type, "explicit_bounds", "rising bounds", &got));
            }
            previous = bound;
            below = below.saturating_add(*n);
            self.emit(Role::Bucket(bound), below as f64, point, intake)?;
        }
        self.emit(Role::Bucket(f64::INFINITY), count as f64, point, intake)
    }

    fn exponential_histogram(
        &mut self,
        message: &[u8],
        metric: &Metric<'_>,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        const ATTRIBUTES: u32 = 1;
        let (mut head, mut count, mut sum) = (Head::default(), 0, None);
        let (mut scale, mut zero_count, mut zero_threshold) = (0, 0, 0.0);
        let (mut positive, mut negative) = (&[][..], &[][..]);
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                ATTRIBUTES => drop(self.spelling.part(value.bytes("attributes")?)),
                3 => head.nanos = value.fixed64("time_unix_nano")?,
                4 => count = value.fixed64("count")?,
                5 => sum = Some(value.double("sum")?),
                6 => scale = value.zigzag("scale")?,
                7 => zero_count = value.fixed64("zero_count")?,
                8 => positive = value.bytes("positive")?,
                9 => negative = value.bytes("negative")?,
                10 => head.flags = value.varint("flags")?,
                14 => zero_threshold = value.double("zero_threshold")?,
                _ => {}
            }
        }
        if !head.is_recorded() {
            return Ok(());
        }
        if !(-10..=20).contains(&scale) {
            return Err(refuse(Reason::Unsupported, "scale", "-10 to 20", &scale.to_string()));
        }
        if !zero_threshold.is_finite() {
            return Err(refuse(Reason::NotFinite, "zero_threshold", "a finite number", &zero_threshold.to_string()));
        }
        let point = self.point(message, ATTRIBUTES, &head, metric)?;
        let mut buckets = std::mem::take(&mut self.buckets);
        let positive_offset = exponential_buckets(positive, &mut buckets.counts).map_err(at("positive"))?;
        let negative_offset = exponential_buckets(negative, &mut buckets.negative).map_err(at("negative"))?;
        let mut steps = Steps { sink: self, point: &point, below: 0, held: None };
        // Ascending: the negative bucket farthest from zero first. Its upper bound is the one nearer to zero.
        for (place, n) in buckets.negative.iter().enumerate().rev() {
            steps.add(-bound(scale, negative_offset, place as i64), *n, intake)?;
        }
        steps.add(zero_threshold, zero_count, intake)?;
        for (place, n) in buckets.counts.iter().enumerate() {
            steps.add(bound(scale, positive_offset, place as i64 + 1), *n, intake)?;
        }
        steps.finish(intake)?;
        self.emit(Role::Bucket(f64::INFINITY), count as f64, &point, intake)?;
        self.count_and_sum(count, sum, &point, intake)?;
        self.buckets = buckets;
        Ok(())
    }

    fn summary(&mut self, message: &[u8], metric: &Metric<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        const ATTRIBUTES: u32 = 7;
        const QUANTILES: u32 = 6;
        let (mut head, mut count, mut sum) = (Head::default(), 0, 0.0);
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                ATTRIBUTES => drop(self.spelling.part(value.bytes("attributes")?)),
                3 => head.nanos = value.fixed64("time_unix_nano")?,
                4 => count = value.fixed64("count")?,
                5 => sum = value.double("sum")?,
                8 => head.flags = value.varint("flags")?,
                _ => {}
            }
        }
        if !head.is_recorded() {
            return Ok(());
        }
        let point = self.point(message, ATTRIBUTES, &head, metric)?;
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            if field == QUANTILES {
                let (quantile, value) = value_at_quantile(value)?;
                if !value.is_nan() {
                    self.emit(Role::Quantile(quantile), value, &point, intake)?;
                }
            }
        }
        let counters = Metric { kind: Kind::Counter, ..*metric };
        self.count_and_sum(count, Some(sum), &Point { metric: &counters, ..point }, intake)
    }

    /// Ends the reading of a point: its attributes have been spelled, its time is known.
    fn point<'a>(
        &self,
        message: &'a [u8],
        attributes: u32,
        head: &Head,
        metric: &'a Metric<'a>,
    ) -> Result<Point<'a>, Reject> {
        Ok(Point { metric, message, attributes, spelling: self.spelling.hash(), time: head.time()? })
    }

    fn count_and_sum(
        &self,
        count: u64,
        sum: Option<f64>,
        point: &Point<'_>,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        self.emit(Role::Count, count as f64, point, intake)?;
        match sum {
            Some(sum) => self.emit(Role::Sum, sum, point, intake).map_err(at("sum")),
            None => Ok(()),
        }
    }

    fn emit(&self, role: Role, value: f64, point: &Point<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let series = self.series(point.spelling, role, point.metric, (point.message, point.attributes), intake)?;
        intake.sample(series, point.time, value)
    }
}

/// Reads one point of some kind.
type Read = fn(&mut Otlp, &[u8], &Metric<'_>, &mut Intake<'_>) -> Result<(), Reject>;

/// Emits the buckets of an exponential histogram as steps of a cumulative one: empty buckets none, and those whose
/// bounds round to the same number, or to infinity, one together.
struct Steps<'a> {
    sink: &'a Otlp,
    point: &'a Point<'a>,
    below: u64,
    /// The bound of a step not emitted yet.
    held: Option<f64>,
}

impl Steps<'_> {
    fn add(&mut self, bound: f64, n: u64, intake: &mut Intake<'_>) -> Result<(), Reject> {
        if n == 0 {
            return Ok(());
        }
        // Turns minus zero into zero: they are one bound, but would be two labels.
        let bound = bound + 0.0;
        if self.held != Some(bound) {
            self.finish(intake)?;
        }
        self.below = self.below.saturating_add(n);
        self.held = Some(bound);
        Ok(())
    }

    fn finish(&mut self, intake: &mut Intake<'_>) -> Result<(), Reject> {
        match self.held.take().filter(|bound| bound.is_finite()) {
            Some(bound) => self.sink.emit(Role::Bucket(bound), self.below as f64, self.point, intake),
            None => Ok(()),
        }
    }
}

/// Returns the bound of an exponential histogram: base^index with base = 2^(2^-scale), as the OpenTelemetry data model
/// defines it; bucket `i` spans (base^i, base^(i+1)].
fn bound(scale: i32, offset: i32, place: i64) -> f64 {
    let index = i64::from(offset) + place;
    (index as f64 * f64::exp2(f64::from(-scale))).exp2()
}

/// Reads one side of an exponential histogram into `counts`, and returns its offset.
fn exponential_buckets(message: &[u8], counts: &mut Vec<u64>) -> Result<i32, Reject> {
    counts.clear();
    let mut offset = 0;
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => offset = value.zigzag("offset")?,
            2 => value.varints("bucket_counts", counts)?,
            _ => {}
        }
    }
    Ok(offset)
}

fn value_at_quantile(message: Value<'_>) -> Result<(f64, f64), Reject> {
    let (mut quantile, mut value) = (0.0, 0.0);
    let mut fields = Fields::of(message.bytes("quantile_values")?);
    while let Some((field, raw)) = fields.next()? {
        match field {
            1 => quantile = raw.double("quantile")?,
            2 => value = raw.double("value")?,
            _ => {}
        }
    }
    if !(0.0..=1.0).contains(&quantile) {
        return Err(refuse(Reason::Unsupported, "quantile", "0 to 1", &quantile.to_string()));
    }
    Ok((quantile, value))
}
