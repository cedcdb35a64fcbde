//! All benchmarks, in one binary.

fn main() {}
