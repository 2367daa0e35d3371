//! The PostgreSQL room: one local server, looked at and acted on.
//!
//! ```text
//!  ha (decides) ──► Postgres port ──► here ──► postmaster, its files, its SQL, its tools
//!                                      │
//!       hooks: on_postmaster (the guard), on_exit (a turn at once)
//! ```
//! Here lives everything that knows PostgreSQL's files, programs and queries. What never enters:
//! the store, other members but as the source of a copy, and any decision about who leads.

mod apply;
mod bootstrap;
mod callbacks;
mod child;
mod clone;
mod configuration;
mod conninfo;
pub mod control;
mod disk;
mod disk_watch;
mod follow;
mod from_config;
mod hba;
mod history;
mod logical_slots;
mod monitor;
mod observe;
mod pending;
mod pgfiles;
mod port;
mod preflight;
pub mod process;
mod promote;
mod replication;
mod rewind;
mod room;
mod session;
pub mod settings;
mod single_user;
mod slots;
mod spawn;
mod start;
mod stop;
mod synchronous;
mod timeline;
mod tls;
mod users;
mod waldump;

pub use preflight::{own_login, preflight};
pub use process::ProcessId;
pub use room::{Hooks, LocalPostgres};
pub use settings::Settings;
