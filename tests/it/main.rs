//! All integration tests, in one binary.

mod alert_rules;
mod schemas;
mod tidy;
mod views;
