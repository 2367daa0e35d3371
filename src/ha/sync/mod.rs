//! Synchronous replication: who may hold up a commit, and who may be promoted afterwards.
//! (section 12 of docs/spec/ha-loop.md)
//!
//! Two records have to agree at every moment: `/sync` in the store says who may be promoted, and
//! `synchronous_standby_names` says whose confirmation a commit waits for. They cannot be changed in
//! one step, so the order of the changes is everything:
//!
//! ```text
//! candidates   whom the primary would choose now
//! priority, quorum   the next single change, for any state: pure and total
//! names        the text of synchronous_standby_names
//! pass         the leader's turn: looks, makes one change after the other, looks again
//! promotion    the record before a standby becomes primary
//! votes        what the record demands of a race
//! duty         a standby that is about to stop leaves its duty first
//! ```

pub(in crate::ha) mod candidates;
pub mod duty;
pub mod names;
pub mod pass;
mod picture;
mod priority;
pub mod promotion;
mod quorum;
mod set;
pub mod votes;

#[cfg(test)]
mod exhaustive;

use crate::ha::settings::{Settings, SynchronousMode};
use hathi_dcs::{ClusterView, Lsn, MemberName, Millis, Stored, Sync, Version};

/// What a primary remembers of its synchronous standbys between turns.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// The value of `synchronous_standby_names` that `mark` belongs to.
    pub names: Option<String>,
    /// The log's end when that value was first seen in force: who has this much holds every commit
    /// that was confirmed under an earlier value. (HA-097)
    pub mark: Lsn,
    /// A change was ordered and not seen in force.
    pub unsettled: bool,
    /// Since when a standby is waited for.
    pub waiting_since: Option<Millis>,
    /// The version of `/sync` by which I was found fit to lead.
    pub raced: Option<Version>,
    /// When I was promoted in quorum mode: the standbys need time to connect. (HA-200)
    pub promoted_at: Option<Millis>,
    /// The user's own setting was put back in force. (HA-196)
    pub handed_back: bool,
}

/// Is synchronous replication wanted here?
pub fn is_requested(settings: &Settings) -> bool {
    match settings.synchronous.mode {
        SynchronousMode::Off => false,
        SynchronousMode::Priority | SynchronousMode::Quorum => settings.standby_cluster.is_none(),
    }
}

/// The record that binds every election; `None`: whoever is the healthiest may lead.
pub fn active<'a>(settings: &Settings, view: &'a ClusterView) -> Option<&'a Stored<Sync>> {
    let binds = is_requested(settings) || is_configured(view);
    view.sync.as_ref().filter(|sync| binds && sync.value.leader.is_some())
}

/// Does the cluster's document ask for it, also where this agent could not put it in force? Then the
/// record is not ours to take away.
pub fn is_configured(view: &ClusterView) -> bool {
    use serde_json::Value;
    match view.config_value("synchronous_mode") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(Value::String(text)) => {
            !["", "off", "false", "no", "0"].iter().any(|off| text.eq_ignore_ascii_case(off))
        }
        Some(Value::Number(_) | Value::Array(_) | Value::Object(_)) => true,
    }
}

/// Do votes count? Also where the record was written in quorum mode and the setting has just been
/// changed: its voters do not all hold everything.
pub fn needs_votes(settings: &Settings, record: &Sync) -> bool {
    match settings.synchronous.mode {
        SynchronousMode::Quorum => true,
        SynchronousMode::Priority | SynchronousMode::Off => record.quorum > 0,
    }
}

/// Names are compared without regard to case, as PostgreSQL does it.
pub fn same(one: &MemberName, other: &MemberName) -> bool {
    one.as_str().eq_ignore_ascii_case(other.as_str())
}
