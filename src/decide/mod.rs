//! Alert states and scaling plans, as pure functions.
//!
//! Holds what to say (an alert's transition, a target's replicas), never how it is carried out: no I/O, no clock, no
//! threads. Time arrives as [`EventTime`]; state is a value that can be written down and read back exactly.

pub mod alert;
pub mod planner;
pub mod rule;
pub mod template;

use crate::model::time::EventTime;

/// Why a rule, a scaling target or an evaluation was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{file}: expected a rule of at most {max} bytes, got {bytes}")]
    RuleSize { file: String, bytes: usize, max: usize },
    #[error("{file}:{line}: unknown header key {key:?}; the nearest known key is {nearest:?}")]
    UnknownKey { file: String, line: usize, key: String, nearest: &'static str },
    #[error("{file}:{line}: header key {key:?} was given on line {first} already; keep one of them")]
    RepeatedKey { file: String, line: usize, key: &'static str, first: usize },
    #[error("{file}:{line}: header key {key:?} stands after the query began; move it above the query")]
    KeyAfterQuery { file: String, line: usize, key: &'static str },
    #[error("{file}:{line}: expected {expected} as {key:?}, got {got:?}")]
    HeaderValue { file: String, line: usize, key: &'static str, expected: String, got: String },
    #[error("{file}: header key {key:?} is missing; add a line such as `-- {example}`")]
    MissingKey { file: String, key: &'static str, example: &'static str },
    #[error("{file}: expected a query below the header, got none")]
    NoQuery { file: String },
    #[error("alert {name:?} is declared in {first} and again in {second}; give one of them another `-- alert:` name")]
    RepeatedRule { name: String, first: String, second: String },
    #[error("alert {rule:?} has two instances with the labels {labels}; select a text column that tells them apart")]
    RepeatedInstance { rule: String, labels: String },
    #[error("alert {rule:?}: expected an evaluation after {last}, got one at {at}")]
    OutOfOrder { rule: String, last: EventTime, at: EventTime },
    #[error("scaling target {target:?}: expected {expected} as {key:?}, got {got}")]
    TargetValue { target: String, key: &'static str, expected: &'static str, got: String },
}
