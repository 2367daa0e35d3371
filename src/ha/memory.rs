//! What one turn remembers for the next. (section 1.2 of docs/spec/ha-loop.md)

use crate::ha::record::Word;
use hathi_dcs::{ClusterView, MemberData, MemberName, Millis, Timeline, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Has this data directory to be rewound before it can follow the leader? (PG-142)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rewind {
    /// Nothing gives a reason to ask.
    #[default]
    NotAsked,
    /// To be asked as soon as a leader can answer. (PG-143)
    Check,
    /// Asked: it diverged.
    Needed,
    /// Asked: it wrote a timeline of the same number as the leader's, from another point.
    /// `pg_rewind` would see nothing to do; only a new copy helps. (PG-147)
    OtherHistory,
    /// Asked: it can follow.
    NotNeeded,
    Succeeded,
    Failed,
}

impl Rewind {
    /// Asks again, unless the answer "it diverged" still stands. (PG-143)
    pub fn ask(&mut self) {
        match self {
            Self::Needed => {}
            Self::NotAsked
            | Self::Check
            | Self::OtherHistory
            | Self::NotNeeded
            | Self::Succeeded
            | Self::Failed => {
                *self = Self::Check;
            }
        }
    }

    /// The answer may not be true any more. What is already known to be wrong stays.
    pub fn doubt(&mut self) {
        match self {
            Self::NotAsked | Self::NotNeeded | Self::Succeeded => *self = Self::Check,
            Self::Check | Self::Needed | Self::OtherHistory | Self::Failed => {}
        }
    }

    pub fn was_executed(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::NotAsked | Self::Check | Self::Needed | Self::OtherHistory | Self::NotNeeded => {
                false
            }
        }
    }
}

/// The checkpoint after a promotion: until it is done nobody may rewind to us. (PG-065)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterPromotion {
    #[default]
    Nothing,
    CheckpointDue,
    CheckpointRuns,
}

/// A cluster without a leader, as a standby sees it from its WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaderless {
    pub since: Millis,
    /// The last two looks at the position that were a second apart.
    pub looked_at: Millis,
    pub lsn: hathi_dcs::Lsn,
    pub wal_arrives: bool,
}

/// The long task that runs. (section 16 of docs/spec/ha-loop.md)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    #[serde(deserialize_with = "crate::ha::record::word")]
    pub name: Word,
    pub kind: crate::ha::task::Kind,
    pub since: Millis,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The last view, and when the store gave it; `None` since a read failed.
    #[serde(with = "crate::ha::record::stamped_view")]
    pub view: Option<(Arc<ClusterView>, Millis)>,
    /// The last view with a leader, or the first one: members and leader for the next race. Never
    /// changed in place. (HA-001, HA-318)
    #[serde(with = "crate::ha::record::shared_view")]
    pub old_view: Option<Arc<ClusterView>>,
    /// The cluster as it was when I was found fit to lead, until I am a primary. Whatever was written
    /// since was written by somebody who led. (INV-8, INV-17)
    #[serde(with = "crate::ha::record::shared_view")]
    pub raced: Option<Arc<ClusterView>>,
    /// The next view must be as of then: something was written whose effect decides the next step.
    pub want_latest: bool,
    /// A start of dead PostgreSQL was ordered and not yet judged. (HA-054)
    pub recovering: bool,
    pub rewind: Rewind,
    /// Runs of pg_rewind in a row that failed. (HA-315)
    pub rewinds_failed: u32,
    /// When a standby that does not stream asked last whether it can. (PG-143)
    pub rewind_asked_at: Millis,
    /// Single-user recovery was tried in this outage. (HA-044)
    pub recovered_in_single_user_mode: bool,
    /// Crashes of the primary that were answered by a start in place, not older than
    /// `primary_start_timeout`. (HA-313)
    pub crashes: Vec<Millis>,
    /// Since when nobody leads, and whether WAL still arrives. (CFG-420)
    pub leaderless: Option<Leaderless>,
    /// This version of `initialize` is empty and nobody seems to be at it, since then. (HA-308)
    pub abandoned: Option<(Version, Millis)>,
    /// The key was given up because a promotion was refused here. (HA-083)
    pub released_at: Option<Millis>,
    /// The key was given up because the remote member cannot be followed from here. (PG-147)
    pub gave_way: bool,
    /// The key was given up for another member to take, and PostgreSQL is down here. (HA-026)
    pub left_to_others_at: Option<Millis>,
    pub after_promotion: AfterPromotion,
    /// The timeline of this primary of which it is known whether that checkpoint was made.
    pub checkpoint_judged: Timeline,
    /// PostgreSQL was seen running under this agent, and the cluster knew it. (HA-038)
    pub joined: bool,
    /// This agent won the race to create the cluster and has not finished. (HA-031)
    pub bootstrapping: bool,
    pub task: Option<Running>,
    /// The version of `/config` that was applied or refused last. (HA-019)
    pub config_seen: Option<Version>,
    /// Whom it follows has not all the log any more that this standby needs. (HA-316)
    pub log_is_gone: bool,
    /// The fast stop that was said to take longer than the lease leaves for it. (HA-321)
    pub slow_stop_said: Option<u64>,
    /// Every member of the last view lives with a short ttl. (HA-324)
    pub short_ttl: bool,
    /// When each member slot was last wanted for a living member. (DCS-061)
    pub slots_seen: BTreeMap<String, Millis>,
    /// In this life of the server its slots were looked at for those that nobody knows. (PG-267)
    pub slots_judged: Option<String>,
    /// Who was the primary of the timeline that this server has, when it was seen first. (PG-147)
    pub timeline_of: Option<(Timeline, MemberName)>,
    /// The timeline of the primary that was last found fit to be followed, if it is later than ours was.
    pub next_timeline_of: Option<(Timeline, MemberName)>,
    /// Whose timeline this agent found when it began was asked. (PG-147)
    pub past_noted: bool,
    /// A promotion of this agent's ended; the next look at the primary says on which timeline.
    pub promoted: bool,
    /// The timeline to which this agent itself promoted this server last.
    pub began: Option<Timeline>,
    /// The timeline of the leader we followed last; a higher one asks for a rewind check. (HA-125)
    pub leader_timeline: Timeline,
    /// This standby does not stream from its upstream; when that was noticed, or asked about last.
    pub not_streaming_since: Option<Millis>,
    /// Whom a reload told this standby to follow last (`None`: nobody), and when. (HA-125)
    pub told_to_follow: Option<(Option<MemberName>, Millis)>,
    pub published: Option<(MemberData, Millis)>,
    pub was_paused: bool,
    /// The lock was held here in a standby cluster, and no fence is armed for it. (HA-110)
    pub standby_leader: bool,
    /// A request in pause stopped this primary; it is to come back as a replica. (HA-040)
    pub owes_restart: bool,
    /// The version of the request for which this primary was demoted: no request does that twice.
    /// (INV-24)
    pub demoted_for: Option<Version>,
    pub failsafe: crate::ha::failsafe::Known,
    /// The key was given up by a demotion whose task runs: it is not to be asked for again.
    pub giving_up: bool,
    /// The running task was told to stop; its end is awaited. (HA-160, HA-162, HA-163)
    pub task_cancelled: bool,
    /// The key is to be given up as soon as the cancelled task has ended. (HA-160)
    pub release_after_task: bool,
    /// Milliseconds; a restart's own limit for the start, until it has started. (HA-058)
    pub start_timeout: Option<u64>,
    /// What an operator asks in the turn that begins; taken by it.
    pub wish: Option<crate::ha::operator::Wish>,
    /// A restart that an operator asked for later. (HA-078)
    pub scheduled_restart: Option<crate::ha::restart::Planned>,
    /// Synchronous standbys. (section 12)
    pub sync: crate::ha::sync::Kept,
    /// This standby is about to stop, or restarts: commits must not wait for it. (HA-197)
    pub off_duty: bool,
}
