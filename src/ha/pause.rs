//! A paused cluster is left alone. (section 14 of docs/spec/ha-loop.md)
//!
//! The steps are those of an unpaused turn; at each of them this file says what is left of it. Nothing
//! is started, stopped, demoted or promoted, except for a failover to a candidate that an operator
//! named. (INV-27)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::memory::Rewind;
use crate::ha::ports::{DataDir, Server};
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use crate::ha::{election, failsafe, follower, leader, look, manual, recovery, silence, standby};
use hathi_dcs::{Role, State, Timeline};

/// One turn in pause.
pub async fn paused(turn: &mut Turn<'_>) -> Decided {
    turn.memory.was_paused = true;
    // HA-004, HA-130: the operator is responsible for PostgreSQL.
    turn.ports.fence.stand_down();
    turn.ports.watchdog.disable();
    let decided = look(turn).await;
    // What the turn renewed may have armed them again.
    turn.ports.fence.stand_down();
    turn.ports.watchdog.disable();
    Decided { line: format!("PAUSE: {}", decided.line), ..decided }
}

/// The first turn after a pause: what the operator did meanwhile is not known, so everything that
/// was known before is asked again, and the guard is armed by a renewal. (HA-005, HA-138)
pub async fn resumed(turn: &mut Turn<'_>) {
    turn.memory.was_paused = false;
    turn.memory.owes_restart = false;
    turn.memory.rewind = Rewind::Check;
    turn.memory.slots_judged = None; // PG-267
    turn.memory.leader_timeline = Timeline(0);
    turn.memory.checkpoint_judged = Timeline(0);
    turn.memory.recovered_in_single_user_mode = false;
    turn.memory.want_latest = true;
    if turn.i_own_the_lock() {
        turn.because("HA-138", "the pause is over; the lock is confirmed before anything is done");
        turn.confirm_lock().await;
    }
}

async fn look(turn: &mut Turn<'_>) -> Decided {
    if let Some(task) = turn.memory.task {
        return Decided::line(format!("{} in progress", task.name)); // HA-009, HA-162
    }
    if let Lock::Unseen { .. } = turn.lock {
        return silence::store_is_silent(turn).await;
    }
    turn.seed_the_store().await; // HA-007, HA-008
    if let Some(decided) = without_data(turn).await {
        return decided;
    }
    if let Some(decided) = foreign_data(turn).await {
        return decided;
    }
    if !turn.pg.alive {
        return not_running(turn).await;
    }
    turn.memory.owes_restart = false;
    turn.memory.recovering = false;
    if let Server::Starting = turn.pg.server {
        return Decided::line("PostgreSQL is starting"); // HA-056
    }
    let me = turn.me().clone();
    match turn.lock.clone() {
        Lock::Mine { .. } if turn.pg.is_primary => with_lock(turn).await,
        Lock::Mine { .. } => lock_of_a_standby(turn).await,
        Lock::Free => match may_lead(turn).await {
            Ok(()) => lead(turn).await,
            Err((rule, why)) => {
                turn.because(rule, why);
                Decided::line(format!("no action. I am ({me})"))
            }
        },
        // HA-063, HA-132: whatever the store says, it goes on.
        Lock::Lost { .. } if turn.pg.is_primary && broken(Breakage::PauseDemotes) => {
            leader::lost(turn, None)
        }
        Lock::Lost { .. } if turn.pg.is_primary => {
            turn.because("HA-063", "in pause a primary goes on without the lock");
            Decided::line("continue to run as primary after failing to update leader lock in DCS")
        }
        Lock::Lost { .. } | Lock::Unseen { .. } => Decided::line(format!("no action. I am ({me})")),
        Lock::Other { holder } if turn.pg.is_primary => parallel_primary(turn, &holder).await,
        Lock::Other { holder } => {
            let decided = follower::follow(turn, &holder).await;
            without_restart(turn, decided)
        }
    }
}

/// An operator named me, or I led before. The promotion that was asked for is done; what a standby leader
/// would have to be stopped for waits. (HA-133, HA-134; the simulator, seeds 637, 1051)
async fn lead(turn: &mut Turn<'_>) -> Decided {
    let decided = election::take_key(turn).await;
    match &decided.start {
        Some(Task::Promote) | None => decided,
        Some(_) => without_restart(turn, decided),
    }
}

/// HA-134: another upstream, by a reload. What would restart PostgreSQL waits.
fn without_restart(turn: &mut Turn<'_>, decided: Decided) -> Decided {
    match decided {
        Decided { start: Some(task), line, .. } => {
            turn.because("HA-134", format!("in pause not done: {}", task.name()));
            Decided::line(format!("not done in pause: {line}"))
        }
        decided @ Decided { start: None, .. } => decided,
    }
}

/// HA-013, HA-135.
async fn without_data(turn: &mut Turn<'_>) -> Option<Decided> {
    let what = match &turn.pg.data_dir {
        DataDir::Present => return None,
        DataDir::Empty => "running with an empty data directory".to_owned(),
        DataDir::Inaccessible(why) => format!("the data directory cannot be read: {why}"),
    };
    if turn.pg.role != Role::Uninitialized {
        turn.ports.postgres.set_role(Role::Uninitialized);
        turn.pg.role = Role::Uninitialized;
    }
    if turn.i_own_the_lock() {
        return Some(release(turn, "HA-013", "released leader key: there is no data here").await);
    }
    Some(Decided::line(what))
}

/// HA-035, HA-037.
async fn foreign_data(turn: &mut Turn<'_>) -> Option<Decided> {
    let Some(mine) = turn.pg.system_id.clone() else {
        turn.because("HA-035", "the system identifier of the data directory cannot be read");
        return Some(Decided::line("system ID is invalid: consider doing reinitialize"));
    };
    let theirs = turn.view.system_id().filter(|theirs| *theirs != mine)?;
    turn.because("HA-037", format!("my system identifier is {mine}, the cluster's {theirs}"));
    if turn.i_own_the_lock() {
        return Some(release(turn, "HA-037", "released leader key: another cluster's data").await);
    }
    None
}

/// HA-040: whoever stopped it will start it. One exception: what a requested failover stopped.
async fn not_running(turn: &mut Turn<'_>) -> Decided {
    if turn.pg.state.went_by_itself() {
        turn.ports.postgres.set_state(State::Stopped);
        turn.pg.state = State::Stopped;
    }
    if turn.i_own_the_lock() {
        let line = "removed leader lock because postgres is not running";
        return release(turn, "HA-040", line).await;
    }
    let led_by_another = match turn.lock {
        Lock::Other { .. } => true,
        Lock::Free | Lock::Mine { .. } | Lock::Lost { .. } | Lock::Unseen { .. } => false,
    };
    if led_by_another && (turn.memory.owes_restart || broken(Breakage::PauseStarts)) {
        turn.because("HA-040", "a requested failover stopped it; it comes back as a replica");
        return recovery::start_as_standby(turn).await;
    }
    turn.memory.recovering = false;
    Decided::line("postgres is not running")
}

/// HA-062 in pause: a failover to a named candidate is the only thing that stops this primary.
async fn with_lock(turn: &mut Turn<'_>) -> Decided {
    let decided = leader::with_lock(turn).await;
    match decided.start {
        Some(Task::Demote(Demotion::Graceful)) => {
            turn.memory.owes_restart = true;
            decided
        }
        Some(_) | None => without_restart(turn, decided),
    }
}

/// HA-061, HA-131.
async fn lock_of_a_standby(turn: &mut Turn<'_>) -> Decided {
    if let Server::Silent(why) = &turn.pg.server {
        // It may be a primary in a moment: a promotion was perhaps on its way when it fell silent. A key
        // given up now would let another one be promoted beside it. (INV-23)
        let why = format!("PostgreSQL does not answer: {why}");
        turn.because("HA-017", why);
        return Decided::line("postgres communication error");
    }
    let asked = turn
        .view
        .pending_failover()
        .is_some_and(|request| request.value.candidate.as_ref() == Some(turn.me()));
    if asked && !standby::is_in_force(turn) {
        turn.because("HA-061", "an operator asked for me; the promotion is not finished");
        return leader::enforce_primary(turn).await;
    }
    if turn.settings.standby_cluster.is_some() {
        // It keeps the lock, and may follow another remote member. (HA-134)
        leader::write_status(turn).await;
        failsafe::write_map(turn).await;
        let me = turn.me().clone();
        return match &turn.pg.server {
            Server::Standby(_) => {
                let decided = standby::lead(turn).await;
                without_restart(turn, decided)
            }
            Server::Primary { .. } | Server::Down | Server::Starting | Server::Silent(_) => {
                Decided::line(format!("no action. I am ({me}), the standby leader with the lock"))
            }
        };
    }
    release(turn, "HA-131", "released leader key voluntarily").await
}

/// HA-134.
async fn parallel_primary(turn: &mut Turn<'_>, holder: &hathi_dcs::MemberName) -> Decided {
    if broken(Breakage::PauseDemotes) {
        return follower::follow(turn, holder).await;
    }
    if turn.pg.role != Role::Primary {
        turn.ports.postgres.set_role(Role::Primary);
        turn.pg.role = Role::Primary;
    }
    leader::checkpoint_of_a_former_life(turn).await;
    turn.because("HA-134", format!("a primary beside {holder} is left alone in pause"));
    Decided::line(format!("no action. I am ({}), a primary without the lock", turn.me()))
}

/// Section 8.2 in pause: HA-083 … HA-088.
async fn may_lead(turn: &mut Turn<'_>) -> Result<(), election::Why> {
    let ttl = turn.settings.timing.ttl_ms();
    if turn.memory.released_at.is_some_and(|at| turn.now().since(at) < ttl) {
        return Err(("HA-083", "I gave the key up a moment ago".into()));
    }
    let request = turn.view.pending_failover().map(|stored| stored.value.clone());
    if let Some(request) = request.filter(|request| request.scheduled_at.is_none())
        && !turn.settings.nofailover
    {
        match &request.candidate {
            Some(candidate) if candidate == turn.me() => {
                return election::manual_race(turn, &request).await; // HA-084, HA-075
            }
            Some(candidate) if turn.pg.is_primary && turn.view.member(candidate).is_none() => {
                turn.because("HA-075", format!("{candidate} is not there any more"));
                let by = turn.store_deadline();
                // Repeated by the next turn.
                let _ = manual::clean(turn.ports, &turn.view, by).await;
            }
            Some(candidate) => return Err(("HA-075", format!("left to {candidate}"))),
            None => return Err(("HA-075", "in pause only to a named candidate".into())),
        }
    }
    let leads = match &turn.pg.server {
        Server::Primary { .. } => true,
        // A standby leader that lost its key in pause takes it again. (HA-131)
        Server::Standby(_) => {
            turn.settings.standby_cluster.is_some() && turn.pg.role == Role::StandbyLeader
        }
        Server::Down | Server::Starting | Server::Silent(_) => {
            return Err(("HA-085", "PostgreSQL does not answer here".into()));
        }
    };
    if !leads {
        return Err(("HA-088", "in pause nobody is promoted unless an operator says who".into()));
    }
    match turn.view.system_id() {
        None => Ok(()),
        Some(theirs) if Some(&theirs) == turn.pg.system_id.as_ref() => Ok(()),
        Some(theirs) => Err(("HA-086", format!("the cluster's system identifier is {theirs}"))),
    }
}

async fn release(turn: &mut Turn<'_>, rule: &'static str, line: &str) -> Decided {
    if let Some(decided) = look::first(turn).await {
        return decided;
    }
    turn.because(rule, line);
    let by = turn.store_deadline();
    // Not given up for want of an answer: it runs out, since nobody prolongs it.
    let _ = turn.lease.release(turn.ports, None, by).await;
    turn.memory.want_latest = true;
    Decided::line(line)
}
