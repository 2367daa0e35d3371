//! The shell around the core: it gives the ports their world and the loop its reasons to look.
//!
//! ```text
//!  signals, store watch, postmaster's end ──► events ──► ha::run (decides, acts through ports)
//!  orders of the REST API ──► orders ──► ha::manual, store           │ Seen
//!  snapshot ◄── publisher ◄──────────────────────────────────────────┘
//!  lease keeper: a thread of its own
//! ```
//! Wiring only: nothing in here decides about leadership.

mod clock;
mod configuration;
mod events;
mod footprint;
pub mod http;
mod measured;
mod orders;
pub mod peers;
mod publisher;
mod run;
pub mod store;
mod welcome;

pub use run::{AgentError, run};
