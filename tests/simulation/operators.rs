//! Operators who restart, reinitialise and schedule at bad moments, and what must hold of it.
//! (INV-20, INV-24, HA-055, HA-074, HA-078)

use crate::agent::Agency;
use crate::dcs_port::patience;
use crate::plan::{Kind, Strike};
use crate::random::Random;
use crate::world::{MS, Process, SECOND, World};
use chrono::{DateTime, FixedOffset};
use futures::FutureExt;
use hathi::ha::manual;
use hathi::ha::operator::Wish;
use hathi::ha::restart::Conditions;
use hathi_dcs::{Failover, Role};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What operators asked for and the world knows of.
#[derive(Default)]
pub struct Orders {
    /// Restarts at once whose answer has not come, by process.
    restarts: BTreeMap<(usize, u64), u32>,
    /// The schedules of a process: when, and for which life of the server once that is accepted.
    planned: BTreeMap<(usize, u64), Vec<Plan>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Plan {
    at: u64,
    accepted: bool,
    epoch: Option<u64>,
}

/// How the true time of the run shows on every wall clock.
pub fn wall(at_us: u64) -> DateTime<FixedOffset> {
    let ms = 1_767_225_600_000_i64 + i64::try_from(at_us / MS).unwrap_or(0);
    DateTime::from_timestamp_millis(ms).unwrap_or_default().fixed_offset()
}

fn since_epoch(at: DateTime<FixedOffset>) -> u64 {
    u64::try_from(at.timestamp_millis() - 1_767_225_600_000).unwrap_or(0) * MS
}

/// Is this moment (of the run, in microseconds) within the window, for a clock that shows so many
/// milliseconds?
fn is_due(at: u64, shown_ms: i64, window: u64) -> bool {
    let at = i64::try_from(at / MS).unwrap_or(i64::MAX);
    (at..=at + i64::try_from(window / MS).unwrap_or(0)).contains(&shown_ms)
}

pub const FAULTS: &[Kind] = &[
    Kind {
        name: "restart ordered",
        weight: 4,
        strike: |world, it| world.mischief(Mischief::Restart, it),
    },
    Kind {
        name: "restart scheduled",
        weight: 4,
        strike: |world, it| world.mischief(Mischief::ScheduleRestart, it),
    },
    Kind {
        name: "reinitialize ordered",
        weight: 3,
        strike: |world, it| world.mischief(Mischief::Reinitialize, it),
    },
    Kind {
        name: "switchover scheduled",
        weight: 4,
        strike: |world, it| world.mischief(Mischief::ScheduleSwitchover, it),
    },
];

/// Drawn for a few runs only, and once in each, at their begin.
pub const BOOTSTRAP_LOST: Kind = Kind {
    name: "bootstrapping machine lost",
    weight: 0,
    strike: |world, it| {
        let back = it.random.between(2, 200) * SECOND;
        world.abandon_bootstrap(back);
    },
};

/// Which mischief an operator is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    Restart,
    ScheduleRestart,
    Reinitialize,
    ScheduleSwitchover,
}

impl World {
    fn mischief(&mut self, what: Mischief, it: &mut Strike) {
        let (node, random) = (it.node, &mut it.random);
        let soon = self.now_us + random.between(200, 45_000) * MS;
        match what {
            Mischief::Restart => {
                self.fault("restart ordered");
                let role = random.percent(20).then_some(Role::Replica);
                let timeout = random.percent(30).then_some(2);
                let conditions = Conditions { role, timeout, ..Conditions::default() };
                self.order(node, Wish::Restart(conditions));
                if random.percent(20) {
                    let ttl = self.base.timing.ttl_ms();
                    let at = random.between(50, 900) * MS;
                    let long = random.between(ttl, 2 * ttl) * MS;
                    self.after(at, move |world| {
                        world.freeze_for(node, "agent frozen in mid-restart", long);
                    });
                }
                if random.percent(20) {
                    self.lose_store_in_mid_restart(node, random);
                }
            }
            Mischief::ScheduleRestart => {
                self.fault("restart scheduled");
                if random.percent(15) {
                    self.order(node, Wish::CancelRestart);
                }
                let at = wall(soon);
                let (conditions, request) = (Conditions::default(), Map::<String, Value>::new());
                self.order(node, Wish::ScheduleRestart { at, conditions, request });
            }
            Mischief::Reinitialize => {
                self.fault("reinitialize ordered");
                let (force, from_leader) = (random.percent(40), random.percent(50));
                self.order(node, Wish::Reinitialize { force, from_leader });
            }
            Mischief::ScheduleSwitchover => {
                self.fault("switchover scheduled");
                let leader = self.store.leader.as_ref().map(|held| held.name.clone());
                let other = random.pick(&self.nodes[..self.members()]).name.clone();
                let candidate = random.percent(50).then_some(other).filter(|_| leader.is_some());
                let candidate = candidate.filter(|name| Some(name) != leader.as_ref());
                let scheduled_at = Some(wall(soon));
                let failover = Failover { leader, candidate, scheduled_at };
                self.request(node, manual::Request { switchover: true, failover });
            }
        }
    }

    /// The stop still goes well; the start takes long, and the lease ends in the middle of it.
    /// (HA-163)
    fn lose_store_in_mid_restart(&mut self, node: usize, random: &mut Random) {
        let at = random.between(100, 900) * MS;
        let ttl = self.base.timing.ttl_ms() * MS;
        self.after(at, move |world| {
            if world.quiet {
                return;
            }
            world.fault("store and disk lost in mid-restart");
            world.cut_store(node, true, 2 * ttl);
            world.nodes[node].slow = 60;
            world.lasts(2 * ttl, move |world| world.nodes[node].slow = 1);
        });
    }

    /// The machine that creates the cluster dies with all it has; another one comes in its place.
    /// (HA-308)
    fn abandon_bootstrap(&mut self, back: u64) {
        let creates = |node: &usize| {
            let agent = self.nodes[*node].agent.as_ref();
            agent.is_some_and(|agent| agent.tasks.contains(&"bootstrap"))
        };
        let Some(node) = (0..self.members()).find(creates) else { return };
        self.fault("bootstrapping machine lost");
        self.kill_agent(node);
        self.pg_die(node, "its machine is gone");
        self.nodes[node].server.data = None;
        self.after(back, move |world| world.start_agent(node));
    }

    /// Through this node's REST API, if its agent is there.
    pub fn order(&mut self, node: usize, wish: Wish) {
        // Patroni's members have another way of doing it.
        let Some(agent) = self.nodes[node].agent.as_ref().filter(|_| !self.is_patroni(node)) else {
            return;
        };
        let process = Process { node, life: agent.life };
        let key = (node, agent.life);
        let answer = agent.events.order(wish.clone());
        let immediate = matches!(wish, Wish::Restart(_));
        if immediate {
            *self.watched.orders.restarts.entry(key).or_default() += 1;
        }
        if let Wish::ScheduleRestart { at, .. } = &wish {
            let plan =
                Plan { at: since_epoch(*at), accepted: false, epoch: self.life_of_server(node) };
            self.watched.orders.planned.entry(key).or_default().push(plan);
        }
        let agency = Agency { shared: self.shared(), process };
        let work = async move {
            let by = patience(agency.local_now());
            let mut late = agency.sleep(by.0).fuse();
            let mut answer = answer.fuse();
            let answer = futures::select_biased! {
                answer = answer => answer.ok(),
                () = late => None,
            };
            let mut world = agency.world();
            world.say(node, 61, |_| format!("REST answers {wish:?}: {answer:?}"));
            let orders = &mut world.watched.orders;
            match (&wish, answer.map(|answer| answer.status)) {
                // What is still on its way may come later.
                (Wish::Restart(_), None) => {}
                (Wish::Restart(_), Some(_)) => {
                    let waiting = orders.restarts.entry(key).or_default();
                    *waiting = waiting.saturating_sub(1);
                }
                (Wish::ScheduleRestart { at, .. }, Some(status)) => {
                    let now = world.life_of_server(node);
                    let plans = world.watched.orders.planned.entry(key).or_default();
                    let found = plans.iter().position(|plan| plan.at == since_epoch(*at));
                    match found {
                        // At most one is in force: earlier ones were dropped, or done. Others may
                        // still be on their way.
                        Some(found) if status == 202 => {
                            // It may have seen either, if it changed on the way.
                            let mut plan = plans.remove(found);
                            plan.accepted = true;
                            plan.epoch = plan.epoch.filter(|then| Some(*then) == now);
                            plans.retain(|other| !other.accepted);
                            plans.push(plan);
                        }
                        Some(found) => drop(plans.remove(found)),
                        None => {}
                    }
                }
                (Wish::CancelRestart, Some(200)) => {
                    // One that was asked for after it may be on its way.
                    orders.planned.entry(key).or_default().retain(|plan| !plan.accepted);
                }
                (Wish::ScheduleRestart { .. }, None)
                | (Wish::CancelRestart | Wish::Reinitialize { .. }, _) => {}
            }
        };
        self.spawned.push((process, work.boxed()));
    }

    /// INV-24, HA-078: a task that only an operator can have asked for begins.
    pub fn check_ordered(&mut self, node: usize, task: &'static str) {
        let life = self.nodes[node].lives;
        match task {
            "restart" => self.check_restart(node, life),
            "switchover: demote" => self.check_switchover(node),
            _ => {}
        }
    }

    fn check_restart(&mut self, node: usize, life: u64) {
        let orders = &mut self.watched.orders;
        if orders.restarts.get(&(node, life)).is_some_and(|waiting| *waiting > 0) {
            return;
        }
        let name = self.nodes[node].name.clone();
        let plans = orders.planned.remove(&(node, life)).unwrap_or_default();
        let window = self.window_us(node);
        // Before or after its clock was set, who can say.
        let Some(now) = self.wall_of(node, window) else { return };
        let due: Vec<Plan> =
            plans.iter().filter(|plan| is_due(plan.at, now, window)).copied().collect();
        if due.is_empty() {
            let at: Vec<u64> = plans.iter().map(|plan| plan.at / MS).collect();
            let what = format!("{name} restarts at {now} ms; scheduled were {at:?}");
            return self.violation("INV-24", what);
        }
        // One that died while the turn that ordered this waited for the store has no successor yet. Of
        // several that are due the agent may have dropped those that this server is too young for.
        let Some(now) = self.life_of_server(node) else { return };
        // Of one whose answer is on its way nobody knows yet when it was accepted. (seed 13972)
        if due.iter().all(|plan| plan.accepted && plan.epoch.is_some_and(|epoch| epoch != now)) {
            self.violation("HA-078", format!("{name} restarts a server that came after"));
        }
    }

    fn check_switchover(&mut self, node: usize) {
        let Some((request, _)) = &self.store.failover else { return };
        let Some(at) = request.scheduled_at.map(since_epoch) else { return };
        let window = self.window_us(node);
        // A request that is written while another one is carried out is not the one.
        let settled = self.watched.requested_at + 10 * SECOND < self.now_us;
        let Some(now) = self.wall_of(node, window).filter(|_| settled) else { return };
        if !is_due(at, now, window) {
            let name = self.nodes[node].name.clone();
            let what = format!(
                "{name} begins a switchover at {now} ms that was scheduled for {} ms",
                at / MS
            );
            self.violation("INV-24", what);
        }
    }

    fn life_of_server(&self, node: usize) -> Option<u64> {
        let server = &self.nodes[node].server;
        server.ready().then_some(server.epoch)
    }

    /// How late it may begin: one and a half turns, and what one turn waits for the store.
    fn window_us(&self, node: usize) -> u64 {
        let agent = self.nodes[node].agent.as_ref();
        let timing = agent.map_or(self.base.timing, |agent| agent.settings.timing);
        (timing.loop_wait_ms() * 3 / 2 + timing.retry_timeout_ms()) * MS + 2 * SECOND
    }
}
