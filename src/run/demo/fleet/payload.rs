//! The bytes that the simulated fleet sends, in the five formats that are read. Holds no chance and no state.

use serde_json::{Value, json};

use super::{CLOUDEVENTS, EVENTS, Emission, INFLUX, METRICS, OTLP};
use crate::model::time::EventTime;

pub fn request(service: &str, replica: &str, status: &str, seconds: f64, at: EventTime) -> Emission {
    let labels = json!({"service": service, "replica": replica, "status": status});
    metric("request_duration_seconds", service, labels, rounded(seconds, 6), at)
}

pub fn health(component: &str, healthy: bool, at: EventTime) -> Emission {
    metric("component_health", component, json!({"component": component}), f64::from(u8::from(healthy)), at)
}

/// Read as the metric `resource_use_ratio`: measurement and field.
pub fn resource_use(service: &str, replica: &str, resource: &str, ratio: f64, at: EventTime) -> Emission {
    let nanos = i128::from(at.as_micros()) * 1_000;
    let line = format!(
        "resource_use,service={service},replica={replica},resource={resource} ratio={} {nanos}",
        rounded(ratio, 4)
    );
    Emission { topic: INFLUX, key: service.into(), payload: line.into_bytes(), headers: Vec::new(), at }
}

pub fn queue_depth(service: &str, depth: f64, at: EventTime) -> Emission {
    let nanos = (i128::from(at.as_micros()) * 1_000).to_string();
    let point = json!({
        "attributes": [{"key": "service", "value": {"stringValue": service}}],
        "timeUnixNano": nanos,
        "asDouble": depth,
    });
    let metric = json!({"name": "queue_depth", "unit": "{request}", "gauge": {"dataPoints": [point]}});
    let body = json!({"resourceMetrics": [{
        "resource": {"attributes": []},
        "scopeMetrics": [{"scope": {"name": "bellwether.demo"}, "metrics": [metric]}],
    }]});
    emission(OTLP, service, &body, at)
}

/// One run of one workflow, whose tasks and end are told.
pub struct Run<'a> {
    pub workflow: &'a str,
    pub number: u64,
}

impl Run<'_> {
    pub fn task(&self, phase: &str, success: bool, duration_ms: f64, at: EventTime) -> Emission {
        let subject = format!("{}.{phase}", self.workflow);
        let attributes = json!({"workflow": self.workflow, "phase": phase, "run": self.number.to_string()});
        self.event(&format!("-{phase}"), "task.completed", &subject, (success, duration_ms), attributes, at)
    }

    pub fn completed(&self, success: bool, duration_ms: f64, at: EventTime) -> Emission {
        let attributes = json!({"workflow": self.workflow, "run": self.number.to_string()});
        self.event("", "workflow.completed", self.workflow, (success, duration_ms), attributes, at)
    }

    fn event(
        &self,
        id_end: &str,
        kind: &str,
        subject: &str,
        (success, duration_ms): (bool, f64),
        attributes: Value,
        at: EventTime,
    ) -> Emission {
        let body = json!({
            "ts": at,
            "id": format!("{}-{}{id_end}", self.workflow, self.number),
            "source": "demo/workflow-engine",
            "type": kind,
            "subject": subject,
            "outcome": if success { "success" } else { "failure" },
            "duration_ms": rounded(duration_ms, 1),
            "severity": if success { "info" } else { "error" },
            "attributes": attributes,
        });
        emission(EVENTS, self.workflow, &body, at)
    }
}

/// A CDEvent about a service, as a structured CloudEvent; `predicate` is `deployed`, `upgraded` or `rolledback`.
pub fn deployment(number: u64, service: &str, release: u32, predicate: &str, at: EventTime) -> Emission {
    let (id, kind, source) =
        (format!("deploy-{number}"), format!("dev.cdevents.service.{predicate}.0.2.0"), "demo/deployer");
    let body = json!({
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": kind,
        "subject": service,
        "time": at,
        "datacontenttype": "application/json",
        "data": {
            "context": {"version": "0.4.1", "id": id, "source": source, "type": kind, "timestamp": at},
            "subject": {"id": service, "source": source, "type": "service", "content": {
                "environment": {"id": "production"},
                "artifactId": format!("pkg:oci/{service}@1.{release}.0"),
            }},
        },
    });
    let headers = vec![("content-type".to_owned(), "application/cloudevents+json; charset=UTF-8".to_owned())];
    Emission { headers, ..emission(CLOUDEVENTS, service, &body, at) }
}

fn metric(name: &str, key: &str, labels: Value, value: f64, at: EventTime) -> Emission {
    emission(METRICS, key, &json!({"ts": at, "name": name, "labels": labels, "value": value}), at)
}

fn emission(topic: &'static str, key: &str, body: &Value, at: EventTime) -> Emission {
    Emission { topic, key: key.into(), payload: body.to_string().into_bytes(), headers: Vec::new(), at }
}

/// Returns a number with so many decimals: what a real exporter would send, and half the bytes.
fn rounded(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (value * scale).round() / scale
}
