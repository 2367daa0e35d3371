//! Real etcd members on loopback.

use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::{osuser, rest, wait};
use rustix::process::Signal;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
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

struct Member {
    name: String,
    dir: PathBuf,
    client: u16,
    peer: u16,
    process: Option<Process>,
}

/// An etcd cluster of its own, ended and removed when dropped.
pub struct Etcd {
    version: EtcdVersion,
    members: Vec<Member>,
    dir: tempfile::TempDir,
}

impl Etcd {
    /// Starts `count` members and waits until they serve.
    pub async fn start(version: EtcdVersion, count: usize) -> Self {
        let dir = osuser::server_dir("hathi-etcd-");
        let members = (0..count)
            .map(|i| {
                let ports = free_ports(2);
                let name = format!("m{i}");
                let at = dir.path().join(&name);
                Member { name, dir: at, client: ports[0], peer: ports[1], process: None }
            })
            .collect();
        let mut etcd = Self { version, members, dir };
        etcd.start_all();
        etcd.ready().await;
        etcd
    }

    /// `host:port,…`, as the YAML wants it.
    pub fn hosts(&self) -> String {
        let all: Vec<String> =
            self.members.iter().map(|m| format!("127.0.0.1:{}", m.client)).collect();
        all.join(",")
    }

    pub fn client_ports(&self) -> Vec<u16> {
        self.members.iter().map(|m| m.client).collect()
    }

    /// Starts every member that does not run, on its old data.
    pub fn start_all(&mut self) {
        let binary = self.version.binary();
        assert!(binary.exists(), "{} is not there: run scripts/setup", binary.display());
        let initial: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer))
            .collect();
        let initial = initial.join(",");
        for m in &mut self.members {
            if m.process.is_some() {
                continue;
            }
            let client = format!("http://127.0.0.1:{}", m.client);
            let peer = format!("http://127.0.0.1:{}", m.peer);
            let mut command = Command::new(&binary);
            command.env_clear().args(["--name", &m.name, "--data-dir"]).arg(&m.dir);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &initial, "--initial-cluster-state", "new"]);
            command.args(["--initial-cluster-token", "hathi-test"]);
            command.args(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
            if self.version == EtcdVersion::V35 {
                command.arg("--unsafe-no-fsync");
            }
            let log = self.dir.path().join(format!("{}.log", m.name));
            m.process = Some(Process::start(command, &log));
        }
    }

    /// Waits until a linearizable read is answered.
    pub async fn ready(&self) {
        let body = json!({"key": "aGVsbG8="});
        for m in &self.members {
            let serves = wait::until("etcd serves", Duration::from_secs(30), || async {
                let soon = Duration::from_secs(2);
                let path = "/v3/kv/range";
                let got = rest::request("POST", m.client, path, Some(&body), soon).await?;
                if got.status == 200 { Ok(()) } else { Err(got.body) }
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.dir.path().join(format!("{}.log", m.name)), 20));
            }
        }
    }

    /// SIGSTOP: every member is there and silent.
    pub fn pause(&self) {
        self.each(Signal::STOP);
    }

    pub fn resume(&self) {
        self.each(Signal::CONT);
    }

    /// kill -9 of every member.
    pub fn kill_all(&mut self) {
        for m in &mut self.members {
            m.process = None;
        }
    }

    pub fn kill_member(&mut self, which: usize) {
        self.members[which].process = None;
    }

    fn each(&self, signal: Signal) {
        for process in self.members.iter().filter_map(|m| m.process.as_ref()) {
            process.signal(signal);
        }
    }

    /// How many key-value and lease calls the members have been asked for since they started,
    /// from their own metrics.
    ///
    /// # Errors
    /// A member does not answer.
    pub async fn calls(&self) -> Result<u64, String> {
        let mut sum = 0.0;
        for port in self.client_ports() {
            let text = rest::get(port, "/metrics").await?.body;
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
