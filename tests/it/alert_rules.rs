//! The shipped alert rules, run as shipped by DataFusion over rows on both sides of what they speak at.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use bellwether::decide::rule::Rule;
use datafusion::prelude::SessionContext;

fn text(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn float(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

fn count(values: &[i64]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

/// Runs the shipped rule over rows of its view; returns what it selected under a label column, with the values, and
/// checks that whatever its annotations name is selected.
async fn firing(rule: &str, view: &str, label: &str, columns: Vec<(&str, ArrayRef)>) -> Vec<(String, f64)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("sql/alerts/{rule}.sql"));
    let rule = Rule::parse(path.to_str().unwrap(), &fs::read_to_string(&path).unwrap()).unwrap();
    let context = SessionContext::new();
    context.register_batch(view, RecordBatch::try_from_iter(columns).unwrap()).unwrap();
    let batches = context.sql(&rule.sql).await.unwrap().collect().await.unwrap();
    let mut found = Vec::new();
    for batch in batches {
        for (annotation, column) in rule.annotation_columns() {
            assert!(batch.column_by_name(column).is_some(), "{annotation} of {} names {column}", rule.name);
        }
        let labels = batch.column_by_name(label).unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
        let values = batch.column_by_name("value").unwrap().as_any().downcast_ref::<Float64Array>().unwrap().clone();
        found.extend(labels.iter().zip(values.iter()).map(|(l, v)| (l.unwrap().to_owned(), v.unwrap())));
    }
    found
}

#[tokio::test]
async fn component_unhealthy() {
    let columns = vec![("component", text(&["up", "down"])), ("health", float(&[1.0, 0.0]))];
    let found = firing("component_unhealthy", "component_health_10s", "component", columns).await;
    assert_eq!(found, [("down".to_owned(), 0.0)]);
}

#[tokio::test]
async fn error_rate_high() {
    let columns = vec![
        ("service", text(&["edge", "over", "few"])),
        ("n", count(&[100, 100, 19])),
        ("errors", count(&[10, 11, 19])),
        ("error_rate", float(&[0.10, 0.11, 1.0])),
    ];
    let found = firing("error_rate_high", "service_errors_1m", "service", columns).await;
    assert_eq!(found, [("over".to_owned(), 0.11)]);
}

#[tokio::test]
async fn response_time_high() {
    let columns = vec![
        ("service", text(&["edge", "over", "few"])),
        ("n", count(&[100, 20, 19])),
        ("p95", float(&[1.0, 1.01, 9.0])),
    ];
    let found = firing("response_time_high", "service_latency_1m", "service", columns).await;
    assert_eq!(found, [("over".to_owned(), 1.01)]);
}

#[tokio::test]
async fn resource_exhausted() {
    let columns = vec![
        ("service", text(&["a", "a"])),
        ("replica", text(&["a-1", "a-2"])),
        ("resource", text(&["cpu", "memory"])),
        ("used_ratio", float(&[0.90, 0.95])),
    ];
    let found = firing("resource_exhausted", "resource_use_30s", "replica", columns).await;
    assert_eq!(found, [("a-2".to_owned(), 0.95)]);
}

#[tokio::test]
async fn workflow_failing() {
    let columns = vec![
        ("workflow", text(&["edge", "over", "few"])),
        ("n", count(&[10, 10, 4])),
        ("failures", count(&[2, 3, 4])),
        ("failure_rate", float(&[0.20, 0.30, 1.0])),
    ];
    let found = firing("workflow_failing", "workflow_outcomes_5m_by_1m", "workflow", columns).await;
    assert_eq!(found, [("over".to_owned(), 0.30)]);
}
