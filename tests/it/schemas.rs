//! The schemas of records, held against what the code really writes and reads.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bellwether::decide::alert::{Alerts, Instance};
use bellwether::decide::planner::{Inputs, ScalingTarget, TargetState, plan};
use bellwether::decide::rule::Rule;
use bellwether::model::finding::{Anomaly, Forecast, Method, Track};
use bellwether::model::reject::Reason;
use bellwether::model::time::EventTime;
use serde::Serialize;
use serde_json::{Value, json};

/// A schema of one kind of record, itself checked against the draft it names.
struct Schema {
    name: &'static str,
    document: Value,
    validator: jsonschema::Validator,
}

impl Schema {
    fn of(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/records/{name}.schema.json"));
        let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema");
        jsonschema::meta::validate(&document).unwrap_or_else(|error| panic!("{name}: {error}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&document).unwrap();
        Schema { name, document, validator }
    }

    #[track_caller]
    fn accepts(&self, record: &Value) {
        let errors: Vec<String> =
            self.validator.iter_errors(record).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{} refuses {record}: {errors:#?}", self.name);
    }

    #[track_caller]
    fn refuses(&self, record: &Value) {
        assert!(!self.validator.is_valid(record), "{} accepts {record}", self.name);
    }

    /// Accepts what was written, and nothing with a field more, a field less, or a field of another type: so the schema
    /// names exactly the fields that the code writes.
    #[track_caller]
    fn fits(&self, written: &impl Serialize) {
        let record = serde_json::to_value(written).unwrap();
        self.accepts(&record);
        let mut more = record.clone();
        more["surprise"] = json!(1);
        self.refuses(&more);
        let fields: Vec<String> = record.as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut less = record.clone();
            less.as_object_mut().unwrap().remove(&field);
            self.refuses(&less);
            let mut other = record.clone();
            other[&field] = json!([true]);
            self.refuses(&other);
        }
    }
}

fn at(seconds: i64) -> EventTime {
    EventTime::from_micros(1_767_268_800_000_000 + seconds * 1_000_000 + 1)
}

fn text(value: &str) -> String {
    value.to_owned()
}

#[test]
fn alerts_in_every_state() {
    let schema = Schema::of("alert");
    let header =
        "-- severity: critical\n-- for: 10s\n-- labels: team=pay\n-- summary: {service}\n-- description: {value}";
    let rule = Rule::parse("slow.sql", &format!("{header}\nSELECT 1")).unwrap();
    let labels = BTreeMap::from([(text("service"), text("cart"))]);
    let mut alerts = Alerts::default();
    let mut states = Vec::new();
    for (second, value) in [(0, Some(1.5)), (10, None), (20, Some(0.1 + 0.2))] {
        let rows =
            if second < 20 { vec![Instance { labels: labels.clone(), value, ..Instance::default() }] } else { vec![] };
        for alert in alerts.step(&rule, at(second), &rows).unwrap() {
            schema.fits(&alert);
            states.push(alert.state.as_str());
        }
    }
    assert_eq!(states, ["pending", "firing", "resolved"]);
}

#[test]
fn decisions_and_abstentions_of_every_kind() {
    let schema = Schema::of("decision");
    let target: ScalingTarget = serde_json::from_value(json!({
        "target": "checkout", "view": "throughput", "column": "rate", "capacity_per_replica": 100.0, "replicas_max": 9,
        "cost_per_replica_hour": 0.25,
    }))
    .unwrap();
    let loads = |newest: f64| vec![(at(-120), 250.0), (at(-60), 250.0), (at(0), newest)];
    let forecast = [(at(60), 512.5)];
    let cases = [
        (loads(412.0), at(0), &forecast[..], None),
        (loads(412.0), at(0), &[], None),
        (vec![], at(0), &[], Some("no_data")),
        (loads(412.0), at(900), &[], Some("stale_data")),
        (loads(412.0).split_off(1), at(0), &[], Some("short_history")),
        (loads(f64::NAN), at(0), &[], Some("unusable_load")),
        (loads(-5.0), at(0), &[], Some("unusable_load")),
    ];
    for (history, now, forecast, abstention) in cases {
        let inputs = Inputs { history: &history, forecast, issued_at: Some(now) };
        for target in [target.clone(), ScalingTarget { cost_per_replica_hour: 0.0, ..target.clone() }] {
            let decision = plan(&target, now, &inputs, &TargetState::default()).0.unwrap();
            assert_eq!(decision.abstention.map(|a| a.as_str()), abstention);
            schema.fits(&decision);
        }
    }
    let inputs = Inputs { history: &loads(412.0), ..Inputs::default() };
    let mut neither = serde_json::to_value(plan(&target, at(0), &inputs, &TargetState::default()).0.unwrap()).unwrap();
    neither["desired_replicas"] = Value::Null;
    schema.refuses(&neither);
}

#[test]
fn anomalies_and_forecasts() {
    let key = BTreeMap::from([(text("service"), text("cart"))]);
    let track = Track { view: text("service_latency_1m"), column: text("p95"), key };
    for method in [Method::Residual, Method::Dbscan] {
        Schema::of("anomaly").fits(&Anomaly::new(at(0), track.clone(), method, 1.5, 0.2, 0.999));
    }
    Schema::of("forecast").fits(&Forecast {
        id: Forecast::id_of(&track, at(0), at(60), "ets"),
        issued_at: at(0),
        target_time: at(0) + Duration::from_secs(60),
        track,
        yhat: 0.2,
        yhat_lower: 0.1,
        yhat_upper: 0.3,
        level: 0.95,
        model: text("ets"),
    });
}

#[test]
fn records_that_are_read() {
    let metric = Schema::of("metric.in");
    let sample = json!({"ts": "2026-01-02T03:04:05Z", "name": "up", "labels": {"a": "b", "n": 1}, "value": 1.5});
    metric.accepts(&sample);
    metric.accepts(&json!([sample, {"name": "up", "value": 0, "ts": 1_767_323_045}]));
    metric.accepts(&json!({"name": "up", "value": 0, "ts": null, "kind": "counter", "unit": "s", "extra": []}));
    for broken in [
        json!({"value": 1}),
        json!({"name": "up"}),
        json!({"name": "", "value": 1}),
        json!({"name": "up", "value": true}),
        json!({"name": "up", "value": 1, "labels": {"a": {}}}),
        json!({"name": "up", "value": 1, "ts": "yesterday"}),
        json!("up"),
    ] {
        metric.refuses(&broken);
    }
    let event = Schema::of("event.in");
    event.accepts(&json!({
        "ts": "2026-01-02T03:04:05.5Z", "id": "1", "source": "s", "type": "workflow.completed", "subject": "etl",
        "outcome": "success", "duration_ms": 12.5, "severity": null, "attributes": {"phase": "load"}, "data": {"any": [1]},
    }));
    event.refuses(&json!({"type": "workflow.completed"}));
    event.refuses(&json!({"type": "a", "subject": "b", "duration_ms": "long"}));
}

#[test]
fn headers_of_dead_letters() {
    let schema = Schema::of("dead_letter");
    let classes: Vec<Value> = Reason::ALL.iter().map(|reason| json!(reason.as_str())).collect();
    let class = "__connect.errors.exception.class.name";
    assert_eq!(schema.document["properties"][class]["enum"], json!(classes));
    let mut headers = json!({
        "__connect.errors.topic": "metrics", "__connect.errors.partition": "0", "__connect.errors.offset": "41",
        "__connect.errors.exception.message": "expected a number as \"value\", got \"x\"", "traceparent": "00-ab-cd-01",
    });
    schema.refuses(&headers);
    headers[class] = json!("type");
    schema.accepts(&headers);
}
