//! All benchmarks, in one binary: `make bench`, `make bench BENCH=name`. Outputs are checked before a time counts.
//!
//! Prints a table and writes `bench-results.csv` (name, value, unit, min, max) into the build folder. Names are stable.

#[path = "bench/at_rest.rs"]
mod at_rest;
#[path = "bench/commits.rs"]
mod commits;
#[path = "bench/kafka.rs"]
mod kafka;
#[path = "bench/latency.rs"]
mod latency;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/pipeline.rs"]
mod pipeline;
#[path = "bench/queries.rs"]
mod queries;
#[path = "bench/records.rs"]
mod records;

use measure::Results;

/// The allocator of the program itself: a benchmark under another one would be of another program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut results = Results::default();
    pipeline::run(&filter, &mut results)?;
    commits::run(&filter, &mut results)?;
    at_rest::run(&filter, &mut results)?;
    queries::run(&filter, &mut results)?;
    kafka::run(&filter, &mut results)?;
    latency::run(&filter, &mut results)?;
    results.write()
}
