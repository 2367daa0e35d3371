//! The REST API: what load balancers, operators and the other members ask of this node.
//!
//! GETs are answered from the published [`Snapshot`]; whatever changes something becomes an
//! [`Order`] to the agent. Never in here: PostgreSQL, the store, a decision.

pub mod order;
pub mod snapshot;

pub use order::{ConfigOutcome, Order};
pub use snapshot::{Snapshot, Synchronous};
