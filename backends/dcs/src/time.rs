//! Time as everything below and above the stores counts it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Milliseconds on one machine's clock that goes on during suspend (`CLOCK_BOOTTIME`).
/// Never a wall clock; never another machine's. In the simulator: virtual time. (HA-028, DCS-310)
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// Later by `ms` milliseconds.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Earlier by `ms` milliseconds; never before zero.
    pub fn minus(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }

    /// Milliseconds passed since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The clock of [`Millis`] on this machine, now.
pub fn boottime() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Millis(seconds * 1000 + nanos / 1_000_000)
}

/// The moment after which an answer is of no use. A function that takes one returns by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Deadline(pub Millis);

impl Deadline {
    /// `ms` milliseconds from now, on the real clock. The core makes its deadlines from its own
    /// `Clock` instead.
    pub fn in_ms(ms: u64) -> Self {
        Self(boottime().plus(ms))
    }

    /// What is left of it on the real clock; zero when it has passed.
    pub fn left(self) -> Duration {
        Duration::from_millis(self.0.since(boottime()))
    }

    pub fn earlier(self, other: Self) -> Self {
        self.min(other)
    }
}
