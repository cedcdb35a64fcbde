//! OTLP/JSON to protobuf, so that [`points`](super::points) need know one encoding only.
//!
//! The generated types read most of it. The path down to number points is spelled out here, because the generated ones
//! flatten their `oneof`s, which turns whatever is wrong below into "absent" and buffers every point on the way.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ingest::Limits;
use crate::ingest::intake::{at, refuse};
use crate::ingest::json;
use crate::model::reject::{Reason, Reject};

/// Returns the protobuf encoding of a JSON `MetricsData`.
pub(super) fn to_protobuf(text: &str, limits: &Limits) -> Result<Vec<u8>, Reject> {
    let data: MetricsData<'_> = json::one(text, limits)?;
    let mut resource_metrics = Vec::with_capacity(data.resource_metrics.len());
    for (index, resource) in data.resource_metrics.into_iter().enumerate() {
        resource_metrics.push(resource.into_proto().map_err(at(format_args!("resource {index}")))?);
    }
    Ok(proto::MetricsData { resource_metrics }.encode_to_vec())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricsData<'a> {
    #[serde(borrow)]
    resource_metrics: Vec<ResourceMetrics<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceMetrics<'a> {
    resource: Option<Resource>,
    #[serde(borrow, default)]
    scope_metrics: Vec<ScopeMetrics<'a>>,
}

#[derive(Deserialize)]
struct ScopeMetrics<'a> {
    #[serde(borrow, default)]
    metrics: Vec<Metric<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metric<'a> {
    #[serde(default)]
    name: String,
    #[serde(default)]
    unit: String,
    #[serde(borrow)]
    gauge: Option<Numbers<'a>>,
    #[serde(borrow)]
    sum: Option<Numbers<'a>>,
    histogram: Option<proto::Histogram>,
    exponential_histogram: Option<proto::ExponentialHistogram>,
    summary: Option<proto::Summary>,
}

/// A gauge, or a sum with the two fields more that it has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Numbers<'a> {
    #[serde(borrow, default)]
    data_points: Vec<NumberPoint<'a>>,
    #[serde(default)]
    aggregation_temporality: i32,
    #[serde(default)]
    is_monotonic: bool,
}

/// 64-bit integers stand as strings in OTLP/JSON, as plain numbers from lenient producers; both are read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NumberPoint<'a> {
    #[serde(default)]
    attributes: Vec<KeyValue>,
    #[serde(borrow)]
    time_unix_nano: Option<&'a RawValue>,
    #[serde(borrow)]
    as_double: Option<&'a RawValue>,
    #[serde(borrow)]
    as_int: Option<&'a RawValue>,
    #[serde(default)]
    flags: u32,
}

impl ResourceMetrics<'_> {
    fn into_proto(self) -> Result<proto::ResourceMetrics, Reject> {
        let mut scope_metrics = Vec::with_capacity(self.scope_metrics.len());
        for scope in self.scope_metrics {
            let metrics = scope.metrics.into_iter().map(Metric::into_proto).collect::<Result<_, _>>()?;
            scope_metrics.push(proto::ScopeMetrics { metrics, ..Default::default() });
        }
        Ok(proto::ResourceMetrics { resource: self.resource, scope_metrics, ..Default::default() })
    }
}

impl Metric<'_> {
    fn into_proto(self) -> Result<proto::Metric, Reject> {
        let name = self.name;
        let points = |numbers: Vec<NumberPoint<'_>>| -> Result<Vec<_>, Reject> {
            let read = |(i, point): (usize, NumberPoint<'_>)| {
                point.into_proto().map_err(at(format_args!("metric {name:?}: point {i}")))
            };
            numbers.into_iter().enumerate().map(read).collect()
        };
        let data = if let Some(gauge) = self.gauge {
            Some(Data::Gauge(proto::Gauge { data_points: points(gauge.data_points)? }))
        } else if let Some(sum) = self.sum {
            Some(Data::Sum(proto::Sum {
                data_points: points(sum.data_points)?,
                aggregation_temporality: sum.aggregation_temporality,
                is_monotonic: sum.is_monotonic,
            }))
        } else {
            let histogram = self.histogram.map(Data::Histogram);
            let exponential = self.exponential_histogram.map(Data::ExponentialHistogram);
            histogram.or(exponential).or(self.summary.map(Data::Summary))
        };
        Ok(proto::Metric { name, unit: self.unit, data, ..Default::default() })
    }
}

impl NumberPoint<'_> {
    fn into_proto(self) -> Result<proto::NumberDataPoint, Reject> {
        let as_int = self.as_int.map(|raw| integer("asInt", raw).map(Value::AsInt)).transpose()?;
        let as_double = self.as_double.map(|raw| double(raw).map(Value::AsDouble)).transpose()?;
        let time = self.time_unix_nano.map(|raw| integer("timeUnixNano", raw)).transpose()?;
        Ok(proto::NumberDataPoint {
            attributes: self.attributes,
            time_unix_nano: time.unwrap_or_default(),
            flags: self.flags,
            value: as_double.or(as_int),
            ..Default::default()
        })
    }
}

fn integer<N: std::str::FromStr>(field: &str, raw: &RawValue) -> Result<N, Reject> {
    let text = json::scalar(field, raw)?.unwrap_or_default();
    text.parse().map_err(|_| refuse(Reason::Type, field, "a 64-bit integer", raw.get()))
}

/// Reads a double, which may be a string: protobuf's JSON writes what is not finite as a word.
fn double(raw: &RawValue) -> Result<f64, Reject> {
    if !raw.get().starts_with('"') {
        return json::number("asDouble", raw);
    }
    let text = json::string("asDouble", raw)?;
    text.parse().map_err(|_| refuse(Reason::Type, "asDouble", "a number", raw.get()))
}
