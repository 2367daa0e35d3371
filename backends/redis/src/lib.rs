//! hathi's Redis backend: one script for each operation, on one writable server. (section 11 of
//! docs/spec/dcs.md; Patroni has no such store, the layout is our own)
//!
//! ```text
//!  Dcs methods ── store, lock, records ──► server: one connection, one deadline per call
//!        │                                   ├── trust: may a lock that is not there be given away?
//!        │                                   └── sentinel: who is the writable server, where one is asked
//!        └── Watched reads ── copy ◄── watcher (a subscription, and the moment the next key ends)
//! ```
//!
//! Redis acknowledges before it is sure: a server that was started again or promoted may have lost
//! the lock. What this crate does about it stands in `trust`; what it cannot do, in docs/stores.md.
//!
//! What never enters: a decision about leadership, the agent's configuration file, a global TLS
//! provider (the program installs one, this crate only uses it).

mod config;
mod lock;
mod records;
mod sentinel;
mod server;
mod store;
mod trust;
mod watcher;

pub use config::{RedisConfig, Tls};
pub use sentinel::Sentinels;
pub use store::{Redis, open};
