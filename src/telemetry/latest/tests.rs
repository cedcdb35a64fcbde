//! Tests of the latest values: replacement, names, labels, limits.

use super::*;

fn key(pairs: &[(&str, &str)]) -> Key {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn track(column: &str, pairs: &[(&str, &str)], value: f64) -> TrackValue {
    TrackValue { column: column.to_owned(), key: key(pairs), value }
}

/// Returns the sample lines of a page, without those of the drop counter.
fn samples(registry: &Registry) -> Vec<String> {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
    let ours = |line: &&str| !line.starts_with('#') && !line.starts_with("latest_values_dropped");
    page.lines().filter(ours).map(str::to_owned).collect()
}

fn board(values_max: usize) -> (Registry, Latest) {
    let mut registry = Registry::default();
    let latest = Latest::register(&mut registry, values_max);
    (registry, latest)
}

fn dropped(latest: &Latest, reason: &'static str) -> u64 {
    latest.dropped.get_or_create(&DropLabel { reason }).get()
}

#[test]
fn what_vanished_from_a_view_vanishes_from_the_page() {
    let (registry, latest) = board(10);
    latest.replace_view("v", [track("p99", &[("service", "a")], 1.0), track("p99", &[("service", "b")], 2.0)]);
    assert_eq!(samples(&registry), ["view_v_p99{service=\"a\"} 1.0", "view_v_p99{service=\"b\"} 2.0"]);
    latest.replace_view("v", [track("p99", &[("service", "b")], 3.0)]);
    assert_eq!(samples(&registry), ["view_v_p99{service=\"b\"} 3.0"]);
    latest.replace_view("v", []);
    assert!(samples(&registry).is_empty());
}

#[test]
fn the_limit_holds_over_all_sources_and_is_counted() {
    let (registry, latest) = board(3);
    latest.replace_view("v", [track("a", &[], 1.0), track("b", &[], 2.0)]);
    latest.replace_anomaly_scores("v", &[track("a", &[], 0.5), track("b", &[], 0.5)]);
    assert_eq!(samples(&registry).len(), 3);
    assert_eq!(dropped(&latest, Dropped::LIMIT), 1);
    // A source may always refill the room that it held itself.
    latest.replace_view("v", [track("a", &[], 3.0), track("c", &[], 4.0)]);
    assert_eq!(dropped(&latest, Dropped::LIMIT), 1);
    assert_eq!(samples(&registry).len(), 3);
}

#[test]
fn names_are_made_good() {
    let cases = [
        ("Service Latency", "P99.9", "view_service_latency_p99_9"),
        ("throughput_1m", "requests_total", "view_throughput_1m_requests_total_value"),
        ("v", "count", "view_v_count_value"),
        ("größe", "n", "view_gr__e_n"),
    ];
    for (view, column, name) in cases {
        assert_eq!(view_metric_name(view, column), name);
    }
    for (given, name) in
        [("a-b", "a_b"), ("9", "label_9"), ("", "label_"), ("__name__", "label___name__"), ("_", "label__")]
    {
        assert_eq!(label_name(given), name);
    }
    assert!(view_metric_name(&"v".repeat(10_000), "c").len() <= NAME_BYTES_MAX + "_value".len());
}

#[test]
fn two_columns_of_one_name_do_not_make_the_page_unreadable() {
    let (registry, latest) = board(10);
    latest.replace_view("a_b", [track("c", &[], 1.0)]);
    latest.replace_view("a", [track("b_c", &[], 2.0), track("x", &[], 3.0), track("X", &[], 4.0)]);
    assert_eq!(samples(&registry), ["view_a_b_c{} 1.0", "view_a_x{} 3.0"]);
    assert_eq!(dropped(&latest, Dropped::NAME_TAKEN), 2);
}

#[test]
fn a_key_cannot_overwrite_our_labels() {
    let (registry, latest) = board(10);
    latest.replace_anomaly_scores("v", &[track("c", &[("view", "x"), ("a-b", "1"), ("a_b", "2")], 0.25)]);
    let expected = "anomaly_score{a_b=\"1\",column=\"c\",exported_a_b=\"2\",exported_view=\"x\",view=\"v\"} 0.25";
    assert_eq!(samples(&registry), [expected]);
}

#[test]
fn label_values_are_escaped_and_cut() {
    let (registry, latest) = board(10);
    latest.replace_view("v", [track("c", &[("k", "a\"b\\c\nd")], 1.0)]);
    assert_eq!(samples(&registry), ["view_v_c{k=\"a\\\"b\\\\c\\nd\"} 1.0"]);
    latest.replace_view("v", [track("c", &[("k", &"é".repeat(1_000))], 1.0)]);
    let line = samples(&registry).remove(0);
    assert_eq!(line.matches('é').count(), LABEL_BYTES_MAX / 2, "{line}");
}

#[test]
fn labels_that_coincide_after_the_cut_give_one_sample() {
    let (registry, latest) = board(10);
    let long = "x".repeat(LABEL_BYTES_MAX);
    let (one, two) = (format!("{long}1"), format!("{long}2"));
    latest.replace_view("v", [track("c", &[("k", &one)], 1.0), track("c", &[("k", &two)], 2.0)]);
    assert_eq!(samples(&registry).len(), 1);
    latest.set_decision(&one, Some(1), 1.0);
    latest.set_decision(&two, Some(2), 1.0);
    let desired = samples(&registry).iter().filter(|line| line.starts_with("desired_replicas")).count();
    assert_eq!(desired, 1);
}

#[test]
fn values_that_are_not_finite_are_absent() {
    let (registry, latest) = board(10);
    let values = [f64::NAN, f64::INFINITY, 1.0].map(|value| track("c", &[("k", &value.to_string())], value));
    latest.replace_view("v", values);
    assert_eq!(samples(&registry), ["view_v_c{k=\"1\"} 1.0"]);
}

#[test]
fn alerts_are_shown_one_by_one_and_counted() {
    let (registry, latest) = board(10);
    let alert = |service: &str, firing| AlertValue {
        rule: "slow".to_owned(),
        severity: "warning",
        firing,
        labels: key(&[("service", service)]),
    };
    latest.replace_alerts(&[alert("a", true), alert("b", true), alert("c", false)]);
    assert_eq!(
        samples(&registry),
        [
            "alert_firing{rule=\"slow\",service=\"a\",severity=\"warning\"} 1.0",
            "alert_firing{rule=\"slow\",service=\"b\",severity=\"warning\"} 1.0",
            "alert_firing{rule=\"slow\",service=\"c\",severity=\"warning\"} 0.0",
            "alerts_active{rule=\"slow\",severity=\"warning\",state=\"firing\"} 2.0",
            "alerts_active{rule=\"slow\",severity=\"warning\",state=\"pending\"} 1.0",
        ]
    );
    latest.replace_alerts(&[]);
    assert!(samples(&registry).is_empty());
}

#[test]
fn an_abstention_takes_the_number_off_the_page() {
    let (registry, latest) = board(10);
    latest.set_decision("api", Some(4), 0.9);
    assert_eq!(samples(&registry), ["decision_confidence{target=\"api\"} 0.9", "desired_replicas{target=\"api\"} 4.0"]);
    latest.set_decision("api", None, 0.0);
    assert_eq!(samples(&registry), ["decision_confidence{target=\"api\"} 0.0"]);
}
