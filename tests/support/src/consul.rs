//! Real Consul servers on loopback: Debian bullseye's, unpacked by scripts/setup.

use crate::certs::Certs;
use crate::etcd::cache_dir;
use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, rest, wait};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How to start them.
#[derive(Clone, Debug, Default)]
pub struct ConsulOptions {
    pub members: usize,
    /// https beside http; every client must show a certificate there.
    pub tls: bool,
    /// Clients reach each server through a proxy that can lose answers.
    pub proxied: bool,
    /// The only token that may do anything.
    pub token: Option<String>,
    /// With `token`: others may do everything until a policy says otherwise.
    pub open: bool,
    /// The shortest session, if not Consul's own ten seconds.
    pub session_ttl_min: Option<&'static str>,
}

struct Member {
    name: String,
    dir: PathBuf,
    http: u16,
    https: u16,
    server: u16,
    serf: u16,
}

/// A Consul cluster of its own, ended and removed when dropped.
pub struct Consul {
    options: ConsulOptions,
    members: Vec<Member>,
    seats: Seats,
    pub certs: Option<Certs>,
    dir: tempfile::TempDir,
}

fn binary() -> PathBuf {
    cache_dir().join("bullseye/usr/bin/consul")
}

impl Consul {
    /// Starts the servers and waits until they serve.
    pub async fn start(options: ConsulOptions) -> Self {
        let dir = osuser::server_dir("hathi-consul-");
        let certs = options.tls.then(|| Certs::make(dir.path()));
        let mut seats = Seats::default();
        let members = (0..options.members)
            .map(|i| {
                let ports = free_ports(4);
                let name = format!("c{i}");
                let proxy = options.proxied.then(|| Proxy::start(ports[0]));
                seats.0.push(Seat { process: None, proxy });
                let dir = dir.path().join(&name);
                let (http, https, server, serf) = (ports[0], ports[1], ports[2], ports[3]);
                Member { name, dir, http, https, server, serf }
            })
            .collect();
        let mut consul = Self { options, members, seats, certs, dir };
        consul.start_all();
        consul.ready().await;
        consul
    }

    /// `host:port` of what clients connect to: the proxies if there are some.
    pub fn hosts(&self) -> Vec<String> {
        let port = |m: &Member, seat: &Seat| match (&seat.proxy, self.options.tls) {
            (Some(proxy), _) => proxy.port,
            (None, true) => m.https,
            (None, false) => m.http,
        };
        let each = self.members.iter().zip(&self.seats.0);
        each.map(|(m, seat)| format!("127.0.0.1:{}", port(m, seat))).collect()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(i, _)| self.seats.runs(*i))
    }

    async fn ask(
        &self,
        port: u16,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<rest::Answer, String> {
        let token = match &self.options.token {
            Some(token) if path.contains('?') => format!("&token={token}"),
            Some(token) => format!("?token={token}"),
            None => String::new(),
        };
        rest::request(method, port, &format!("{path}{token}"), body, Duration::from_secs(3)).await
    }

    /// One request beside the backend, to the first server that runs.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<rest::Answer, String> {
        let (_, first) = self.running().next().ok_or("no server runs")?;
        self.ask(first.http, method, path, body).await
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

seated!(Consul);

impl StoreServers for Consul {
    fn start_all(&mut self) {
        assert!(binary().exists(), "{} is not there: run scripts/setup", binary().display());
        let join: Vec<String> =
            self.members.iter().map(|m| format!("127.0.0.1:{}", m.serf)).collect();
        for i in 0..self.members.len() {
            if self.seats.runs(i) {
                continue;
            }
            let m = &self.members[i];
            let mut config = json!({
                "server": true, "bootstrap_expect": self.options.members, "retry_join": join,
                "retry_interval": "200ms", "retry_max": 0,
                "node_name": m.name, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
                "data_dir": m.dir, "log_level": "warn", "disable_host_node_id": true,
                "disable_update_check": true,
                "ports": {"http": m.http, "https": if self.options.tls { i32::from(m.https) } else { -1 },
                          "server": m.server, "serf_lan": m.serf, "serf_wan": -1, "dns": -1, "grpc": -1},
                "performance": {"raft_multiplier": 1},
                "gossip_lan": {"probe_interval": "200ms", "probe_timeout": "100ms", "gossip_interval": "50ms"},
            });
            if let Some(minimum) = self.options.session_ttl_min {
                config["session_ttl_min"] = json!(minimum);
            }
            if let Some(token) = &self.options.token {
                let policy = if self.options.open { "allow" } else { "deny" };
                config["acl"] =
                    json!({"enabled": true, "default_policy": policy, "tokens": {"master": token}});
            }
            if let Some(certs) = &self.certs {
                config["ca_file"] = json!(certs.ca);
                config["cert_file"] = json!(certs.cert);
                config["key_file"] = json!(certs.key);
                config["verify_incoming_https"] = json!(true);
            }
            let file = self.dir.path().join(format!("{}.json", m.name));
            std::fs::write(&file, config.to_string()).expect("the configuration is written");
            osuser::give(&file);
            let mut command = Command::new(binary());
            command.env_clear().args(["agent", "-config-file"]).arg(&file);
            let log = self.dir.path().join(format!("{}.log", m.name));
            self.seats.0[i].process = Some(Process::start(command, &log));
        }
    }

    async fn ready(&self) {
        for (_, m) in self.running() {
            let serves = wait::until("consul serves", Duration::from_secs(60), || async {
                match self.ask(m.http, "PUT", "/v1/kv/ready", Some(&json!(1))).await {
                    Ok(answer) if answer.body.trim() == "true" => Ok(()),
                    Ok(answer) => Err(format!("{} {}", answer.status, answer.body)),
                    Err(why) => Err(why),
                }
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.dir.path().join(format!("{}.log", m.name)), 20));
            }
        }
    }

    async fn leader(&self) -> Option<usize> {
        let said = self.request("GET", "/v1/status/leader", None).await.ok()?;
        let port: u16 = said.json().as_str()?.rsplit(':').next()?.parse().ok()?;
        self.members.iter().position(|m| m.server == port)
    }
}
