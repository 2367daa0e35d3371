//! When something that was asked for a later moment is due. (HA-074)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::turn::Turn;
use chrono::{DateTime, FixedOffset};

/// A schedule, looked at now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// In so many milliseconds of the wall clock.
    Later(u64),
    Now,
    /// So long past that whoever asked does not expect it any more.
    Stale,
    /// A paused cluster does nothing by itself.
    Paused,
}

/// Never early, and at most one and a half turns late. `ahead_ms`: how far away the moment is, on the
/// wall clock; negative when it has passed.
pub fn due(ahead_ms: i64, loop_wait_ms: u64, paused: bool) -> Due {
    if broken(Breakage::ScheduleIgnoresTheClock) && !paused {
        return Due::Now;
    }
    let window = i64::try_from(loop_wait_ms * 3 / 2).unwrap_or(i64::MAX);
    // Whole seconds, as the other members of a mixed cluster count.
    let window = window / 1000 * 1000;
    if paused {
        Due::Paused
    } else if ahead_ms > 0 {
        Due::Later(ahead_ms.unsigned_abs())
    } else if ahead_ms < -window {
        Due::Stale
    } else {
        Due::Now
    }
}

/// As [`due`], for the settings of this turn; a later one wakes the next turn at its moment.
pub fn look(turn: &mut Turn<'_>, at: &DateTime<FixedOffset>) -> Due {
    let ahead = at.timestamp_millis().saturating_sub(wall_ms(turn));
    let due = due(ahead, turn.settings.timing.loop_wait_ms(), turn.settings.pause);
    if let Due::Later(ms) = due {
        let at = turn.now().plus(ms);
        turn.wake_at(at);
    }
    due
}

fn wall_ms(turn: &Turn<'_>) -> i64 {
    turn.ports.clock.wall().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-074 (the window), INV-24 (never outside it).
    #[test]
    fn the_window_of_a_schedule() {
        for (ahead_ms, loop_wait_ms, paused, expected) in [
            (60_000, 10_000, false, Due::Later(60_000)),
            (1, 10_000, false, Due::Later(1)),
            (0, 10_000, false, Due::Now),
            (-15_000, 10_000, false, Due::Now),
            (-15_001, 10_000, false, Due::Stale),
            (-1_000, 1_000, false, Due::Now),
            (-1_001, 1_000, false, Due::Stale),
            (i64::MIN, 10_000, false, Due::Stale),
            (0, 10_000, true, Due::Paused),
            (-60_000, 10_000, true, Due::Paused),
        ] {
            assert_eq!(due(ahead_ms, loop_wait_ms, paused), expected, "{ahead_ms} {loop_wait_ms}");
        }
    }
}
