//! Wall clocks that are wrong and jump, and machines that are suspended as a whole.
//!
//! A wall clock decides when something that was asked for later is due, and nothing else. The clock of
//! leases goes on while a machine is suspended; its guard is woken by that clock, before anything that
//! was running goes on.

use crate::random::Random;
use crate::world::{MS, SECOND, World};

/// Drawn from a stream of its own, so that every other choice of a run stays what it was.
pub fn plan(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0xC10C);
    if random.percent(25) {
        for node in 0..world.members() {
            world.nodes[node].wall_ahead_ms = ahead(&mut random, 3_000);
            for _ in 0..random.below(4) {
                let at = random.between(20, 420) * SECOND;
                let by = ahead(&mut random, 7_200_000);
                world.at(at, move |world| world.set_wall(node, by));
            }
        }
    }
    if !random.percent(15) {
        return;
    }
    for _ in 0..random.between(1, 4) {
        let at = random.between(30, 380) * SECOND;
        let chance = random.next();
        world.at(at, move |world| world.suspend_some(&mut Random::new(chance)));
    }
}

/// Up to so much ahead, or behind.
fn ahead(random: &mut Random, most_ms: u64) -> i64 {
    let most = i64::try_from(most_ms).unwrap_or(i64::MAX);
    i64::try_from(random.between(0, 2 * most_ms)).unwrap_or(0) - most
}

impl World {
    fn set_wall(&mut self, node: usize, ahead_ms: i64) {
        if self.quiet {
            return;
        }
        self.fault("wall clock jumps");
        self.nodes[node].wall_ahead_ms = ahead_ms;
        self.nodes[node].wall_set_at = self.now_us;
        // A turn that waits for a moment of its wall clock looks when it had reckoned to.
    }

    /// What the node's wall clock shows, as a time of the run; `None`: it was set a moment ago, and a
    /// turn may have read it before.
    pub fn wall_of(&self, node: usize, within_us: u64) -> Option<i64> {
        let machine = &self.nodes[node];
        let settled = machine.wall_set_at == 0 || machine.wall_set_at + within_us < self.now_us;
        let now = i64::try_from(self.now_us / MS).unwrap_or(i64::MAX);
        settled.then_some(now + machine.wall_ahead_ms)
    }

    fn suspend_some(&mut self, random: &mut Random) {
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let node = match leader {
            Some(leader) if random.percent(60) => leader,
            Some(_) | None => random.below(self.members() as u64) as usize,
        };
        let ttl = self.base.timing.ttl_ms();
        let ms = random.between(500, 3 * ttl);
        if self.quiet || self.nodes[node].suspended {
            return;
        }
        self.fault("machine suspended");
        self.suspend(node);
        self.lasts(ms * MS, move |world| world.wake(node));
    }

    fn suspend(&mut self, node: usize) {
        self.nodes[node].suspended = true;
        self.freeze_agent(node);
        let alive = self.nodes[node].server.alive();
        self.nodes[node].server.frozen = alive;
    }

    /// Everything goes on; the guard first, whose timer is due.
    pub fn wake(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].suspended) {
            return;
        }
        self.say(node, 90, |_| "the machine goes on".into());
        self.fence_tick(node);
        self.thaw_postgres(node);
        self.resume_agent(node);
    }

    /// It runs again, if its machine does.
    pub fn thaw_postgres(&mut self, node: usize) {
        self.nodes[node].server.frozen &= self.nodes[node].suspended;
        self.check_writers();
    }
}
