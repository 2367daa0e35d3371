//! hathi's Kubernetes backend: Patroni's objects, annotations and labels (section 9 of docs/spec/dcs.md).
//!
//! ```text
//!  Dcs methods ── store, lock, records, pod ──► servers: one deadline, one API server after the other
//!        │                   │ what it answered        └── access: service account or kubeconfig
//!        └── Watched ◄── copy ◄── seen ◄── watcher (two watches: objects, Pods)
//! ```
//!
//! What Kubernetes does not do by itself and this crate sees to:
//! * It ends no lease. Who holds the lock says so again and again; everybody else counts, on a clock
//!   of their own, since they last saw that record change (`seen`).
//! * It has no transactions. Everything that decides names the version of the object it changes.
//!
//! What never enters: a decision about leadership, the agent's configuration file, a global TLS
//! provider (the program installs one, this crate only uses it).

mod access;
mod config;
mod layout;
mod lock;
mod objects;
mod pod;
mod records;
mod rights;
mod seen;
mod servers;
mod store;
mod watcher;

pub use config::{Access, KubernetesConfig, Port, RoleLabels};
pub use rights::missing_rights;
pub use store::{Kubernetes, open};
