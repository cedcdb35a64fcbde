//! OpenTelemetry metrics (`MetricsData` or `ExportMetricsServiceRequest`, which are the same on the wire).
//!
//! Protobuf is read in place; JSON is turned into protobuf first, so that there is one meaning. What becomes of a
//! point:
//!
//! | data | samples | kind |
//! |---|---|---|
//! | gauge, non-monotonic sum | the value | gauge |
//! | monotonic sum | the value, name with `_total` | counter, or delta |
//! | non-monotonic delta sum | the value | delta |
//! | histogram | `_bucket` per `le` with all below it, `_count`, `_sum` | counter, or delta |
//! | exponential histogram | the same, `le` being the upper bounds of its filled buckets | counter, or delta |
//! | summary | the value per `quantile`, `_count`, `_sum` | gauge; counter |
//!
//! Points flagged "no recorded value" and quantiles that are NaN (a summary that saw nothing) are skipped. Names follow
//! [`naming`], labels [`attributes`]. Scope attributes and exemplars are not kept.

mod attributes;
mod json;
mod naming;
mod points;
mod wire;

use xxhash_rust::xxh3::xxh3_128;

use super::intake::{Intake, Spelling, at, clip, missing, text};
use super::{Parser, Record};
use crate::model::reject::{Reason, Reject};
use crate::model::series::{Descriptor, Kind, SeriesRef};
use naming::Suffix;
use points::Buckets;
use wire::Fields;

#[derive(Default)]
pub(super) struct Otlp {
    spelling: Spelling,
    buckets: Buckets,
}

impl Parser for Otlp {
    fn parse(&mut self, record: &Record<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let value = record.value;
        if value.trim_ascii().is_empty() {
            return Err(Reject::new(Reason::Empty, "expected MetricsData, got none"));
        }
        // A line break is no blank here: it is also the first byte of every protobuf MetricsData.
        let start = value.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\r'));
        if start == Some(&b'{') {
            let protobuf = json::to_protobuf(text(value)?, intake.limits)?;
            return self.metrics_data(&protobuf, intake);
        }
        if value.starts_with(&[0x1f, 0x8b]) {
            return text(value).map(drop);
        }
        self.metrics_data(value, intake)
    }
}

/// A resource with the hash of its bytes, which stands for its labels in a spelling.
#[derive(Clone, Copy)]
struct Resource<'a> {
    bytes: &'a [u8],
    hash: u128,
}

/// A metric without its points.
#[derive(Clone, Copy)]
struct Metric<'a> {
    resource: Resource<'a>,
    name: &'a str,
    unit: &'a str,
    kind: Kind,
    suffix: Suffix,
}

/// Which of the series of a point is meant.
#[derive(Clone, Copy)]
enum Role {
    Value,
    Count,
    Sum,
    /// All observations up to a bound, inclusive.
    Bucket(f64),
    Quantile(f64),
}

impl Otlp {
    const TAG: u8 = b'o';

    fn metrics_data(&mut self, message: &[u8], intake: &mut Intake<'_>) -> Result<(), Reject> {
        let (mut fields, mut index) = (Fields::of(message), 0_usize);
        while let Some((number, value)) = fields.next()? {
            if number == 1 {
                let place = format_args!("resource {index}");
                value
                    .bytes("resource_metrics")
                    .and_then(|message| self.resource_metrics(message, intake))
                    .map_err(at(place))?;
                index += 1;
            }
        }
        Ok(())
    }

    fn resource_metrics(&mut self, message: &[u8], intake: &mut Intake<'_>) -> Result<(), Reject> {
        // A first pass for the resource: nothing obliges a producer to write it before the metrics.
        let (mut fields, mut resource) = (Fields::of(message), &[][..]);
        while let Some((number, value)) = fields.next()? {
            if number == 1 {
                resource = value.bytes("resource")?;
            }
        }
        let resource = Resource { bytes: resource, hash: xxh3_128(resource) };
        let mut fields = Fields::of(message);
        while let Some((number, value)) = fields.next()? {
            if number == 2 {
                self.scope_metrics(value.bytes("scope_metrics")?, resource, intake)?;
            }
        }
        Ok(())
    }

    fn scope_metrics(&mut self, message: &[u8], resource: Resource<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let mut fields = Fields::of(message);
        while let Some((number, value)) = fields.next()? {
            if number == 2 {
                self.metric(value.bytes("metrics")?, resource, intake)?;
            }
        }
        Ok(())
    }

    fn metric(&mut self, message: &[u8], resource: Resource<'_>, intake: &mut Intake<'_>) -> Result<(), Reject> {
        let (mut name, mut unit, mut data) = ("", "", None);
        let mut fields = Fields::of(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => name = value.text("metric name")?,
                3 => unit = value.text("unit")?,
                5 | 7 | 9 | 10 | 11 => data = Some((number, value.bytes("data")?)),
                _ => {}
            }
        }
        if name.is_empty() {
            return Err(missing("metric name"));
        }
        let place = || format!("metric {:?}", clip(name));
        let (number, data) = data.ok_or_else(|| {
            let message = "expected a gauge, sum, histogram, exponential histogram or summary, got none";
            at(place())(Reject::new(Reason::Missing, message))
        })?;
        let metric = Metric { resource, name, unit, kind: Kind::Gauge, suffix: Suffix::None };
        self.data(number, data, metric, intake).map_err(|reject| at(place())(reject))
    }

    /// Starts the spelling of a metric's points and returns its length; each point adds its attributes behind it.
    fn start_spelling(&mut self, metric: &Metric<'_>) -> usize {
        let nature = [metric.kind as u8, metric.suffix as u8];
        let spelling = self.spelling.start(Self::TAG).part(&metric.resource.hash.to_le_bytes()).part(&nature);
        spelling.part(metric.name.as_bytes()).part(metric.unit.as_bytes()).len()
    }

    /// Returns the series of a role of a point. `spelling` is that of the point.
    fn series(
        &self,
        spelling: u128,
        role: Role,
        metric: &Metric<'_>,
        point: (&[u8], u32),
        intake: &mut Intake<'_>,
    ) -> Result<SeriesRef, Reject> {
        let spelling = role.spelling(spelling);
        match intake.recall(spelling) {
            Some(series) => Ok(series),
            None => describe(spelling, role, metric, point, intake),
        }
    }
}

impl Role {
    fn spelling(self, point: u128) -> u128 {
        let (tag, bits) = match self {
            Role::Value => return point,
            Role::Count => (1, 0),
            Role::Sum => (2, 0),
            Role::Bucket(le) => (3, le.to_bits()),
            Role::Quantile(q) => (4, q.to_bits()),
        };
        let mut bytes = [0_u8; 25];
        let (head, rest) = bytes.split_at_mut(16);
        head.copy_from_slice(&point.to_le_bytes());
        let (middle, last) = rest.split_at_mut(8);
        middle.copy_from_slice(&bits.to_le_bytes());
        last.copy_from_slice(&[tag]);
        xxh3_128(&bytes)
    }
}

/// Builds name and labels of a series not seen before, and interns it.
fn describe(
    spelling: u128,
    role: Role,
    metric: &Metric<'_>,
    (point, attributes): (&[u8], u32),
    intake: &mut Intake<'_>,
) -> Result<SeriesRef, Reject> {
    let mut name = naming::metric(metric.name, metric.unit, metric.suffix);
    if name.is_empty() {
        let message = format!("metric name: expected at least one letter or digit, got {:?}", clip(metric.name));
        return Err(Reject::new(Reason::Unsupported, message));
    }
    let mut labels = attributes::labels(metric.resource.bytes, point, attributes, intake.limits.depth_max)?;
    let (ending, bound, unit) = match role {
        Role::Value => ("", None, metric.unit),
        Role::Sum => ("_sum", None, metric.unit),
        Role::Count => ("_count", None, ""),
        Role::Bucket(le) => ("_bucket", Some(("le", le)), ""),
        Role::Quantile(q) => ("", Some(("quantile", q)), metric.unit),
    };
    name.push_str(ending);
    if let Some((label, bound)) = bound {
        let text = if bound == f64::INFINITY { "+Inf".to_owned() } else { bound.to_string() };
        labels.insert(label.to_owned(), text);
    }
    let labels = labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
    intake.intern(spelling, &mut Descriptor { name: &name, labels, kind: metric.kind, unit })
}
