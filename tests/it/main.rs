//! All integration tests, in one binary.

mod schemas;
mod tidy;
