//! HTTP: translates, decides nothing.
