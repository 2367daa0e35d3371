//! What each store does with leases and watches, where they differ: a table with one row a store. The
//! trait promises less than any of them does; the core must do with the least.

use crate::random::Random;
use crate::world::World;

/// One store.
#[derive(Clone, Copy, Debug)]
pub struct Semantics {
    pub name: &'static str,
    /// A lease that nobody prolongs ends so much after its time: milliseconds, and percent of its
    /// length.
    late_ms: u64,
    late_percent: u64,
    /// In so many of a hundred outages every lease has its whole length again afterwards.
    pub extends_percent: u64,
    /// Milliseconds until a watcher hears of a change; and, in so many of a hundred cases, until it
    /// does when the watch had ended and nobody noticed.
    pub watch_ms: u64,
    missed_percent: u64,
    missed_ms: u64,
    /// The records of the members have no lease: they stay when their writer dies.
    pub members_stay: bool,
}

/// etcd looks twice a second for leases that ended and starts them anew with a new leader. Consul lets
/// a session live for up to twice its time. ZooKeeper's watches fire once, and what changes until they
/// are set again is told with the next. Kubernetes knows no leases: whoever looks says that the
/// leader's record is too old. A failover of Redis closes every subscription.
const ROWS: &[Semantics] = &[
    row("etcd", (0, 0), 50, 20, (0, 0), false),
    row("raft", (500, 0), 100, 20, (0, 0), false),
    row("consul", (0, 100), 100, 100, (0, 0), false),
    row("zookeeper", (2_000, 0), 100, 20, (10, 2_000), false),
    row("kubernetes", (1_000, 10), 50, 500, (2, 10_000), true),
    row("redis", (100, 0), 0, 50, (5, 5_000), false),
];

const fn row(
    name: &'static str,
    (late_ms, late_percent): (u64, u64),
    extends_percent: u64,
    watch_ms: u64,
    (missed_percent, missed_ms): (u64, u64),
    members_stay: bool,
) -> Semantics {
    Semantics {
        name,
        late_ms,
        late_percent,
        extends_percent,
        watch_ms,
        missed_percent,
        missed_ms,
        members_stay,
    }
}

/// The store of a run, with chance of its own.
#[derive(Clone, Debug)]
pub struct Kind {
    pub row: Semantics,
    random: Random,
}

impl Default for Kind {
    fn default() -> Self {
        Self { row: ROWS[0], random: Random::new(0) }
    }
}

/// Drawn from a stream of its own, so that every other choice of a run stays what it was. Half of all
/// runs have the first.
pub fn draw(world: &mut World, seed: u64) {
    let mut random = Random::new(seed ^ 0x5_703E);
    let row = if random.percent(50) { ROWS[0] } else { *random.pick(ROWS) };
    world.store.kind = Kind { row, random };
}

impl Kind {
    /// How late a lease of this length will end, in microseconds.
    pub fn late_us(&mut self, length_us: u64) -> u64 {
        let most = self.row.late_ms * 1_000 + length_us * self.row.late_percent / 100;
        self.random.below(most + 1)
    }

    /// How much later than usual a watcher hears of a change, in milliseconds.
    pub fn missed_ms(&mut self) -> u64 {
        let missed = self.row.missed_percent > 0 && self.random.percent(self.row.missed_percent);
        if missed { self.random.below(self.row.missed_ms) } else { 0 }
    }
}
