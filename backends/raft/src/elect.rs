//! Who leads the store: signs of life, standing up after their end, ending leases.
//!
//! Which votes count is openraft's; when one stands up is ours. Nobody stands up before a majority,
//! asked first, says that it has not heard of a leader either (the pre-vote openraft 0.9 lacks): so
//! a member that was cut off comes back without unseating anybody.

use crate::config::LEASE_MS;
use crate::join;
use crate::machine::Op;
use crate::node::{Node, Phase, Sign, lock};
use crate::peers::{Answer, Ask};
use crate::types::{LogId, Vote};
use hathi_dcs::{Alarm, Deadline, Millis, boottime};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long a leader leads before it hands over for the primary's sake, and between two attempts.
/// Longer than [`LEASE_MS`]: a younger leader's own vote is still bound.
const HAND_OVER_MS: u64 = 5_000;

/// Something between the two, different each time.
fn between(least: u64, most: u64) -> u64 {
    let random = RandomState::new().build_hasher().finish();
    least + random % most.saturating_sub(least).max(1)
}

/// The leader wrote to us and we accept it.
pub(crate) fn sign_of_life(node: &Node, leader: u64) {
    let now = boottime();
    *lock(&node.sign) = Sign { at: now, leader: Some(leader), broken: false };
    // Whoever is patient with the leader looks again when it has been silent, not at each old moment.
    // If this fails, it is woken for nothing.
    let _ = node.patience.set(now.plus(node.config.min_timeout_ms));
}

/// The leader says that it lives.
pub(crate) fn hears_leader(node: &Node, from: u64, vote: &Vote, applied: u64) -> Answer {
    let follows = vote.committed
        && vote.leader_id.voted_for() == Some(from)
        && node.log.vote().as_ref() == Some(vote);
    let mine = node.state.copy().applied.map_or(0, |id| id.index);
    let complete = mine >= applied && *lock(&node.phase) == Phase::Member;
    if follows && complete {
        sign_of_life(node, from);
    }
    Answer::Alive { follows, complete }
}

/// Tells everybody that this member leads. Who does not follow, or lacks something, gets openraft's
/// own heartbeat, which mends it.
async fn show_life(node: &Arc<Node>) {
    let Some(vote) = node.log.vote() else { return };
    let applied = node.state.copy().applied.map_or(0, |id| id.index);
    let limit = Duration::from_millis(node.config.connection_timeout_ms);
    let began = boottime();
    let asks = node.network.peers.iter().map(|(id, peer)| async move {
        let answer = peer.ask(Ask::Alive { vote, applied }, limit).await;
        if let Ok(Answer::Alive { follows: true, .. }) = answer {
            node.network.heard(*id, began);
        }
        matches!(answer, Ok(Answer::Alive { follows: true, complete: true }))
    });
    let fine = futures::future::join_all(asks).await;
    if fine.contains(&false) {
        // It can only fail when the engine has ended.
        let _ = node.engine.trigger().heartbeat().await;
    }
}

/// Leads no longer, if another member can: at once and without a pause, because this member's own
/// vote makes the other's majority.
///
/// Done before a planned end, and by a leader whose machine also runs the primary: so that losing
/// that machine costs one failover, not an election of the store before it.
pub(crate) async fn hand_over(node: &Arc<Node>) {
    if !node.is_leader() || node.network.peers.is_empty() {
        return;
    }
    let Some(vote) = node.log.vote() else { return };
    let applied = node.state.copy().applied.map_or(0, |id| id.index);
    let limit = Duration::from_millis(300);
    for peer in node.network.peers.values() {
        let alive = peer.ask(Ask::Alive { vote, applied }, limit).await;
        if !matches!(alive, Ok(Answer::Alive { follows: true, complete: true })) {
            continue;
        }
        if matches!(peer.ask(Ask::TakeOver, limit).await, Ok(Answer::TakeOver)) {
            let mut metrics = node.engine.server_metrics();
            let other = metrics.wait_for(|m| m.current_leader.is_some_and(|id| id != node.id));
            if tokio::time::timeout(limit, other).await.is_ok() {
                tracing::info!("raft: {} leads the store from now on", peer.addr);
                return;
            }
        }
    }
}

/// The leader wishes us to lead.
pub(crate) async fn take_over(node: &Node) -> Result<(), String> {
    if !may_stand(node) || node.hosts_primary() {
        return Err("this member would rather not".to_owned());
    }
    node.engine.trigger().elect().await.map_err(|error| error.to_string())
}

/// A connection from this member ended: if it leads, its process is likely gone.
pub(crate) fn connection_broke(node: &Node, peer: u64) {
    let mut sign = lock(&node.sign);
    if sign.leader == Some(peer) {
        sign.broken = true;
        node.alarm.notify_one();
    }
}

/// Would this member help to replace the leader by one whose log ends at `last`?
pub(crate) fn would_vote(node: &Node, last: Option<LogId>, now: Millis) -> bool {
    if *lock(&node.phase) != Phase::Member || last < node.log.last_log_id() {
        return false;
    }
    if node.is_leader() {
        return node.quorum_heard().is_none_or(|heard| now.since(heard) >= LEASE_MS);
    }
    let sign = *lock(&node.sign);
    sign.leader.is_none() || now.since(sign.at) > LEASE_MS
}

/// Stands up when the leader has been silent for too long.
pub(crate) async fn stand_up(node: Arc<Node>, mut alarm: Alarm) {
    let config = &node.config;
    let alone = config.partner_addrs.is_empty();
    let patience = || between(config.min_timeout_ms, config.max_timeout_ms);
    let born = boottime();
    let (first, mut round) = (between(300, 1_200), (boottime(), patience()));
    loop {
        if node.is_leader() {
            let mut metrics = node.engine.server_metrics();
            let ended = metrics.wait_for(|m| m.state != openraft::ServerState::Leader);
            if ended.await.is_err() {
                return;
            }
            continue;
        }
        if !may_stand(&node) {
            tokio::time::sleep(Duration::from_millis(250)).await;
            continue;
        }
        let sign = *lock(&node.sign);
        if round.0 != sign.at {
            round = (sign.at, patience());
        }
        let due = match (sign.leader, sign.broken) {
            (_, _) if alone => born,
            (None, _) => born.plus(first),
            (Some(_), true) => sign.at.plus(LEASE_MS + 20 + round.1 % 300),
            (Some(_), false) => sign.at.plus(round.1),
        };
        if boottime() < due {
            tokio::select! {
                () = alarm.at(due) => {}
                () = node.alarm.notified() => {}
            }
            continue;
        }
        if majority_would_vote(&node).await {
            tracing::info!("raft: no leader, standing for election");
            if node.engine.trigger().elect().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(between(500, 1_500))).await;
        } else {
            tokio::time::sleep(Duration::from_millis(between(150, 500))).await;
        }
    }
}

fn may_stand(node: &Node) -> bool {
    let member = *lock(&node.phase) == Phase::Member;
    let metrics = node.engine.server_metrics();
    let metrics = metrics.borrow();
    member && metrics.membership_config.membership().voter_ids().any(|id| id == node.id)
}

async fn majority_would_vote(node: &Arc<Node>) -> bool {
    let last = node.log.last_log_id();
    let limit = Duration::from_millis(node.config.connection_timeout_ms.min(1_000));
    let others = node.others();
    let needed = others.len().div_ceil(2);
    let peers = others.iter().filter_map(|id| node.network.peers.get(id));
    let asks = peers.map(|peer| peer.ask(Ask::WouldVote(last), limit));
    let mut asks: futures::stream::FuturesUnordered<_> = asks.collect();
    let mut willing = 0;
    while willing < needed {
        match futures::StreamExt::next(&mut asks).await {
            None => return false,
            Some(Ok(Answer::WouldVote(true))) => willing += 1,
            Some(_) => {}
        }
    }
    true
}

/// While this member leads: signs of life, and leases that end. (DCS-193)
pub(crate) async fn lead(node: Arc<Node>, mut alarm: Alarm) {
    let mut metrics = node.engine.server_metrics();
    loop {
        let leads = |m: &openraft::metrics::RaftServerMetrics<u64, openraft::BasicNode>| {
            m.state == openraft::ServerState::Leader
        };
        if metrics.wait_for(leads).await.is_err() {
            return;
        }
        tracing::info!("raft: this member leads the store");
        let since = boottime();
        let mut sign = since;
        let alone = node.network.peers.is_empty();
        let (mut showing, mut tried, mut left_out) = (None, boottime(), false);
        while node.is_leader() {
            let next = next_end(&node, since);
            tokio::select! {
                () = shown(&mut showing) => {
                    showing = None;
                    if let Err(why) = join::admit(&node).await {
                        tracing::debug!("raft: admitting a member: {why}");
                    }
                    let long = boottime().since(tried) > HAND_OVER_MS;
                    if long && node.hosts_primary() {
                        tried = boottime();
                        hand_over(&node).await;
                    }
                }
                () = alarm.at(sign), if !alone && showing.is_none() => {
                    let period = node.config.append_entries_period_ms;
                    let heard = node.network.all_heard().filter(|_| !left_out);
                    let spared = spared(heard, boottime(), period);
                    left_out = spared.is_some();
                    sign = spared.unwrap_or_else(|| boottime().plus(period));
                    if spared.is_none() {
                        showing = Some(Box::pin(show_life(&node)));
                    }
                }
                () = ends(next.map(|(at, _, _)| at)) => {
                    // It may have been kept alive since this was computed.
                    if let Some((_, lease, seen)) = next_end(&node, since).filter(|end| end.0 <= boottime()) {
                        node.state.copy().doom(lease, seen);
                        let command = node.command(Op::Expire { lease, seen });
                        if let Err(why) = node.write_here(command).await {
                            tracing::debug!("raft: ending a lease: {why}");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
                () = node.state.leases.notified() => {}
                changed = metrics.changed() => if changed.is_err() { return },
            }
        }
        tracing::info!("raft: this member does not lead the store any more");
    }
}

/// Everybody took an entry from us since the last sign of life: the next is due a period after that. Not
/// twice in a row (`heard` is not given then): other work waits for the sign as well.
fn spared(heard: Option<Millis>, now: Millis, period_ms: u64) -> Option<Millis> {
    heard.map(|heard| heard.plus(period_ms)).filter(|due| *due > now)
}

/// The lease that ends first: when, which, and what this member last saw of it.
///
/// A ttl after this member itself saw it kept alive, which is later than its owner counts from,
/// whoever led then; so a change of leaders never shortens a lease. And not before half a ttl of
/// this leader's time, so that an owner who could not renew while there was no leader is heard.
fn next_end(node: &Node, since: Millis) -> Option<(Millis, u64, u64)> {
    let copy = node.state.copy();
    let leases = copy.machine.leases.iter().map(|(id, lease)| {
        let kept = copy.kept.get(id).map_or(since, |kept| kept.at);
        let end = kept.plus(lease.ttl_ms).max(since.plus(lease.ttl_ms / 2));
        (end, *id, lease.kept_at)
    });
    leases.min()
}

async fn shown<F: Future<Output = ()>>(showing: &mut Option<Pin<Box<F>>>) {
    match showing {
        None => std::future::pending().await,
        Some(showing) => showing.await,
    }
}

async fn ends(at: Option<Millis>) {
    match at {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep(Deadline(at).left()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_sign_of_life() {
        let spared = |heard: Option<u64>| spared(heard.map(Millis), Millis(10_000), 1_500);
        assert_eq!(spared(None), None, "somebody has never heard of us");
        assert_eq!(spared(Some(8_500)), None, "just as long ago as signs of life are apart");
        assert_eq!(
            spared(Some(9_400)),
            Some(Millis(10_900)),
            "a period after what they heard last"
        );
    }
}
