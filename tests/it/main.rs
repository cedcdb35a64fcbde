//! All integration tests, in one binary.

mod alert_rules;
mod corrections;
mod fed;
mod schemas;
mod sql;
mod surfaces;
mod tidy;
mod views;
