//! The leader's turn: one change after the other, each of which leaves everything safe.
//! (HA-098, HA-196, HA-201 … HA-214)

use crate::ha::ports::Server;
use crate::ha::settings::{Settings, SynchronousMode};
use crate::ha::sync::names::Names;
use crate::ha::sync::picture::{Change, Picture};
use crate::ha::sync::{is_configured, is_requested, quorum::State};
use crate::ha::turn::Turn;
use hathi_dcs::{DcsError, Expect, Lsn, Millis, Sync};

/// How long one change of the names may take until it is in force.
const NAMES_MS: u64 = 3_000;
/// More changes than any state needs: the world changes under us, the next turn goes on.
const MOST_CHANGES: u32 = 12;

/// One pass of a primary with the lock. The answer: when to look again, if there is something to
/// wait for.
pub async fn keep(turn: &mut Turn<'_>) -> Option<Millis> {
    if !is_requested(&turn.settings) {
        return hand_back(turn).await;
    }
    turn.memory.sync.handed_back = false;
    let began = turn.now();
    let timing = turn.settings.timing;
    let end = began.plus(timing.loop_wait_ms().min(timing.ttl_ms() / 4));
    if turn.memory.sync.unsettled {
        let again = turn.pg.replication.names.clone();
        if !put_in_force(turn, &again).await {
            return Some(turn.now().plus(500));
        }
    }
    let mut read_once = false;
    for _ in 0..MOST_CHANGES {
        let Server::Primary { lsn, .. } = turn.pg.server else { return None };
        note_mark(turn, lsn);
        if turn.now() > end || turn.time_is_up() {
            turn.because("HA-213", "the pass takes longer than a turn may");
            return Some(turn.now().plus(200));
        }
        let mark = turn.memory.sync.mark;
        let Ok(picture) = Picture::of(&turn.settings, &turn.view, &turn.pg, mark) else {
            turn.because("HA-212", "more members than synchronous replication can manage");
            return None;
        };
        if starts_alone(turn, &picture) {
            return Some(turn.now().plus(500));
        }
        match picture.next(&turn.settings) {
            Change::Record(record) => match write(turn, &record).await {
                Ok(()) => {}
                Err(DcsError::Conflict { .. }) if !read_once => {
                    read_once = true; // HA-310
                    // Who led meanwhile wrote what this one met: the record is that member's. (INV-12)
                    if !turn.read_again().await || turn.view.leader_name() != Some(turn.me()) {
                        turn.memory.want_latest = true;
                        return Some(turn.now().plus(500));
                    }
                }
                Err(error) => {
                    turn.because("HA-213", format!("/sync was not written: {error}"));
                    turn.memory.want_latest = true;
                    return Some(turn.now().plus(500));
                }
            },
            Change::Names(names) => {
                if !change_names(turn, &names).await {
                    return Some(turn.now().plus(500));
                }
            }
            Change::Wait => return Some(wait_for_standby(turn, &picture)),
            Change::Done => {
                turn.memory.sync.waiting_since = None;
                let State { sync, num, .. } = picture.state;
                let names = picture.wanted_names(&turn.settings, sync, num);
                let text = names.to_text();
                if Names::parse(&turn.pg.replication.names).to_text() == text {
                    return None;
                }
                // The same standbys by another method, or `*` for nobody.
                if !change_names(turn, &names).await {
                    return Some(turn.now().plus(500));
                }
            }
        }
    }
    Some(turn.now().plus(200))
}

/// After a promotion the standbys need time to connect; without them nothing is taken back.
/// (HA-200)
fn starts_alone(turn: &mut Turn<'_>, picture: &Picture) -> bool {
    let quorum = turn.settings.synchronous.mode == SynchronousMode::Quorum;
    let State { me, leader, sync, .. } = picture.state;
    let now = turn.now();
    let loop_wait = turn.settings.timing.loop_wait_ms();
    let fresh = turn.memory.sync.promoted_at.is_some_and(|at| now.since(at) < loop_wait);
    let nobody = picture.facts.active.common(sync).is_empty();
    let waits = quorum && fresh && leader == me && !sync.is_empty() && nobody;
    if waits {
        turn.because("HA-200", "the standbys have not connected yet");
    }
    waits
}

/// Notes the end of the log when the names change: what was confirmed before ends there. (HA-097)
fn note_mark(turn: &mut Turn<'_>, lsn: Lsn) {
    let kept = &mut turn.memory.sync;
    if kept.names.as_ref() != Some(&turn.pg.replication.names) {
        kept.names = Some(turn.pg.replication.names.clone());
        kept.mark = lsn;
    }
}

/// HA-098, step 8: short at first, then calmer.
fn wait_for_standby(turn: &mut Turn<'_>, picture: &Picture) -> Millis {
    let now = turn.now();
    let since = *turn.memory.sync.waiting_since.get_or_insert(now);
    let missing = picture.facts.active.without(picture.facts.confirmed);
    let names = picture.directory.names(missing);
    let names: Vec<&str> = names.iter().map(hathi_dcs::MemberName::as_str).collect();
    turn.because("HA-097", format!("waiting for {} to catch up", names.join(", ")));
    now.plus((now.since(since) / 2).clamp(100, 2_000))
}

/// Writes `/sync`, if it is still the one that was read. (HA-310)
pub(super) async fn write(turn: &mut Turn<'_>, record: &Sync) -> Result<(), DcsError> {
    let expect = match &turn.view.sync {
        Some(read) => Expect::Version(read.version),
        None => Expect::Absent,
    };
    let by = turn.store_deadline();
    let version = turn.ports.dcs.write_sync(record, expect, by).await?;
    turn.because("HA-098", format!("/sync is now {}", record.to_wire()));
    turn.remember_sync(Some((record.clone(), version)));
    Ok(())
}

async fn change_names(turn: &mut Turn<'_>, names: &Names) -> bool {
    let text = names.to_text();
    if !put_in_force(turn, &text).await {
        return false;
    }
    turn.because("PG-282", format!("synchronous_standby_names is now '{text}'"));
    true
}

/// Only after this commits wait for these names, and only these; the observation is of after that.
pub(super) async fn put_in_force(turn: &mut Turn<'_>, text: &str) -> bool {
    turn.memory.sync.unsettled = true;
    let by = turn.deadline(NAMES_MS);
    if let Err(error) = turn.ports.postgres.set_sync_names(Some(text), by).await {
        turn.because("PG-282", format!("synchronous_standby_names '{text}': {error}"));
        return false;
    }
    turn.observe_again().await;
    let in_force = match &turn.pg.server {
        Server::Primary { .. } => turn.pg.replication.names == text,
        Server::Standby(_) => true,
        Server::Down | Server::Starting | Server::Silent(_) => false,
    };
    if in_force {
        turn.memory.sync.unsettled = false;
        // Even the same text: what was confirmed before ends here.
        turn.memory.sync.names = None;
    }
    in_force
}

/// HA-196: synchronous mode is off. The record goes first: from then on everybody may be elected;
/// only then commits stop waiting.
pub(super) async fn hand_back(turn: &mut Turn<'_>) -> Option<Millis> {
    let again = Some(turn.now().plus(1_000));
    if is_configured(&turn.view) {
        return None;
    }
    if let Some(read) = turn.view.sync.clone()
        && read.value.leader.is_some()
    {
        let by = turn.store_deadline();
        if let Err(error) = turn.ports.dcs.delete_sync(Expect::Version(read.version), by).await {
            turn.because("HA-196", format!("/sync was not deleted: {error}"));
            turn.memory.want_latest = true;
            return again;
        }
        turn.because("HA-196", "synchronous mode is off: /sync is deleted");
        turn.remember_sync(None);
        turn.memory.sync.handed_back = false;
    }
    if turn.memory.sync.handed_back {
        return None;
    }
    let by = turn.deadline(NAMES_MS);
    match turn.ports.postgres.set_sync_names(None, by).await {
        Ok(()) => {
            turn.memory.sync = super::Kept { handed_back: true, ..super::Kept::default() };
            None
        }
        Err(error) => {
            turn.because("HA-196", format!("synchronous_standby_names: {error}"));
            again
        }
    }
}

/// The names of a new cluster: nobody, or anybody where no commit may go unconfirmed. (HA-031)
pub fn first_names(settings: &Settings) -> Option<&'static str> {
    match (is_requested(settings), settings.synchronous.strict) {
        (false, _) => None,
        (true, false) => Some(""),
        (true, true) => Some("*"),
    }
}
