//! What is in force now: the dynamic document, under the local configuration where that may win.

use super::InitdbOption;
use hathi_dcs::Timing;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// PostgreSQL parameters: name in lower case → value in the spelling the file gets. (CFG-027)
pub type Parameters = BTreeMap<String, String>;

/// The settings in force, made by [`super::effective`] at each change of the dynamic document.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Already adjusted, as where members of Patroni's may be. (CFG-037)
    pub timing: Timing,
    /// As the document has it: members of ours alone may agree on a shorter `ttl`. (HA-324)
    pub wished_timing: Timing,
    /// Bytes a replica may miss and still win an automatic failover. (CFG-263)
    pub maximum_lag_on_failover: u64,
    /// Bytes; zero or less: off. (CFG-264)
    pub maximum_lag_on_syncnode: i64,
    /// Entries kept; 0: all. (CFG-265)
    pub max_timelines_history: u32,
    /// Seconds; 0: fail over at once if possible. (CFG-266)
    pub primary_start_timeout: u32,
    /// Seconds; 0: no limit; only in synchronous mode. (CFG-267)
    pub primary_stop_timeout: u32,
    /// Seconds; 0: the race begins at once. (CFG-420)
    pub primary_race_backoff: u32,
    /// (CFG-490)
    pub primary_restart_limit: u32,
    /// Seconds; 0: nobody looks after the disk. (HA-314, CFG-491)
    pub primary_disk_timeout: u32,
    /// Off in a standby cluster. (CFG-268, CFG-282)
    pub synchronous_mode: SynchronousMode,
    pub synchronous_mode_strict: bool,
    pub synchronous_node_count: u32,
    pub failsafe_mode: bool,
    pub check_timeline: bool,
    pub pause: bool,
    /// Seconds a slot outlives the member key it is for; 0: only slots in use. (CFG-274)
    pub member_slots_ttl: u32,
    /// (CFG-181)
    pub use_slots: bool,
    /// Permanent slots by name, as they stand. (CFG-275)
    pub slots: Map<String, Value>,
    /// (CFG-276)
    pub ignore_slots: Vec<Value>,
    /// (CFG-277)
    pub standby_cluster: Option<StandbyCluster>,
    pub postgresql: Postgresql,
}

/// (CFG-268)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    #[default]
    Off,
    On,
    Quorum,
}

/// This cluster follows another one. (CFG-277 … CFG-279)
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StandbyCluster {
    /// May list several, separated by commas.
    pub host: Option<String>,
    pub port: Option<u16>,
    pub restore_command: Option<String>,
    /// `None`: no slot is used. (PG-215)
    pub primary_slot_name: Option<String>,
    /// Empty: those of `postgresql`. (PG-121)
    pub create_replica_methods: Vec<ReplicaMethod>,
    pub archive_cleanup_command: Option<String>,
    pub recovery_min_apply_delay: Option<String>,
}

/// `postgresql` as far as the dynamic document has a say, merged. (section 8, src LD; CFG-034)
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Postgresql {
    /// All parameters for PostgreSQL's file: ours with their defaults (PG-183 … PG-189: checked,
    /// from the dynamic document only), then everybody's. Without `listen_addresses`, `port`,
    /// `cluster_name`, which come from [`super::PostgresqlLocal`] and the scope, and without
    /// recovery parameters, which are in `recovery_conf` (PG-179).
    ///
    /// `wal_keep_size` is always in here under this name; before PostgreSQL 13 the writer turns it
    /// into `wal_keep_segments` (16 MB each). `wal_level` is spelled `replica`, not `hot_standby`.
    pub parameters: Parameters,
    /// Empty: pg_hba.conf is not ours. (CFG-175, PG-174)
    pub pg_hba: Vec<String>,
    pub pg_ident: Vec<String>,
    /// (CFG-176)
    pub custom_conf: Option<String>,
    /// (CFG-177)
    pub recovery_conf: Parameters,
    /// Seconds. (CFG-178)
    pub pg_ctl_timeout: u32,
    /// Seconds a callback may take before the next one that waits ends it; 0: at once. (CFG-492)
    pub callback_timeout: u32,
    pub use_pg_rewind: bool,
    pub remove_data_directory_on_rewind_failure: bool,
    pub remove_data_directory_on_diverged_timelines: bool,
    /// (HA-316, CFG-493)
    pub reinitialize_without_wal: bool,
    pub use_unix_socket: bool,
    pub use_unix_socket_repl: bool,
    pub krbsrvname: Option<String>,
    /// The database our own connections use. (CFG-168)
    pub database: String,
    /// Binary → its name here; only those that differ. (CFG-167)
    pub bin_name: BTreeMap<String, String>,
    /// In the order they are tried; never empty. (CFG-182, PG-121)
    pub create_replica_methods: Vec<ReplicaMethod>,
    /// Options of pg_basebackup, in the order given. (CFG-184, PG-127)
    pub basebackup: Vec<InitdbOption>,
    pub callbacks: Callbacks,
    /// Command lines. (CFG-186, PG-080, PG-081)
    pub pre_promote: Option<String>,
    pub before_stop: Option<String>,
}

/// How a replica's data directory is made. (CFG-183, PG-123)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    Basebackup,
    Custom {
        name: String,
        command: String,
        keep_data: bool,
        no_params: bool,
        no_leader: bool,
        /// Every other key of its section, and `no_leader` and `keep_data` as given, in the
        /// order of the file.
        options: Vec<(String, String)>,
    },
}

/// Command lines run after something happened; nobody waits for them. (CFG-185, PG-083)
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Callbacks {
    pub on_start: Option<String>,
    pub on_stop: Option<String>,
    pub on_restart: Option<String>,
    pub on_reload: Option<String>,
    pub on_role_change: Option<String>,
}
