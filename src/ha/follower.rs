//! Somebody else leads. (HA-065, HA-125)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::memory::Rewind;
use crate::ha::ports::{FollowChange, Server, Upstream};
use crate::ha::recovery::rewind_if_needed;
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Turn};
use hathi_dcs::{Deadline, MemberName, Role};

/// How soon a standby that still does not stream asks again whether it can.
const ASK_AGAIN_MS: u64 = 5_000;
/// How soon a standby that does not stream yet is looked at again.
const NOT_STREAMING_MS: u64 = 500;

/// One turn behind this leader.
pub async fn follow(turn: &mut Turn<'_>, leader: &MemberName) -> Decided {
    if turn.pg.is_primary && !broken(Breakage::KeepAfterLoss) {
        turn.because("HA-065", format!("a primary without the lock; {leader} holds it"));
        turn.memory.rewind.ask();
        let line = format!("demoting self because {leader} holds the leader lock");
        return Decided::task(line, Task::Demote(Demotion::LostLock));
    }
    if turn.pg.role != Role::Replica && !turn.pg.is_primary {
        turn.ports.postgres.set_role(Role::Replica);
        turn.pg.role = Role::Replica;
    }
    ask_for_rewind_when_the_leader_moved_on(turn, leader);
    if let Some(decided) = rewind_if_needed(turn, leader, true).await {
        return decided;
    }
    let Some(upstream) = upstream(turn, leader) else {
        return Decided::line(no_action(turn, leader));
    };
    let by = Deadline(turn.now().plus(2_000));
    match turn.ports.postgres.follow_change(Some(&upstream), by).await {
        FollowChange::Nothing => {
            let line = Decided::line(no_action(turn, leader));
            match &turn.pg.server {
                // Others wait to see it stream; there is no event for the moment it begins.
                Server::Standby(standby) if !standby.streaming && !standby.from_archive => {
                    line.again_at(turn.now().plus(NOT_STREAMING_MS))
                }
                Server::Standby(_)
                | Server::Primary { .. }
                | Server::Down
                | Server::Starting
                | Server::Silent(_) => line,
            }
        }
        FollowChange::Reload => {
            turn.because("HA-125", format!("following {}", upstream.name));
            turn.memory.rewind.ask();
            // Not before it is known that our log is a part of the leader's: a timeline that only
            // shares its number would be streamed without an error. (PG-147)
            if let Some(decided) = rewind_if_needed(turn, leader, true).await {
                return decided;
            }
            if turn.memory.rewind == Rewind::Check {
                return Decided::line(format!("following {leader} as soon as it is a primary"))
                    .again_at(turn.now().plus(500));
            }
            let by = Deadline(turn.now().plus(2_000));
            match turn.ports.postgres.follow_by_reload(Some(&upstream), by).await {
                Ok(()) => Decided::line(format!("following a different leader ({leader})")),
                Err(error) => Decided::line(format!("could not follow {leader}: {error}")),
            }
        }
        FollowChange::Restart => {
            turn.because("HA-125", format!("following {} needs a restart", upstream.name));
            turn.memory.rewind.ask();
            let task = Task::Follow { upstream: Some(upstream), restart: true };
            Decided::task("changing primary_conninfo and restarting", task)
        }
    }
}

/// The member named by `replicatefrom` while it is there, else the leader; never myself.
pub fn upstream(turn: &Turn<'_>, leader: &MemberName) -> Option<Upstream> {
    if turn.settings.nostream {
        return None;
    }
    turn.settings
        .replicatefrom
        .as_ref()
        .filter(|name| *name != turn.me())
        .and_then(|name| turn.upstream(name))
        .or_else(|| turn.upstream(leader))
}

/// PG-143: a first look at a running standby, or a leader on a higher timeline than the last one,
/// asks for a check, unless it streams on that timeline already.
fn ask_for_rewind_when_the_leader_moved_on(turn: &mut Turn<'_>, leader: &MemberName) {
    let leads_on = turn.view.member(leader).and_then(|member| member.data.timeline);
    let Server::Standby(standby) = &turn.pg.server else { return };
    let streams_there =
        standby.streaming && leads_on.is_none_or(|timeline| timeline <= standby.timeline);
    let moved_on = leads_on.is_some_and(|timeline| timeline > turn.memory.leader_timeline);
    if streams_there {
        if turn.memory.rewind == Rewind::Check {
            turn.memory.rewind = Rewind::NotNeeded;
        }
    } else if moved_on
        || !turn.memory.joined
        || turn.now().since(turn.memory.rewind_asked_at) >= ASK_AGAIN_MS
    {
        // Also an answer of before: until it followed this leader it may have received more from
        // somebody else, and then streams nothing for ever.
        turn.memory.rewind_asked_at = turn.now();
        turn.memory.rewind.ask();
    }
    if let Some(timeline) = leads_on {
        turn.memory.leader_timeline = timeline;
    }
}

fn no_action(turn: &Turn<'_>, leader: &MemberName) -> String {
    format!("no action. I am ({}), a secondary, and following a leader ({leader})", turn.me())
}
