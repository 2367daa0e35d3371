//! A part of an agent stands still while the rest runs: the thread of the keeper gets no CPU, or the
//! loop hangs in a call that never ends. (HA-303, HA-304)

use crate::random::Random;
use crate::world::{MS, Process, SECOND, Shared, World};
use futures::future::BoxFuture;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What can stand still by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Keeper,
    Loop,
}

/// Until when, in true time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    keeper: u64,
    turns: u64,
}

impl Stalls {
    fn until(self, part: Part) -> u64 {
        match part {
            Part::Keeper => self.keeper,
            Part::Loop => self.turns,
        }
    }
}

/// Drawn from a stream of its own, so that every other choice of a run stays what it was.
pub fn plan(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x57A11);
    if !random.percent(20) {
        return;
    }
    for _ in 0..random.between(1, 5) {
        let at = random.between(30, 400) * SECOND;
        let chance = random.next();
        world.at(at, move |world| world.stall_some(&mut Random::new(chance)));
    }
}

impl World {
    fn stall_some(&mut self, random: &mut Random) {
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let node = match leader {
            Some(leader) if random.percent(70) => leader,
            Some(_) | None => random.below(self.members() as u64) as usize,
        };
        let ttl = self.base.timing.ttl_ms();
        let us = random.between(300, 2 * ttl) * MS;
        let keeper = random.percent(50);
        let until = (self.now_us + us).min(430 * SECOND);
        let Some(agent) = self.nodes[node].agent.as_mut().filter(|_| !self.quiet) else { return };
        // Nobody expects of it what only the whole can do.
        agent.unfrozen_at = agent.unfrozen_at.max(until);
        let what = if keeper {
            agent.stalls.keeper = until;
            "keeper of the lease stands still"
        } else {
            agent.stalls.turns = until;
            "loop stands still"
        };
        self.fault(what);
        self.lasts(until - self.now_us, |_| {});
    }
}

/// One part of an agent, which is not polled while it stands still.
pub struct Stalling {
    pub world: Shared,
    pub process: Process,
    pub part: Part,
    pub work: BoxFuture<'static, ()>,
}

impl Future for Stalling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let stands_still = {
            let mut world = self.world.lock().unwrap();
            let agent = world.agent(self.process);
            let until = agent.map_or(0, |agent| agent.stalls.until(self.part));
            if until > world.now_us {
                let waker = context.waker().clone();
                world.at(until, move |_| waker.wake());
            }
            until > world.now_us
        };
        if stands_still { Poll::Pending } else { self.work.as_mut().poll(context) }
    }
}
