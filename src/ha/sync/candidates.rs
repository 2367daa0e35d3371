//! Whom a primary chooses as synchronous standbys. (HA-097, PG-283 … PG-285)

use crate::ha::ports::{Observation, Sender, Server};
use crate::ha::settings::{Settings, SynchronousMode};
use crate::ha::sync::same;
use hathi_dcs::{ClusterView, Lsn, Member, MemberName, State};

/// A member that could be a synchronous standby.
struct Candidate<'a> {
    member: &'a Member,
    lsn: Lsn,
    rank: (i64, &'a str, Lsn),
}

/// How many confirmations a commit should wait for. (section 12)
pub fn wanted(settings: &Settings) -> u32 {
    settings.synchronous.node_count.max(1)
}

/// The members to be chosen now, by preference.
pub fn choose(settings: &Settings, view: &ClusterView, pg: &Observation) -> Vec<MemberName> {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for sender in pg.replication.senders.iter().filter(|sender| sender.streaming) {
        let Some(member) = view.members.iter().find(|member| same(&member.name, &sender.name))
        else {
            continue;
        };
        let priority = member.data.sync_priority();
        let running = member.data.state == Some(State::Running);
        if same(&member.name, &settings.me)
            || !running
            || priority <= 0
            || cascades(member, &pg.replication.senders)
            || candidates.iter().any(|other| other.member.name == member.name)
        {
            continue;
        }
        let lsn = sender.position(pg.replication.commit);
        candidates.push(Candidate { member, lsn, rank: (priority, &sender.sync_state, lsn) });
    }
    candidates.sort_by(|one, other| other.rank.cmp(&one.rank));
    candidates.sort_by_key(|candidate| candidate.member.data.nofailover());
    drop_laggards(settings, pg, &mut candidates);
    let wanted = usize::try_from(wanted(settings)).unwrap_or(usize::MAX);
    let mut chosen = Vec::new();
    for candidate in candidates {
        let takes = match settings.synchronous.mode {
            SynchronousMode::Quorum => !candidate.member.data.nofailover() || chosen.len() < wanted,
            SynchronousMode::Priority => chosen.len() < wanted,
            SynchronousMode::Off => false,
        };
        if takes {
            chosen.push(candidate.member.name.clone());
        }
    }
    chosen
}

/// It should stream from another member that is there, and will.
fn cascades(member: &Member, senders: &[Sender]) -> bool {
    member.data.replicatefrom().is_some_and(|from| {
        senders.iter().any(|sender| {
            sender.streaming && same(&sender.name, &from) && !same(&from, &member.name)
        })
    })
}

/// (CFG-264)
fn drop_laggards(settings: &Settings, pg: &Observation, candidates: &mut Vec<Candidate<'_>>) {
    let Ok(most) = u64::try_from(settings.synchronous.maximum_lag) else { return };
    if most == 0 {
        return;
    }
    let mine = match &pg.server {
        Server::Primary { lsn, .. } => *lsn,
        Server::Down | Server::Starting | Server::Standby(_) | Server::Silent(_) => Lsn(0),
    };
    let best = match candidates.as_slice() {
        [_] => mine,
        all => all.iter().map(|candidate| candidate.lsn).max().unwrap_or_default(),
    };
    candidates.retain(|candidate| best.0.saturating_sub(candidate.lsn.0) <= most);
}

/// Who holds the whole log of the time before the names in force. (PG-285)
pub fn confirmed(pg: &Observation, mark: Lsn) -> Vec<MemberName> {
    let counts = |sender: &&Sender| {
        sender.streaming
            && matches!(sender.sync_state.as_str(), "sync" | "quorum")
            && sender.position(pg.replication.commit) >= mark
    };
    pg.replication.senders.iter().filter(counts).map(|sender| sender.name.clone()).collect()
}
