//! The store does not answer. (section 13 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::lease::Reserve;
use crate::ha::task::{Demotion, Kind, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use crate::ha::{failsafe, leader};

/// How soon members that did not agree are asked again, while the lease lives.
const ASK_AGAIN_MS: u64 = 1_000;

/// A primary that restarts in the outage is one that goes on: the members are asked for it as for one that
/// runs, or its restart ends with its lease. (HA-154, HA-163; the simulator, seed 4144)
pub async fn during_a_task(turn: &mut Turn<'_>) {
    let primary = turn.memory.task.is_some_and(|task| match task.kind {
        Kind::StartAsPrimary | Kind::Restart { primary: true } => true,
        Kind::Bootstrap
        | Kind::Clone
        | Kind::Follow
        | Kind::Promote
        | Kind::Demote
        | Kind::Rewind
        | Kind::SingleUser
        | Kind::CopySlots
        | Kind::Restart { primary: false } => false,
    });
    let Lock::Unseen { until: Some(until) } = turn.lock else { return };
    let asks = primary
        && turn.settings.failsafe_mode
        && !turn.memory.task_cancelled
        && !turn.demotion_is_due(until);
    if !asks {
        return;
    }
    let agreed = failsafe::everybody_agrees(turn, until).await;
    // Asking took its time, and the keeper may have heard from the store meanwhile.
    turn.lock = Lock::Unseen { until: turn.lease.until(turn.now()) };
    if !agreed {
        let soon = turn.now().plus(ASK_AGAIN_MS);
        turn.wake_at(soon);
    }
}

/// The store does not answer, or did not confirm the lock in time. (HA-150 … HA-153, HA-304)
pub async fn store_is_silent(turn: &mut Turn<'_>) -> Decided {
    if turn.settings.pause {
        turn.because("HA-150", "in pause a silent store changes nothing");
        return Decided::line("DCS is not accessible");
    }
    if !turn.pg.alive {
        return Decided::line("DCS is not accessible"); // HA-151
    }
    if !turn.pg.is_primary {
        turn.because("HA-152", "a standby waits for the store");
        if turn.settings.failsafe_mode {
            failsafe::keep_slots_of_promise(turn).await;
        }
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
    if turn.settings.failsafe_mode
        && let Some(until) = until
        && !turn.demotion_is_due(until)
        && failsafe::everybody_agrees(turn, until).await
    {
        turn.lock = turn.confirmed();
        turn.keep_slots().await;
        return Decided::line(
            "continue to run as a leader because failsafe mode is enabled and all members are \
             accessible",
        );
    }
    // Asking took its time, and the keeper may have heard from the store meanwhile.
    let until = until.and_then(|_| turn.lease.until(turn.now()));
    match until {
        Some(until) if !turn.demotion_is_due(until) => {
            let left = until.since(turn.now());
            turn.because("HA-304", format!("the lease lives for {left} ms more"));
            let at = until.minus(Reserve::of(turn.settings.timing).demote);
            let soon = turn.now().plus(ASK_AGAIN_MS);
            let at = if turn.settings.failsafe_mode { at.min(soon) } else { at };
            Decided::line("DCS is not accessible; I am the leader until my lease ends").again_at(at)
        }
        Some(_) | None => {
            turn.because("HA-153", "the lease ends and the store does not answer");
            let line = "demoting self because DCS is not accessible and I was a leader";
            Decided::task(line, Task::Demote(Demotion::Offline { until }))
        }
    }
}
