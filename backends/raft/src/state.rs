//! The state machine as openraft drives it: applies, snapshots, and tells whoever watches.

use crate::config::StartError;
use crate::disk;
use crate::machine::{Effects, Machine};
use crate::types::{Applied, LogEntry, LogId, Raft};
use hathi_dcs::{Millis, boottime};
use openraft::storage::{RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{
    AnyError, BasicNode, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageError,
    StorageIOError, StoredMembership,
};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast, watch};

type Failed = StorageError<u64>;
type Meta = SnapshotMeta<u64, BasicNode>;

/// What became of a key, or everything. The receiver lags? Then everything, too.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Key(String),
    Everything,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    meta: Meta,
    machine: Machine,
}

#[derive(Default)]
pub(crate) struct Copy {
    pub(crate) machine: Machine,
    pub(crate) applied: Option<LogId>,
    membership: StoredMembership<u64, BasicNode>,
    snapshot: Option<Meta>,
    /// When this member saw each lease kept alive, on its own clock. Later than the moment its
    /// owner counts from, whoever leads: so whoever leads may end it a ttl after this.
    pub(crate) kept: HashMap<u64, Kept>,
    /// Leases, and when they were kept alive by an entry, that this member has proposed to end.
    doomed: HashSet<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) at: Millis,
    pub(crate) ttl_ms: u64,
}

/// Cheap to clone; all clones are the same state.
#[derive(Clone)]
pub(crate) struct State {
    copy: Arc<Mutex<Copy>>,
    path: PathBuf,
    events: broadcast::Sender<Event>,
    /// The index applied last.
    applied: watch::Sender<u64>,
    /// A lease is new or ends sooner than it did.
    pub(crate) leases: Arc<Notify>,
}

impl State {
    pub(crate) fn open(dir: &Path, events: broadcast::Sender<Event>) -> Result<Self, StartError> {
        let path = dir.join("snapshot");
        let mut copy = Copy::default();
        if let Some(bytes) = disk::read_whole(&path)? {
            let saved: Saved =
                serde_json::from_slice(&bytes).map_err(|e| disk::damaged(&path, 0, e))?;
            copy.install(saved);
        }
        let (applied, _) = watch::channel(copy.applied.map_or(0, |id| id.index));
        let copy = Arc::new(Mutex::new(copy));
        Ok(Self { copy, path, events, applied, leases: Arc::default() })
    }

    pub(crate) fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this member has applied `index`; the caller bounds it.
    pub(crate) async fn reaches(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = applied.wait_for(|applied| *applied >= index).await;
    }

    fn save(&self, saved: &Saved) -> io::Result<()> {
        disk::replace(&self.path, &disk::record(&serde_json::to_vec(saved)?)?)
    }

    fn tell(&self, effects: &Effects) {
        for key in &effects.keys {
            // Nobody watching is fine.
            let _ = self.events.send(Event::Key(key.clone()));
        }
    }
}

impl Copy {
    /// Notes that the lease was kept alive at that moment; `false`: there is none.
    pub(crate) fn keep(&mut self, lease: u64, at: Millis) -> bool {
        let Some(ttl_ms) = self.machine.leases.get(&lease).map(|lease| lease.ttl_ms) else {
            return false;
        };
        let kept = self.kept.entry(lease).or_insert(Kept { at, ttl_ms });
        kept.at = kept.at.max(at);
        true
    }

    /// This member is about to propose that the lease ends, which was last kept alive by the entry
    /// `seen`.
    pub(crate) fn doom(&mut self, lease: u64, seen: u64) {
        let leases = &self.machine.leases;
        self.doomed.retain(|(id, seen)| leases.get(id).is_some_and(|l| l.kept_at == *seen));
        self.doomed.insert((lease, seen));
    }

    #[cfg(test)]
    pub(crate) fn doomed(&self) -> usize {
        self.doomed.len()
    }

    /// May this lease be kept alive without an entry? Not once its end was proposed: only a later
    /// entry is known to win against that.
    pub(crate) fn may_keep(&self, lease: u64) -> bool {
        let seen = self.machine.leases.get(&lease).map(|lease| lease.kept_at);
        seen.is_some_and(|seen| !self.doomed.contains(&(lease, seen)))
    }

    fn install(&mut self, saved: Saved) {
        let now = boottime();
        let leases = saved.machine.leases.iter();
        self.kept =
            leases.map(|(id, lease)| (*id, Kept { at: now, ttl_ms: lease.ttl_ms })).collect();
        self.machine = saved.machine;
        self.applied = saved.meta.last_log_id;
        self.membership = saved.meta.last_membership.clone();
        self.snapshot = Some(saved.meta);
    }
}

impl RaftStateMachine<Raft> for State {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<u64, BasicNode>), Failed> {
        let copy = self.copy();
        Ok((copy.applied, copy.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failed>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        let mut effects = Effects::default();
        let (last, sooner) = {
            let mut copy = self.copy();
            for entry in entries {
                copy.applied = Some(entry.log_id);
                answers.push(match entry.payload {
                    EntryPayload::Blank => None,
                    EntryPayload::Membership(membership) => {
                        copy.membership = StoredMembership::new(Some(entry.log_id), membership);
                        None
                    }
                    EntryPayload::Normal(command) => {
                        Some(copy.machine.apply(entry.log_id.index, &command, &mut effects))
                    }
                });
            }
            let now = boottime();
            let mut sooner = false;
            for id in &effects.leases {
                if let Some(lease) = copy.machine.leases.get(id) {
                    let kept = Kept { at: now, ttl_ms: lease.ttl_ms };
                    let before = copy.kept.insert(*id, kept);
                    sooner |= before.is_none_or(|before| before.ttl_ms != kept.ttl_ms);
                } else {
                    copy.kept.remove(id);
                }
            }
            (copy.applied.map_or(0, |id| id.index), sooner)
        };
        self.applied.send_replace(last);
        if sooner {
            self.leases.notify_one();
        }
        self.tell(&effects);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failed> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failed> {
        let failed = |error: io::Error| {
            StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(&error))
        };
        let machine = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| failed(io::Error::from(error)))?;
        let saved = Saved { meta: meta.clone(), machine };
        self.save(&saved).map_err(failed)?;
        self.copy().install(saved);
        self.applied.send_replace(meta.last_log_id.map_or(0, |id| id.index));
        self.leases.notify_one();
        let _ = self.events.send(Event::Everything);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Raft>>, Failed> {
        let Some(bytes) = disk::read_whole(&self.path)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?
        else {
            return Ok(None);
        };
        let saved: Saved = serde_json::from_slice(&bytes)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        let data = serde_json::to_vec(&saved.machine)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        Ok(Some(Snapshot { meta: saved.meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

impl RaftSnapshotBuilder<Raft> for State {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Raft>, Failed> {
        let failed = |error: io::Error| StorageIOError::write_snapshot(None, AnyError::new(&error));
        let saved = {
            let copy = self.copy();
            let (term, index) = copy.applied.map_or((0, 0), |id| (id.leader_id.term, id.index));
            let meta = Meta {
                last_log_id: copy.applied,
                last_membership: copy.membership.clone(),
                snapshot_id: format!("{term}-{index}-{}", boottime().0),
            };
            Saved { meta, machine: copy.machine.clone() }
        };
        self.save(&saved).map_err(failed)?;
        self.copy().snapshot = Some(saved.meta.clone());
        let data =
            serde_json::to_vec(&saved.machine).map_err(|error| failed(io::Error::from(error)))?;
        Ok(Snapshot { meta: saved.meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
