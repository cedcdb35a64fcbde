//! What was typed, checked once and turned into each room's settings.
