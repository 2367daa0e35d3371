//! Leadership: with the lock, without any leader, and when the store is silent.
//! (sections 7, 8, 9, 10 and 13 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::lease::Reserve;
use crate::ha::manual::{self, PROBE_MS};
use crate::ha::memory::{AfterPromotion, Running};
use crate::ha::ports::Server;
use crate::ha::race::{self, Demands, Myself, Unfit};
use crate::ha::task::{Demotion, Kind, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use crate::ha::{follower, history, slots};
use futures::stream::StreamExt;
use hathi_dcs::{DcsError, Deadline, Failover, Lsn, MemberName, Role, Timeline};
use std::collections::BTreeMap;

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
        return lost(turn, None);
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
    if let Some(decided) = manual(turn).await {
        return decided;
    }
    checkpoint_of_a_former_life(turn).await;
    checkpoint_after_promotion(turn);
    enforce_primary(turn).await
}

/// HA-066: after the renewal, only if changed, and only with a position.
async fn write_status(turn: &mut Turn<'_>) {
    if let Some(status) = slots::status(&turn.settings, &turn.pg, &turn.memory.slots_seen) {
        let by = turn.store_deadline();
        if let Err(error) = turn.ports.dcs.write_status(&status, by).await {
            turn.because("HA-066", format!("status was not written: {error}"));
        }
    }
}

/// HA-100.
pub async fn enforce_primary(turn: &mut Turn<'_>) -> Decided {
    let me = turn.me().clone();
    match &turn.pg.server {
        Server::Primary { timeline, .. } => {
            let timeline = *timeline;
            if turn.pg.role != Role::Primary {
                turn.ports.postgres.set_role(Role::Primary);
                turn.pg.role = Role::Primary;
            }
            write_history(turn, timeline).await;
            Decided::line(format!("no action. I am ({me}), the leader with the lock"))
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

async fn promote(turn: &mut Turn<'_>) -> Decided {
    if let Some(why) = turn.ports.fence.broken() {
        turn.because("HA-091", format!("the guard does not work: {why}"));
        let by = turn.store_deadline();
        let _ = turn.lease.release(turn.ports, None, by).await;
        turn.memory.released_at = Some(turn.now());
        turn.memory.want_latest = true;
        return Decided::line("released leader key: PostgreSQL could not be fenced here");
    }
    turn.memory.after_promotion = AfterPromotion::CheckpointDue;
    let me = turn.me().clone();
    let line = format!("promoted self to leader by acquiring session lock; I am ({me})");
    Decided::task(line, Task::Promote)
}

/// The agent that promoted may have died before the checkpoint. (PG-065, INV-30)
async fn checkpoint_of_a_former_life(turn: &mut Turn<'_>) {
    let Server::Primary { timeline, .. } = turn.pg.server else { return };
    if turn.memory.checkpoint_judged == timeline {
        return;
    }
    turn.memory.checkpoint_judged = timeline;
    let by = Deadline(turn.now().plus(1_000));
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
    if timeline == Timeline(0) || !history::is_stale(&turn.view.history, timeline) {
        return;
    }
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
    let new = history::merged(&turn.view.history, &local, &turn.settings.me, max);
    if new == turn.view.history {
        return;
    }
    turn.because("HA-120", format!("history now ends before timeline {timeline}"));
    let by = turn.store_deadline();
    // Repeated by the next turn.
    let _ = turn.ports.dcs.write_history(&new, by).await;
}

/// HA-070: an operator's request, on the owner of the lock. `None`: nothing to do.
pub async fn manual(turn: &mut Turn<'_>) -> Option<Decided> {
    let request = turn.view.pending_failover()?.value.clone();
    if let Some(at) = request.scheduled_at {
        match due(turn, at.timestamp_millis()) {
            Due::Now => {}
            Due::Later(at) => {
                turn.because("HA-074", "the scheduled switchover is not due");
                let _ = at;
                return None;
            }
            Due::Stale => {
                return clean(turn, "HA-074", "the scheduled switchover is too old").await;
            }
        }
    }
    if request.leader.as_ref().is_some_and(|leader| leader != turn.me()) {
        return clean(turn, "HA-070", "the request names another leader").await;
    }
    if request.candidate.as_ref() == Some(turn.me()) {
        return clean(turn, "HA-070", "I am the leader already").await;
    }
    let needs = manual::needs(&turn.settings, &turn.view, request.candidate.as_ref(), my_lsn(turn));
    let me = turn.me().clone();
    let search = manual::search(turn.ports, &turn.view, Some(&me), needs).await;
    if let Some(target) = &search.found {
        turn.because("HA-070", format!("{target} can take over"));
        turn.memory.rewind.ask();
        let line = match request.leader {
            Some(_) => "switchover: demoting myself",
            None => "manual failover: demoting myself",
        };
        return Some(Decided::task(line, Task::Demote(Demotion::Graceful)));
    }
    let why = format!("nobody can take over ({})", search.reasons());
    clean(turn, "HA-070", &why).await
}

enum Due {
    Now,
    Later(u64),
    Stale,
}

/// HA-074: more than a turn ahead waits, more than one and a half turns ago is stale.
fn due(turn: &Turn<'_>, at_ms: i64) -> Due {
    let ahead = at_ms - turn.ports.clock.wall().timestamp_millis();
    let loop_wait = i64::from(turn.settings.timing.loop_wait) * 1000;
    if ahead > 0 {
        Due::Later(ahead.unsigned_abs())
    } else if ahead < -(loop_wait * 3 / 2) {
        Due::Stale
    } else {
        Due::Now
    }
}

/// Takes the request off the table and goes on with the turn.
async fn clean(turn: &mut Turn<'_>, rule: &'static str, why: &str) -> Option<Decided> {
    turn.because(rule, why);
    let by = turn.store_deadline();
    if let Err(error) = manual::clean(turn.ports, &turn.view, by).await {
        turn.because(rule, format!("/failover was not emptied: {error}"));
    }
    turn.memory.want_latest = true;
    None
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

/// Section 8: nobody holds the lock and PostgreSQL runs here.
pub async fn without_leader(turn: &mut Turn<'_>) -> Decided {
    match healthiest(turn).await {
        Ok(()) => {}
        Err((rule, why)) => {
            turn.because(rule, why.clone());
            return not_healthiest(turn, &why);
        }
    }
    if !is_as_i_saw_it(turn).await {
        turn.because("HA-080", "the cluster went on while I asked the others");
        let at = turn.now();
        return Decided::line("looking again before the leader race").again_at(at);
    }
    let by = turn.store_deadline();
    match turn.lease.acquire(turn.ports, by).await {
        Ok(()) => won(turn).await,
        Err(_) if broken(Breakage::PromoteWithoutLock) => {
            Decided::task("promoted without lock", Task::Promote)
        }
        Err(DcsError::NotOwner { holder }) => {
            turn.because("HA-081", format!("{holder:?} was faster"));
            turn.memory.want_latest = true;
            let at = turn.now();
            Decided::line("following new leader after trying and failing to obtain lock")
                .again_at(at)
        }
        Err(error) => {
            // It may be mine: the next turn asks. (DCS-025)
            turn.because("HA-080", format!("the race has no known outcome: {error}"));
            turn.memory.want_latest = true;
            let at = turn.now().plus(200);
            Decided::line("the leader race has no known outcome").again_at(at)
        }
    }
}

/// An answer older than this is asked for again before the race.
const STALE_MS: u64 = 100;

/// Asking the others takes up to two seconds, in which somebody may have led and stopped again. The
/// key alone does not show that, and what was written then would be lost. (INV-8, INV-17)
async fn is_as_i_saw_it(turn: &mut Turn<'_>) -> bool {
    let seen_at = turn.memory.view.as_ref().map_or(Default::default(), |(_, at)| *at);
    if turn.now().since(seen_at) <= STALE_MS {
        return true;
    }
    let before = turn.view.clone();
    turn.read_again().await
        && turn.view.leader.is_none()
        && turn.view.history == before.history
        && turn.view.status == before.status
        && turn.view.failover == before.failover
}

/// HA-080: clean the request that led here, then be the primary.
async fn won(turn: &mut Turn<'_>) -> Decided {
    turn.because("HA-080", "acquired the leader key");
    turn.lock = turn.confirmed();
    if turn.view.pending_failover().is_some() {
        let by = turn.store_deadline();
        let expect = hathi_dcs::Expect::Anything;
        let _ = turn.ports.dcs.write_failover(&Failover::default(), expect, by).await;
    }
    turn.memory.want_latest = true;
    enforce_primary(turn).await
}

/// HA-082. A standby keeps its upstream: cutting the stream gains nothing. (HA-307)
fn not_healthiest(turn: &mut Turn<'_>, why: &str) -> Decided {
    if turn.pg.is_primary && !broken(Breakage::KeepAfterLoss) {
        turn.memory.rewind.ask();
        let line = format!("demoting self: {why}");
        return Decided::task(line, Task::Demote(Demotion::LostLock));
    }
    let at = turn.now().plus(1_000);
    Decided::line(format!(
        "following a different leader because i am not the healthiest node: {why}"
    ))
    .again_at(at)
}

type Why = (&'static str, String);

/// Section 8.2: the first rule that answers.
async fn healthiest(turn: &mut Turn<'_>) -> Result<(), Why> {
    let now = turn.now();
    let ttl = turn.settings.timing.ttl_ms();
    if turn.memory.released_at.is_some_and(|at| now.since(at) < ttl) {
        return Err(("HA-083", "I gave the key up a moment ago".into()));
    }
    if let Some(why) = turn.ports.fence.broken() {
        return Err(("HA-091", format!("PostgreSQL could not be fenced here: {why}")));
    }
    let cluster_timeline = turn.view.history.cluster_timeline();
    match &turn.pg.server {
        Server::Primary { timeline, .. } => {
            if *timeline >= cluster_timeline || broken(Breakage::StalePrimaryRaces) {
                return Ok(()); // HA-087
            }
            let why =
                format!("my timeline {timeline} is older than the cluster's {cluster_timeline}");
            return Err(("HA-087", why));
        }
        Server::Standby(_) => {}
        Server::Down | Server::Starting | Server::Silent(_) => {
            return Err(("HA-085", "PostgreSQL does not answer here".into()));
        }
    }
    if turn.settings.nofailover && !broken(Breakage::NofailoverRaces) {
        return Err(("HA-089", "I am tagged nofailover".into()));
    }
    // Kept up by other members of a mixed cluster; a commit they acknowledged must not be lost.
    if let Some(sync) = &turn.view.sync
        && sync.value.leader.is_some()
        && !sync.value.names(turn.me())
    {
        return Err(("HA-094", "I am not among the synchronous members".into()));
    }
    match turn.view.pending_failover().map(|stored| stored.value.clone()) {
        Some(request) => manual_race(turn, &request).await,
        None => compare(turn, None).await,
    }
}

/// HA-075: an operator asked for a leader and there is none.
async fn manual_race(turn: &mut Turn<'_>, request: &Failover) -> Result<(), Why> {
    if request
        .scheduled_at
        .is_some_and(|at| at.timestamp_millis() > turn.ports.clock.wall().timestamp_millis())
    {
        return compare(turn, None).await;
    }
    // Whoever promotes from an old timeline makes a second one of the same number. (INV-17)
    let timeline = if turn.settings.check_timeline {
        turn.view.history.cluster_timeline()
    } else {
        Timeline(0)
    };
    if let Some(candidate) = &request.candidate {
        if candidate == turn.me() {
            let Server::Standby(standby) = &turn.pg.server else { return Ok(()) };
            if standby.timeline < timeline {
                let mine = standby.timeline;
                let why = format!("my timeline {mine} is behind the cluster's {timeline}");
                return Err(("HA-075", why));
            }
            return Ok(());
        }
        let needs = manual::Needs {
            candidate: Some(candidate),
            lsn: Lsn(0),
            maximum_lag: u64::MAX,
            timeline,
        };
        let search = manual::search(turn.ports, &turn.view, None, needs).await;
        if search.found.is_some() {
            return Err(("HA-075", format!("{candidate} was asked to lead and is healthy")));
        }
    }
    if request.leader.as_ref() == Some(turn.me()) {
        let me = turn.me().clone();
        let needs = manual::Needs { candidate: None, lsn: Lsn(0), maximum_lag: u64::MAX, timeline };
        let search = manual::search(turn.ports, &turn.view, Some(&me), needs).await;
        if search.found.is_some() {
            return Err(("HA-075", "another member can lead, and I was asked to stop".into()));
        }
        return Ok(());
    }
    compare(turn, Some(request)).await
}

/// Section 8.3: asks everybody at once; the first answer that forbids decides. (HA-095, HA-311)
async fn compare(turn: &mut Turn<'_>, request: Option<&Failover>) -> Result<(), Why> {
    let Server::Standby(standby) = &turn.pg.server else {
        return Err(("HA-085", "PostgreSQL does not answer here".into()));
    };
    let me = Myself {
        lsn: standby.lsn(),
        timeline: standby.timeline,
        failover_priority: turn.settings.failover_priority,
    };
    let old_view = turn.memory.old_view.clone();
    let lag = turn.settings.maximum_lag_on_failover;
    let demands = Demands {
        leader_lsn_and_lag: request.is_none().then_some((turn.view.status.optime, lag)),
        cluster_timeline: if turn.settings.check_timeline {
            turn.view.history.cluster_timeline()
        } else {
            Timeline(0)
        },
        former_leader: old_view.as_ref().and_then(|view| view.leader_name().cloned()),
    };
    let unfit = |unfit: Unfit| (unfit.rule(), unfit.to_string());
    race::alone(&me, &demands).map_err(unfit)?;
    if broken(Breakage::RaceAsksNobody) {
        return Ok(());
    }
    let mut members: BTreeMap<MemberName, String> = BTreeMap::new();
    for view in old_view.iter().chain(std::iter::once(&turn.view)) {
        for member in &view.members {
            let excluded = request.is_some_and(|asked| asked.leader.as_ref() == Some(&member.name));
            if member.name != *turn.me()
                && !excluded
                && let Some(url) = &member.data.api_url
            {
                members.insert(member.name.clone(), url.clone());
            }
        }
    }
    let by = Deadline(turn.now().plus(PROBE_MS));
    let mut answers = turn.ports.peers.probe(members.into_iter().collect(), by);
    while let Some((peer, probe)) = answers.next().await {
        race::against(&me, &demands, &peer, &probe).map_err(unfit)?;
    }
    turn.because("HA-095", format!("I am the healthiest at {}", me.lsn));
    Ok(())
}

/// HA-160 … HA-164, and the hard deadline, while a task owns PostgreSQL.
pub async fn task_runs(turn: &mut Turn<'_>, task: Running, line: Decided) -> Decided {
    let until = match &turn.lock {
        Lock::Mine { until } => Some(*until),
        Lock::Unseen { until } => *until,
        Lock::Free | Lock::Other { .. } | Lock::Lost { .. } => None,
    };
    let writable_soon = match task.kind {
        Kind::Promote | Kind::StartAsPrimary => true,
        Kind::Bootstrap
        | Kind::Clone
        | Kind::Follow
        | Kind::Demote
        | Kind::Rewind
        | Kind::SingleUser => false,
    };
    if !writable_soon || broken(Breakage::IgnoreLeaseDeadline) {
        return line;
    }
    match until {
        Some(until) if !turn.demotion_is_due(until) => {
            line.again_at(until.minus(Reserve::of(turn.settings.timing).demote))
        }
        Some(_) | None => {
            turn.because("HA-162", "the lock was lost during the task; it is cancelled");
            turn.ports.postgres.cancel();
            line.again_at(turn.now().plus(100))
        }
    }
}

/// Section 14, as far as a paused cluster must be left alone: the owner keeps the lock while it is a
/// primary, a primary without any leader takes it, and nothing is started, stopped or promoted.
pub async fn paused(turn: &mut Turn<'_>) -> Decided {
    turn.memory.was_paused = true;
    turn.ports.fence.stand_down();
    let me = turn.me().clone();
    match turn.lock.clone() {
        Lock::Mine { .. } if turn.pg.is_primary => {
            write_status(turn).await;
            turn.ports.fence.stand_down();
            Decided::line(format!("PAUSE: no action. I am ({me}), the leader with the lock"))
        }
        Lock::Mine { .. } if turn.memory.task.is_none() => {
            turn.because("HA-131", "the lock is mine and PostgreSQL is not a primary");
            let by = turn.store_deadline();
            let _ = turn.lease.release(turn.ports, None, by).await;
            turn.memory.want_latest = true;
            Decided::line("PAUSE: released leader key voluntarily")
        }
        Lock::Free if turn.pg.is_primary && turn.view.system_id() == turn.pg.system_id => {
            turn.because("HA-131", "a primary in a paused cluster without leader");
            let by = turn.store_deadline();
            let _ = turn.lease.acquire(turn.ports, by).await;
            turn.ports.fence.stand_down();
            Decided::line("PAUSE: acquired session lock as a leader")
        }
        Lock::Mine { .. } | Lock::Free | Lock::Lost { .. } | Lock::Unseen { .. } => {
            Decided::line(format!("PAUSE: no action. I am ({me})"))
        }
        Lock::Other { holder } if turn.pg.alive && !turn.pg.is_primary => {
            match follower::follow(turn, &holder).await {
                Decided { start: None, line, .. } => Decided::line(format!("PAUSE: {line}")),
                Decided { line, .. } => Decided::line(format!("PAUSE: not done: {line}")),
            }
        }
        Lock::Other { .. } => Decided::line(format!("PAUSE: no action. I am ({me})")),
    }
}
