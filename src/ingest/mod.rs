//! Bytes to samples and events: one small pure decoder per format.
