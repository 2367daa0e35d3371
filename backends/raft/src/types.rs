//! The names openraft's types have in this crate.

use crate::machine::{Command, Reply};
use crate::rhythm::Unticked;
use std::io::Cursor;

openraft::declare_raft_types!(
    /// Our commands in openraft's log.
    pub Raft:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<Raft>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Unticked,
);

/// What a command came to; `None` for entries that are none.
pub type Applied = Option<Reply>;
pub(crate) type LogEntry = openraft::Entry<Raft>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Engine = openraft::Raft<Raft>;
pub(crate) type Append = openraft::raft::AppendEntriesRequest<Raft>;
pub(crate) type AppendReply = openraft::raft::AppendEntriesResponse<u64>;
pub(crate) type VoteAsk = openraft::raft::VoteRequest<u64>;
pub(crate) type VoteReply = openraft::raft::VoteResponse<u64>;
pub(crate) type Chunk = openraft::raft::InstallSnapshotRequest<Raft>;
pub(crate) type ChunkReply = openraft::raft::InstallSnapshotResponse<u64>;
