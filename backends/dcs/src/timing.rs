//! The rhythm of the loop and the length of the lease.

use serde::{Deserialize, Serialize};

/// The rhythm of the loop, in whole seconds, as the dynamic configuration gives it and as
/// [`Timing::adjusted`] corrected it. `/config` itself is never rewritten. (HA-021)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How long the leader key lives without renewal.
    pub ttl: u32,
    /// The longest time between two turns.
    pub loop_wait: u32,
    /// The budget of one operation on the store, retries included.
    pub retry_timeout: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { ttl: 30, loop_wait: 10, retry_timeout: 10 }
    }
}

impl Timing {
    /// What Patroni raises a shorter `ttl` to.
    pub const PATRONIS_SHORTEST: u32 = 20;
    /// The shortest `ttl` that our members count with, among themselves. (HA-324)
    pub const SHORTEST: u32 = 3;

    /// The values in force for these wishes, where Patroni's members may be: minima raised, then the
    /// lease made to hold one turn and two full retries. (HA-021, CFG-037)
    pub fn adjusted(self) -> Self {
        self.adjusted_for(Self::PATRONIS_SHORTEST)
    }

    /// The same with another minimum for `ttl`, in seconds, of at least [`Timing::SHORTEST`]. (HA-324)
    pub fn adjusted_for(self, shortest: u32) -> Self {
        let ttl = self.ttl.max(shortest).max(Self::SHORTEST);
        let loop_wait = self.loop_wait.max(1);
        let retry_timeout = self.retry_timeout.max(3);
        if 1 + 2 * u64::from(retry_timeout) > u64::from(ttl) {
            Self { ttl, loop_wait: 1, retry_timeout: (ttl - 1) / 2 }
        } else if u64::from(loop_wait) + 2 * u64::from(retry_timeout) > u64::from(ttl) {
            Self { ttl, loop_wait: ttl - 2 * retry_timeout, retry_timeout }
        } else {
            Self { ttl, loop_wait, retry_timeout }
        }
    }

    pub fn ttl_ms(self) -> u64 {
        u64::from(self.ttl) * 1000
    }

    pub fn loop_wait_ms(self) -> u64 {
        u64::from(self.loop_wait) * 1000
    }

    pub fn retry_timeout_ms(self) -> u64 {
        u64::from(self.retry_timeout) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-023: whatever was wished for, one turn and two full retries fit into the lease.
    #[test]
    fn a_turn_and_two_retries_always_fit() {
        for shortest in [3, 20] {
            for ttl in (0..80).chain([200, u32::MAX]) {
                for loop_wait in [0, 1, 5, 10, 30, u32::MAX] {
                    for retry_timeout in [0, 1, 3, 10, 40, u32::MAX] {
                        let got = Timing { ttl, loop_wait, retry_timeout }.adjusted_for(shortest);
                        let needs = u64::from(got.loop_wait) + 2 * u64::from(got.retry_timeout);
                        assert!(needs <= u64::from(got.ttl) && got.ttl >= shortest, "{got:?}");
                        assert!(got.loop_wait >= 1 && got.retry_timeout >= 1, "{got:?}");
                    }
                }
            }
        }
    }

    /// Proves HA-324 (the values) and DCS-312: what a cluster of ours makes of a short ttl.
    #[test]
    fn a_short_lease_holds_a_turn_and_two_retries() {
        for (shortest, wished, expected) in [
            (3, (3, 10, 10), (3, 1, 1)),
            (3, (1, 1, 1), (3, 1, 1)),
            (3, (5, 1, 3), (5, 1, 2)),
            (3, (10, 5, 3), (10, 4, 3)),
            (3, (30, 10, 10), (30, 10, 10)),
            (20, (3, 10, 10), (20, 1, 9)),
            (0, (2, 1, 1), (3, 1, 1)),
        ] {
            let (ttl, loop_wait, retry_timeout) = wished;
            let got = Timing { ttl, loop_wait, retry_timeout }.adjusted_for(shortest);
            assert_eq!(
                (got.ttl, got.loop_wait, got.retry_timeout),
                expected,
                "{shortest} {wished:?}"
            );
        }
    }

    /// Proves HA-021, CFG-037, CFG-260, CFG-261, CFG-262.
    #[test]
    fn the_lease_holds_a_turn_and_two_retries() {
        for ((ttl, loop_wait, retry_timeout), expected) in [
            ((30, 10, 10), (30, 10, 10)),
            ((20, 10, 10), (20, 1, 9)),
            ((25, 10, 10), (25, 5, 10)),
            ((15, 0, 1), (20, 1, 3)),
            ((20, 20, 3), (20, 14, 3)),
            ((u32::MAX, u32::MAX, u32::MAX), (u32::MAX, 1, (u32::MAX - 1) / 2)),
        ] {
            let got = Timing { ttl, loop_wait, retry_timeout }.adjusted();
            assert_eq!((got.ttl, got.loop_wait, got.retry_timeout), expected, "{ttl} {loop_wait}");
            assert_eq!(got, got.adjusted(), "adjusting twice changes nothing");
        }
    }
}
