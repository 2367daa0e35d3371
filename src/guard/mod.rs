//! The guard: a second, tiny process that stops PostgreSQL when the lease ends and the agent did not
//! prolong it, because it was killed, frozen, or stuck. (docs/design.md section 5)
//!
//! ```text
//!  agent ── writes deadline, postmaster ──► board (shared memory, CLOCK_BOOTTIME) ◄── reads ── guard
//!                                                                      guard ── SIGQUIT, SIGKILL ──► postmaster
//! ```
//! The guard has no runtime, no threads and no connection to anything but this page of memory and
//! the two processes it watches. It outlives its agent; an agent that comes back in time finds the
//! board by the data directory's path and goes on where the last one stopped. Never in here: the
//! store, a decision about leadership.

mod bell;
mod board;
mod client;
mod memory;
mod watchman;

pub use board::BoardError;
pub use client::{GuardClient, GuardError, NoGuard};
pub use watchman::main;
