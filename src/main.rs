//! Arguments in, exit code out; everything else is `run`.

fn main() {}
