//! Failsafe mode in this world: POST /failsafe over its links, the outages it is for, and what must
//! hold of it. (INV-13, INV-15, INV-16, HA-154)

use crate::agent::Agency;
use crate::random::Random;
use crate::world::{MS, SECOND, World};
use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use hathi::ha::lease::worth_ms;
use hathi::ha::promise::{Call, Vow};
use hathi_dcs::{Deadline, Expect, Lsn, MemberName, Millis};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the checks remember of failsafe mode.
#[derive(Default)]
pub struct Promises {
    /// Who promised last, to whom, when, and in which life.
    given: BTreeMap<usize, (usize, u64, u64, u64)>,
    mode_changed_at: u64,
    pub licences: u64,
    /// Calls that met a cut link: the network may still bring them. From, to, when.
    on_their_way: Vec<(usize, usize, u64, Arc<Call>)>,
}

/// How late the network may be: a kernel goes on sending what a process has given up.
const LATEST: u64 = 60 * SECOND;

/// The port: asks every member twice, as the real one does.
pub fn ask(
    agency: &Agency,
    members: Vec<(MemberName, String)>,
    call: Call,
    by: Deadline,
) -> BoxStream<'static, (MemberName, Vow)> {
    let (answers, stream) = mpsc::unbounded();
    let mut world = agency.world();
    let from = agency.process;
    let end = world.true_at(from.node, by.0);
    let half = end.saturating_sub(world.now_us) / 2;
    let asked = members.len();
    let call = Arc::new(call);
    for (name, _) in members {
        let answered = Arc::new(AtomicBool::new(false));
        let to = world.node_of(&name);
        for wait in [0, half] {
            let out = wait + world.random.between(1, 5) * MS;
            let back = world.random.between(1, 5) * MS;
            let (sender, done, peer) = (answers.clone(), answered.clone(), name.clone());
            let call = call.clone();
            world.after(out, move |world| {
                let Some(to) = to else { return };
                if done.load(Ordering::SeqCst) {
                    return;
                }
                if !world.links[from.node][to] {
                    let late = (from.node, to, world.now_us, call);
                    world.watched.promises.on_their_way.push(late);
                    return;
                }
                let Some(vow) = world.vow(to, from.node, &call) else { return };
                world.after(back, move |world| {
                    if world.links[to][from.node] && !done.swap(true, Ordering::SeqCst) {
                        let _ = sender.unbounded_send((peer, vow));
                    }
                });
            });
        }
        let sender = answers.clone();
        world.at(end, move |_| {
            if !answered.swap(true, Ordering::SeqCst) {
                let _ = sender.unbounded_send((name, Vow::Refused("timed out".into())));
            }
        });
    }
    stream.take(asked).boxed()
}

/// Some seeds have the mode on, and outages as it is made for: the whole store, or only the way of
/// the leader to it, alone or together with a member or a link that fails at the same time.
pub fn plan(world: &mut World, seed: u64) {
    // Beside Patroni's members from another stream, since they came to it later.
    let stream = if world.is_mixed() { 0x9A7_0000_0000 } else { 0 };
    let mut random = Random::new(seed ^ 0xFA11_5AFE ^ stream);
    if !random.percent(40) {
        return;
    }
    world.base.failsafe_mode = true;
    let mut at = random.between(40, 120) * SECOND;
    while at < 400 * SECOND {
        let chance = random.next();
        world.at(at, move |world| world.failsafe_outage(Random::new(chance)));
        at += random.between(60, 200) * SECOND;
    }
    if random.percent(25) {
        for on in [false, true] {
            let at = random.between(60, 400) * SECOND;
            world.at(at, move |world| world.switch_failsafe_mode(on));
        }
    }
}

impl World {
    fn failsafe_outage(&mut self, mut random: Random) {
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let Some(leader) = leader.filter(|_| !self.quiet && self.store.up) else { return };
        let ttl = self.base.timing.ttl_ms();
        let long = random.between(ttl, ttl * 4) * MS;
        if random.percent(50) {
            self.store_outage("store outage in failsafe mode", long, &mut random);
        } else {
            self.fault("leader cut from the store in failsafe mode");
            self.cut_store(leader, true, long);
        }
        let member =
            (leader + 1 + random.below(self.members() as u64 - 1) as usize) % self.members();
        let at = random.between(0, long / MS) * MS;
        let lasts = random.between(1_000, ttl * 2) * MS;
        match random.below(5) {
            0 => self.unless_quiet(at, move |world| {
                world.fault("member down in failsafe mode");
                world.crash_agent_silently(member, lasts);
            }),
            1 => self.unless_quiet(at, move |world| {
                world.fault("leader's link cut in failsafe mode");
                world.cut_pair(leader, member, lasts);
            }),
            // A member that restarts does not know what it promised.
            2 => self.unless_quiet(at, move |world| {
                world.fault("member restarts behind a cut in failsafe mode");
                world.cut_pair(leader, member, lasts);
                world.crash_agent_silently(member, 1_500 * MS);
            }),
            _ => {}
        }
    }

    fn unless_quiet(&mut self, us: u64, strike: impl FnOnce(&mut World) + Send + 'static) {
        self.after(us, move |world| {
            if !world.quiet {
                strike(world);
            }
        });
    }

    fn cut_pair(&mut self, a: usize, b: usize, us: u64) {
        for (from, to) in [(a, b), (b, a)] {
            self.links[from][to] = false;
        }
        self.watched.network_since = self.now_us;
        self.lasts(us, move |world| {
            for (from, to) in [(a, b), (b, a)] {
                world.links[from][to] = true;
            }
            world.watched.network_since = world.now_us;
        });
    }

    fn switch_failsafe_mode(&mut self, on: bool) {
        let Some((mut config, _)) = self.store.config.clone() else { return };
        if self.quiet || !self.store.up {
            return;
        }
        self.fault("failsafe mode switched");
        self.watched.promises.mode_changed_at = self.now_us;
        config.insert("failsafe_mode".into(), on.into());
        let _ = self.op_config(config, Expect::Anything);
    }

    /// A call of a primary that is heard only now, at the worst moment: this member is about to race,
    /// or asks for the key already. Nobody reads the answer any more. (INV-15)
    pub fn late_call(&mut self, node: usize) {
        let now = self.now_us;
        let links = &self.links;
        let late = &mut self.watched.promises.on_their_way;
        late.retain(|(_, _, at, _)| at + LATEST > now);
        let found = late.iter().position(|(from, to, ..)| *to == node && links[*from][node]);
        let Some(found) = found else { return };
        // Every second one waits for another moment, told from the time so that no draw is moved.
        if (now / MS).is_multiple_of(2) {
            return;
        }
        let (from, _, _, call) = self.watched.promises.on_their_way.swap_remove(found);
        self.fault("POST /failsafe arrives late");
        let _ = self.vow(node, from, &call);
    }

    /// What the REST API of this node answers; `None`: nothing.
    fn vow(&mut self, node: usize, from: usize, call: &Call) -> Option<Vow> {
        let now = self.local(node);
        let agent = self.nodes[node].agent.as_ref().filter(|agent| !agent.frozen)?;
        if !agent.settings.failsafe_mode {
            return Some(Vow::Refused("502".into()));
        }
        if self.is_patroni(node) {
            let (life, ttl) = (agent.life, agent.settings.timing.ttl_ms());
            let vow = self.twin_vow(node, call);
            if let Vow::Accepted { .. } = vow {
                let binds = crate::patroni_failsafe::binds_us(ttl);
                self.watched.promises.given.insert(node, (from, self.now_us, life, binds));
            }
            return Some(vow);
        }
        if agent.seen_as_primary || agent.lease.until(now).is_some() {
            return Some(Vow::Refused("500 Running as a leader".into()));
        }
        let (ttl, life) = (agent.settings.timing.ttl_ms(), agent.life);
        let call_ttl = u64::from(call.ttl.unwrap_or(0)) * 1000;
        if let Err(why) = agent.gate.accept(call.clone(), ttl, now) {
            return Some(Vow::Refused(format!("500 {why}")));
        }
        // What binds is the ttl of that moment, not one that is configured later.
        let binds = ttl.max(call_ttl) * MS;
        self.watched.promises.given.insert(node, (from, self.now_us, life, binds));
        self.say(node, 80, |world| format!("promises {} not to race", world.nodes[from].name));
        Some(Vow::Accepted { lsn: self.tip(node).map(|tip| Lsn(tip.lsn)) })
    }

    /// INV-16: everybody of the map promised, after the moment from which the licence counts.
    pub fn check_licence_given(&mut self, node: usize, until: Millis) {
        self.watched.promises.licences += 1;
        let Some(agent) = &self.nodes[node].agent else { return };
        let sent = until.minus(worth_ms(agent.settings.timing));
        let sent_us = self.true_at(node, sent);
        let map = self.store.failsafe.clone().unwrap_or_default();
        for other in 0..self.members() {
            let name = &self.nodes[other].name;
            if other == node || !map.0.contains_key(name.as_str()) {
                continue;
            }
            let given = self.watched.promises.given.get(&other);
            if given.is_none_or(|(to, at, ..)| *to != node || *at + MS < sent_us) {
                let what = format!(
                    "{} goes on without store, and {name} did not promise it after {} ms",
                    self.nodes[node].name,
                    sent_us / MS
                );
                return self.violation("INV-16", what);
            }
        }
        let now = self.local(node);
        if until > now.plus(worth_ms(agent.settings.timing)) {
            let what = format!("{} counts on more than a ttl", self.nodes[node].name);
            self.violation("INV-16", what);
        }
    }

    /// INV-15 and INV-13: the store gives the key to a standby.
    pub fn check_promise(&mut self, node: usize) {
        if let Some(other) = self.goes_on_without_store(node).filter(|_| self.is_patroni(node)) {
            // Outside the map, and the mode was switched off: only ours waits for another ttl. (HA-092)
            let other = &self.nodes[other].name;
            let what = format!("{} gets the key while {other} goes on", self.nodes[node].name);
            return self.twin_breaks_its_promise(node, what);
        }
        let Some(agent) = &self.nodes[node].agent else { return };
        if let Some((from, at, life, binds)) = self.watched.promises.given.get(&node)
            && *from != node
            // One of Patroni's does not know what its former life accepted.
            && (*life == agent.life || self.is_patroni(node))
            && at + binds > self.now_us
        {
            let what = format!(
                "{} gets the key {} ms after it promised {} not to race",
                self.nodes[node].name,
                (self.now_us - at) / MS,
                self.nodes[*from].name
            );
            if self.is_patroni(node) {
                return self.twin_breaks_its_promise(node, what);
            }
            return self.violation("INV-15", what);
        }
        if self.is_outside_the_map(node) && self.nodes[node].server.recovering {
            // By a map of long ago, perhaps; before it is promoted it looks again.
            self.watched.unfit = Some((node, "in /failsafe"));
        }
    }

    /// Another primary that lives by the members' word.
    fn goes_on_without_store(&self, node: usize) -> Option<usize> {
        (0..self.members()).filter(|other| *other != node).find(|other| {
            let machine = &self.nodes[*other];
            let now = self.local(*other);
            let agent = machine.agent.as_ref();
            let licensed = agent.is_some_and(|agent| agent.lease.licensed_until(now).is_some());
            machine.server.writable() && (licensed || self.twin_is_licensed(*other))
        })
    }

    /// HA-092: the mode is on here, and the map does not name it.
    pub fn is_outside_the_map(&self, node: usize) -> bool {
        let agent = self.nodes[node].agent.as_ref();
        let outside = self.store.failsafe.as_ref().is_some_and(|map| {
            !map.0.is_empty() && !map.0.contains_key(self.nodes[node].name.as_str())
        });
        outside && agent.is_some_and(|agent| agent.settings.failsafe_mode)
    }

    /// What was promised to others is void once a node was promoted. (INV-15)
    pub fn forget_promise_of(&mut self, node: usize) {
        self.watched.promises.given.remove(&node);
    }

    /// HA-154: no primary stops for an outage that everybody would carry it through.
    pub fn check_failsafe_held(&mut self, node: usize) {
        let Some(agent) = &self.nodes[node].agent else { return };
        let ttl = agent.settings.timing.ttl_ms() * MS;
        let map = self.store.failsafe.clone().unwrap_or_default();
        let agreed = agent.settings.failsafe_mode
            && !self.is_patroni(node)
            && !agent.settings.pause
            && self.store_is_away(node)
            // While a task owns PostgreSQL nobody is asked, and at its end there may be no time.
            && agent.tasks.is_empty()
            && self.nodes[node].server.ready_since + 2 * ttl < self.now_us
            && self.watched.promises.mode_changed_at + 2 * ttl < self.now_us
            && self.watched.network_since + 2 * ttl < self.now_us
            && map.0.len() == self.members()
            && (0..self.members()).all(|other| {
                let machine = &self.nodes[other];
                let mode = machine.agent.as_ref().is_some_and(|agent| agent.settings.failsafe_mode);
                let standby = machine.server.recovering || other == node;
                mode && standby && self.connected(node, other) && self.is_healthy(other, 2 * ttl)
            });
        if agreed {
            let what = format!("{} stops although every member would agree", self.nodes[node].name);
            self.violation("HA-154", what);
        }
    }

    fn store_is_away(&self, node: usize) -> bool {
        !self.store.up || !self.nodes[node].to_store
    }
}
