//! What one node's file and environment say. Read once at start, never changed after.

use super::document::Origins;
use super::{Address, DcsSection, Listen, Secret};
use hathi_dcs::{MemberName, Scope};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The local configuration of one member.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// (CFG-080)
    pub name: MemberName,
    /// Namespace and cluster name. (CFG-081, CFG-082)
    pub scope: Scope,
    pub restapi: RestApi,
    pub ctl: Ctl,
    pub dcs: DcsSection,
    /// `None`: this node never begins a cluster. (CFG-130)
    pub bootstrap: Option<Bootstrap>,
    pub postgresql: PostgresqlLocal,
    pub watchdog: Watchdog,
    pub guard: Guard,
    pub tags: Tags,
    pub log: Log,
    /// The `postgresql` section of file and environment as it stood: what [`super::effective`]
    /// puts over the dynamic document.
    pub(super) postgresql_section: LocalSection,
}

/// A mapping of the local configuration kept for merging. It holds secrets, so its `Debug` shows
/// only keys.
#[derive(Clone, PartialEq, Default)]
pub struct LocalSection {
    pub(super) values: Value,
    pub(super) origins: Origins,
}

impl fmt::Debug for LocalSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.as_object().into_iter().flat_map(Map::keys)).finish()
    }
}

impl Local {
    /// What the cluster's dynamic document is until the store says otherwise: the one of
    /// `bootstrap.dcs`, or an empty one. (CFG-008)
    pub fn first_dynamic(&self) -> Map<String, Value> {
        self.bootstrap.as_ref().map(|b| b.dcs.clone()).unwrap_or_default()
    }

    /// `http://host:port/patroni` or https: what the member key carries as `api_url`.
    pub fn api_url(&self) -> String {
        let scheme = if self.restapi.certfile.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/patroni", self.restapi.connect_address)
    }
}

/// `username` and `password` of the REST API's unsafe requests, or of our own requests to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuth {
    pub username: String,
    pub password: Secret,
}

/// `restapi`. (CFG-097 … CFG-108)
#[derive(Clone, Debug, PartialEq)]
pub struct RestApi {
    pub listen: Listen,
    /// `listen` unless given.
    pub connect_address: Address,
    pub authentication: Option<BasicAuth>,
    /// With it the API speaks https only.
    pub certfile: Option<PathBuf>,
    /// `None`: the key is inside `certfile`.
    pub keyfile: Option<PathBuf>,
    pub keyfile_password: Option<Secret>,
    pub cafile: Option<PathBuf>,
    pub ciphers: Option<String>,
    pub verify_client: VerifyClient,
    /// Hosts, addresses and CIDR networks that may send unsafe requests; empty: everybody.
    pub allowlist: Vec<String>,
    pub allowlist_include_members: bool,
    /// Added to every answer, in the order given.
    pub http_extra_headers: Vec<(String, String)>,
    /// Added to those when TLS is on.
    pub https_extra_headers: Vec<(String, String)>,
    pub server_tokens: ServerTokens,
    /// Backlog of the listening socket. (CFG-106)
    pub request_queue_size: u32,
    /// Seconds a TLS handshake may take; at least 1. (REST-363)
    pub handshake_timeout: u32,
    /// Seconds a client may take to send a request, and to send the next one; at least 1. (REST-363)
    pub request_timeout: u32,
    /// Connections open at the same time; at least 16. (REST-451)
    pub max_connections: u32,
    /// Refuse a dynamic configuration that is not understood. (REST-465)
    pub strict_config: bool,
    /// Listen here too, for this machine's owner of the file. (REST-315)
    pub unix_socket: Option<PathBuf>,
}

/// Who has to show a client certificate. (CFG-102)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum VerifyClient {
    #[default]
    None,
    /// For unsafe requests.
    Optional,
    /// For every request.
    Required,
}

/// What the `Server` header tells. (CFG-108, CFG-407)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ServerTokens {
    #[default]
    Original,
    Minimal,
    ProductOnly,
}

/// `ctl`: how this node speaks to other members' REST API. (CFG-109 … CFG-111)
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ctl {
    /// `ctl.authentication`, else `restapi.authentication`.
    pub authentication: Option<BasicAuth>,
    pub insecure: bool,
    /// `ctl.cacert`, else `restapi.cafile`.
    pub cacert: Option<PathBuf>,
    pub certfile: Option<PathBuf>,
    pub keyfile: Option<PathBuf>,
    pub keyfile_password: Option<Secret>,
}

/// `bootstrap`: how a cluster begins. (CFG-130 … CFG-136)
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Bootstrap {
    /// The first dynamic document. (CFG-131)
    pub dcs: Map<String, Value>,
    pub method: BootstrapMethod,
    /// In the order given. (CFG-133, PG-102)
    pub initdb: Vec<InitdbOption>,
    /// A command line. (CFG-135, PG-082)
    pub post_bootstrap: Option<String>,
    /// Lines added once. (CFG-136, PG-107)
    pub pg_hba: Vec<String>,
}

/// How the first data directory comes to be. (CFG-132, PG-101)
#[derive(Clone, Debug, PartialEq, Default)]
pub enum BootstrapMethod {
    #[default]
    Initdb,
    Custom(CustomBootstrap),
}

/// `bootstrap.<method>`. (CFG-134, PG-103 … PG-105)
#[derive(Clone, Debug, PartialEq)]
pub struct CustomBootstrap {
    pub name: String,
    pub command: String,
    /// Drops only `--scope` and `--datadir`. (PG-103)
    pub no_params: bool,
    pub keep_existing_recovery_conf: bool,
    pub recovery_conf: Option<BTreeMap<String, String>>,
    /// The other keys, in the order given, values in Python's spelling. (CFG-027)
    pub options: Vec<(String, String)>,
}

/// One option of a PostgreSQL tool: `word` becomes `--word`, a pair `--name=value`. (PG-102)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitdbOption {
    Flag(String),
    Pair(String, String),
}

/// The part of `postgresql` that only the local file decides. What the dynamic document may change
/// is in [`super::Postgresql`]. (section 8, src L)
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresqlLocal {
    pub listen: Listen,
    /// What others connect to. (CFG-161)
    pub connect_address: Address,
    /// Published beside it, for a pooler before PostgreSQL. (CFG-162)
    pub proxy_address: Option<Address>,
    pub data_dir: PathBuf,
    /// `data_dir` unless given. (CFG-164)
    pub config_dir: PathBuf,
    /// `postgresql` unless given: `<base>.conf`, `<base>.base.conf`. (CFG-165)
    pub config_base_name: String,
    /// `None`: the PATH is searched. (CFG-166)
    pub bin_dir: Option<PathBuf>,
    /// The password file we own. (CFG-169)
    pub pgpass: PathBuf,
    pub authentication: Authentication,
}

/// The three users. (CFG-170, CFG-171, PG-320)
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Authentication {
    pub superuser: Credentials,
    pub replication: Credentials,
    /// The superuser's unless given.
    pub rewind: Credentials,
}

/// One database user and the libpq options that go with it. (PG-320)
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Credentials {
    /// `None`: libpq's default, the OS user.
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// `sslmode`, `sslcert`, `sslkey`, `sslpassword`, `sslrootcert`, `sslcrl`, `sslcrldir`,
    /// `gssencmode`, `channel_binding`, `sslnegotiation`, as far as given, in that order.
    pub options: Vec<(&'static str, Secret)>,
}

impl Credentials {
    /// One of the libpq options, if given.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(key, _)| *key == name).map(|(_, value)| value.expose())
    }
}

/// `watchdog`. (CFG-145 … CFG-148)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchdog {
    pub mode: WatchdogMode,
    pub device: PathBuf,
    /// Seconds; -1: half of ttl.
    pub safety_margin: i32,
    pub driver: WatchdogDriver,
}

impl Default for Watchdog {
    fn default() -> Self {
        let device = PathBuf::from("/dev/watchdog");
        let driver = WatchdogDriver::Default;
        Self { mode: WatchdogMode::Automatic, device, safety_margin: 5, driver }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogMode {
    Off,
    Automatic,
    /// Without a working device there is no leadership.
    Required,
}

/// (CFG-148)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogDriver {
    #[default]
    Default,
    Testing,
}

/// `guard`, our own section: the process that stops PostgreSQL when the agent cannot. (design 5)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Guard {
    pub mode: GuardMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GuardMode {
    /// Without a living guard there is no leadership.
    #[default]
    Required,
    Off,
}

/// `tags`, parsed as real values. (CFG-150 … CFG-157, CFG-470)
#[derive(Clone, Debug, PartialEq)]
pub struct Tags {
    /// True also for a `failover_priority` of zero or less, unless `nofailover: false` overrides
    /// it. (CFG-076, CFG-151)
    pub nofailover: bool,
    /// 1 unless given; 0 when `nofailover`.
    pub failover_priority: i64,
    pub nosync: bool,
    /// 1 unless given; 0 when `nosync`.
    pub sync_priority: i64,
    pub clonefrom: bool,
    pub noloadbalance: bool,
    pub nostream: bool,
    pub replicatefrom: Option<MemberName>,
    /// What goes into the member key, already filtered. (CFG-157)
    pub published: Map<String, Value>,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            nofailover: false,
            failover_priority: 1,
            nosync: false,
            sync_priority: 1,
            clonefrom: false,
            noloadbalance: false,
            nostream: false,
            replicatefrom: None,
            published: Map::new(),
        }
    }
}

/// `log`. (CFG-085 … CFG-096)
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub kind: LogType,
    /// Python's `%(name)s` format; also in JSON, where it names the fields. (CFG-088)
    pub format: String,
    /// In JSON, instead of `format` if not empty: field → its name in the line. (CFG-088)
    pub fields: Vec<(String, String)>,
    /// A valid strftime text; `None`: `YYYY-MM-DD HH:MM:SS,mmm`. (CFG-089)
    pub dateformat: Option<String>,
    pub level: tracing::Level,
    /// With error chains at this level and below. (CFG-087, CFG-405)
    pub traceback_level: tracing::Level,
    /// `None`: stderr; else `patroni.log` inside.
    pub dir: Option<PathBuf>,
    /// Bytes after which the file is rotated.
    pub file_size: u64,
    /// How many rotated files are kept.
    pub file_num: u32,
    /// Permission bits of the file.
    pub mode: Option<u32>,
    /// Logger name → level; Python's names are mapped by prefix. (CFG-404)
    pub loggers: Vec<(String, tracing::Level)>,
    /// Added to every line in JSON.
    pub static_fields: Map<String, Value>,
    /// Records the writer's queue holds. (CFG-403)
    pub max_queue_size: usize,
    pub deduplicate_heartbeat_logs: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kind: LogType::Plain,
            format: "%(asctime)s %(levelname)s: %(message)s".to_owned(),
            fields: Vec::new(),
            dateformat: None,
            level: tracing::Level::INFO,
            traceback_level: tracing::Level::ERROR,
            dir: None,
            file_size: 25_000_000,
            file_num: 4,
            mode: None,
            loggers: Vec::new(),
            static_fields: Map::new(),
            max_queue_size: 1000,
            deduplicate_heartbeat_logs: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogType {
    #[default]
    Plain,
    Json,
}
