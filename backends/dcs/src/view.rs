//! What one reading of the store says about the cluster.

use crate::records::{parse_config, versioned};
use crate::{
    Failover, Failsafe, History, Lsn, MemberData, MemberName, Status, Sync, SystemId, Version,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A record and the version to give back in a compare-and-set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored<T> {
    pub value: T,
    pub version: Version,
}

/// The owner of the leader key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub name: MemberName,
    pub version: Version,
}

/// One member key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub name: MemberName,
    pub data: MemberData,
}

/// The whole cluster as one reading of the store gave it. An absent prefix is the empty view, not
/// an error. (DCS-001)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Absent; empty while somebody bootstraps; else the system identifier.
    pub initialize: Option<String>,
    /// Of that key; `None`: absent, or the store keeps it where it has no version of its own.
    #[serde(default)]
    pub initialize_version: Option<Version>,
    /// The dynamic configuration; `None` when absent or not an object. (DCS-053)
    pub config: Option<Stored<Map<String, Value>>>,
    pub leader: Option<Leader>,
    pub status: Status,
    /// Sorted by name.
    pub members: Vec<Member>,
    pub failover: Option<Stored<Failover>>,
    pub sync: Option<Stored<Sync>>,
    pub history: History,
    /// `None` when absent or unreadable. (DCS-058)
    pub failsafe: Option<Failsafe>,
}

impl ClusterView {
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        self.members.iter().find(|member| member.name == *name)
    }

    pub fn leader_name(&self) -> Option<&MemberName> {
        self.leader.as_ref().map(|leader| &leader.name)
    }

    /// The leader's own member record; absent when the key names nobody we know. (DCS-052)
    pub fn leader_member(&self) -> Option<&Member> {
        self.leader_name().and_then(|name| self.member(name))
    }

    pub fn is_unlocked(&self) -> bool {
        self.leader.is_none()
    }

    /// The cluster's system identifier, if `initialize` holds a valid one. (HA-007)
    pub fn system_id(&self) -> Option<SystemId> {
        self.initialize.as_deref().and_then(SystemId::parse)
    }

    /// Is somebody bootstrapping, or did somebody die doing so? (HA-033)
    pub fn is_bootstrapping(&self) -> bool {
        self.initialize.as_deref() == Some("")
    }

    /// The request of an operator, if one stands. (DCS-055)
    pub fn pending_failover(&self) -> Option<&Stored<Failover>> {
        self.failover.as_ref().filter(|stored| !stored.value.is_empty())
    }

    pub fn config_value(&self, key: &str) -> Option<&Value> {
        self.config.as_ref().and_then(|config| config.value.get(key))
    }
}

/// Puts a view together from the keys of a flat store (etcd, Raft, Consul, ZooKeeper, Redis).
#[derive(Debug, Default)]
pub struct ViewBuilder {
    view: ClusterView,
    legacy_optime: Option<Lsn>,
    saw_status: bool,
}

impl ViewBuilder {
    /// Adds one key. `key` is the part after the cluster's prefix: `leader`, `members/pg1`. Unknown
    /// keys and deeper ones are ignored. (DCS-059)
    pub fn put(&mut self, key: &str, value: &str, version: Version) -> &mut Self {
        let view = &mut self.view;
        match key {
            "initialize" => {
                view.initialize = Some(value.to_owned());
                view.initialize_version = Some(version);
            }
            "config" => view.config = parse_config(value).map(|map| versioned(map, version)),
            "leader" => view.leader = Some(Leader { name: MemberName::from(value), version }),
            "status" => {
                self.saw_status = true;
                view.status = Status::parse(value);
            }
            "optime/leader" => self.legacy_optime = value.trim().parse().ok().map(Lsn),
            "failover" => view.failover = Some(versioned(Failover::parse(value), version)),
            "sync" => view.sync = Some(versioned(Sync::parse(value), version)),
            "history" => view.history = History::parse(value),
            "failsafe" => view.failsafe = Failsafe::parse(value),
            other => {
                if let Some(name) = other.strip_prefix("members/")
                    && !name.is_empty()
                    && !name.contains('/')
                {
                    let member =
                        Member { name: MemberName::from(name), data: MemberData::parse(value) };
                    view.members.push(member);
                }
            }
        }
        self
    }

    pub fn build(mut self) -> ClusterView {
        if !self.saw_status
            && let Some(optime) = self.legacy_optime
        {
            self.view.status.optime = optime;
        }
        self.view.members.sort_by(|a, b| a.name.cmp(&b.name));
        self.view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-001 (the empty view), DCS-052, DCS-053, DCS-059.
    #[test]
    fn a_view_is_built_from_flat_keys() {
        assert_eq!(ViewBuilder::default().build(), ClusterView::default());
        let mut builder = ViewBuilder::default();
        builder
            .put("leader", "ghost", Version(9))
            .put("members/b", "{}", Version(1))
            .put("members/a", r#"{"state":"running"}"#, Version(2))
            .put("members/a/deeper", "{}", Version(2))
            .put("members/", "{}", Version(2))
            .put("optime/leader", "77", Version(3))
            .put("config", "[]", Version(4))
            .put("unknown", "x", Version(5))
            .put("initialize", "", Version(6));
        let view = builder.build();
        let names: Vec<_> = view.members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(view.leader_name(), Some(&MemberName::from("ghost")));
        assert!(view.leader_member().is_none());
        assert!(view.config.is_none());
        assert_eq!(view.status.optime, Lsn(77));
        assert!(view.is_bootstrapping());
    }

    #[test]
    fn status_wins_over_the_old_optime_key() {
        let mut builder = ViewBuilder::default();
        builder.put("status", r#"{"optime":5}"#, Version(1)).put("optime/leader", "3", Version(2));
        assert_eq!(builder.build().status.optime, Lsn(5));
    }
}
