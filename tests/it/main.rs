//! All integration tests, in one binary.

mod alert_rules;
mod corrections;
mod schemas;
mod tidy;
mod views;
