//! The records as they stand in a store: what Patroni writes, and every older form it reads.
//!
//! Reading never fails: a store holds what others put there, and garbage in one key must not cost
//! the cluster its view (DCS-051 … DCS-058). Writing gives Patroni's bytes (section 3 of
//! docs/spec/dcs.md). What `derive(Deserialize)` reads is only what `derive(Serialize)` wrote: the
//! recordings of turns, never a store.

use crate::moment::{self, Typed};
use crate::{Lsn, MemberName, Timeline, Version, json};
use chrono::{DateTime, FixedOffset};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

macro_rules! wire_names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The spelling on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let known = Self::ALL.iter().copied().find(|known| known.as_str() == text);
                known.ok_or_else(|| {
                    serde::de::Error::custom(format!("no {} {text:?}", stringify!($name)))
                })
            }
        }
    };
}

wire_names! {
    /// The state of one PostgreSQL, in the order of its metric index. (PG-001, REST-121)
    State {
        Initdb = "initializing new cluster",
        InitdbFailed = "initdb failed",
        CustomBootstrap = "running custom bootstrap script",
        CustomBootstrapFailed = "custom bootstrap failed",
        CreatingReplica = "creating replica",
        Running = "running",
        Starting = "starting",
        BootstrapStarting = "starting after custom bootstrap",
        StartFailed = "start failed",
        Restarting = "restarting",
        RestartFailed = "restart failed",
        Stopping = "stopping",
        Stopped = "stopped",
        StopFailed = "stop failed",
        Crashed = "crashed",
    }
}

wire_names! {
    /// What a member's PostgreSQL is to the cluster. (PG-002)
    Role {
        Primary = "primary",
        /// Between the promote request and the end of recovery.
        Promoted = "promoted",
        StandbyLeader = "standby_leader",
        Replica = "replica",
        /// A primary that was stopped.
        Demoted = "demoted",
        /// No data directory yet.
        Uninitialized = "uninitialized",
    }
}

impl State {
    pub fn from_wire(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.as_str() == text)
    }

    /// Does a server in this state say where it stands?
    pub fn answers(self) -> bool {
        match self {
            Self::Running | Self::Restarting | Self::Starting => true,
            Self::Initdb
            | Self::InitdbFailed
            | Self::CustomBootstrap
            | Self::CustomBootstrapFailed
            | Self::CreatingReplica
            | Self::BootstrapStarting
            | Self::StartFailed
            | Self::RestartFailed
            | Self::Stopping
            | Self::Stopped
            | Self::StopFailed
            | Self::Crashed => false,
        }
    }

    /// Is a server that was last in this state, and is gone, one that nobody stopped?
    pub fn went_by_itself(self) -> bool {
        match self {
            Self::Running | Self::Starting | Self::Crashed => true,
            Self::Initdb
            | Self::InitdbFailed
            | Self::CustomBootstrap
            | Self::CustomBootstrapFailed
            | Self::CreatingReplica
            | Self::BootstrapStarting
            | Self::StartFailed
            | Self::Restarting
            | Self::RestartFailed
            | Self::Stopping
            | Self::Stopped
            | Self::StopFailed => false,
        }
    }

    /// The number in `patroni_postgres_state`; it never changes. (REST-121)
    pub fn metric_index(self) -> i64 {
        Self::ALL.iter().position(|state| *state == self).map_or(-1, |at| at as i64)
    }
}

impl Role {
    /// `master` is what members before Patroni 4 wrote. (PG-002)
    pub fn from_wire(text: &str) -> Option<Self> {
        if text == "master" {
            return Some(Self::Primary);
        }
        Self::ALL.iter().copied().find(|role| role.as_str() == text)
    }
}

/// Why a restart is pending for one parameter. (PG-243)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingChange {
    pub old_value: String,
    pub new_value: String,
}

/// The value of `members/<name>`, its fields in the order in which they are written. (HA-121)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberData {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conn_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Dotted integers, at least 4.0.0 for ours. (DCS-060, REST-350)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// `Some(false)` from a promotion until its checkpoint is done; never written as true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub tags: Map<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pending_restart: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pending_restart_reason: BTreeMap<String, PendingChange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// The accepted request, as Patroni stores it; read and shown, decided elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_restart: Option<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pause: bool,
    /// Ours only: this member would live with a `ttl` below Patroni's floor. Written where the dynamic
    /// configuration asks for one. (HA-324)
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub short_ttl: bool,
}

impl MemberData {
    /// Reads what stands in the key; a field of the wrong kind counts as absent. (DCS-051)
    pub fn parse(text: &str) -> Self {
        if text.starts_with("postgres") {
            return Self::parse_legacy(text);
        }
        let Ok(Value::Object(mut map)) = serde_json::from_str(text) else { return Self::default() };
        let text_of = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let lsn_of = |value: Option<&Value>| value.and_then(Value::as_u64).map(Lsn);
        let reason = map
            .get("pending_restart_reason")
            .and_then(|value| BTreeMap::deserialize(value).ok())
            .unwrap_or_default();
        Self {
            conn_url: text_of(map.get("conn_url")),
            api_url: text_of(map.get("api_url")),
            state: map.get("state").and_then(Value::as_str).and_then(State::from_wire),
            role: map.get("role").and_then(Value::as_str).and_then(Role::from_wire),
            version: text_of(map.get("version")),
            proxy_url: text_of(map.get("proxy_url")),
            checkpoint_after_promote: map.get("checkpoint_after_promote").and_then(Value::as_bool),
            pending_restart: map.get("pending_restart").and_then(Value::as_bool).unwrap_or(false),
            pending_restart_reason: reason,
            xlog_location: lsn_of(map.get("xlog_location")),
            replay_lsn: lsn_of(map.get("replay_lsn")),
            receive_lsn: lsn_of(map.get("receive_lsn")),
            replication_state: text_of(map.get("replication_state")),
            timeline: map
                .get("timeline")
                .and_then(Value::as_u64)
                .and_then(|n| u32::try_from(n).ok())
                .map(Timeline),
            scheduled_restart: map.remove("scheduled_restart").filter(Value::is_object),
            pause: map.get("pause").and_then(Value::as_bool).unwrap_or(false),
            short_ttl: map.get("short_ttl").and_then(Value::as_bool).unwrap_or(false),
            tags: match map.remove("tags") {
                Some(Value::Object(tags)) => tags,
                _ => Map::new(),
            },
        }
    }

    /// A URL whose `application_name` parameter is the REST address: before Patroni 1.0.
    fn parse_legacy(text: &str) -> Self {
        let (conn_url, query) = text.split_once('?').unwrap_or((text, ""));
        let api_url = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("application_name="))
            .map(str::to_owned);
        Self { conn_url: Some(conn_url.to_owned()), api_url, ..Self::default() }
    }

    pub fn to_wire(&self) -> String {
        json::compact(self)
    }

    /// A tag as Python's truth sees it: `"false"` is true, `0` and `""` are not. (CFG-024)
    pub fn tag_is_truthy(&self, name: &str) -> bool {
        self.tags.get(name).is_some_and(truthy)
    }

    /// May this member never become leader? The boolean wins over the priority. (HA-089, CFG-150)
    pub fn nofailover(&self) -> bool {
        match self.tags.get("nofailover") {
            Some(value) if !value.is_null() => truthy(value),
            _ => self.failover_priority() <= 0,
        }
    }

    /// The `failover_priority` tag; 1 when unset or unreadable. (CFG-151)
    pub fn failover_priority(&self) -> i64 {
        match self.tags.get("failover_priority") {
            Some(Value::Number(number)) => number.as_i64().unwrap_or(1),
            Some(Value::String(text)) => text.trim().parse().unwrap_or(1),
            _ => 1,
        }
    }

    /// Zero or less: never a synchronous standby; `nosync` says the same. (HA-097, CFG-151)
    pub fn sync_priority(&self) -> i64 {
        if self.tag_is_truthy("nosync") {
            return 0;
        }
        match self.tags.get("sync_priority") {
            Some(Value::Number(number)) => number.as_i64().unwrap_or(1),
            Some(Value::String(text)) => text.trim().parse().unwrap_or(1),
            _ => 1,
        }
    }

    /// The member it should stream from instead of the leader.
    pub fn replicatefrom(&self) -> Option<MemberName> {
        self.tags
            .get("replicatefrom")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(MemberName::from)
    }

    /// The furthest position this member said it has: what it wrote, received or replayed.
    pub fn lsn(&self) -> Option<Lsn> {
        self.xlog_location.into_iter().chain(self.receive_lsn).chain(self.replay_lsn).max()
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// The value of `status`: how far the leader's log is, and where the slots stand. (DCS-057, HA-066)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The leader's flushed log position.
    pub optime: Lsn,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, Lsn>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retain_slots: Vec<String>,
}

impl Status {
    /// An object, or the bare integer of old members; the inner maps may be text again. (DCS-057)
    pub fn parse(text: &str) -> Self {
        let unpack = |value: Option<&Value>| match value {
            Some(Value::String(inner)) => serde_json::from_str(inner).ok(),
            other => other.cloned(),
        };
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Number(number)) => {
                Self { optime: Lsn(number.as_u64().unwrap_or(0)), ..Self::default() }
            }
            Ok(Value::Object(map)) => {
                let optime = match map.get("optime") {
                    Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
                    Some(Value::String(text)) => text.parse().unwrap_or(0),
                    _ => 0,
                };
                let slots = match unpack(map.get("slots")) {
                    Some(Value::Object(slots)) => slots
                        .iter()
                        .filter_map(|(name, lsn)| Some((name.clone(), Lsn(lsn.as_u64()?))))
                        .collect(),
                    _ => BTreeMap::new(),
                };
                let retain_slots = match unpack(map.get("retain_slots")) {
                    Some(Value::Array(names)) => {
                        names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                    }
                    _ => Vec::new(),
                };
                Self { optime: Lsn(optime), slots, retain_slots }
            }
            _ => Self::default(),
        }
    }

    pub fn to_wire(&self) -> String {
        json::compact(self)
    }
}

/// The value of `sync`: who holds every acknowledged commit. (DCS-054, section 12 of ha-loop.md)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    pub leader: Option<MemberName>,
    /// How many of the voters an election must see besides the candidate; 0 in priority mode.
    pub quorum: u64,
    pub voters: Vec<MemberName>,
}

impl Sync {
    pub fn parse(text: &str) -> Self {
        let Ok(Value::Object(map)) = serde_json::from_str(text) else { return Self::default() };
        let leader = map
            .get("leader")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(MemberName::from);
        let quorum = match map.get("quorum") {
            Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
            Some(Value::String(text)) => text.parse().unwrap_or(0),
            _ => 0,
        };
        let voters = map
            .get("sync_standby")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(MemberName::from)
            .collect();
        let quorum = if leader.is_some() { quorum } else { 0 };
        Self { leader, quorum, voters }
    }

    /// `{"leader":"a","quorum":0,"sync_standby":"b,c"}`; names sorted, `null` without any.
    pub fn to_wire(&self) -> String {
        let mut names: Vec<&str> = self.voters.iter().map(MemberName::as_str).collect();
        names.sort_unstable();
        let voters = if names.is_empty() { Value::Null } else { Value::from(names.join(",")) };
        let mut map = Map::new();
        map.insert(
            "leader".into(),
            self.leader.as_ref().map_or(Value::Null, |n| n.as_str().into()),
        );
        map.insert("quorum".into(), self.quorum.into());
        map.insert("sync_standby".into(), voters);
        json::compact(&map)
    }

    /// Case does not matter for these names. (section 12 of ha-loop.md)
    pub fn names(&self, member: &MemberName) -> bool {
        let same = |name: &MemberName| name.as_str().eq_ignore_ascii_case(member.as_str());
        self.leader.as_ref().is_some_and(same) || self.voters.iter().any(same)
    }
}

/// The value of `failover`: what an operator asked for. `leader` set means switchover, only a
/// candidate means manual failover, neither means nothing is asked. (DCS-055)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    pub leader: Option<MemberName>,
    pub candidate: Option<MemberName>,
    pub scheduled_at: Option<DateTime<FixedOffset>>,
}

impl Failover {
    pub fn parse(text: &str) -> Self {
        let name_of =
            |text: &str| Some(text.trim()).filter(|n| !n.is_empty()).map(MemberName::from);
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => {
                let field = |key: &str| map.get(key).and_then(Value::as_str);
                Self {
                    leader: field("leader").and_then(name_of),
                    candidate: field("member").or(field("candidate")).and_then(name_of),
                    scheduled_at: map.get("scheduled_at").and_then(schedule),
                }
            }
            Ok(_) => Self::default(),
            Err(_) => match text.split_once(':') {
                Some((leader, candidate)) => Self {
                    leader: name_of(leader),
                    candidate: name_of(candidate),
                    scheduled_at: None,
                },
                None => Self { leader: name_of(text), candidate: None, scheduled_at: None },
            },
        }
    }

    /// Nothing is asked: neither a leader nor a candidate. (DCS-055)
    pub fn is_empty(&self) -> bool {
        self.leader.is_none() && self.candidate.is_none()
    }

    pub fn to_wire(&self) -> String {
        let mut map = Map::new();
        if let Some(leader) = &self.leader {
            map.insert("leader".into(), leader.as_str().into());
        }
        if let Some(candidate) = &self.candidate {
            map.insert("member".into(), candidate.as_str().into());
        }
        if let Some(at) = &self.scheduled_at {
            map.insert("scheduled_at".into(), moment::iso(at).into());
        }
        json::compact(&map)
    }
}

/// A moment nobody can read must not mean "now": it reads as one long past, which is cleaned up as
/// stale. (HA-070, HA-074)
fn schedule(value: &Value) -> Option<DateTime<FixedOffset>> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => match moment::read(text) {
            Typed::At(at) => Some(at),
            Typed::WithoutZone | Typed::Unreadable => Some(long_past()),
        },
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(long_past()),
    }
}

fn long_past() -> DateTime<FixedOffset> {
    DateTime::UNIX_EPOCH.fixed_offset()
}

/// One row of `history`: how a timeline ended. Old rows have only three parts. (HA-120)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub timeline: Timeline,
    /// Where the next timeline begins.
    pub switch_lsn: Lsn,
    pub reason: String,
    /// ISO 8601 with offset: the age of the history file on the node that wrote this row.
    pub at: Option<String>,
    pub new_leader: Option<MemberName>,
}

/// The value of `history`. (DCS-056)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub entries: Vec<HistoryEntry>,
    /// The key held a list at all: `[]` is timeline 1, garbage is timeline 0.
    pub readable: bool,
}

impl History {
    pub fn parse(text: &str) -> Self {
        let Ok(Value::Array(rows)) = serde_json::from_str(text) else { return Self::default() };
        let mut entries = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(parts) = row.as_array() else { continue };
            let number = |at: usize| parts.get(at).and_then(Value::as_u64);
            let text = |at: usize| parts.get(at).and_then(Value::as_str).map(str::to_owned);
            let (Some(timeline), Some(lsn)) = (number(0), number(1)) else { continue };
            entries.push(HistoryEntry {
                timeline: Timeline(u32::try_from(timeline).unwrap_or(0)),
                switch_lsn: Lsn(lsn),
                reason: text(2).unwrap_or_default(),
                at: text(3),
                new_leader: text(4).map(MemberName),
            });
        }
        Self { entries, readable: true }
    }

    /// The timeline the cluster is on: the last row's and one more. (HA-120)
    pub fn cluster_timeline(&self) -> Timeline {
        match self.entries.last() {
            Some(last) => Timeline(last.timeline.0.saturating_add(1)),
            None if self.readable => Timeline(1),
            None => Timeline(0),
        }
    }

    pub fn to_value(&self) -> Value {
        let rows = self.entries.iter().map(|entry| {
            let mut row: Vec<Value> = vec![
                entry.timeline.0.into(),
                entry.switch_lsn.0.into(),
                entry.reason.as_str().into(),
            ];
            if let Some(at) = &entry.at {
                row.push(at.as_str().into());
                if let Some(leader) = &entry.new_leader {
                    row.push(leader.as_str().into());
                }
            }
            Value::Array(row)
        });
        Value::Array(rows.collect())
    }

    pub fn to_wire(&self) -> String {
        json::compact(&self.to_value())
    }
}

/// The value of `failsafe`: member name to REST address. (DCS-058)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failsafe(pub BTreeMap<String, String>);

impl Failsafe {
    /// `None` when the key is not an object: not usable. (DCS-058)
    pub fn parse(text: &str) -> Option<Self> {
        let Ok(Value::Object(map)) = serde_json::from_str(text) else { return None };
        Some(Self(
            map.into_iter()
                .filter_map(|(name, url)| Some((name, url.as_str()?.to_owned())))
                .collect(),
        ))
    }

    pub fn to_wire(&self) -> String {
        json::compact(self)
    }
}

/// The dynamic configuration as it stands in `config`; `None` for anything but an object. (DCS-053)
pub(crate) fn parse_config(text: &str) -> Option<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Some(map),
        _ => None,
    }
}

/// A record together with the version it was read at.
pub(crate) fn versioned<T>(value: T, version: Version) -> crate::view::Stored<T> {
    crate::view::Stored { value, version }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-121 (the order of fields), DCS-009 (the bytes).
    #[test]
    fn a_member_reads_and_writes_the_same_bytes() {
        for wire in [
            r#"{"conn_url":"postgres://127.0.0.1:22433/postgres","api_url":"http://127.0.0.1:22009/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":67108864,"replay_lsn":67108864,"receive_lsn":67108864,"replication_state":"streaming","timeline":1}"#,
            r#"{"conn_url":"postgres://h:1/postgres","api_url":"http://h:2/patroni","state":"stopped","role":"demoted","version":"4.1.5","checkpoint_after_promote":false,"tags":{"datacenter":"dc1","rack":7},"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"40","new_value":"60"}},"pause":true}"#,
        ] {
            assert_eq!(MemberData::parse(wire).to_wire(), wire);
        }
    }

    /// Proves DCS-051.
    #[test]
    fn garbage_in_a_member_is_empty_data() {
        for garbage in ["", "[]", "nonsense", "3", "null"] {
            assert_eq!(MemberData::parse(garbage), MemberData::default(), "{garbage}");
        }
        let odd = MemberData::parse(r#"{"state":7,"xlog_location":"x","role":"master","tags":[]}"#);
        assert_eq!(odd, MemberData { role: Some(Role::Primary), ..MemberData::default() });
        let old = MemberData::parse("postgres://h:1/postgres?application_name=http://h:2/patroni");
        assert_eq!(old.conn_url.as_deref(), Some("postgres://h:1/postgres"));
        assert_eq!(old.api_url.as_deref(), Some("http://h:2/patroni"));
    }

    /// Proves DCS-057.
    #[test]
    fn status_is_read_in_all_its_forms() {
        let wire = r#"{"optime":50331744,"slots":{"pg1":1,"pg2":2},"retain_slots":["pg1","pg2"]}"#;
        assert_eq!(Status::parse(wire).to_wire(), wire);
        assert_eq!(Status::parse("42").optime, Lsn(42));
        assert_eq!(Status::parse("garbage"), Status::default());
        let nested = r#"{"optime":"7","slots":"{\"a\":3}","retain_slots":"[\"a\"]"}"#;
        assert_eq!(
            Status::parse(nested).to_wire(),
            r#"{"optime":7,"slots":{"a":3},"retain_slots":["a"]}"#
        );
        assert_eq!(Status { optime: Lsn(5), ..Status::default() }.to_wire(), r#"{"optime":5}"#);
    }

    /// Proves DCS-054.
    #[test]
    fn sync_is_read_and_written() {
        let wire = r#"{"leader":"pg1","quorum":0,"sync_standby":"pg2,pg3"}"#;
        assert_eq!(Sync::parse(wire).to_wire(), wire);
        assert!(Sync::parse(wire).names(&MemberName::from("PG3")));
        assert_eq!(Sync::parse(r#"{"leader":"a","quorum":"2"}"#).quorum, 2);
        assert_eq!(Sync::parse(r#"{"leader":null,"quorum":2}"#).quorum, 0);
        assert_eq!(
            Sync { leader: Some("a".into()), ..Sync::default() }.to_wire(),
            r#"{"leader":"a","quorum":0,"sync_standby":null}"#
        );
        assert_eq!(Sync::parse("oops"), Sync::default());
    }

    /// Proves DCS-055, DCS-014 (the bytes).
    #[test]
    fn failover_is_read_and_written() {
        let wire = r#"{"leader":"pg2","member":"pg1","scheduled_at":"2026-11-23T20:42:16+00:00"}"#;
        assert_eq!(Failover::parse(wire).to_wire(), wire);
        assert_eq!(Failover::default().to_wire(), "{}");
        assert!(Failover::parse("{}").is_empty());
        assert!(Failover::parse("").is_empty());
        let old = Failover::parse("pg1:pg2");
        assert_eq!((old.leader, old.candidate), (Some("pg1".into()), Some("pg2".into())));
    }

    /// Proves HA-074 (a moment that nobody can read is never "now").
    #[test]
    fn an_unreadable_schedule_is_long_past() {
        for (wire, at) in [
            (r#"{"leader":"a","scheduled_at":"soon"}"#, Some(0)),
            (r#"{"leader":"a","scheduled_at":"2026-11-23T20:42:16"}"#, Some(0)),
            (r#"{"leader":"a","scheduled_at":12}"#, Some(0)),
            (r#"{"leader":"a","scheduled_at":"1970-01-01 00:01 UTC"}"#, Some(60)),
            (r#"{"leader":"a","scheduled_at":null}"#, None),
            (r#"{"leader":"a","scheduled_at":""}"#, None),
        ] {
            let read = Failover::parse(wire).scheduled_at;
            assert_eq!(read.map(|at| at.timestamp()), at, "{wire}");
        }
    }

    /// Proves DCS-056.
    #[test]
    fn history_gives_the_cluster_timeline() {
        let wire = r#"[[1,50332136,"no recovery target specified","2026-11-23T20:36:24.035490+00:00","pg2"],[2,5,"x"]]"#;
        let history = History::parse(wire);
        assert_eq!(history.to_wire(), wire);
        assert_eq!(history.cluster_timeline(), Timeline(3));
        assert_eq!(History::parse("[]").cluster_timeline(), Timeline(1));
        assert_eq!(History::parse("{}").cluster_timeline(), Timeline(0));
    }

    /// Proves DCS-058.
    #[test]
    fn failsafe_must_be_an_object() {
        let wire = r#"{"pg1":"http://h:1/patroni","pg2":"http://h:2/patroni"}"#;
        assert_eq!(Failsafe::parse(wire).map(|map| map.to_wire()).as_deref(), Some(wire));
        assert_eq!(Failsafe::parse("[]"), None);
    }

    /// Proves PG-001, PG-002, REST-121.
    #[test]
    fn states_and_roles_keep_their_spelling_and_index() {
        assert_eq!(State::from_wire("creating replica"), Some(State::CreatingReplica));
        assert_eq!(State::Running.metric_index(), 5);
        assert_eq!(State::Crashed.metric_index(), 14);
        assert_eq!(Role::from_wire("master"), Some(Role::Primary));
        for state in State::ALL {
            assert_eq!(State::from_wire(state.as_str()), Some(*state));
        }
        for role in Role::ALL {
            assert_eq!(Role::from_wire(role.as_str()), Some(*role));
        }
    }

    /// Proves HA-089 (the tags), CFG-150, CFG-151.
    #[test]
    fn the_boolean_tag_wins_over_the_priority() {
        for (tags, nofailover) in [
            (r#"{}"#, false),
            (r#"{"nofailover":true}"#, true),
            (r#"{"failover_priority":0}"#, true),
            (r#"{"failover_priority":2}"#, false),
            (r#"{"nofailover":false,"failover_priority":0}"#, false),
            (r#"{"nofailover":"false"}"#, true),
        ] {
            let data = MemberData::parse(&format!(r#"{{"tags":{tags}}}"#));
            assert_eq!(data.nofailover(), nofailover, "{tags}");
        }
    }
}
