//! PostgreSQL is down, or what it holds has left the leader's history. (section 5)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::follower;
use crate::ha::leader;
use crate::ha::lineage;
use crate::ha::look;
use crate::ha::memory::Rewind;
use crate::ha::ports::{ControlData, ControlState, LocalEnd, SourceHistory, TimelineEnd, Upstream};
use crate::ha::request;
use crate::ha::rewind::{Divergence, diverged};
use crate::ha::standby;
use crate::ha::task::{Renewal, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use hathi_dcs::{Deadline, Role, State};

/// The first turn after a start was ordered. `None`: it runs, or nothing was to be judged. (HA-054)
pub async fn judge_start(turn: &mut Turn<'_>) -> Option<Decided> {
    turn.memory.recovering = false;
    if turn.pg.alive || turn.memory.rewind == Rewind::Needed {
        turn.memory.recovered_in_single_user_mode = false;
        if turn.memory.rewind == Rewind::Succeeded {
            turn.memory.rewind = Rewind::NotAsked;
        }
        return None;
    }
    turn.because("HA-054", "PostgreSQL does not run after it was started");
    turn.ports.watchdog.disable();
    let at = turn.now();
    if !turn.i_own_the_lock() {
        return Some(Decided::line("failed to start postgres").again_at(at));
    }
    if let Some(decided) = look::first(turn).await {
        turn.memory.recovering = true;
        return Some(decided);
    }
    turn.ports.postgres.set_role(Role::Demoted);
    let by = turn.store_deadline();
    let _ = turn.lease.release(turn.ports, None, by).await;
    turn.memory.want_latest = true;
    let line = "removed leader key after trying and failing to start postgres";
    Some(Decided::line(line).again_at(at))
}

/// HA-041 … HA-049.
pub async fn not_running(turn: &mut Turn<'_>) -> Decided {
    let crashed = turn.pg.state.went_by_itself();
    if crashed && turn.pg.state != State::Crashed {
        turn.because("HA-041", "the postmaster is gone");
        turn.ports.postgres.set_state(State::Crashed);
        turn.pg.state = State::Crashed;
    }
    if turn.memory.release_after_task && turn.i_own_the_lock() {
        return give_up_the_key(turn, "stopped the crash recovery to fail over").await; // HA-160
    }
    turn.memory.release_after_task = false;
    let by = Deadline(turn.now().plus(2_000));
    let control = turn.ports.postgres.control(by).await;
    if let Some(control) = &control {
        lineage::note_down(turn, control).await;
    }
    if turn.i_own_the_lock()
        && let Some(decided) = crashed_primary(turn, control.as_ref(), crashed).await
    {
        return decided;
    }
    turn.ports.watchdog.disable(); // HA-044: it is not a primary any more
    if let Some(decided) = left_to_others(turn) {
        return decided;
    }
    if let Some(decided) = single_user(turn, control.as_ref()) {
        return decided;
    }
    if let Lock::Mine { .. } = turn.lock
        && turn.settings.standby_cluster.is_none()
    {
        turn.because("HA-045", "I own the lock; the promotion comes after the start");
        turn.memory.rewind = Rewind::NotAsked;
        turn.memory.recovering = true;
        let task = Task::Follow { upstream: None, restart: false };
        return Decided::task("starting as readonly because i had the session lock", task);
    }
    start_as_standby(turn).await
}

/// HA-042, HA-043.
async fn crashed_primary(
    turn: &mut Turn<'_>,
    control: Option<&ControlData>,
    crashed: bool,
) -> Option<Decided> {
    let settings = turn.settings.clone();
    // A standby leader whose PostgreSQL was stopped on purpose, to demote it, is not a crash.
    let may_fail_over = crashed || settings.standby_cluster.is_none();
    if settings.primary_start_timeout == 0
        && may_fail_over
        && leader::someone_can_take_over(turn).await
    {
        turn.because("HA-042", "primary_start_timeout is 0 and somebody can take over");
        let line = "stopped PostgreSQL to fail over after a crash";
        return Some(give_up_the_key(turn, line).await);
    }
    if crashed_too_often(turn) && leader::someone_can_take_over(turn).await {
        turn.because("HA-313", "it crashed too often, and somebody can take over");
        let line = "stopped PostgreSQL to fail over after several crashes";
        return Some(give_up_the_key(turn, line).await);
    }
    let control = control?;
    let was_primary = matches!(turn.pg.role, Role::Primary | Role::Promoted);
    let restartable = matches!(
        control.state,
        ControlState::InProduction
            | ControlState::InCrashRecovery
            | ControlState::ShuttingDown
            | ControlState::ShutDown
    );
    // Never as a primary in a standby cluster. (HA-043, INV-19)
    if settings.primary_start_timeout == 0
        || settings.standby_cluster.is_some()
        || !crashed
        || !was_primary
        || control.has_standby_signal
        || !restartable
    {
        return None;
    }
    if !standby::arm(turn).await
        || !turn.confirm_lock().await
        || !turn.ports.promises.claim(turn.now())
    {
        return None;
    }
    if let Err(why) = leader::watched(turn) {
        turn.because("HA-100", format!("the watchdog is required and does not work: {why}"));
        return None;
    }
    if let Some(decided) = look::first(turn).await {
        return Some(decided);
    }
    turn.because("HA-043", "a crashed primary with the lock starts in place");
    turn.memory.recovering = true;
    if settings.primary_restart_limit > 0 {
        let now = turn.now();
        turn.memory.crashes.push(now);
    }
    let by = turn.now().plus(u64::from(settings.primary_start_timeout) * 1000);
    Some(Decided::task("starting primary after failure", Task::StartAsPrimary { by }))
}

/// HA-313: no more starts in place than the operator allows within `primary_start_timeout`.
fn crashed_too_often(turn: &mut Turn<'_>) -> bool {
    let limit = turn.settings.primary_restart_limit as usize;
    let window = u64::from(turn.settings.primary_start_timeout) * 1000;
    let now = turn.now();
    turn.memory.crashes.retain(|at| now.since(*at) <= window);
    limit > 0 && turn.memory.crashes.len() >= limit
}

/// PostgreSQL is dead: nothing is written here any more. (INV-23)
async fn give_up_the_key(turn: &mut Turn<'_>, line: &str) -> Decided {
    if let Some(decided) = look::first(turn).await {
        return decided;
    }
    turn.memory.release_after_task = false;
    turn.memory.crashes.clear();
    turn.ports.watchdog.disable();
    turn.ports.postgres.set_role(Role::Demoted);
    let status = turn.view.status.clone();
    let by = turn.store_deadline();
    let released = turn.lease.release(turn.ports, Some(&status), by).await;
    turn.memory.want_latest = true;
    turn.memory.left_to_others_at = Some(turn.now());
    // What this node does without the key is the next turn's question.
    match released {
        Ok(()) => Decided::line(line).again_at(turn.now()),
        Err(error) => Decided::line(format!("the leader key could not be given up: {error}"))
            .again_at(turn.now().plus(200)),
    }
}

/// How long whoever gave the key up stays down, so that another member gets it.
const FOR_OTHERS_MS: u64 = 2_000;

/// HA-026: the log that crash recovery and a start write would make this node the furthest of all,
/// and the race it was to lose its own. A new leader ends the wait at once.
fn left_to_others(turn: &mut Turn<'_>) -> Option<Decided> {
    let until = turn.memory.left_to_others_at?.plus(FOR_OTHERS_MS);
    if !turn.view.is_unlocked() || turn.now() >= until {
        turn.memory.left_to_others_at = None;
        return None;
    }
    turn.because("HA-026", "the key was given up for another member");
    Some(Decided::line("waiting for another member to take over").again_at(until))
}

/// HA-044: a server that did not shut down cleanly, once per outage.
fn single_user(turn: &mut Turn<'_>, control: Option<&ControlData>) -> Option<Decided> {
    let control = control?;
    let dirty = matches!(
        control.state,
        ControlState::InProduction | ControlState::ShuttingDown | ControlState::InCrashRecovery
    );
    let worth_it = turn.view.is_unlocked() || turn.pg.can_rewind;
    if !dirty || control.has_backup_label || turn.memory.recovered_in_single_user_mode || !worth_it
    {
        return None;
    }
    turn.because("HA-044", "the server was not shut down cleanly");
    turn.memory.recovered_in_single_user_mode = true;
    Some(Decided::task("doing crash recovery in a single user mode", Task::SingleUser))
}

/// HA-046, HA-049.
pub async fn start_as_standby(turn: &mut Turn<'_>) -> Decided {
    let leader = match turn.lock.clone() {
        Lock::Other { holder } => Some(holder),
        Lock::Lost { holder } => holder,
        Lock::Free | Lock::Mine { .. } | Lock::Unseen { .. } => None,
    };
    if !turn.memory.rewind.was_executed() {
        turn.memory.rewind.ask();
    }
    let sources = standby::sources(turn, leader.as_ref());
    if let Some(decided) = rewind_if_needed(turn, &sources, false).await {
        return decided;
    }
    if leader.is_none()
        && turn.settings.standby_cluster.is_none()
        && turn.memory.rewind.was_executed()
    {
        // Without the log of the one it was rewound to it would start for ever.
        turn.because("HA-315", "after a rewind it starts behind a leader only");
        return Decided::line("waiting for a leader after a rewind");
    }
    let (upstream, line) = match standby::start_place(turn) {
        Some(place) => place,
        None => {
            let upstream = leader.as_ref().and_then(|name| turn.upstream(name));
            if leader.is_some() && upstream.is_none() {
                return Decided::line("waiting for the leader to say where its PostgreSQL is");
            }
            (upstream, "starting as a secondary")
        }
    };
    // Whether our log is a part of the leader's is not known yet: it starts, and follows nobody until
    // that is. (PG-147)
    let known = turn.memory.rewind != Rewind::Check || sources.is_empty();
    let upstream = upstream.filter(|_| known);
    turn.because("HA-049", "starting as a standby");
    turn.memory.recovering = true;
    Decided::task(line, Task::Follow { upstream, restart: false })
}

/// HA-047: asks the leader whether we can follow it; in a standby cluster the remote primary, and
/// while that is away the standby leader. `None`: we can, or nobody can say yet.
pub async fn rewind_if_needed(
    turn: &mut Turn<'_>,
    sources: &[Upstream],
    running: bool,
) -> Option<Decided> {
    if broken(Breakage::SkipRewind) {
        return None;
    }
    let source = sources.first()?.clone();
    if turn.memory.rewind == Rewind::Check && !check(turn, &source).await {
        for other in sources.iter().skip(1) {
            check(turn, other).await;
        }
    }
    match turn.memory.rewind {
        Rewind::Needed => {}
        Rewind::Failed => return after_failed_rewind(turn, source).await,
        Rewind::OtherHistory => return Some(another_history(turn, source, running).await),
        Rewind::NotAsked | Rewind::Check | Rewind::NotNeeded | Rewind::Succeeded => return None,
    }
    if turn.pg.can_rewind {
        let by = Deadline(turn.now().plus(3_000));
        let history = turn.ports.postgres.source_history(&source, by).await;
        let leads_on = history.ok().filter(|history| !history.in_recovery);
        let checkpointing = match &leads_on {
            None => true,
            // It has no record here; its control file says it. (PG-154)
            Some(history) if source.remote => {
                history.checkpoint_timeline.is_some_and(|done| done < history.timeline)
            }
            // A record from before the promotion says nothing about the checkpoint after it. (INV-30)
            Some(history) => turn.view.member(&source.name).is_none_or(|member| {
                member.data.checkpoint_after_promote == Some(false)
                    || member.data.role != Some(Role::Primary)
                    || member.data.timeline != Some(history.timeline)
            }),
        };
        let name = source.name.clone();
        if checkpointing {
            turn.because("PG-154", format!("{name} has not finished its checkpoint"));
            let line = format!("Waiting for checkpoint on {name} before rewind");
            return Some(Decided::line(line).again_at(turn.now().plus(500)));
        }
        if let Some(decided) = look::first(turn).await {
            return Some(decided);
        }
        turn.because("HA-047", format!("rewinding to {name}"));
        let task = Task::Rewind { source, stop_first: running };
        return Some(Decided::task(format!("running pg_rewind from {name}"), task));
    }
    // A new copy across sites is the operator's decision. (HA-047, PG-161)
    if turn.settings.standby_cluster.is_none()
        && turn.settings.remove_data_directory_on_diverged_timelines
    {
        if let Some(decided) = look::first(turn).await {
            return Some(decided);
        }
        turn.because("PG-161", "diverged, and pg_rewind is not possible here");
        let task = Task::Reinitialize { follow: source.clone(), source, why: Renewal::Diverged };
        return Some(Decided::task("reinitializing due to diverged timelines", task));
    }
    turn.because("PG-160", "diverged, and neither rewind nor removal is allowed");
    None
}

/// Streaming would mix two histories without anybody noticing: it does not start, and one that runs
/// already is ended. (PG-147; the simulator, seeds 4556, 7544)
async fn another_history(turn: &mut Turn<'_>, source: Upstream, running: bool) -> Decided {
    turn.because(
        "PG-147",
        format!("my timeline and that of {} only share the number", source.name),
    );
    // Another leader may be one that can be followed.
    turn.memory.rewind = Rewind::Check;
    if source.remote || !turn.settings.remove_data_directory_on_diverged_timelines {
        // A leader whose PostgreSQL is down comes to no other place where a request is answered; left alone
        // it would be obeyed when nobody remembers it. (INV-24; the simulator, seed 1819)
        if !running
            && turn.i_own_the_lock()
            && let Some(decided) = request::on_owner(turn).await
        {
            return decided;
        }
        if let Some(decided) = give_way(turn).await {
            return decided;
        }
        let line = "not following: my timeline parted from the leader's; reinitialize me";
        if running {
            return follower::stop_streaming(turn, ("PG-147", "another history"), line.into())
                .await;
        }
        return Decided::line(line);
    }
    if let Some(decided) = look::first(turn).await {
        return decided;
    }
    let task = Task::Reinitialize { follow: source.clone(), source, why: Renewal::Diverged };
    Decided::task("reinitializing due to diverged timelines", task)
}

/// The leader of a standby cluster cannot follow the remote primary, and must not be copied anew without
/// being told: another member leads, if one can. (PG-147; the simulator, seed 9856)
async fn give_way(turn: &mut Turn<'_>) -> Option<Decided> {
    // Once: where everybody has this log the key would go round for ever.
    let wants = turn.i_own_the_lock() && !turn.memory.gave_way;
    if !wants || !leader::someone_can_take_over(turn).await {
        return None;
    }
    turn.memory.gave_way = true;
    turn.because("PG-147", "I cannot follow the remote member, and another one can lead");
    turn.give_key_up().await;
    Some(Decided::line("released leader key: my timeline parted from the remote member's"))
}

async fn after_failed_rewind(turn: &mut Turn<'_>, source: Upstream) -> Option<Decided> {
    let remove = turn.settings.remove_data_directory_on_rewind_failure
        || turn.settings.remove_data_directory_on_diverged_timelines;
    if !remove {
        return None;
    }
    if let Some(decided) = look::first(turn).await {
        return Some(decided);
    }
    turn.because("PG-160", "pg_rewind failed, and the configuration says to start over");
    turn.memory.rewind = Rewind::NotAsked;
    // The owner of the lock keeps what it has. (INV-20)
    if turn.i_own_the_lock() {
        return None;
    }
    let task = Task::Reinitialize { follow: source.clone(), source, why: Renewal::RewindFailed };
    Some(Decided::task("reinitializing after a failed pg_rewind", task))
}

/// PG-144 … PG-151. `false`: it could not say.
async fn check(turn: &mut Turn<'_>, source: &Upstream) -> bool {
    let by = Deadline(turn.now().plus(3_000));
    let Some(local) = turn.ports.postgres.local_end(by).await else {
        turn.because("PG-144", "where this data directory ends cannot be said now");
        return true;
    };
    let by = Deadline(turn.now().plus(3_000));
    let history = match turn.ports.postgres.source_history(source, by).await {
        Err(error) => {
            turn.because("PG-145", format!("{} does not answer: {error}", source.name));
            return false;
        }
        Ok(history) => history,
    };
    // In a standby cluster everybody is in recovery, perhaps also the server that the remote member
    // is: that we can follow it, it can say; that we cannot, only a primary. (PG-145)
    let standby_cluster = turn.settings.standby_cluster.is_some();
    if history.in_recovery && !standby_cluster {
        turn.because("PG-145", format!("{} is still in recovery", source.name));
        return false;
    }
    let twin = lineage::is_a_twin(turn, &local, source, &history);
    let parted = twin || parted(turn, &local, &history).await;
    let (answer, rule) = if parted {
        (Divergence::Diverged("we share the numbers of our timelines, not their history"), "PG-147")
    } else {
        diverged(&local, &history)
    };
    match answer {
        Divergence::None => {
            turn.because(rule, format!("no rewind needed, says {}", source.name));
            turn.memory.log_is_gone = history.oldest.is_some_and(|oldest| local.lsn < oldest);
            turn.memory.rewind = Rewind::NotNeeded;
            turn.memory.gave_way = false;
            lineage::expect(turn.memory, &local, source, &history);
            true
        }
        Divergence::Diverged(why) if history.in_recovery => {
            turn.because("PG-145", format!("{} is in recovery, and {why}", source.name));
            false
        }
        Divergence::Diverged(why) => {
            turn.because(rule, why);
            turn.memory.rewind = if twin || parted && local.timeline == history.timeline {
                Rewind::OtherHistory
            } else {
                Rewind::Needed
            };
            true
        }
    }
}

/// Did the timelines before mine end at other points there? Then both nodes were promoted from the
/// same timeline without knowing of each other.
async fn parted(turn: &Turn<'_>, local: &LocalEnd, source: &SourceHistory) -> bool {
    let by = Deadline(turn.now().plus(1_000));
    match turn.ports.postgres.local_history(local.timeline, by).await {
        Some(mine) if local.timeline <= source.timeline => {
            let points = |ends: &[TimelineEnd]| -> Vec<_> {
                let before = ends.iter().filter(|end| end.timeline < local.timeline);
                before.map(|end| (end.timeline, end.switch_lsn)).collect()
            };
            points(&mine) != points(&source.ends)
        }
        // Timeline 1 has no history, and what cannot be read proves nothing.
        Some(_) | None => false,
    }
}
