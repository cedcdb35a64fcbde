//! Keeps the map of the house true: which room may import which, who owns each heavy dependency, how long files and
//! functions may be, that every file says what it holds, and that no name says nothing.
//!
//! Reads source text only, with comments and strings masked; never builds, formats or mends anything. Every check is a
//! function from a file's path and text to the list of what is wrong with it, so that each can be shown to fail.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room with the rooms it may import. `main` stands for `src/main.rs`.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("telemetry", &[]),
    ("ingest", &["model"]),
    ("kafka", &["model"]),
    ("store", &["model"]),
    ("query", &["model"]),
    ("stream", &["model", "query"]),
    ("insight", &["model"]),
    ("decide", &["model"]),
    ("report", &["model", "query"]),
    // Telemetry is what `/metrics` renders.
    ("serve", &["model", "query", "report", "telemetry"]),
    ("config", &["model", "telemetry", "ingest", "kafka", "store", "query", "stream", "insight", "decide", "serve"]),
    (
        "run",
        &[
            "model",
            "telemetry",
            "ingest",
            "kafka",
            "store",
            "query",
            "stream",
            "insight",
            "decide",
            "report",
            "serve",
            "config",
        ],
    ),
    ("main", &["config", "run", "telemetry"]),
];

/// Every heavy dependency, as code spells it, with the rooms that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("rdkafka", &["kafka"]),
    ("deltalake", &["store"]),
    ("object_store", &["store"]),
    ("axum", &["serve"]),
    ("pgwire", &["serve"]),
    ("arrow_pg", &["serve"]),
    ("arrow_flight", &["serve"]),
    ("tonic", &["serve"]),
    ("datafusion_pg_catalog", &["query"]),
    ("linfa", &["insight"]),
    ("linfa_clustering", &["insight"]),
    ("ndarray", &["insight"]),
    ("augurs", &["insight"]),
    ("polars", &["insight"]),
    ("prometheus_client", &["telemetry"]),
    ("clap", &["main", "run"]),
    ("toml_edit", &["config"]),
    ("opentelemetry_proto", &["ingest"]),
    ("prost", &["ingest", "serve"]),
    ("hdrhistogram", &["query"]),
    ("datafusion", &["query", "stream", "store", "run"]),
];

/// What only one room may call, and why.
const CALLS: &[(&str, &str, &str)] = &[
    ("SystemTime::now", "run", "event time is the only clock"),
    ("Utc::now", "run", "event time is the only clock"),
    ("Local::now", "run", "event time is the only clock"),
    ("process::exit", "main", "one place exits"),
];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Module names that say nothing.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "helper", "helpers", "common", "manager", "handler", "misc", "v2", "next"];
/// Endings of type names that say nothing.
const EMPTY_ENDINGS: &[&str] = &["Manager", "Handler", "Helper", "Helpers", "Util", "Utils"];

/// What is over a limit today: (path, function or "" for the file, lines). This list may only shrink: an entry that is
/// no longer needed, or longer than what it excuses, fails.
const EXCEPTIONS: &[(&str, &str, usize)] = &[];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = rust_files(root);
    assert!(files.iter().any(|(path, _)| path == "src/lib.rs"), "expected src/lib.rs among the files read");
    let mut wrong = Vec::new();
    let mut oversize = Vec::new();
    for (path, text) in &files {
        let masked = mask(text);
        let code = without_tests(&masked);
        wrong.extend(header(path, text));
        wrong.extend(empty_names(path, &masked));
        if path.starts_with("src/") {
            wrong.extend(imports(path, &masked));
            wrong.extend(owners(path, &masked));
            wrong.extend(calls(path, &code));
        }
        if !is_test(path) {
            oversize.extend(sizes(path, &code));
        }
    }
    wrong.extend(excuse(&oversize, EXCEPTIONS));
    assert!(wrong.is_empty(), "{} things are not tidy:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_tables_name_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml is readable");
    let dependencies: BTreeSet<String> = manifest
        .lines()
        .filter(|line| line.contains('=') && !line.starts_with('#'))
        .filter_map(|line| line.split(['=', ' ']).next())
        .map(|name| name.replace('-', "_"))
        .collect();
    for (dependency, rooms) in OWNERS {
        assert!(dependencies.contains(*dependency), "OWNERS names {dependency}, which Cargo.toml does not");
        assert!(rooms.iter().all(|room| allowed(room).is_some()), "an owner of {dependency} is no room");
    }
    for (room, others) in ROOMS {
        assert!(!others.contains(room) && others.iter().all(|o| allowed(o).is_some()), "row {room} of ROOMS is wrong");
    }
}

/// Returns what is wrong with the first line of a file.
fn header(path: &str, text: &str) -> Vec<String> {
    if text.starts_with("//! ") {
        return Vec::new();
    }
    vec![format!("{path}:1: expected a `//!` line that says what the file holds and what it must never do")]
}

/// Returns the imports that the map of rooms forbids, spelled `crate::…`, `bellwether::…` or by climbing with `super::`.
fn imports(path: &str, masked: &str) -> Vec<String> {
    let Some(room) = room_of(path) else { return Vec::new() };
    let Some(may) = allowed(room) else {
        return vec![format!(
            "{path}: room `{room}` is not in the table of rooms; add it there and to ARCHITECTURE.md"
        )];
    };
    let root_by_super = "super::".repeat(module_depth(path));
    let mut wrong = Vec::new();
    for prefix in ["crate::", "bellwether::", root_by_super.as_str()] {
        if prefix.is_empty() {
            continue;
        }
        for at in occurrences(masked, prefix) {
            for name in heads(&masked[at + prefix.len()..]) {
                let known = allowed(&name).is_some() && name != "main";
                if known && name != room && !may.contains(&name.as_str()) {
                    let line = line_of(masked, at);
                    wrong.push(format!("{path}:{line}: `{room}` may not import `{name}` (it may import {may:?})"));
                }
            }
        }
    }
    wrong
}

/// Returns the uses of heavy dependencies outside the rooms that own them.
fn owners(path: &str, masked: &str) -> Vec<String> {
    let room = room_of(path).unwrap_or("lib");
    let mut wrong = Vec::new();
    for (dependency, rooms) in OWNERS {
        if rooms.contains(&room) {
            continue;
        }
        let spelled = [format!("{dependency}::"), format!("use {dependency}"), format!("extern crate {dependency}")];
        let mut lines = BTreeSet::new();
        for text in &spelled {
            for at in occurrences(masked, text) {
                let next = masked.as_bytes().get(at + text.len()).copied().unwrap_or(b' ');
                // `crate::query::polars::x` is a module of ours, not the dependency.
                let ours = masked[..at].ends_with("::") && !masked[..at].ends_with(" ::");
                if !ours && (text.ends_with(':') || !is_word(next)) {
                    lines.insert(line_of(masked, at));
                }
            }
        }
        wrong.extend(lines.iter().map(|n| format!("{path}:{n}: `{dependency}` belongs to {rooms:?}, not to `{room}`")));
    }
    wrong
}

/// Returns the calls that only one room may make.
fn calls(path: &str, code: &str) -> Vec<String> {
    let room = room_of(path).unwrap_or("lib");
    let mut wrong = Vec::new();
    for (call, only, why) in CALLS.iter().filter(|(_, only, _)| *only != room) {
        for at in occurrences(code, call) {
            let place = if only.is_empty() { "nowhere".to_owned() } else { format!("only in `{only}`") };
            wrong.push(format!("{path}:{}: `{call}` is called {place}: {why}", line_of(code, at)));
        }
    }
    wrong
}

/// Returns the modules and types whose names say nothing.
fn empty_names(path: &str, masked: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in path.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            wrong.push(format!("{path}: `{part}` says nothing; name the file after what it holds"));
        }
    }
    for keyword in ["mod ", "struct ", "enum ", "trait ", "type "] {
        for at in occurrences(masked, keyword) {
            let name = word(&masked[at + keyword.len()..]);
            let empty = match keyword {
                "mod " => EMPTY_NAMES.contains(&name),
                _ => EMPTY_ENDINGS.iter().any(|ending| name.ends_with(ending)),
            };
            if empty {
                wrong.push(format!("{path}:{}: `{name}` says nothing; name the thing", line_of(masked, at)));
            }
        }
    }
    wrong
}

/// Something over its limit: a file (`function` empty) or a function.
#[derive(Debug, PartialEq)]
struct Oversize {
    path: String,
    function: String,
    lines: usize,
    limit: usize,
}

/// Returns the file, if it is too long, and its functions that are; tests are taken out of `code` before.
fn sizes(path: &str, code: &str) -> Vec<Oversize> {
    let mut found = Vec::new();
    let lines = code.trim_end().lines().count();
    if lines > FILE_LINES_MAX {
        found.push(Oversize { path: path.to_owned(), function: String::new(), lines, limit: FILE_LINES_MAX });
    }
    for (function, lines) in functions(code) {
        if lines > FUNCTION_LINES_MAX {
            found.push(Oversize { path: path.to_owned(), function, lines, limit: FUNCTION_LINES_MAX });
        }
    }
    found
}

/// Returns what no exception excuses, and the exceptions that excuse too much.
fn excuse(oversize: &[Oversize], exceptions: &[(&str, &str, usize)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for it in oversize {
        let excused = exceptions
            .iter()
            .any(|(path, function, lines)| *path == it.path && *function == it.function && it.lines <= *lines);
        if !excused {
            let what = if it.function.is_empty() { "the file".to_owned() } else { format!("`{}`", it.function) };
            wrong.push(format!("{}: {what} has {} lines, of {} allowed", it.path, it.lines, it.limit));
        }
    }
    for (path, function, lines) in exceptions {
        let needed = oversize.iter().any(|it| it.path == *path && it.function == *function && it.lines == *lines);
        if !needed {
            wrong.push(format!(
                "exception ({path}, {function:?}, {lines}) is not what is there: lower it or take it out"
            ));
        }
    }
    wrong
}

/// Returns every function's name and length in lines, from `fn` to its closing brace.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for at in occurrences(code, "fn ") {
        let name = word(&code[at + 3..]);
        let Some(open) = body(&code[at..]).filter(|_| !name.is_empty()) else { continue };
        let end = closing(code, at + open);
        found.push((name.to_owned(), code[at..end].lines().count()));
    }
    found
}

/// Returns where the body of the function that starts here opens; none for a declaration without one.
fn body(code: &str) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Returns the end of the block that opens at `open`, exclusive; the end of the text where it never closes.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Returns the code without its inline `#[cfg(test)]` modules.
fn without_tests(masked: &str) -> String {
    let mut code = String::new();
    let mut rest = masked;
    while let Some(at) = rest.find("#[cfg(test)]") {
        code.push_str(&rest[..at]);
        let item = &rest[at + "#[cfg(test)]".len()..];
        let is_module = item.trim_start().starts_with("mod ");
        rest = match body(item).filter(|_| is_module) {
            Some(open) => &item[closing(item, open)..],
            None => item,
        };
    }
    code.push_str(rest);
    code
}

/// Returns the text with the insides of comments, strings and character literals turned to blanks; lines stay where
/// they are.
fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + opaque(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        out.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at = end;
    }
    String::from_utf8(out).expect("whole literals and comments are blanked, the rest is as it was")
}

/// Returns the length of the comment, string or character literal that starts here; zero where none does.
fn opaque(bytes: &[u8], before: Option<u8>) -> usize {
    match bytes {
        [b'/', b'/', ..] => bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len()),
        [b'/', b'*', ..] => block_comment(bytes),
        [b'"', ..] => quoted(bytes, b'"'),
        [b'r', b'"' | b'#', ..] if !before.is_some_and(|b| is_word(b) && b != b'b' && b != b'c') => raw_string(bytes),
        [b'\'', b'\\', ..] => quoted(bytes, b'\''),
        // One character between quotes; anything else after a quote is a lifetime.
        [b'\'', ..] => {
            let text = String::from_utf8_lossy(&bytes[1..bytes.len().min(9)]);
            let width = text.chars().next().map_or(0, char::len_utf8);
            if bytes.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
        _ => 0,
    }
}

fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string(bytes: &[u8]) -> usize {
    let hashes = bytes[1..].iter().take_while(|b| **b == b'#').count();
    // `r#name` is an identifier.
    if bytes.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let start = 2 + hashes;
    bytes[start..].windows(end.len()).position(|w| w == end).map_or(bytes.len(), |at| start + at + end.len())
}

/// Returns the first names of a path or of a group of paths: `a::b` gives `a`, `{a::{b, c}, d}` gives `a` and `d`.
fn heads(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else { return vec![word(text).to_owned()] };
    let mut names = Vec::new();
    let (mut depth, mut expecting) = (0, true);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => break,
            b'}' => depth -= 1,
            b',' if depth == 0 => expecting = true,
            _ if expecting && is_word(byte) => {
                names.push(word(&group[at..]).to_owned());
                expecting = false;
            }
            _ => {}
        }
    }
    names
}

/// Returns where `needle` stands in `text`, not as the tail of a longer word.
fn occurrences<'a>(text: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(needle).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).map(|b| text.as_bytes()[b]);
        !before.is_some_and(is_word)
    })
}

/// Returns the identifier at the start of the text, empty where there is none.
fn word(text: &str) -> &str {
    let end = text.bytes().position(|b| !is_word(b)).unwrap_or(text.len());
    &text[..end]
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn allowed(room: &str) -> Option<&'static [&'static str]> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, may)| *may)
}

/// Returns the room a source file belongs to; none for `src/lib.rs`, which only lists the rooms.
fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let room = inside.split('/').next()?.trim_end_matches(".rs");
    (room != "lib").then_some(room)
}

/// Returns how many times `super::` leads from a file's module to the crate's root.
fn module_depth(path: &str) -> usize {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    match inside {
        "main" | "lib" => 0,
        _ => inside.trim_end_matches("/mod").split('/').count(),
    }
}

fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Returns every Rust file of ours, by its path from the root, with its text.
fn rust_files(root: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "fuzz/fuzz_targets"].map(|f| root.join(f)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a listed entry is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).expect("found under the root").to_string_lossy().replace('\\', "/");
                files.push((name, fs::read_to_string(&path).expect("source is UTF-8 text")));
            }
        }
    }
    files.sort();
    files
}

/// The checks, shown to fail.
mod shown_to_fail {
    use super::*;

    fn masked_imports(path: &str, text: &str) -> usize {
        imports(path, &mask(text)).len()
    }

    #[test]
    fn a_forbidden_import_in_every_spelling() {
        for text in [
            "use crate::store::Store;",
            "use crate::{model::time, store::Store};",
            "use super::super::store::Store;",
            "fn f() { crate::store::open(); }",
            "use bellwether::store;",
        ] {
            assert_eq!(masked_imports("src/query/engine.rs", text), 1, "{text}");
        }
        assert_eq!(masked_imports("src/query/mod.rs", "use super::store::Store;"), 1);
        assert_eq!(masked_imports("src/model/time.rs", "use crate::query;"), 1);
        assert_eq!(masked_imports("src/main.rs", "use bellwether::store;"), 1);
        assert_eq!(masked_imports("src/elsewhere/mod.rs", ""), 1);
    }

    #[test]
    fn an_allowed_import_passes() {
        assert_eq!(
            masked_imports("src/query/engine.rs", "use crate::{model::{a, store}, query::x}; // crate::store"),
            0
        );
        assert_eq!(masked_imports("src/query/engine.rs", "let s = \"crate::store\"; use super::store::x;"), 0);
        assert_eq!(masked_imports("src/run/mod.rs", "use crate::store::Store;"), 0);
        assert_eq!(masked_imports("src/lib.rs", "pub mod store;"), 0);
    }

    #[test]
    fn a_heavy_dependency_outside_its_room() {
        for text in ["use rdkafka::x;", "use rdkafka as k;", "let a = ::rdkafka::x();", "extern crate rdkafka;"] {
            assert_eq!(owners("src/store/mod.rs", &mask(text)).len(), 1, "{text}");
            assert_eq!(owners("src/kafka/mod.rs", &mask(text)).len(), 0, "{text}");
        }
        assert_eq!(
            owners("src/store/mod.rs", &mask("// rdkafka::x\nuse crate::model::rdkafka::x; my_rdkafka::y()")).len(),
            0
        );
        assert_eq!(owners("src/insight/mod.rs", "use linfa_clustering::Dbscan;").len(), 0);
    }

    #[test]
    fn a_wall_clock_outside_run() {
        let text = "fn f() { let now = std::time::SystemTime::now(); }";
        assert_eq!(calls("src/store/mod.rs", text).len(), 1);
        assert_eq!(calls("src/run/mod.rs", text).len(), 0);
        assert_eq!(calls("src/run/mod.rs", "std::process::exit(1)").len(), 1);
    }

    #[test]
    fn a_missing_header_and_an_empty_name() {
        assert_eq!(header("src/a.rs", "use x;\n").len(), 1);
        assert_eq!(header("src/a.rs", "//! Holds a.\n").len(), 0);
        assert_eq!(empty_names("src/query/utils.rs", "").len(), 1);
        assert_eq!(empty_names("src/query/mod.rs", "mod common;\nstruct WindowManager;").len(), 2);
        assert_eq!(empty_names("src/query/window.rs", "mod window; struct Window; fn next() {}").len(), 0);
    }

    #[test]
    fn a_long_function_and_a_long_file() {
        let long = format!("//! x\nfn long() {{\n{}}}\nfn short() {{}}\n", "    let a = '{';\n".repeat(69));
        assert_eq!(sizes("src/a.rs", &mask(&long)).len(), 1);
        assert_eq!(functions(&mask(&long)), [("long".to_owned(), 71), ("short".to_owned(), 1)]);
        assert_eq!(sizes("src/a.rs", &"x\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
        assert_eq!(sizes("src/a.rs", &"x\n".repeat(FILE_LINES_MAX)).len(), 0);
    }

    #[test]
    fn tests_do_not_count() {
        let text = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn b() {}\n".repeat(600));
        assert!(sizes("src/a.rs", &without_tests(&mask(&text))).is_empty());
        assert_eq!(functions(&without_tests("#[cfg(test)]\nmod tests;\nfn a() {}")).len(), 1);
    }

    #[test]
    fn exceptions_only_shrink() {
        let long = [Oversize { path: "a".into(), function: "f".into(), lines: 80, limit: 70 }];
        assert_eq!(excuse(&long, &[]).len(), 1);
        assert_eq!(excuse(&long, &[("a", "f", 80)]).len(), 0);
        assert_eq!(excuse(&long, &[("a", "f", 81)]).len(), 1, "an exception larger than what it excuses");
        assert_eq!(excuse(&long, &[("a", "f", 79)]).len(), 2, "a function that has grown");
        assert_eq!(excuse(&[], &[("a", "f", 80)]).len(), 1, "an exception no longer needed");
    }

    #[test]
    fn masking_leaves_code_and_lines() {
        let text =
            "a \"{\\\"\" b // {\n/* { /* } */ { */ c '\\'' '{' 'a: &'a str r#\"{ \"{\" }\"# d b\"{\" é r\"{\" r#type";
        let masked = mask(text);
        assert!(!masked.contains('{') && !masked.contains('}'), "{masked}");
        assert_eq!(masked.matches('\n').count(), 1);
        for kept in ["a ", " b ", " c ", " 'a: &'a str ", " d b", " é ", "r#type"] {
            assert!(masked.contains(kept), "{kept:?} in {masked:?}");
        }
    }
}
