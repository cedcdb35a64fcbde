//! Logs and our own metric registry.
