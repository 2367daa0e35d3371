//! With the lock, or just without it any more. (sections 7, 9 and 10 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::lease::Reserve;
use crate::ha::manual;
use crate::ha::memory::{AfterPromotion, Running};
use crate::ha::ports::{Server, Stop};
use crate::ha::settings::Settings;
use crate::ha::sync::{self, promotion::Prepared};
use crate::ha::task::{Demotion, Kind, Task, immediate, within};
use crate::ha::turn::{Decided, Lock, Turn};
use crate::ha::{failsafe, history, lineage, look, request, slots, standby};
use hathi_dcs::{Deadline, Lsn, MemberName, Role, Timeline};

/// The store says that the lock is gone, with or without a new owner. (HA-063)
pub fn lost(turn: &mut Turn<'_>, holder: Option<MemberName>) -> Decided {
    if !turn.pg.is_primary {
        return Decided::line("not promoting because failed to update leader lock in DCS");
    }
    turn.because("HA-063", format!("the lock belongs to {holder:?}"));
    turn.memory.rewind.ask();
    if broken(Breakage::KeepAfterLoss) {
        return Decided::line("kept on purpose");
    }
    let line = "demoted self because failed to update leader lock in DCS";
    Decided::task(line, Task::Demote(Demotion::LostLock))
}

/// HA-062: the lock is mine and PostgreSQL runs.
pub async fn with_lock(turn: &mut Turn<'_>) -> Decided {
    write_status(turn).await;
    if !turn.time_is_up() {
        failsafe::write_map(turn).await;
    }
    if turn.time_is_up() {
        return no_time(turn);
    }
    if let Some(decided) = dead_disk(turn).await {
        return decided;
    }
    if let Some(decided) = request::on_owner(turn).await {
        return decided;
    }
    if standby::is_in_force(turn) {
        return standby::lead(turn).await;
    }
    stop_reserve(turn);
    checkpoint_of_a_former_life(turn).await;
    checkpoint_after_promotion(turn);
    enforce_primary(turn).await
}

/// Nothing reaches the disk of this primary any more. Its processes may not even die; so the key is not
/// given up but runs out, and the guard does what can be done before that. (HA-314)
async fn dead_disk(turn: &mut Turn<'_>) -> Option<Decided> {
    let stalls_ms = turn.pg.disk_stalls_ms;
    if !is_dead(&turn.settings, stalls_ms) || turn.settings.pause || !turn.pg.is_primary {
        return None;
    }
    let why = format!("a write to the data directory has not ended for {stalls_ms} ms");
    turn.because("HA-314", why);
    if !someone_can_take_over(turn).await {
        return None;
    }
    turn.lease.forget();
    turn.memory.rewind.ask();
    let line = "demoting self because the disk of the data directory does not answer";
    Some(Decided::task(line, Task::Demote(Demotion::LostLock)))
}

pub fn is_dead(settings: &Settings, stalls_ms: u64) -> bool {
    settings.disk_timeout_ms > 0 && stalls_ms >= settings.disk_timeout_ms
}

/// Does the lease leave the time that a fast stop takes here? (HA-321)
fn stop_reserve(turn: &mut Turn<'_>) {
    let Some(took) = turn.pg.fast_stop_ms else { return };
    let reserve = Reserve::of(turn.settings.timing);
    let left = reserve.demote - reserve.immediate;
    if took <= left || turn.memory.slow_stop_said == Some(took) {
        return;
    }
    turn.memory.slow_stop_said = Some(took);
    let enough = took.saturating_mul(12).div_ceil(1000);
    turn.because(
        "HA-321",
        format!(
            "a fast stop took {took} ms here, and the lease leaves {left} ms for it: who is demoted by a \
             silent store is stopped immediately; a ttl of {enough} s would do"
        ),
    );
}

/// The store is slow, and the lease runs down: the next turn is about that. (HA-304)
fn no_time(turn: &mut Turn<'_>) -> Decided {
    turn.because("HA-304", "the lease runs down while the store takes its time");
    let at = turn.now();
    Decided::line(format!("I am ({}), the leader, and the store is slow", turn.me())).again_at(at)
}

/// HA-066: after the renewal, only if changed, and only with a position.
pub async fn write_status(turn: &mut Turn<'_>) {
    if let Some(status) = slots::status(&turn.settings, &turn.pg, &turn.memory.slots_seen) {
        let by = turn.store_deadline();
        if let Err(error) = turn.ports.dcs.write_status(&status, by).await {
            turn.because("HA-066", format!("status was not written: {error}"));
        }
    }
}

/// HA-100.
pub async fn enforce_primary(turn: &mut Turn<'_>) -> Decided {
    if let Err(why) = watched(turn) {
        return unwatched(turn, &why).await;
    }
    if turn.time_is_up() {
        return no_time(turn);
    }
    let me = turn.me().clone();
    if !standby::arm(turn).await {
        return Decided::line("not promoting: the leader key could not be confirmed");
    }
    match &turn.pg.server {
        Server::Primary { timeline, .. } => {
            let timeline = *timeline;
            if turn.pg.role != Role::Primary {
                turn.ports.postgres.set_role(Role::Primary);
                turn.pg.role = Role::Primary;
            }
            let again = sync::pass::keep(turn).await;
            if !turn.time_is_up() {
                write_history(turn, timeline).await;
            }
            let line = Decided::line(format!("no action. I am ({me}), the leader with the lock"));
            match again {
                Some(at) => line.again_at(at),
                None => line,
            }
        }
        Server::Silent(why) => {
            let why = why.clone();
            turn.because("HA-017", format!("PostgreSQL does not answer: {why}"));
            Decided::line(format!("postgres communication error; I am ({me}), the leader"))
        }
        Server::Down | Server::Starting => {
            Decided::line(format!("I am ({me}), the leader, and PostgreSQL is starting"))
        }
        Server::Standby(_) => promote(turn).await,
    }
}

/// Arms the watchdog, unless it runs, or the cluster is paused. (HA-100 step 1, HA-130, HA-172)
pub fn watched(turn: &Turn<'_>) -> Result<(), String> {
    if turn.settings.pause {
        return Ok(());
    }
    let until = match &turn.lock {
        Lock::Mine { until } => *until,
        Lock::Free | Lock::Other { .. } | Lock::Lost { .. } | Lock::Unseen { .. } => turn.now(),
    };
    if broken(Breakage::PromoteUnwatched) && !turn.pg.is_primary {
        return Ok(());
    }
    turn.ports.watchdog.activate(until)
}

/// A required watchdog does not work: nobody is a primary here. (HA-100 step 1)
async fn unwatched(turn: &mut Turn<'_>, why: &str) -> Decided {
    turn.because("HA-100", format!("the watchdog is required and does not work: {why}"));
    if turn.pg.is_primary {
        turn.memory.rewind.ask();
        let line = "Demoting self because watchdog could not be activated";
        return Decided::task(line, Task::Demote(Demotion::Immediate));
    }
    turn.give_key_up().await;
    Decided::line("Not promoting self because watchdog could not be activated")
}

/// With the key nobody writes these but me: what differs is from before I got it. A leader says how far
/// it is, and a promotion leaves a row in the history. (INV-8, INV-17)
fn somebody_led_since_the_race(turn: &Turn<'_>) -> bool {
    turn.memory
        .raced
        .as_ref()
        .is_some_and(|raced| raced.status != turn.view.status || raced.history != turn.view.history)
}

async fn promote(turn: &mut Turn<'_>) -> Decided {
    if !turn.ports.promises.claim(turn.now()) {
        // The key may have come late: to a race of before the promise. (HA-103)
        turn.because("HA-103", "a primary without store was promised that I do not lead");
        let by = turn.store_deadline();
        let _ = turn.lease.release(turn.ports, None, by).await;
        turn.memory.want_latest = true;
        return Decided::line("released leader key: another member goes on as the leader");
    }
    if let Some(why) = turn.ports.fence.broken() {
        turn.because("HA-091", format!("the guard does not work: {why}"));
        turn.give_key_up().await;
        return Decided::line("released leader key: PostgreSQL could not be fenced here");
    }
    if somebody_led_since_the_race(turn) || failsafe::outside_the_map(turn) {
        turn.because("HA-080", "somebody led after I was found fit to lead");
        turn.memory.raced = None;
        let by = turn.store_deadline();
        let _ = turn.lease.release(turn.ports, None, by).await;
        turn.memory.want_latest = true;
        return Decided::line("released leader key: the cluster went on without me")
            .again_at(turn.now());
    }
    match sync::promotion::prepare(turn).await {
        Prepared::Ready => {}
        Prepared::Postponed => {
            let line = "postponing promotion because synchronous replication is not prepared";
            return Decided::line(line).again_at(turn.now().plus(500));
        }
        Prepared::RaceAgain => {
            let by = turn.store_deadline();
            let _ = turn.lease.release(turn.ports, None, by).await;
            turn.memory.want_latest = true;
            return Decided::line("released leader key: the synchronous members changed");
        }
    }
    // What was prepared may have taken long.
    if let Some(decided) = look::first(turn).await {
        return decided;
    }
    if turn.lease.until(turn.now()).is_none() {
        return Decided::line("the lease ended before the promotion");
    }
    turn.memory.after_promotion = AfterPromotion::CheckpointDue;
    let me = turn.me().clone();
    let line = format!("promoted self to leader by acquiring session lock; I am ({me})");
    Decided::task(line, Task::Promote)
}

/// The agent that promoted may have died before the checkpoint, or an operator promoted in pause: said
/// before anybody can take this primary for one that was checkpointed. (PG-065, INV-30)
pub async fn checkpoint_of_a_former_life(turn: &mut Turn<'_>) {
    let Server::Primary { timeline, .. } = turn.pg.server else { return };
    if turn.memory.checkpoint_judged == timeline {
        return;
    }
    turn.memory.checkpoint_judged = timeline;
    let by = turn.deadline(1_000);
    let control = turn.ports.postgres.control(by).await;
    if control.is_none_or(|control| control.checkpoint_timeline != timeline) {
        turn.memory.after_promotion = AfterPromotion::CheckpointDue;
    }
}

/// PG-065: in the background, once.
fn checkpoint_after_promotion(turn: &mut Turn<'_>) {
    let Server::Primary { .. } = turn.pg.server else { return };
    if turn.memory.after_promotion != AfterPromotion::CheckpointDue {
        return;
    }
    turn.because("PG-065", "checkpoint after promotion");
    turn.memory.after_promotion = AfterPromotion::CheckpointRuns;
}

/// HA-120.
async fn write_history(turn: &mut Turn<'_>, timeline: Timeline) {
    let corrected = lineage::corrected(turn, timeline);
    let stale = corrected.is_some() || history::is_stale(&turn.view.history, timeline);
    if timeline == Timeline(0) || !stale {
        return;
    }
    let stored = corrected.unwrap_or_else(|| turn.view.history.clone());
    let local = if timeline == Timeline(1) {
        Vec::new()
    } else {
        let by = Deadline(turn.now().plus(1_000));
        match turn.ports.postgres.local_history(timeline, by).await {
            Some(ends) => ends,
            None => return,
        }
    };
    let max = turn.settings.max_timelines_history;
    let new = history::merged(&stored, &local, &turn.settings.me, max);
    if new == turn.view.history {
        return;
    }
    turn.because("HA-120", format!("history now ends before timeline {timeline}"));
    let by = turn.store_deadline();
    // Repeated by the next turn.
    let _ = turn.ports.dcs.write_history(&new, by).await;
}

pub fn my_lsn(turn: &Turn<'_>) -> Lsn {
    match &turn.pg.server {
        Server::Primary { lsn, .. } => *lsn,
        Server::Standby(standby) => standby.lsn(),
        // A dead primary compares with what it last told the cluster. (HA-076)
        Server::Down | Server::Starting | Server::Silent(_) => turn.view.status.optime,
    }
}

/// Is there anybody to fail over to? (HA-076)
pub async fn someone_can_take_over(turn: &mut Turn<'_>) -> bool {
    let me = turn.me().clone();
    let needs = manual::needs(&turn.settings, &turn.view, None, my_lsn(turn));
    let search = manual::search(turn.ports, &turn.view, Some(&me), needs).await;
    if search.found.is_none() {
        turn.because("HA-076", format!("nobody can take over ({})", search.reasons()));
    }
    search.found.is_some()
}

/// HA-160 … HA-164, and the hard deadline, while a task owns PostgreSQL.
pub async fn task_runs(turn: &mut Turn<'_>, task: Running, line: Decided) -> Decided {
    let until = match &turn.lock {
        Lock::Mine { until } => Some(*until),
        Lock::Unseen { until } => *until,
        Lock::Free | Lock::Other { .. } | Lock::Lost { .. } => None,
    };
    match loss_means(task.kind) {
        OnLoss::GoesOn if task.kind == Kind::SingleUser => crash_recovery(turn, task, line).await,
        OnLoss::GoesOn => line, // HA-161, HA-164
        OnLoss::Cancel | OnLoss::CancelAndStop if turn.settings.pause => line,
        ends @ (OnLoss::Cancel | OnLoss::CancelAndStop) => match until {
            Some(until) if !turn.demotion_is_due(until) => {
                line.again_at(until.minus(Reserve::of(turn.settings.timing).demote))
            }
            // Not lost, but nobody confirms it: there is time for a fast stop. (INV-31)
            Some(until) => {
                lost_during(turn, task, ends, within(turn.settings.timing, until));
                line
            }
            None => {
                lost_during(turn, task, ends, immediate());
                line
            }
        },
    }
}

/// What the loss of the lock does to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnLoss {
    /// It makes no primary, or ends one.
    GoesOn,
    /// It has not made a primary yet.
    Cancel,
    /// Its server is a primary, or starts as one.
    CancelAndStop,
}

fn loss_means(kind: Kind) -> OnLoss {
    match kind {
        Kind::Promote => OnLoss::Cancel,
        Kind::StartAsPrimary | Kind::Restart { primary: true } => OnLoss::CancelAndStop,
        Kind::Bootstrap
        | Kind::Clone
        | Kind::Follow
        | Kind::Demote
        | Kind::Rewind
        | Kind::SingleUser
        | Kind::CopySlots
        | Kind::Restart { primary: false } => OnLoss::GoesOn,
    }
}

/// Once; the end of the task wakes the loop. (HA-162, HA-163)
fn lost_during(turn: &mut Turn<'_>, task: Running, ends: OnLoss, how: Stop) {
    if turn.memory.task_cancelled || broken(Breakage::IgnoreLeaseDeadline) {
        return;
    }
    let restart = matches!(task.kind, Kind::Restart { .. });
    if restart && broken(Breakage::RestartIgnoresTheLoss) {
        return;
    }
    turn.memory.task_cancelled = true;
    turn.ports.postgres.cancel();
    if ends == OnLoss::CancelAndStop {
        turn.because("HA-163", format!("the lock was lost during {}; it is stopped", task.name));
        turn.memory.rewind.ask();
        // The signal is sent whether or not the steps are read; the task sees the server end.
        drop(turn.ports.postgres.stop(how));
    } else {
        turn.because("HA-162", format!("the lock was lost during {}; it is cancelled", task.name));
    }
}

/// HA-160: a crash recovery that takes longer than a crashed primary is waited for.
async fn crash_recovery(turn: &mut Turn<'_>, task: Running, line: Decided) -> Decided {
    if !turn.i_own_the_lock() || turn.memory.task_cancelled {
        return line;
    }
    let limit = task.since.plus(u64::from(turn.settings.primary_start_timeout) * 1000);
    if turn.now() < limit {
        return line.again_at(limit);
    }
    if !someone_can_take_over(turn).await {
        return line;
    }
    turn.because("HA-160", "the crash recovery takes too long, and somebody can take over");
    turn.memory.task_cancelled = true;
    turn.memory.release_after_task = true;
    turn.ports.postgres.cancel();
    Decided::line("terminated crash recovery because of startup timeout")
}
