//! The composition root: builds, wires, spawns and shuts down.
