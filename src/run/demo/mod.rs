//! The demo: a simulated fleet in place of a real one.

pub mod fleet;
