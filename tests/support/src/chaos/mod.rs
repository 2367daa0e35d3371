//! Chaos: a seeded schedule of faults against a real cluster on machines of its own, with a writer
//! on every node all the time, and a verdict at the end.
//!
//! ```text
//!  seed ──► schedule: Fault, how long, which replica, what is healed first
//!             └─► run: find the roles, inject, hold, heal, wait for facts ──► journal of every row
//!                   └─► judge: two primaries? rows gone that may not be?   ──► verdict, table
//! ```
//! The schedule names roles (the primary, a replica), never nodes: who has a role when a fault
//! comes is the cluster's doing, so that a seed gives the same schedule on any store, agent, or
//! machine, however fast.

mod faults;
mod judge;
mod run;
mod schedule;
mod table;

pub use judge::{Evidence, Judgement, Verdict, judge};
pub use run::{Options, Outcome, run};
pub use schedule::{Fault, Schedule, Step};
pub use table::Table;

use serde_json::{Value, json};

/// What the cluster promises about acknowledged rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rows that no replica had yet may be gone when the primary is lost.
    Async,
    /// `synchronous_mode: on`: no row is ever gone.
    Sync,
    /// `synchronous_mode: quorum`: no row is ever gone.
    Quorum,
    /// As [`Self::Async`], and a silent store alone deposes nobody.
    Failsafe,
}

impl Mode {
    pub const ALL: [(&'static str, Self); 4] = [
        ("async", Self::Async),
        ("sync", Self::Sync),
        ("quorum", Self::Quorum),
        ("failsafe", Self::Failsafe),
    ];

    /// What it lays over the dynamic configuration.
    pub fn dcs(self) -> Value {
        match self {
            Self::Async => json!({}),
            Self::Sync => json!({"synchronous_mode": true}),
            Self::Quorum => json!({"synchronous_mode": "quorum"}),
            Self::Failsafe => json!({"failsafe_mode": true}),
        }
    }

    /// Whether a lost primary may take acknowledged rows with it.
    pub fn may_lose(self) -> bool {
        match self {
            Self::Async | Self::Failsafe => true,
            Self::Sync | Self::Quorum => false,
        }
    }
}
