//! The model of the store: one linear history, leases that end by true time, compare-and-set as the
//! trait demands it.

use crate::world::{MS, SECOND, World};
use hathi::ha::run::Event;
use hathi_dcs::{
    Change, ClusterView, DcsError, Expect, Failover, Failsafe, History, Leader, Member, MemberData,
    MemberName, Status, Stored, Sync, Version,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The leader key and the lease that carries it.
#[derive(Clone, Debug)]
pub struct Held {
    pub name: MemberName,
    pub version: u64,
    pub session: u64,
}

/// A lease: in true time, not before which moment it ends, how long it is, and how late it will end.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub until: u64,
    pub length: u64,
    late: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Store {
    pub up: bool,
    pub kind: crate::stores::Kind,
    /// Down like a dead server: refuses at once instead of being silent.
    pub refuses: bool,
    pub revision: u64,
    /// Percent of requests lost before, and of answers lost after they were applied.
    pub lose_requests: u64,
    pub lose_answers: u64,
    /// Added to each request and each answer, up to.
    pub slow_ms: u64,
    pub initialize: Option<(String, u64)>,
    pub config: Option<(Map<String, Value>, u64)>,
    pub leader: Option<Held>,
    pub status: Status,
    pub members: BTreeMap<MemberName, (MemberData, u64)>,
    pub failover: Option<(Failover, u64)>,
    pub sync: Option<(Sync, u64)>,
    pub history: History,
    pub failsafe: Option<Failsafe>,
    pub sessions: BTreeMap<u64, Session>,
    pub next_session: u64,
    cached: Option<Arc<ClusterView>>,
}

impl Store {
    pub fn view(&mut self) -> Arc<ClusterView> {
        if let Some(view) = &self.cached {
            return view.clone();
        }
        let view = Arc::new(ClusterView {
            initialize: self.initialize.as_ref().map(|(value, _)| value.clone()),
            initialize_version: self.initialize.as_ref().map(|(_, version)| Version(*version)),
            config: self.config.as_ref().map(|(value, version)| stored(value.clone(), *version)),
            leader: self
                .leader
                .as_ref()
                .map(|held| Leader { name: held.name.clone(), version: Version(held.version) }),
            status: self.status.clone(),
            members: self
                .members
                .iter()
                .map(|(name, (data, _))| Member { name: name.clone(), data: data.clone() })
                .collect(),
            failover: self
                .failover
                .as_ref()
                .map(|(value, version)| stored(value.clone(), *version)),
            sync: self.sync.as_ref().map(|(value, version)| stored(value.clone(), *version)),
            history: self.history.clone(),
            failsafe: self.failsafe.clone(),
        });
        self.cached = Some(view.clone());
        view
    }

    pub fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.cached = None;
        self.revision
    }

    fn keep_session(&mut self, session: u64, now_us: u64, ttl_us: u64) {
        let late = self.kind.late_us(ttl_us);
        self.sessions.insert(session, Session { until: now_us + ttl_us, length: ttl_us, late });
    }

    /// True time of the end of the leader's lease.
    pub fn leader_until(&self) -> Option<u64> {
        let held = self.leader.as_ref()?;
        self.sessions.get(&held.session).map(|session| session.until)
    }
}

fn stored<T>(value: T, version: u64) -> Stored<T> {
    Stored { value, version: Version(version) }
}

fn meets(expect: Expect, version: Option<u64>, key: &str) -> Result<(), DcsError> {
    let met = match expect {
        Expect::Anything => true,
        Expect::Absent => version.is_none(),
        Expect::Version(wanted) => version == Some(wanted.0),
    };
    if met { Ok(()) } else { Err(DcsError::conflict(key)) }
}

/// Who asks: the node, the lease of its session, and how long that is to be.
#[derive(Clone, Debug)]
pub struct Asker {
    pub node: usize,
    pub name: MemberName,
    pub session: u64,
    pub ttl_us: u64,
}

impl World {
    /// A record changed: everybody who watches and can hear it is told, in order.
    pub fn changed(&mut self, change: Change) {
        let revision = self.store.bump();
        let view = self.store.view();
        for node in 0..self.members() {
            let usual = self.store.kind.row.watch_ms;
            let slow = self.store.slow_ms;
            let most = if slow > 0 { slow.min(2_000).max(usual) } else { usual };
            let delay = (self.random.between(1, most) + self.store.kind.missed_ms()) * MS;
            let at = (self.now_us + delay).max(self.nodes[node].last_delivery_at);
            self.nodes[node].last_delivery_at = at;
            let (change, view) = (change.clone(), view.clone());
            self.at(at, move |world| world.deliver(node, revision, view, change));
        }
    }

    fn deliver(&mut self, node: usize, revision: u64, view: Arc<ClusterView>, change: Change) {
        if !self.sees_store(node) || self.nodes[node].watch_broken {
            return;
        }
        let Some(agent) = self.nodes[node].agent.as_mut() else { return };
        if agent.copy.as_ref().is_some_and(|(have, _)| *have < revision) {
            agent.copy = Some((revision, view));
        }
        for watcher in &agent.watchers {
            let _ = watcher.unbounded_send(change.clone());
        }
        agent.events.post(Event::Store(change));
    }

    /// The node's connection to the store was cut or came back: its watch notices a little later.
    pub fn store_link_changed(&mut self, node: usize) {
        let later = self.random.between(20, 1_500) * MS;
        if self.sees_store(node) {
            self.after(later, move |world| {
                if !world.sees_store(node) {
                    return;
                }
                world.nodes[node].watch_broken = false;
                let (revision, view) = (world.store.revision, world.store.view());
                if let Some(agent) = world.nodes[node].agent.as_mut() {
                    agent.copy = Some((revision, view.clone()));
                }
                world.deliver(node, revision, view, Change::Everything);
            });
        } else {
            // What it missed from now on only a new start of the watch can tell.
            self.after(later * 2, move |world| {
                if world.sees_store(node) {
                    return;
                }
                world.nodes[node].watch_broken = true;
                if let Some(agent) = world.nodes[node].agent.as_mut() {
                    agent.copy = None;
                }
            });
        }
    }

    /// Leases end, if the store is there to end them.
    pub fn expire_sessions(&mut self) {
        if !self.store.up {
            return;
        }
        let now = self.now_us;
        let ended: Vec<u64> = self
            .store
            .sessions
            .iter()
            .filter(|(_, ends)| ends.until + ends.late <= now)
            .map(|(session, _)| *session)
            .collect();
        for session in ended {
            self.end_session(session);
        }
    }

    /// The lease is gone with everything bound to it.
    pub fn end_session(&mut self, session: u64) {
        self.store.sessions.remove(&session);
        if self.store.leader.as_ref().is_some_and(|held| held.session == session) {
            let held = self.store.leader.take();
            let node = held.and_then(|held| self.node_of(&held.name)).unwrap_or(usize::MAX);
            self.say(node, 10, |_| "STORE leader key expired".into());
            self.changed(Change::Leader);
        }
        let stay = self.store.kind.row.members_stay;
        let gone: Vec<MemberName> = self
            .store
            .members
            .iter()
            .filter(|(_, (_, bound))| *bound == session && !stay)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.store.members.remove(&name);
            let node = self.node_of(&name).unwrap_or(usize::MAX);
            self.say(node, 11, |_| "STORE member key expired".into());
            self.changed(Change::Member(name));
        }
    }

    /// Every lease that ends, ends at the latest one second later.
    pub fn watch_sessions(&mut self) {
        self.expire_sessions();
        self.after(SECOND / 5, Self::watch_sessions);
    }

    // The operations, as they are applied.

    pub fn op_acquire(&mut self, me: &Asker) -> Result<(), DcsError> {
        self.expire_sessions();
        if let Some(held) = &self.store.leader {
            return Err(DcsError::NotOwner { holder: Some(held.name.clone()) });
        }
        self.check_acquire(me.node);
        self.bind_leader(me, "acquires the leader key");
        Ok(())
    }

    pub fn op_take(&mut self, me: &Asker) -> Result<(), DcsError> {
        self.bind_leader(me, "takes the leader key");
        Ok(())
    }

    fn bind_leader(&mut self, me: &Asker, how: &'static str) {
        self.store.keep_session(me.session, self.now_us, me.ttl_us);
        let version = self.store.revision + 1;
        self.store.leader = Some(Held { name: me.name.clone(), version, session: me.session });
        self.watched.new_epoch();
        self.say(me.node, 12, |_| format!("STORE {how}"));
        self.changed(Change::Leader);
    }

    pub fn op_renew(&mut self, me: &Asker) -> Result<(), DcsError> {
        self.expire_sessions();
        match &mut self.store.leader {
            Some(held) if held.name == me.name => {
                held.session = me.session;
                self.store.keep_session(me.session, self.now_us, me.ttl_us);
                Ok(())
            }
            Some(held) => Err(DcsError::NotOwner { holder: Some(held.name.clone()) }),
            None => {
                self.bind_leader(me, "takes the vanished leader key back");
                Ok(())
            }
        }
    }

    pub fn op_release(&mut self, me: &Asker, status: Option<Status>) -> Result<(), DcsError> {
        self.expire_sessions();
        match &self.store.leader {
            Some(held) if held.name == me.name => {}
            other => {
                let holder = other.as_ref().map(|held| held.name.clone());
                return Err(DcsError::NotOwner { holder });
            }
        }
        self.check_release(me.node);
        if let Some(status) = status {
            let _ = self.op_status(me, status);
        }
        self.store.leader = None;
        self.say(me.node, 13, |world| {
            format!("STORE releases the leader key, optime {}", world.store.status.optime)
        });
        self.changed(Change::Leader);
        Ok(())
    }

    pub fn op_member(&mut self, me: &Asker, data: MemberData) -> Result<(), DcsError> {
        self.store.keep_session(me.session, self.now_us, me.ttl_us);
        let value = (data, me.session);
        if self.store.members.get(&me.name) != Some(&value) {
            self.store.members.insert(me.name.clone(), value);
            self.changed(Change::Member(me.name.clone()));
        }
        Ok(())
    }

    pub fn op_status(&mut self, me: &Asker, status: Status) -> Result<(), DcsError> {
        if self.store.status != status {
            self.check_status(me.node, status.optime);
            self.store.status = status;
            self.changed(Change::Status);
        }
        Ok(())
    }

    pub fn op_initialize(&mut self, value: String, expect: Expect) -> Result<(), DcsError> {
        meets(expect, self.store.initialize.as_ref().map(|(_, version)| *version), "initialize")?;
        self.watched.founded.insert(value.clone());
        self.store.initialize = Some((value, self.store.revision + 1));
        self.changed(Change::Initialize);
        Ok(())
    }

    pub fn op_delete_initialize(&mut self) -> Result<(), DcsError> {
        self.store.initialize = None;
        self.changed(Change::Initialize);
        Ok(())
    }

    pub fn op_config(
        &mut self,
        value: Map<String, Value>,
        expect: Expect,
    ) -> Result<Version, DcsError> {
        meets(expect, self.store.config.as_ref().map(|(_, version)| *version), "config")?;
        let version = self.store.revision + 1;
        self.note_section(&value);
        self.store.config = Some((value, version));
        self.changed(Change::Config);
        Ok(Version(version))
    }

    pub fn op_failover(&mut self, value: Failover, expect: Expect) -> Result<Version, DcsError> {
        meets(expect, self.store.failover.as_ref().map(|(_, version)| *version), "failover")?;
        let version = self.store.revision + 1;
        if !value.is_empty() {
            self.watched.requests += 1;
            self.watched.requested_at = self.now_us;
            self.watched.request_at = Some(self.now_us);
        }
        self.say(usize::MAX, 14, |_| format!("STORE /failover := {}", value.to_wire()));
        self.store.failover = Some((value, version));
        self.changed(Change::Failover);
        Ok(Version(version))
    }

    pub fn op_sync(
        &mut self,
        me: &Asker,
        value: Option<Sync>,
        expect: Expect,
    ) -> Result<Version, DcsError> {
        // INV-25: nobody writes or deletes the record without saying which one it has read.
        if expect == Expect::Anything {
            let what = format!("{} writes /sync whatever it is now", me.name);
            self.violation_by(me.node, "INV-25", what);
        }
        meets(expect, self.store.sync.as_ref().map(|(_, version)| *version), "sync")?;
        let version = self.store.revision + 1;
        self.say(me.node, 15, |_| {
            format!("STORE /sync := {}", value.as_ref().map(Sync::to_wire).unwrap_or_default())
        });
        let own = value.as_ref().is_some_and(|record| record.leader.as_ref() == Some(&me.name));
        let was = self.store.sync.as_ref().and_then(|(record, _)| record.leader.clone());
        if own && was.as_ref() != Some(&me.name) {
            self.note_record(me.node);
        }
        if value.is_none() {
            self.check_forgotten_record(me.node);
        }
        self.store.sync = value.map(|value| (value, version));
        self.changed(Change::Sync);
        self.check_order();
        Ok(Version(version))
    }

    pub fn op_history(&mut self, history: &History) -> Result<(), DcsError> {
        let history = History::parse(&history.to_wire());
        if self.store.history != history {
            self.store.history = history;
            self.changed(Change::History);
        }
        Ok(())
    }

    pub fn op_failsafe(&mut self, failsafe: Failsafe) -> Result<(), DcsError> {
        self.store.failsafe = Some(failsafe);
        self.changed(Change::Failsafe);
        Ok(())
    }

    pub fn op_delete_cluster(&mut self) -> Result<(), DcsError> {
        let kept = std::mem::take(&mut self.store);
        self.store = Store {
            up: kept.up,
            revision: kept.revision,
            kind: kept.kind,
            sessions: kept.sessions,
            next_session: kept.next_session,
            ..Store::default()
        };
        self.changed(Change::Everything);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Shared;

    fn two() -> (Shared, Asker, Asker) {
        let world = World::empty(1);
        let mut this = world.lock().unwrap();
        this.store.up = true;
        let node = |name: &str, session, this: &mut World| Asker {
            node: this.add_node(name, 0, 0),
            name: name.into(),
            session,
            ttl_us: 30 * SECOND,
        };
        let (a, b) = (node("a", 1, &mut this), node("b", 2, &mut this));
        drop(this);
        (world, a, b)
    }

    /// Proves INV-1 of the model that every other invariant rests on.
    #[test]
    fn the_lock_has_one_owner_until_its_lease_ends() {
        let (world, a, b) = two();
        let mut world = world.lock().unwrap();
        assert_eq!(world.op_acquire(&a), Ok(()));
        assert_eq!(world.op_acquire(&b), Err(DcsError::NotOwner { holder: Some("a".into()) }));
        world.now_us = 29 * SECOND;
        assert!(world.op_renew(&b).is_err_and(|error| error.says_not_owner()));
        assert_eq!(world.op_renew(&a), Ok(()));
        world.now_us = 59 * SECOND - 1;
        assert!(world.op_acquire(&b).is_err());
        world.now_us = 59 * SECOND;
        assert_eq!(world.op_acquire(&b), Ok(()));
        assert_eq!(world.op_renew(&a), Err(DcsError::NotOwner { holder: Some("b".into()) }));
        assert!(world.op_release(&a, None).is_err());
        assert_eq!(world.op_release(&b, None), Ok(()));
        assert_eq!(world.op_renew(&a), Ok(()), "vanished and nobody took it");
    }

    #[test]
    fn compare_and_set_compares() {
        let (world, _, _) = two();
        let mut world = world.lock().unwrap();
        assert_eq!(world.op_initialize(String::new(), Expect::Absent), Ok(()));
        assert!(world.op_initialize(String::new(), Expect::Absent).is_err());
        let first = world.op_failover(Failover::default(), Expect::Absent).unwrap();
        let second = world.op_failover(Failover::default(), Expect::Version(first)).unwrap();
        assert!(world.op_failover(Failover::default(), Expect::Version(first)).is_err());
        assert!(world.op_failover(Failover::default(), Expect::Version(second)).is_ok());
    }
}
