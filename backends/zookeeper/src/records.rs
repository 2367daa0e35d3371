//! Every record but the leader key: compared when asked to, made with its parents when it is not
//! there. (DCS-131, DCS-135, DCS-136)
//!
//! `sync` is never deleted, as with Patroni: `{}` stands for it, and is read as its absence.

use crate::lock::commit;
use crate::session::Session;
use crate::store::Shared;
use async_trait::async_trait;
use hathi_dcs::flat::Records;
use hathi_dcs::flat::copy::{Entry, version};
use hathi_dcs::{DcsError, Deadline, Expect, Version};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zookeeper_client::{CreateMode, Error};

/// What stands for no `sync` record.
pub(crate) const NOTHING: &str = "{}";
/// A node that changes between the look and the step is looked at again, so often.
const ROUNDS: u32 = 4;

fn restless<T>() -> Result<T, Error> {
    // Asked again by `call`, after a pause.
    Err(Error::ConnectionLoss)
}

/// Is this what stands for a deleted record?
pub(crate) fn is_nothing(name: &str, value: &str) -> bool {
    name == "sync" && value.trim() == NOTHING
}

impl Shared {
    /// Makes the node; `None` if it is there already.
    async fn make(
        &self,
        session: &Session,
        name: &str,
        value: &str,
        mode: CreateMode,
    ) -> Result<Option<i32>, Error> {
        for _ in 0..ROUNDS {
            let options = mode.with_acls(self.access());
            match session.client.create(&self.path(name), value.as_bytes(), &options).await {
                Ok(_) => return Ok(Some(0)),
                Err(Error::NodeExists) => return Ok(None),
                Err(Error::NoNode) => self.make_parents(session, name).await?,
                Err(error) => return Err(error),
            }
        }
        restless()
    }

    /// Writes if the expectation is met, and gives the new version; `None` if it was not. `tried`:
    /// an earlier try of this call may have written.
    async fn set_on(
        &self,
        session: &Session,
        name: &str,
        value: &str,
        expect: Expect,
        tried: bool,
    ) -> Result<Option<i32>, Error> {
        let path = self.path(name);
        for _ in 0..ROUNDS {
            match expect {
                Expect::Anything => {
                    match session.client.set_data(&path, value.as_bytes(), None).await {
                        Ok(stat) => return Ok(Some(stat.version)),
                        Err(Error::NoNode) => {}
                        Err(error) => return Err(error),
                    }
                    let made = self.make(session, name, value, CreateMode::Persistent).await?;
                    if made.is_some() {
                        return Ok(made);
                    }
                }
                Expect::Absent => {
                    let made = self.make(session, name, value, CreateMode::Persistent).await?;
                    if made.is_some() {
                        return Ok(made);
                    }
                    match self.look(session, name).await? {
                        Some((found, stat)) if is_nothing(name, &found) => {
                            let over = Some(stat.version);
                            match session.client.set_data(&path, value.as_bytes(), over).await {
                                Ok(stat) => return Ok(Some(stat.version)),
                                Err(Error::BadVersion | Error::NoNode) => {}
                                Err(error) => return Err(error),
                            }
                        }
                        // It was me, or somebody who wanted the same. (DCS-025)
                        Some((found, stat)) if tried && found == value => {
                            return Ok(Some(stat.version));
                        }
                        Some(_) => return Ok(None),
                        None => {}
                    }
                }
                Expect::Version(Version(wanted)) => {
                    let Ok(wanted) = i32::try_from(wanted) else { return Ok(None) };
                    match session.client.set_data(&path, value.as_bytes(), Some(wanted)).await {
                        Ok(stat) => return Ok(Some(stat.version)),
                        Err(Error::NoNode) => return Ok(None),
                        Err(Error::BadVersion) if tried => {}
                        Err(Error::BadVersion) => return Ok(None),
                        Err(error) => return Err(error),
                    }
                    let mine = self.look(session, name).await?.filter(|(found, stat)| {
                        found == value && Some(stat.version) == wanted.checked_add(1)
                    });
                    return Ok(mine.map(|(_, stat)| stat.version));
                }
            }
        }
        restless()
    }

    async fn set_member_on(&self, session: &Session, name: &str, value: &str) -> Result<(), Error> {
        let path = self.path(name);
        for _ in 0..ROUNDS {
            match session.client.set_data(&path, value.as_bytes(), None).await {
                Ok(stat) if stat.ephemeral_owner == session.id => return Ok(()),
                // It hangs on the session of my former life, or on none.
                Ok(stat) => {
                    let mut writer = session.client.new_multi_writer();
                    writer.add_delete(&path, Some(stat.version))?;
                    let ephemeral = CreateMode::Ephemeral.with_acls(self.access());
                    writer.add_create(&path, value.as_bytes(), &ephemeral)?;
                    match commit(writer).await {
                        Ok(()) => return Ok(()),
                        Err(Error::NoNode | Error::BadVersion | Error::NodeExists) => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
            if self.make(session, name, value, CreateMode::Ephemeral).await?.is_some() {
                return Ok(());
            }
        }
        restless()
    }

    /// The node begins on my session, which nobody else has, and is then made again without one. A
    /// contender that dies in between leaves nothing behind. `won`: an earlier try of this call came
    /// that far.
    async fn begin_on(&self, session: &Session, won: &AtomicBool) -> Result<bool, Error> {
        let name = "initialize";
        let made = self.make(session, name, "", CreateMode::Ephemeral).await?;
        let version = match made {
            Some(version) => version,
            None => match self.look(session, name).await? {
                Some((_, stat)) if stat.ephemeral_owner == session.id => stat.version,
                Some((value, stat)) => {
                    let settled = stat.ephemeral_owner == 0 && value.is_empty();
                    return Ok(settled && won.load(Ordering::Relaxed));
                }
                None => return restless(),
            },
        };
        won.store(true, Ordering::Relaxed);
        let path = self.path(name);
        let mut writer = session.client.new_multi_writer();
        writer.add_delete(&path, Some(version))?;
        writer.add_create(&path, b"", &CreateMode::Persistent.with_acls(self.access()))?;
        match commit(writer).await {
            Ok(()) => Ok(true),
            Err(Error::NoNode | Error::BadVersion | Error::NodeExists) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// False: the expectation was not met.
    async fn delete_on(
        &self,
        session: &Session,
        name: &str,
        expect: Expect,
        tried: bool,
    ) -> Result<bool, Error> {
        let kept = name == "sync";
        let there = |found: &Option<(String, zookeeper_client::Stat)>| {
            found.as_ref().is_some_and(|(value, _)| !is_nothing(name, value))
        };
        let wanted = match expect {
            Expect::Absent => return Ok(!there(&self.look(session, name).await?)),
            Expect::Anything if kept && !there(&self.look(session, name).await?) => {
                return Ok(true);
            }
            Expect::Anything => None,
            Expect::Version(Version(wanted)) => match i32::try_from(wanted) {
                Ok(wanted) => Some(wanted),
                Err(_) => return Ok(false),
            },
        };
        let path = self.path(name);
        let done = match kept {
            true => session.client.set_data(&path, NOTHING.as_bytes(), wanted).await.map(drop),
            false => session.client.delete(&path, wanted).await,
        };
        match done {
            Ok(()) => Ok(true),
            Err(Error::NoNode) if wanted.is_none() => Ok(true),
            Err(Error::NoNode | Error::BadVersion) if tried => {
                Ok(!there(&self.look(session, name).await?))
            }
            Err(Error::NoNode | Error::BadVersion) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Everything below the cluster's node, and the node.
    async fn delete_all_on(&self, session: &Session) -> Result<(), Error> {
        let mut found = vec![self.root.clone()];
        let mut at = 0;
        while let Some(path) = found.get(at).cloned() {
            match session.client.list_children(&path).await {
                Ok(children) => {
                    found.extend(children.iter().map(|child| format!("{path}/{child}")));
                }
                Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
            at += 1;
        }
        for path in found.iter().rev() {
            match session.client.delete(path, None).await {
                Ok(()) | Err(Error::NoNode) => {}
                // Somebody made one meanwhile.
                Err(Error::NotEmpty) => return restless(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The nodes above this one, where they are missing.
    pub(crate) async fn make_parents(&self, session: &Session, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let options = CreateMode::Persistent.with_acls(self.access());
        session.client.mkdir(parent, &options).await
    }

    fn strange(&self, error: Error) -> DcsError {
        DcsError::unreachable(self.sessions.store(), 0, error)
    }
}

#[async_trait]
impl Records for Shared {
    async fn set(
        &self,
        name: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.kept.forget(name);
        let (tried, wanted) = (&AtomicBool::new(false), value.as_str());
        let steps = |session: Arc<Session>| async move {
            let again = tried.swap(true, Ordering::Relaxed);
            self.set_on(&session, name, wanted, expect, again).await
        };
        let said = self.call(by, steps).await;
        self.wrote();
        match said? {
            Ok(Some(number)) => {
                let number = i64::from(number);
                self.kept.remember(name, Entry { value, version: number, lease: 0 });
                Ok(version(number))
            }
            Ok(None) => Err(DcsError::conflict(name)),
            Err(error) => Err(self.strange(error)),
        }
    }

    async fn set_member(&self, value: String, by: Deadline) -> Result<(), DcsError> {
        let name = format!("members/{}", self.me);
        let session = self.sessions.get(by).await?;
        let same = |entry: Entry<i64>| entry.value == value && entry.lease == session.id;
        if self.kept.known(&name).is_some_and(same) {
            self.sessions.prolonged(&session);
            return Ok(());
        }
        drop(session);
        self.kept.forget(&name);
        let (path, wanted) = (name.as_str(), value.as_str());
        let steps = |session: Arc<Session>| async move {
            self.set_member_on(&session, path, wanted).await?;
            self.sessions.prolonged(&session);
            Ok(session.id)
        };
        let said = self.call(by, steps).await;
        self.wrote();
        let lease = said?.map_err(|error| self.strange(error))?;
        self.kept.remember(&name, Entry { value, version: 0, lease });
        Ok(())
    }

    async fn begin_bootstrap(&self, by: Deadline) -> Result<(), DcsError> {
        let won = &AtomicBool::new(false);
        let steps = |session: Arc<Session>| async move { self.begin_on(&session, won).await };
        let said = self.call(by, steps).await;
        self.wrote();
        match said? {
            Ok(true) => Ok(()),
            Ok(false) => Err(DcsError::conflict("initialize")),
            Err(error) => Err(self.strange(error)),
        }
    }

    async fn delete(&self, name: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget(name);
        let tried = &AtomicBool::new(false);
        let steps = |session: Arc<Session>| async move {
            let again = tried.swap(true, Ordering::Relaxed);
            self.delete_on(&session, name, expect, again).await
        };
        let said = self.call(by, steps).await;
        self.wrote();
        match said? {
            Ok(true) => Ok(()),
            Ok(false) => Err(DcsError::conflict(name)),
            Err(error) => Err(self.strange(error)),
        }
    }

    async fn delete_all(&self, by: Deadline) -> Result<(), DcsError> {
        self.kept.forget_all();
        let steps = |session: Arc<Session>| async move { self.delete_all_on(&session).await };
        let said = self.call(by, steps).await;
        self.wrote();
        said?.map_err(|error| self.strange(error))
    }
}
