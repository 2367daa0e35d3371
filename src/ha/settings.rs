//! What the core has to know of the configuration: plain values, already checked.

use hathi_dcs::{MemberName, Timing};
use serde_json::{Map, Value};

/// The settings in force for one turn.
#[derive(Clone, Debug, PartialEq)]
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
}

/// The version we publish: the Patroni whose records and behaviour we speak. (DCS-060, REST-350)
pub const EMULATED_VERSION: &str = "4.1.5";
