//! Whose timeline is it that this server has? Two members may have been promoted to one of the same number
//! without knowing of each other. Where they began at the same position even the history files agree; what
//! was written since differs, and neither streaming nor pg_rewind would notice. (PG-147)
//!
//! Whoever is a primary on a timeline has begun it: a promotion makes a new one. So it is enough to remember
//! of whom a timeline came here, and to compare that with who is followed next.

use crate::ha::history;
use crate::ha::memory::Memory;
use crate::ha::ports::{
    ControlData, ControlState, LocalEnd, Observation, Server, SourceHistory, Upstream,
};
use crate::ha::turn::Turn;
use hathi_dcs::{ClusterView, Deadline, History, Member, MemberName, Role, Timeline};

/// Notes whose timeline this server has, when it is seen first: its own, or that of the one primary there
/// is. While somebody holds the leader key only that one can be it.
pub fn note(memory: &mut Memory, view: &ClusterView, pg: &Observation, me: &MemberName) {
    note_primary(memory, pg, me);
    let Server::Standby(standby) = &pg.server else { return };
    if !standby.streaming {
        return note_from_history(memory, view, standby.timeline);
    }
    let leads = |member: &&Member| {
        member.data.role == Some(Role::Primary)
            && member.data.timeline == Some(standby.timeline)
            && view.leader_name().is_none_or(|leader| *leader == member.name)
    };
    let mut primaries = view.members.iter().filter(leads);
    let whose = match (primaries.next(), primaries.next()) {
        (Some(only), None) => Some(only.name.clone()),
        (_, _) => expected(memory, standby.timeline),
    };
    let Some(whose) = whose.filter(|_| standby.timeline.0 > 1) else { return };
    memory.past_noted = true;
    if memory.timeline_of.as_ref().is_none_or(|(known, _)| *known != standby.timeline) {
        memory.timeline_of = Some((standby.timeline, whose));
    }
}

/// A primary has its own, whether or not the store can be read.
pub fn note_primary(memory: &mut Memory, pg: &Observation, me: &MemberName) {
    let Server::Primary { timeline, .. } = &pg.server else { return };
    if std::mem::take(&mut memory.promoted) {
        memory.began = Some(*timeline);
    }
    if timeline.0 > 1 {
        memory.past_noted = true;
        memory.timeline_of = Some((*timeline, me.clone()));
    }
}

/// The same for a server that is down when this agent begins.
pub async fn note_down(turn: &mut Turn<'_>, control: &ControlData) {
    let timeline = control.checkpoint_timeline.max(control.min_recovery_timeline);
    match control.state {
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
            note_from_history(turn.memory, &turn.view, timeline);
        }
        ControlState::ShutDown
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => note_dead_primary(turn, control).await,
        ControlState::StartingUp | ControlState::Unknown => {}
    }
}

/// It was a primary, and died with the agent before this one. A promotion writes the next history file
/// first: without one it has begun the timeline of its last checkpoint.
async fn note_dead_primary(turn: &mut Turn<'_>, control: &ControlData) {
    let timeline = control.checkpoint_timeline;
    let copied = control.has_standby_signal || control.has_backup_label;
    if copied || timeline.0 <= 1 || std::mem::replace(&mut turn.memory.past_noted, true) {
        return;
    }
    let by = Deadline(turn.now().plus(1_000));
    let next = Timeline(timeline.0 + 1);
    if turn.ports.postgres.local_history(next, by).await.is_none() {
        turn.memory.timeline_of = Some((timeline, turn.me().clone()));
    }
}

/// This primary can be followed, and is on a later timeline than I am: that one will be its.
pub fn expect(memory: &mut Memory, local: &LocalEnd, source: &Upstream, there: &SourceHistory) {
    if !source.remote && !there.in_recovery && local.timeline < there.timeline {
        memory.next_timeline_of = Some((there.timeline, source.name.clone()));
    }
}

fn expected(memory: &Memory, timeline: Timeline) -> Option<MemberName> {
    let next = memory.next_timeline_of.as_ref().filter(|(of, _)| *of == timeline);
    next.map(|(_, whose)| whose.clone())
}

/// What this agent finds when it begins came before it, from whom `/history` says; unless somebody leads on
/// that very timeline: then it may be that one's, and another one's row may not have been corrected.
fn note_from_history(memory: &mut Memory, view: &ClusterView, timeline: Timeline) {
    if timeline.0 <= 1 || std::mem::replace(&mut memory.past_noted, true) {
        return;
    }
    let led_there = view.leader_name().is_some_and(|leader| {
        let leads_on = view.member(leader).and_then(|member| member.data.timeline);
        leads_on.is_none_or(|leads_on| leads_on >= timeline)
    });
    if !led_there && let Some(whose) = beginner(&view.history, timeline) {
        memory.timeline_of = Some((timeline, whose));
    }
}

/// The data directory was copied from another one, or rewound to it: whose timeline it has is seen anew.
pub fn forget(memory: &mut Memory) {
    memory.timeline_of = None;
    memory.next_timeline_of = None;
    memory.past_noted = true;
}

/// Who began it, by `/history`.
fn beginner(history: &History, timeline: Timeline) -> Option<MemberName> {
    let row = history.entries.iter().find(|row| row.timeline.0 + 1 == timeline.0)?;
    row.new_leader.clone()
}

/// Do I have a timeline from one primary that another one began as well? The other one is the source
/// itself, if it is a primary there now; of an older timeline it is the one whom `/history` names.
pub fn is_a_twin(
    turn: &mut Turn<'_>,
    local: &LocalEnd,
    source: &Upstream,
    there: &SourceHistory,
) -> bool {
    let noted = turn.memory.timeline_of.as_ref().filter(|(of, _)| *of == local.timeline);
    let whose = match noted {
        _ if local.was_primary => Some(turn.me().clone()),
        Some((_, whose)) => Some(whose.clone()),
        None => expected(turn.memory, local.timeline),
    };
    let Some(whose) = whose else { return false };
    let leads_there = !source.remote && !there.in_recovery && there.timeline == local.timeline;
    let other = if leads_there {
        (local.timeline.0 > 1).then(|| source.name.clone())
    } else {
        beginner(&turn.view.history, local.timeline)
            .filter(|began| turn.view.member(began).is_some())
    };
    let Some(other) = other.filter(|other| *other != whose) else { return false };
    turn.because("PG-147", format!("{other} began the timeline that I have from {whose}"));
    true
}

/// I was promoted to this timeline, and `/history` names another one who was as well: the row that the others
/// compare with is to name me. `None`: it is as it should be. (HA-120)
pub fn corrected(turn: &Turn<'_>, timeline: Timeline) -> Option<History> {
    let mine = turn.memory.began == Some(timeline);
    let another = beginner(&turn.view.history, timeline).is_some_and(|name| name != *turn.me());
    (mine && another).then(|| history::without_row(&turn.view.history, timeline))
}
