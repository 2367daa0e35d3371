//! Where the demo's cluster lives: its directory, ports, the OS user that runs it, the file each
//! agent gets. Everything that can be refused is refused here, before anything is started.

use super::DemoArgs;
use super::program::{self, RunAs};
use anyhow::{Context, bail, ensure};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// One node, as it was planned.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub name: String,
    pub dir: PathBuf,
    pub pg_port: u16,
    pub rest_port: u16,
    pub raft_port: u16,
}

impl NodePlan {
    pub fn file(&self) -> PathBuf {
        self.dir.join("hathi.yml")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("hathi.log")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The pid in postmaster.pid, if a process has it.
    pub fn postmaster(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // A zombie is no server.
        (!stat.rsplit(") ").next()?.starts_with('Z')).then_some(pid)
    }
}

/// The whole plan, carried out as far as files go.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    pub nodes: Vec<NodePlan>,
    pub store: String,
    pub password: String,
    pub replication_password: String,
    pub program: PathBuf,
    pub run_as: Option<RunAs>,
    keep: bool,
    /// We made the directory ourselves, not only what is in it.
    made: bool,
}

pub const SCOPE: &str = "demo";
pub const SUPERUSER: &str = "postgres";
pub const REPLICATION_USER: &str = "replicator";

impl Place {
    /// # Errors
    /// Whatever stands in the way, in one line; nothing is left on disk then.
    pub fn prepare(args: &DemoArgs) -> anyhow::Result<Self> {
        let bin_dir = program::postgres_bin_dir(args.bin_dir.as_deref())?;
        let run_as = program::run_as()?;
        let ports = ports(args)?;
        let (dir, made) = directory(args.dir.as_deref())?;
        let mut place = Self {
            dir,
            nodes: Vec::new(),
            store: if args.etcd.is_some() { "etcd3" } else { "raft" }.to_owned(),
            password: program::secret()?,
            replication_password: program::secret()?,
            program: PathBuf::new(),
            run_as,
            keep: args.keep,
            made,
        };
        if let Err(e) = place.fill(args, &bin_dir, &ports) {
            place.keep = false;
            place.finish(false);
            return Err(e);
        }
        Ok(place)
    }

    fn fill(&mut self, args: &DemoArgs, bin_dir: &Path, ports: &[u16]) -> anyhow::Result<()> {
        self.give(&self.dir)?;
        self.program = program::runnable_by(self.run_as.as_ref(), &self.dir)?;
        self.nodes = (0..usize::from(args.nodes))
            .map(|i| {
                let name = format!("node{}", i + 1);
                let dir = self.dir.join(&name);
                let [pg_port, rest_port, raft_port] =
                    [ports[3 * i], ports[3 * i + 1], ports[3 * i + 2]];
                NodePlan { name, dir, pg_port, rest_port, raft_port }
            })
            .collect();
        for (i, node) in self.nodes.iter().enumerate() {
            let socket = node.dir.join(format!(".s.PGSQL.{}", node.pg_port));
            ensure!(
                socket.as_os_str().len() < 107,
                "{}: the path is too long for PostgreSQL's unix sockets; choose a shorter --dir",
                node.dir.display()
            );
            std::fs::create_dir(&node.dir)
                .with_context(|| format!("{} cannot be created", node.dir.display()))?;
            self.give(&node.dir)?;
            let file = node.file();
            std::fs::write(&file, self.yaml(i, bin_dir, args.etcd.as_deref()))
                .with_context(|| format!("{} cannot be written", file.display()))?;
            set_private(&file)?;
            self.give(&file)?;
        }
        Ok(())
    }

    /// The file of one node: a small, complete example of what an agent needs.
    fn yaml(&self, which: usize, bin_dir: &Path, etcd: Option<&str>) -> String {
        let node = &self.nodes[which];
        let store = match etcd {
            Some(hosts) => format!("etcd3:\n  hosts: {hosts}\n"),
            None => {
                let others: Vec<String> = self
                    .nodes
                    .iter()
                    .filter(|n| n.name != node.name)
                    .map(|n| format!("127.0.0.1:{}", n.raft_port))
                    .collect();
                format!(
                    "raft:\n  data_dir: {}\n  self_addr: 127.0.0.1:{}\n  partner_addrs: [{}]\n  \
                     password: {}\n",
                    quoted(&node.dir.join("raft")),
                    node.raft_port,
                    others.iter().map(|a| format!("'{a}'")).collect::<Vec<_>>().join(", "),
                    self.replication_password
                )
            }
        };
        format!(
            "scope: {SCOPE}\nname: {name}\n\nrestapi:\n  listen: 127.0.0.1:{rest}\n  \
             connect_address: 127.0.0.1:{rest}\n\n{store}\nbootstrap:\n  dcs:\n    ttl: 20\n    \
             loop_wait: 5\n    retry_timeout: 5\n    maximum_lag_on_failover: 1048576\n    \
             # another node takes over at once when the primary's PostgreSQL crashes\n    \
             primary_start_timeout: 0\n    postgresql:\n      use_pg_rewind: true\n      \
             use_slots: true\n  initdb:\n  - encoding: UTF8\n  - locale: C.UTF-8\n  \
             - data-checksums\n\npostgresql:\n  listen: 127.0.0.1:{pg}\n  \
             connect_address: 127.0.0.1:{pg}\n  data_dir: {data}\n  bin_dir: {bin}\n  \
             pgpass: {pgpass}\n  authentication:\n    superuser:\n      \
             username: {SUPERUSER}\n      password: {password}\n    replication:\n      \
             username: {REPLICATION_USER}\n      password: {replication}\n  parameters:\n    \
             unix_socket_directories: {dir}\n    shared_buffers: 16MB\n  pg_hba:\n  \
             - local all all trust\n  \
             - host replication {REPLICATION_USER} 127.0.0.1/32 scram-sha-256\n  \
             - host all all 127.0.0.1/32 scram-sha-256\n",
            name = node.name,
            rest = node.rest_port,
            pg = node.pg_port,
            data = quoted(&node.data()),
            bin = quoted(bin_dir),
            pgpass = quoted(&node.dir.join("pgpass")),
            dir = quoted(&node.dir),
            password = self.password,
            replication = self.replication_password,
        )
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = &self.run_as else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("{} cannot be given to {}", path.display(), user.name))
    }

    /// One line for `psql`: whoever is primary.
    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.pg_port)).collect();
        format!(
            "postgresql://{SUPERUSER}:{}@{}/postgres?target_session_attrs=read-write",
            self.password,
            hosts.join(",")
        )
    }

    /// Removes what was made, unless it is to be kept. `Some`: it was kept, here.
    pub fn finish(&self, failed: bool) -> Option<PathBuf> {
        if self.keep {
            return Some(self.dir.clone());
        }
        if failed {
            // The agents' logs are the only witnesses.
            return Some(self.dir.clone());
        }
        let removed = if self.made {
            std::fs::remove_dir_all(&self.dir)
        } else {
            self.nodes.iter().try_for_each(|n| std::fs::remove_dir_all(&n.dir))
        };
        removed.err().map(|_| self.dir.clone())
    }
}

/// A path as a YAML scalar.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "''"))
}

fn set_private(file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("{}: the mode cannot be set", file.display()))
}

fn directory(wanted: Option<&Path>) -> anyhow::Result<(PathBuf, bool)> {
    let Some(wanted) = wanted else {
        let dir = tempfile::Builder::new().prefix("hathi-demo-").tempdir();
        return Ok((dir.context("no temporary directory can be created")?.keep(), true));
    };
    let dir = std::path::absolute(wanted)
        .with_context(|| format!("{} is no usable path", wanted.display()))?;
    match std::fs::read_dir(&dir) {
        Ok(mut entries) => {
            ensure!(
                entries.next().is_none(),
                "--dir {}: not empty; the demo wants a new or empty directory",
                dir.display()
            );
            Ok((dir, false))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir(&dir)
                .with_context(|| format!("--dir {}: cannot be created", dir.display()))?;
            Ok((dir, true))
        }
        Err(e) => bail!("--dir {}: {e}", dir.display()),
    }
}

/// Where the search for free ports begins and ends: below the range from which the kernel takes
/// ports for outgoing connections.
const BASES: std::ops::Range<u16> = 15430..31000;

/// Three ports a node: PostgreSQL, REST, the embedded store.
fn ports(args: &DemoArgs) -> anyhow::Result<Vec<u16>> {
    let nodes = args.nodes;
    let from = |base: u16| -> Vec<u16> {
        (0..nodes).flat_map(|i| [base + i, base + 10 + i, base + 20 + i]).collect()
    };
    let usable = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).map(drop);
    let Some(base) = args.port_base else {
        return BASES
            .step_by(50)
            .map(from)
            .find(|all| all.iter().all(|p| usable(p).is_ok()))
            .context("no free ports on 127.0.0.1");
    };
    let last = u16::MAX - 20 - nodes;
    ensure!(base >= 1024 && base <= last, "--port-base {base}: must lie between 1024 and {last}");
    let all = from(base);
    for port in &all {
        usable(port).with_context(|| format!("--port-base {base}: port {port} cannot be used"))?;
    }
    Ok(all)
}
