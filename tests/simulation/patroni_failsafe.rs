//! Failsafe mode of a member that behaves like Patroni 4.1.5. (HA-103, HA-154 … HA-157, HA-092)
//!
//! It keeps the last call for a ttl and lets the caller lead its view meanwhile; it does not know of what a
//! former life of it accepted, nor of a call that comes between its reading of the store and its race. Where
//! it takes the key by that, it does so by its own rules, and for a ttl nobody can keep two primaries apart.

use crate::failsafe;
use crate::patroni::{Member, PROBE_MS};
use crate::world::{MS, SECOND, World};
use futures::StreamExt;
use hathi::ha::failsafe::with_promised_leader;
use hathi::ha::promise::{Call, Promise, Vow};
use hathi_dcs::{ClusterView, Dcs, Deadline, Failsafe, Lsn, MemberName, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What these members remember.
#[derive(Default)]
pub struct Twins {
    /// The last call, when it came by the member's clock, and in which life.
    heard: BTreeMap<usize, (Call, Millis, u64)>,
    /// Until when one goes on without store, by its clock.
    licensed: BTreeMap<usize, Millis>,
}

impl World {
    /// HA-157: whoever is no primary accepts.
    pub fn twin_vow(&mut self, node: usize, call: &Call) -> Vow {
        if self.nodes[node].server.writable() {
            return Vow::Refused("500 Running as a leader".into());
        }
        let (now, life) = (self.local(node), self.nodes[node].lives);
        self.watched.twins_in_failsafe.heard.insert(node, (call.clone(), now, life));
        Vow::Accepted { lsn: self.tip(node).map(|tip| Lsn(tip.lsn)) }
    }

    pub fn twin_is_licensed(&self, node: usize) -> bool {
        let until = self.watched.twins_in_failsafe.licensed.get(&node);
        until.is_some_and(|until| self.local(node) < *until)
    }

    /// It takes the key although one of its lives accepted that another goes on.
    pub fn twin_breaks_its_promise(&mut self, node: usize, what: String) {
        let longest = (0..self.members()).map(|node| self.ttl_us(node)).max().unwrap_or(0);
        let apart = self.now_us + longest + longest / 15 + SECOND;
        self.watched.apart_until = self.watched.apart_until.max(apart);
        self.count("promises that a member of Patroni's did not keep");
        self.violation_by(node, "INV-15", what);
    }
}

impl Member {
    /// HA-103: as long as the last call is fresh its sender leads.
    pub fn with_caller(&self, view: Arc<ClusterView>) -> Arc<ClusterView> {
        let settings = self.settings();
        if !settings.failsafe_mode {
            return view;
        }
        let promise = {
            let world = self.it.world();
            let process = self.it.process;
            let heard = world.watched.twins_in_failsafe.heard.get(&process.node);
            heard.filter(|(.., life)| *life == process.life).map(|(call, at, _)| {
                let until = at.plus(settings.timing.ttl_ms());
                Promise { call: call.clone(), at: *at, until }
            })
        };
        let promise = promise.filter(|promise| self.now() < promise.until);
        with_promised_leader(view, promise, &settings.me)
    }

    /// HA-154 … HA-156: everybody of the last map accepts. It counts from the answers.
    pub async fn everybody_accepts(&mut self) -> bool {
        let settings = self.settings();
        let Some(Failsafe(map)) = self.failsafe.clone().filter(|_| settings.failsafe_mode) else {
            return false;
        };
        if !map.contains_key(settings.me.as_str()) {
            return false;
        }
        let others = map.into_iter().filter(|(name, _)| *name != *settings.me.as_str());
        let others: Vec<_> =
            others.map(|(name, url)| (MemberName::from(name.as_str()), url)).collect();
        let call = Call {
            name: settings.me.clone(),
            conn_url: settings.conn_url.clone(),
            api_url: settings.api_url.clone(),
            slots: BTreeMap::new(),
            ttl: None,
        };
        let asked = others.len();
        let by = Deadline(self.now().plus(PROBE_MS));
        let vows = failsafe::ask(&self.it, others, call, by);
        let accepted =
            vows.filter(|(_, vow)| std::future::ready(matches!(vow, Vow::Accepted { .. })));
        if accepted.count().await < asked {
            return false;
        }
        let (now, ttl) = (self.now(), settings.timing.ttl_ms());
        self.keep_alive(now);
        let node = self.it.process.node;
        let mut world = self.it.world();
        world.watched.twins_in_failsafe.licensed.insert(node, now.plus(ttl));
        world.count("licences of Patroni's members");
        drop(world);
        self.say("continue to run as a leader because failsafe mode is enabled");
        true
    }

    /// The third write of the owner of the lock. (HA-066)
    pub async fn write_map(&self, view: &ClusterView) {
        let settings = self.settings();
        if !settings.failsafe_mode {
            return;
        }
        let members = view
            .members
            .iter()
            .filter_map(|member| Some((member.name.to_string(), member.data.api_url.clone()?)));
        let mut map: BTreeMap<String, String> = members.collect();
        map.insert(settings.me.to_string(), settings.api_url.clone());
        let wanted = Failsafe(map);
        if view.failsafe.as_ref() != Some(&wanted) {
            let _ = self.it.write_failsafe(&wanted, self.by()).await;
        }
    }

    /// HA-092.
    pub fn is_outside_the_map(&self, view: &ClusterView) -> bool {
        let settings = self.settings();
        let map = view.failsafe.as_ref().filter(|_| settings.failsafe_mode);
        map.is_some_and(|map| !map.0.is_empty() && !map.0.contains_key(settings.me.as_str()))
    }
}

/// For how long a call binds one of these.
pub fn binds_us(ttl_ms: u64) -> u64 {
    ttl_ms * MS
}
