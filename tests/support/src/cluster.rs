//! A cluster of agents on one machine: each node with a directory, ports and a file of its own.

use crate::leftovers::{self, Owner};
use crate::network::{self, Machine, Network};
use crate::ports::Place;
use crate::process::{Process, alive, belonging_to, signal_pid, tail};
use crate::rest::{self, Answer};
use crate::{
    Consul, ConsulOptions, Etcd, EtcdOptions, EtcdVersion, Kubernetes, KubernetesOptions, Redis,
    RedisOptions, StoreServers, ZooKeeper, ZooKeeperOptions, dns, osuser, ports, sql, wait, yaml,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which program stands beside a PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Hathi,
    /// Real Patroni, from the virtual environment of scripts/setup.
    Patroni,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The agents themselves.
    Raft,
    /// A real etcd of this many members, started for the cluster.
    Etcd { members: usize },
    /// A real Consul of this many servers, started for the cluster.
    Consul { members: usize },
    /// The same with ZooKeeper.
    ZooKeeper { members: usize },
    /// One Redis server.
    Redis,
    /// An API server with a Pod for each node, in Endpoints or in ConfigMaps.
    Kubernetes { endpoints: bool },
}

#[derive(Clone, Debug)]
pub struct ClusterOptions {
    pub nodes: usize,
    pub agent: Agent,
    pub store: Store,
    /// The hathi binary under test (`env!("CARGO_BIN_EXE_hathi")`).
    pub hathi: PathBuf,
    /// Laid over [`yaml::default_dcs`].
    pub dcs: Value,
    /// Laid over every node's file.
    pub local: Value,
    pub etcd: EtcdVersion,
    /// Each node on a machine of its own, with its member of etcd; else all on 127.0.0.1.
    pub network: Option<Arc<Network>>,
    /// Whom its agents ask for names, instead of the machine's own name servers (needs root).
    pub name_server: Option<IpAddr>,
    /// Wall clocks that can jump (needs `network` and libfaketime).
    pub wall_clocks: bool,
}

impl ClusterOptions {
    pub fn new(agent: Agent, store: Store, hathi: &str) -> Self {
        let (dcs, local) = (json!({}), json!({}));
        let hathi = PathBuf::from(hathi);
        let etcd = EtcdVersion::V35;
        let (network, name_server, wall_clocks) = (None, None, false);
        Self { nodes: 3, agent, store, hathi, dcs, local, etcd, network, name_server, wall_clocks }
    }
}

pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub host: Ipv4Addr,
    pub pg_port: u16,
    pub rest_port: u16,
    pub agent: Agent,
    machine: Option<Arc<Machine>>,
    process: Option<Process>,
}

impl Node {
    /// Where its PostgreSQL listens.
    pub fn pg(&self) -> SocketAddr {
        (self.host, self.pg_port).into()
    }

    /// Where its agent listens.
    pub fn rest(&self) -> SocketAddr {
        (self.host, self.rest_port).into()
    }

    pub fn yaml(&self) -> PathBuf {
        self.dir.join("node.yml")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn agent_pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The postmaster's pid from postmaster.pid, if that process lives.
    pub fn postmaster(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        alive(pid).then_some(pid)
    }
}

/// The whole; ends every process of it when dropped.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub etcd: Option<Etcd>,
    pub consul: Option<Consul>,
    pub zookeeper: Option<ZooKeeper>,
    pub redis: Option<Redis>,
    pub kubernetes: Option<Kubernetes>,
    options: ClusterOptions,
    dir: tempfile::TempDir,
    _owner: Owner,
    hathi: PathBuf,
    started: Instant,
}

fn port(host: impl AsRef<str>) -> u16 {
    let host = host.as_ref();
    let port = host.rsplit(':').next().and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("{host}: no port"))
}

impl Cluster {
    /// Directories, files, ports and the store, but no agent yet.
    pub async fn prepare(options: ClusterOptions) -> Self {
        let etcd = match options.store {
            Store::Raft
            | Store::Consul { .. }
            | Store::ZooKeeper { .. }
            | Store::Redis
            | Store::Kubernetes { .. } => None,
            Store::Etcd { members } => {
                let etcd_options = EtcdOptions::new(options.etcd, members);
                Some(Etcd::start_on(etcd_options, options.network.as_deref()).await)
            }
        };
        let consul = match options.store {
            Store::Consul { members } => {
                Some(Consul::start(ConsulOptions { members, ..ConsulOptions::default() }).await)
            }
            _ => None,
        };
        let zookeeper = match options.store {
            Store::ZooKeeper { members } => {
                Some(ZooKeeper::start(ZooKeeperOptions::new(members)).await)
            }
            _ => None,
        };
        let redis = match options.store {
            Store::Redis => Some(Redis::start(RedisOptions::default()).await),
            _ => None,
        };
        let kubernetes = match options.store {
            Store::Kubernetes { .. } => Some(Kubernetes::start(KubernetesOptions::default()).await),
            _ => None,
        };
        let redis_hosts = redis.iter().flat_map(Redis::hosts);
        let redis_hosts: Vec<_> =
            redis_hosts.map(|(host, port)| format!("{host}:{port}")).collect();
        let consul_hosts = consul.as_ref().map(Consul::hosts).unwrap_or_default();
        let zookeeper_hosts = zookeeper.as_ref().map(ZooKeeper::hosts).unwrap_or_default();
        if let Some(network) = &options.network {
            // These servers are beside the machines, in the hub.
            let mut ports: Vec<u16> =
                consul_hosts.iter().chain(&zookeeper_hosts).chain(&redis_hosts).map(port).collect();
            ports.extend(kubernetes.iter().flat_map(Kubernetes::urls).map(|url| port(&url)));
            if !ports.is_empty() {
                network.lend(&ports).unwrap_or_else(|e| panic!("{e}"));
            }
        }
        leftovers::clean("hathi-cluster-");
        let dir = osuser::server_dir("hathi-cluster-");
        let owner = Owner::of(dir.path()).expect("the lock of the run's directory");
        if let Some(kubernetes) = &kubernetes {
            kubernetes.lend_access(dir.path());
        }
        let hathi = executable_by_servers(&options.hathi, dir.path());
        let raft: Vec<SocketAddr> = (0..options.nodes)
            .map(|i| match &options.network {
                Some(network) => (network.machine(i).address, network::RAFT_PORT).into(),
                None => ports::free_port().at(),
            })
            .collect();
        let mut dcs = yaml::default_dcs();
        yaml::merge(&mut dcs, &options.dcs);
        let nodes = (0..options.nodes)
            .map(|i| {
                let name = format!("node{}", i + 1);
                let at = dir.path().join(&name);
                std::fs::create_dir(&at).expect("a node's directory");
                osuser::give(&at);
                let machine = options.network.as_ref().map(|n| n.machine(i).clone());
                if let Some(machine) = machine.as_ref().filter(|_| options.wall_clocks) {
                    machine.own_wall_clock(&at).unwrap_or_else(|e| panic!("{e}"));
                }
                let (host, clients, pg_port, rest_port) = match &machine {
                    Some(m) => (m.address, network::SUBNET, network::PG_PORT, network::REST_PORT),
                    None => {
                        let (pg, rest) = (ports::free_port(), ports::free_port());
                        (Ipv4Addr::LOCALHOST, "127.0.0.1/32", pg, rest)
                    }
                };
                let places =
                    yaml::Places { name: &name, dir: &at, host, clients, pg_port, rest_port };
                let store = match (&options.store, &etcd) {
                    // Patroni knows one address only.
                    (Store::Consul { members: 1 }, _) => {
                        json!({"consul": {"host": consul_hosts[0]}})
                    }
                    (Store::Consul { .. }, _) => json!({"consul": {"hosts": consul_hosts}}),
                    (Store::ZooKeeper { .. }, _) => {
                        json!({"zookeeper": {"hosts": zookeeper_hosts}})
                    }
                    (Store::Kubernetes { endpoints }, _) => {
                        let labels = json!({"application": "patroni", "cluster-name": yaml::SCOPE});
                        let pods = kubernetes.as_ref().expect("started with this store");
                        pods.make_pod("default", &name, &labels);
                        json!({"kubernetes": {
                            "context": "golden", "labels": {"application": "patroni"},
                            "use_endpoints": endpoints,
                            "ports": [{"name": "postgresql", "port": pg_port}],
                        }})
                    }
                    (Store::Redis, _) => json!({"redis": {"hosts": redis_hosts}}),
                    (Store::Raft, _) | (_, None) => raft_section(&at, &raft, i),
                    (Store::Etcd { .. }, Some(etcd)) => json!({"etcd3": {"hosts": etcd.hosts()}}),
                };
                let mut whole = yaml::node(&places, &store, &dcs);
                yaml::merge(&mut whole, &options.local);
                let (agent, process) = (options.agent, None);
                let node =
                    Node { name, dir: at, host, pg_port, rest_port, agent, machine, process };
                let text = serde_json::to_string_pretty(&whole).expect("JSON");
                std::fs::write(node.yaml(), text).expect("a node's file");
                osuser::give(&node.yaml());
                node
            })
            .collect();
        let started = Instant::now();
        Self {
            nodes,
            etcd,
            consul,
            zookeeper,
            redis,
            kubernetes,
            options,
            dir,
            _owner: owner,
            hathi,
            started,
        }
    }

    /// Starts everything and waits until one leads and all others stream from it.
    pub async fn start(options: ClusterOptions) -> Self {
        let mut cluster = Self::prepare(options).await;
        for i in 0..cluster.nodes.len() {
            cluster.start_agent(i);
        }
        cluster.healthy(Duration::from_secs(90)).await;
        cluster
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Which store its agents share.
    pub fn store(&self) -> Store {
        self.options.store
    }

    pub fn hathi(&self) -> &Path {
        &self.hathi
    }

    pub fn index(&self, name: &str) -> usize {
        let found = self.nodes.iter().position(|n| n.name == name);
        found.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The command that runs node `i`'s agent.
    pub fn agent_command(&self, i: usize) -> Command {
        let node = &self.nodes[i];
        let mut command = match node.agent {
            Agent::Hathi => Command::new(&self.hathi),
            Agent::Patroni => Command::new(patroni_bin("patroni")),
        };
        command.arg(node.yaml());
        self.plain_environment(&mut command);
        // Inherited by all it starts: that is how a node's guard is found, too.
        command.env("HATHI_TEST_NODE", &node.dir);
        command
    }

    fn plain_environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", self.dir.path())
            .env("RUST_BACKTRACE", "1")
            .env("HATHI_TEST_DIR", self.dir.path())
            .current_dir(self.dir.path());
    }

    pub fn start_agent(&mut self, i: usize) {
        let command = self.agent_command(i);
        let log = self.nodes[i].log();
        let process = match self.options.name_server {
            Some(server) => {
                let dir = self.dir.path();
                Process::start_by(command, &log, |command| dns::spawn_asking(server, dir, command))
            }
            None => Process::start_on(self.nodes[i].machine.as_deref(), command, &log),
        };
        self.nodes[i].process = Some(process);
    }

    pub fn agent_running(&mut self, i: usize) -> bool {
        self.nodes[i].process.as_mut().is_some_and(Process::running)
    }

    /// SIGTERM, and waits for the agent's end; PostgreSQL must be down by then.
    pub async fn stop_agent(&mut self, i: usize) -> ExitStatus {
        if let Some(process) = &self.nodes[i].process {
            process.signal(Signal::TERM);
        }
        self.await_end(i, Duration::from_secs(60)).await
    }

    /// Waits until the agent of node `i` has ended by itself.
    pub async fn await_end(&mut self, i: usize, within: Duration) -> ExitStatus {
        let Some(mut process) = self.nodes[i].process.take() else {
            panic!("{} does not run", self.nodes[i].name)
        };
        let (process, ended) = tokio::task::spawn_blocking(move || {
            let ended = process.ended(within);
            (process, ended)
        })
        .await
        .expect("the waiting thread");
        match ended {
            Some(status) => status,
            None => {
                self.nodes[i].process = Some(process);
                let name = &self.nodes[i].name;
                panic!("{name}'s agent did not end in {within:?}\n{}", self.report())
            }
        }
    }

    /// kill -9 of the agent alone: PostgreSQL (and a guard) stay.
    pub fn kill_agent(&mut self, i: usize) {
        if let Some(mut process) = self.nodes[i].process.take() {
            process.kill();
        }
    }

    pub fn signal_agent(&self, i: usize, signal: Signal) {
        if let Some(process) = &self.nodes[i].process {
            process.signal(signal);
        }
    }

    /// kill -9 of the postmaster.
    pub fn kill_postmaster(&self, i: usize) {
        let pid = self.nodes[i].postmaster().expect("a running postmaster");
        signal_pid(pid, Signal::KILL);
    }

    /// The node dies: agent, guard, postmaster and all its children at the same moment, and its
    /// member of etcd if each node has one ([`Self::restart_members`]).
    pub fn kill_node(&mut self, i: usize) {
        let all = belonging_to(&self.nodes[i].dir);
        for pid in &all {
            signal_pid(*pid, Signal::STOP);
        }
        for pid in all.into_iter().chain(belonging_to(&self.nodes[i].dir)) {
            signal_pid(pid, Signal::KILL);
        }
        self.kill_agent(i);
        let beside = self.nodes.len();
        if let Some(etcd) = self.etcd.as_mut().filter(|e| e.members() == beside) {
            etcd.kill_member(i);
        }
    }

    /// SIGSTOP of everything a node has: agent, guard, PostgreSQL, its member of the store.
    pub fn freeze_node(&self, i: usize) {
        // Twice: a process that was being started while the first list was read.
        for _ in 0..2 {
            belonging_to(&self.nodes[i].dir).into_iter().for_each(|p| signal_pid(p, Signal::STOP));
        }
        self.member_of(i, Signal::STOP);
    }

    /// The end of [`Self::freeze_node`], in the order the processes were started.
    pub fn thaw_node(&self, i: usize) {
        self.member_of(i, Signal::CONT);
        let mut all = belonging_to(&self.nodes[i].dir);
        all.sort_unstable();
        all.into_iter().for_each(|pid| signal_pid(pid, Signal::CONT));
    }

    /// The etcd member beside node `i`, if each node has one.
    fn member_of(&self, i: usize, signal: Signal) {
        let Some(etcd) = self.etcd.as_ref().filter(|e| e.members() == self.nodes.len()) else {
            return;
        };
        match signal {
            Signal::STOP => etcd.pause_member(i),
            _ => etcd.resume_member(i),
        }
    }

    /// Starts the etcd members that do not run.
    pub fn restart_members(&mut self) {
        if let Some(etcd) = &mut self.etcd {
            etcd.start_all();
        }
    }

    /// SIGSTOP of every server of the store; the embedded one has none.
    pub fn pause_store(&self) {
        self.etcd.iter().for_each(|etcd| etcd.pause());
        self.consul.iter().for_each(|consul| consul.pause());
        self.zookeeper.iter().for_each(|zookeeper| zookeeper.pause());
        self.redis.iter().for_each(|redis| redis.pause());
        self.kubernetes.iter().for_each(Kubernetes::pause_whole);
    }

    /// Ends [`Self::pause_store`].
    pub fn resume_store(&self) {
        self.etcd.iter().for_each(|etcd| etcd.resume());
        self.consul.iter().for_each(|consul| consul.resume());
        self.zookeeper.iter().for_each(|zookeeper| zookeeper.resume());
        self.redis.iter().for_each(|redis| redis.resume());
        self.kubernetes.iter().for_each(Kubernetes::resume_whole);
    }

    /// kill -9 of every server of the store.
    pub fn kill_store(&mut self) {
        self.etcd.iter_mut().for_each(|etcd| etcd.kill_all());
        self.consul.iter_mut().for_each(|consul| consul.kill_all());
        self.zookeeper.iter_mut().for_each(|zookeeper| zookeeper.kill_all());
        self.redis.iter_mut().for_each(|redis| redis.kill_all());
        self.kubernetes.iter_mut().for_each(|kubernetes| kubernetes.kill_whole());
    }

    /// Ends [`Self::kill_store`]: on its old data, and serving.
    pub async fn restart_store(&mut self) {
        revive(self.etcd.as_mut()).await;
        revive(self.consul.as_mut()).await;
        revive(self.zookeeper.as_mut()).await;
        revive(self.redis.as_mut()).await;
        revive(self.kubernetes.as_mut()).await;
    }

    /// The guard of node `i`, if one runs.
    pub fn guard_pid(&self, i: usize) -> Option<u32> {
        belonging_to(&self.nodes[i].dir).into_iter().find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|b| *b == 0).nth(1) == Some(b"guard")
        })
    }

    /// The machine of node `i` in its network.
    pub fn machine(&self, i: usize) -> &Machine {
        self.nodes[i].machine.as_deref().expect("a cluster in a network")
    }

    /// Asks the agent of node `i`.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, i: usize, path: &str) -> Result<Answer, String> {
        rest::get(self.nodes[i].rest(), path).await
    }

    /// A request with a body to the agent of node `i`; patient, switchovers take a while.
    ///
    /// # Errors
    /// No answer.
    pub async fn send(
        &self,
        i: usize,
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<Answer, String> {
        let within = Duration::from_secs(60);
        rest::request(method, self.nodes[i].rest(), path, Some(&body), within).await
    }

    /// Who answers 200 on /primary; exactly one does.
    ///
    /// # Errors
    /// None or several do.
    pub async fn leader(&self) -> Result<usize, String> {
        let mut leaders = Vec::new();
        let mut seen = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let answer = self.get(i, "/primary").await;
            seen.push(format!("{}: {}", node.name, brief(&answer)));
            if answer.is_ok_and(|a| a.status == 200) {
                leaders.push(i);
            }
        }
        match leaders.as_slice() {
            [one] => Ok(*one),
            _ => Err(format!("{} leaders; {}", leaders.len(), seen.join("; "))),
        }
    }

    /// One leader that takes writes, and `others` members streaming from it.
    ///
    /// # Errors
    /// What is still missing.
    pub async fn looks_healthy(&self, others: usize) -> Result<usize, String> {
        let leader = self.leader().await?;
        let view = self.get(leader, "/cluster").await?.json();
        let members = view["members"].as_array().cloned().unwrap_or_default();
        let streaming = members.iter().filter(|m| m["state"] == "streaming").count();
        let leads = members
            .iter()
            .any(|m| m["name"] == self.nodes[leader].name.as_str() && m["role"] == "leader");
        if streaming != others || !leads {
            return Err(format!("/cluster shows {view}"));
        }
        let port = self.nodes[leader].pg();
        let count = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let connected = sql::value(port, count).await?;
        if connected != others.to_string() {
            return Err(format!("{connected} walsenders stream from {}", self.nodes[leader].name));
        }
        if sql::value(port, "SELECT pg_is_in_recovery()").await? != "f" {
            return Err(format!("{} is still in recovery", self.nodes[leader].name));
        }
        Ok(leader)
    }

    /// Waits for a whole healthy cluster; returns the leader.
    pub async fn healthy(&self, within: Duration) -> usize {
        let others = self.nodes.len() - 1;
        self.wait("one leader, all others streaming", within, || self.looks_healthy(others)).await
    }

    /// Waits for a leader other than `old`.
    pub async fn another_leader(&self, old: usize, within: Duration) -> usize {
        self.wait("another leader", within, || async {
            match self.leader().await? {
                same if same == old => Err(format!("{} still leads", self.nodes[old].name)),
                new => Ok(new),
            }
        })
        .await
    }

    /// Changes the file of node `i`, as a whole; a running agent hears of it by SIGHUP.
    pub fn change_file(&self, i: usize, change: impl FnOnce(&mut Value)) {
        let file = self.nodes[i].yaml();
        let text = std::fs::read_to_string(&file).expect("the node's file");
        let mut whole = serde_json::from_str(&text).expect("JSON");
        change(&mut whole);
        let new = file.with_extension("new");
        std::fs::write(&new, whole.to_string()).expect("the node's file");
        osuser::give(&new);
        std::fs::rename(&new, &file).expect("the node's file");
        if self.nodes[i].agent_pid().is_some() {
            self.signal_agent(i, Signal::HUP);
        }
    }

    /// Gives node `i` exactly these tags, by its file and SIGHUP, and waits until all running agents
    /// know of them.
    pub async fn tag(&self, i: usize, tags: &Value) {
        self.change_file(i, |file| file["tags"] = tags.clone());
        let name = self.nodes[i].name.as_str();
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()) {
            self.wait("the tags on every member", Duration::from_secs(15), || async {
                let shown = self.get(node, "/cluster").await?.json();
                let members = shown["members"].as_array().cloned().unwrap_or_default();
                let mine = members.iter().find(|member| member["name"] == name);
                let mine = mine.and_then(|member| member.get("tags")).cloned();
                let mine = mine.unwrap_or_else(|| json!({}));
                if mine == *tags { Ok(()) } else { Err(shown.to_string()) }
            })
            .await;
        }
    }

    /// Waits, and fails with the tail of every log.
    pub async fn wait<T, F, Fut>(&self, what: &str, within: Duration, probe: F) -> T
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, String>>,
    {
        match wait::until(what, within, probe).await {
            Ok(value) => value,
            Err(e) => panic!("{e}\n{}", self.report()),
        }
    }

    /// Everything a reader of a failure needs: each node's processes and last lines.
    pub fn report(&self) -> String {
        let mut text = format!(
            "after {:.1} s, {:?} on {:?}\n",
            self.started.elapsed().as_secs_f64(),
            self.options.agent,
            self.options.store
        );
        for node in &self.nodes {
            let (agent, postmaster) = (node.agent_pid(), node.postmaster());
            text += &format!(
                "--- {} (PostgreSQL {}, REST {}; agent {agent:?}, postmaster {postmaster:?})\n{}\n",
                node.name,
                node.pg(),
                node.rest(),
                tail(&node.log(), lines_of_a_report())
            );
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("HATHI_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.path().display());
            let _ = copy_logs(self.dir.path(), &self.nodes);
        }
        for node in &mut self.nodes {
            drop(node.process.take());
        }
        // Guards next, or they would do their work while we do ours; then PostgreSQL, by SIGQUIT
        // so that it takes its shared memory with it.
        let postmasters: Vec<u32> = self.nodes.iter().filter_map(Node::postmaster).collect();
        for pid in &postmasters {
            signal_pid(*pid, Signal::QUIT);
            signal_pid(*pid, Signal::CONT);
        }
        let started = Instant::now();
        while postmasters.iter().any(|p| alive(*p)) && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        leftovers::end_processes(self.dir.path());
    }
}

fn raft_section(dir: &Path, members: &[SocketAddr], me: usize) -> Value {
    let others = members.iter().enumerate().filter(|(i, _)| *i != me);
    let partners: Vec<String> = others.map(|(_, address)| address.to_string()).collect();
    json!({"raft": {
        "self_addr": members[me].to_string(), "partner_addrs": partners,
        "data_dir": dir.join("raft"), "password": "dummy-raft"
    }})
}

/// A program of the Patroni environment.
pub fn patroni_bin(program: &str) -> PathBuf {
    let path = crate::etcd::cache_dir().join("patroni-4.1.5/bin").join(program);
    assert!(path.exists(), "{} is not there: run scripts/setup", path.display());
    path
}

/// `binary` itself if the servers' user can run it where it lies, else a link or copy in `dir`.
fn executable_by_servers(binary: &Path, dir: &Path) -> PathBuf {
    let mut probe = Command::new("test");
    probe.arg("-x").arg(binary);
    if osuser::as_server(&mut probe).status().is_ok_and(|s| s.success()) {
        return binary.to_owned();
    }
    let here = dir.join("hathi");
    if std::fs::hard_link(binary, &here).is_err() {
        std::fs::copy(binary, &here).unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
    }
    here
}

async fn revive(servers: Option<&mut impl StoreServers>) {
    if let Some(servers) = servers {
        servers.start_all();
        servers.ready().await;
    }
}

fn brief(answer: &Result<Answer, String>) -> String {
    match answer {
        Ok(a) => format!("{} {}", a.status, a.body.chars().take(200).collect::<String>()),
        Err(e) => e.clone(),
    }
}

fn lines_of_a_report() -> usize {
    std::env::var("HATHI_TEST_LOG_LINES").ok().and_then(|v| v.parse().ok()).unwrap_or(40)
}

fn copy_logs(dir: &Path, nodes: &[Node]) -> std::io::Result<()> {
    let kept = std::env::temp_dir().join("hathi-kept-logs");
    std::fs::create_dir_all(&kept)?;
    let run = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for node in nodes {
        std::fs::copy(node.log(), kept.join(format!("{run}-{}.log", node.name)))?;
    }
    Ok(())
}
