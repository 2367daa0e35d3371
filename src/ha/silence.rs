//! The store does not answer. (section 13 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::leader;
use crate::ha::lease::Reserve;
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Lock, Turn};

/// The store does not answer, or did not confirm the lock in time. (HA-150 … HA-153, HA-304)
pub fn store_is_silent(turn: &mut Turn<'_>) -> Decided {
    if turn.settings.pause {
        turn.because("HA-150", "in pause a silent store changes nothing");
        return Decided::line("PAUSE: DCS is not accessible");
    }
    if !turn.pg.alive {
        return Decided::line("DCS is not accessible"); // HA-151
    }
    if !turn.pg.is_primary {
        turn.because("HA-152", "a standby waits for the store");
        return Decided::line("DCS is not accessible; I am a secondary");
    }
    let until = match turn.lock {
        Lock::Unseen { until } => until,
        Lock::Mine { until } => Some(until),
        Lock::Free | Lock::Other { .. } | Lock::Lost { .. } => None,
    };
    if broken(Breakage::IgnoreLeaseDeadline) {
        return Decided::line("DCS is not accessible (broken on purpose)");
    }
    if broken(Breakage::UnreachableIsLost) {
        return leader::lost(turn, None);
    }
    match until {
        Some(until) if !turn.demotion_is_due(until) => {
            let left = until.since(turn.now());
            turn.because("HA-304", format!("the lease lives for {left} ms more"));
            let at = until.minus(Reserve::of(turn.settings.timing).demote);
            Decided::line("DCS is not accessible; I am the leader until my lease ends").again_at(at)
        }
        Some(_) | None => {
            turn.because("HA-153", "the lease ends and the store does not answer");
            let line = "demoting self because DCS is not accessible and I was a leader";
            Decided::task(line, Task::Demote(Demotion::Offline { until }))
        }
    }
}
