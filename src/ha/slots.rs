//! A physical slot for every other member, so that the log it needs is kept. (PG-261 … PG-264)

use crate::ha::ports::{Observation, Server};
use crate::ha::settings::Settings;
use hathi_dcs::{ClusterView, Lsn, Millis, Status};
use std::collections::BTreeMap;

/// What the slots of this server should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Name to the position an idle one is advanced to.
    pub wanted: BTreeMap<String, Option<Lsn>>,
    /// Slots of members that are gone for longer than `member_slots_ttl`.
    pub unwanted: Vec<String>,
}

impl Plan {
    /// Is there anything to do? A slot that is only a little behind waits for the next turn.
    pub fn is_done(&self, pg: &Observation) -> bool {
        let slot = |name: &str| pg.slots.iter().find(|slot| slot.name == name);
        let wanted_done = self.wanted.iter().all(|(name, position)| match slot(name) {
            None => false,
            Some(slot) => {
                slot.active
                    || position.is_none_or(|lsn| slot.restart_lsn.unwrap_or_default() >= lsn)
            }
        });
        wanted_done && self.unwanted.iter().all(|name| slot(name).is_none_or(|slot| slot.active))
    }
}

/// Notes whom slots are kept for, and says what to do about them. `seen` lives in the memory of the
/// agent; slots whose names never belonged to a member are never touched.
pub fn plan(
    settings: &Settings,
    view: &ClusterView,
    pg: &Observation,
    seen: &mut BTreeMap<String, Millis>,
    now: Millis,
) -> Plan {
    if !settings.use_slots {
        return Plan::default();
    }
    let i_lead = view.leader_name() == Some(&settings.me);
    let mine = settings.me.slot_name();
    for name in &view.status.retain_slots {
        seen.entry(name.clone()).or_insert(now);
    }
    for member in &view.members {
        let slot = member.name.slot_name();
        let from_me = member.data.replicatefrom().as_ref() == Some(&settings.me);
        // A node that never becomes leader keeps slots only for those that stream from it; without
        // retention each upstream keeps only its own. (PG-261)
        let wanted = if settings.nofailover {
            from_me
        } else if settings.member_slots_ttl == 0 {
            from_me || (i_lead && member.data.replicatefrom().is_none_or(|up| up == settings.me))
        } else {
            true
        };
        if member.name != settings.me && wanted && !member.data.tag_is_truthy("nostream") {
            seen.insert(slot, now);
        }
    }
    seen.remove(&mine);
    let ttl = u64::from(settings.member_slots_ttl) * 1000;
    let mut plan = Plan::default();
    seen.retain(|name, at| {
        let kept = now.since(*at) <= ttl;
        if kept {
            // The leader's own slots move with their readers; elsewhere they follow the leader's.
            let position = (!i_lead).then(|| view.status.slots.get(name).copied()).flatten();
            plan.wanted.insert(name.clone(), position);
        } else {
            plan.unwanted.push(name.clone());
        }
        kept || pg.slots.iter().any(|slot| slot.name == *name)
    });
    plan
}

/// What the leader writes to `/status`: its position, its slots, and whose slots are kept.
/// `None`: PostgreSQL did not say where it is. (HA-066, PG-276)
pub fn status(
    settings: &Settings,
    pg: &Observation,
    seen: &BTreeMap<String, Millis>,
) -> Option<Status> {
    let lsn = match &pg.server {
        Server::Primary { lsn, .. } => *lsn,
        Server::Standby(standby) if settings.standby_cluster.is_some() => standby.lsn(),
        Server::Standby(_) | Server::Down | Server::Starting | Server::Silent(_) => return None,
    };
    if !settings.use_slots || settings.member_slots_ttl == 0 {
        return Some(Status { optime: lsn, ..Status::default() });
    }
    let mine = settings.me.slot_name();
    let mut slots: BTreeMap<String, Lsn> = pg
        .slots
        .iter()
        .filter(|slot| seen.contains_key(&slot.name))
        .filter_map(|slot| Some((slot.name.clone(), slot.restart_lsn?)))
        .collect();
    slots.insert(mine, lsn);
    let retain_slots = slots.keys().cloned().collect();
    Some(Status { optime: lsn, slots, retain_slots })
}
