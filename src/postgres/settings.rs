//! What this room has to know of the configuration: plain values, merged and validated elsewhere.

use hathi_dcs::MemberName;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One database user of ours. Its `Debug` shows no secrets. (PG-320)
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// `None`: the name of the operating system user, as libpq does it. (PG-324)
    pub username: Option<String>,
    pub password: Option<String>,
    /// `sslmode`, `sslcert` and the like, by libpq's names. (PG-320)
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Login");
        shown.field("username", &self.username).field("has_password", &self.password.is_some());
        shown.field("options", &self.options.keys()).finish()
    }
}

/// A word of the command line of initdb or pg_basebackup: `--name` or `--name=value`. (PG-102)
pub type ToolOption = (String, Option<String>);

/// A bootstrap method other than initdb. (PG-103)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomBootstrap {
    pub command: String,
    /// The other keys of the section, in file order, values as they are printed.
    pub arguments: Vec<(String, String)>,
    /// Neither `--scope` nor `--datadir` are passed.
    pub no_params: bool,
    pub keep_existing_recovery_conf: bool,
    pub recovery_conf: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// `initdb`, or a key of `custom`. (PG-101, PG-481)
    pub method: String,
    pub initdb: Vec<ToolOption>,
    pub custom: BTreeMap<String, CustomBootstrap>,
    /// A command line. (PG-082)
    pub post_bootstrap: Option<String>,
    /// Lines for pg_hba.conf if nothing else writes it. (PG-107)
    pub pg_hba: Vec<String>,
}

/// A way of creating a replica other than `basebackup`. (PG-123)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaMethod {
    pub command: String,
    pub arguments: Vec<(String, String)>,
    pub no_params: bool,
    pub no_leader: bool,
    pub keep_data: bool,
}

/// The parts of `standby_cluster` that are the standby leader's alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// `None`: no slot there is used. (PG-215)
    pub primary_slot_name: Option<String>,
    pub recovery_min_apply_delay: Option<String>,
}

/// Everything about the one PostgreSQL this agent manages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: MemberName,
    pub scope: String,
    pub data_dir: PathBuf,
    /// Where postgresql.conf lies; the data directory unless configured. (PG-170)
    pub config_dir: PathBuf,
    /// `None`: the binaries are found through `PATH`. (PG-008)
    pub bin_dir: Option<PathBuf>,
    pub bin_name: BTreeMap<String, String>,
    /// The host part of `postgresql.listen`.
    pub listen_addresses: String,
    pub port: u16,
    pub use_unix_socket: bool,
    pub use_unix_socket_repl: bool,
    pub database: String,
    pub pgpass: PathBuf,
    pub krbsrvname: Option<String>,
    pub superuser: Login,
    pub replication: Login,
    /// `None`: the superuser rewinds. (PG-158)
    pub rewind: Option<Login>,
    /// All parameters, the forced ones included, valid for this major version; recovery parameters
    /// are in `recovery_conf`. `listen_addresses`, `port` and `cluster_name` are ours. (PG-180 …)
    pub parameters: BTreeMap<String, String>,
    pub recovery_conf: BTreeMap<String, String>,
    /// What is due only when the remote member of a standby cluster is followed. (PG-215 … PG-217)
    pub standby_cluster: Option<Remote>,
    pub pg_hba: Vec<String>,
    pub pg_ident: Vec<String>,
    pub custom_conf: Option<String>,
    /// `postgresql` unless configured. (PG-170)
    pub config_base_name: String,
    /// How long a start may take, in seconds, where nobody says otherwise. (PG-026)
    pub pg_ctl_timeout: u32,
    /// Seconds a callback may take while another one waits; 0: none. (HA-319)
    pub callback_timeout: u32,
    pub use_pg_rewind: bool,
    pub use_slots: bool,
    /// Does somebody look after the disk? (HA-314)
    pub watch_disk: bool,
    /// Synchronous mode is on: `synchronous_standby_names` is not the user's. (PG-198, PG-280)
    pub synchronous: bool,
    pub bootstrap: Bootstrap,
    /// Names, in the order in which they are tried; `basebackup` is built in. (PG-121)
    pub create_replica_methods: Vec<String>,
    pub replica_methods: BTreeMap<String, ReplicaMethod>,
    pub basebackup: Vec<ToolOption>,
    /// Command lines by action: `on_start`, `on_stop`, `on_restart`, `on_reload`, `on_role_change`.
    pub callbacks: BTreeMap<String, String>,
    pub pre_promote: Option<String>,
    pub before_stop: Option<String>,
    /// What the postmaster prints before its logging collector starts goes to this file; `None`:
    /// to our own standard output and error, as Patroni has it. (PG-023)
    pub server_output: Option<PathBuf>,
}

/// The parameters that all members must agree on, in the order of the command line. (PG-180 … PG-189)
pub const FORCED: [&str; 13] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "wal_level",
    "hot_standby",
    "max_connections",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "track_commit_timestamp",
    "max_replication_slots",
    "max_worker_processes",
    "wal_log_hints",
];

impl Settings {
    /// Settings with the defaults of each key for a server in `data_dir`.
    pub fn new(name: &str, scope: &str, data_dir: impl Into<PathBuf>, port: u16) -> Self {
        let data_dir = data_dir.into();
        let parameters = [
            ("wal_level", "replica"),
            ("hot_standby", "on"),
            ("max_connections", "100"),
            ("max_wal_senders", "10"),
            ("wal_keep_size", "128MB"),
            ("max_prepared_transactions", "0"),
            ("max_locks_per_transaction", "64"),
            ("track_commit_timestamp", "off"),
            ("max_replication_slots", "10"),
            ("max_worker_processes", "8"),
            ("wal_log_hints", "on"),
        ];
        Self {
            name: MemberName::from(name),
            scope: scope.to_owned(),
            config_dir: data_dir.clone(),
            pgpass: data_dir.with_extension("pgpass"),
            data_dir,
            bin_dir: None,
            bin_name: BTreeMap::new(),
            listen_addresses: "localhost".into(),
            port,
            use_unix_socket: false,
            use_unix_socket_repl: false,
            database: "postgres".into(),
            krbsrvname: None,
            superuser: Login::default(),
            replication: Login::default(),
            rewind: None,
            parameters: parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            recovery_conf: BTreeMap::new(),
            standby_cluster: None,
            pg_hba: Vec::new(),
            pg_ident: Vec::new(),
            custom_conf: None,
            config_base_name: "postgresql".into(),
            pg_ctl_timeout: 60,
            callback_timeout: 0,
            use_pg_rewind: false,
            use_slots: true,
            watch_disk: false,
            synchronous: false,
            bootstrap: Bootstrap { method: "initdb".into(), ..Bootstrap::default() },
            create_replica_methods: vec!["basebackup".into()],
            replica_methods: BTreeMap::new(),
            basebackup: Vec::new(),
            callbacks: BTreeMap::new(),
            pre_promote: None,
            before_stop: None,
            server_output: None,
        }
    }

    /// The path of one of PostgreSQL's programs. (PG-008)
    pub fn binary(&self, name: &str) -> PathBuf {
        let file = self.bin_name.get(name).map_or(name, String::as_str);
        match &self.bin_dir {
            Some(dir) => dir.join(file),
            None => PathBuf::from(file),
        }
    }

    /// Does this program exist? Looks, runs nothing.
    pub fn has_binary(&self, name: &str) -> bool {
        let path = self.binary(name);
        if self.bin_dir.is_some() {
            return path.exists();
        }
        let search = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&search).any(|dir| dir.join(&path).exists())
    }

    /// The file we write. (PG-170)
    pub fn config_file(&self) -> PathBuf {
        self.config_dir.join(format!("{}.conf", self.config_base_name))
    }

    /// The file we include. (PG-170)
    pub fn base_config_file(&self) -> PathBuf {
        self.config_dir.join(format!("{}.base.conf", self.config_base_name))
    }

    /// The parameters with those only we may set. (PG-180 … PG-182)
    pub fn effective_parameters(&self) -> BTreeMap<String, String> {
        let mut all = self.parameters.clone();
        all.insert("listen_addresses".into(), self.listen_addresses.clone());
        all.insert("port".into(), self.port.to_string());
        all.insert("cluster_name".into(), self.scope.clone());
        for file in ["hba_file", "ident_file"] {
            if let Some(path) = all.get(file) {
                let path = self.config_dir.join(path); // PG-175
                all.insert(file.into(), path.display().to_string());
            }
        }
        all
    }

    /// Where the server's sockets are, made absolute, in order. (PG-021, PG-321)
    pub fn socket_directories(&self) -> Option<Vec<PathBuf>> {
        let value = self.parameters.get("unix_socket_directories")?;
        let split = value.split(',').map(str::trim).filter(|part| !part.is_empty());
        Some(split.map(|part| self.data_dir.join(part)).collect())
    }

    /// The lock files beside those sockets.
    pub fn socket_locks(&self) -> Vec<PathBuf> {
        let default = || vec![PathBuf::from(default_socket_directory())];
        let directories = self.socket_directories().unwrap_or_else(default);
        let lock = |dir: PathBuf| dir.join(format!(".s.PGSQL.{}.lock", self.port));
        directories.into_iter().map(lock).collect()
    }

    /// The host for connections to the local server: a socket directory or a TCP name. (PG-321)
    pub fn local_host(&self, unix: bool) -> String {
        if unix {
            match self.socket_directories() {
                Some(dirs) => {
                    if let Some(dir) = dirs.first() {
                        return dir.display().to_string();
                    }
                }
                None => return default_socket_directory(),
            }
        }
        let mut addresses = self.listen_addresses.split(',').map(str::trim);
        let any = ["*", "localhost", "0.0.0.0", "127.0.0.1"];
        if addresses.clone().any(|address| any.contains(&address)) {
            return "localhost".into();
        }
        addresses.next().filter(|first| !first.is_empty()).unwrap_or("localhost").to_owned()
    }

    /// The user that rewinds and asks the leader. (PG-158)
    pub fn rewind_login(&self) -> &Login {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }
}

/// Where libpq looks for a socket nobody configured: Debian's place if it is there.
fn default_socket_directory() -> String {
    let debian = "/var/run/postgresql";
    if Path::new(debian).is_dir() { debian.into() } else { "/tmp".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-321.
    #[test]
    fn the_local_address_follows_listen_and_the_sockets() {
        let mut settings = Settings::new("a", "s", "/d", 5432);
        for (listen, host) in [
            ("*", "localhost"),
            ("10.0.0.1,127.0.0.1", "localhost"),
            ("0.0.0.0", "localhost"),
            ("10.0.0.1,10.0.0.2", "10.0.0.1"),
            ("::1", "::1"),
        ] {
            settings.listen_addresses = listen.into();
            assert_eq!(settings.local_host(false), host, "{listen}");
        }
        settings.parameters.insert("unix_socket_directories".into(), " /run/x, rel".into());
        assert_eq!(settings.local_host(true), "/run/x");
        settings.parameters.insert("unix_socket_directories".into(), String::new());
        assert_eq!(settings.local_host(true), "::1", "none: TCP");
    }

    /// Proves PG-008.
    #[test]
    fn binaries_are_found_below_bin_dir_and_may_have_other_names() {
        let mut settings = Settings::new("a", "s", "/d", 5432);
        assert_eq!(settings.binary("initdb"), Path::new("initdb"));
        settings.bin_dir = Some("/opt/pg".into());
        settings.bin_name.insert("postgres".into(), "postgres15".into());
        assert_eq!(settings.binary("postgres"), Path::new("/opt/pg/postgres15"));
        assert_eq!(settings.binary("initdb"), Path::new("/opt/pg/initdb"));
    }
}
