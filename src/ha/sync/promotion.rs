//! With the lock, just before a standby becomes primary. (HA-099)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::settings::SynchronousMode;
use crate::ha::sync::pass::{first_names, hand_back, put_in_force, write};
use crate::ha::sync::picture::{Change, Picture};
use crate::ha::sync::quorum::{Step, handover};
use crate::ha::sync::set::Set;
use crate::ha::sync::{active, is_requested, same};
use crate::ha::turn::Turn;
use hathi_dcs::{Lsn, Sync};

/// What comes of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    Ready,
    /// Not this time; the next turn tries again.
    Postponed,
    /// The record that let me win is not in force any more: the race has to be run again.
    RaceAgain,
}

/// Makes the record mine before anything can be confirmed here.
pub async fn prepare(turn: &mut Turn<'_>) -> Prepared {
    if broken(Breakage::PromoteUnprepared) {
        return Prepared::Ready;
    }
    if !is_requested(&turn.settings) {
        // The record does not bind anybody any more; what is left of it is taken away later too.
        hand_back(turn).await;
        return Prepared::Ready;
    }
    let me = turn.me().clone();
    let record = active(&turn.settings, &turn.view).cloned();
    if let Some(record) = &record
        && !record.value.leader.as_ref().is_some_and(|leader| same(leader, &me))
        && turn.memory.sync.raced != Some(record.version)
    {
        turn.because("HA-099", "/sync is not the one by which I was found fit to lead");
        return Prepared::RaceAgain;
    }
    let prepared = match (turn.settings.synchronous.mode, record) {
        (SynchronousMode::Quorum, Some(_)) => take_quorum_over(turn).await,
        (SynchronousMode::Priority, _) => start_alone(turn).await,
        (SynchronousMode::Quorum | SynchronousMode::Off, _) => {
            let first = first_names(&turn.settings).unwrap_or_default();
            put_in_force(turn, first).await
        }
    };
    if !prepared {
        return Prepared::Postponed;
    }
    turn.memory.sync.promoted_at = Some(turn.now());
    Prepared::Ready
}

/// Priority mode: nobody but me may be elected until a standby holds what I write.
async fn start_alone(turn: &mut Turn<'_>) -> bool {
    let mine = Sync { leader: Some(turn.me().clone()), quorum: 0, voters: Vec::new() };
    let written = turn.view.sync.as_ref().is_some_and(|read| read.value == mine);
    if !written && let Err(error) = write(turn, &mine).await {
        turn.because("HA-099", format!("/sync was not written: {error}"));
        turn.memory.want_latest = true;
        return false;
    }
    let first = first_names(&turn.settings).unwrap_or_default();
    put_in_force(turn, first).await
}

/// Quorum mode: my commits wait for so many of the others that every election meets them; then the
/// record is mine. (HA-099, HA-200)
async fn take_quorum_over(turn: &mut Turn<'_>) -> bool {
    let Ok(picture) = Picture::of(&turn.settings, &turn.view, &turn.pg, Lsn(u64::MAX)) else {
        turn.because("HA-099", "more members than synchronous replication can manage");
        return false;
    };
    let (voters, quorum, num) = handover(picture.state);
    let sync = if num == 0 { Set::EMPTY } else { voters };
    let names = picture.wanted_names(&turn.settings, sync, num).to_text();
    if !put_in_force(turn, &names).await {
        return false;
    }
    if picture.state.leader == picture.state.me {
        return true;
    }
    let Change::Record(record) = picture.named(&turn.settings, Step::Record { voters, quorum })
    else {
        return false;
    };
    if let Err(error) = write(turn, &record).await {
        turn.because("HA-099", format!("/sync was not written: {error}"));
        turn.memory.want_latest = true;
        return false;
    }
    true
}
