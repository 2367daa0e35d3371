//! What a store can answer instead of success, sorted by what the caller does about it.

use crate::MemberName;
use serde::{Deserialize, Serialize};

/// `Unreachable` and "not the owner" stay apart end to end: only the second is a statement about
/// the lock. (HA-150, INV-31, section 2 of docs/spec/dcs.md)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DcsError {
    /// The store answered: the leader key belongs to somebody else. Stop being leader.
    #[error("the leader key is held by {}", holder.as_ref().map_or("nobody we know", MemberName::as_str))]
    NotOwner { holder: Option<MemberName> },

    /// The store answered: the key was not as the caller had read it. Load again and decide again.
    #[error("{key} was changed by somebody else")]
    Conflict { key: String },

    /// No usable answer within the deadline. The outcome of a write is unknown: load before
    /// believing anything about it. Never read as a lost lock. (DCS-024, DCS-034)
    #[error("no answer from {store} within {tried_ms} ms: {why}")]
    Unreachable { store: String, tried_ms: u64, why: String },

    /// The store refuses our credentials or our rights. For the lock the same as unreachable; the
    /// operator must act. (DCS-036)
    #[error("{store} refuses us: {why}")]
    Refused { store: String, why: String },

    /// What we asked cannot be right (a value too large, a server too old). Asking again does not
    /// help; the operator must act.
    #[error("{store} cannot do this: {why}")]
    NotRetriable { store: String, why: String },
}

impl DcsError {
    pub fn unreachable(store: impl Into<String>, tried_ms: u64, why: impl ToString) -> Self {
        Self::Unreachable { store: store.into(), tried_ms, why: why.to_string() }
    }

    pub fn conflict(key: impl Into<String>) -> Self {
        Self::Conflict { key: key.into() }
    }

    /// Did the store itself say that the lock is somebody else's? Everything else leaves the lock
    /// as it was last confirmed. (INV-31)
    pub fn says_not_owner(&self) -> bool {
        match self {
            Self::NotOwner { .. } => true,
            Self::Conflict { .. }
            | Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::NotRetriable { .. } => false,
        }
    }
}

/// An error with its causes, as one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
