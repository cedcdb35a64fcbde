//! What passes the first fence and what does not.

use super::*;

const BYTES_MAX: usize = 1 << 20;

#[test]
fn questions_pass() {
    for sql in [
        "SELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a;",
        "VALUES (1), (2)",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "SHOW TABLES",
        "SHOW COLUMNS FROM t",
        "DESCRIBE t",
        "-- why\nSELECT labels['service'] FROM metrics",
    ] {
        assert!(parse(sql, BYTES_MAX).is_ok(), "{sql}");
    }
}

#[test]
fn everything_else_is_refused_by_name() {
    for sql in [
        "CREATE TABLE t (a INT)",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE t",
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.execution.batch_size",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "EXPLAIN INSERT INTO t VALUES (1)",
        "CALL f()",
        "TRUNCATE t",
    ] {
        let error = parse(sql, BYTES_MAX).unwrap_err();
        let word = sql.split(' ').next().unwrap();
        assert!(matches!(&error, QueryError::Refused { kind } if kind == word), "{sql}: {error:?}");
    }
}

#[test]
fn one_statement_at_a_time() {
    assert!(matches!(parse("", BYTES_MAX), Err(QueryError::Empty)));
    assert!(matches!(parse(" ; ", BYTES_MAX), Err(QueryError::Empty)));
    assert!(matches!(parse("SELECT 1; SELECT 2", BYTES_MAX), Err(QueryError::Several { count: 2 })));
    assert!(matches!(parse("SELECT 1; DROP TABLE t", BYTES_MAX), Err(QueryError::Several { count: 2 })));
}

#[test]
fn size_and_depth_are_bounded() {
    assert!(matches!(parse("SELECT 1", 7), Err(QueryError::StatementBytes { bytes: 8, max: 7 })));
    let deep = format!("SELECT {}1{}", "(".repeat(500), ")".repeat(500));
    assert!(matches!(parse(&deep, BYTES_MAX), Err(QueryError::Nesting { max: NESTING_MAX })));
    let chain = format!("SELECT 1{}", "+1".repeat(PARTS_MAX));
    assert!(matches!(parse(&chain, BYTES_MAX), Err(QueryError::StatementParts { .. })));
    let list = format!("SELECT 1 IN ({})", vec!["1"; 50_000].join(","));
    assert!(parse(&list, BYTES_MAX).is_ok(), "a long list is no depth");
}

#[test]
fn statements_are_told_apart_at_semicolons_that_end_them() {
    for (text, expected) in [
        ("SELECT 1", &["SELECT 1"][..]),
        ("SELECT 1;", &["SELECT 1"]),
        (";; SELECT 1 ;\n;", &["SELECT 1"]),
        ("SELECT 'a;b'; SELECT \"c;d\"", &["SELECT 'a;b'", "SELECT \"c;d\""]),
        ("SELECT 'ä€𝄞;'; -- no; end\nSELECT 2 /* ; */;", &["SELECT 'ä€𝄞;'", "-- no; end\nSELECT 2 /* ; */"]),
        ("-- nothing\n", &[]),
        ("", &[]),
    ] {
        assert_eq!(split(text).unwrap(), expected, "{text}");
    }
    assert!(split("SELECT 'x").is_err());
    assert!(is_ended("SELECT 1; -- so\n") && is_ended("") && !is_ended("SELECT 1\n"));
}
