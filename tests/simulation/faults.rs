//! What goes wrong in a run, when, and for how long; drawn from the seed before the run begins.

use crate::agent::Agency;
use crate::dcs_port::patience;
use crate::operators::Mischief;
use crate::random::Random;
use crate::server::Data;
use crate::world::{MS, OPERATOR, Process, SECOND, Shared, World};
use futures::FutureExt;
use hathi::ha::manual;
use hathi_dcs::{Expect, Failover, MemberName, Timing};

/// How long a run is, and when the faults stop.
pub const RUN: u64 = 600 * SECOND;
const FIRST: u64 = 25 * SECOND;
const LAST: u64 = 420 * SECOND;
/// Everything is mended by then.
const MENDED: u64 = 440 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillAgent,
    KillPostgres,
    KillBoth,
    FreezeAgent,
    FreezeAgentLong,
    FreezePostgres,
    StoreOutage,
    StoreOutageLong,
    StoreLossy,
    StoreSlow,
    RevokeLease,
    CutFromStore,
    CutAnswersOfStore,
    CutPair,
    CutOneWay,
    Isolate,
    SlowDisk,
    FailingDisk,
    Switchover,
    FailoverRequest,
    WriteFailoverKey,
    StopAgent,
    StopAll,
    KillAll,
    ChangeConfig,
    WipeReplica,
    Operator(Mischief),
}

const ALL: &[(Fault, u64)] = &[
    (Fault::KillAgent, 8),
    (Fault::KillPostgres, 8),
    (Fault::KillBoth, 8),
    (Fault::FreezeAgent, 6),
    (Fault::FreezeAgentLong, 6),
    (Fault::FreezePostgres, 5),
    (Fault::StoreOutage, 5),
    (Fault::StoreOutageLong, 4),
    (Fault::StoreLossy, 5),
    (Fault::StoreSlow, 5),
    (Fault::RevokeLease, 4),
    (Fault::CutFromStore, 6),
    (Fault::CutAnswersOfStore, 5),
    (Fault::CutPair, 6),
    (Fault::CutOneWay, 5),
    (Fault::Isolate, 5),
    (Fault::SlowDisk, 4),
    (Fault::FailingDisk, 3),
    (Fault::Switchover, 7),
    (Fault::FailoverRequest, 5),
    (Fault::WriteFailoverKey, 4),
    (Fault::StopAgent, 6),
    (Fault::StopAll, 2),
    (Fault::KillAll, 2),
    (Fault::ChangeConfig, 3),
    (Fault::WipeReplica, 2),
    (Fault::Operator(Mischief::Restart), 4),
    (Fault::Operator(Mischief::ScheduleRestart), 4),
    (Fault::Operator(Mischief::Reinitialize), 3),
    (Fault::Operator(Mischief::ScheduleSwitchover), 4),
];

/// A cluster as this seed wants it, with its clients and its faults.
pub fn random_run(seed: u64, tracing: bool, guarded: bool) -> Shared {
    let shared = World::empty(seed);
    let mut world = shared.lock().unwrap();
    world.tracing = tracing;
    world.store.up = true;
    world.watched.fence_broken = !guarded;
    world.watched.recorded = crate::replays::is_recorded(seed);
    let mut random = Random::new(seed ^ 0xFA17);
    let count = *random.pick(&[2, 3, 3, 3, 3, 4]);
    for name in ["a", "b", "c", "d"].iter().take(count) {
        let drift = match random.below(4) {
            0 => 0,
            1 | 2 => random.between(0, 20_000) as i64 - 10_000,
            _ => random.between(0, 94_000) as i64 - 47_000,
        };
        let offset = random.between(1_000, 5_000_000);
        world.add_node(name, offset, drift);
    }
    world.watchdogs.draw(seed, guarded);
    let (ttl, loop_wait, retry_timeout) =
        *random.pick(&[(30, 10, 10), (30, 10, 10), (20, 5, 5), (30, 3, 5), (60, 10, 20)]);
    world.base.timing = Timing { ttl, loop_wait, retry_timeout };
    world.base.primary_start_timeout = *random.pick(&[0, 300, 300, 20]);
    world.base.maximum_lag_on_failover = *random.pick(&[1_048_576, 1_048_576, 40_000]);
    world.base.check_timeline = !random.percent(15);
    world.watched.can_rewind = !random.percent(25);
    world.base.primary_race_backoff = *random.pick(&[0, 0, 0, 8, 40]);
    world.base.primary_restart_limit = *random.pick(&[0, 0, 2]);
    if random.percent(5) {
        let at = random.between(1_500, 5_000) * MS;
        let back = random.between(2, 200) * SECOND;
        world.at(at, move |world| world.abandon_bootstrap(back));
    }
    if count > 2 && random.percent(25) {
        world.nodes[count - 1].nofailover = true;
    }
    if random.percent(25) {
        world.nodes[0].priority = 2;
    }
    if count > 2 && random.percent(4) {
        let at = random.between(40, 300) * SECOND;
        let node = count - 1;
        world.at(at, move |world| world.bring_foreign_data(node));
    }
    crate::synchronous::draw(&mut world, seed);
    for node in 0..count {
        let at = random.between(0, 3_000) * MS;
        world.at(at, move |world| world.start_agent(node));
    }
    plan_faults(&mut world, &mut random);
    crate::failsafe::plan(&mut world, seed);
    world.at(0, World::tick);
    world.at(0, World::watch_sessions);
    world.at(MENDED, World::mend_everything);
    let (base, nodes) = (world.base.clone(), world.nodes.len());
    world.say(usize::MAX, 0, |_| {
        format!(
            "{nodes} nodes, {:?}, primary_start_timeout {}, maximum lag {}, check_timeline {}",
            base.timing,
            base.primary_start_timeout,
            base.maximum_lag_on_failover,
            base.check_timeline
        )
    });
    drop(world);
    shared
}

/// Each run draws from some kinds only, so that each kind is also met without all the others.
fn plan_faults(world: &mut World, random: &mut Random) {
    let keep = *random.pick(&[15, 30, 60, 100]);
    let mut kinds: Vec<(Fault, u64)> =
        ALL.iter().copied().filter(|_| random.percent(keep)).collect();
    if kinds.is_empty() {
        kinds.push(*random.pick(ALL));
    }
    let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
    let gap = *random.pick(&[4, 15, 40]);
    let mut at = FIRST;
    while at < LAST {
        let mut draw = random.below(total);
        let fault = kinds.iter().find(|(_, weight)| {
            let found = draw < *weight;
            draw = draw.saturating_sub(*weight);
            found
        });
        if let Some((fault, _)) = fault {
            let fault = *fault;
            let chance = random.next();
            world.at(at, move |world| world.inject(fault, Random::new(chance)));
        }
        at += random.between(100, gap * 2_000) * MS;
    }
}

impl World {
    fn someone(&self, random: &mut Random) -> usize {
        // The leader is the interesting one.
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        match leader {
            Some(leader) if random.percent(50) => leader,
            Some(_) | None => random.below(self.nodes.len() as u64) as usize,
        }
    }

    /// Ends a fault that lasts.
    pub fn lasts(&mut self, us: u64, mend: impl FnOnce(&mut World) + Send + 'static) {
        self.active_faults += 1;
        self.after(us, move |world| {
            world.active_faults = world.active_faults.saturating_sub(1);
            world.last_fault_at = world.now_us;
            world.say(usize::MAX, 2, |_| "FAULT over".into());
            mend(world);
        });
    }

    fn inject(&mut self, fault: Fault, mut random: Random) {
        // Nothing else at once after the store itself broke its promise.
        let broke = self.watched.revoked_at.is_some_and(|at| at + 20 * SECOND > self.now_us);
        if self.quiet || broke {
            return;
        }
        let node = self.someone(&mut random);
        let ttl = self.base.timing.ttl_ms();
        let short = random.between(200, ttl / 2) * MS;
        let long = random.between(ttl - 3_000, ttl * 3) * MS;
        let either = if random.percent(50) { short } else { long };
        match fault {
            Fault::KillAgent => self.crash_agent(node, "agent killed", either),
            Fault::KillPostgres => {
                self.fault("postmaster killed");
                self.pg_die(node, "kill -9");
            }
            Fault::KillBoth => {
                self.crash_agent(node, "agent and postmaster killed", either);
                self.pg_die(node, "kill -9");
            }
            Fault::FreezeAgent => self.freeze_for(node, "agent frozen, shorter than ttl", short),
            Fault::FreezeAgentLong => self.freeze_for(node, "agent frozen, longer than ttl", long),
            Fault::FreezePostgres => {
                self.fault("postgres frozen");
                self.nodes[node].server.frozen = self.nodes[node].server.alive();
                self.lasts(either, move |world| {
                    world.nodes[node].server.frozen = false;
                    world.check_writers();
                });
            }
            Fault::StoreOutage => self.store_outage("store outage, short", short, &mut random),
            Fault::StoreOutageLong => self.store_outage("store outage, long", long, &mut random),
            Fault::StoreLossy => {
                self.fault("store loses requests and answers");
                self.store.lose_requests = random.below(30);
                self.store.lose_answers = random.below(40);
                self.lasts(either, |world| {
                    world.store.lose_requests = 0;
                    world.store.lose_answers = 0;
                });
            }
            Fault::StoreSlow => {
                self.fault("store is slow");
                self.store.slow_ms = random.between(50, 6_000);
                self.lasts(either, |world| world.store.slow_ms = 0);
            }
            Fault::RevokeLease => self.revoke_lease(),
            Fault::CutFromStore => {
                self.fault("node cut from the store");
                self.cut_store(node, true, either);
            }
            Fault::CutAnswersOfStore => {
                self.fault("answers of the store do not arrive");
                self.cut_store(node, false, either);
            }
            Fault::CutPair | Fault::CutOneWay => {
                let other = (node + 1 + random.below(self.nodes.len() as u64 - 1) as usize)
                    % self.nodes.len();
                let both = fault == Fault::CutPair;
                self.fault(if both { "pair cut" } else { "one direction cut" });
                self.links[node][other] = false;
                self.links[other][node] &= !both;
                self.watched.network_since = self.now_us;
                self.lasts(either, move |world| {
                    world.links[node][other] = true;
                    world.links[other][node] = true;
                    world.watched.network_since = world.now_us;
                });
            }
            Fault::Isolate => {
                self.fault("node isolated");
                self.isolate(node, false);
                self.cut_store(node, true, either);
                self.lasts(either, move |world| world.isolate(node, true));
            }
            Fault::SlowDisk => {
                self.fault("slow disk");
                self.nodes[node].slow = random.between(5, 60);
                self.lasts(either, move |world| world.nodes[node].slow = 1);
            }
            Fault::FailingDisk => {
                self.fault("operations on PostgreSQL fail");
                self.nodes[node].failing = random.between(30, 100);
                self.lasts(either, move |world| world.nodes[node].failing = 0);
            }
            Fault::Switchover | Fault::FailoverRequest | Fault::WriteFailoverKey => {
                self.operator(fault, &mut random);
            }
            Fault::StopAgent => {
                self.fault("agent stopped cleanly");
                self.stop_for(node, either);
            }
            Fault::StopAll => {
                self.fault("everything stopped");
                for node in 0..self.nodes.len() {
                    self.stop_for(node, either + random.below(3_000) * MS);
                }
            }
            Fault::KillAll => {
                self.fault("everything killed");
                for node in 0..self.nodes.len() {
                    let back = either + random.below(3_000) * MS;
                    self.crash_agent_silently(node, back);
                    self.pg_die(node, "power");
                    self.nodes[node].fence = None;
                }
            }
            Fault::ChangeConfig => self.change_config(&mut random),
            Fault::WipeReplica => self.wipe_replica(node),
            Fault::Operator(what) => self.mischief(what, node, random),
        }
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

    fn stop_for(&mut self, node: usize, us: u64) {
        self.shut_down_agent(node);
        self.lasts(us, move |world| world.start_agent(node));
    }

    pub fn store_outage(&mut self, name: &'static str, us: u64, random: &mut Random) {
        self.fault(name);
        self.store.up = false;
        self.store.refuses = random.percent(30);
        for node in 0..self.nodes.len() {
            self.store_link_changed(node);
        }
        let extends = random.percent(50);
        self.lasts(us, move |world| {
            world.store.up = true;
            let now = world.now_us;
            if extends {
                // etcd: a new leader gives every lease its full length again.
                for (until, length) in world.store.sessions.values_mut() {
                    *until = (*until).max(now + *length);
                }
            }
            for node in 0..world.nodes.len() {
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

    fn change_config(&mut self, random: &mut Random) {
        let Some((mut config, _)) = self.store.config.clone() else { return };
        self.fault("configuration changed");
        let (ttl, loop_wait, retry_timeout) =
            *random.pick(&[(30, 10, 10), (20, 5, 5), (60, 10, 10), (40, 5, 10)]);
        config.insert("ttl".into(), ttl.into());
        config.insert("loop_wait".into(), loop_wait.into());
        config.insert("retry_timeout".into(), retry_timeout.into());
        let _ = self.op_config(config, Expect::Anything);
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

    /// Somebody asks for another leader, through some agent's REST API or past it.
    fn operator(&mut self, fault: Fault, random: &mut Random) {
        let leader = self.store.leader.as_ref().map(|held| held.name.clone());
        let other: MemberName = random.pick(&self.nodes).name.clone();
        let candidate = random.percent(60).then_some(other.clone());
        let through = random.below(self.nodes.len() as u64) as usize;
        match fault {
            Fault::WriteFailoverKey => {
                self.fault("/failover written by hand");
                let leader = if random.percent(70) { leader } else { None };
                let request = Failover { leader, candidate, scheduled_at: None };
                if self.store.up {
                    let _ = self.op_failover(request, Expect::Anything);
                }
            }
            _ => {
                let switchover = fault == Fault::Switchover;
                self.fault(if switchover { "switchover requested" } else { "failover requested" });
                let failover = if switchover {
                    Failover { leader, candidate, scheduled_at: None }
                } else {
                    Failover { leader: None, candidate: Some(other), scheduled_at: None }
                };
                self.request(through, manual::Request { switchover, failover });
            }
        }
    }

    /// POST /switchover or /failover on this node.
    pub fn request(&mut self, through: usize, request: manual::Request) {
        let Some(agent) = &self.nodes[through].agent else { return };
        let process = Process { node: through, life: agent.life };
        let agency = Agency { shared: self.shared(), process };
        let work = async move {
            let ports = agency.ports();
            let by = patience(agency.local_now());
            let answer = match manual::request(&ports, &request, by).await {
                Ok(old_leader) => manual::outcome(&ports, &request, old_leader, by).await,
                Err(refused) => refused,
            };
            agency.world().say(process.node, 60, |_| {
                format!("REST answers the operator: {} {}", answer.status, answer.text)
            });
        };
        self.spawned.push((process, work.boxed()));
    }

    /// All faults end; what is still ill then is the core's.
    pub fn mend_everything(&mut self) {
        self.quiet = true;
        self.say(OPERATOR.node, 3, |_| "everything is mended".into());
        self.store.up = true;
        self.store.lose_requests = 0;
        self.store.lose_answers = 0;
        self.store.slow_ms = 0;
        for node in 0..self.nodes.len() {
            for other in 0..self.nodes.len() {
                self.links[node][other] = true;
            }
            let machine = &mut self.nodes[node];
            machine.slow = 1;
            machine.failing = 0;
            machine.to_store = true;
            machine.from_store = true;
            machine.server.frozen = false;
            self.store_link_changed(node);
            self.resume_agent(node);
            self.after(6 * SECOND, move |world| world.start_agent(node));
        }
        self.check_writers();
    }
}
