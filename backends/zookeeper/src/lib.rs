//! hathi's ZooKeeper backend: Patroni's nodes and bytes (sections 3 and 8 of docs/spec/dcs.md).
//!
//! ```text
//!  Dcs methods ── store, lock, records ──► call: one deadline, sent again after a lost connection
//!        │                                   └── session: one for all, ended when nobody prolongs it
//!        └── Watched reads ── copy ◄── watcher (one recursive watch)
//! ```
//!
//! What ZooKeeper does not do by itself and this crate sees to:
//! * Its reads come from one server, which may be behind or cut off. Whatever decides goes through a
//!   write that a majority has to take (`call`'s barrier) before it reads.
//! * Its sessions live as long as their connection, whatever the loop above does. Here a session
//!   that carries keys ends a ttl after it was last prolonged, as a lease would.
//!
//! What never enters: a decision about leadership, the agent's configuration file, a global TLS
//! provider (the program installs one, this crate only uses it).

mod call;
mod config;
mod lock;
mod records;
mod session;
mod store;
mod watcher;

pub use config::{Right, Tls, ZooKeeperConfig};
pub use store::{ZooKeeper, open};
