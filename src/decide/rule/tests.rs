//! Rule files: what is read of them, and how they are refused.

use std::fs;
use std::path::Path;

use super::*;

const WHOLE: &str = "\
-- Free prose. Note: with a colon; see https://example.org.
-- alert: payments fail
-- severity: critical
-- for: 1h 30m
-- keep_firing_for: 2m
-- labels: team=payments, tier=1
-- summary: {service} at {value}
-- description: {n} requests

SELECT service, n, error_rate AS value -- note: not a header
FROM service_errors_1m;
";

#[test]
fn every_key_is_read() {
    let rule = Rule::parse("sql/alerts/pay.sql", WHOLE).unwrap();
    assert_eq!((rule.name.as_str(), rule.severity), ("payments fail", Severity::Critical));
    assert_eq!((rule.for_.as_secs(), rule.keep_firing_for.as_secs()), (5400, 120));
    assert_eq!(rule.labels, BTreeMap::from([("team".into(), "payments".into()), ("tier".into(), "1".into())]));
    let columns: Vec<_> = rule.annotation_columns().collect();
    assert_eq!(columns, [("description", "n"), ("summary", "service"), ("summary", "value")]);
    assert_eq!(rule.sql, WHOLE, "lines in the engine's errors must be the file's");
}

#[test]
fn the_name_defaults_to_the_stem_and_durations_to_zero() {
    let rule = Rule::parse("rules/slow.sql", "-- severity: info\nSELECT 1 AS value").unwrap();
    assert_eq!((rule.name.as_str(), rule.for_, rule.keep_firing_for), ("slow", Duration::ZERO, Duration::ZERO));
    assert!(rule.labels.is_empty() && rule.annotations.is_empty());
}

#[test]
fn the_version_is_of_the_text() {
    let [a, b, c] = ["SELECT 1", "SELECT 1", "SELECT 2"]
        .map(|sql| Rule::parse("a.sql", &format!("-- severity: info\n{sql}")).unwrap().version);
    assert_eq!(a, b);
    assert_ne!(a, c);
}

#[test]
fn faults_are_named_with_their_place() {
    let cases = [
        (
            "-- severty: info\nSELECT 1",
            "a.sql:1: unknown header key \"severty\"; the nearest known key is \"severity\"",
        ),
        (
            "\n-- Severity: info\nSELECT 1",
            "a.sql:2: unknown header key \"Severity\"; the nearest known key is \"severity\"",
        ),
        ("-- keep-firing-for: 1m\nSELECT 1", "the nearest known key is \"keep_firing_for\""),
        (
            "-- severity: info\n-- severity: info\nSELECT 1",
            "a.sql:2: header key \"severity\" was given on line 1 already",
        ),
        ("-- severity: info\nSELECT 1\n-- for: 5m", "a.sql:3: header key \"for\" stands after the query began"),
        ("-- severity: fatal\nSELECT 1", "a.sql:1: expected one of info, warning, critical, emergency as \"severity\""),
        ("-- severity:\nSELECT 1", "a.sql:1: expected something as \"severity\", got \"\""),
        (
            "-- severity: info\n-- for: five\nSELECT 1",
            "a.sql:2: expected a duration such as 90s, 5m or 1h 30m as \"for\"",
        ),
        ("-- severity: info\n-- labels: team\nSELECT 1", "expected labels such as `team=payments, tier=1`"),
        ("-- severity: info\n-- labels: a b=c\nSELECT 1", "where \"a b\" stands"),
        ("-- severity: info\n-- labels: a=b, a=c\nSELECT 1", "expected the label \"a\" once"),
        ("-- severity: info\n-- labels: a=\nSELECT 1", "expected a value for the label \"a\""),
        ("-- severity: info\n-- summary: {service\nSELECT 1", "a.sql:2: expected a column in `{` `}` at character 1"),
        ("SELECT 1", "a.sql: header key \"severity\" is missing; add a line such as `-- severity: warning`"),
        ("-- severity: info\n;\n", "a.sql: expected a query below the header, got none"),
    ];
    for (text, expected) in cases {
        let error = Rule::parse("a.sql", text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} gave {error:?}");
    }
    let long = " ".repeat(RULE_BYTES_MAX + 1);
    assert!(matches!(Rule::parse("a.sql", &long), Err(Error::RuleSize { .. })));
}

#[test]
fn two_rules_of_one_name_are_refused() {
    let rule = |file: &str| Rule::parse(file, "-- severity: info\n-- alert: one\nSELECT 1").unwrap();
    assert!(check_names(&[rule("a.sql")]).is_ok());
    let error = check_names(&[rule("a.sql"), rule("b.sql")]).unwrap_err().to_string();
    assert!(error.starts_with("alert \"one\" is declared in a.sql and again in b.sql"), "{error}");
}

#[test]
fn the_shipped_rules_say_what_the_documents_promise() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/alerts");
    let mut rules: Vec<Rule> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| Rule::parse(path.to_str().unwrap(), &fs::read_to_string(&path).unwrap()).unwrap())
        .collect();
    rules.sort_by(|a, b| a.name.cmp(&b.name));
    check_names(&rules).unwrap();
    let said: Vec<_> = rules.iter().map(|r| (r.name.as_str(), r.severity, r.for_.as_secs())).collect();
    assert_eq!(
        said,
        [
            ("component_unhealthy", Severity::Critical, 60),
            ("error_rate_high", Severity::Warning, 300),
            ("resource_exhausted", Severity::Critical, 120),
            ("response_time_high", Severity::Warning, 180),
            ("workflow_failing", Severity::Critical, 600),
        ]
    );
    for rule in &rules {
        assert!(rule.annotations.contains_key("summary") && rule.annotations.contains_key("description"));
    }
}
