//! What the core has to know of the configuration: plain values, already checked.

use crate::ha::ports::{Slot, Upstream};
use hathi_dcs::{MemberName, Timing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The settings in force for one turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub me: MemberName,
    pub timing: Timing,
    /// Bytes a replica may miss and still win an automatic failover. (CFG-263)
    pub maximum_lag_on_failover: u64,
    /// Seconds; 0: fail over at once if possible. (CFG-266)
    pub primary_start_timeout: u32,
    pub check_timeline: bool,
    pub max_timelines_history: u32,
    /// Seconds a slot outlives the member key it is for; 0: only slots that are in use. (CFG-274)
    pub member_slots_ttl: u32,
    pub use_slots: bool,
    pub pause: bool,
    /// The configuration has a `bootstrap` section: this node may begin a cluster. (HA-030)
    pub may_bootstrap: bool,
    pub remove_data_directory_on_rewind_failure: bool,
    pub remove_data_directory_on_diverged_timelines: bool,
    /// Published in the member key, already filtered. (CFG-157)
    pub tags: Map<String, Value>,
    pub nofailover: bool,
    /// 1 when unset. (CFG-151)
    pub failover_priority: i64,
    /// `nofailover`, `nostream` and so on of others are read from their records; these are mine.
    pub replicatefrom: Option<MemberName>,
    pub nostream: bool,
    /// `postgres://host:port/database` for the member key. (PG-325)
    pub conn_url: String,
    pub api_url: String,
    pub proxy_url: Option<String>,
    /// Synchronous replication, as far as the cluster wants it. (section 12 of ha-loop.md)
    pub synchronous: Synchronous,
    /// Mine: never a synchronous standby. (CFG-151)
    pub nosync: bool,
    /// Mine; 1 when unset, zero or less: never. (CFG-151)
    pub sync_priority: i64,
    /// A primary without the store goes on while every member agrees. (CFG-271)
    pub failsafe_mode: bool,
    /// This cluster follows another one. (section 15 of ha-loop.md)
    pub standby_cluster: Option<StandbyCluster>,
    /// Seconds a stop may take before it turns immediate; 0: no limit. (HA-106, CFG-267)
    pub primary_stop_timeout: u32,
    /// Crashes within `primary_start_timeout` after which it is not started in place again if
    /// somebody can take over; 0: no limit. (HA-313, CFG-490)
    pub primary_restart_limit: u32,
    /// The dynamic configuration asks for a `ttl` below Patroni's floor, and this store keeps such a
    /// lease. In force it is only while every member says so. (HA-324)
    #[serde(default)]
    pub short_ttl: bool,
    /// Permanent slots by name. (CFG-275, PG-269)
    #[serde(default)]
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots of others that are left alone. (CFG-276, PG-268)
    #[serde(default)]
    pub ignore_slots: Vec<IgnoredSlot>,
    /// A standby whose log is gone is copied anew without asking. (HA-316, CFG-493)
    #[serde(default)]
    pub reinitialize_without_log: bool,
    /// Milliseconds after which a write to the data directory that does not end counts as a dead disk;
    /// 0: nobody looks. (HA-314, CFG-491)
    #[serde(default)]
    pub disk_timeout_ms: u64,
    /// Seconds the leader race waits while WAL still arrives; 0: none. (CFG-420)
    pub primary_race_backoff: u32,
}

/// (CFG-264, CFG-268 … CFG-270)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synchronous {
    pub mode: SynchronousMode,
    /// No commit without a synchronous standby, even when none is there.
    pub strict: bool,
    pub node_count: u32,
    /// Bytes a standby may be behind the best and still be chosen; zero or less: not asked.
    pub maximum_lag: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SynchronousMode {
    #[default]
    Off,
    /// `FIRST`-like: the named standbys, in the order of priority.
    Priority,
    Quorum,
}

/// A slot that an operator declared permanent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermanentSlot {
    pub kind: PermanentKind,
    /// `None`: on both.
    pub cluster_type: Option<ClusterType>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermanentKind {
    Physical,
    Logical { database: String, plugin: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterType {
    Primary,
    Standby,
}

impl PermanentSlot {
    /// One entry of `slots`. (PG-269)
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(name: &str, value: &Value) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            return Err(format!("slots.{name}: a slot's name is 1 to 63 of a-z, 0-9 and _"));
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let cluster_type = match text("cluster_type").as_deref() {
            None => None,
            Some("primary") => Some(ClusterType::Primary),
            Some("standby") => Some(ClusterType::Standby),
            Some(other) => {
                return Err(format!(
                    "slots.{name}.cluster_type: {other} is neither primary nor standby"
                ));
            }
        };
        let kind = match (text("type").as_deref(), text("database"), text("plugin")) {
            (Some("logical") | None, Some(database), Some(plugin)) => {
                PermanentKind::Logical { database, plugin }
            }
            (Some("physical") | None, _, _) => PermanentKind::Physical,
            (Some("logical"), _, _) => {
                return Err(format!("slots.{name}: a logical slot needs database and plugin"));
            }
            (Some(other), _, _) => {
                return Err(format!("slots.{name}.type: {other} is neither physical nor logical"));
            }
        };
        Ok(Self { kind, cluster_type })
    }

    /// Is this the slot that was declared?
    pub fn is(&self, slot: &Slot) -> bool {
        match (&self.kind, &slot.logical) {
            (PermanentKind::Physical, None) => true,
            (PermanentKind::Logical { database, plugin }, Some(has)) => {
                has.database == *database && has.plugin == *plugin
            }
            (PermanentKind::Physical, Some(_)) | (PermanentKind::Logical { .. }, None) => false,
        }
    }
}

/// One entry of `ignore_slots`: what it does not name fits any. (PG-268)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredSlot {
    pub name: Option<String>,
    pub logical: Option<bool>,
    pub database: Option<String>,
    pub plugin: Option<String>,
}

impl IgnoredSlot {
    pub fn parse(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        Self {
            name: text("name"),
            logical: text("type").map(|kind| kind == "logical"),
            database: text("database"),
            plugin: text("plugin"),
        }
    }

    pub fn matches(&self, slot: &Slot) -> bool {
        let logical = slot.logical.as_ref();
        let fits = |wanted: &Option<String>, has: Option<&String>| {
            wanted.is_none() || wanted.as_ref() == has
        };
        fits(&self.name, Some(&slot.name))
            && self.logical.is_none_or(|wanted| wanted == logical.is_some())
            && fits(&self.database, logical.map(|has| &has.database))
            && fits(&self.plugin, logical.map(|has| &has.plugin))
    }
}

/// The remote primary, as the core needs it. (HA-110, HA-115)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyCluster {
    /// `postgres://host:port/database`, several hosts separated by commas; `None`: only from the
    /// archive.
    pub conn_url: Option<String>,
}

impl StandbyCluster {
    /// The remote primary as a server to follow. (HA-110)
    pub fn remote(&self) -> Upstream {
        Upstream {
            name: MemberName::from("remote_member"),
            conn_url: self.conn_url.clone().unwrap_or_default(),
            remote: true,
        }
    }
}

/// The version we publish: the Patroni whose records and behaviour we speak. (DCS-060, REST-350)
pub const EMULATED_VERSION: &str = "4.1.5";
