//! What `/sync` demands of whoever wants to lead. (HA-090, HA-094, HA-095 e … g)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::{PeerAnswer, Probe};
use crate::ha::race::Myself;
use crate::ha::sync::same;
use hathi_dcs::{MemberName, Sync, Timeline};

/// The record that binds this race.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    pub record: Sync,
    pub needs_votes: bool,
}

/// What the answers of the others come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    votes: i64,
    somebody_ahead: bool,
}

impl Bound {
    pub fn is_leader(&self, member: &MemberName) -> bool {
        self.record.leader.as_ref().is_some_and(|leader| same(leader, member))
    }

    pub fn is_voter(&self, member: &MemberName) -> bool {
        self.record.voters.iter().any(|voter| same(voter, member))
    }

    /// Before anybody is asked. In priority mode every voter holds everything, and nobody else may.
    /// (HA-094)
    pub fn may_race(&self, me: &MemberName) -> Result<(), String> {
        if self.needs_votes || self.record.names(me) || broken(Breakage::AnybodyIsSynchronous) {
            return Ok(());
        }
        Err("I am not among the synchronous members".into())
    }

    /// My own vote; one who is not in the record needs one more of the others.
    pub fn count(&self, me: &MemberName) -> Count {
        Count { votes: if self.record.names(me) { 0 } else { -1 }, somebody_ahead: false }
    }

    /// Who holds no more than I do has voted for me. A timeline later than mine may hold commits
    /// that my log cannot, however long it is.
    pub fn add(&self, count: &mut Count, me: &Myself, peer: &MemberName, probe: &Probe) {
        let Probe::Answered(answer) = probe else { return };
        let PeerAnswer { lsn, timeline, nofailover, watchdog_failed, .. } = answer;
        if *lsn > me.lsn {
            count.somebody_ahead = true;
        }
        let comparable = *timeline == Timeline(0) || *timeline <= me.timeline;
        let counts = !nofailover && !watchdog_failed && lsn.0 > 0 && *lsn <= me.lsn && comparable;
        if counts && self.record.names(peer) {
            count.votes += 1;
        }
    }

    /// (HA-095 g)
    pub fn verdict(&self, count: &Count, me: &MemberName) -> Result<(), String> {
        let needed = i64::try_from(self.record.quorum).unwrap_or(i64::MAX);
        if !self.needs_votes
            || count.votes >= needed
            || (!count.somebody_ahead && self.is_leader(me))
            || broken(Breakage::VotesAreIgnored)
        {
            return Ok(());
        }
        let votes = count.votes;
        Err(format!("{votes} of {needed} votes: whoever holds the last commits may be away"))
    }
}
