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
    /// that my log cannot, however long it is; one before mine ended where the elected leader who began
    /// mine left it, and what is longer there was confirmed to nobody. (HA-322)
    pub fn add(&self, count: &mut Count, me: &Myself, peer: &MemberName, probe: &Probe) {
        let Probe::Answered(answer) = probe else { return };
        let PeerAnswer { lsn, timeline, nofailover, watchdog_failed, .. } = answer;
        let older = *timeline != Timeline(0) && *timeline < me.timeline;
        let later = me.timeline != Timeline(0) && *timeline > me.timeline;
        let ahead = *lsn > me.lsn && !older;
        if ahead || later {
            count.somebody_ahead = true;
        }
        let counts = !nofailover && !watchdog_failed && lsn.0 > 0 && !ahead && !later;
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

#[cfg(test)]
mod tests {
    use super::*;
    use hathi_dcs::Lsn;

    /// Proves HA-095 (step g) with HA-322: a peer on an older timeline has voted, however long its log is;
    /// one on a later timeline has not, and it is ahead. (the simulator, seed 9046: the member with the
    /// newest timeline had too few votes, and the others waited for it)
    #[test]
    fn votes_are_counted_by_timelines_first() {
        let bound = Bound {
            record: Sync { leader: Some("a".into()), quorum: 1, voters: vec!["b".into()] },
            needs_votes: true,
        };
        let at = |timeline: u32, lsn: u64| PeerAnswer {
            in_recovery: true,
            lsn: Lsn(lsn),
            timeline: Timeline(timeline),
            nofailover: false,
            failover_priority: 1,
            watchdog_failed: false,
        };
        let me = Myself { lsn: Lsn(100), timeline: Timeline(5), failover_priority: 1 };
        for (what, mine, answer, votes, ahead) in [
            ("behind me", 5, at(5, 99), 1, false),
            ("equal", 5, at(5, 100), 1, false),
            ("ahead of me", 5, at(5, 101), 0, true),
            ("longer, on an older timeline", 5, at(4, 900), 1, false),
            ("shorter, on an older timeline", 5, at(4, 9), 1, false),
            ("shorter, on a later timeline", 5, at(6, 9), 0, true),
            ("its timeline is unknown", 5, at(0, 99), 1, false),
            ("its timeline is unknown, longer", 5, at(0, 101), 0, true),
            ("mine is unknown", 0, at(4, 99), 1, false),
            ("mine is unknown, longer", 0, at(4, 101), 0, true),
            ("nothing yet", 5, at(4, 0), 0, false),
            ("never promoted", 5, PeerAnswer { nofailover: true, ..at(4, 9) }, 0, false),
        ] {
            let me = Myself { timeline: Timeline(mine), ..me.clone() };
            let mut count = bound.count(&"a".into());
            bound.add(&mut count, &me, &"b".into(), &Probe::Answered(answer));
            assert_eq!(count, Count { votes, somebody_ahead: ahead }, "{what}");
        }
        let enough = Count { votes: 1, somebody_ahead: true };
        assert!(bound.verdict(&enough, &"c".into()).is_ok());
        let alone = Count { votes: 0, somebody_ahead: false };
        assert!(bound.verdict(&alone, &"a".into()).is_ok(), "who led holds everything");
        assert!(bound.verdict(&alone, &"b".into()).is_err());
    }
}
