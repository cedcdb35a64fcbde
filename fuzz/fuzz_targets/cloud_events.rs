//! Fuzzes the decoder of `cloud_events` in its three modes; the first byte chooses the mode.
#![no_main]

use bellwether::ingest::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let binary: &[(&str, &[u8])] = &[
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"s"),
        ("ce_type", b"dev.cdevents.taskrun.finished.0.2.0"),
        ("ce_subject", bytes.get(..bytes.len().min(8)).unwrap_or_default()),
    ];
    let headers: &[(&str, &[u8])] = match mode % 3 {
        0 => &[("content-type", b"application/cloudevents+json")],
        1 => binary,
        _ => &[],
    };
    bellwether_fuzz::check(Format::CloudEvents, bytes, headers);
});
