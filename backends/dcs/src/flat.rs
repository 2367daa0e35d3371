//! What the backends of flat key-value stores share: the operations of [`Dcs`](crate::Dcs) as writes of keys,
//! what a member remembers of the store, and the task that watches it.
//!
//! A backend brings three things: the leader key ([`LeaderKey`]), the other records ([`Records`]),
//! and reading and watching ([`Flat`]). What never enters: anything that knows one store.

pub mod copy;
mod handle;
mod hedge;
mod kept;
mod pauses;
mod tenure;
mod wakes;

pub use handle::Handle;
pub use hedge::{LANES, hedged};
pub use kept::{Kept, READ_AGAIN};
pub use pauses::Pauses;
pub use tenure::Tenure;
pub use wakes::{Ended, Wake};

use crate::{ClusterView, DcsError, Deadline, Expect, Status, Timing, Version};
use async_trait::async_trait;

/// The leader key. Each says what the method of [`Dcs`](crate::Dcs) of the same meaning says.
#[async_trait]
pub trait LeaderKey: Send + Sync + 'static {
    /// See [`Dcs::acquire_leader`](crate::Dcs::acquire_leader).
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError>;

    /// See [`Dcs::take_leader`](crate::Dcs::take_leader).
    async fn take(&self, by: Deadline) -> Result<(), DcsError>;

    /// See [`Dcs::renew_leader`](crate::Dcs::renew_leader).
    async fn renew(&self, by: Deadline) -> Result<(), DcsError>;

    /// See [`Dcs::release_leader`](crate::Dcs::release_leader).
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError>;
}

/// Every key but the leader's; `name` is what follows the cluster's prefix.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Writes if the expectation is met, and gives the new version.
    ///
    /// # Errors
    /// `Conflict`: it was not met.
    async fn set(
        &self,
        name: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError>;

    /// My member record, on my lease; not written if neither changed. See [`Dcs::write_member`](crate::Dcs::write_member).
    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError>;

    /// The race for the right to bootstrap: `initialize` with the empty value, only if it is not
    /// there. All contenders write the same, so a lost answer must not look like a lost race, nor
    /// the other way round. (DCS-006, DCS-025)
    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError>;

    /// Deletes if the expectation is met; deleting what is not there is no error, except with a
    /// version. (DCS-008, DCS-013)
    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError>;

    /// See [`Dcs::delete_cluster`](crate::Dcs::delete_cluster).
    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError>;
}

/// A flat store; [`Handle`] makes a [`Dcs`](crate::Dcs) of it.
#[async_trait]
pub trait Flat: LeaderKey + Records {
    /// How the store names its leases or sessions.
    type Lease: Clone + Send + Sync + 'static;

    /// See [`Dcs::kind`](crate::Dcs::kind).
    const KIND: &'static str;

    /// See [`Dcs::shortest_ttl`](crate::Dcs::shortest_ttl).
    const SHORTEST_TTL: u32 = Timing::SHORTEST;

    fn kept(&self) -> &Kept<Self::Lease>;

    /// See [`Dcs::set_timing`](crate::Dcs::set_timing).
    fn retime(&self, timing: Timing);

    /// Every key of the cluster, agreed by the store's majority. (DCS-001)
    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError>;

    /// Reads all keys into the copy, follows the store from there, and says each change. Ends with
    /// the first error: nothing has to be known then about what was missed, for the caller lets the
    /// copy die and begins anew.
    async fn watch_once(&self, wake: &Wake) -> Ended;
}
