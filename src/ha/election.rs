//! Nobody holds the lock: may I take it? (section 8 of docs/spec/ha-loop.md)

use crate::ha::backoff;
use crate::ha::breakage::{Breakage, broken};
use crate::ha::failsafe;
use crate::ha::leader::{checkpoint_of_a_former_life, enforce_primary, is_dead};
use crate::ha::look;
use crate::ha::manual::{self, PROBE_MS};
use crate::ha::ports::{Probe, Server};
use crate::ha::race::{self, Demands, Myself, Unfit};
use crate::ha::schedule::{self, Due};
use crate::ha::standby;
use crate::ha::sync::votes::Bound;
use crate::ha::sync::{self, active};
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use futures::stream::StreamExt;
use hathi_dcs::{ClusterView, DcsError, Deadline, Failover, Lsn, MemberName, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Section 8: nobody holds the lock and PostgreSQL runs here.
pub async fn without_leader(turn: &mut Turn<'_>) -> Decided {
    if let Some(decided) = backoff::postpone(turn) {
        return decided;
    }
    match healthiest(turn).await {
        Ok(()) => {}
        Err((rule, why)) => {
            turn.because(rule, why.clone());
            return not_healthiest(turn, &why).await;
        }
    }
    if !is_as_i_saw_it(turn).await {
        turn.because("HA-080", "the cluster went on while I asked the others");
        let at = turn.now();
        return Decided::line("looking again before the leader race").again_at(at);
    }
    take_key(turn).await
}

/// Asks for the key, and is the leader if it gets it. (HA-080, HA-081)
pub async fn take_key(turn: &mut Turn<'_>) -> Decided {
    if let Some(decided) = look::first(turn).await {
        return decided;
    }
    // From here on nothing is promised; and what was promised a moment ago is kept. (HA-103)
    if !turn.ports.promises.claim(turn.now()) {
        turn.because("HA-103", "a primary without store was promised that I do not race");
        let at = turn.now().plus(1_000);
        return Decided::line("not racing: another member goes on as the leader").again_at(at);
    }
    let by = turn.store_deadline();
    turn.memory.raced = Some(turn.view.clone());
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
            turn.lock = Lock::Unseen { until: None };
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
    if turn.now().since(turn.looked.asked) <= STALE_MS {
        return true;
    }
    let before = turn.view.clone();
    turn.read_again().await
        && turn.view.leader.is_none()
        && turn.view.history == before.history
        && turn.view.status == before.status
        && turn.view.failover == before.failover
        && turn.view.sync == before.sync
}

/// HA-080: clean the request that led here, then be the primary.
async fn won(turn: &mut Turn<'_>) -> Decided {
    turn.because("HA-080", "acquired the leader key");
    // In a standby cluster the record bound nobody: before a promotion it has to. (HA-099, HA-113)
    let bound = turn.view.sync.as_ref().filter(|_| !standby::is_in_force(turn));
    turn.memory.sync.raced = bound.map(|sync| sync.version);
    turn.lock = turn.confirmed();
    // The answers of the race may have waited here for long, if this process or the store stood still.
    let waited = turn.now().since(turn.looked.asked) > look::most_ms(turn.settings.timing);
    if (waited || !turn.pg.is_primary) && !turn.read_again().await {
        let at = turn.now();
        return Decided::line("acquired the leader key, and the store cannot be read now")
            .again_at(at);
    }
    let went_on = |raced: &Arc<ClusterView>| raced.history != turn.view.history;
    if turn.pg.is_primary && !turn.settings.pause && turn.memory.raced.as_ref().is_some_and(went_on)
    {
        turn.because("HA-325", "somebody led while this primary waited for the key");
        turn.memory.rewind.ask();
        let line = "demoting self: the cluster went on without me";
        return Decided::task(line, Task::Demote(Demotion::Immediate));
    }
    if let Some(request) = turn.view.pending_failover().map(|stored| stored.value.clone()) {
        let by = turn.store_deadline();
        let expect = hathi_dcs::Expect::Anything;
        // In pause the candidate is remembered until it is a primary. (HA-061)
        let left = if turn.settings.pause && request.leader.is_some() && request.candidate.is_some()
        {
            Failover { leader: None, ..request }
        } else {
            Failover::default()
        };
        let _ = turn.ports.dcs.write_failover(&left, expect, by).await;
    }
    turn.memory.want_latest = true;
    if standby::is_in_force(turn) {
        return standby::lead(turn).await; // HA-112
    }
    checkpoint_of_a_former_life(turn).await;
    enforce_primary(turn).await
}

/// HA-082. A standby keeps its upstream: cutting the stream gains nothing. (HA-307)
async fn not_healthiest(turn: &mut Turn<'_>, why: &str) -> Decided {
    if turn.pg.is_primary && !broken(Breakage::KeepAfterLoss) {
        turn.memory.rewind.ask();
        let line = format!("demoting self: {why}");
        return Decided::task(line, Task::Demote(Demotion::LostLock));
    }
    let at = turn.now().plus(1_000);
    if turn.settings.standby_cluster.is_some() && !turn.pg.is_primary {
        return standby::without_leader(turn).await.again_at(at); // HA-111
    }
    Decided::line(format!(
        "following a different leader because i am not the healthiest node: {why}"
    ))
    .again_at(at)
}

/// The rule that keeps a member from the key, and the reason.
pub type Why = (&'static str, String);

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
    if let Some(why) = turn.ports.watchdog.unhealthy()
        && !broken(Breakage::UnwatchedRaces)
    {
        return Err(("HA-091", format!("the watchdog is required and does not work: {why}")));
    }
    let stalls_ms = turn.pg.disk_stalls_ms;
    if is_dead(&turn.settings, stalls_ms) {
        return Err(("HA-314", format!("a write to my disk has not ended for {stalls_ms} ms")));
    }
    let cluster_timeline = turn.view.history.cluster_timeline();
    match &turn.pg.server {
        Server::Primary { .. } if !names_me(turn) => {
            // Whoever the record names may have confirmed what this primary does not have.
            let why = "a primary that /sync does not name".to_owned();
            return Err(("HA-094", why));
        }
        Server::Primary { timeline, .. } => {
            if broken(Breakage::StalePrimaryRaces) {
                return Ok(());
            }
            let timeline = *timeline;
            if timeline >= cluster_timeline {
                return nobody_else_leads(turn, timeline).await; // HA-087
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
    if failsafe::outside_the_map(turn) {
        decline(turn).await;
        return Err(("HA-092", "I am not in /failsafe".into()));
    }
    match turn.view.pending_failover().map(|stored| stored.value.clone()) {
        Some(request) => manual_race(turn, &request).await,
        None => compare(turn, None).await,
    }
}

/// HA-087: a primary asks everybody it knows of whether they lead, or follow a newer timeline.
async fn nobody_else_leads(turn: &mut Turn<'_>, mine: Timeline) -> Result<(), Why> {
    let mut members: BTreeMap<MemberName, String> = failsafe::also_known(turn);
    let old_view = turn.memory.old_view.clone();
    for view in old_view.iter().chain(std::iter::once(&turn.view)) {
        for member in view.members.iter().filter(|member| member.name != *turn.me()) {
            if let Some(url) = &member.data.api_url {
                members.insert(member.name.clone(), url.clone());
            }
        }
    }
    let by = Deadline(turn.now().plus(PROBE_MS));
    let mut answers = turn.ports.peers.probe(members.into_iter().collect(), by);
    while let Some((peer, probe)) = answers.next().await {
        race::leads_instead(mine, &peer, &probe)
            .map_err(|unfit| (unfit.rule(), unfit.to_string()))?;
    }
    Ok(())
}

/// Does the record that binds this race name me? There may be none.
fn names_me(turn: &Turn<'_>) -> bool {
    active(&turn.settings, &turn.view).is_none_or(|sync| sync.value.names(turn.me()))
}

/// The record that binds this race. (8.2, 8.3)
fn bound(turn: &Turn<'_>) -> Option<Bound> {
    let record = active(&turn.settings, &turn.view)?.value.clone();
    let needs_votes = sync::needs_votes(&turn.settings, &record);
    Some(Bound { record, needs_votes })
}

/// HA-075: an operator asked for a leader and there is none.
pub async fn manual_race(turn: &mut Turn<'_>, request: &Failover) -> Result<(), Why> {
    if request.leader.is_some() && !names_me(turn) {
        return Err(("HA-090", "a switchover, and I am not among the synchronous members".into()));
    }
    if let Some(at) = &request.scheduled_at {
        match schedule::look(turn, at) {
            Due::Now => {}
            // Not yet, or not any more: it decides nothing. (HA-074)
            Due::Later(_) | Due::Stale | Due::Paused => return compare(turn, None).await,
        }
    }
    // Whoever promotes from an old timeline makes a second one of the same number. (INV-17)
    let timeline = standby::demanded_timeline(&turn.settings, &turn.view);
    if let Some(candidate) = &request.candidate {
        if candidate == turn.me() {
            let standby = match &turn.pg.server {
                Server::Standby(standby) => standby,
                Server::Primary { .. } => return Ok(()),
                // In pause nobody has looked before. (HA-085)
                Server::Down | Server::Starting | Server::Silent(_) => {
                    return Err(("HA-085", "PostgreSQL does not answer here".into()));
                }
            };
            if standby.timeline < timeline {
                let mine = standby.timeline;
                let why = format!("my timeline {mine} is behind the cluster's {timeline}");
                decline(turn).await;
                return Err(("HA-075", why));
            }
            if !turn.settings.pause {
                last_leader_is_no_primary(turn).await?;
            }
            return nobody_goes_on(turn).await;
        }
        if let Some(bound) = bound(turn) {
            bound.may_race(turn.me()).map_err(|why| ("HA-075", why))?;
        }
        let needs = manual::Needs {
            candidate: Some(candidate),
            lsn: Lsn(0),
            maximum_lag: u64::MAX,
            timeline,
            record: None,
            quorum: None,
        };
        // In a switchover nobody waits for one that the record keeps from it. (HA-090)
        let may_race = request.leader.is_none()
            || bound(turn).is_none_or(|bound| bound.record.names(candidate));
        let view = failsafe::who_may_race(turn);
        if may_race && manual::search(turn.ports, &view, None, needs).await.found.is_some() {
            return Err(("HA-075", format!("{candidate} was asked to lead and is healthy")));
        }
    }
    if request.leader.as_ref() == Some(turn.me()) {
        let me = turn.me().clone();
        // Who could lead had a ttl to do so, and something only it can see kept it from that: a cluster
        // without leader is not what was asked for. (HA-075)
        if let Server::Standby(standby) = turn.pg.server.clone()
            && backoff::leaderless_ms(turn, &standby) > turn.settings.timing.ttl_ms()
        {
            turn.because("HA-075", "nobody else took over within a ttl");
            return compare(turn, None).await;
        }
        let needs = manual::Needs {
            lsn: Lsn(0),
            maximum_lag: u64::MAX,
            timeline,
            ..manual::needs(&turn.settings, &turn.view, None, Lsn(0))
        };
        let view = failsafe::who_may_race(turn);
        let search = manual::search(turn.ports, &view, Some(&me), needs).await;
        if search.found.is_some() {
            return Err(("HA-075", "another member can lead, and I was asked to stop".into()));
        }
        return nobody_goes_on(turn).await;
    }
    compare(turn, Some(request)).await
}

/// An operator named me, and a rule keeps me from the key that no waiting will change. A member of Patroni's
/// waits for a named candidate that answers, whatever its timeline: the request goes, and the others race
/// without it. In pause nobody else would. (HA-075 row 4; the simulator, seed 3668)
async fn decline(turn: &mut Turn<'_>) {
    let me = turn.me().clone();
    let names_me = turn.view.pending_failover().is_some_and(|request| {
        request.value.candidate.as_ref() == Some(&me) && request.value.scheduled_at.is_none()
    });
    if !names_me || turn.settings.pause {
        return;
    }
    turn.because("HA-075", "the request that names me is taken off: I may not lead");
    let by = turn.store_deadline();
    if let Err(error) = manual::clean(turn.ports, &turn.view, by).await {
        turn.because("HA-075", format!("/failover was not cleaned: {error}"));
    }
    turn.memory.want_latest = true;
}

/// A store can take the key from a primary that lives: whoever held it last is asked, also by the one
/// that an operator chose. In pause the operator answers for it. (HA-075, INV-2)
async fn last_leader_is_no_primary(turn: &mut Turn<'_>) -> Result<(), Why> {
    let Some(view) = turn.memory.old_view.clone() else { return Ok(()) };
    let last = view.leader_name().filter(|name| *name != turn.me());
    let url = last.and_then(|name| {
        let member = turn.view.member(name).or_else(|| view.member(name));
        Some((name.clone(), member?.data.api_url.clone()?))
    });
    let by = Deadline(turn.now().plus(PROBE_MS));
    let mut answers = turn.ports.peers.probe(url.into_iter().collect(), by);
    while let Some((peer, probe)) = answers.next().await {
        race::is_no_primary(&peer, &probe).map_err(|unfit| (unfit.rule(), unfit.to_string()))?;
    }
    Ok(())
}

/// The operator's word makes nobody safe from a promise that this agent may have given in its former
/// life: until that has run out, everybody of the map has to say that it is no primary. (HA-323)
async fn nobody_goes_on(turn: &mut Turn<'_>) -> Result<(), Why> {
    if !failsafe::may_have_promised(turn) {
        return Ok(());
    }
    let by = Deadline(turn.now().plus(PROBE_MS));
    let of_the_map = failsafe::also_known(turn).into_iter().collect();
    let mut answers = turn.ports.peers.probe(of_the_map, by);
    while let Some((peer, probe)) = answers.next().await {
        race::is_no_primary(&peer, &probe).map_err(|unfit| (unfit.rule(), unfit.to_string()))?;
        if let Probe::Unreachable(why) = probe {
            return Err(silent_since_before(&peer, &why));
        }
    }
    Ok(())
}

fn silent_since_before(peer: &MemberName, why: &str) -> Why {
    ("HA-323", format!("{peer} may go on by a promise of my former life: {why}"))
}

/// Section 8.3: asks everybody at once; the first answer that forbids decides. (HA-095, HA-311)
async fn compare(turn: &mut Turn<'_>, request: Option<&Failover>) -> Result<(), Why> {
    let bound = bound(turn);
    if let Some(bound) = &bound {
        bound.may_race(turn.me()).map_err(|why| ("HA-094", why))?;
    }
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
        cluster_timeline: standby::demanded_timeline(&turn.settings, &turn.view),
        former_leader: match &bound {
            Some(bound) => bound.record.leader.clone(),
            None => old_view.as_ref().and_then(|view| view.leader_name().cloned()),
        },
        bound: bound.clone(),
    };
    let unfit = |unfit: Unfit| (unfit.rule(), unfit.to_string());
    race::alone(&me, &demands).map_err(unfit)?;
    if broken(Breakage::RaceAsksNobody) {
        return Ok(());
    }
    let leaving = request.and_then(|asked| asked.leader.as_ref());
    let mut members: BTreeMap<MemberName, String> = BTreeMap::new();
    for view in old_view.iter().chain(std::iter::once(&turn.view)) {
        for member in &view.members {
            let counts = bound.as_ref().is_none_or(|bound| bound.record.names(&member.name));
            if member.name != *turn.me()
                && (counts || leaving == Some(&member.name))
                && let Some(url) = &member.data.api_url
            {
                members.insert(member.name.clone(), url.clone());
            }
        }
    }
    // Whose position counts: not that of the leader who is to go (that it goes on is another matter: the
    // store may have taken the key from it before it began to stop), nor of those outside `/sync` (8.2),
    // nor of those outside `/failsafe`: they may not win, and nobody waits for them. (HA-092)
    let may_win =
        members.keys().filter(|name| !failsafe::is_outside(turn, name) && leaving != Some(*name));
    let compared: BTreeSet<MemberName> = may_win.cloned().collect();
    let of_the_map = failsafe::also_known(turn);
    for (name, url) in &of_the_map {
        members.entry(name.clone()).or_insert_with(|| url.clone());
    }
    let may_have_promised = failsafe::may_have_promised(turn);
    let by = Deadline(turn.now().plus(PROBE_MS));
    let mut answers = turn.ports.peers.probe(members.into_iter().collect(), by);
    let mut count = bound.as_ref().map(|bound| bound.count(turn.me()));
    while let Some((peer, probe)) = answers.next().await {
        if compared.contains(&peer) {
            race::against(&me, &demands, &peer, &probe).map_err(unfit)?;
        } else {
            race::is_no_primary(&peer, &probe).map_err(unfit)?;
        }
        // What it holds it says whether or not it may win. (HA-095 g)
        if leaving != Some(&peer)
            && let (Some(bound), Some(count)) = (&bound, &mut count)
        {
            bound.add(count, &me, &peer, &probe);
        }
        if let Probe::Unreachable(why) = probe
            && may_have_promised
            && of_the_map.contains_key(&peer)
        {
            return Err(silent_since_before(&peer, &why));
        }
    }
    if let (Some(bound), Some(count)) = (&bound, &count) {
        bound.verdict(count, turn.me()).map_err(|why| ("HA-095", why))?;
    }
    turn.because("HA-095", format!("I am the healthiest at {}", me.lsn));
    Ok(())
}
