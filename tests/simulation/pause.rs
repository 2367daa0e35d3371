//! Operators who pause the cluster and do things to PostgreSQL meanwhile; and what must hold then.
//! (section 14 of ha-loop.md, INV-27)
//!
//! While an agent is paused its PostgreSQL is in the hands of the operator: what is written there is
//! no fault of the core, nor what it does before the first turn after the pause has ended it.

use crate::random::Random;
use crate::wal::Tip;
use crate::world::{MS, SECOND, World};
use futures::channel::mpsc;
use hathi::ha::manual;
use hathi::ha::operator::Wish;
use hathi::ha::ports::{Stop, StopMode};
use hathi::ha::restart::Conditions;
use hathi_dcs::{Expect, Failover};
use std::collections::BTreeSet;

/// What the checks remember of it.
#[derive(Default)]
pub struct Pause {
    /// Whose PostgreSQL was stopped for a named failover in pause: it may be started again. (HA-040)
    owed: BTreeSet<usize>,
    /// Who got the key by an operator's word, last.
    elected: Option<usize>,
    /// The timelines that operators began beside the leader. Whoever still holds one when the pause is
    /// over cannot be told from one that followed a leader of after that.
    pub branches: Vec<usize>,
}

/// Drawn from a stream of its own, so that every other choice of a run stays what it was.
pub fn plan(world: &mut World, seed: u64) {
    plan_some(world, Random::new(seed ^ 0x9A05E), 20);
}

/// The same in a standby cluster, whose section may come and go meanwhile. Nobody promotes one of its
/// members by hand: that would be another cluster.
pub fn plan_standby(world: &mut World, seed: u64) {
    plan_some(world, Random::new(seed ^ 0x9A05F), 35);
}

fn plan_some(world: &mut World, mut random: Random, percent: u64) {
    if !random.percent(percent) {
        return;
    }
    let mut at = random.between(40, 200) * SECOND;
    while at < 320 * SECOND {
        let lasts = random.between(10, 80) * SECOND;
        world.at(at, |world| world.switch_pause(true));
        for _ in 0..random.between(0, 5) {
            let chance = random.next();
            let then = at + random.between(1_000, lasts / MS) * MS;
            world.at(then, move |world| world.by_hand(&mut Random::new(chance)));
        }
        world.at(at + lasts, |world| world.switch_pause(false));
        at += lasts + random.between(30, 150) * SECOND;
    }
}

impl World {
    /// `patronictl pause` and `resume`.
    fn switch_pause(&mut self, on: bool) {
        if on && (self.quiet || !self.store.up) {
            return;
        }
        if !self.store.up {
            // Again until it is done.
            self.after(2 * SECOND, move |world| world.switch_pause(on));
            return;
        }
        // What somebody emptied is put back by a leader, or by an operator who knows what was there.
        let Some((mut config, _)) = self.store.config.clone().filter(|(map, _)| !map.is_empty())
        else {
            return self.after(2 * SECOND, move |world| world.switch_pause(on));
        };
        let is = config.get("pause").and_then(serde_json::Value::as_bool).unwrap_or(false);
        if is == on {
            return;
        }
        self.fault(if on { "paused" } else { "resumed" });
        config.insert("pause".into(), on.into());
        let _ = self.op_config(config, Expect::Anything);
    }

    fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].agent.as_ref().is_some_and(|agent| agent.settings.pause)
    }

    /// Is this server what an operator made of it, or may have made?
    pub fn in_hands(&self, node: usize) -> bool {
        self.nodes[node].hands_until > self.now_us
    }

    /// Its agent is killed before it could see what the operator left, who may have started this server as
    /// a primary: no guard is armed for one that never held the lease. The next agent has that to do.
    pub fn leave_in_hands(&mut self, node: usize) {
        if self.in_hands(node) {
            self.nodes[node].hands_until = u64::MAX;
        }
    }

    /// Is any of them? What the members compare with each other is then not what the rules left.
    pub fn somebody_in_hands(&self) -> bool {
        (0..self.members()).any(|node| self.in_hands(node))
    }

    /// A turn has ended, under these settings. The one after the pause demotes what is not to be.
    pub fn note_pause(&mut self, node: usize) {
        if self.is_paused(node) {
            self.nodes[node].hands_until = u64::MAX;
        } else if self.nodes[node].hands_until == u64::MAX {
            self.nodes[node].hands_until = self.now_us + self.base.timing.ttl_ms() * MS;
            self.watched.pause.owed.remove(&node);
            self.nodes[node].server.by_hand = false;
        }
    }

    fn by_hand(&mut self, random: &mut Random) {
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let node = match leader {
            Some(leader) if random.percent(50) => leader,
            Some(_) | None => random.below(self.members() as u64) as usize,
        };
        let at_work = self.nodes[node].agent.as_ref().is_none_or(|agent| !agent.tasks.is_empty());
        // A careful one does not get in the way of what the agent does just now.
        if self.quiet || !self.is_paused(node) || at_work {
            return;
        }
        let alive = self.nodes[node].server.alive();
        match random.below(10) {
            0 | 1 if alive => {
                self.fault("postgres stopped by hand");
                let (steps, _) = mpsc::unbounded();
                let how = Stop { mode: StopMode::Fast, checkpoint: false, immediate_at: None };
                self.pg_stop(node, how, steps);
            }
            2 if alive => {
                self.fault("postgres killed by hand");
                self.pg_die(node, "kill -9");
            }
            0..=4 => self.start_by_hand(node),
            5 if self.remote.is_none() => {
                self.promote_by_hand(node, random.between(50, 400) * MS);
            }
            6 | 7 => {
                let other = random.pick(&self.nodes[..self.members()]).name.clone();
                let leader = self.store.leader.as_ref().map(|held| held.name.clone());
                let leader = leader.filter(|leader| *leader != other && random.percent(50));
                self.fault("failover requested in pause");
                let switchover = leader.is_some();
                let failover = Failover { leader, candidate: Some(other), scheduled_at: None };
                self.request(node, manual::Request { switchover, failover });
            }
            8 => {
                self.fault("restart ordered in pause");
                self.order(node, Wish::Restart(Conditions::default()));
            }
            _ => {
                self.fault("agent replaced in pause");
                let back = random.between(1, 15) * SECOND;
                if random.percent(50) {
                    self.crash_agent_silently(node, back);
                } else {
                    self.stop_for(node, back);
                }
            }
        }
    }

    /// pg_ctl start: as what the data directory says.
    fn start_by_hand(&mut self, node: usize) {
        let server = &self.nodes[node].server;
        let Some(data) = server.data.as_ref().filter(|_| !server.alive()) else { return };
        let (as_primary, upstream) = (!data.standby_signal, data.conninfo);
        self.fault("postgres started by hand");
        self.handled(node);
        self.nodes[node].server.joins = true;
        self.pg_start(node, as_primary, upstream);
        self.nodes[node].server.by_hand = true;
    }

    /// pg_ctl promote, whoever else is a primary.
    fn promote_by_hand(&mut self, node: usize, takes: u64) {
        let server = &self.nodes[node].server;
        if !server.ready() || !server.recovering || server.stopping || server.promoting {
            return;
        }
        self.fault("postgres promoted by hand");
        self.handled(node);
        let epoch = self.nodes[node].server.epoch;
        self.after(takes, move |world| {
            let server = &world.nodes[node].server;
            let same = server.epoch == epoch && server.ready() && server.recovering;
            if same && !server.stopping && !server.promoting && world.is_paused(node) {
                world.handled(node);
                world.nodes[node].server.by_hand = true;
                world.pg_promoted(node);
                if let Some(tip) = world.tip(node) {
                    world.watched.pause.branches.push(tip.branch);
                }
            }
        });
    }

    /// From here on nobody can say what was confirmed and is lost: the operator decides.
    fn handled(&mut self, node: usize) {
        self.nodes[node].hands_until = u64::MAX;
        self.watched.confirmed.forget();
    }

    /// The store gives the key: because an operator named this one?
    pub fn note_elected(&mut self, node: usize) {
        let named =
            self.store.failover.as_ref().and_then(|(request, _)| request.candidate.as_ref());
        let elected = named == Some(&self.nodes[node].name);
        self.watched.pause.elected = elected.then_some(node);
    }

    /// A primary of an operator's making leads from now on: whatever others hold beside it is abandoned.
    pub fn note_led_by_hand(&mut self, node: usize) {
        let Some(tip) = self.tip(node) else { return };
        let wal = &self.wal;
        let beside = |branch: &usize| !wal.holds(tip, Tip { branch: *branch, lsn: 0 });
        let tips = self.nodes.iter().filter_map(|node| node.server.data.as_ref());
        let theirs: Vec<usize> = tips.map(|data| data.tip.branch).filter(beside).collect();
        self.watched.pause.branches.retain(beside);
        self.watched.pause.branches.extend(theirs);
    }

    /// INV-27: what begins in pause is only what an operator asked for.
    pub fn check_paused_task(&mut self, node: usize, task: &'static str) {
        if !self.is_paused(node) {
            return;
        }
        let name = self.nodes[node].name.clone();
        let asked = self.store.failover.as_ref().is_some_and(|(request, _)| !request.is_empty())
            || self.watched.request_at.is_some_and(|at| at + 60 * SECOND > self.now_us);
        let fine = match task {
            // check_ordered judges these.
            "restart" | "reinitialize" | "checkpoint after promotion" => true,
            "switchover: demote" => {
                self.watched.pause.owed.insert(node);
                asked
            }
            "promote" => asked || self.watched.pause.elected == Some(node),
            // What the failover stopped comes back as a replica, after a rewind if it needs one.
            "restarting after failure"
            | "running pg_rewind"
            | "doing crash recovery in a single user mode"
            | "reinitializing due to diverged timelines" => self.watched.pause.owed.contains(&node),
            _ => false,
        };
        if !fine {
            self.violation("INV-27", format!("{name} begins \"{task}\" in pause"));
        }
    }

    /// INV-27: nor is anything stopped without a task.
    pub fn check_paused_stop(&mut self, node: usize) {
        let idle = self.nodes[node].agent.as_ref().is_some_and(|agent| agent.tasks.is_empty());
        if idle && self.is_paused(node) {
            let what = format!("{} stops its PostgreSQL in pause", self.nodes[node].name);
            self.violation("INV-27", what);
        }
    }

    /// HA-130: the guard stands down, whatever the lease comes to.
    pub fn check_paused_fence(&mut self, node: usize) {
        if self.is_paused(node) && self.is_healthy(node, self.base.timing.ttl_ms() * MS) {
            let what = format!("the guard of {} kills in pause", self.nodes[node].name);
            self.violation("INV-27", what);
        }
    }
}
