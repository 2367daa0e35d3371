//! How old are the looks that an agent acts on? And what becomes of a request that was held up on its way.
//! (HA-325, HA-326)

use crate::random::Random;
use crate::store::Asker;
use crate::world::{MS, Process, SECOND, World};
use hathi::ha::look;

/// When it last heard from the store, and last saw what PostgreSQL is; in true time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looks {
    pub store: u64,
    pub postgres: u64,
    /// When it asked for the key last.
    pub raced: u64,
}

/// Requests that the network holds up: a copy of a renewal arrives later than what was sent after it.
#[derive(Clone, Debug)]
pub struct Late {
    percent: u64,
    random: Random,
}

impl Default for Late {
    fn default() -> Self {
        Self { percent: 0, random: Random::new(0) }
    }
}

/// How soon a key that nobody wants is given up, by an agent that runs and sees the store.
const GIVEN_UP_WITHIN: u64 = 4 * SECOND;

/// Drawn from a stream of its own, so that every other choice of a run stays what it was.
pub fn draw(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x1A7E);
    let percent = if random.percent(15) { *random.pick(&[5, 30]) } else { 0 };
    world.late = Late { percent, random };
}

/// What cannot be taken back, by the names of the tasks.
const FATEFUL: &[&str] = &[
    "promote",
    "starting primary after failure",
    "running pg_rewind",
    "bootstrap",
    "bootstrap from leader",
    "switchover: demote",
    "restart",
    "reinitialize",
    "reinitializing due to diverged timelines",
    "reinitializing because the log is gone",
];

impl World {
    /// INV-38, when a task begins.
    pub fn check_look_before(&mut self, process: Process, task: &str) {
        if FATEFUL.contains(&task) {
            self.check_look(process, task);
        }
    }

    /// INV-38: nobody does what cannot be taken back by what it saw long ago, but one who stood still in
    /// between and cannot know it.
    pub fn check_look(&mut self, process: Process, what: &str) {
        let node = process.node;
        if self.is_patroni(node) {
            return;
        }
        let Some(agent) = self.agent(process) else { return };
        // By a clock that may run slower, and after a last look at PostgreSQL.
        let most = (look::most_ms(agent.settings.timing) * 21 / 20 + 2_200) * MS;
        let now = self.now_us;
        for (at, whom) in [(agent.looks.store, "the store"), (agent.looks.postgres, "PostgreSQL")] {
            if at + most < now && agent.unfrozen_at <= at {
                let age = (now - at) / MS;
                let what =
                    format!("{what} of {} by a look at {whom} {age} ms old", self.nodes[node].name);
                return self.violation_by(node, "INV-38", what);
            }
        }
    }

    /// The network may hold up a copy of this renewal, as of a request that was sent to a second server too.
    pub fn hold_up_a_copy(&mut self, process: Process) {
        if self.quiet || self.late.percent == 0 || !self.late.random.percent(self.late.percent) {
            return;
        }
        let node = process.node;
        let ttl_us = self.ttl_us(node);
        let Some(agent) = self.agent(process) else { return };
        let (name, session) = (agent.settings.me.clone(), agent.session);
        let asker = Asker { node, name, session, ttl_us };
        let later = self.late.random.between(50, 20_000) * MS;
        self.after(later, move |world| world.arrives_late(process, &asker));
    }

    fn arrives_late(&mut self, process: Process, asker: &Asker) {
        if self.quiet || !self.store.up || !self.nodes[asker.node].to_store {
            return;
        }
        self.expire_sessions();
        // It may bring back what is gone, where a store does not keep DCS-027, but neither binds the key to
        // another lease nor shortens one.
        if self.store.leader.is_some() {
            return;
        }
        let _ = self.op_renew(asker);
        let Some(held) = self.store.leader.as_ref() else { return };
        let version = held.version;
        self.fault("leader key that a late renewal brings back");
        let disowned = self.agent(process).is_some_and(|agent| agent.lease.is_disowned());
        if disowned && !self.is_patroni(asker.node) && !self.nodes[asker.node].server.writable() {
            let since = self.now_us;
            self.after(GIVEN_UP_WITHIN, move |world| {
                world.check_given_up(process, version, since);
            });
        }
    }

    /// INV-39: a key that came back to one who had given it up does not stay.
    fn check_given_up(&mut self, process: Process, version: u64, since: u64) {
        let node = process.node;
        let there = self.store.leader.as_ref().is_some_and(|held| held.version == version);
        let calm = self.store.lose_requests + self.store.lose_answers + self.store.slow_ms == 0
            && self.last_fault_at + GIVEN_UP_WITHIN <= self.now_us
            && self.active_faults == 0;
        let hears = self.sees_store(node) && self.is_healthy(node, GIVEN_UP_WITHIN);
        // Who asked for it meanwhile may have it.
        let unwanted = self.agent(process).is_some_and(|agent| agent.looks.raced < since);
        if there && calm && hears && unwanted {
            let what = format!("{} keeps a leader key that it had given up", self.nodes[node].name);
            self.violation_by(node, "INV-39", what);
        }
    }
}
