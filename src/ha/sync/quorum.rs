//! Quorum commit: the next single change of `/sync` or of `synchronous_standby_names`, for every
//! state. (HA-200 … HA-214, HA-309)
//!
//! Two promises are kept at every moment, whichever change was the last one that happened:
//!
//! * **QS**: a commit waits for `num` of `sync`; an election sees the candidate and `quorum` more of
//!   `voters` and the leader. Both sets must overlap:
//!   `#(voters ∪ sync) <= quorum + num` (leader and primary are on both sides).
//! * What was confirmed *before* the current value of `synchronous_standby_names` is held by
//!   `#voters - quorum` voters. What proves that: the record itself, as far as its voters stay; and
//!   standbys that were seen to have the whole log of the time before.
//!
//! Without voters only the leader itself can be elected, and it holds everything.

use crate::ha::breakage::{Breakage, broken};
use crate::ha::sync::set::Set;

/// What is written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// One member: this primary.
    pub me: Set,
    /// One member, or nobody if there is no record.
    pub leader: Set,
    /// Without this primary.
    pub voters: Set,
    pub quorum: u32,
    /// The named standbys, without this primary; empty for `*`.
    pub sync: Set,
    /// How many of them a commit waits for; never more than there are.
    pub num: u32,
}

/// What is true now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whom we would choose.
    pub active: Set,
    /// Who holds everything that was confirmed before the current names were in force.
    pub confirmed: Set,
    /// How many confirmations a commit should wait for; at least one.
    pub wanted: u32,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `/sync`, with this primary as leader.
    Record {
        voters: Set,
        quorum: u32,
    },
    /// `synchronous_standby_names`.
    Names {
        sync: Set,
        num: u32,
    },
    /// Nothing, until a standby has caught up.
    Wait,
    Done,
}

/// Does every commit that waits for `num` of `sync` meet every election under this record?
pub fn is_safe(voters: Set, quorum: u32, sync: Set, num: u32) -> bool {
    voters.is_empty() || voters.union(sync).len() <= quorum + num
}

/// The next change on the way to `voters = sync = active`.
pub fn next(state: State, facts: Facts) -> Step {
    if state.leader.is_empty() {
        return Step::Record { voters: Set::EMPTY, quorum: 0 };
    }
    if state.leader != state.me {
        return succeed(state);
    }
    let state = State { quorum: state.quorum.min(state.voters.len()), ..state };
    if !is_safe(state.voters, state.quorum, state.sync, state.num) {
        // HA-201: the record says more than is true. Only what was seen counts.
        let seen = state.num.min(facts.confirmed.common(state.sync).len());
        let quorum = state.sync.len() - seen;
        return match seen {
            0 => Step::Record { voters: Set::EMPTY, quorum: 0 },
            _ => Step::Record { voters: state.sync, quorum },
        };
    }
    let (sync, num) = (facts.active, facts.wanted.min(facts.active.len()));
    if (state.sync, state.num) == (sync, num) {
        return settle(state, facts);
    }
    let growing = broken(Breakage::RecordGrowsFirst) && !sync.is_within(state.voters);
    if growing {
        return Step::Record { voters: state.voters.union(sync), quorum: state.quorum };
    }
    let shrinking = broken(Breakage::NamesShrinkFirst);
    if is_safe(state.voters, state.quorum, sync, num) || shrinking {
        return Step::Names { sync, num }; // HA-203, HA-207, HA-208, HA-210
    }
    make_room(state, facts, sync, num)
}

/// After a failover: the record of the former leader becomes mine, with the former leader among the
/// voters and me no longer. (HA-200)
fn succeed(state: State) -> Step {
    let (voters, quorum, num) = handover(state);
    if voters.union(state.sync).len() <= quorum + state.num {
        return Step::Record { voters, quorum };
    }
    let sync = if num == 0 { Set::EMPTY } else { voters };
    Step::Names { sync, num }
}

/// The voters, the quorum, and how many of the voters a commit of mine has to wait for, so that no
/// election under the old or the new record can miss it.
pub fn handover(state: State) -> (Set, u32, u32) {
    let voters = state.voters.union(state.leader).without(state.me);
    let quorum = state.quorum.min(voters.len());
    (voters, quorum, voters.len() - quorum)
}

/// The smallest quorum with which these voters can be written under the names in force; `None`:
/// these voters cannot be written now.
fn least_quorum(state: State, facts: Facts, voters: Set) -> Option<u32> {
    if voters.is_empty() {
        return Some(0);
    }
    // Commits from now on.
    let to_come = voters.union(state.sync).len().saturating_sub(state.num);
    // Commits of the time before.
    let seen = facts.confirmed.common(voters).len();
    let recorded =
        (state.voters.len() - state.quorum).saturating_sub(state.voters.without(voters).len());
    let seen = if broken(Breakage::CountUnconfirmed) { voters.len() } else { seen };
    let past = voters.len() - seen.max(recorded).min(voters.len());
    let quorum = to_come.max(past);
    (quorum <= voters.len()).then_some(quorum)
}

/// The names are as wanted; the record follows. (HA-205, HA-206, HA-209, HA-211)
fn settle(state: State, facts: Facts) -> Step {
    let (voters, target) = (state.sync, state.sync.len() - state.num);
    let Some(mut quorum) = least_quorum(state, facts, voters) else { return Step::Wait };
    if broken(Breakage::QuorumOffByOne) {
        quorum = quorum.saturating_sub(1);
    }
    let nobody_yet = state.voters.is_empty() && quorum == voters.len();
    if nobody_yet && !voters.is_empty() {
        return Step::Wait; // HA-211: not worth a write
    }
    if (state.voters, state.quorum) != (voters, quorum) {
        return Step::Record { voters, quorum };
    }
    if quorum > target { Step::Wait } else { Step::Done }
}

/// The names cannot change under this record: it changes first. Of the records that allow it, the
/// one that can bear the loss of most voters. (HA-204, HA-207, HA-209)
fn make_room(state: State, facts: Facts, sync: Set, num: u32) -> Step {
    let everybody = state.voters.union(state.sync).union(sync);
    let mut best = (Set::EMPTY, 0, 0);
    for voters in [sync, state.voters.common(sync), state.voters.union(sync), everybody] {
        let Some(least) = least_quorum(state, facts, voters) else { continue };
        let after = voters.union(sync).len().saturating_sub(num);
        let quorum = if voters.is_empty() { 0 } else { least.max(after) };
        if quorum > voters.len() {
            continue;
        }
        let may_miss = voters.len() - quorum;
        if may_miss > best.2 {
            best = (voters, quorum, may_miss);
        }
    }
    Step::Record { voters: best.0, quorum: best.1 }
}
