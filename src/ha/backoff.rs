//! Nobody leads, and perhaps the primary is only out of sight: does the race wait? (CFG-420)

use crate::ha::memory::Leaderless;
use crate::ha::ports::{Server, Standby};
use crate::ha::schedule::{self, Due};
use crate::ha::turn::{Decided, Turn};
use hathi_dcs::Millis;

/// What a standby sees of a cluster without a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How long nobody has led.
    pub for_ms: u64,
    pub wal_arrives: bool,
}

/// How long the race waits from now on; `None`: not at all. The first `loop_wait` in any case, then
/// for as long as WAL arrives; never longer than the backoff.
pub fn waits(seen: Seen, backoff_ms: u64, loop_wait_ms: u64) -> Option<u64> {
    let left = backoff_ms.saturating_sub(seen.for_ms);
    let first = loop_wait_ms.saturating_sub(seen.for_ms);
    match (left, first, seen.wal_arrives) {
        (0, _, _) | (_, 0, false) => None,
        (left, 0, true) => Some(left.min(LOOK_MS)),
        (left, first, _) => Some(left.min(first)),
    }
}

/// Between two looks at the position that tell whether WAL arrives.
const LOOK_MS: u64 = 1_000;

/// Postpones the race on a standby; not for what an operator asked for, with a candidate or without: the
/// former leader was told to stop. Nor does a primary wait.
pub fn postpone(turn: &mut Turn<'_>) -> Option<Decided> {
    let backoff_ms = u64::from(turn.settings.primary_race_backoff) * 1000;
    let Server::Standby(standby) = turn.pg.server.clone() else { return None };
    let asked = turn.view.pending_failover().map(|request| request.value.clone());
    let asked = asked.is_some_and(|request| {
        let due = |at| match schedule::look(turn, at) {
            Due::Now => true,
            Due::Later(_) | Due::Stale | Due::Paused => false,
        };
        request.candidate.is_some() || request.scheduled_at.as_ref().is_none_or(due)
    });
    if backoff_ms == 0 || asked || turn.settings.standby_cluster.is_some() {
        return None;
    }
    let now = turn.now();
    let seen = look(turn, &standby, now);
    let wait_ms = waits(seen, backoff_ms, turn.settings.timing.loop_wait_ms())?;
    turn.because("CFG-420", format!("the race waits for {wait_ms} ms"));
    let line = "postponing the leader race: primary_race_backoff";
    Some(Decided::line(line).again_at(now.plus(wait_ms)))
}

/// How long this standby has seen nobody lead.
pub fn leaderless_ms(turn: &mut Turn<'_>, standby: &Standby) -> u64 {
    let now = turn.now();
    look(turn, standby, now).for_ms
}

fn look(turn: &mut Turn<'_>, standby: &Standby, now: Millis) -> Seen {
    let lsn = standby.lsn();
    let begins = Leaderless { since: now, looked_at: now, lsn, wal_arrives: standby.streaming };
    let memory = turn.memory.leaderless.get_or_insert(begins);
    if now.since(memory.looked_at) >= LOOK_MS {
        memory.wal_arrives = standby.streaming && lsn > memory.lsn;
        memory.looked_at = now;
        memory.lsn = lsn;
    }
    Seen { for_ms: now.since(memory.since), wal_arrives: memory.wal_arrives }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves CFG-420 (the table).
    #[test]
    fn how_long_the_race_waits() {
        let seen = |for_ms, wal_arrives| Seen { for_ms, wal_arrives };
        for (seen, backoff, loop_wait, wait) in [
            (seen(0, false), 30_000, 10_000, Some(10_000)),
            (seen(4_000, false), 30_000, 10_000, Some(6_000)),
            (seen(10_000, false), 30_000, 10_000, None),
            (seen(10_000, true), 30_000, 10_000, Some(1_000)),
            (seen(29_500, true), 30_000, 10_000, Some(500)),
            (seen(30_000, true), 30_000, 10_000, None),
            (seen(0, true), 5_000, 10_000, Some(5_000)),
            (seen(0, true), 0, 10_000, None),
        ] {
            assert_eq!(waits(seen, backoff, loop_wait), wait, "{seen:?} {backoff}");
        }
    }
}
