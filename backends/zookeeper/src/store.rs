//! `Flat` for ZooKeeper: reading everything, and what the calls and the watch have in common.

use crate::ZooKeeperConfig;
use crate::call::text;
use crate::records::is_nothing;
use crate::session::{Session, Sessions};
use async_trait::async_trait;
use hathi_dcs::flat::copy::{self, view_of};
use hathi_dcs::flat::{Ended, Flat, Handle, Kept, Wake};
use hathi_dcs::{ClusterView, DcsError, Deadline, MemberName, Scope, Timing};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::Notify;
use zookeeper_client::{Acl, Acls, Error};

/// Sessions are numbers; 0: none.
pub(crate) type Entry = copy::Entry<i64>;
pub(crate) type Keys = BTreeMap<String, Entry>;

/// The leader first: who reads that the lock is free reads afterwards what was written before that.
const NAMES: [&str; 9] = [
    "leader",
    "status",
    "optime/leader",
    "config",
    "initialize",
    "sync",
    "failover",
    "history",
    "failsafe",
];

/// What the calls and the watch have in common.
pub struct Shared {
    /// `/service/batman`, without a slash at the end.
    pub(crate) root: String,
    pub(crate) me: MemberName,
    pub(crate) sessions: Sessions,
    /// Its revisions count my own writes: a reading that began after the n-th has number n.
    pub(crate) kept: Kept<i64>,
    writes: AtomicI64,
    /// I wrote; the watch need not wait for its event.
    pub(crate) stirred: Notify,
    acls: Vec<Acl>,
}

impl Shared {
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    pub(crate) fn access(&self) -> Acls<'_> {
        if self.acls.is_empty() { Acls::anyone_all() } else { Acls::new(&self.acls) }
    }

    /// Something of mine was written, or may have been.
    pub(crate) fn wrote(&self) {
        self.kept.wrote(self.writes.fetch_add(1, Ordering::AcqRel) + 1);
        self.stirred.notify_one();
    }

    /// Every record, node after node, in two rounds; not one moment's picture. (DCS-137)
    pub(crate) async fn read_on(&self, session: &Session, agreed: bool) -> Result<Keys, Error> {
        let client = &session.client;
        let barrier = if agreed { Some(self.barrier(session)?) } else { None };
        let fixed: Vec<_> =
            NAMES.iter().map(|name| (*name, client.get_data(&self.path(name)))).collect();
        let members = self.path("members");
        let members = client.list_children(&members);
        if let Some(barrier) = barrier {
            barrier.await?;
        }
        let mut keys = Keys::new();
        let mut take =
            |name: String, read: Result<(Vec<u8>, zookeeper_client::Stat), Error>| match read {
                // What others hang below is a directory and no record. (DCS-059)
                Ok((_, stat)) if stat.num_children > 0 => Ok(()),
                Ok((data, stat)) => {
                    let value = text(data);
                    let (version, lease) = (i64::from(stat.version), stat.ephemeral_owner);
                    if !is_nothing(&name, &value) {
                        keys.insert(name, Entry { value, version, lease });
                    }
                    Ok(())
                }
                Err(Error::NoNode) => Ok(()),
                Err(error) => Err(error),
            };
        for (name, read) in fixed {
            take(name.to_owned(), read.await)?;
        }
        let members = match members.await {
            Ok(members) => members,
            Err(Error::NoNode) => Vec::new(),
            Err(error) => return Err(error),
        };
        let members = members.into_iter().map(|member| format!("members/{member}"));
        let members: Vec<_> =
            members.map(|name| (client.get_data(&self.path(&name)), name)).collect();
        for (read, name) in members {
            take(name, read.await)?;
        }
        Ok(keys)
    }
}

/// One cluster in ZooKeeper, as seen by one member.
pub type ZooKeeper = Handle<Shared>;

/// Touches neither the network nor a file: the first use does. Refused credentials are then
/// `Refused`, an unreadable certificate is `NotRetriable`, and so is a lock that the servers' longest
/// session could not carry for a ttl.
pub fn open(
    config: ZooKeeperConfig,
    scope: Scope,
    me: MemberName,
    timing: Timing,
) -> Arc<ZooKeeper> {
    Handle::new(Arc::new(Shared {
        root: scope.prefix().trim_end_matches('/').to_owned(),
        kept: Kept::new(&me),
        me,
        acls: config.access(),
        sessions: Sessions::new(config, timing),
        writes: AtomicI64::new(0),
        stirred: Notify::new(),
    }))
}

#[async_trait]
impl Flat for Shared {
    type Lease = i64;
    const KIND: &'static str = "zookeeper";

    fn kept(&self) -> &Kept<i64> {
        &self.kept
    }

    fn retime(&self, timing: Timing) {
        self.sessions.set_timing(timing);
    }

    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let began = self.kept.own();
        let steps = |session: Arc<Session>| async move { self.read_on(&session, true).await };
        let keys = self.call(by, steps).await?;
        let keys = keys.map_err(|error| DcsError::unreachable(self.sessions.store(), 0, error))?;
        if began == self.kept.own() {
            self.kept.took(&keys);
        }
        Ok(view_of(&keys))
    }

    async fn watch_once(&self, wake: &Wake) -> Ended {
        self.follow(wake).await
    }
}
