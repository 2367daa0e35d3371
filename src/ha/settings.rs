//! What the core has to know of the configuration: plain values, already checked.

use crate::ha::ports::Upstream;
use hathi_dcs::{MemberName, Timing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
