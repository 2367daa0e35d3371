//! hathi's Consul backend: Patroni's keys and bytes (sections 3 and 7 of docs/spec/dcs.md) over
//! Consul's HTTP API.
//!
//! ```text
//!  Dcs methods ── store, lock, records ──► txn (one atomic step each) ──► http: one deadline per call
//!        │               session: carries the leader and my member key       ▲
//!        └── Watched reads ── copy ◄── watcher (one blocking query) ─────────┘
//! ```
//!
//! What never enters: a decision about leadership, the agent's configuration file, a global TLS
//! provider.

mod config;
mod http;
mod lock;
mod records;
mod service;
mod session;
mod store;
mod tls;
mod txn;
mod watcher;

pub use config::{Consistency, ConsulConfig};
pub use service::ServiceConfig;
pub use store::{Consul, open};
