//! The sections that choose a store. Plain data; no backend's types. (CFG-006)

use super::{Address, Secret};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The store this configuration chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DcsSection {
    Raft(RaftSection),
    Etcd3(Etcd3Section),
    Consul(ConsulSection),
    ZooKeeper(ZooKeeperSection),
    Redis(RedisSection),
    Kubernetes(KubernetesSection),
}

impl DcsSection {
    /// The section's name in the YAML.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Raft(_) => "raft",
            Self::Etcd3(_) => "etcd3",
            Self::Consul(_) => "consul",
            Self::ZooKeeper(_) => "zookeeper",
            Self::Redis(_) => "redis",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// `raft`: the embedded store. (CFG-340, CFG-341, DCS-191)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftSection {
    /// Where the others reach this node; one of the cluster's identities.
    pub self_addr: Address,
    /// Where this node listens; `self_addr` unless given.
    pub bind_addr: Address,
    /// The other voters, without this node.
    pub partner_addrs: Vec<Address>,
    /// Log, vote and snapshots.
    pub data_dir: PathBuf,
    /// Shared by all nodes; proves that a peer belongs here.
    pub password: Option<Secret>,
    /// In milliseconds, as far as given (seconds in the file); the backend has defaults. (CFG-423)
    pub min_timeout_ms: Option<u64>,
    pub max_timeout_ms: Option<u64>,
    pub connection_timeout_ms: Option<u64>,
    pub append_entries_period_ms: Option<u64>,
}

/// `etcd3`. (CFG-300 … CFG-307, DCS-081)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd3Section {
    /// From `proxy`, `url`, `hosts` or `host`, the first of them that is there; empty only with `srv`.
    pub hosts: Vec<Address>,
    /// DNS is asked first; `hosts` are for when it names nobody.
    pub srv: Option<EtcdSrv>,
    /// Only the servers given, no member list of the cluster. (CFG-304)
    pub use_proxies: bool,
    /// `https` instead of `http`. (CFG-305)
    pub https: bool,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    /// `None` with a `cert`: the key is inside the certificate's file. (CFG-307)
    pub key: Option<PathBuf>,
}

/// (CFG-303)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdSrv {
    /// The records stand below `_tcp.` of it.
    pub domain: String,
    pub suffix: Option<String>,
}

/// `consul`. (CFG-310 … CFG-313)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulSection {
    /// From `url`, `hosts` or `host`; never empty. The first is the local agent.
    pub hosts: Vec<Address>,
    pub https: bool,
    pub token: Option<Secret>,
    pub dc: Option<String>,
    pub consistency: ConsulConsistency,
    /// Names of checks a session depends on.
    pub checks: Vec<String>,
    /// False: whatever certificate the agent shows.
    pub verify: bool,
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    /// `None` with a `cert`: the key is inside the certificate's file.
    pub key: Option<PathBuf>,
    /// Register this node in Consul's catalogue.
    pub service: Option<ConsulService>,
}

/// (CFG-314, CFG-315)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulService {
    /// Sorted.
    pub tags: Vec<String>,
    pub check_interval: String,
    pub check_tls_server_name: Option<String>,
}

/// (CFG-312)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsulConsistency {
    #[default]
    Default,
    Consistent,
    Stale,
}

/// `zookeeper`. (CFG-320 … CFG-323)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooKeeperSection {
    /// Never empty.
    pub hosts: Vec<Address>,
    pub tls: Option<ZooKeeperTls>,
    /// Scheme and credential.
    pub auth_data: Vec<(String, Secret)>,
    /// Principal and rights; empty: anybody everything. (CFG-424)
    pub set_acls: Vec<(String, Vec<ZooKeeperRight>)>,
}

/// (CFG-321)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZooKeeperTls {
    /// False: whatever name the server's certificate carries.
    pub verify: bool,
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    /// `None` with a `cert`: the key is inside the certificate's file.
    pub key: Option<PathBuf>,
    pub key_password: Option<Secret>,
}

/// (CFG-322)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZooKeeperRight {
    Create,
    Read,
    Write,
    Delete,
    Admin,
    All,
}

/// `redis`. (CFG-410, DCS-200)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSection {
    /// Empty only with `sentinels`. The first that is writable is used.
    pub hosts: Vec<Address>,
    pub tls: Option<RedisTls>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub db: u32,
    /// How many replicas must have a write before it counts.
    pub replicas: u32,
    /// Asked for the writable server instead of `hosts`.
    pub sentinels: Option<RedisSentinels>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSentinels {
    /// Never empty.
    pub hosts: Vec<Address>,
    /// What `sentinel monitor` calls the servers.
    pub master: String,
    pub username: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisTls {
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    /// `None` with a `cert`: the key is inside the certificate's file.
    pub key: Option<PathBuf>,
}

/// `kubernetes`. (CFG-330 … CFG-338)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSection {
    pub namespace: String,
    /// Of the cluster's Pods and objects; never empty.
    pub labels: BTreeMap<String, String>,
    pub scope_label: String,
    pub role_label: String,
    pub leader_label_value: String,
    pub follower_label_value: String,
    pub standby_leader_label_value: String,
    pub tmp_role_label: Option<String>,
    /// On a Pod while its data directory is being made.
    pub bootstrap_labels: BTreeMap<String, String>,
    /// Endpoints instead of ConfigMaps.
    pub use_endpoints: bool,
    /// `None`: the Pod's own.
    pub pod_ip: Option<String>,
    /// Never empty.
    pub ports: Vec<KubernetesPort>,
    pub bypass_api_service: bool,
    /// Beside those that are retried anyway.
    pub retriable_http_codes: Vec<u16>,
    /// Instead of the service account's own authority.
    pub cacert: Option<PathBuf>,
    /// Of the kubeconfig, outside a Pod.
    pub context: Option<String>,
}

/// (CFG-335)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesPort {
    pub name: Option<String>,
    pub port: u16,
    pub protocol: Option<String>,
}
