//! All integration tests, in one binary.

mod alert_rules;
mod corrections;
mod fed;
mod schemas;
mod sql;
mod tidy;
mod views;
