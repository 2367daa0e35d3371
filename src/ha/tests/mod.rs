//! One turn at a time: what the core decides for a scene that a table row describes.
//!
//! The stage is scripted, not modelled: every port gives the answer the row says. What a whole
//! cluster makes of the decisions is the simulator's question (tests/simulation).

mod candidates;
mod decisions;
mod failsafe;
mod lineage;
mod looks;
mod operator;
mod pause;
mod recordings;
mod requests;
mod rules;
mod slots;
pub mod stage;
mod standby;
mod synchronous;
mod tasks;
mod watchdog;
mod wheel;
