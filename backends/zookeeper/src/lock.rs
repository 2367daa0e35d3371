//! The leader key: a node that hangs on my session. (DCS-132 … DCS-134, DCS-043, DCS-305)
//!
//! Patroni renews without asking and re-binds the node in two steps, between which somebody else may
//! win. Here a renewal is a write through the majority and a look, and re-binding is one step. That
//! step names the version of the node it replaces, and ZooKeeper counts versions from 0 for each new
//! node; so that no other's fresh node is taken for mine, mine are written a few times while they
//! are made, in the same step.

use crate::session::Session;
use crate::store::Shared;
use async_trait::async_trait;
use hathi_dcs::flat::LeaderKey;
use hathi_dcs::flat::copy::Entry;
use hathi_dcs::{DcsError, Deadline, MemberName, Status, boottime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zookeeper_client::{CreateMode, Error, MultiWriteError, MultiWriter};

const LEADER: &str = "leader";
/// A node that changes between the look and the step is looked at again, so often.
const ROUNDS: u32 = 4;

enum Verdict {
    Mine,
    Theirs(Option<String>),
    Restless,
}

/// The steps of one transaction.
pub(crate) async fn commit(mut writer: MultiWriter<'_>) -> Result<(), Error> {
    match writer.commit().await {
        Ok(_) => Ok(()),
        Err(MultiWriteError::RequestFailed { source })
        | Err(MultiWriteError::OperationFailed { source, .. }) => Err(source),
    }
}

impl Shared {
    /// Makes the node mine, after deleting the one of this version if there is one.
    async fn bind(&self, session: &Session, replaced: Option<i32>) -> Result<(), Error> {
        let path = self.path(LEADER);
        let me = self.me.as_str().as_bytes();
        let mut writer = session.client.new_multi_writer();
        if replaced.is_some() {
            writer.add_delete(&path, replaced)?;
        }
        let access = self.access();
        writer.add_create(&path, me, &CreateMode::Ephemeral.with_acls(access))?;
        for _ in 0..=boottime().0 % 16 {
            writer.add_set_data(&path, me, None)?;
        }
        let bound = commit(writer).await;
        self.wrote();
        bound
    }

    /// The same; false if the node was not as expected, which is then looked at again.
    async fn try_bind(&self, session: &Session, replaced: Option<i32>) -> Result<bool, Error> {
        match self.bind(session, replaced).await {
            Ok(()) => Ok(true),
            Err(Error::NoNode) if replaced.is_none() => {
                self.make_parents(session, LEADER).await?;
                Ok(false)
            }
            Err(Error::NoNode | Error::NodeExists | Error::BadVersion) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn acquire_on(&self, session: &Session) -> Result<Verdict, Error> {
        for _ in 0..ROUNDS {
            if self.try_bind(session, None).await? {
                return Ok(Verdict::Mine);
            }
            match self.look(session, LEADER).await? {
                // Nobody else has my session: an earlier attempt, of this call or of one that was
                // given up, has won it.
                Some((_, stat)) if stat.ephemeral_owner == session.id => return Ok(Verdict::Mine),
                Some((holder, _)) => return Ok(Verdict::Theirs(Some(holder))),
                // Its parent was missing, or it was given up since the refusal.
                None => {}
            }
        }
        Ok(Verdict::Restless)
    }

    async fn take_on(&self, session: &Session) -> Result<Verdict, Error> {
        for _ in 0..ROUNDS {
            let found = self.look(session, LEADER).await?;
            let version = match found {
                Some((_, stat)) if stat.ephemeral_owner == session.id => return Ok(Verdict::Mine),
                Some((_, stat)) => Some(stat.version),
                None => None,
            };
            if self.try_bind(session, version).await? {
                return Ok(Verdict::Mine);
            }
        }
        Ok(Verdict::Restless)
    }

    async fn renew_on(&self, session: &Session) -> Result<Verdict, Error> {
        for _ in 0..ROUNDS {
            let version = match self.look(session, LEADER).await? {
                Some((_, stat)) if stat.ephemeral_owner == session.id => return Ok(Verdict::Mine),
                Some((holder, stat)) if holder == self.me.as_str() => Some(stat.version),
                Some((holder, _)) => return Ok(Verdict::Theirs(Some(holder))),
                None => None,
            };
            if self.try_bind(session, version).await? {
                return Ok(Verdict::Mine);
            }
        }
        Ok(Verdict::Restless)
    }

    /// `sent`: an earlier try of this call may have deleted it.
    async fn release_on(
        &self,
        session: &Session,
        status: Option<&str>,
        sent: &AtomicBool,
    ) -> Result<Verdict, Error> {
        let (leader, record) = (self.path(LEADER), self.path("status"));
        let mut there = true;
        for _ in 0..ROUNDS {
            let version = match self.look(session, LEADER).await? {
                Some((holder, stat)) if holder == self.me.as_str() => stat.version,
                None if sent.load(Ordering::Relaxed) => return Ok(Verdict::Mine),
                found => return Ok(Verdict::Theirs(found.map(|(holder, _)| holder))),
            };
            let mut writer = session.client.new_multi_writer();
            if let Some(status) = status {
                let status = status.as_bytes();
                match there {
                    true => writer.add_set_data(&record, status, None)?,
                    false => {
                        let persistent = CreateMode::Persistent.with_acls(self.access());
                        writer.add_create(&record, status, &persistent)?;
                    }
                }
            }
            writer.add_delete(&leader, Some(version))?;
            sent.store(true, Ordering::Relaxed);
            let done = commit(writer).await;
            self.wrote();
            match done {
                Ok(()) => return Ok(Verdict::Mine),
                Err(Error::NoNode | Error::NodeExists | Error::BadVersion) => {
                    sent.store(false, Ordering::Relaxed);
                    there = !there;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Verdict::Restless)
    }

    fn verdict(&self, said: Result<Verdict, Error>) -> Result<(), DcsError> {
        match said {
            Ok(Verdict::Mine) => Ok(()),
            Ok(Verdict::Theirs(holder)) => {
                Err(DcsError::NotOwner { holder: holder.map(MemberName) })
            }
            Ok(Verdict::Restless) => {
                let why = "the leader key changed at every look";
                Err(DcsError::unreachable(self.sessions.store(), 0, why))
            }
            Err(error) => Err(DcsError::unreachable(self.sessions.store(), 0, error)),
        }
    }

    /// Runs what makes the lock mine or confirms it; only on a session that outlives the lease.
    async fn hold<'a, F>(
        &'a self,
        by: Deadline,
        steps: impl Fn(Arc<Session>) -> F + Send,
    ) -> Result<(), DcsError>
    where
        F: Future<Output = Result<Verdict, Error>> + Send + 'a,
    {
        if let Some(why) = self.sessions.get(by).await?.too_short.clone() {
            return Err(DcsError::NotRetriable { store: self.sessions.store(), why });
        }
        let said = self.call(by, steps).await?;
        self.verdict(said)
    }

    fn confirmed(&self, session: &Session, verdict: Verdict) -> Verdict {
        if let Verdict::Mine = verdict {
            self.sessions.prolonged(session);
        }
        verdict
    }
}

#[async_trait]
impl LeaderKey for Shared {
    async fn acquire(&self, by: Deadline) -> Result<(), DcsError> {
        let steps = |session: Arc<Session>| async move {
            let verdict = self.acquire_on(&session).await?;
            Ok(self.confirmed(&session, verdict))
        };
        self.hold(by, steps).await
    }

    async fn take(&self, by: Deadline) -> Result<(), DcsError> {
        let steps = |session: Arc<Session>| async move {
            let verdict = self.take_on(&session).await?;
            Ok(self.confirmed(&session, verdict))
        };
        self.hold(by, steps).await
    }

    async fn renew(&self, by: Deadline) -> Result<(), DcsError> {
        let steps = |session: Arc<Session>| async move {
            let verdict = self.renew_on(&session).await?;
            Ok(self.confirmed(&session, verdict))
        };
        self.hold(by, steps).await
    }

    /// The status and the delete are one step: nobody sees the lock free without it. The session
    /// stays, and with it my member record. (Patroni closes it.)
    async fn release(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let status = status.map(Status::to_wire);
        let (wire, sent) = (status.as_deref(), &AtomicBool::new(false));
        if status.is_some() {
            self.kept.forget("status");
        }
        let steps =
            |session: Arc<Session>| async move { self.release_on(&session, wire, sent).await };
        let said = self.call(by, steps).await?;
        self.verdict(said)?;
        if let Some(value) = status {
            self.kept.remember("status", Entry { value, version: 0, lease: 0 });
        }
        Ok(())
    }
}
