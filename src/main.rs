//! Arguments in, exit code out; everything else is `run`.

use std::process::ExitCode;

use bellwether::run;
use clap::Parser;

/// Decoding and windowing allocate in bursts from several threads, which this allocator takes better than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run::run(run::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", run::service::chain(&*error));
            ExitCode::FAILURE
        }
    }
}
