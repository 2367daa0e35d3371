//! What openraft sends, over our connections.

use crate::peers::{Answer, Ask, Peer};
use crate::types::{Append, AppendReply, Chunk, ChunkReply, Raft, VoteAsk, VoteReply};
use crate::wire::WireError;
use hathi_dcs::{Millis, boottime};
use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Every other member, and when each last accepted something of ours.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: Arc<BTreeMap<u64, Peer>>,
    acks: Arc<Mutex<HashMap<u64, Millis>>>,
}

#[cfg(test)]
impl Network {
    /// Cuts what this member sends to all others, or mends it.
    pub(crate) fn cut(&self, cut: bool) {
        for peer in self.peers.values() {
            peer.cut(cut);
        }
    }

    pub(crate) fn late_from(&self, addr: &str, ms: u32) {
        for peer in self.peers.values().filter(|peer| peer.addr == addr) {
            peer.late(ms);
        }
    }

    pub(crate) fn cut_to(&self, addr: &str, cut: bool) {
        for peer in self.peers.values().filter(|peer| peer.addr == addr) {
            peer.cut(cut);
        }
    }
}

impl Network {
    pub(crate) fn new(peers: BTreeMap<u64, Peer>) -> Self {
        Self { peers: Arc::new(peers), acks: Arc::default() }
    }

    /// This member accepted what we sent at that time.
    pub(crate) fn heard(&self, from: u64, at: Millis) {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).insert(from, at);
    }

    /// The latest moment since which every partner is known to have heard of this member; `None`: one
    /// never has.
    pub(crate) fn all_heard(&self) -> Option<Millis> {
        let acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        self.peers.keys().map(|id| acks.get(id).copied()).min().flatten()
    }

    /// When a majority of this member and these others was last known to follow this member;
    /// `None`: never.
    pub(crate) fn quorum_heard(&self, others: &[u64]) -> Option<Millis> {
        let needed = others.len().div_ceil(2);
        if needed == 0 {
            return Some(boottime());
        }
        let acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heard: Vec<_> = others.iter().filter_map(|id| acks.get(id).copied()).collect();
        heard.sort_unstable();
        heard.iter().rev().nth(needed - 1).copied()
    }
}

impl RaftNetworkFactory<Raft> for Network {
    type Network = Line;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Line {
        Line { target, peer: self.peers.get(&target).cloned(), network: self.clone() }
    }
}

/// The line to one member.
pub(crate) struct Line {
    target: u64,
    peer: Option<Peer>,
    network: Network,
}

type Failed<E> = RPCError<u64, BasicNode, E>;

impl Line {
    async fn ask<E: std::error::Error>(
        &self,
        ask: Ask,
        option: &RPCOption,
    ) -> Result<Answer, Failed<E>> {
        let Some(peer) = &self.peer else {
            let error = WireError::Refused("the configuration does not name it".to_owned());
            return Err(RPCError::Unreachable(Unreachable::new(&error)));
        };
        match peer.ask(ask, option.hard_ttl()).await {
            Ok(Answer::No(why)) => {
                Err(RPCError::Unreachable(Unreachable::new(&WireError::Refused(why))))
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }
}

fn forged<E: std::error::Error>() -> Failed<E> {
    RPCError::Unreachable(Unreachable::new(&WireError::Forged))
}

impl RaftNetwork<Raft> for Line {
    async fn append_entries(
        &mut self,
        rpc: Append,
        option: RPCOption,
    ) -> Result<AppendReply, Failed<RaftError<u64>>> {
        let began = boottime();
        match self.ask(Ask::Append(rpc), &option).await? {
            Answer::Append(reply) => {
                if !matches!(reply, AppendReply::HigherVote(_)) {
                    self.network.heard(self.target, began);
                }
                Ok(reply)
            }
            _ => Err(forged()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: Chunk,
        option: RPCOption,
    ) -> Result<ChunkReply, Failed<RaftError<u64, InstallSnapshotError>>> {
        match self.ask(Ask::Chunk(rpc), &option).await? {
            Answer::Chunk(reply) => Ok(reply),
            _ => Err(forged()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteAsk,
        option: RPCOption,
    ) -> Result<VoteReply, Failed<RaftError<u64>>> {
        match self.ask(Ask::Vote(rpc), &option).await? {
            Answer::Vote(reply) => Ok(reply),
            _ => Err(forged()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}
