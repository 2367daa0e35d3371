//! Does a member without data begin a cluster, or come back to one? (DCS-199)
//!
//! * A cluster begins only when every configured member has answered that it knows of none. A
//!   member whose disk was lost can therefore not begin a second one beside its partners'.
//! * A member without data whose partners have some writes the file `rejoining` before it takes
//!   anything from a leader, and neither votes nor stands for election while that file is there. It
//!   goes once this member has everything that was committed up to a moment after it came back.
//!   Before that it asks so many of the others for their term that one of them was in every majority
//!   it may have been part of (of three: both, of five: three), and follows no leader of an older
//!   term. So no majority that it completes can undo what it forgot.
//! * A member that all the others' configurations name, and the cluster does not know yet, is
//!   admitted by the leader: it learns first and votes once it has everything. Nobody is ever put
//!   out: a member that is gone for good keeps counting.
//! * What this can not mend: a majority of the members losing their disks. Then nobody has a
//!   majority of members that may vote, and the cluster waits for the operator.

use crate::config::StartError;
use crate::disk;
use crate::log::LogStore;
use crate::node::{Node, Phase, lock};
use crate::peers::{Answer, Ask};
use crate::state::State;
use crate::types::{LogId, Vote};
use hathi_dcs::boottime;
use openraft::BasicNode;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ROUND: Duration = Duration::from_millis(200);
/// How long the others give the one who begins.
const BEGIN_MS: u64 = 2_000;

const MARK: &str = "rejoining";

/// What was cut off the log must be in the snapshot.
pub(crate) fn check_whole(dir: &Path, log: &LogStore, state: &State) -> Result<(), StartError> {
    let (purged, applied) = (log.purged(), state.copy().applied);
    if purged > applied {
        let path = dir.join("snapshot");
        return Err(disk::damaged(&path, 0, "it is older than the beginning of the log"));
    }
    Ok(())
}

pub(crate) fn first_phase(dir: &Path, log: &LogStore) -> Phase {
    if dir.join(MARK).exists() {
        Phase::Rejoining
    } else if log.vote().is_none() && log.last_log_id().is_none() {
        Phase::Unknown
    } else {
        Phase::Member
    }
}

pub(crate) fn who(node: &Node, asker: u64) -> Answer {
    let phase = *lock(&node.phase);
    Answer::Who {
        history: log_has_history(&node.log) || phase == Phase::Rejoining,
        settled: phase == Phase::Member,
        term: node.log.vote().map_or(0, |vote| vote.leader_id.term),
        voter: node.others().contains(&asker),
    }
}

/// Whatever a leader wants to write here: may it, while this member does not know what it forgot?
pub(crate) fn may_follow(node: &Node, leader: &Vote) -> Result<(), String> {
    let phase = *lock(&node.phase);
    let floor = *lock(&node.floor);
    match (phase, floor) {
        (Phase::Member, Some(_) | None) => Ok(()),
        (Phase::Rejoining, Some(floor)) if leader.leader_id.term >= floor => Ok(()),
        (Phase::Rejoining, Some(_)) => Err("a leader of an older term".to_owned()),
        (Phase::Unknown | Phase::Rejoining, Some(_) | None) => {
            Err("this member has lost its data and does not know yet whom to follow".to_owned())
        }
    }
}

fn log_has_history(log: &LogStore) -> bool {
    log.vote().is_some_and(|vote| vote.committed)
        || log.last_log_id().is_some_and(|id| id.index > 0)
}

/// A leader writes to us: there is a cluster.
pub(crate) fn hears_of_a_leader(node: &Node) {
    let mut phase = lock(&node.phase);
    if *phase == Phase::Unknown {
        *phase = rejoining(node);
    }
}

fn rejoining(node: &Node) -> Phase {
    let marked = std::fs::write(node.data.path.join(MARK), b"")
        .and_then(|()| disk::sync_dir(&node.data.path));
    match marked {
        Ok(()) => Phase::Rejoining,
        Err(error) => {
            tracing::error!("raft: {}: {error}", node.data.path.display());
            Phase::Unknown
        }
    }
}

/// This member's log agrees with the leader's up to and beyond what the leader of this very term
/// knows to be committed.
pub(crate) fn has_caught_up(node: &Node, leader: &Vote, commit: Option<LogId>) {
    let mut phase = lock(&node.phase);
    if *phase != Phase::Rejoining {
        return;
    }
    let of_this_term = commit.filter(|id| id.leader_id.term == leader.leader_id.term);
    if of_this_term.is_some() && node.log.last_log_id() >= of_this_term {
        let unmarked = std::fs::remove_file(node.data.path.join(MARK))
            .and_then(|()| disk::sync_dir(&node.data.path));
        match unmarked {
            Ok(()) => {
                *phase = Phase::Member;
                tracing::info!("raft: this member has all the others have, it votes again");
            }
            Err(error) => tracing::error!("raft: {}: {error}", node.data.path.display()),
        }
    }
}

/// Runs until this member knows what it is.
pub(crate) async fn form_or_wait(node: Arc<Node>) {
    let mut said = String::new();
    loop {
        let phase = *lock(&node.phase);
        match phase {
            Phase::Member => return,
            Phase::Rejoining if lock(&node.floor).is_some() => return,
            Phase::Unknown | Phase::Rejoining => {}
        }
        let (mut silent, mut unsettled) = (Vec::new(), Vec::new());
        let (mut history, mut voter) = (false, false);
        let (mut settled, mut term) = (0, 0);
        let limit = Duration::from_millis(node.config.connection_timeout_ms);
        let asks = node
            .network
            .peers
            .values()
            .map(|peer| async move { (peer.addr.clone(), peer.ask(Ask::Who, limit).await) });
        for (addr, answer) in futures::future::join_all(asks).await {
            let Ok(Answer::Who { history: theirs, settled: whole, term: at, voter: mine }) = answer
            else {
                silent.push(addr);
                continue;
            };
            history |= theirs;
            if whole {
                settled += 1;
                term = term.max(at);
                voter |= mine;
            } else {
                unsettled.push(addr);
            }
        }
        match phase {
            Phase::Rejoining => {
                let members = node.network.peers.len() + 1;
                // With this many, one was in every majority that this member was in.
                let enough = members.div_ceil(2);
                // Who never voted forgot nothing.
                if settled >= enough || (settled > 0 && !voter) {
                    *lock(&node.floor) = Some(term);
                    return;
                }
                silent.append(&mut unsettled);
                let text = silent.join(", ");
                if said != text {
                    tracing::warn!(
                        "raft: this member has no data although the cluster has; it needs {enough} \
                         of the others to come back safely, missing: {text}"
                    );
                    said = text;
                }
            }
            Phase::Unknown if history => {
                tracing::info!("raft: the partners have a cluster already");
                hears_of_a_leader(&node);
                continue;
            }
            Phase::Unknown if silent.is_empty() => {
                if begin(&node).await {
                    return;
                }
                // A leader wrote to us while we asked: the others have begun without us, and what
                // we have to know before we follow them is asked in the next round.
                continue;
            }
            Phase::Unknown | Phase::Member => {
                let text = silent.join(", ");
                if said != text {
                    tracing::info!(
                        "raft: a new cluster begins when every member is there; missing: {text}"
                    );
                    said = text;
                }
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Everybody is new. The first by number begins; should it not, any of the others does the same
/// with the same members, which is harmless. `false`: this member has learned meanwhile that there is
/// a cluster.
pub(crate) async fn begin(node: &Arc<Node>) -> bool {
    {
        let mut phase = lock(&node.phase);
        if *phase != Phase::Unknown {
            return false;
        }
        *phase = Phase::Member;
    }
    let first = node.network.peers.keys().all(|peer| node.id < *peer);
    let began = boottime();
    while !first && boottime().since(began) < BEGIN_MS {
        if node.log.last_log_id().is_some() {
            return true;
        }
        tokio::time::sleep(ROUND).await;
    }
    let members: BTreeMap<u64, BasicNode> = node
        .config
        .members()
        .map(|addr| (crate::config::node_id(addr), BasicNode::new(addr)))
        .collect();
    match node.engine.initialize(members).await {
        Ok(()) => tracing::info!("raft: a new cluster begins"),
        // Somebody else was faster.
        Err(error) => tracing::debug!("raft: {error}"),
    }
    true
}

/// As the leader: the next step towards the membership the configuration names, one at a time.
pub(crate) async fn admit(node: &Node) -> Result<(), String> {
    let voters = node.others();
    let new = node.network.peers.iter().find(|(id, _)| !voters.contains(id));
    let Some((id, addr)) = new.map(|(id, peer)| (*id, &peer.addr)) else {
        return Ok(());
    };
    let metrics = node.engine.metrics().borrow().clone();
    let members = metrics.membership_config.membership();
    let limit = Duration::from_millis(500);
    let late = |_| "not within half a second".to_owned();
    if members.get_node(&id).is_none() {
        tracing::info!("raft: {addr} joins, it learns first");
        let learns = node.engine.add_learner(id, BasicNode::new(addr), false);
        let answer = tokio::time::timeout(limit, learns).await.map_err(late)?;
        return answer.map(drop).map_err(|error| error.to_string());
    }
    let matched = metrics.replication.and_then(|all| all.get(&id).copied().flatten());
    let has_all = matched.map(|id| id.index) >= metrics.last_log_index.map(|last| last.max(1) - 1);
    if !has_all || matched.is_none() {
        return Ok(());
    }
    tracing::info!("raft: {addr} has everything, it votes from now on");
    let voters = openraft::ChangeMembers::AddVoterIds([id].into());
    let votes = node.engine.change_membership(voters, true);
    let answer = tokio::time::timeout(2 * limit, votes).await.map_err(late)?;
    answer.map(drop).map_err(|error| error.to_string())
}
