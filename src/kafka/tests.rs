//! Tests of the room against the embedded broker.
