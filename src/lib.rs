//! Bellwether: streams of metrics and events in, findings, alerts and scaling decisions out.
//!
//! One module is one room; ARCHITECTURE.md is the map. Nothing here but the list of rooms.

pub mod config;
pub mod decide;
pub mod ingest;
pub mod insight;
pub mod kafka;
pub mod model;
pub mod query;
pub mod run;
pub mod serve;
pub mod store;
pub mod stream;
pub mod telemetry;
