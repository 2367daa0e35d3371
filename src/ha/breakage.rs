//! Deliberate faults, so that the simulator can prove that it finds them.
//!
//! A normal build has none of them: `broken` is the constant `false` there. With the feature
//! `breakages` a test switches one on for its own thread.

/// One broken rule. Each is consulted at the one place where the rule lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breakage {
    /// Promotes although the store did not give the key. (INV-3)
    PromoteWithoutLock,
    /// Goes on as primary after the lease ended, and never arms the fence. (HA-304)
    IgnoreLeaseDeadline,
    /// Counts the lease from the answer and believes it for longer than the ttl. (INV-28)
    BeliefTooLong,
    /// Gives the key up before PostgreSQL stopped. (INV-23)
    ReleaseBeforeStopped,
    /// A replica far behind may win. (HA-095 a)
    LagIsIgnored,
    /// Does not ask whether a peer is still a primary or further ahead. (HA-095 d, e)
    RaceAsksNobody,
    /// A primary whose timeline is older than the cluster's may take the key. (HA-087)
    StalePrimaryRaces,
    /// A diverged former primary follows without rewind. (HA-047)
    SkipRewind,
    /// Goes on as primary although the store names another leader. (HA-065)
    KeepAfterLoss,
    /// A silent store is read as a lost lock. (INV-31)
    UnreachableIsLost,
    /// A node tagged nofailover takes part in the race. (HA-089)
    NofailoverRaces,
    /// Works on a data directory of another cluster. (HA-036)
    IgnoreSystemId,
    /// Reads something that no port answered. (INV-32)
    HiddenInput,
    /// Keeps the watchdog alive although the store did not answer. (HA-172)
    KeepAliveWithoutLock,
    /// Disables the watchdog when a stop begins, not when nothing can be written any more. (HA-104)
    WatchdogOffTooEarly,
    /// Promotes without the watchdog that is required. (HA-100)
    PromoteUnwatched,
    /// Takes part in a race without the watchdog that is required. (HA-091)
    UnwatchedRaces,
    /// What is scheduled is done at once. (HA-074, INV-24)
    ScheduleIgnoresTheClock,
    /// A scheduled restart is done although the server was restarted meanwhile. (HA-078)
    ScheduleOutlivesItsServer,
    /// A primary is started again although its lease ended during the restart. (INV-19)
    RestartOutlivesTheLease,
    /// A restart goes on although the lock is gone. (HA-163)
    RestartIgnoresTheLoss,
    /// An empty `initialize` is taken over without waiting. (HA-308, INV-22)
    BootstrapIsTakenOver,
    /// The leader throws its own data away when asked to reinitialise. (HA-055, INV-20)
    LeaderReinitializes,
    /// Goes on without store although a member refused. (INV-16)
    OneRefusalIsEnough,
    /// Races although a primary without store was promised not to. (INV-15)
    RaceDespitePromise,
    /// Promises it while asking for the key itself. (INV-15)
    PromiseWhileRacing,
    /// Counts what the members said from their answers, and for longer. (HA-154)
    FailsafeBeliefTooLong,
    /// A node that is not in `/failsafe` takes part in the race. (HA-092)
    RaceOutsideFailsafe,
    /// In pause a primary without the lock is demoted. (INV-27)
    PauseDemotes,
    /// In pause a stopped PostgreSQL is started. (INV-27)
    PauseStarts,
    /// Commits stop waiting for a standby before `/sync` stops naming it. (HA-098, HA-207)
    NamesShrinkFirst,
    /// `/sync` names a standby before commits wait for it. (HA-098, HA-208)
    RecordGrowsFirst,
    /// A standby counts before it has caught up. (HA-097, HA-211)
    CountUnconfirmed,
    /// The record asks for one vote less than it takes. (HA-205)
    QuorumOffByOne,
    /// A race in quorum mode does not count votes. (HA-095 g)
    VotesAreIgnored,
    /// A member that `/sync` does not name may lead. (HA-094)
    AnybodyIsSynchronous,
    /// Promotes with the record of the former leader. (HA-099)
    PromoteUnprepared,
    /// Promotes the leader of a standby cluster. (HA-110)
    StandbyClusterPromotes,
    /// Does what cannot be taken back, however long ago it looked. (HA-325)
    ActsOnOldLooks,
    /// Keeps a leader key that came back after it was given up. (HA-326)
    KeepsALateKey,
    /// Leaves the watchdog armed that a killed agent armed. (HA-179)
    WatchdogIsLeft,
}

#[cfg(feature = "breakages")]
mod switch {
    use super::Breakage;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Breakage>> = const { Cell::new(None) };
    }

    /// Breaks one rule on this thread, or mends all.
    pub fn set_broken(breakage: Option<Breakage>) {
        BROKEN.with(|cell| cell.set(breakage));
    }

    pub fn broken(breakage: Breakage) -> bool {
        BROKEN.with(|cell| cell.get() == Some(breakage))
    }

    /// Another number each time: what no port answered.
    pub fn hidden() -> u64 {
        static COUNTED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        COUNTED.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(feature = "breakages")]
pub use switch::{broken, hidden, set_broken};

/// Never, in a normal build.
#[cfg(not(feature = "breakages"))]
pub const fn broken(_: Breakage) -> bool {
    false
}

/// Nothing, in a normal build.
#[cfg(not(feature = "breakages"))]
pub const fn hidden() -> u64 {
    0
}
