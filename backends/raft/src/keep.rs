//! Keeping a lease alive without an entry. (DCS-193, DCS-196)
//!
//! Renewals are all that an idle cluster writes; as entries each would be a sync on every member's
//! disk. So the leader tells every member instead, and each notes in memory when it was told, as it
//! does when it applies such an entry. Whoever leads next is one of them and has that note, or has
//! started anew since and counts from its start, which is later: nobody ends the lease before its
//! owner does. All must have answered, not a majority, because nothing makes one of *that* majority
//! the next leader; and if one is missing, the renewal becomes an entry as any other command.
//!
//! What could still end the lease is an `Expire` on its way. The log must therefore hold nothing that
//! is not applied, and this leader must never have proposed to end this lease as it stands: a proposal
//! whose outcome is not known may still come.

use crate::elect;
use crate::machine::{LeaseWish, Op, Reply};
use crate::node::Node;
use crate::peers::{Answer, Ask};
use crate::state::Copy;
use crate::types::{LogId, Vote};
use hathi_dcs::boottime;
use std::time::Duration;

/// How long the members have for their answers; then it becomes an entry.
const LIMIT: Duration = Duration::from_millis(250);

/// As the leader: the answer, if everybody keeps the lease alive; `None`: it must become an entry.
pub(crate) async fn without_an_entry(node: &Node, op: &Op) -> Option<(u64, Reply)> {
    let (Op::KeepAlive { lease: wish } | Op::Hold { lease: wish, .. }) = op else { return None };
    let vote = node.log.vote().filter(|vote| leads(node, vote))?;
    let now = boottime();
    let silent = |heard| now.since(heard) >= node.in_touch_ms();
    if !node.network.peers.is_empty() && node.network.all_heard().is_none_or(silent) {
        return None;
    }
    let (applied, reply) = {
        let mut copy = node.state.copy();
        let done = unchanged(&copy, node.log.last_log_id(), op)?;
        copy.keep(wish.id, now);
        done
    };
    let asks = node.network.peers.iter().map(|(id, peer)| async move {
        let answer = peer.ask(Ask::Keep { vote, applied, lease: wish.id }, LIMIT).await;
        let kept = matches!(answer, Ok(Answer::Alive { follows: true, complete: true }));
        if kept {
            node.network.heard(*id, now);
        }
        kept
    });
    let kept = futures::future::join_all(asks).await;
    let told = |id: &u64| node.network.peers.contains_key(id);
    (!kept.contains(&false) && node.others().iter().all(told)).then_some((applied, reply))
}

fn leads(node: &Node, vote: &Vote) -> bool {
    vote.committed && vote.leader_id.voted_for() == Some(node.id) && node.is_leader()
}

/// What the command answers, and what has been applied then, if all it changes is when the lease ends:
/// there is exactly this lease, it has that key, and nothing that is on its way could end it.
fn unchanged(copy: &Copy, last: Option<LogId>, op: &Op) -> Option<(u64, Reply)> {
    let applied = copy.applied.filter(|_| copy.applied == last)?.index;
    let (wish, version) = match op {
        Op::KeepAlive { lease } => (lease, applied),
        Op::Hold { key, lease, force: _, renewal: _ } => {
            let entry = copy.machine.keys.get(key)?;
            let held = entry.value == lease.owner && entry.lease == Some(lease.id);
            (lease, held.then_some(entry.mod_index)?)
        }
        _ => return None,
    };
    let LeaseWish { id, ttl_ms, owner } = wish;
    let lease = copy.machine.leases.get(id)?;
    let same = lease.ttl_ms == *ttl_ms && lease.owner == *owner && copy.may_keep(*id);
    same.then_some((applied, Reply::Done(version)))
}

/// As a member: the leader has heard from the lease's owner.
pub(crate) fn told(node: &Node, from: u64, vote: &Vote, applied: u64, lease: u64) -> Answer {
    let answer = elect::hears_leader(node, from, vote, applied);
    if let Answer::Alive { follows: true, complete: true } = answer
        && !node.state.copy().keep(lease, boottime())
    {
        // It has applied more than the leader has? Then the leader is one no more.
        return Answer::Alive { follows: true, complete: false };
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Command, Effects, RequestId};
    use openraft::CommittedLeaderId;

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    fn wish(id: u64) -> LeaseWish {
        LeaseWish { id, ttl_ms: 1_000, owner: "a".into() }
    }

    fn hold(lease: LeaseWish) -> Op {
        Op::Hold { key: "leader".into(), lease, force: false, renewal: true }
    }

    /// "a" holds the key by lease 7, as entry 3 says; nothing came after that.
    fn held() -> Copy {
        let mut copy = Copy::default();
        copy.applied = Some(id(3));
        let first = Op::Hold { key: "leader".into(), lease: wish(7), force: false, renewal: false };
        let command = Command { id: RequestId(1, 1), op: first };
        copy.machine.apply(3, &command, &mut Effects::default());
        copy
    }

    /// Proves DCS-193: what is no mere renewal becomes an entry, and so does a renewal while
    /// something is on its way that could end the lease.
    #[test]
    fn only_what_changes_nothing_is_no_entry() {
        let now = |op: &Op| unchanged(&held(), Some(id(3)), op);
        let keep = |lease| Op::KeepAlive { lease };
        assert_eq!(now(&hold(wish(7))), Some((3, Reply::Done(3))));
        assert_eq!(now(&keep(wish(7))), Some((3, Reply::Done(3))));
        assert_eq!(now(&keep(wish(8))), None, "no such lease");
        assert_eq!(now(&hold(wish(8))), None, "held by another lease");
        assert_eq!(now(&keep(LeaseWish { ttl_ms: 2_000, ..wish(7) })), None, "another ttl");
        assert_eq!(now(&keep(LeaseWish { owner: "b".into(), ..wish(7) })), None, "another owner");
        let other = Op::Hold { key: "other".into(), lease: wish(7), force: true, renewal: false };
        assert_eq!(now(&other), None, "nobody holds that key");
        assert_eq!(now(&Op::Nothing), None);
        let open = unchanged(&held(), Some(id(4)), &hold(wish(7)));
        assert_eq!(open, None, "entry 4 may be the end of the lease");
    }

    /// Proves DCS-193: only an entry is known to win against a proposed end.
    #[test]
    fn a_proposed_end_asks_for_an_entry() {
        let mut copy = held();
        copy.doom(7, 3);
        assert_eq!(unchanged(&copy, Some(id(3)), &hold(wish(7))), None);
        let command = Command { id: RequestId(1, 2), op: hold(wish(7)) };
        copy.machine.apply(4, &command, &mut Effects::default());
        copy.applied = Some(id(4));
        assert!(unchanged(&copy, Some(id(4)), &hold(wish(7))).is_some());
        copy.doom(8, 1);
        copy.doom(7, 4);
        assert_eq!(copy.doomed(), 1, "what is settled is forgotten");
    }
}
