//! The replication slots of this server: one for every other member, so that the log it needs is kept,
//! and those that the operator declared permanent. (PG-261 … PG-277, HA-016, HA-137)

use crate::ha::ports::{Observation, Server, Slot, SlotPlan, WantedLogical};
use crate::ha::settings::{ClusterType, PermanentKind, PermanentSlot, Settings};
use hathi_dcs::{ClusterView, Lsn, Member, MemberName, Millis, Status};
use std::collections::BTreeMap;

/// What the slots of this server should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub slots: SlotPlan,
    /// Logical slots that the leader has and this standby lacks. (PG-272)
    pub to_copy: Vec<String>,
    /// What the operator declared and cannot be had; one sentence each. (PG-271)
    pub conflicts: Vec<String>,
}

impl SlotPlan {
    /// Is there anything to do? A slot that is only a little behind waits for the next turn.
    pub fn is_done(&self, pg: &Observation) -> bool {
        let slot = |name: &str| pg.slots.iter().find(|slot| slot.name == name);
        let physical_done = self.physical.iter().all(|(name, position)| match slot(name) {
            None => false,
            Some(slot) => {
                slot.active
                    || position.is_none_or(|lsn| slot.restart_lsn.unwrap_or_default() >= lsn)
            }
        });
        let logical_done = self.logical.iter().all(|(name, wanted)| match slot(name) {
            None => false,
            Some(slot) => wanted
                .position
                .is_none_or(|lsn| slot.logical.as_ref().is_some_and(|has| has.confirmed >= lsn)),
        });
        physical_done
            && logical_done
            && self.unwanted.iter().all(|name| slot(name).is_none_or(|slot| slot.active))
    }
}

/// What the agent remembers about slots from one turn to the next.
pub type Seen = BTreeMap<String, Millis>;

/// Notes whom slots are kept for, and says what to do about them. `seen` lives in the memory of the
/// agent. `judged`: what this server has besides was looked at already in this life of it. (PG-267)
pub fn plan(
    settings: &Settings,
    view: &ClusterView,
    pg: &Observation,
    seen: &mut Seen,
    judged: bool,
    now: Millis,
) -> Plan {
    if !settings.use_slots {
        return Plan::default();
    }
    let mut plan = Plan::default();
    for_members(settings, view, pg, seen, now, &mut plan);
    permanent(settings, view, pg, &mut plan);
    if !judged {
        let unknown = pg.slots.iter().filter(|slot| is_unknown(settings, slot, &plan, seen));
        let unknown: Vec<String> = unknown.map(|slot| slot.name.clone()).collect();
        plan.slots.unwanted.extend(unknown);
    }
    plan
}

/// PG-261 … PG-264.
fn for_members(
    settings: &Settings,
    view: &ClusterView,
    pg: &Observation,
    seen: &mut Seen,
    now: Millis,
    plan: &mut Plan,
) {
    let i_lead = view.leader_name() == Some(&settings.me);
    let mine = settings.me.slot_name();
    for name in &view.status.retain_slots {
        seen.entry(name.clone()).or_insert(now);
    }
    let mut here = Vec::new();
    let mut behind = BTreeMap::new();
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
            seen.insert(slot.clone(), now);
        }
        if from_me {
            here.push(slot);
        } else if let Some(lsn) = behind_another(view, member) {
            behind.insert(slot, lsn);
        }
    }
    seen.remove(&mine);
    let ttl = u64::from(settings.member_slots_ttl) * 1000;
    seen.retain(|name, at| {
        let kept = now.since(*at) <= ttl;
        if kept {
            // Slots that are read here move with their readers. Elsewhere they follow the leader's, and
            // those of members behind another one what these have, or the log would be kept for ever.
            let published = view.status.slots.get(name).filter(|_| !i_lead).copied();
            let position = published.max(behind.get(name).copied());
            let position = position.filter(|_| !here.contains(name));
            plan.slots.physical.insert(name.clone(), position);
        } else if !settings.slots.contains_key(name) {
            plan.slots.unwanted.push(name.clone());
        }
        kept || pg.slots.iter().any(|slot| slot.name == *name)
    });
}

/// How far a member is that streams from another one than the leader: what it has replayed it has on its
/// disk. (PG-262, PG-264)
fn behind_another(view: &ClusterView, member: &Member) -> Option<Lsn> {
    let upstream = member.data.replicatefrom()?;
    let leads = view.leader_name() == Some(&upstream);
    (!leads && upstream != member.name && view.member(&upstream).is_some())
        .then_some(member.data.replay_lsn)
        .flatten()
}

/// PG-269 … PG-275.
fn permanent(settings: &Settings, view: &ClusterView, pg: &Observation, plan: &mut Plan) {
    if settings.nofailover {
        return;
    }
    let i_lead = view.leader_name() == Some(&settings.me);
    let mine = settings.me.slot_name();
    for (name, slot) in settings.slots.iter().filter(|(name, _)| **name != mine) {
        if !slot.belongs_here(settings) {
            continue;
        }
        let published = view.status.slots.get(name).copied();
        match &slot.kind {
            PermanentKind::Physical => {
                let position = published.filter(|_| !i_lead);
                plan.slots.physical.entry(name.clone()).or_insert(position);
            }
            PermanentKind::Logical { .. } if plan.slots.physical.contains_key(name) => {
                plan.conflicts.push(format!("the slot {name} is a member's, and not logical"));
            }
            PermanentKind::Logical { database, plugin } => {
                let here = pg.slots.iter().find(|slot| slot.name == *name);
                let as_declared = here.is_none_or(|slot| {
                    slot.logical
                        .as_ref()
                        .is_some_and(|has| has.database == *database && has.plugin == *plugin)
                });
                if !as_declared {
                    // Made anew by a turn that finds it gone. (PG-271)
                    plan.slots.unwanted.push(name.clone());
                    continue;
                }
                let wanted = |position| WantedLogical {
                    database: database.clone(),
                    plugin: plugin.clone(),
                    position,
                };
                match (&pg.server, published) {
                    (Server::Primary { .. }, _) => {
                        plan.slots.logical.insert(name.clone(), wanted(None));
                    }
                    // Without a position nobody knows from where on. (PG-272)
                    (Server::Standby(_), None) => {}
                    (Server::Standby(_), Some(_)) if !decodes(settings, view) => {}
                    (Server::Standby(standby), Some(lsn)) => {
                        if here.is_some_and(|slot| !slot.lost) {
                            let position = lsn.min(standby.replayed.unwrap_or_default());
                            plan.slots.logical.insert(name.clone(), wanted(Some(position)));
                        } else if !i_lead {
                            plan.to_copy.push(name.clone());
                        }
                    }
                    (Server::Down | Server::Starting | Server::Silent(_), _) => {}
                }
            }
        }
    }
}

impl PermanentSlot {
    /// On this kind of cluster; a standby cluster has physical ones only. (PG-270, PG-275, PG-459)
    fn belongs_here(&self, settings: &Settings) -> bool {
        let standby = settings.standby_cluster.is_some();
        let logical = matches!(self.kind, PermanentKind::Logical { .. });
        match (self.cluster_type, standby) {
            (_, true) if logical => false,
            (None, _)
            | (Some(ClusterType::Primary), false)
            | (Some(ClusterType::Standby), true) => true,
            (Some(ClusterType::Primary), true) | (Some(ClusterType::Standby), false) => false,
        }
    }
}

/// Does this standby get logical slots: neither it nor anybody it cascades from is without a stream,
/// which would leave the catalog rows that they need unprotected. (PG-275)
fn decodes(settings: &Settings, view: &ClusterView) -> bool {
    if settings.nostream {
        return false;
    }
    let mut upstream = settings.replicatefrom.clone();
    let mut passed: Vec<MemberName> = vec![settings.me.clone()];
    while let Some(name) = upstream {
        if passed.contains(&name) {
            return false;
        }
        let Some(member) = view.member(&name) else { return true };
        if member.data.tag_is_truthy("nostream") {
            return false;
        }
        upstream = member.data.replicatefrom();
        passed.push(name);
    }
    true
}

/// Nobody declared it and nobody is known whom it is for. (PG-267, PG-268)
fn is_unknown(settings: &Settings, slot: &Slot, plan: &Plan, seen: &Seen) -> bool {
    let known = plan.slots.physical.contains_key(&slot.name)
        || plan.slots.unwanted.contains(&slot.name)
        || seen.contains_key(&slot.name)
        || settings.slots.contains_key(&slot.name);
    !known && !slot.active && !settings.ignore_slots.iter().any(|ignored| ignored.matches(slot))
}

/// What the leader writes to `/status`: its position, its slots, and whose slots are kept.
/// `None`: PostgreSQL did not say where it is. (HA-066, PG-276)
pub fn status(settings: &Settings, pg: &Observation, seen: &Seen) -> Option<Status> {
    let lsn = match &pg.server {
        Server::Primary { lsn, .. } => *lsn,
        Server::Standby(standby) if settings.standby_cluster.is_some() => standby.lsn(),
        Server::Standby(_) | Server::Down | Server::Starting | Server::Silent(_) => return None,
    };
    if !settings.use_slots {
        return Some(Status { optime: lsn, ..Status::default() });
    }
    let permanent = |slot: &Slot| {
        let declared = settings.slots.get(&slot.name);
        declared.is_some_and(|declared| declared.belongs_here(settings) && declared.is(slot))
    };
    let of_members = |slot: &Slot| settings.member_slots_ttl > 0 && seen.contains_key(&slot.name);
    let mut slots: BTreeMap<String, Lsn> = pg
        .slots
        .iter()
        .filter(|slot| of_members(slot) || permanent(slot))
        .filter_map(|slot| Some((slot.name.clone(), slot.position()?)))
        .collect();
    if settings.member_slots_ttl == 0 {
        return Some(Status { optime: lsn, slots, ..Status::default() });
    }
    slots.insert(settings.me.slot_name(), lsn);
    let declared_only =
        |name: &String| settings.slots.contains_key(name) && !seen.contains_key(name);
    let retain_slots = slots.keys().filter(|name| !declared_only(name)).cloned().collect();
    Some(Status { optime: lsn, slots, retain_slots })
}
