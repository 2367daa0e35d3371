//! What goes wrong: processes, disks, the network, the store; each for a while.

use crate::plan::{Kind, Strike};
use crate::random::Random;
use crate::server::Data;
use crate::world::{MS, OPERATOR, SECOND, World};

const fn kind(name: &'static str, weight: u64, strike: fn(&mut World, &mut Strike)) -> Kind {
    Kind { name, weight, strike }
}

/// Drawn for a few runs only, and once in each.
pub const FOREIGN_DATA: Kind = kind("another cluster's data directory", 0, |world, _| {
    world.bring_foreign_data(world.members() - 1);
});

pub const FAULTS: &[Kind] = &[
    kind("agent killed", 8, |world, it| {
        world.crash_agent(it.node, "agent killed", it.either);
    }),
    kind("postmaster killed", 8, |world, it| {
        world.fault("postmaster killed");
        world.pg_die(it.node, "kill -9");
    }),
    kind("agent and postmaster killed", 8, |world, it| {
        world.crash_agent(it.node, "agent and postmaster killed", it.either);
        world.pg_die(it.node, "kill -9");
    }),
    kind("agent frozen, shorter than ttl", 6, |world, it| {
        world.freeze_for(it.node, "agent frozen, shorter than ttl", it.short);
    }),
    kind("agent frozen, longer than ttl", 6, |world, it| {
        world.freeze_for(it.node, "agent frozen, longer than ttl", it.long);
    }),
    kind("postgres frozen", 5, |world, it| {
        world.fault("postgres frozen");
        let node = it.node;
        world.nodes[node].server.frozen = world.nodes[node].server.alive();
        world.lasts(it.either, move |world| {
            world.thaw_postgres(node);
        });
    }),
    kind("store outage, short", 5, |world, it| {
        world.store_outage("store outage, short", it.short, &mut it.random);
    }),
    kind("store outage, long", 4, |world, it| {
        world.store_outage("store outage, long", it.long, &mut it.random);
    }),
    kind("store loses requests and answers", 5, |world, it| {
        world.fault("store loses requests and answers");
        world.store.lose_requests = it.random.below(30);
        world.store.lose_answers = it.random.below(40);
        world.lasts(it.either, |world| {
            world.store.lose_requests = 0;
            world.store.lose_answers = 0;
        });
    }),
    kind("store is slow", 5, |world, it| {
        world.fault("store is slow");
        world.store.slow_ms = it.random.between(50, 6_000);
        world.lasts(it.either, |world| world.store.slow_ms = 0);
    }),
    kind("lease revoked", 4, |world, _| world.revoke_lease()),
    kind("node cut from the store", 6, |world, it| {
        world.fault("node cut from the store");
        world.cut_store(it.node, true, it.either);
    }),
    kind("answers of the store do not arrive", 5, |world, it| {
        world.fault("answers of the store do not arrive");
        world.cut_store(it.node, false, it.either);
    }),
    kind("pair cut", 6, |world, it| {
        world.fault("pair cut");
        world.cut_link(it, true);
    }),
    kind("one direction cut", 5, |world, it| {
        world.fault("one direction cut");
        world.cut_link(it, false);
    }),
    kind("node isolated", 5, |world, it| {
        world.fault("node isolated");
        let node = it.node;
        world.isolate(node, false);
        world.cut_store(node, true, it.either);
        world.lasts(it.either, move |world| world.isolate(node, true));
    }),
    kind("slow disk", 4, |world, it| {
        world.fault("slow disk");
        let node = it.node;
        world.nodes[node].slow = it.random.between(5, 60);
        world.lasts(it.either, move |world| world.nodes[node].slow = 1);
    }),
    kind("operations on PostgreSQL fail", 3, |world, it| {
        world.fault("operations on PostgreSQL fail");
        let node = it.node;
        world.nodes[node].failing = it.random.between(30, 100);
        world.lasts(it.either, move |world| world.nodes[node].failing = 0);
    }),
    kind("agent stopped cleanly", 6, |world, it| {
        world.fault("agent stopped cleanly");
        world.stop_for(it.node, it.either);
    }),
    kind("everything stopped", 2, |world, it| {
        world.fault("everything stopped");
        for node in 0..world.members() {
            let back = it.either + it.random.below(3_000) * MS;
            world.stop_for(node, back);
        }
    }),
    kind("everything killed", 2, |world, it| {
        world.fault("everything killed");
        for node in 0..world.members() {
            let back = it.either + it.random.below(3_000) * MS;
            world.crash_agent_silently(node, back);
            world.pg_die(node, "power");
            world.nodes[node].fence = None;
        }
    }),
    kind("replica's data directory wiped", 2, |world, it| world.wipe_replica(it.node)),
];

/// In some runs the store ends a leader's lease early whatever else is wrong at the moment. From a stream
/// of its own, so that every other choice of a run stays what it was.
pub fn plan(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x1EA5E);
    if !random.percent(10) {
        return;
    }
    for _ in 0..random.between(1, 3) {
        let at = random.between(30, 400) * SECOND;
        world.at(at, World::revoke_lease_anyhow);
    }
}

/// In some runs the disks are looked after, and hang. (HA-314)
pub fn plan_disks(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0xD15C);
    if !random.percent(8) {
        return;
    }
    world.base.disk_timeout_ms = *random.pick(&[5_000, 15_000]);
    for _ in 0..random.between(1, 4) {
        let at = random.between(30, 380) * SECOND;
        let (chance, lasts) = (random.next(), random.between(3, 90) * SECOND);
        world.at(at, move |world| world.hang_disk(&mut Random::new(chance), lasts));
    }
}

impl World {
    fn hang_disk(&mut self, random: &mut Random, lasts: u64) {
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let node = match leader {
            Some(leader) if random.percent(60) => leader,
            Some(_) | None => random.below(self.members() as u64) as usize,
        };
        if self.quiet || self.nodes[node].disk_hangs_since.is_some() {
            return;
        }
        self.fault("disk hangs");
        self.nodes[node].disk_hangs_since = Some(self.now_us);
        self.nodes[node].server.frozen = self.nodes[node].server.alive();
        self.nodes[node].failing = 100;
        self.lasts(lasts, move |world| {
            world.nodes[node].disk_hangs_since = None;
            world.nodes[node].failing = 0;
            world.thaw_postgres(node);
        });
    }

    /// Nobody can keep two primaries apart whom nothing but the store connects: for as long as the old one
    /// may believe in its lease there may be two. Everything else holds, and after that this, too.
    fn revoke_lease_anyhow(&mut self) {
        let Some(session) = self.store.leader.as_ref().map(|held| held.session) else { return };
        let broke = self.watched.revoked_at.is_some_and(|at| at + 60 * SECOND > self.now_us);
        if self.quiet || !self.store.up || broke {
            return;
        }
        self.fault("lease revoked among other faults");
        self.watched.revoked_at = Some(self.now_us);
        let longest = (0..self.members()).map(|node| self.ttl_us(node)).max().unwrap_or(0);
        self.watched.apart_until = self.now_us + longest + longest / 15 + SECOND;
        self.end_session(session);
    }

    fn cut_link(&mut self, it: &mut Strike, both: bool) {
        let node = it.node;
        let other =
            (node + 1 + it.random.below(self.members() as u64 - 1) as usize) % self.members();
        self.links[node][other] = false;
        self.links[other][node] &= !both;
        self.watched.network_since = self.now_us;
        self.lasts(it.either, move |world| {
            world.links[node][other] = true;
            world.links[other][node] = true;
            world.watched.network_since = world.now_us;
        });
    }

    fn crash_agent(&mut self, node: usize, name: &'static str, back: u64) {
        self.fault(name);
        self.crash_agent_silently(node, back);
    }

    pub fn crash_agent_silently(&mut self, node: usize, back: u64) {
        self.kill_agent(node);
        self.lasts(back, move |world| world.start_agent(node));
    }

    pub fn freeze_for(&mut self, node: usize, name: &'static str, us: u64) {
        self.fault(name);
        self.freeze_agent(node);
        self.lasts(us, move |world| world.resume_agent(node));
    }

    pub fn stop_for(&mut self, node: usize, us: u64) {
        self.shut_down_agent(node);
        self.lasts(us, move |world| world.start_agent(node));
    }

    pub fn store_outage(&mut self, name: &'static str, us: u64, random: &mut Random) {
        self.fault(name);
        self.store.up = false;
        self.store.refuses = random.percent(30);
        for node in 0..self.members() {
            self.store_link_changed(node);
        }
        let extends = random.percent(self.store.kind.row.extends_percent);
        self.lasts(us, move |world| {
            world.store.up = true;
            let now = world.now_us;
            if extends {
                // etcd: a new leader gives every lease its full length again.
                for ends in world.store.sessions.values_mut() {
                    ends.until = ends.until.max(now + ends.length);
                }
            }
            for node in 0..world.members() {
                world.store_link_changed(node);
            }
        });
    }

    pub fn cut_store(&mut self, node: usize, requests_too: bool, us: u64) {
        self.nodes[node].from_store = false;
        self.nodes[node].to_store &= !requests_too;
        self.store_link_changed(node);
        self.lasts(us, move |world| {
            world.nodes[node].from_store = true;
            world.nodes[node].to_store = true;
            world.store_link_changed(node);
        });
    }

    fn isolate(&mut self, node: usize, connected: bool) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.links[node][other] = connected;
            self.links[other][node] = connected;
        }
        self.watched.network_since = self.now_us;
    }

    /// Only in a quiet moment: when the store breaks its promise under other faults, nobody can
    /// keep theirs.
    pub fn revoke_lease(&mut self) {
        let Some(session) = self.store.leader.as_ref().map(|held| held.session) else { return };
        let Some(node) = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name))
        else {
            return;
        };
        // A request that a fault swallowed may still be waited for.
        let waits = (self.base.timing.retry_timeout_ms() + 2_000) * MS;
        let calm = self.active_faults == 0
            && self.last_fault_at + waits < self.now_us
            && self.is_healthy(node, 10 * SECOND);
        if !calm || !self.nodes[node].server.writable() {
            return;
        }
        self.fault("lease revoked");
        self.watched.revoked_at = Some(self.now_us);
        self.end_session(session);
    }

    fn wipe_replica(&mut self, node: usize) {
        let server = &self.nodes[node].server;
        let others = self.nodes.iter().filter(|node| node.server.data.is_some()).count();
        let led = self.nodes.iter().any(|node| node.server.writable());
        if !server.recovering || server.data.is_none() || others < 3 || !led {
            return;
        }
        self.fault("replica's data directory wiped");
        self.crash_agent_silently(node, 3 * SECOND);
        self.pg_die(node, "its disk was replaced");
        self.nodes[node].server.data = None;
        // Whosever data it had: it is copied from this cluster now. (seeds 17247, 17812)
        self.nodes[node].foreign = false;
    }

    /// A data directory of another cluster, put there by mistake.
    pub fn bring_foreign_data(&mut self, node: usize) {
        let server = &self.nodes[node].server;
        if self.quiet || !server.recovering || server.data.is_none() || self.nodes[node].foreign {
            return;
        }
        self.fault("another cluster's data directory");
        self.crash_agent_silently(node, 3 * SECOND);
        self.pg_die(node, "its disk was replaced");
        let foreign: Data = self.fresh_data();
        self.nodes[node].server.data = Some(foreign);
        self.nodes[node].foreign = true;
    }

    /// All faults end; what is still ill then is the core's.
    pub fn mend_everything(&mut self) {
        self.quiet = true;
        self.last_fault_at = self.now_us;
        self.say(OPERATOR.node, 3, |_| "everything is mended".into());
        self.store.up = true;
        self.store.lose_requests = 0;
        self.store.lose_answers = 0;
        self.store.slow_ms = 0;
        self.links.iter_mut().flatten().for_each(|link| *link = true);
        self.mend_remote();
        for node in 0..self.members() {
            let machine = &mut self.nodes[node];
            machine.slow = 1;
            machine.failing = 0;
            machine.wall_ahead_ms = 0;
            machine.to_store = true;
            machine.from_store = true;
            self.store_link_changed(node);
            self.wake(node);
            self.thaw_postgres(node);
            self.resume_agent(node);
            self.after(6 * SECOND, move |world| world.start_agent(node));
        }
        self.check_writers();
    }
}
