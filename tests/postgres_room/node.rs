//! One PostgreSQL of a test: its directory, its port, and the promise that nothing is left of it.

use futures::StreamExt;
use hathi::ha::ports::{
    CopyBy, Observation, Postgres, Server, SlotPlan, Start, Stop, StopMode, StopStep, Upstream,
};
use hathi::postgres::process::{ProcessId, children, kill, orphans};
use hathi::postgres::settings::Login;
use hathi::postgres::{Hooks, LocalPostgres, Settings};
use hathi_dcs::{Deadline, Lsn, MemberName, Role, State};
use rustix::process::Signal;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

/// These physical slots, and none that has to go.
pub fn physical<const N: usize>(slots: [(&str, Option<Lsn>); N]) -> SlotPlan {
    let physical = slots.map(|(name, lsn)| (name.to_owned(), lsn)).into();
    SlotPlan { physical, ..SlotPlan::default() }
}

pub fn within(seconds: u64) -> Deadline {
    Deadline::in_ms(seconds * 1000)
}

/// Waits for a fact; ten seconds are more than any of them needs.
pub async fn eventually(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let by = within(10);
    while !fact().await {
        assert!(!by.left().is_zero(), "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// PostgreSQL refuses root, and this process has only tests that run it.
fn leave_root() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("postgres:"));
        let line = line.expect("as root these tests need the OS user postgres");
        let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
        // SAFETY: plain system calls; glibc changes all threads of the process.
        unsafe {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!(libc::setgid(ids[1]), 0);
            assert_eq!(libc::setuid(ids[0]), 0);
        }
        std::env::set_current_dir("/tmp").unwrap();
    });
}

pub fn bin_dir() -> PathBuf {
    let debian = Path::new("/usr/lib/postgresql");
    let mut found: Vec<_> = std::fs::read_dir(debian)
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|path: &PathBuf| path.join("initdb").exists());
    found.sort();
    found.pop().expect("no PostgreSQL in /usr/lib/postgresql")
}

/// A port that nobody has, and that no other test of this process will get.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    loop {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut taken = TAKEN.lock().unwrap();
        if !taken.contains(&port) {
            taken.push(port);
            return port;
        }
    }
}

pub struct Node {
    pub name: &'static str,
    pub pg: LocalPostgres,
    pub dir: Arc<TempDir>,
    /// Receives a permit at each exit of the postmaster.
    exits: Arc<tokio::sync::Notify>,
    pub held: Arc<Mutex<Vec<Option<ProcessId>>>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if Arc::strong_count(&self.dir) > 1 {
            return;
        }
        hathi_test_support::leftovers::end_processes(self.dir.path());
    }
}

impl Node {
    /// Nothing but an empty directory and settings.
    pub fn new(name: &'static str) -> Self {
        leave_root();
        let dir = tempfile::Builder::new().prefix("hathi-room-").tempdir().unwrap();
        Self::in_dir(name, Arc::new(dir), free_port())
    }

    fn in_dir(name: &'static str, dir: Arc<TempDir>, port: u16) -> Self {
        let settings = Arc::new(settings(name, dir.path(), port));
        Self::with(name, dir, settings)
    }

    fn with(name: &'static str, dir: Arc<TempDir>, settings: Arc<Settings>) -> Self {
        let exits = Arc::new(tokio::sync::Notify::new());
        let held = Arc::new(Mutex::new(Vec::new()));
        let (notify, log) = (exits.clone(), held.clone());
        let hooks = Hooks {
            on_postmaster: Box::new(move |id| log.lock().unwrap().push(id)),
            on_exit: Box::new(move || notify.notify_one()),
        };
        Self { name, pg: LocalPostgres::new(settings, hooks), dir, exits, held }
    }

    /// The agent that comes after this one, on the same directory.
    pub fn another_agent(&self) -> Self {
        Self::with(self.name, self.dir.clone(), self.pg.settings())
    }

    /// A running primary; the data directory is a copy of one that was bootstrapped once.
    pub async fn primary(name: &'static str) -> Self {
        let node = Self::new(name);
        let template = template().await;
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(template.join("."))
            .arg(node.data())
            .status()
            .unwrap();
        assert!(status.success());
        node.pg.start(Start::AsPrimary, within(30)).await.unwrap();
        node
    }

    /// A primary `alpha` and its standby `beta`, streaming.
    pub async fn pair() -> (Self, Self) {
        let alpha = Self::primary("alpha").await;
        let beta = Self::new("beta");
        alpha.slot("beta").await;
        beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
        beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(30)).await.unwrap();
        beta.streams().await;
        (alpha, beta)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = (*self.pg.settings()).clone();
        change(&mut settings);
        self.pg.set_settings(Arc::new(settings));
    }

    pub fn upstream(&self) -> Upstream {
        let port = self.pg.settings().port;
        Upstream {
            remote: false,
            name: MemberName::from(self.name),
            conn_url: format!("postgres://127.0.0.1:{port}/postgres"),
        }
    }

    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub async fn look(&self) -> Observation {
        self.pg.observe(within(5)).await
    }

    pub async fn slot(&self, name: &str) {
        let wanted = physical([(name, None)]);
        self.pg.set_slots(&wanted, within(5)).await.unwrap();
    }

    pub async fn streams(&self) {
        eventually("the standby streams", async || {
            matches!(self.look().await.server, Server::Standby(standby) if standby.streaming)
        })
        .await;
    }

    pub async fn client(&self) -> tokio_postgres::Client {
        self.try_client().await.unwrap()
    }

    async fn try_client(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let settings = self.pg.settings();
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(settings.port).user("postgres").password("dummy-super");
        let (client, connection) = config.dbname("postgres").connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The first column of the first row; empty if there is none.
    pub async fn try_sql(&self, sql: &str) -> Result<String, String> {
        let work = async {
            let client = self.try_client().await?;
            client.simple_query(sql).await
        };
        let limited = tokio::time::timeout(Duration::from_secs(10), work).await;
        let rows = limited.map_err(|why| why.to_string())?.map_err(|why| format!("{why:?}"))?;
        let cell = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(cell.unwrap_or_default())
    }

    pub async fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).await.unwrap()
    }

    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let output = std::process::Command::new(bin_dir().join(name))
            .args(arguments)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn postmaster_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    fn signal(&self, id: i32, signal: Signal) {
        kill(ProcessId::of(id).unwrap(), signal);
    }

    pub fn kill_postmaster(&self) {
        self.signal(self.postmaster_pid(), Signal::KILL);
    }

    pub fn freeze(&self) {
        self.signal(self.postmaster_pid(), Signal::STOP);
        self.freeze_backends();
    }

    pub fn freeze_backends(&self) {
        for child in children(self.postmaster_pid()) {
            kill(child, Signal::STOP);
        }
    }

    pub fn thaw(&self) {
        let pid = self.postmaster_pid();
        for child in children(pid) {
            kill(child, Signal::CONT);
        }
        self.signal(pid, Signal::CONT);
    }

    pub fn server_processes(&self) -> usize {
        orphans(&self.data()).len()
    }

    pub async fn exited(&self) {
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, self.exits.notified()).await.expect("no exit was noticed");
    }
}

fn login(name: &str, password: &str) -> Login {
    Login {
        username: Some(name.into()),
        password: Some(password.into()),
        options: Default::default(),
    }
}

fn settings(name: &str, dir: &Path, port: u16) -> Settings {
    let mut settings = Settings::new(name, "room", dir.join("data"), port);
    settings.bin_dir = Some(bin_dir());
    settings.pgpass = dir.join("pgpass");
    settings.listen_addresses = "127.0.0.1".into();
    settings.server_output = Some(dir.join("server.log"));
    settings.superuser = login("postgres", "dummy-super");
    settings.replication = login("replicator", "dummy-repl");
    settings.rewind = Some(login("rewinder", "dummy-rewind"));
    settings.use_pg_rewind = true;
    for (name, value) in [
        ("unix_socket_directories", dir.display().to_string()),
        ("shared_buffers", "4MB".into()),
        ("max_connections", "30".into()),
        ("fsync", "off".into()),
        ("timezone", "UTC".into()),
        ("wal_keep_size", "16MB".into()),
    ] {
        settings.parameters.insert(name.into(), value);
    }
    settings.pg_hba = vec![
        "local all all trust".into(),
        "host replication replicator 127.0.0.1/32 scram-sha-256".into(),
        "host all all 127.0.0.1/32 scram-sha-256".into(),
    ];
    settings.bootstrap.initdb = vec![("data-checksums".into(), None), ("no-sync".into(), None)];
    settings
}

/// A bootstrapped and cleanly stopped data directory, made once per process.
async fn template() -> &'static Path {
    static TEMPLATE: tokio::sync::OnceCell<PathBuf> = tokio::sync::OnceCell::const_new();
    let made = TEMPLATE.get_or_init(|| async {
        let node = Node::new("alpha");
        node.pg.bootstrap().await.unwrap();
        node.pg.post_bootstrap().await.unwrap();
        let seen = node.look().await;
        assert_eq!((seen.state, seen.role), (State::Running, Role::Primary));
        let steps =
            node.pg.stop(Stop { mode: StopMode::Fast, checkpoint: false, immediate_at: None });
        let steps: Vec<_> = futures::StreamExt::collect(steps).await;
        assert_eq!(steps.last(), Some(&StopStep::Stopped), "{steps:?}");
        keep(node)
    });
    made.await
}

/// Statics are never dropped: the directory goes when the process ends.
fn keep(node: Node) -> PathBuf {
    static KEPT: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(path) = KEPT.get() {
            let _ = std::fs::remove_dir_all(path);
        }
    }
    let data = node.data();
    let path = KEPT.get_or_init(|| node.dir.path().to_owned());
    // SAFETY: `remove` takes no arguments, touches only the static above, and does not unwind.
    unsafe { libc::atexit(remove) };
    // From here on `remove` owns the directory.
    assert_eq!(path, node.dir.path());
    std::mem::forget(node);
    data
}

/// Stops it and gives the steps.
pub async fn stop(
    node: &Node,
    mode: StopMode,
    checkpoint: bool,
    limit: Option<u64>,
) -> Vec<StopStep> {
    let immediate_at = limit.map(|ms| Deadline::in_ms(ms).0);
    let steps = node.pg.stop(Stop { mode, checkpoint, immediate_at });
    tokio::time::timeout(Duration::from_secs(30), steps.collect()).await.unwrap()
}
