//! Does a member without data begin a cluster, or come back to one? (DCS-199)
//!
//! * A cluster begins only when every configured member has answered that it knows of none. A
//!   member whose disk was lost can therefore not begin a second one beside its partners'.
//! * A member without data whose partners have some writes the file `rejoining` before it takes
//!   anything from a leader, and neither votes nor stands for election while that file is there. It
//!   goes once this member has everything that was committed up to a moment after it came back. So
//!   the votes and entries it forgot can not be outvoted by a majority that it completes.
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

/// Has there ever been a leader, as far as this member knows?
pub(crate) fn has_history(node: &Node) -> bool {
    log_has_history(&node.log) || *lock(&node.phase) == Phase::Rejoining
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
    while *lock(&node.phase) == Phase::Unknown {
        let mut silent = Vec::new();
        let mut history = false;
        let limit = Duration::from_millis(node.config.connection_timeout_ms);
        let asks = node
            .network
            .peers
            .values()
            .map(|peer| async move { (peer.addr.clone(), peer.ask(Ask::Who, limit).await) });
        for (addr, answer) in futures::future::join_all(asks).await {
            match answer {
                Ok(Answer::Who { history: theirs }) => history |= theirs,
                _ => silent.push(addr),
            }
        }
        if history {
            tracing::info!("raft: the partners have a cluster already; waiting for its leader");
            hears_of_a_leader(&node);
            return;
        }
        if silent.is_empty() {
            begin(&node).await;
            return;
        }
        let text = silent.join(", ");
        if said != text {
            tracing::info!(
                "raft: a new cluster begins when every member is there; missing: {text}"
            );
            said = text;
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Everybody is new. The first by number begins; should it not, any of the others does the same
/// with the same members, which is harmless.
async fn begin(node: &Arc<Node>) {
    {
        let mut phase = lock(&node.phase);
        if *phase != Phase::Unknown {
            return;
        }
        *phase = Phase::Member;
    }
    let first = node.network.peers.keys().all(|peer| node.id < *peer);
    let began = boottime();
    while !first && boottime().since(began) < BEGIN_MS {
        if node.log.last_log_id().is_some() {
            return;
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
}
