//! The log and the vote on disk, in the shape openraft asks for. (DCS-195)
//!
//! The whole log is in memory too: it is short. Writes are synced before they are acknowledged and
//! happen on the raft thread: a member whose disk hangs neither leads nor votes.

use crate::config::StartError;
use crate::disk::{self, Found};
use crate::types::{LogEntry, LogId, Raft, Vote};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, OptionalSend, RaftLogReader, StorageError, StorageIOError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Failed = StorageError<u64>;

/// One record of the log file.
#[derive(Serialize, Deserialize)]
enum Written {
    Entries(Vec<LogEntry>),
    /// Everything from this index on is gone.
    Truncated(u64),
    /// Everything up to this one is in a snapshot.
    Purged(LogId),
}

struct Inner {
    dir: PathBuf,
    file: File,
    /// Bytes in the file, and how many of them a rewrite would keep.
    length: usize,
    live: usize,
    entries: BTreeMap<u64, LogEntry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

/// Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Mutex<Inner>>);

impl LogStore {
    /// Reads the log, cutting off what a crash tore, refusing what is damaged.
    pub(crate) fn open(dir: &Path) -> Result<Self, StartError> {
        let cannot = |error: io::Error| StartError::DataDir {
            dir: dir.display().to_string(),
            why: error.to_string(),
        };
        let vote_path = dir.join("vote");
        let vote = match disk::read_whole(&vote_path)? {
            None => None,
            Some(bytes) => {
                Some(serde_json::from_slice(&bytes).map_err(|e| disk::damaged(&vote_path, 0, e))?)
            }
        };
        let path = dir.join("log");
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(cannot)?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes).map_err(cannot)?;
        let (mut entries, mut purged, mut at) = (BTreeMap::new(), None, 0);
        loop {
            match disk::find(&bytes[at..]) {
                Found::End => break,
                Found::Torn => {
                    let lost = bytes.len() - at;
                    tracing::warn!("{}: cutting {lost} bytes torn by a crash", path.display());
                    file.set_len(at as u64).map_err(cannot)?;
                    file.sync_all().map_err(cannot)?;
                    break;
                }
                Found::Bad(why) => return Err(disk::damaged(&path, at, why)),
                Found::Record { payload, length } => {
                    match serde_json::from_slice(payload) {
                        Err(error) => return Err(disk::damaged(&path, at, error)),
                        Ok(Written::Entries(new)) => {
                            entries.extend(new.into_iter().map(|e| (e.log_id.index, e)));
                        }
                        Ok(Written::Truncated(from)) => drop(entries.split_off(&from)),
                        Ok(Written::Purged(upto)) => {
                            entries = entries.split_off(&(upto.index + 1));
                            purged = Some(upto);
                        }
                    }
                    at += length;
                }
            }
        }
        disk::sync_dir(dir).map_err(cannot)?;
        let inner =
            Inner { dir: dir.to_owned(), file, length: at, live: at, entries, purged, vote };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.inner().vote
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.inner().purged
    }

    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.inner().last()
    }
}

impl Inner {
    fn write(&mut self, written: &Written) -> io::Result<()> {
        let bytes = disk::record(&serde_json::to_vec(written)?)?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len();
        Ok(())
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// Writes what is left into a new file once most of the old one is dead.
    fn compact(&mut self) -> io::Result<()> {
        if self.length < 2 * self.live + (64 << 10) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if let Some(purged) = self.purged {
            bytes = disk::record(&serde_json::to_vec(&Written::Purged(purged))?)?;
        }
        let entries: Vec<_> = self.entries.values().cloned().collect();
        bytes.extend(disk::record(&serde_json::to_vec(&Written::Entries(entries))?)?);
        let path = self.dir.join("log");
        disk::replace(&path, &bytes)?;
        self.file = OpenOptions::new().read(true).append(true).open(&path)?;
        self.length = bytes.len();
        self.live = bytes.len();
        Ok(())
    }
}

fn writing(error: io::Error) -> Failed {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

impl RaftLogReader<Raft> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, Failed> {
        Ok(self.inner().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    /// At most as many as fit one frame comfortably.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, Failed> {
        let end = end.min(start.saturating_add(64));
        Ok(self.inner().entries.range(start..end).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Raft> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Raft>, Failed> {
        let inner = self.inner();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), Failed> {
        let mut inner = self.inner();
        let failed = |error: io::Error| StorageIOError::write_vote(AnyError::new(&error));
        let bytes = serde_json::to_vec(vote)
            .map_err(io::Error::from)
            .and_then(|json| disk::record(&json))
            .map_err(failed)?;
        disk::replace(&inner.dir.join("vote"), &bytes).map_err(failed)?;
        inner.vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, Failed> {
        Ok(self.inner().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Raft>) -> Result<(), Failed>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let written = Written::Entries(entries.into_iter().collect());
        let result = {
            let mut inner = self.inner();
            let before = inner.length;
            let result = inner.write(&written);
            if let Written::Entries(entries) = written
                && result.is_ok()
            {
                inner.live += inner.length - before;
                inner.entries.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
            }
            result
        };
        match result {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => Err(writing(error)),
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), Failed> {
        let mut inner = self.inner();
        inner.write(&Written::Truncated(log_id.index)).map_err(writing)?;
        drop(inner.entries.split_off(&log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), Failed> {
        let mut inner = self.inner();
        inner.write(&Written::Purged(log_id)).map_err(writing)?;
        let before = inner.entries.len().max(1);
        inner.entries = inner.entries.split_off(&(log_id.index + 1));
        inner.purged = Some(log_id);
        inner.live = inner.live * inner.entries.len() / before;
        inner.compact().map_err(writing)
    }
}
