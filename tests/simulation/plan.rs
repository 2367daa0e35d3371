//! What one run is: the cluster that its seed draws, and the faults that will strike it, as a list.
//! The list is data, so that a failing run can be told again with fewer of them. (`shrink.rs`)

use crate::random::Random;
use crate::world::{MS, SECOND, Shared, World};
use crate::{faults, operators, requests};
use hathi_dcs::Timing;

/// How long a run is, and when the faults stop.
pub const RUN: u64 = 600 * SECOND;
const FIRST: u64 = 25 * SECOND;
const LAST: u64 = 420 * SECOND;
/// Everything is mended by then.
const MENDED: u64 = 440 * SECOND;

/// A kind of fault. Each feature keeps those of its own in its own file.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    /// How often it is drawn, compared with the others.
    pub weight: u64,
    pub strike: fn(&mut World, &mut Strike),
}

/// What a fault is given when it strikes. All of it follows from the fault's own number.
#[derive(Debug)]
pub struct Strike {
    pub random: Random,
    /// Whom it hits, if it hits one node: the leader in every second case.
    pub node: usize,
    /// Microseconds: less than half a ttl; about a ttl or more; one of both.
    pub short: u64,
    pub long: u64,
    pub either: u64,
}

/// Every kind there is.
const ALL: &[&[Kind]] = &[faults::FAULTS, requests::FAULTS, operators::FAULTS];

/// One fault of a run.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub at: u64,
    pub kind: &'static Kind,
    /// The seed of whatever it draws.
    pub chance: u64,
}

/// One run, before it begins.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// Is the guard there?
    pub guarded: bool,
    /// Only the planned faults with these numbers strike; `None`: all.
    pub keep: Option<Vec<usize>>,
}

impl Case {
    pub fn of(seed: u64) -> Self {
        Self { seed, guarded: true, keep: None }
    }

    /// A cluster as this seed wants it, with its clients and its faults.
    pub fn world(&self, tracing: bool) -> Shared {
        let shared = World::empty(self.seed);
        let mut world = shared.lock().unwrap();
        world.tracing = tracing;
        world.store.up = true;
        world.watched.fence_broken = !self.guarded;
        world.watched.recorded = crate::replays::is_recorded(self.seed);
        let mut random = Random::new(self.seed ^ 0xFA17);
        draw_cluster(&mut world, &mut random);
        crate::synchronous::draw(&mut world, self.seed);
        crate::stores::draw(&mut world, self.seed);
        draw_short_ttl(&mut world, self.seed);
        crate::standby::draw(&mut world, self.seed);
        world.watchdogs.draw(self.seed, self.guarded);
        crate::looks::draw(&mut world, self.seed);
        crate::patroni::draw(&mut world, self.seed, self.guarded);
        world.planned = plan_faults(&world, &mut random);
        for number in 0..world.planned.len() {
            if self.keep.as_ref().is_some_and(|keep| !keep.contains(&number)) {
                continue;
            }
            let at = world.planned[number].at;
            world.at(at, move |world| world.strike(number));
        }
        crate::failsafe::plan(&mut world, self.seed);
        if world.remote.is_some() {
            crate::pause::plan_standby(&mut world, self.seed);
        } else if !world.is_mixed() {
            crate::pause::plan(&mut world, self.seed);
        }
        crate::standby::plan(&mut world, self.seed);
        crate::clocks::plan(&mut world, self.seed);
        faults::plan(&mut world, self.seed);
        faults::plan_disks(&mut world, self.seed);
        crate::stalls::plan(&mut world, self.seed);
        world.at(0, World::tick);
        world.at(0, World::watch_sessions);
        world.at(MENDED, World::mend_everything);
        let (base, nodes) = (world.base.clone(), world.members());
        let store = world.store.kind.row.name;
        world.say(usize::MAX, 0, |_| {
            format!(
                "{nodes} nodes on {store}, {:?}, primary_start_timeout {}, maximum lag {}, \
                 check_timeline {}",
                base.timing,
                base.primary_start_timeout,
                base.maximum_lag_on_failover,
                base.check_timeline
            )
        });
        drop(world);
        shared
    }
}

fn draw_cluster(world: &mut World, random: &mut Random) {
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
    let (ttl, loop_wait, retry_timeout) =
        *random.pick(&[(30, 10, 10), (30, 10, 10), (20, 5, 5), (30, 3, 5), (60, 10, 20)]);
    world.base.timing = Timing { ttl, loop_wait, retry_timeout };
    world.base.primary_start_timeout = *random.pick(&[0, 300, 300, 20]);
    world.base.maximum_lag_on_failover = *random.pick(&[1_048_576, 1_048_576, 40_000]);
    world.base.check_timeline = !random.percent(15);
    world.watched.can_rewind = !random.percent(25);
    world.base.primary_race_backoff = *random.pick(&[0, 0, 0, 8, 40]);
    world.base.primary_restart_limit = *random.pick(&[0, 0, 2]);
    if count > 2 && random.percent(25) {
        world.nodes[count - 1].nofailover = true;
    }
    if random.percent(25) {
        world.nodes[0].priority = 2;
    }
    for node in 0..count {
        let at = random.between(0, 3_000) * MS;
        world.at(at, move |world| world.start_agent(node));
    }
}

/// Some clusters of ours alone want a short lease. From a stream of its own, so that every other choice
/// of a run stays what it was. (HA-324)
fn draw_short_ttl(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x771);
    if !random.percent(8) {
        return;
    }
    let (ttl, loop_wait, retry_timeout) = *random.pick(&[(3, 1, 1), (5, 1, 2), (10, 4, 3)]);
    world.base.timing = Timing { ttl, loop_wait, retry_timeout };
    world.count("clusters with a ttl below 20");
}

/// Each run draws from some kinds only, so that each kind is also met without all the others.
fn plan_faults(world: &World, random: &mut Random) -> Vec<Planned> {
    let mut planned = Vec::new();
    if random.percent(5) {
        let at = random.between(1_500, 5_000) * MS;
        planned.push(Planned { at, kind: &operators::BOOTSTRAP_LOST, chance: random.next() });
    }
    if world.members() > 2 && random.percent(4) {
        let at = random.between(40, 300) * SECOND;
        planned.push(Planned { at, kind: &faults::FOREIGN_DATA, chance: random.next() });
    }
    let keep = *random.pick(&[15, 30, 60, 100]);
    let all: Vec<&'static Kind> = ALL.iter().flat_map(|kinds| kinds.iter()).collect();
    let mut kinds: Vec<&'static Kind> =
        all.iter().copied().filter(|_| random.percent(keep)).collect();
    if kinds.is_empty() {
        kinds.push(*random.pick(&all));
    }
    let total: u64 = kinds.iter().map(|kind| kind.weight).sum();
    let gap = *random.pick(&[4, 15, 40]);
    let mut at = FIRST;
    while at < LAST {
        let mut draw = random.below(total);
        let kind = kinds.iter().find(|kind| {
            let found = draw < kind.weight;
            draw = draw.saturating_sub(kind.weight);
            found
        });
        if let Some(kind) = kind {
            planned.push(Planned { at, kind, chance: random.next() });
        }
        at += random.between(100, gap * 2_000) * MS;
    }
    planned
}

impl World {
    /// The planned fault with this number happens now.
    fn strike(&mut self, number: usize) {
        // Nothing else at once after the store itself broke its promise.
        let broke = self.watched.revoked_at.is_some_and(|at| at + 20 * SECOND > self.now_us);
        if self.quiet || broke {
            return;
        }
        let Planned { kind, chance, .. } = self.planned[number];
        self.struck.push(number);
        let mut random = Random::new(chance);
        // The leader is the interesting one.
        let leader = self.store.leader.as_ref().and_then(|held| self.node_of(&held.name));
        let node = match leader {
            Some(leader) if random.percent(50) => leader,
            Some(_) | None => random.below(self.members() as u64) as usize,
        };
        let ttl = self.base.timing.ttl_ms();
        let short = random.between(200, ttl / 2) * MS;
        let long = random.between(ttl - 3_000, ttl * 3) * MS;
        let either = if random.percent(50) { short } else { long };
        (kind.strike)(self, &mut Strike { random, node, short, long, either });
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
}
