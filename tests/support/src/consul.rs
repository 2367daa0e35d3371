//! Real Consul servers on loopback: Debian bullseye's, unpacked by scripts/setup.

use crate::certs::Certs;
use crate::etcd::cache_dir;
use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::{osuser, rest, wait};
use rustix::process::Signal;
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
    proxy: Option<Proxy>,
    process: Option<Process>,
}

/// A Consul cluster of its own, ended and removed when dropped.
pub struct Consul {
    options: ConsulOptions,
    members: Vec<Member>,
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
        let members = (0..options.members)
            .map(|i| {
                let ports = free_ports(4);
                let name = format!("c{i}");
                let proxy = options.proxied.then(|| Proxy::start(ports[0]));
                let dir = dir.path().join(&name);
                let (http, https, server, serf) = (ports[0], ports[1], ports[2], ports[3]);
                Member { name, dir, http, https, server, serf, proxy, process: None }
            })
            .collect();
        let mut consul = Self { options, members, certs, dir };
        consul.start_all();
        consul.ready().await;
        consul
    }

    /// `host:port` of what clients connect to: the proxies if there are some.
    pub fn hosts(&self) -> Vec<String> {
        let port = |m: &Member| match (&m.proxy, self.options.tls) {
            (Some(proxy), _) => proxy.port,
            (None, true) => m.https,
            (None, false) => m.http,
        };
        self.members.iter().map(|m| format!("127.0.0.1:{}", port(m))).collect()
    }

    pub fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.members.iter().filter_map(|m| m.proxy.as_ref())
    }

    /// Starts every server that does not run, on its old data.
    pub fn start_all(&mut self) {
        assert!(binary().exists(), "{} is not there: run scripts/setup", binary().display());
        let join: Vec<String> =
            self.members.iter().map(|m| format!("127.0.0.1:{}", m.serf)).collect();
        for i in 0..self.members.len() {
            if self.members[i].process.is_some() {
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
                config["acl"] =
                    json!({"enabled": true, "default_policy": "deny", "tokens": {"master": token}});
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
            self.members[i].process = Some(Process::start(command, &log));
        }
    }

    /// Waits until every server that runs has a leader that writes.
    pub async fn ready(&self) {
        for m in self.members.iter().filter(|m| m.process.is_some()) {
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
        let running = self.members.iter().find(|m| m.process.is_some());
        self.ask(running.ok_or("no server runs")?.http, method, path, body).await
    }

    /// Which server leads, if one says so.
    pub async fn leader(&self) -> Option<usize> {
        let said = self.request("GET", "/v1/status/leader", None).await.ok()?;
        let port: u16 = said.json().as_str()?.rsplit(':').next()?.parse().ok()?;
        self.members.iter().position(|m| m.server == port)
    }

    pub fn pause_member(&self, which: usize) {
        if let Some(process) = &self.members[which].process {
            process.pause();
        }
    }

    pub fn resume_member(&self, which: usize) {
        if let Some(process) = &self.members[which].process {
            process.signal(Signal::CONT);
        }
    }

    /// SIGSTOP: every server is there and silent.
    pub fn pause(&self) {
        self.members.iter().filter_map(|m| m.process.as_ref()).for_each(Process::pause);
    }

    pub fn resume(&self) {
        for process in self.members.iter().filter_map(|m| m.process.as_ref()) {
            process.signal(Signal::CONT);
        }
    }

    pub fn kill_all(&mut self) {
        for m in &mut self.members {
            m.process = None;
        }
    }

    pub fn kill_member(&mut self, which: usize) {
        self.members[which].process = None;
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
