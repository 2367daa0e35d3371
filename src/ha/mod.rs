//! The decision core: pure tables, and the turn over ports.
//!
//! Never in here: a runtime, a clock, a file, a socket, a log macro. What was decided and why is
//! returned ([`ports::Reason`]); the shell logs it. The simulator runs this very code.
//!
//! ```text
//! events ─► run ─► turn ─┬─ start      a server that starts, an empty data directory, identity
//!                        ├─ recovery   PostgreSQL is down; rewind (the table: rewind)
//!                        ├─ leader     with the lock; request: what an operator asked of it
//!                        ├─ election   nobody leads (table: race)
//!                        ├─ silence    the store does not answer; failsafe: asking the members then
//!                        ├─ follower   somebody else leads
//!                        ├─ standby    the cluster follows another one
//!                        ├─ pause      the cluster is to be left alone
//!                        ├─ look       is what was seen still so? before what cannot be taken back
//!                        ├─ operator   what is asked of this very member: restart, schedule
//!                        ├─ sync       who may hold up a commit, and who may be promoted then
//!                        └─ member, slots, history: what is written at the end
//!            │  ▲
//!            ▼  │ report
//!           task (one at a time)        lease: the keeper, beside all this
//!
//! journal: the last turns and why; record: a turn written down so that it can be run again
//! ```

mod backoff;
pub mod breakage;
mod election;
pub mod failsafe;
mod follower;
pub mod history;
pub mod journal;
mod leader;
pub mod lease;
mod lineage;
pub mod look;
pub mod manual;
mod member;
mod memory;
pub mod operator;
mod pause;
pub mod ports;
pub mod promise;
mod race;
pub mod reached;
pub mod record;
mod recovery;
mod request;
pub mod restart;
mod rewind;
pub mod run;
mod schedule;
pub mod settings;
mod shutdown;
mod silence;
mod slots;
mod standby;
mod start;
pub mod sync;
mod task;
mod turn;

#[cfg(test)]
mod tests;
