//! Kafka: the source (a consumer group whose offsets we keep), the transactional sink, topic administration, a plain
//! producer and reader, and an embedded broker.
//!
//! The only user of rdkafka and of its FFI. Everything here blocks and is meant for threads of its own; nothing here
//! decodes a record, decides anything, commits an offset outside a transaction, or reads the wall clock.

pub mod admin;
pub mod batch;
mod bootstrap;
pub mod broker;
pub mod committed;
mod context;
pub mod error;
mod lookup;
mod native;
pub mod producer;
mod reader;
pub mod settings;
pub mod sink;
pub mod source;
pub mod tail;

#[cfg(test)]
pub(crate) mod tests;
