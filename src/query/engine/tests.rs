//! The engine whole: labels, functions, the fences, and each limit met on purpose.

use std::sync::Mutex;

use arrow::array::{ArrayRef, Float64Array, MapBuilder, StringBuilder, TimestampMicrosecondArray};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::*;
use crate::query::error::Class;
use crate::query::format::{Format, write};
use crate::query::statement;

fn settings() -> Settings {
    Settings {
        memory_bytes_max: 64 << 20,
        rows_max: 100_000,
        timeout: Duration::from_secs(60),
        concurrency_max: 4,
        statement_bytes_max: 1 << 18,
    }
}

/// Twelve samples of two services, ten seconds apart, the first falling and the second rising, and two without a service.
fn metrics() -> Arc<dyn TableProvider> {
    let mut labels = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in 0..14 {
        labels.keys().append_value(if row < 12 { "service" } else { "zone" });
        labels.values().append_value(if row % 2 == 0 { "api" } else { "web" });
        labels.append(true).unwrap();
    }
    let values = (0..14).map(|row| if row % 2 == 0 { 100.0 - f64::from(row) } else { f64::from(row) });
    let ts = TimestampMicrosecondArray::from_iter_values((0..14).map(|row| row / 2 * 10_000_000)).with_timezone("UTC");
    let batch = RecordBatch::try_from_iter([
        ("ts", Arc::new(ts) as ArrayRef),
        ("value", Arc::new(Float64Array::from_iter_values(values))),
        ("labels", Arc::new(labels.finish())),
    ])
    .unwrap();
    Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
}

fn engine_with(settings: Settings, views: &[(&str, &str)]) -> Engine {
    let table = metrics();
    let pin: Pin = Arc::new(move || vec![("metrics".to_owned(), table.clone())].into());
    let views = views.iter().map(|(name, sql)| ((*name).to_owned(), (*sql).to_owned())).collect();
    Engine::new(settings, pin, views).unwrap()
}

fn engine() -> Engine {
    engine_with(settings(), &[])
}

async fn csv(engine: &Engine, sql: &str) -> Result<String, QueryError> {
    let answer = engine.run(sql).await?;
    let schema = answer.schema.clone();
    let mut out = Vec::new();
    write(Format::Csv, &schema, &answer.collect().await?, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

async fn fails(engine: &Engine, sql: &str) -> QueryError {
    match csv(engine, sql).await {
        Ok(answer) => panic!("{sql} answered {answer}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn labels_are_reached_by_subscript() {
    let engine = engine();
    let sql = "SELECT labels['service'] AS service, count(*) AS n FROM metrics GROUP BY labels['service'] ORDER BY 1 NULLS LAST";
    assert_eq!(csv(&engine, sql).await.unwrap(), "service,n\napi,6\nweb,6\n,2\n");
    let sql = "SELECT value, labels['zone'] AS zone FROM metrics WHERE labels['service'] = 'api' AND value > 97";
    assert_eq!(csv(&engine, sql).await.unwrap(), "value,zone\n100.0,\n98.0,\n");
    let sql = "SELECT count(*) AS n FROM metrics WHERE labels['service'] IS NULL";
    assert_eq!(csv(&engine, sql).await.unwrap(), "n\n2\n");
    assert_eq!(csv(&engine, "SELECT labels FROM metrics LIMIT 1").await.unwrap(), "labels\n{service=api}\n");
}

#[tokio::test]
async fn aggregates_work_grouped_and_not() {
    let engine = engine();
    let sql = "SELECT labels['service'] AS s, hdr_quantile(value, 0.5) AS p50, percentile_cont(value, 0.5) AS exact, \
               round(trend(value, ts), 6) AS slope, trend_direction(value, ts) AS d, \
               trend_direction(value, ts, 0.5) AS d50, \
               first_by_time(value, ts) AS first, last_by_time(value, ts) AS last, \
               last_by_time(labels['service'], ts) AS label \
               FROM metrics WHERE labels['service'] IS NOT NULL GROUP BY 1 ORDER BY 1";
    assert_eq!(
        csv(&engine, sql).await.unwrap(),
        "s,p50,exact,slope,d,d50,first,last,label\n\
         api,95.0,95.0,-0.2,improving,stable,100.0,90.0,api\n\
         web,6.0,6.0,0.2,degrading,degrading,1.0,11.0,web\n"
    );
    let sql = "SELECT hdr_quantile(value, 1) AS q, trend(value, ts) IS NULL AS t, last_by_time(value, ts) AS l FROM metrics WHERE value < 0";
    assert_eq!(csv(&engine, sql).await.unwrap(), "q,t,l\n,true,\n");
    let sql = "SELECT hdr_quantile(value, 0.25) FILTER (WHERE value < 50) AS q, max(value) AS m FROM metrics";
    assert_eq!(csv(&engine, sql).await.unwrap(), "q,m\n4.0,100.0\n");
}

#[tokio::test]
async fn aggregates_run_over_windows_without_losing_their_state() {
    let sql = "SELECT value, hdr_quantile(value, 1.0) OVER (ORDER BY value) AS top, \
               last_by_time(value, ts) OVER (ORDER BY value) AS last FROM metrics WHERE value < 8 ORDER BY value";
    assert_eq!(
        csv(&engine(), sql).await.unwrap(),
        "value,top,last\n1.0,1.0,1.0\n3.0,3.0,3.0\n5.0,5.0,5.0\n7.0,7.0,7.0\n"
    );
}

#[tokio::test]
async fn sketches_merge_into_the_quantile_of_the_whole() {
    let sql = "WITH parts AS (SELECT n % 7 AS k, hdr_sketch(n) AS s FROM (SELECT value AS n FROM generate_series(1, 5000)) GROUP BY 1) \
               SELECT hdr_quantile_of(hdr_merge(s), 0.99) = (SELECT hdr_quantile(value, 0.99) FROM generate_series(1, 5000)) AS same, \
               abs(hdr_quantile_of(hdr_merge(s), 0.99) / 4950.01 - 1) < 0.004 AS near FROM parts";
    assert_eq!(csv(&engine(), sql).await.unwrap(), "same,near\ntrue,true\n");
}

#[tokio::test]
async fn arguments_are_checked_while_planning() {
    let engine = engine();
    for (sql, expected) in [
        ("SELECT hdr_quantile(value, 99) FROM metrics", "expects q in [0, 1], got 99;"),
        ("SELECT hdr_quantile(value, value) FROM metrics", "expects a literal number as q"),
        ("SELECT hdr_quantile(value) FROM metrics", "expected hdr_quantile(value, q), got 1 arguments"),
        ("SELECT hdr_quantile(labels, 0.5) FROM metrics", "expects a number as value"),
        ("SELECT trend(value, value) FROM metrics", "expects a timestamp as ts, got Float64"),
        ("SELECT trend_direction(value, ts, -1) FROM metrics", "a threshold of at least 0"),
    ] {
        let error = fails(&engine, sql).await;
        assert_eq!(error.class(), Class::User, "{sql}: {error:?}");
        assert!(error.message().contains(expected), "{sql}: {}", error.message());
    }
}

#[tokio::test]
async fn errors_say_what_was_expected() {
    let engine = engine_with(settings(), &[("latency", "SELECT ts FROM metrics"), ("broken", "SELECT nope FROM gone")]);
    let message = fails(&engine, "SELECT * FROM metric").await.message();
    assert_eq!(message, "expected a known table, got \"metric\"; did you mean \"metrics\"");
    let message = fails(&engine, "SELECT * FROM zzz").await.message();
    assert!(message.ends_with("SHOW TABLES lists them"), "{message}");
    let message = fails(&engine, "SELECT valu FROM metrics").await.message();
    assert!(message.contains("valu") && message.contains("metrics.value"), "{message}");
    let message = fails(&engine, "SELEC 1").await.message();
    assert!(message.contains("failed to parse") && message.contains("SELEC"), "{message}");
    assert!(matches!(fails(&engine, "SELECT * FROM broken").await, QueryError::View { name, .. } if name == "broken"));
    assert!(csv(&engine, "SELECT * FROM latency LIMIT 1").await.is_ok());
    assert!(matches!(
        fails(&engine, "SELECT CAST('x' AS INT)").await,
        QueryError::Plan { .. } | QueryError::Evaluate { .. }
    ));
}

#[tokio::test]
async fn nothing_writes_and_nothing_reads_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret.csv");
    std::fs::write(&file, "a\n1\n").unwrap();
    let engine = engine();
    let path = file.display();
    for sql in [
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("SELECT * FROM \"file://{path}\""),
        format!("COPY (SELECT 1) TO '{path}'"),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'"),
        "SELECT 1 AS a INTO t".to_owned(),
        "WITH x AS (INSERT INTO metrics VALUES (1)) SELECT * FROM x".to_owned(),
        "EXPLAIN ANALYZE INSERT INTO metrics SELECT * FROM metrics".to_owned(),
        "SELECT repeat('x', 2000000000)".to_owned(),
        "SELECT range(1, 10000000000)".to_owned(),
    ] {
        let error = fails(&engine, &sql).await;
        assert_eq!(error.class(), Class::User, "{sql}: {error:?}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a\n1\n");
}

#[tokio::test]
async fn the_catalog_can_be_asked() {
    let engine = engine_with(settings(), &[("v", "SELECT value FROM metrics"), ("w", "SELECT value * 2 AS x FROM v")]);
    let tables = csv(&engine, "SHOW TABLES").await.unwrap();
    for name in ["public,metrics,", "public,v,", "public,w,"] {
        assert!(tables.contains(name), "{tables}");
    }
    assert!(csv(&engine, "DESCRIBE metrics").await.unwrap().contains("labels"));
    assert!(csv(&engine, "EXPLAIN SELECT * FROM metrics").await.unwrap().contains("TableScan"));
    let sql = "SELECT column_name FROM information_schema.columns WHERE table_name = 'w'";
    assert_eq!(csv(&engine, sql).await.unwrap(), "column_name\nx\n");
    assert_eq!(csv(&engine, "SELECT max(x) AS m FROM w").await.unwrap(), "m\n200.0\n");
}

#[tokio::test]
async fn one_pin_serves_one_query() {
    let pins = Arc::new(Mutex::new(0));
    let (counter, table) = (pins.clone(), metrics());
    let pin: Pin = Arc::new(move || {
        *counter.lock().unwrap() += 1;
        vec![("metrics".to_owned(), table.clone())].into()
    });
    let engine = Engine::new(settings(), pin, vec![("v".to_owned(), "SELECT * FROM metrics".to_owned())]).unwrap();
    csv(&engine, "SELECT count(*) FROM metrics, v, metrics m WHERE m.value < v.value").await.unwrap();
    assert_eq!(*pins.lock().unwrap(), 1);
}

#[tokio::test]
async fn too_many_rows_are_an_error_not_a_cut() {
    let engine = engine_with(Settings { rows_max: 10, ..settings() }, &[]);
    assert!(matches!(fails(&engine, "SELECT * FROM metrics").await, QueryError::Rows { max: 10 }));
    assert!(csv(&engine, "SELECT * FROM metrics LIMIT 10").await.is_ok());
}

#[tokio::test]
async fn memory_is_bounded() {
    let engine = engine_with(Settings { memory_bytes_max: 1 << 20, ..settings() }, &[]);
    let error = fails(
        &engine,
        "SELECT count(*) FROM (SELECT value % 1000003 AS k FROM generate_series(1, 2000000) GROUP BY k)",
    )
    .await;
    assert!(matches!(error, QueryError::Memory { .. }), "{error:?}");
    assert_eq!((error.class(), error.is_transient()), (Class::Limit, true));
    let error = fails(&engine, "SELECT value FROM generate_series(1, 2000000)").await;
    assert!(matches!(error, QueryError::Rows { .. } | QueryError::AnswerBytes { .. }), "{error:?}");
}

/// Runs a statement again while the engine is short of time, as after a query that is still giving way.
async fn csv_in_the_end(engine: &Engine, sql: &str) -> String {
    for _ in 0..30 {
        match csv(engine, sql).await {
            Ok(answer) => return answer,
            Err(error) => assert!(matches!(error, QueryError::Busy { .. } | QueryError::Timeout { .. }), "{error:?}"),
        }
    }
    panic!("{sql} found no turn in 30 timeouts")
}

#[tokio::test]
async fn time_is_bounded_and_the_permit_comes_back() {
    let engine = engine_with(Settings { timeout: Duration::from_secs(1), concurrency_max: 1, ..settings() }, &[]);
    let endless = "SELECT count(*) FROM generate_series(1, 100000000000) a, metrics";
    assert!(matches!(fails(&engine, endless).await, QueryError::Timeout { .. }));
    assert_eq!(csv_in_the_end(&engine, "SELECT 1 AS one").await, "one\n1\n");
    // A reader who stops reading is cut off too.
    let mut answer = engine.run("SELECT value FROM generate_series(1, 100000)").await.unwrap();
    assert!(answer.stream.next().await.unwrap().is_ok());
    let permit = engine.permits.acquire().await.unwrap();
    let mut last = None;
    while let Some(batch) = answer.stream.next().await {
        last = Some(batch);
    }
    assert!(matches!(last.unwrap().map_err(QueryError::from), Err(QueryError::Timeout { .. })));
    drop(permit);
}

#[tokio::test]
async fn concurrency_is_bounded() {
    let engine = engine_with(Settings { timeout: Duration::from_secs(1), concurrency_max: 1, ..settings() }, &[]);
    let held = engine.permits.clone().acquire_owned().await.unwrap();
    assert!(matches!(engine.run("SELECT 1").await, Err(QueryError::Busy { max: 1, .. })));
    drop(held);
    let running = engine.run("SELECT value FROM generate_series(1, 100000)").await.unwrap();
    assert_eq!(engine.permits.available_permits(), 0, "a running query holds its permit");
    drop(running);
    assert_eq!(csv_in_the_end(&engine, "SELECT 1 AS one").await, "one\n1\n");
}

#[tokio::test]
async fn depth_does_not_overflow_the_stack() {
    let engine = engine();
    let terms = statement::PARTS_MAX - 10;
    for sql in [
        format!("SELECT value{} AS x FROM metrics LIMIT 1", "+1".repeat(terms)),
        format!("SELECT count(*) FROM metrics WHERE value = 0{}", " OR value = 1".repeat(terms / 3)),
        format!("SELECT value{} AS x FROM metrics LIMIT 1", "::double".repeat(terms / 2)),
        format!("SELECT {}1{}", "(".repeat(terms / 2), ")".repeat(terms / 2)),
        format!("SELECT {} true", "NOT ".repeat(terms)),
        format!("SELECT {}1", "- ".repeat(terms)),
        format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(terms / 4)),
    ] {
        // Either outcome will do; what must not happen is the end of the process.
        let _ = csv(&engine, &sql).await;
    }
    assert_eq!(csv(&engine, "SELECT 1 AS one").await.unwrap(), "one\n1\n");
}

#[tokio::test]
async fn a_table_that_panics_is_an_error_not_a_short_answer() {
    let pin: Pin = Arc::new(|| panic!("the store fell over"));
    let engine = Engine::new(settings(), pin, Vec::new()).unwrap();
    assert!(matches!(fails(&engine, "SELECT 1").await, QueryError::Lost));
}
