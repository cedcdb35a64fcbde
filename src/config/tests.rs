//! Runs every case under `tests/data/config` and compares the generated files with what the code would make.
//!
//! A case is a folder with `bellwether.toml` (or none), `env` (lines `NAME=value`, optional) and `expected.txt`: what
//! `show` prints, or every error. `UPDATE_GOLDEN=1` writes what is expected instead of comparing.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Stands for every secret in the cases; no output may hold it.
const SECRET: &str = "hunter2";

#[test]
fn every_case_says_what_is_expected() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root().join("tests/data/config")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 25, "only {} cases were found", cases.len());
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn generated_files_are_fresh() {
    let mut schema = serde_json::to_string_pretty(&schema()).unwrap();
    schema.push('\n');
    compare(&root().join("schemas/config.schema.json"), &schema).unwrap();
    compare(&root().join("deploy/bellwether.toml"), &reference::toml()).unwrap();
    compare(&root().join("docs/configuration.md"), &reference::markdown()).unwrap();
}

#[test]
fn the_reference_file_says_the_defaults() {
    let as_shipped = load_text(&reference::toml()).unwrap().config;
    assert_eq!(as_shipped, Config::default());

    let mut all_set = load_text(&uncommented(&reference::toml())).unwrap().config;
    assert_eq!(all_set.inputs.len(), 1);
    assert_eq!(
        (all_set.insight.anomaly.len(), all_set.insight.outlier.len(), all_set.insight.forecast.len()),
        (1, 1, 1)
    );
    assert_eq!(all_set.scaling.len(), 1);
    all_set.inputs.clear();
    all_set.scaling.clear();
    all_set.insight = Default::default();
    assert_eq!(all_set, Config::default().effective());
}

#[test]
fn the_schema_accepts_what_is_loaded_and_refuses_what_is_not() {
    let schema = schema();
    assert!(jsonschema::meta::is_valid(&schema));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let tree = |text: &str| file::json_table(toml_edit::Document::parse(text).unwrap().as_table());
    let good = tree(&uncommented(&reference::toml()));
    assert!(validator.is_valid(&good), "{:?}", validator.iter_errors(&good).map(|e| e.to_string()).collect::<Vec<_>>());
    for bad in [
        "kafak = {}",
        "kafka.brokrs = \"b:9092\"",
        "store.commit_interval = 2",
        "store.commit_interval = \"2 parsecs\"",
        "query.memory_max = \"1XB\"",
        "kafka.client = { \"sasl.password\" = { envv = \"X\" } }",
        "inputs = [{ topic = \"a\" }]",
        "log.format = \"xml\"",
        "limits.labels_max = 0",
        "insight.forecast = [{ view = \"v\", column = \"c\", level = 1.0 }]",
    ] {
        assert!(!validator.is_valid(&tree(bad)), "the schema accepts {bad}");
        assert!(load_text(bad).is_err(), "load accepts {bad}");
    }
}

#[test]
fn secrets_stay_inside() {
    let typed = format!("{{ \"sasl.password\" = \"{SECRET}\", \"sasl.username\" = \"ada\" }}");
    let env = [("BELLWETHER_KAFKA__CLIENT".to_owned(), typed)];
    let loaded = load(None, env.into_iter()).unwrap();
    assert_eq!(
        loaded.config.kafka.client.iter().collect::<Vec<_>>(),
        [("sasl.password", SECRET), ("sasl.username", "ada")]
    );
    for out in [loaded.show(), format!("{loaded:?}"), serde_json::to_string(&loaded.config).unwrap()] {
        assert!(!out.contains(SECRET) && out.contains("***") && out.contains("ada"), "{out}");
    }
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named.toml");
    fs::write(&path, "service.instance = \"named\"").unwrap();
    let env = || [(PATH_VARIABLE.to_owned(), path.display().to_string())].into_iter();
    assert_eq!(load(None, env()).unwrap().config.service.instance, "named");

    let other = folder.path().join("other.toml");
    fs::write(&other, "").unwrap();
    assert_eq!(load(Some(&other), env()).unwrap().config, Config::default(), "the path that is given wins");
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.toml");
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    let errors = load(Some(&path), std::iter::empty()).unwrap_err();
    assert!(matches!(errors.problems(), [Problem { fault: Fault::TooLong { .. }, .. }]), "{errors}");
}

#[test]
fn nesting_without_end_is_an_error_and_no_crash() {
    for text in [format!("inputs = {}", "[".repeat(100_000)), format!("a{} = 1", ".a".repeat(100_000))] {
        assert!(load_text(&text).is_err());
        let env = [("BELLWETHER_INPUTS".to_owned(), "[".repeat(100_000))];
        assert!(load(None, env.into_iter()).is_err());
    }
}

#[test]
fn a_later_stage_refuses_at_the_line_of_the_value() {
    let loaded = load_text("[stream]\n\n  views = \"/nowhere\"\n").unwrap();
    let refused = loaded.refuse(&KeyPath::of(["stream", "views"]), "no such folder", Some("make it".to_owned()));
    assert!(refused.to_string().ends_with("bellwether.toml:3:3: stream.views: no such folder; make it"), "{refused}");
}

#[test]
fn units_print_as_one_number_in_the_largest_unit() {
    for (typed, printed) in [
        ("1h 30m", "90m"),
        ("400d", "400d"),
        ("2w", "14d"),
        ("500000us", "500ms"),
        ("0d", "0s"),
        ("1s1ns", "1000000001ns"),
    ] {
        assert_eq!(typed.parse::<Span>().unwrap().to_string(), printed);
    }
    for (typed, printed) in [("1024KiB", "1MiB"), ("1000kB", "1MB"), ("0GB", "0B"), ("4097 B", "4097B")] {
        assert_eq!(typed.parse::<Size>().unwrap().to_string(), printed);
    }
    // The last of these makes humantime itself panic.
    for text in ["", "5", "s", "-1s", "5 parsecs", "1y", "0.5s", "40000d", "18446744073709551615s 1000000000ns"] {
        assert!(text.parse::<Span>().is_err(), "{text}");
    }
    for text in ["", "5", "MiB", "-1B", "1.5GiB", "1gib", "8388608TiB", "9999999999999999B"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
}

proptest! {
    /// What the pattern in the schema refuses, the program refuses, and the other way round short of the upper bound.
    #[test]
    fn units_are_what_their_patterns_say(text in TYPED_UNIT) {
        let fits = |schema: serde_json::Value| jsonschema::validator_for(&schema).unwrap().is_valid(&json!(text));
        let generator = &mut schemars::SchemaGenerator::default();
        let span = <Span as schemars::JsonSchema>::json_schema(generator).to_value();
        let size = <Size as schemars::JsonSchema>::json_schema(generator).to_value();
        prop_assert!(fits(span) == text.parse::<Span>().is_ok(), "{text}");
        prop_assert_eq!(fits(size), text.parse::<Size>().is_ok());
    }

    #[test]
    fn units_round_trip(nanos in 0u64..3_000_000_000_000_000_000, bytes in 0u64..=i64::MAX as u64) {
        let span: Span = format!("{}s {}ns", nanos / 1_000_000_000, nanos % 1_000_000_000).parse().unwrap();
        prop_assert_eq!(span.get().as_nanos(), u128::from(nanos));
        let printed = span.to_string();
        if let Ok(again) = printed.parse::<Span>() {
            prop_assert_eq!(again, span);
        } else {
            prop_assert!(printed.ends_with("ns") || printed.ends_with("us") || printed.ends_with("ms"), "{}", printed);
        }
        if let Ok(size) = format!("{bytes}B").parse::<Size>() {
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
    }

    /// Whatever one value of a full configuration is replaced by: what the walk lets through, the types take.
    #[test]
    fn the_walk_lets_nothing_through_that_the_types_refuse(nth in 0usize..200, with in odd_value()) {
        let text = uncommented(&reference::toml());
        let mut typed = file::parse(&text, "bellwether.toml".into()).unwrap();
        let mut paths = Vec::new();
        leaves(&typed.tree, &KeyPath::root(), &mut paths);
        let path = &paths[nth % paths.len()];
        path.put(&mut typed.tree, with);
        let problems = walk::walk(&typed, &schema::inlined());
        let taken = serde_json::from_value::<Config>(typed.tree.clone());
        prop_assert!(!problems.is_empty() || taken.is_ok(), "{path}: {taken:?}");
        for problem in problems {
            prop_assert!(matches!(problem.at, Origin::File { .. }), "{problem:?} has no line");
        }
    }
}

/// Texts on both sides of the border of what is a duration or a size.
const TYPED_UNIT: &str =
    "[0-9]{0,3}(\\.[0-9]{0,3})?[ ]?(ns|us|ms|s|m|min|h|d|w|y|B|kB|KiB|MB|GiB|x)?( ?[0-9]{1,2}(s|m))?";

fn odd_value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        Just(json!("5s")),
        Just(json!("5MiB")),
        Just(json!("")),
        Just(json!("127.0.0.1:1")),
        Just(json!("info")),
        Just(json!([])),
        Just(json!(["a"])),
        Just(json!([1])),
        Just(json!({})),
        Just(json!({ "a": "b" })),
        Just(json!({ "env": "A" })),
        Just(json!(0)),
        Just(json!(-1)),
        Just(json!(1)),
        Just(json!(i64::MAX)),
        Just(json!(1e300)),
        Just(json!(0.5)),
        Just(json!(4294967296i64)),
    ]
}

fn leaves(value: &serde_json::Value, path: &KeyPath, paths: &mut Vec<KeyPath>) {
    if !path.to_string().is_empty() {
        paths.push(path.clone());
    }
    match value {
        serde_json::Value::Object(table) => table.iter().for_each(|(key, value)| leaves(value, &path.key(key), paths)),
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, value)| leaves(value, &path.index(n), paths));
        }
        _ => {}
    }
}

/// Runs one case; says what differs.
fn run(case: &Path) -> Result<(), String> {
    let env = fs::read_to_string(case.join("env")).unwrap_or_default();
    let env =
        env.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    let said = match load(Some(&case.join("bellwether.toml")), env) {
        Ok(loaded) => {
            assert!(!format!("{loaded:?}").contains(SECRET), "{}: a secret is in Debug", case.display());
            loaded.show()
        }
        Err(errors) => {
            assert!(!format!("{errors:?}").contains(SECRET), "{}: a secret is in Debug", case.display());
            format!("{errors}\n")
        }
    };
    assert!(!said.contains(SECRET), "{}: a secret is printed", case.display());
    let said = said.replace(&format!("{}/", case.display()), "");
    compare(&case.join("expected.txt"), &said)
}

fn compare(path: &Path, now: &str) -> Result<(), String> {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(path, now).map_err(|error| format!("{}: {error}", path.display()));
    }
    let then = fs::read_to_string(path).unwrap_or_default();
    match then == now {
        true => Ok(()),
        false => Err(format!("{} (UPDATE_GOLDEN=1 writes it)\n--- expected\n{then}--- came\n{now}", path.display())),
    }
}

fn load_text(text: &str) -> Result<Loaded, Errors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bellwether.toml");
    fs::write(&path, text).unwrap();
    load(Some(&path), std::iter::empty())
}

/// Takes away each `#` that hides a key or the head of a list.
fn uncommented(text: &str) -> String {
    let shown = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || c == '[') => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|line| shown(line) + "\n").collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
