//! Tests of the whole page: against golden files, and against promtool where it is installed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::instruments::{QueryOutcome, Stage};
use super::latest::{AlertValue, ForecastValue, Key, TrackValue};
use super::{Exposition, Settings, Telemetry};

/// Returns telemetry in which every instrument and every kind of latest value has something to show.
fn filled() -> Telemetry {
    let telemetry = Telemetry::new(&Settings::default());
    telemetry.input.declare("metrics");
    telemetry.input.consumed("metrics", 100, 12_345);
    telemetry.input.decoded("metrics", 97);
    telemetry.input.rejected("metrics", "wrong_type", 3);
    telemetry.input.series_refused("metrics", 1);
    telemetry.input.set_series(42);
    telemetry.broker.set_up(true);
    telemetry.broker.set_lag("metrics", 0, 17);
    telemetry.broker.set_lag("metrics", 1, 99);
    telemetry.broker.forget("metrics", 1);
    telemetry.views.declare("service_latency_1m");
    telemetry.views.late("service_latency_1m", 2);
    telemetry.views.emitted("service_latency_1m", 8);
    telemetry.views.corrected("service_latency_1m", 3);
    telemetry.views.set_watermark_delay("service_latency_1m", Duration::from_millis(10_500));
    telemetry.stages.observe(Stage::Decode, Duration::from_micros(700));
    telemetry.stages.observe(Stage::StoreCommit, Duration::from_secs(60));
    telemetry.store.committed();
    telemetry.store.commit_failed();
    telemetry.store.set_head(1_000, 64_000);
    telemetry.queues.set_depth("decoded", 5);
    for outcome in [QueryOutcome::Ok, QueryOutcome::Cancelled] {
        telemetry.sql.started();
        telemetry.sql.ended(outcome);
    }
    telemetry.http.answered("/sql", 200);
    telemetry.decisions.made("checkout", "decided");
    fill_latest(&telemetry);
    telemetry
}

fn fill_latest(telemetry: &Telemetry) {
    let key = Key::from([("service".to_owned(), "check\"out\n".to_owned())]);
    let track = |column: &str, value| TrackValue { column: column.to_owned(), key: key.clone(), value };
    let latest = &telemetry.latest;
    latest.replace_view("service_latency_1m", [track("p99", 0.25), track("count", 120.0)]);
    latest.replace_anomaly_scores("service_latency_1m", &[track("p99", 0.97)]);
    let (yhat, yhat_lower, yhat_upper) = (0.3, 0.2, 0.4);
    let (column, horizon) = ("p99".to_owned(), Duration::from_secs(300));
    let forecast = ForecastValue { column, key: key.clone(), horizon, yhat, yhat_lower, yhat_upper };
    latest.replace_forecasts("service_latency_1m", &[forecast]);
    let alert = AlertValue { rule: "response_time".to_owned(), severity: "warning", firing: true, labels: key.clone() };
    latest.replace_alerts(&[alert]);
    latest.set_decision("checkout", Some(6), 0.8);
}

/// Returns the page without what differs from run to run, samples of one metric sorted: families keep them in no order.
fn settled(page: &str) -> String {
    let differs = |line: &str| line.contains("process_") || line.starts_with("bellwether_build_info{");
    let mut lines: Vec<&str> = page.lines().filter(|line| !differs(line)).collect();
    for metric in lines.chunk_by_mut(|one, other| one.starts_with('#') == other.starts_with('#')) {
        if metric.first().is_some_and(|line| !line.starts_with('#')) {
            metric.sort_unstable();
        }
    }
    lines.join("\n") + "\n"
}

/// Compares with a golden file; writes it instead where `BELLWETHER_BLESS` is set.
fn assert_golden(name: &str, actual: &str) {
    let path = golden_path(name);
    if std::env::var_os("BELLWETHER_BLESS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, golden, "{} differs; see it with BELLWETHER_BLESS=1 and git diff", path.display());
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/telemetry/testdata").join(name)
}

#[test]
fn a_filled_page_is_as_recorded_in_both_formats() {
    let telemetry = filled();
    assert_golden("filled.openmetrics.txt", &settled(&telemetry.render()));
    assert_golden("filled.prometheus.txt", &settled(&telemetry.render_as(Exposition::Text)));
}

#[test]
fn the_process_is_on_the_page() {
    let page = Telemetry::default().render();
    let value = |name: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes ") > 1e6);
    assert!(value("process_cpu_seconds_total ") >= 0.0);
    assert!(value("process_start_time_seconds ") > 1.7e9);
    assert!(value("process_open_fds ") >= 3.0);
}

#[test]
fn a_query_counts_as_running_until_it_ends() {
    let telemetry = Telemetry::default();
    telemetry.sql.started();
    assert!(telemetry.render().contains("\nbellwether_sql_queries_running 1\n"));
    telemetry.sql.ended(QueryOutcome::Limit);
    let page = telemetry.render();
    assert!(page.contains("\nbellwether_sql_queries_running 0\n"), "{page}");
    assert!(page.contains("\nbellwether_sql_queries_total{outcome=\"limit\"} 1\n"), "{page}");
    assert!(page.contains("\nbellwether_sql_queries_total{outcome=\"cancelled\"} 0\n"), "{page}");
}

#[test]
fn a_timer_measures_its_life() {
    let telemetry = Telemetry::default();
    drop(telemetry.stages.time(Stage::Window));
    let page = telemetry.render();
    assert!(page.contains("\nbellwether_stage_duration_seconds_count{stage=\"window\"} 1\n"), "{page}");
}

#[test]
fn promtool_accepts_the_page() {
    for (name, telemetry) in [("new", Telemetry::default()), ("filled", filled())] {
        let page = telemetry.render_as(Exposition::Text);
        let Some(verdict) = promtool_check(&page) else {
            println!("skipped: promtool not found");
            return;
        };
        assert_eq!(verdict, "", "promtool on the {name} page:\n{page}");
    }
}

#[test]
fn promtool_would_refuse_a_broken_page() {
    let broken = "# HELP x_bytes X.\n# TYPE x_bytes counter\nx_bytes 1\n";
    match promtool_check(broken) {
        Some(verdict) => assert!(verdict.contains("_total"), "{verdict}"),
        None => println!("skipped: promtool not found"),
    }
}

/// Returns what `promtool check metrics` finds wrong; empty where nothing; `None` where there is no promtool.
fn promtool_check(page: &str) -> Option<String> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    Some(said)
}
