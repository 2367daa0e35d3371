//! The vocabulary between hathi and its stores.
//!
//! What lives here: the records as they stand on the wire (Patroni's, byte for byte), the
//! [`ClusterView`] a turn decides on, the [`Dcs`] trait every store implements, its errors, and the
//! conformance suite (feature `conformance`) that every store must pass.
//!
//! What never enters: a store's client, a socket, a decision about leadership.

#[cfg(feature = "alarm")]
mod alarm;
pub mod around;
mod error;
#[cfg(feature = "flat")]
pub mod flat;
pub mod json;
pub mod moment;
mod names;
mod records;
mod store;
mod time;
mod timing;
mod view;

#[cfg(feature = "conformance")]
pub mod conformance;

#[cfg(feature = "alarm")]
pub use alarm::{Alarm, Bell};
pub use error::{DcsError, with_causes};
pub use names::{Lsn, MemberName, Scope, SystemId, Timeline, Version};
pub use records::{
    Failover, Failsafe, History, HistoryEntry, MemberData, PendingChange, Role, State, Status, Sync,
};
pub use store::{Change, Dcs, Expect, Freshness};
pub use time::{Deadline, Millis, boottime};
pub use timing::Timing;
pub use view::{ClusterView, Leader, Member, Stored, ViewBuilder};
