//! Each file of config-examples/ as it stands, but for its addresses and paths: an agent starts on
//! it, on the real store and with real PostgreSQL, and leads.

use hathi_test_support::process::{Process, tail};
use hathi_test_support::{
    Consul, ConsulOptions, Etcd, EtcdVersion, Kubernetes, KubernetesOptions, Redis, RedisOptions,
    ZooKeeper, ZooKeeperOptions, leftovers, osuser, ports, rest, wait,
};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// From the first start to a primary, with a store that makes it wait for a ttl first.
const SERVES: Duration = Duration::from_secs(120);

struct Example {
    dir: tempfile::TempDir,
    _owner: leftovers::Owner,
    /// The program, where the OS user of the servers may start it.
    hathi: PathBuf,
    text: String,
    rest: u16,
    processes: Vec<Process>,
}

impl Example {
    fn new(name: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config-examples").join(name);
        let text = std::fs::read_to_string(file).expect("the example");
        leftovers::clean("hathi-example-");
        let dir = osuser::server_dir("hathi-example-");
        let owner = leftovers::Owner::of(dir.path()).expect("the lock of the run's directory");
        let hathi = dir.path().join("hathi");
        std::fs::copy(env!("CARGO_BIN_EXE_hathi"), &hathi).expect("the program is copied");
        let (rest, pg) = (ports::free_port(), ports::free_port());
        let mut example = Self { dir, _owner: owner, hathi, text, rest, processes: Vec::new() };
        let home = example.dir.path().display().to_string();
        for (there, here) in [
            ("0.0.0.0:8008", format!("127.0.0.1:{rest}")),
            ("10.0.0.1:8008", format!("127.0.0.1:{rest}")),
            ("0.0.0.0:5432", format!("127.0.0.1:{pg}")),
            ("10.0.0.1:5432", format!("127.0.0.1:{pg}")),
            ("/var/lib/postgresql/15/hathi", format!("{home}/data")),
            ("/var/lib/postgresql/hathi.pgpass", format!("{home}/pgpass")),
            ("/var/run/postgresql", home.clone()),
        ] {
            example.here(there, &here);
        }
        example
    }

    /// What the example names is here something else.
    fn here(&mut self, there: &str, here: &str) {
        assert!(self.text.contains(there), "{there} is not in the example any more");
        self.text = self.text.replace(there, here);
    }

    fn start(&mut self, name: &str, words: &[&str], text: &str) {
        let dir = self.dir.path();
        let file = dir.join(format!("{name}.yml"));
        std::fs::write(&file, text).expect("a file can be written");
        osuser::give(&file);
        let mut command = Command::new(&self.hathi);
        command
            .args(words)
            .arg(&file)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8");
        command.env("HOME", dir).env("HATHI_TEST_DIR", dir).current_dir(dir);
        let log = dir.join(format!("{name}.log"));
        self.processes.push(Process::start(command, &log));
    }

    /// Starts the agent, waits until it leads, and ends it as an operator does.
    async fn leads(&mut self) {
        let text = self.text.clone();
        self.start("agent", &[], &text);
        let rest = self.rest;
        let leads = wait::until("it leads", SERVES, || async {
            let answer = rest::get(rest, "/primary").await?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        let log = self.dir.path().join("agent.log");
        if let Err(why) = leads.await {
            panic!("{why}\n{}", tail(&log, 40));
        }
        let Some(mut agent) = self.processes.pop() else { panic!("it was started") };
        agent.signal(Signal::TERM);
        let ended = tokio::task::spawn_blocking(move || agent.ended(Duration::from_secs(60))).await;
        let status = ended.expect("the waiting thread");
        assert!(status.is_some_and(|s| s.success()), "{status:?}\n{}", tail(&log, 40));
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        self.processes.clear();
        leftovers::end_processes(self.dir.path());
    }
}

/// With two that only vote, from the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn raft_yml() {
    let mut example = Example::new("raft.yml");
    let members: Vec<String> =
        ports::free_ports(3).iter().map(|port| format!("127.0.0.1:{port}")).collect();
    example.here("0.0.0.0:2222", &members[0]);
    for (n, there) in ["10.0.0.1:2222", "10.0.0.2:2222", "10.0.0.3:2222"].iter().enumerate() {
        example.here(there, &members[n]);
    }
    let store = example.dir.path().join("raft").display().to_string();
    example.here("/var/lib/postgresql/hathi-raft", &store);
    for n in [1, 2] {
        // Its own place in the list, and a directory of its own.
        let text = example.text.replace(&members[0], "the first");
        let text = text.replace(&members[n], &members[0]).replace("the first", &members[n]);
        let text = text.replace(&store, &format!("{store}{n}"));
        example.start(&format!("witness{n}"), &["witness"], &text);
    }
    example.leads().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_yml() {
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let mut example = Example::new("etcd.yml");
    let host = etcd.hosts();
    for there in ["10.0.0.11:2379", "10.0.0.12:2379", "10.0.0.13:2379"] {
        example.here(there, &host);
    }
    example.leads().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn consul_yml() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let mut example = Example::new("consul.yml");
    example.here("127.0.0.1:8500", &consul.hosts()[0]);
    example.leads().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn zookeeper_yml() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let mut example = Example::new("zookeeper.yml");
    for there in ["10.0.0.11:2181", "10.0.0.12:2181", "10.0.0.13:2181"] {
        example.here(there, &zookeeper.hosts()[0]);
    }
    example.leads().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_yml() {
    let redis = Redis::start(RedisOptions::default()).await;
    let mut example = Example::new("redis.yml");
    let (host, port) = redis.hosts()[0].clone();
    // With the others that the example lists in a comment.
    example.here("10.0.0.11:6379", &format!("{host}:{port}"));
    example.leads().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubernetes_yml() {
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await;
    let labels = serde_json::json!({"application": "patroni", "cluster-name": "main"});
    kubernetes.make_pod("default", "node1", &labels);
    let mut example = Example::new("kubernetes.yml");
    kubernetes.lend_access(example.dir.path());
    example.leads().await;
}
