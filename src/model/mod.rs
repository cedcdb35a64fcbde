//! The nouns every room speaks in: event time, series, samples, events, findings, alerts, decisions.
//!
//! No I/O, no clock, nothing that can fail at run time beyond a checked constructor. Every other room may import this
//! one; this one imports none.

pub mod alert;
pub mod batch;
pub mod decision;
pub mod event;
pub mod finding;
pub mod id;
pub mod reject;
pub mod series;
pub mod time;
