//! Real etcd members on loopback.

use crate::certs::Certs;
use crate::leftovers::{self, Owner};
use crate::network::{self, Machine, Network};
use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, rest, wait};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Which etcd: Debian bookworm's own, or the one scripts/setup unpacked from trixie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdVersion {
    V34,
    V35,
}

impl EtcdVersion {
    pub fn binary(self) -> PathBuf {
        match self {
            Self::V34 => PathBuf::from("/usr/bin/etcd"),
            Self::V35 => cache_dir().join("trixie/usr/bin/etcd"),
        }
    }
}

/// Where scripts/setup leaves what it had to fetch.
pub fn cache_dir() -> PathBuf {
    PathBuf::from(std::env::var("HATHI_CACHE").unwrap_or_else(|_| "/var/cache/hathi".to_owned()))
}

/// How to start an etcd.
#[derive(Clone, Copy, Debug)]
pub struct EtcdOptions {
    pub version: EtcdVersion,
    pub members: usize,
    /// https only, and every client must show a certificate.
    pub tls: bool,
    /// The same for the members among themselves.
    pub peer_tls: bool,
    /// Clients reach each member through a proxy that can lose answers, and are told so.
    pub proxied: bool,
    /// Seconds until a token that is not used is forgotten.
    pub token_ttl: Option<u32>,
    /// The size at which the store refuses to grow.
    pub quota_bytes: Option<u64>,
}

impl EtcdOptions {
    pub fn new(version: EtcdVersion, members: usize) -> Self {
        let (tls, peer_tls, proxied) = (false, false, false);
        Self { version, members, tls, peer_tls, proxied, token_ttl: None, quota_bytes: None }
    }
}

struct Member {
    name: String,
    dir: PathBuf,
    host: Ipv4Addr,
    machine: Option<Arc<Machine>>,
    client: u16,
    peer: u16,
    /// Health and metrics, always plain http, never proxied.
    metrics: u16,
}

impl Member {
    fn metrics(&self) -> SocketAddr {
        (self.host, self.metrics).into()
    }
}

/// An etcd cluster of its own, ended and removed when dropped.
pub struct Etcd {
    options: EtcdOptions,
    members: Vec<Member>,
    seats: Seats,
    pub certs: Option<Certs>,
    dir: tempfile::TempDir,
    _owner: Owner,
}

impl Etcd {
    /// Starts `count` plain members and waits until they serve.
    pub async fn start(version: EtcdVersion, count: usize) -> Self {
        Self::start_with(EtcdOptions::new(version, count)).await
    }

    /// Starts the members and waits until they serve.
    pub async fn start_with(options: EtcdOptions) -> Self {
        Self::start_on(options, None).await
    }

    /// The same with each member on the machine of its number.
    pub async fn start_on(options: EtcdOptions, network: Option<&Network>) -> Self {
        let mut etcd = Self::prepared(options, network);
        etcd.start_all();
        etcd.ready().await;
        etcd
    }

    /// One member on a copy of the data of another, which must not run: the same cluster at this moment,
    /// as after a restore from a backup.
    pub async fn on_copy_of(other: &Self) -> Self {
        assert_eq!(other.members.len(), 1, "a member of several would look for the others");
        let mut etcd = Self::prepared(other.options, None);
        let mut copy = Command::new("cp");
        let copied = copy.arg("-a").arg(&other.members[0].dir).arg(etcd.dir.path()).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp -a");
        etcd.start_all();
        etcd.ready().await;
        etcd
    }

    fn prepared(options: EtcdOptions, network: Option<&Network>) -> Self {
        leftovers::clean("hathi-etcd-");
        let dir = osuser::server_dir("hathi-etcd-");
        let owner = Owner::of(dir.path()).expect("the lock of the run's directory");
        let tls = options.tls || options.peer_tls;
        let certs = tls.then(|| Certs::make(dir.path()));
        let mut seats = Seats::default();
        let members = (0..options.members)
            .map(|i| {
                let machine = network.map(|n| n.machine(i).clone());
                let host = machine.as_ref().map_or(Ipv4Addr::LOCALHOST, |m| m.address);
                let ports = match &machine {
                    Some(_) => vec![
                        network::ETCD_CLIENT_PORT,
                        network::ETCD_PEER_PORT,
                        network::ETCD_METRICS_PORT,
                    ],
                    None => free_ports(3),
                };
                let name = format!("m{i}");
                let proxy = options.proxied.then(|| Proxy::start(ports[0]));
                seats.0.push(Seat { process: None, proxy });
                let dir = dir.path().join(&name);
                let (client, peer, metrics) = (ports[0], ports[1], ports[2]);
                Member { name, dir, host, machine, client, peer, metrics }
            })
            .collect();
        Self { options, members, seats, certs, dir, _owner: owner }
    }

    /// One request to the JSON gateway of the first member, beside every client.
    ///
    /// # Errors
    /// No answer, or none of success.
    pub async fn gateway(&self, path: &str, body: &Value) -> Result<Value, String> {
        let place = SocketAddr::from((self.members[0].host, self.members[0].client));
        let within = Duration::from_secs(5);
        let answer =
            rest::request("POST", place, &format!("/v3/{path}"), Some(body), within).await?;
        match answer.status {
            200 => Ok(answer.json()),
            status => Err(format!("{status} {}", answer.body)),
        }
    }

    /// What stands under a key, if it is there.
    pub fn value(&self, key: &str) -> Option<String> {
        let mut command = Command::new(cache_dir().join("trixie/usr/bin/etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.hosts(), "get", key]);
        let out = command.output().expect("etcdctl runs (scripts/setup unpacks it)");
        assert!(out.status.success(), "etcdctl: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (_, value) = text.trim_end().split_once('\n')?;
        Some(value.to_owned())
    }

    /// Raises or ends the alarm of a store that is full: leases are kept alive, nothing is written.
    pub async fn full(&self, yes: bool) {
        let action = if yes { "ACTIVATE" } else { "DEACTIVATE" };
        let alarm = json!({"action": action, "memberID": 0, "alarm": "NOSPACE"});
        self.gateway("maintenance/alarm", &alarm).await.expect("an alarm");
    }

    /// `host:port,…`, as the YAML wants it.
    pub fn hosts(&self) -> String {
        let all: Vec<String> =
            self.members.iter().map(|m| format!("{}:{}", m.host, m.client)).collect();
        all.join(",")
    }

    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// What clients connect to: the proxies if there are some.
    pub fn urls(&self) -> Vec<String> {
        let each = self.members.iter().zip(&self.seats.0);
        each.map(|(m, seat)| self.url(m.host, seat.proxy.as_ref().map_or(m.client, |p| p.port)))
            .collect()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(i, _)| self.seats.runs(*i))
    }

    fn url(&self, host: Ipv4Addr, port: u16) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://{host}:{port}")
    }

    fn peer_url(&self, member: &Member) -> String {
        let scheme = if self.options.peer_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", member.host, member.peer)
    }

    /// Where the members talk to each other.
    pub fn peer_ports(&self) -> Vec<u16> {
        self.members.iter().map(|m| m.peer).collect()
    }

    pub fn client_ports(&self) -> Vec<u16> {
        self.members.iter().map(|m| m.client).collect()
    }

    /// How many key-value and lease calls the members have been asked for since they started,
    /// from their own metrics.
    ///
    /// # Errors
    /// A member does not answer.
    pub async fn calls(&self) -> Result<u64, String> {
        let mut sum = 0.0;
        for m in &self.members {
            let text = rest::get(m.metrics(), "/metrics").await?.body;
            sum += text
                .lines()
                .filter(|l| l.starts_with("grpc_server_started_total"))
                .filter(|l| l.contains("etcdserverpb.KV") || l.contains("etcdserverpb.Lease"))
                .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>();
        }
        Ok(sum as u64)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

seated!(Etcd);

impl StoreServers for Etcd {
    fn start_all(&mut self) {
        let binary = self.options.version.binary();
        assert!(binary.exists(), "{} is not there: run scripts/setup", binary.display());
        let initial: Vec<String> =
            self.members.iter().map(|m| format!("{}={}", m.name, self.peer_url(m))).collect();
        let initial = initial.join(",");
        for (i, advertised) in self.urls().into_iter().enumerate() {
            if self.seats.runs(i) {
                continue;
            }
            let m = &self.members[i];
            let client = self.url(m.host, m.client);
            let peer = self.peer_url(m);
            let metrics = format!("http://{}:{}", m.host, m.metrics);
            let mut command = Command::new(&binary);
            command.env_clear().args(["--name", &m.name, "--data-dir"]).arg(&m.dir);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &advertised]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &initial, "--initial-cluster-state", "new"]);
            command.args(["--initial-cluster-token", "hathi-test"]);
            command.args(["--listen-metrics-urls", &metrics]);
            command.args(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
            if self.options.version == EtcdVersion::V35 {
                command.arg("--unsafe-no-fsync");
            }
            if let Some(certs) = self.certs.as_ref().filter(|_| self.options.peer_tls) {
                command.arg("--peer-cert-file").arg(&certs.cert);
                command.arg("--peer-key-file").arg(&certs.key);
                command.arg("--peer-trusted-ca-file").arg(&certs.ca).arg("--peer-client-cert-auth");
            }
            if let Some(certs) = self.certs.as_ref().filter(|_| self.options.tls) {
                command.arg("--cert-file").arg(&certs.cert).arg("--key-file").arg(&certs.key);
                command.arg("--trusted-ca-file").arg(&certs.ca).arg("--client-cert-auth");
            }
            if let Some(seconds) = self.options.token_ttl {
                command.args(["--auth-token-ttl", &seconds.to_string()]);
            }
            if let Some(bytes) = self.options.quota_bytes {
                command.args(["--quota-backend-bytes", &bytes.to_string()]);
            }
            let log = self.dir.path().join(format!("{}.log", m.name));
            let machine = self.members[i].machine.clone();
            self.seats.0[i].process = Some(Process::start_on(machine.as_deref(), command, &log));
        }
    }

    async fn ready(&self) {
        for (_, m) in self.running() {
            let serves = wait::until("etcd serves", Duration::from_secs(30), || async {
                let soon = Duration::from_secs(2);
                let got = rest::request("GET", m.metrics(), "/health", None, soon).await?;
                if got.status == 200 { Ok(()) } else { Err(got.body) }
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.dir.path().join(format!("{}.log", m.name)), 20));
            }
        }
    }

    async fn leader(&self) -> Option<usize> {
        for (i, m) in self.running() {
            let soon = Duration::from_secs(2);
            let said = rest::request("GET", m.metrics(), "/metrics", None, soon).await;
            if said.is_ok_and(|s| s.body.lines().any(|l| l == "etcd_server_is_leader 1")) {
                return Some(i);
            }
        }
        None
    }
}
