//! A cluster that follows another one: the remote primary, which lives, dies and fails over without
//! asking anybody; the operator who promotes this cluster and demotes it again; and what must hold of it.
//! (section 15 of ha-loop.md, INV-37)

use crate::random::Random;
use crate::server::Postmaster;
use crate::wal::Tip;
use crate::world::{MS, SECOND, World};
use hathi::ha::settings::StandbyCluster;
use hathi_dcs::{Expect, MemberName, Timeline};
use serde_json::{Map, Value, json};

/// What this cluster follows, while it does.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    node: usize,
    /// Does the last complete `/config` that an operator wrote have the section, and since when?
    wanted: bool,
    since: u64,
    down: bool,
    /// It was a primary cluster, and was told to follow again: what it wrote is gone.
    pub demoted: bool,
}

/// As the configuration names it; the name of the node is the one that the core gives it.
const NAME: &str = "remote_member";

pub fn section() -> StandbyCluster {
    StandbyCluster { conn_url: Some("postgres://far:5432/postgres".into()) }
}

pub fn document() -> Value {
    json!({"host": "far"})
}

/// Some clusters begin as a standby cluster. Drawn from a stream of its own, so that every other run
/// stays what it was.
pub fn draw(world: &mut World, seed: u64) {
    if !Random::new(seed ^ 0x57A_4DB4).percent(7) {
        return;
    }
    let node = world.add_node(NAME, 1_000, 0);
    world.remote = Some(Remote { node, wanted: true, since: 0, down: false, demoted: false });
    world.base.standby_cluster = Some(section());
    // Where it cannot be rewound it is left to the operator. (HA-047)
    world.watched.can_rewind = true;
    let data = world.fresh_data();
    let timeline = world.wal.timeline(data.tip);
    let server = world.server(node);
    server.data = Some(data);
    server.postmaster = Postmaster::Up;
    server.clients = true;
    server.checkpointed = timeline;
    world.count("standby clusters");
}

impl World {
    /// INV-37: the record of a former life as a primary cluster goes only when its standby leader has
    /// nothing but what the remote primary has; then nobody need be in it to lead. (HA-117)
    pub fn check_forgotten_record(&mut self, node: usize) {
        let Some(remote) = self.remote else { return };
        if !self.nodes[node].server.recovering {
            return;
        }
        let (Some(mine), Some(theirs)) = (self.tip(node), self.tip(remote.node)) else { return };
        if self.wal.holds(theirs, mine) {
            self.watched.unfit = None;
        } else {
            let name = self.nodes[node].name.clone();
            let what = format!("{name} deletes /sync and has what the remote member has not");
            self.violation("INV-37", what);
        }
    }
}

/// What happens at the remote end, and what the operator orders here.
pub fn plan(world: &mut World, seed: u64) {
    if world.remote.is_none() {
        return;
    }
    let mut random = Random::new(seed ^ 0x57A_4DB5);
    for _ in 0..random.between(0, 6) {
        let at = random.between(30, 400) * SECOND;
        let chance = random.next();
        world.at(at, move |world| world.remote_fault(&mut Random::new(chance)));
    }
    let mut at = random.between(60, 200) * SECOND;
    let mut on = false;
    while at < 410 * SECOND && random.percent(70) {
        world.at(at, move |world| world.switch_section(on));
        on = !on;
        at += random.between(20, 200) * SECOND;
    }
    if random.percent(30) {
        let at = random.between(40, 400) * SECOND;
        let gone = random.percent(50);
        world.at(at, move |world| world.wipe_config(gone));
    }
}

impl World {
    /// Does the operator want it to follow another cluster?
    pub fn follows_another_cluster(&self) -> bool {
        self.remote.is_some_and(|remote| remote.wanted)
    }

    /// Its clients write, too.
    pub fn remote_writes(&mut self) {
        let Some(Remote { node, down: false, .. }) = self.remote else { return };
        let bytes = self.random.between(0, 3_000);
        if let Some(data) = &mut self.server(node).data {
            data.tip.lsn += bytes;
        }
    }

    fn remote_fault(&mut self, random: &mut Random) {
        let Some(Remote { node, .. }) = self.remote.filter(|_| !self.quiet) else { return };
        let lasts = random.between(2, 90) * SECOND;
        match random.below(4) {
            0 => {
                self.fault("remote primary is down");
                self.set_remote_down(true);
                self.lasts(lasts, |world| world.set_remote_down(false));
            }
            1 | 2 => {
                let back = if random.percent(50) { random.between(0, 60_000) } else { 0 };
                self.remote_fails_over(node, back);
            }
            _ => {
                self.fault("remote primary cut from a member");
                let member = random.below(self.members() as u64) as usize;
                for (from, to) in [(node, member), (member, node)] {
                    self.links[from][to] = false;
                }
                self.lasts(lasts, move |world| {
                    for (from, to) in [(node, member), (member, node)] {
                        world.links[from][to] = true;
                    }
                });
            }
        }
    }

    fn set_remote_down(&mut self, down: bool) {
        let Some(remote) = &mut self.remote else { return };
        remote.down = down;
        let node = remote.node;
        let server = self.server(node);
        server.postmaster = if down { Postmaster::Down } else { Postmaster::Up };
        server.epoch += 1;
        server.clients = !down;
    }

    /// Another node is the remote primary from now on, and lacks so many bytes that may have come here.
    fn remote_fails_over(&mut self, node: usize, back: u64) {
        self.fault("remote primary fails over");
        let Some(tip) = self.tip(node) else { return };
        // Not beyond its own beginning: that was copied to everybody.
        let at = Tip { lsn: tip.lsn.saturating_sub(back).max(0x300_0000), ..tip };
        let at = if self.wal.holds(tip, at) { at } else { tip };
        let branch = self.wal.fork(at);
        let server = self.server(node);
        server.epoch += 1;
        server.checkpointed = 0;
        if let Some(data) = &mut server.data {
            data.tip = Tip { branch, lsn: at.lsn + 0x50 };
        }
        let epoch = self.nodes[node].server.epoch;
        self.say(node, 80, |world| format!("fails over, timeline {}", world.timeline(node)));
        let checkpoint = self.random.between(200, 4_000) * MS;
        self.after(checkpoint, move |world| {
            if world.nodes[node].server.epoch == epoch {
                world.write_checkpoint(node);
            }
        });
    }

    /// The remote end is well again.
    pub fn mend_remote(&mut self) {
        let Some(remote) = self.remote else { return };
        if remote.down {
            self.set_remote_down(false);
        }
        self.write_checkpoint(remote.node);
    }

    /// `patronictl edit-config`: takes the section out, or puts it in.
    fn switch_section(&mut self, on: bool) {
        if !self.store.up {
            // Again until it is done.
            return self.after(2 * SECOND, move |world| world.switch_section(on));
        }
        let Some((mut config, _)) = self.store.config.clone().filter(|(map, _)| !map.is_empty())
        else {
            return self.after(2 * SECOND, move |world| world.switch_section(on));
        };
        self.fault(if on { "cluster demoted by /config" } else { "cluster promoted by /config" });
        if on {
            config.insert("standby_cluster".into(), document());
        } else {
            config.shift_remove("standby_cluster");
        }
        let _ = self.op_config(config, Expect::Anything);
    }

    /// What `/config` says now is what counts, also where a leader puts back what it knew. (HA-008)
    pub fn note_section(&mut self, config: &Map<String, Value>) {
        let (now, wanted) = (self.now_us, config.contains_key("standby_cluster"));
        if let Some(remote) = &mut self.remote
            && !config.is_empty()
            && remote.wanted != wanted
        {
            remote.wanted = wanted;
            remote.since = now;
            remote.demoted |= wanted;
        }
    }

    /// Somebody empties `/config`, which orders nothing. (HA-002, HA-113)
    fn wipe_config(&mut self, gone: bool) {
        // In pause nobody may lead who would put it back.
        let paused = self.store.config.as_ref().is_some_and(|(map, _)| map.contains_key("pause"));
        if self.quiet || !self.store.up || self.store.config.is_none() || paused {
            return;
        }
        self.fault("/config wiped");
        if gone {
            self.store.config = None;
            self.changed(hathi_dcs::Change::Config);
        } else {
            let _ = self.op_config(Map::new(), Expect::Anything);
        }
    }

    /// INV-37: while the section is there nobody is promoted, as soon as it can be known.
    pub fn check_standby_promotes(&mut self, node: usize) {
        let Some(remote) = self.remote.filter(|remote| remote.wanted) else { return };
        let known = remote.since + (self.base.timing.ttl_ms() + 15_000) * MS < self.now_us;
        // Where somebody emptied `/config`, what each member knew last is what counts. (HA-002)
        let section = |map: &Map<String, Value>| map.contains_key("standby_cluster");
        let stands = self.store.config.as_ref().is_some_and(|(map, _)| section(map));
        let knows = self.nodes[node].agent.as_ref().is_some_and(|agent| section(&agent.dynamic));
        if known && (stands || knows) && self.is_healthy(node, 15 * SECOND) {
            let name = self.nodes[node].name.clone();
            self.violation("INV-37", format!("{name} is promoted in a standby cluster"));
        }
    }

    /// INV-37: and nobody goes on as a primary for long.
    pub fn check_standby_tick(&mut self) {
        let Some(remote) = self.remote.filter(|remote| remote.wanted) else { return };
        let long = (2 * self.base.timing.ttl_ms() + 60_000) * MS;
        let calm = self.active_faults == 0 && self.last_fault_at + long < self.now_us;
        if !calm || remote.since + long >= self.now_us {
            return;
        }
        let writer = (0..self.members()).find(|node| self.nodes[*node].server.writable());
        if let Some(writer) = writer {
            let name = self.nodes[writer].name.clone();
            self.violation("INV-37", format!("{name} takes writes in a standby cluster"));
        }
    }

    fn streams_from(&self, node: usize, from: usize) -> bool {
        let server = &self.nodes[node].server;
        server.streaming && server.data.as_ref().is_some_and(|data| data.conninfo == Some(from))
    }

    /// Long after the last fault: one standby leader streams from the remote primary, the others from
    /// it, and nobody is a primary. (INV-33, INV-34, INV-35, INV-37)
    pub fn check_standby_end(&mut self) {
        let Some(Remote { node: remote, .. }) = self.remote else { return };
        let holder = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let Some(leader) = holder else {
            if (0..self.members()).any(|node| self.is_eligible(node)) {
                self.violation("INV-33", "nobody leads the standby cluster");
            } else {
                self.watched.nobody_eligible = true;
            }
            return;
        };
        if self.store.failover.as_ref().is_some_and(|(request, _)| !request.is_empty()) {
            return self.violation("INV-24", "a request was never answered");
        }
        // The leader first: what it cannot follow the others cannot follow behind it.
        let others = (0..self.members()).filter(|node| *node != leader);
        for node in std::iter::once(leader).chain(others) {
            let machine = &self.nodes[node];
            let name: MemberName = machine.name.clone();
            if machine.foreign {
                continue;
            }
            if machine.server.writable() {
                return self.violation("INV-37", format!("{name} is a primary at the end"));
            }
            if !self.store.members.contains_key(&name) {
                return self.violation("INV-34", format!("{name} has no member key"));
            }
            let upstream = if node == leader { remote } else { leader };
            let (Some(mine), Some(far)) = (self.tip(node), self.tip(remote)) else {
                return self.violation("INV-35", format!("{name} has no data"));
            };
            if self.wal.only_share_the_number(far, mine) {
                // A new copy across sites is the operator's decision. (PG-147, HA-047)
                return self.count("standby clusters with a member left to the operator");
            }
            let same = self.wal.holds(far, mine) && mine.branch == far.branch;
            let behind = far.lsn.saturating_sub(mine.lsn);
            if !self.streams_from(node, upstream) || !same || behind > 40_000 {
                let what = format!(
                    "{name} does not follow {} (streams: {}, from {:?}; {behind} bytes behind the remote \
                     primary; {mine:?} on timeline {}, there {far:?} on {})",
                    self.nodes[upstream].name,
                    self.nodes[node].server.streaming,
                    self.nodes[node].server.data.as_ref().and_then(|data| data.conninfo),
                    Timeline(self.wal.timeline(mine)),
                    Timeline(self.wal.timeline(far)),
                );
                return self.violation("INV-35", what);
            }
        }
    }
}
