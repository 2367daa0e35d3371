//! The [`Dcs`] on top of the replicated keys.

use crate::config::{RaftConfig, StartError};
use crate::hub::Hub;
use crate::machine::{Cond, LeaseWish, Op, Reply};
use crate::node::lock;
use crate::state::{Copy, Event};
use crate::wire;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History,
    MemberData, MemberName, Millis, Scope, Status, Sync, Timing, Version, ViewBuilder, boottime,
    json,
};
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast::error::RecvError;

/// One member's handle on the store it is itself a part of.
pub struct RaftStore {
    hub: Arc<Hub>,
    prefix: String,
    me: MemberName,
    lease: u64,
    timing: Mutex<Timing>,
    mine: Mutex<Mine>,
}

/// What this handle knows of its own writes.
#[derive(Default)]
struct Mine {
    /// The last index it was told of; a view that calls itself `Watched` is not older.
    index: u64,
    /// When its lease was last kept alive, and for how long.
    kept: Option<(Millis, u64)>,
}

impl RaftStore {
    /// Starts this machine's member of the store, on a thread of its own, and returns once it
    /// listens; it may still be looking for its partners.
    pub async fn start(
        config: RaftConfig,
        scope: Scope,
        me: MemberName,
        timing: Timing,
    ) -> Result<Arc<Self>, StartError> {
        let prefix = scope.prefix();
        let cluster = prefix.clone();
        let hub = tokio::task::spawn_blocking(move || Hub::start(config, cluster))
            .await
            .map_err(|error| StartError::Runtime(error.to_string()))??;
        *lock(&hub.own) = Some((format!("{prefix}leader"), me.0.clone()));
        Self::on(Arc::new(hub), prefix, me, timing)
    }

    /// Another handle on the same member.
    pub(crate) fn on(
        hub: Arc<Hub>,
        prefix: String,
        me: MemberName,
        timing: Timing,
    ) -> Result<Arc<Self>, StartError> {
        let lease = wire::unique().map_err(|error| StartError::Runtime(error.to_string()))?;
        let (timing, mine) = (Mutex::new(timing), Mutex::default());
        Ok(Arc::new(Self { hub, prefix, me, lease, timing, mine }))
    }

    /// Stops the member and waits until its port and directory are free. A dropped handle stops it
    /// too, without waiting.
    pub async fn shutdown(&self) {
        let hub = self.hub.clone();
        // It can only fail by a panic of the thread that is ending anyway.
        let _ = tokio::task::spawn_blocking(move || hub.stop()).await;
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn wish(&self) -> LeaseWish {
        let ttl_ms = lock(&self.timing).ttl_ms();
        LeaseWish { id: self.lease, ttl_ms, owner: self.me.0.clone() }
    }

    async fn run(&self, op: Op, by: Deadline) -> Result<Reply, DcsError> {
        let kept = match &op {
            Op::Hold { lease, .. }
            | Op::KeepAlive { lease }
            | Op::Put { lease: Some(lease), .. } => Some((boottime(), lease.ttl_ms)),
            _ => None,
        };
        let work = self.hub.call(by, |node, why| async move { node.write(op, by, &why).await });
        let (index, reply) = work.await?;
        let mut mine = lock(&self.mine);
        mine.index = mine.index.max(index);
        if let Reply::Done(_) = reply
            && kept.is_some()
        {
            mine.kept = kept;
        }
        Ok(reply)
    }

    async fn put(
        &self,
        key: &str,
        value: String,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        let op = Op::Put { key: self.key(key), value, cond: cond(expect), lease: None };
        match self.run(op, by).await? {
            Reply::Done(index) => Ok(Version(index)),
            Reply::Held(_) | Reply::Refused => Err(DcsError::conflict(key)),
        }
    }

    async fn delete(&self, key: &str, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        let op = Op::Delete { key: self.key(key), cond: cond(expect) };
        match self.run(op, by).await? {
            Reply::Done(_) => Ok(()),
            Reply::Held(_) | Reply::Refused => Err(DcsError::conflict(key)),
        }
    }

    async fn hold(&self, force: bool, renewal: bool, by: Deadline) -> Result<Reply, DcsError> {
        let op = Op::Hold { key: self.key("leader"), lease: self.wish(), force, renewal };
        self.run(op, by).await
    }

    /// Reads this member's copy if it is known to be in touch and not older than what this handle
    /// wrote.
    fn peek<T>(&self, read: impl FnOnce(&Copy) -> T) -> Option<T> {
        let written = lock(&self.mine).index;
        let new_enough = |copy: &Copy| copy.applied.map_or(0, |id| id.index) >= written;
        self.hub.peek(|copy| new_enough(copy).then(|| read(copy))).flatten()
    }

    fn stands(&self, key: &str, value: &str) -> bool {
        let key = self.key(key);
        let same = |copy: &Copy| copy.machine.keys.get(&key).is_some_and(|e| e.value == value);
        self.peek(same).unwrap_or(false)
    }
}

fn cond(expect: Expect) -> Cond {
    match expect {
        Expect::Anything => Cond::Any,
        Expect::Absent => Cond::Absent,
        Expect::Version(Version(index)) => Cond::Index(index),
    }
}

fn owned(reply: Reply) -> Result<(), DcsError> {
    match reply {
        Reply::Done(_) => Ok(()),
        Reply::Held(holder) => Err(DcsError::NotOwner { holder: holder.map(MemberName) }),
        Reply::Refused => Err(DcsError::NotOwner { holder: None }),
    }
}

fn view(copy: &Copy, prefix: &str) -> ClusterView {
    let mut builder = ViewBuilder::default();
    for (key, entry) in copy.machine.keys.range(prefix.to_owned()..) {
        let Some(key) = key.strip_prefix(prefix) else { break };
        builder.put(key, &entry.value, Version(entry.mod_index));
    }
    builder.build()
}

fn change(prefix: &str, key: &str) -> Option<Change> {
    let key = key.strip_prefix(prefix)?;
    Some(match key {
        "initialize" => Change::Initialize,
        "config" => Change::Config,
        "leader" => Change::Leader,
        "status" | "optime/leader" => Change::Status,
        "sync" => Change::Sync,
        "failover" => Change::Failover,
        "history" => Change::History,
        "failsafe" => Change::Failsafe,
        other => {
            let name = other.strip_prefix("members/")?;
            let plain = !name.is_empty() && !name.contains('/');
            return plain.then(|| Change::Member(MemberName::from(name)));
        }
    })
}

#[async_trait]
impl Dcs for RaftStore {
    fn kind(&self) -> &'static str {
        "raft"
    }

    fn set_timing(&self, timing: Timing) {
        *lock(&self.timing) = timing;
    }

    async fn load(&self, freshness: Freshness, by: Deadline) -> Result<ClusterView, DcsError> {
        if freshness == Freshness::Watched
            && let Some(view) = self.peek(|copy| view(copy, &self.prefix))
        {
            return Ok(view);
        }
        let prefix = self.prefix.clone();
        let work = self.hub.call(by, |node, why| async move {
            node.catch_up(by, &why).await;
            view(&node.state.copy(), &prefix)
        });
        work.await
    }

    async fn acquire_leader(&self, by: Deadline) -> Result<(), DcsError> {
        owned(self.hold(false, false, by).await?)
    }

    async fn take_leader(&self, by: Deadline) -> Result<(), DcsError> {
        owned(self.hold(true, false, by).await?)
    }

    async fn renew_leader(&self, by: Deadline) -> Result<(), DcsError> {
        match self.hold(false, true, by).await? {
            // Gone, or on the lease of a former life: asked for in a step of its own. (DCS-027)
            Reply::Held(holder) if holder.as_ref().is_none_or(|holder| *holder == self.me.0) => {
                owned(self.hold(false, false, by).await?)
            }
            reply => owned(reply),
        }
    }

    async fn release_leader(&self, status: Option<&Status>, by: Deadline) -> Result<(), DcsError> {
        let first = status.map(|status| (self.key("status"), status.to_wire()));
        let op = Op::Release { key: self.key("leader"), me: self.me.0.clone(), first };
        owned(self.run(op, by).await?)
    }

    async fn write_member(&self, data: &MemberData, by: Deadline) -> Result<(), DcsError> {
        let (key, value) = (self.key(&format!("members/{}", self.me)), data.to_wire());
        let lease = self.lease;
        let same = self.peek(|copy| {
            let entry = copy.machine.keys.get(&key);
            let same = entry.is_some_and(|e| e.value == value && e.lease == Some(lease));
            same && copy.machine.leases.contains_key(&lease)
        });
        let op = if same == Some(true) {
            let wish = self.wish();
            let timing = *lock(&self.timing);
            // Every write is a sync on every member's disk; half a ttl leaves time for retries.
            let often = (timing.ttl_ms() / 2).min(2 * timing.loop_wait_ms()) * 9 / 10;
            let kept = lock(&self.mine).kept;
            if kept.is_some_and(|(at, ttl)| ttl == wish.ttl_ms && boottime().since(at) < often) {
                return Ok(());
            }
            Op::KeepAlive { lease: wish }
        } else {
            Op::Put { key, value, cond: Cond::Any, lease: Some(self.wish()) }
        };
        self.run(op, by).await.map(drop)
    }

    async fn write_status(&self, status: &Status, by: Deadline) -> Result<(), DcsError> {
        let value = status.to_wire();
        if self.stands("status", &value) {
            return Ok(());
        }
        self.put("status", value, Expect::Anything, by).await.map(drop)
    }

    async fn write_failsafe(&self, failsafe: &Failsafe, by: Deadline) -> Result<(), DcsError> {
        let value = failsafe.to_wire();
        if self.stands("failsafe", &value) {
            return Ok(());
        }
        self.put("failsafe", value, Expect::Anything, by).await.map(drop)
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        by: Deadline,
    ) -> Result<(), DcsError> {
        self.put("initialize", value.to_owned(), expect, by).await.map(drop)
    }

    async fn delete_initialize(&self, by: Deadline) -> Result<(), DcsError> {
        self.delete("initialize", Expect::Anything, by).await
    }

    async fn write_config(
        &self,
        config: &Map<String, Value>,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.put("config", json::compact(config), expect, by).await
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.put("failover", failover.to_wire(), expect, by).await
    }

    async fn write_sync(
        &self,
        sync: &Sync,
        expect: Expect,
        by: Deadline,
    ) -> Result<Version, DcsError> {
        self.put("sync", sync.to_wire(), expect, by).await
    }

    async fn delete_sync(&self, expect: Expect, by: Deadline) -> Result<(), DcsError> {
        self.delete("sync", expect, by).await
    }

    async fn write_history(&self, history: &History, by: Deadline) -> Result<(), DcsError> {
        self.put("history", history.to_wire(), Expect::Anything, by).await.map(drop)
    }

    async fn delete_cluster(&self, by: Deadline) -> Result<(), DcsError> {
        self.run(Op::DeletePrefix { prefix: self.prefix.clone() }, by).await.map(drop)
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        // The hub is kept so that the stream does not end before who reads it.
        let state = (self.hub.events.subscribe(), self.hub.clone(), self.prefix.clone());
        stream::unfold(state, |(mut events, hub, prefix)| async move {
            loop {
                let found = match events.recv().await {
                    Ok(Event::Key(key)) => change(&prefix, &key),
                    Ok(Event::Everything) | Err(RecvError::Lagged(_)) => Some(Change::Everything),
                    // Its sender lives in the hub: this cannot be; waiting is never wrong.
                    Err(RecvError::Closed) => std::future::pending().await,
                };
                if let Some(found) = found {
                    return Some((found, (events, hub, prefix)));
                }
            }
        })
        .boxed()
    }
}

/// A member without PostgreSQL: it votes and stores, and never holds a key of its own. Runs until
/// `shutdown` is done.
///
/// # Errors
/// What [`RaftStore::start`] says; once started it runs.
pub async fn run_witness(
    config: RaftConfig,
    scope: Scope,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let me = MemberName::from("witness");
    let store = RaftStore::start(config, scope, me, Timing::default()).await?;
    shutdown.await;
    store.shutdown().await;
    Ok(())
}
