//! Which fault comes when. A deck of all faults is shuffled and dealt, again and again, so that a
//! long run meets each of them equally often, each time in other company.

use std::time::Duration;

/// The lease of the clusters of a run, in seconds (`yaml::default_dcs`).
const TTL: u64 = 20;

/// What can happen. "Primary" and "replica" are whoever has the role when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    PrimaryCut,
    PrimaryCutFromStore,
    PrimaryMute,
    PrimaryDeaf,
    ReplicaCut,
    ReplicaCutFromStore,
    ReplicasApart,
    StoreScattered,
    TwoCuts,
    PrimaryFrozen,
    PrimaryAgentFrozen,
    PrimaryPostmasterFrozen,
    PrimaryGuardFrozen,
    ReplicaAgentFrozen,
    PrimaryAgentKilled,
    PrimaryGuardKilled,
    PrimaryAgentAndGuardKilled,
    PrimaryAgentAndPostmasterKilled,
    PrimaryPostmasterKilled,
    PrimaryKilled,
    ReplicaKilled,
    AllKilled,
    PrimaryClockJumps,
    ReplicaClockJumps,
    Switchover,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::PrimaryCut,
        Self::PrimaryCutFromStore,
        Self::PrimaryMute,
        Self::PrimaryDeaf,
        Self::ReplicaCut,
        Self::ReplicaCutFromStore,
        Self::ReplicasApart,
        Self::StoreScattered,
        Self::TwoCuts,
        Self::PrimaryFrozen,
        Self::PrimaryAgentFrozen,
        Self::PrimaryPostmasterFrozen,
        Self::PrimaryGuardFrozen,
        Self::ReplicaAgentFrozen,
        Self::PrimaryAgentKilled,
        Self::PrimaryGuardKilled,
        Self::PrimaryAgentAndGuardKilled,
        Self::PrimaryAgentAndPostmasterKilled,
        Self::PrimaryPostmasterKilled,
        Self::PrimaryKilled,
        Self::ReplicaKilled,
        Self::AllKilled,
        Self::PrimaryClockJumps,
        Self::ReplicaClockJumps,
        Self::Switchover,
    ];

    /// On the command line (`--only`) and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrimaryCut => "primary-cut",
            Self::PrimaryCutFromStore => "primary-cut-from-store",
            Self::PrimaryMute => "primary-mute",
            Self::PrimaryDeaf => "primary-deaf",
            Self::ReplicaCut => "replica-cut",
            Self::ReplicaCutFromStore => "replica-cut-from-store",
            Self::ReplicasApart => "replicas-apart",
            Self::StoreScattered => "store-scattered",
            Self::TwoCuts => "two-cuts",
            Self::PrimaryFrozen => "primary-frozen",
            Self::PrimaryAgentFrozen => "primary-agent-frozen",
            Self::PrimaryPostmasterFrozen => "primary-postmaster-frozen",
            Self::PrimaryGuardFrozen => "primary-guard-frozen",
            Self::ReplicaAgentFrozen => "replica-agent-frozen",
            Self::PrimaryAgentKilled => "primary-agent-killed",
            Self::PrimaryGuardKilled => "primary-guard-killed",
            Self::PrimaryAgentAndGuardKilled => "primary-agent-and-guard-killed",
            Self::PrimaryAgentAndPostmasterKilled => "primary-agent-and-postmaster-killed",
            Self::PrimaryPostmasterKilled => "primary-postmaster-killed",
            Self::PrimaryKilled => "primary-killed",
            Self::ReplicaKilled => "replica-killed",
            Self::AllKilled => "all-killed",
            Self::PrimaryClockJumps => "primary-clock-jumps",
            Self::ReplicaClockJumps => "replica-clock-jumps",
            Self::Switchover => "switchover",
        }
    }

    /// Whether it may cost the primary its place without notice, and with it, in asynchronous
    /// replication, the rows that nobody else had.
    pub fn may_lose(self) -> bool {
        match self {
            Self::PrimaryCut
            | Self::PrimaryCutFromStore
            | Self::PrimaryMute
            | Self::PrimaryDeaf
            | Self::StoreScattered
            | Self::TwoCuts
            | Self::PrimaryFrozen
            | Self::PrimaryAgentFrozen
            | Self::PrimaryPostmasterFrozen
            | Self::PrimaryAgentKilled
            | Self::PrimaryAgentAndPostmasterKilled
            | Self::PrimaryPostmasterKilled
            | Self::PrimaryKilled
            | Self::AllKilled => true,
            Self::ReplicaCut
            | Self::ReplicaCutFromStore
            | Self::ReplicasApart
            | Self::PrimaryGuardFrozen
            | Self::ReplicaAgentFrozen
            | Self::PrimaryGuardKilled
            | Self::PrimaryAgentAndGuardKilled
            | Self::ReplicaKilled
            | Self::PrimaryClockJumps
            | Self::ReplicaClockJumps
            | Self::Switchover => false,
        }
    }

    /// Only an agent with a guard can have it.
    pub fn needs_guard(self) -> bool {
        matches!(
            self,
            Self::PrimaryGuardFrozen | Self::PrimaryGuardKilled | Self::PrimaryAgentAndGuardKilled
        )
    }

    pub fn needs_wall_clocks(self) -> bool {
        matches!(self, Self::PrimaryClockJumps | Self::ReplicaClockJumps)
    }

    /// How long it lasts: shorter than a lease, or longer, by chance; some are over at once.
    fn hold(self, chance: &mut Chance) -> Duration {
        let seconds = match self {
            Self::Switchover
            | Self::PrimaryPostmasterKilled
            | Self::PrimaryGuardKilled
            | Self::PrimaryAgentAndGuardKilled => 1,
            Self::PrimaryClockJumps | Self::ReplicaClockJumps => 3 + chance.below(8),
            Self::PrimaryCut
            | Self::PrimaryCutFromStore
            | Self::PrimaryMute
            | Self::PrimaryDeaf
            | Self::ReplicaCut
            | Self::ReplicaCutFromStore
            | Self::ReplicasApart
            | Self::StoreScattered
            | Self::TwoCuts
            | Self::PrimaryFrozen
            | Self::PrimaryAgentFrozen
            | Self::PrimaryPostmasterFrozen
            | Self::PrimaryGuardFrozen
            | Self::ReplicaAgentFrozen
            | Self::PrimaryAgentKilled
            | Self::PrimaryAgentAndPostmasterKilled
            | Self::PrimaryKilled
            | Self::ReplicaKilled
            | Self::AllKilled => {
                if chance.below(3) == 0 {
                    2 + chance.below(TTL - 8)
                } else {
                    TTL + 2 + chance.below(12)
                }
            }
        };
        Duration::from_secs(seconds)
    }
}

/// One fault of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub fault: Fault,
    pub hold: Duration,
    /// Which of the replicas, counted from the primary: 1 is the next node.
    pub replica: u64,
    /// Where there are several things to heal: the last first.
    pub reversed: bool,
    /// Between two things that are healed.
    pub between: Duration,
    /// Wall clocks: where to.
    pub clock_ahead_secs: i64,
    /// Whether the next fault waits for a whole healthy cluster, or only for writes.
    pub settle: bool,
}

/// The endless schedule of a seed.
#[derive(Clone, Debug)]
pub struct Schedule {
    chance: Chance,
    faults: Vec<Fault>,
    deck: Vec<Fault>,
}

impl Schedule {
    /// Deals only `faults`.
    pub fn new(seed: u64, faults: Vec<Fault>) -> Self {
        Self { chance: Chance(seed), faults, deck: Vec::new() }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.faults);
            for last in (1..self.deck.len()).rev() {
                let other = self.chance.below(last as u64 + 1) as usize;
                self.deck.swap(last, other);
            }
        }
        let fault = self.deck.pop()?;
        let chance = &mut self.chance;
        let (hold, replica) = (fault.hold(chance), 1 + chance.below(64));
        let reversed = chance.below(2) == 1;
        let between = Duration::from_millis(chance.below(6_000));
        let clock_ahead_secs = [-86_400, -3_600, -40, 40, 3_600, 86_400][chance.below(6) as usize];
        let settle = chance.below(3) > 0;
        Some(Step { fault, hold, replica, reversed, between, clock_ahead_secs, settle })
    }
}

/// splitmix64: a schedule must be the same on every machine and in every year.
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, count: usize) -> Vec<Step> {
        Schedule::new(seed, Fault::ALL.to_vec()).take(count).collect()
    }

    #[test]
    fn the_same_seed_is_the_same_schedule() {
        assert_eq!(first(7, 200), first(7, 200));
        assert_ne!(first(7, 200), first(8, 200));
    }

    #[test]
    fn every_deck_holds_every_fault_once() {
        let mut dealt: Vec<Fault> = first(3, 50).into_iter().map(|s| s.fault).collect();
        dealt.sort_unstable();
        let expected: Vec<Fault> = Fault::ALL.into_iter().flat_map(|f| [f, f]).collect();
        assert_eq!(dealt, expected);
    }

    #[test]
    fn names_are_different() {
        let mut names: Vec<&str> = Fault::ALL.iter().map(|f| f.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Fault::ALL.len());
    }
}
