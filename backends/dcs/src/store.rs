//! The contract between hathi and a store.

use crate::{
    ClusterView, DcsError, Deadline, Failover, Failsafe, History, MemberData, MemberName, Status,
    Sync, Timing, Version,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::Serialize;
use serde_json::{Map, Value};

/// How new a view must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Freshness {
    /// As of this call, agreed by the store's majority. For every decision about leadership.
    Latest,
    /// May come from a copy that a living watch feeds, so that an idle cluster costs the store
    /// nothing. Never older than the last thing this backend itself wrote, or was refused by (DCS-091).
    /// A backend without such a copy, or whose watch is not alive, reads as for `Latest`.
    Watched,
}

/// What a write demands of the key it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Expect {
    Anything,
    /// The key does not exist.
    Absent,
    /// The key has exactly this version. Zero is a version like any other. (INV-25)
    Version(Version),
}

/// A reason to look at the store again: which record changed. Only wakes the loop; the loop must be
/// right without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Initialize,
    Config,
    /// The leader key appeared, changed hands or vanished. A renewal is no change.
    Leader,
    Member(MemberName),
    Status,
    Sync,
    Failover,
    History,
    Failsafe,
    /// The watch was interrupted; anything may have changed since.
    Everything,
}

impl Change {
    /// What it means that this record's value went from one to the other; `key` is what follows the
    /// cluster's prefix. The same owner of the leader key is a renewal, and no change.
    pub fn of(key: &str, before: Option<&str>, after: Option<&str>) -> Option<Self> {
        match key {
            "initialize" => Some(Self::Initialize),
            "config" => Some(Self::Config),
            "leader" => (before != after).then_some(Self::Leader),
            "status" | "optime/leader" => Some(Self::Status),
            "sync" => Some(Self::Sync),
            "failover" => Some(Self::Failover),
            "history" => Some(Self::History),
            "failsafe" => Some(Self::Failsafe),
            other => {
                let member = other.strip_prefix("members/")?;
                let direct = !member.is_empty() && !member.contains('/');
                direct.then(|| Self::Member(member.into()))
            }
        }
    }
}

/// One cluster in one store, as seen by one member (or by an operator's tool, which never writes
/// member or leader keys).
///
/// For every method:
/// * `by` is when the answer is no longer of use. The call returns by then, whatever the store,
///   name resolution, authentication or discovery do. (DCS-301)
/// * `Unreachable` after a write means the outcome is unknown: load before believing anything.
/// * Dropping the future leaves the outcome unknown in the same way; it leaks nothing.
/// * A compare-and-set that may have succeeded in an earlier attempt of the same call is read again
///   before it is called lost. (DCS-025, DCS-305)
#[async_trait]
pub trait Dcs: Send + std::marker::Sync {
    /// The configuration section this store was chosen by: `etcd3`, `raft`.
    fn kind(&self) -> &'static str;

    /// New rhythm and lease length; the lease in use is replaced without losing the lock. (DCS-019)
    fn set_timing(&self, timing: Timing);

    /// The shortest lease that this store keeps, in seconds. (HA-324)
    fn shortest_ttl(&self) -> u32 {
        Timing::SHORTEST
    }

    /// The whole cluster in one reading. (DCS-001)
    ///
    /// # Errors
    /// Only `Unreachable`, `Refused` and `NotRetriable`; each is answered by section 13 of
    /// ha-loop.md.
    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError>;

    /// Takes the leader key for me, only if nobody holds it. (DCS-002)
    ///
    /// The ttl is counted by the store from the moment it applies the write; on `Ok` the caller
    /// counts from the moment before it called, so that its own idea of the lease is never the
    /// longer one.
    ///
    /// # Errors
    /// * `NotOwner`: somebody else holds it; follow them.
    /// * others: the outcome is unknown; load before the next attempt.
    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError>;

    /// Takes the leader key after bootstrap, whoever holds it. (DCS-005)
    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError>;

    /// Prolongs the lease of the leader key I hold; binds it to a new lease if the old one is gone;
    /// creates it again if it vanished and nobody took it, by a step that is sent only then: a renewal that
    /// arrives late must not bring back a key that was given up. (DCS-003, DCS-027)
    ///
    /// # Errors
    /// * `NotOwner`: the store says somebody else holds it. Writing must stop.
    /// * others: what was confirmed before holds until it ends by the caller's clock.
    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError>;

    /// Deletes the leader key if it is mine; `status`, if given, is visible before the delete.
    /// (DCS-004)
    ///
    /// # Errors
    /// * `NotOwner`: it was not mine any more; nothing was deleted.
    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError>;

    /// Writes my member record, bound to my lease; does nothing if neither changed, beyond keeping
    /// that lease alive. (DCS-009, DCS-082)
    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError>;

    /// Skipped if equal to the last written or read value. (DCS-010)
    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError>;

    /// As [`Dcs::write_status`]. (DCS-011)
    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError>;

    /// `initialize`: empty to begin a bootstrap, the system identifier to end it. (DCS-006, DCS-007)
    ///
    /// # Errors
    /// * `Conflict`: the expectation was not met; somebody else is bootstrapping.
    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError>;

    /// Unconditional: a failed bootstrap leaves the field to others. (DCS-008)
    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError>;

    /// (DCS-015) The new version on success; `Conflict` when the expectation was not met.
    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError>;

    /// (DCS-014) An empty record is written as `{}`, never deleted.
    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError>;

    /// (DCS-012) The new version on success; `Conflict` when the expectation was not met.
    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError>;

    /// (DCS-013)
    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError>;

    /// (DCS-016)
    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError>;

    /// Removes every key of the cluster. (DCS-017)
    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError>;

    /// Wake-ups, for as long as the stream is kept. It never ends and never fails: it reconnects by
    /// itself and says [`Change::Everything`] when it did. Bounded: a slow reader gets
    /// `Everything` instead of a backlog. Each change is there within 100 ms on a healthy store
    /// (DCS-T9).
    fn watch(&self) -> BoxStream<'static, Change>;
}
