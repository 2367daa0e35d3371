//! An operator's request, on the owner of the lock. (section 11.1 of docs/spec/ha-loop.md)

use crate::ha::leader::my_lsn;
use crate::ha::look;
use crate::ha::manual;
use crate::ha::schedule::{self, Due};
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Turn};

/// HA-070: an operator's request, on the owner of the lock. `None`: nothing to do.
pub async fn on_owner(turn: &mut Turn<'_>) -> Option<Decided> {
    let asked = turn.view.pending_failover()?.clone();
    let (request, version) = (asked.value, asked.version);
    if turn.settings.pause && !turn.pg.is_primary {
        return None;
    }
    if let Some(at) = request.scheduled_at {
        match schedule::look(turn, &at) {
            Due::Now => {}
            Due::Later(_) | Due::Paused => {
                turn.because("HA-074", "the scheduled switchover is not due");
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
    if turn.memory.demoted_for == Some(version) {
        return clean(turn, "HA-070", "I was demoted for it, and nobody else took over").await;
    }
    if turn.settings.pause && request.candidate.is_none() {
        return clean(turn, "HA-070", "in pause only to a named candidate").await;
    }
    let needs = manual::needs(&turn.settings, &turn.view, request.candidate.as_ref(), my_lsn(turn));
    let needs = if manual::is_manual_failover(&request) { needs.without_record() } else { needs };
    let me = turn.me().clone();
    let search = manual::search(turn.ports, &turn.view, Some(&me), needs).await;
    if let Some(target) = &search.found {
        if let Some(decided) = look::first(turn).await {
            return Some(decided);
        }
        turn.because("HA-070", format!("{target} can take over"));
        turn.memory.rewind.ask();
        turn.memory.demoted_for = Some(version);
        let line = match request.leader {
            Some(_) => "switchover: demoting myself",
            None => "manual failover: demoting myself",
        };
        return Some(Decided::task(line, Task::Demote(Demotion::Graceful)));
    }
    let why = format!("nobody can take over ({})", search.reasons());
    clean(turn, "HA-070", &why).await
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
