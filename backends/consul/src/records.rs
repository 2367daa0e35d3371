//! Every record but the leader key: skipped when nothing changes, compared when asked to.

use crate::store::{Entry, Shared};
use crate::txn::{Done, Op};
use async_trait::async_trait;
use hathi_dcs::flat::Records;
use hathi_dcs::flat::copy::version;
use hathi_dcs::{DcsError, Deadline, Expect, Version};

fn restless(name: &str) -> DcsError {
    DcsError::unreachable("consul", 0, format!("the session was lost twice while writing {name}"))
}

impl Shared {
    /// My member record, on my session. (DCS-118)
    async fn publish(&self, value: &str, by: Deadline) -> Result<(), DcsError> {
        let name = format!("members/{}", self.me);
        for _ in 0..2 {
            let session = self.session_for_member(by).await?;
            let same = |entry: &Entry| entry.value == value && entry.lease == session;
            if self.kept.known(&name).as_ref().is_some_and(same) {
                return Ok(());
            }
            self.kept.forget(&name);
            let lock = Op::lock(self.key(&name), value, &session);
            let mut done = self.txn(by, std::slice::from_ref(&lock)).await?;
            if let Done::Refused { .. } = done {
                // It hangs on the session of my former life.
                done = self.txn(by, &[Op::delete(self.key(&name)), lock]).await?;
            }
            match done {
                Done::Committed { index } => {
                    let index = i64::try_from(index).unwrap_or(0);
                    let value = value.to_owned();
                    self.kept.remember(&name, Entry { value, version: index, lease: session });
                    return Ok(());
                }
                Done::SessionGone | Done::Refused { .. } => self.sessions.tenure.forget(&session),
            }
        }
        Err(restless(&name))
    }
}

#[async_trait]
impl Records for Shared {
    /// Writes if the expectation is met. The new version is the index of the write. (DCS-119)
    async fn set(
        &self,
        name: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let key = self.key(name);
        let op = match expect {
            Expect::Anything => Op::set(key, &value),
            Expect::Absent => Op::cas(key, &value, 0),
            // To Consul an index of 0 means "absent"; no key ever has it. (INV-25)
            Expect::Version(Version(0)) => return Err(DcsError::conflict(name)),
            Expect::Version(Version(index)) => Op::cas(key, &value, index),
        };
        self.kept.forget(name);
        match self.txn(by, &[op]).await? {
            Done::Committed { index } => {
                let index = i64::try_from(index).unwrap_or(0);
                let entry = Entry { value, version: index, lease: String::new() };
                self.kept.remember(name, entry);
                Ok(version(index))
            }
            // The store holds what I wanted, and a sending of mine went unanswered: it was me, or
            // somebody who wanted the same. (DCS-025)
            Done::Refused { repeated: true } => match self.look(name, by).await? {
                Some(entry) if entry.value == value => Ok(version(entry.version)),
                Some(_) | None => Err(DcsError::conflict(name)),
            },
            Done::Refused { repeated: false } | Done::SessionGone => Err(DcsError::conflict(name)),
        }
    }

    /// The record first: the catalogue is for clients, the record is for deciding.
    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError> {
        let written = self.publish(&value, by).await;
        self.register(&value, by).await;
        written
    }

    /// The race for the right to bootstrap. All contenders write the same empty value, so a lost
    /// answer could not be told from a lost race; the key therefore begins on my session, which
    /// nobody else has, and is then let go of. A contender that dies in between leaves nothing
    /// behind. (DCS-006, DCS-025)
    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError> {
        let name = "initialize";
        let key = self.key(name);
        let session = self.prolong_session(by).await?;
        let race = [Op::absent(key.clone()), Op::lock(key.clone(), "", &session)];
        match self.txn(by, &race).await? {
            Done::Committed { .. } => {}
            Done::SessionGone => {
                self.sessions.tenure.forget(&session);
                return Err(restless(name));
            }
            Done::Refused { .. } => match self.look(name, by).await? {
                Some(entry) if entry.lease == session => {}
                Some(_) | None => return Err(DcsError::conflict(name)),
            },
        }
        match self.txn(by, &[Op::unlock(key, "", &session)]).await? {
            Done::Committed { .. } => Ok(()),
            Done::Refused { repeated: true } => match self.look(name, by).await? {
                Some(entry) if entry.lease.is_empty() && entry.value.is_empty() => Ok(()),
                Some(_) | None => Err(DcsError::conflict(name)),
            },
            Done::Refused { repeated: false } | Done::SessionGone => Err(DcsError::conflict(name)),
        }
    }

    /// Deletes if the expectation is met; deleting what is not there is no error, except with a
    /// version. (DCS-008, DCS-013)
    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        let key = self.key(name);
        let ops = match expect {
            Expect::Anything => vec![Op::delete(key)],
            Expect::Absent => vec![Op::absent(key)],
            Expect::Version(Version(index)) => {
                vec![Op::unchanged(key.clone(), index), Op::delete(key)]
            }
        };
        self.kept.forget(name);
        match self.txn(by, &ops).await? {
            Done::Committed { .. } => {
                // The index it gave is that of the check, not of the deletion.
                self.wrote(0);
                Ok(())
            }
            Done::Refused { repeated: true } => match self.look(name, by).await? {
                None => Ok(()),
                Some(_) => Err(DcsError::conflict(name)),
            },
            Done::Refused { repeated: false } | Done::SessionGone => Err(DcsError::conflict(name)),
        }
    }

    /// (DCS-017)
    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget_all();
        self.txn(by, &[Op::delete_tree(self.key(""))]).await.map(drop)
    }
}
