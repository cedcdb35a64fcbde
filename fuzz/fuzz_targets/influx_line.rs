//! Fuzzes the decoder of `influx_line`.
#![no_main]

use bellwether::ingest::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| bellwether_fuzz::check(Format::InfluxLine, bytes, &[]));
