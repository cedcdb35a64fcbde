//! Golden files: every input under `tests/data/ingest` gives exactly what stands beside it.

use std::fs;
use std::path::{Path, PathBuf};

use opentelemetry_proto::tonic::metrics::v1::MetricsData;
use prost::Message;
use serde_json::Value as Json;

use super::{Bench, outcome};
use crate::ingest::Format;

const EXPECTED: &str = ".expected.json";
const HEADERS: &str = ".headers.json";

#[test]
fn every_input_gives_what_stands_beside_it() {
    let mut wrong = Vec::new();
    for format in Format::ALL {
        for input in inputs(format) {
            let headers = headers(&input);
            let headers: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
            let got = outcome(format, &fs::read(&input).unwrap(), &headers);
            let beside = sibling(&input, EXPECTED);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&beside, serde_json::to_string_pretty(&got).unwrap() + "\n").unwrap();
                continue;
            }
            let text = fs::read_to_string(&beside).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
            let expected: Json = serde_json::from_str(&text).unwrap();
            if got != expected {
                wrong.push(format!("{}:\n got {got:#}\n expected {expected:#}", input.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Our reading of OTLP/JSON against that of the generated types, by way of the protobuf they encode.
#[test]
fn otlp_json_means_what_its_protobuf_means() {
    let mut compared = 0;
    for input in inputs(Format::OtlpMetrics) {
        if input.ends_with("lenient_numbers.json") {
            // The generated types drop numbers in spellings they do not know.
            continue;
        }
        let text = fs::read_to_string(&input).unwrap();
        let Ok(data) = serde_json::from_str::<MetricsData>(&text) else { continue };
        let (mut of_json, mut of_protobuf) = (Bench::new(Format::OtlpMetrics), Bench::new(Format::OtlpMetrics));
        if of_json.feed(text.as_bytes()).is_ok() {
            of_protobuf.feed(&data.encode_to_vec()).unwrap();
            assert_eq!(of_json.seen(), of_protobuf.seen(), "{}", input.display());
            compared += 1;
        }
    }
    assert!(compared >= 5, "only {compared} inputs could be compared");
}

fn inputs(format: Format) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ingest").join(format.as_str());
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        !name.ends_with(EXPECTED) && !name.ends_with(HEADERS)
    });
    paths.sort();
    assert!(!paths.is_empty(), "no inputs in {}", folder.display());
    paths
}

fn headers(input: &Path) -> Vec<(String, String)> {
    let Ok(text) = fs::read_to_string(sibling(input, HEADERS)) else { return Vec::new() };
    let headers: serde_json::Map<String, Json> = serde_json::from_str(&text).unwrap();
    headers.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect()
}

fn sibling(input: &Path, ending: &str) -> PathBuf {
    let case = input.file_stem().unwrap().to_string_lossy();
    input.with_file_name(format!("{case}{ending}"))
}
