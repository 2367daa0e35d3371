//! Failsafe mode: the store is away and every member says "go on". (section 13 of ha-loop.md)
//!
//! ```text
//!  primary, silent store ─► POST /failsafe to every entry of the last map ─► all Accepted?
//!       yes: the lease lives on for a ttl from before the first question was sent (lease::license)
//!       no:  asked again until the demotion is due; then it is demoted as without failsafe mode
//!  member asked ─► promise::Gate: does not race while the promise binds; the caller leads its view
//! ```
//! Nobody outside the map races (HA-092), and nobody in it who promised: so nobody does.

use crate::ha::breakage::{Breakage, broken};
use crate::ha::lease::Reserve;
use crate::ha::memory::Memory;
use crate::ha::ports::Server;
use crate::ha::promise::{Call, Promise, Vow};
use crate::ha::settings::Settings;
use crate::ha::slots;
use crate::ha::turn::Turn;
use futures::stream::StreamExt;
use hathi_dcs::{ClusterView, Deadline, Failsafe, Leader, Lsn, Member, MemberData, MemberName};
use hathi_dcs::{Millis, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a node remembers of `/failsafe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// As the last view had it; it outlives the view.
    pub read: Option<Failsafe>,
    /// What was written since without being seen: it may be in force.
    pub sent: BTreeMap<String, String>,
    /// When a view last had the mode on.
    pub on_at: Option<Millis>,
    /// When the first turn of this agent began.
    pub began: Option<Millis>,
}

/// How long asking the members may take at most. (HA-306)
fn asking_ms(settings: &Settings) -> u64 {
    (settings.timing.retry_timeout_ms() / 2).min(Reserve::of(settings.timing).demote)
}

/// When a lease that nobody prolongs has to be looked after: the demotion begins, or, so much earlier
/// that a refusal leaves the time for it, the members are asked. (HA-304, HA-306)
pub fn act_at(settings: &Settings, until: Millis) -> Millis {
    let demote_at = until.minus(Reserve::of(settings.timing).demote);
    if settings.failsafe_mode { demote_at.minus(asking_ms(settings)) } else { demote_at }
}

/// The next moment at which something is due for this lease.
pub fn next_act(settings: &Settings, until: Millis, now: Millis) -> Millis {
    let act_at = act_at(settings, until);
    if now < act_at { act_at } else { until.minus(Reserve::of(settings.timing).demote) }
}

/// Notes what a view says of the mode and the map.
pub fn note_view(memory: &mut Memory, view: &ClusterView, settings: &Settings, now: Millis) {
    let known = &mut memory.failsafe;
    known.read.clone_from(&view.failsafe);
    if settings.failsafe_mode {
        known.on_at = Some(now);
    }
}

/// While a promise binds and nobody holds the key, the one it was given to leads. (HA-103)
pub fn with_promised_leader(
    view: Arc<ClusterView>,
    promise: Option<Promise>,
    me: &MemberName,
) -> Arc<ClusterView> {
    let Some(Promise { call, .. }) = promise.filter(|promise| promise.call.name != *me) else {
        return view;
    };
    if view.leader.is_some() {
        return view;
    }
    let mut led = (*view).clone();
    led.leader = Some(Leader { name: call.name.clone(), version: Version(0) });
    led.status.slots.extend(call.slots.clone());
    if led.member(&call.name).is_none() {
        led.members.push(Member { name: call.name, data: MemberData::default() });
        led.members.sort_by(|a, b| a.name.cmp(&b.name));
    }
    let name = led.leader_name().cloned();
    if let Some(member) = led.members.iter_mut().find(|member| Some(&member.name) == name.as_ref())
    {
        member.data.conn_url = Some(call.conn_url);
        member.data.api_url = Some(call.api_url);
    }
    Arc::new(led)
}

/// The map that the leader keeps in the store. (HA-103)
fn wanted(settings: &Settings, view: &ClusterView) -> Failsafe {
    let members = view.members.iter().filter_map(|member| {
        let url = member.data.api_url.clone()?;
        Some((member.name.to_string(), url))
    });
    let mut map: BTreeMap<String, String> = members.collect();
    map.insert(settings.me.to_string(), settings.api_url.clone());
    Failsafe(map)
}

/// The third write of the lock owner: `/failsafe`, in failsafe mode and when it changed. (HA-066)
pub async fn write_map(turn: &mut Turn<'_>) {
    if !turn.settings.failsafe_mode {
        return;
    }
    let wanted = wanted(&turn.settings, &turn.view);
    if turn.view.failsafe.as_ref() == Some(&wanted) {
        turn.memory.failsafe.sent.clear();
        return;
    }
    // Without an answer either map may be in force: both are asked until a view shows which.
    turn.memory.failsafe.sent.extend(wanted.0.clone());
    let by = turn.store_deadline();
    if let Err(error) = turn.ports.dcs.write_failsafe(&wanted, by).await {
        turn.because("HA-066", format!("/failsafe was not written: {error}"));
    }
}

/// Whom to ask. (HA-156)
fn to_ask(known: &Known, me: &MemberName) -> Result<Vec<(MemberName, String)>, String> {
    let Some(Failsafe(read)) = &known.read else {
        return Err("/failsafe is not there, or cannot be read".into());
    };
    if !read.contains_key(me.as_str()) {
        return Err("I am not in /failsafe".into());
    }
    let mut all = known.sent.clone();
    all.extend(read.clone());
    all.remove(me.as_str());
    Ok(all.into_iter().map(|(name, url)| (MemberName::from(name.as_str()), url)).collect())
}

/// May this primary go on without the store? The lease lives on if all say so. (HA-154 … HA-156)
pub async fn everybody_agrees(turn: &mut Turn<'_>, until: Millis) -> bool {
    let members = match to_ask(&turn.memory.failsafe, turn.me()) {
        Ok(members) => members,
        Err(why) => {
            turn.because("HA-156", why);
            return false;
        }
    };
    let sent = turn.now();
    let demote_at = until.minus(Reserve::of(turn.settings.timing).demote);
    let by = Deadline(sent.plus(asking_ms(&turn.settings)).min(demote_at));
    let call = Call {
        name: turn.me().clone(),
        conn_url: turn.settings.conn_url.clone(),
        api_url: turn.settings.api_url.clone(),
        slots: slots::status(&turn.settings, &turn.pg, &turn.memory.slots_seen)
            .map(|status| status.slots)
            .unwrap_or_default(),
        ttl: Some(turn.settings.timing.ttl),
    };
    let asked = members.len();
    let mut vows = turn.ports.peers.failsafe(members, call, by);
    let mut accepted: BTreeMap<MemberName, Option<Lsn>> = BTreeMap::new();
    while let Some((name, vow)) = vows.next().await {
        match vow {
            Vow::Accepted { lsn } => {
                accepted.insert(name, lsn);
            }
            Vow::Refused(why) => turn.because("HA-155", format!("{name} did not accept: {why}")),
        }
    }
    let missing = asked.saturating_sub(accepted.len());
    let enough = missing == 0 || (broken(Breakage::OneRefusalIsEnough) && missing == 1);
    if !enough {
        return false;
    }
    if !turn.lease.license(turn.ports, sent) {
        turn.because("HA-154", "the lease ended while the members were asked");
        return false;
    }
    turn.because("HA-154", format!("{asked} members accept that I go on"));
    with_positions(turn, &accepted);
    true
}

/// Where the members said they are: for the slots of those that stream from another one. (HA-156)
fn with_positions(turn: &mut Turn<'_>, accepted: &BTreeMap<MemberName, Option<Lsn>>) {
    let mut view = (*turn.view).clone();
    for member in &mut view.members {
        if let Some(Some(lsn)) = accepted.get(&member.name) {
            member.data.xlog_location = Some(*lsn);
        }
    }
    turn.view = Arc::new(view);
}

/// A replica without store, promised to a primary: its slots follow the caller's. (HA-152)
pub async fn keep_slots_of_promise(turn: &mut Turn<'_>) {
    let promised = turn.ports.promises.promised(turn.now());
    if let (Some(promise), Server::Standby(_)) = (promised, &turn.pg.server) {
        let mut view = (*turn.view).clone();
        view.status.slots.extend(promise.call.slots);
        turn.view = Arc::new(view);
        // Nothing is copied while the store is away. (PG-277)
        let _ = turn.keep_slots().await;
    }
}

/// Is this node out of the race because the map does not know it? The mode binds for one more ttl
/// after it was switched off: a primary without store may not know of that yet. (HA-092)
pub fn outside_the_map(turn: &Turn<'_>) -> bool {
    is_outside(turn, turn.me())
}

/// The members that the map lets race: nobody may wait for one that never will. (HA-075, HA-092)
pub fn who_may_race(turn: &Turn<'_>) -> ClusterView {
    let mut view = (*turn.view).clone();
    view.members.retain(|member| !is_outside(turn, &member.name));
    view
}

pub fn is_outside(turn: &Turn<'_>, who: &MemberName) -> bool {
    let now = turn.now();
    let binds = crate::ha::promise::may_bind_ms(turn.settings.timing);
    let was_on = turn.memory.failsafe.on_at.is_some_and(|at| now.since(at) <= binds);
    let map = turn.view.failsafe.as_ref().map(|map| &map.0);
    (turn.settings.failsafe_mode || was_on)
        && map.is_some_and(|map| !map.is_empty() && !map.contains_key(who.as_str()))
        && !broken(Breakage::RaceOutsideFailsafe)
}

/// Those of the map, whom the race asks besides the members. (section 8.2)
pub fn also_known(turn: &Turn<'_>) -> BTreeMap<MemberName, String> {
    let asked = turn.settings.failsafe_mode || may_have_promised(turn);
    let map = turn.view.failsafe.iter().filter(|_| asked);
    map.flat_map(|map| &map.0)
        .filter(|(name, _)| **name != *turn.me().as_str())
        .map(|(name, url)| (MemberName::from(name.as_str()), url.clone()))
        .collect()
}

/// This agent may have promised something in a former life that it does not know of. Until that has
/// run out, whoever of the map does not answer counts as a primary that goes on; also when the mode
/// was switched off meanwhile, because the primary it was promised to may not know that. (HA-323)
pub fn may_have_promised(turn: &Turn<'_>) -> bool {
    let since = turn.memory.failsafe.began.map_or(0, |began| turn.now().since(began));
    since < crate::ha::promise::may_bind_ms(turn.settings.timing)
}
