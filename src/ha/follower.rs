//! Somebody else leads. (HA-065, HA-125)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::look;
use crate::ha::memory::Rewind;
use crate::ha::ports::{FollowChange, Server, Upstream};
use crate::ha::recovery::rewind_if_needed;
use crate::ha::standby;
use crate::ha::task::{Demotion, Renewal, Task};
use crate::ha::turn::{Decided, Turn};
use hathi_dcs::{Deadline, MemberName, Role};

/// How soon a standby that still does not stream asks again whether it can.
const ASK_AGAIN_MS: u64 = 5_000;
/// How soon a standby that does not stream yet is looked at again.
const NOT_STREAMING_MS: u64 = 500;
/// The same for the remote primary of a standby cluster.
const REMOTE_AWAY_MS: u64 = 2_000;

/// Whom this node is to follow now, and as what. (HA-125)
pub struct Place {
    /// `None`: nobody, because that is wanted, or because nobody is known.
    pub upstream: Option<Upstream>,
    /// Who can say whether my log is a part of what the upstream has; the first is rewound to.
    pub sources: Vec<Upstream>,
    pub role: Role,
    /// `None`: the remote primary of a standby cluster.
    pub leader: Option<MemberName>,
    /// The status line when nothing is to be done.
    pub line: String,
}

/// One turn behind this leader.
pub async fn follow(turn: &mut Turn<'_>, leader: &MemberName) -> Decided {
    if turn.pg.is_primary && !broken(Breakage::KeepAfterLoss) {
        turn.because("HA-065", format!("a primary without the lock; {leader} holds it"));
        turn.memory.rewind.ask();
        let line = format!("demoting self because {leader} holds the leader lock");
        return Decided::task(line, Task::Demote(Demotion::LostLock));
    }
    if turn.settings.standby_cluster.is_some() && turn.upstream(leader).is_none() {
        turn.because("HA-111", format!("{leader} does not say where its PostgreSQL is"));
        return Decided::line("continue following the old known standby leader");
    }
    let place = Place {
        upstream: upstream(turn, leader),
        sources: standby::sources(turn, Some(leader)),
        role: Role::Replica,
        leader: Some(leader.clone()),
        line: no_action(turn, leader),
    };
    take(turn, place).await
}

/// Takes this place: asks whether it can, and changes what PostgreSQL streams from.
pub async fn take(turn: &mut Turn<'_>, place: Place) -> Decided {
    if let Server::Silent(why) = &turn.pg.server {
        // Nobody knows what it is now; an operator may have promoted it in a pause. (HA-017)
        let why = format!("PostgreSQL does not answer: {why}");
        turn.because("HA-017", why);
        return Decided::line(format!("postgres communication error; I am ({})", turn.me()));
    }
    let told_another = turn.pg.role != place.role;
    if told_another && !turn.pg.is_primary {
        turn.ports.postgres.set_role(place.role);
        turn.pg.role = place.role;
    }
    if let Some(leader) = &place.leader {
        ask_for_rewind_when_the_leader_moved_on(turn, leader);
    }
    standby::ask_when_the_remote_moved_on(turn).await;
    if let Some(decided) = rewind_if_needed(turn, &place.sources, true).await {
        return decided;
    }
    let Some(upstream) = place.upstream else {
        return if turn.settings.nostream {
            stop_streaming(turn, ("HA-125", "nostream"), place.line).await
        } else {
            Decided::line(place.line)
        };
    };
    let by = Deadline(turn.now().plus(2_000));
    match turn.ports.postgres.follow_change(Some(&upstream), by).await {
        FollowChange::Nothing => {
            if told_another && place.role == Role::StandbyLeader {
                turn.ports.postgres.tell_role_change();
            }
            let line = Decided::line(place.line);
            match &turn.pg.server {
                Server::Standby(standby) if !standby.streaming && !standby.from_archive => {
                    ask_again_while_it_does_not_stream(turn);
                    if let Some(decided) =
                        without_its_log(turn, &upstream, place.leader.as_ref()).await
                    {
                        return decided;
                    }
                    line.again_at(turn.now().plus(until_it_streams(&upstream)))
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
            if let Some(decided) = rewind_if_needed(turn, &place.sources, true).await {
                return decided;
            }
            if turn.memory.rewind == Rewind::Check && !place.sources.is_empty() {
                let line = match &place.leader {
                    Some(leader) => format!("following {leader} as soon as it is a primary"),
                    None => "following the remote member as soon as it answers".to_owned(),
                };
                return Decided::line(line).again_at(turn.now().plus(500));
            }
            let by = Deadline(turn.now().plus(2_000));
            let whom = place.leader.as_ref().map_or("the remote member", MemberName::as_str);
            match turn.ports.postgres.follow_by_reload(Some(&upstream), by).await {
                Ok(()) => {
                    let line = Decided::line(match place.role {
                        Role::StandbyLeader => place.line,
                        Role::Replica
                        | Role::Primary
                        | Role::Promoted
                        | Role::Demoted
                        | Role::Uninitialized => format!("following a different leader ({whom})"),
                    });
                    after_reload(turn, line, Some(&upstream))
                }
                Err(error) => Decided::line(format!("could not follow {whom}: {error}")),
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

/// Others wait to see it stream, and no event tells when it begins. The remote primary of another site may
/// be away for long.
fn until_it_streams(upstream: &Upstream) -> u64 {
    if upstream.remote { REMOTE_AWAY_MS } else { NOT_STREAMING_MS }
}

/// What the reload brought is for others to see, before the wheel turns. What does not take is not repeated
/// faster than that: somebody else may have set it.
fn after_reload(turn: &mut Turn<'_>, line: Decided, upstream: Option<&Upstream>) -> Decided {
    let now = turn.now();
    let loop_wait = turn.settings.timing.loop_wait_ms();
    let whom = upstream.map(|upstream| upstream.name.clone());
    let before = turn.memory.told_to_follow.replace((whom.clone(), now));
    match before {
        Some((before, at)) if before == whom && now.since(at) < loop_wait => line,
        _ => line.again_at(now.plus(upstream.map_or(NOT_STREAMING_MS, until_it_streams))),
    }
}

/// From here on it follows nobody: `nostream` was set while it streamed, and an archive feeds it (PG-211);
/// or what it streams is not the continuation of what it has (PG-147).
pub async fn stop_streaming(
    turn: &mut Turn<'_>,
    (rule, why): (&'static str, &'static str),
    line: String,
) -> Decided {
    let by = Deadline(turn.now().plus(2_000));
    match turn.ports.postgres.follow_change(None, by).await {
        FollowChange::Nothing => Decided::line(line),
        FollowChange::Reload => {
            turn.because(rule, format!("{why}: following nobody"));
            match turn.ports.postgres.follow_by_reload(None, by).await {
                Ok(()) => after_reload(turn, Decided::line(line), None),
                Err(error) => Decided::line(format!("could not stop streaming: {error}")),
            }
        }
        FollowChange::Restart => {
            turn.because(rule, format!("{why}: following nobody needs a restart"));
            let task = Task::Follow { upstream: None, restart: true };
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

/// HA-316: it would ask for ever. An archive may still bring the log; else a new copy helps, which is made
/// without asking only where that is wanted. (INV-20)
async fn without_its_log(
    turn: &mut Turn<'_>,
    upstream: &Upstream,
    leader: Option<&MemberName>,
) -> Option<Decided> {
    if !turn.memory.log_is_gone || turn.memory.rewind != Rewind::NotNeeded {
        return None;
    }
    let name = upstream.name.clone();
    turn.because("HA-316", format!("{name} has not all the log any more that I need"));
    let source = leader.and_then(|leader| turn.upstream(leader));
    match source {
        Some(source) if turn.settings.reinitialize_without_log && !turn.settings.pause => {
            if let Some(decided) = look::first(turn).await {
                return Some(decided);
            }
            turn.memory.log_is_gone = false;
            let task =
                Task::Reinitialize { follow: source.clone(), source, why: Renewal::LogIsGone };
            Some(Decided::task("reinitializing because the log I need is gone", task))
        }
        Some(_) | None => {
            let line = format!("the log I need is gone from {name}: reinitialize me");
            Some(Decided::line(line).again_at(turn.now().plus(ASK_AGAIN_MS)))
        }
    }
}

/// PG-143: between the check and the change of upstream the old stream went on, and may have brought
/// what the leader never had; or the number of a timeline was given twice. Neither ends by itself.
fn ask_again_while_it_does_not_stream(turn: &mut Turn<'_>) {
    let now = turn.now();
    let since = *turn.memory.not_streaming_since.get_or_insert(now);
    if now.since(since) >= turn.settings.timing.loop_wait_ms() {
        turn.because("PG-143", "still not streaming: can this data directory follow the leader?");
        turn.memory.rewind.doubt();
        turn.memory.not_streaming_since = Some(now);
    }
}

/// PG-143: a first look at a running standby, or a leader on a higher timeline than the last one,
/// asks for a check, unless it streams on that timeline already.
fn ask_for_rewind_when_the_leader_moved_on(turn: &mut Turn<'_>, leader: &MemberName) {
    let leads_on = turn.view.member(leader).and_then(|member| member.data.timeline);
    let Server::Standby(standby) = &turn.pg.server else { return };
    let streams_there =
        standby.streaming && leads_on.is_none_or(|timeline| timeline <= standby.timeline);
    if standby.streaming {
        turn.memory.not_streaming_since = None;
        turn.memory.log_is_gone = false;
    }
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
    let what = if turn.settings.standby_cluster.is_some() { "standby " } else { "" };
    format!("no action. I am ({}), a secondary, and following a {what}leader ({leader})", turn.me())
}
