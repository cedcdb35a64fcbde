//! Several instances of one group, in a simulated world, and what they tell each other.

mod group;
mod simulation;
mod wire;
