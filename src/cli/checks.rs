//! What can be known to be impossible before anything is touched. Each problem is one line: what,
//! where, what to do.

use crate::config::{DcsSection, Listen, Local, Settings};
use std::io::ErrorKind;
use std::net::{TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// What stands in the way of starting the agent: the first obstacle.
///
/// # Errors
/// One line.
pub fn before_start(local: &Local, settings: &Settings) -> anyhow::Result<()> {
    let postgres = crate::postgres::Settings::from_config(local, settings);
    crate::postgres::preflight(&postgres).map_err(anyhow::Error::msg)?;
    match own_ports(local).into_iter().next() {
        Some(problem) => Err(anyhow::Error::msg(problem)),
        None => Ok(()),
    }
}

/// Would `postgresql.pg_hba` lock the agent itself out? Certain only for a new cluster: a running
/// server was set up by somebody.
pub fn own_login(local: &Local, settings: &Settings) -> Option<String> {
    crate::postgres::own_login(&crate::postgres::Settings::from_config(local, settings))
}

/// The data directory, or the nearest directory it would be made in, must be ours to write.
pub fn data_dir(path: &Path) -> Option<String> {
    let shown = path.display();
    let nearest = path.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists());
    let nearest = nearest.unwrap_or_else(|| Path::new("."));
    if !nearest.is_dir() {
        let place = nearest.display();
        return Some(format!("postgresql.data_dir {shown}: {place} is not a directory"));
    }
    use rustix::fs::Access;
    match rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => None,
        Err(error) => Some(format!(
            "postgresql.data_dir {shown}: {} cannot be written by this user ({error}); change its \
             owner or postgresql.data_dir",
            nearest.display()
        )),
    }
}

/// Every program we cannot do without.
pub fn binaries(local: &Local, settings: &Settings) -> Vec<String> {
    let mut needed = vec!["postgres", "initdb", "pg_controldata", "pg_basebackup"];
    if settings.postgresql.use_pg_rewind {
        needed.push("pg_rewind");
    }
    let advice = "install PostgreSQL or correct postgresql.bin_dir";
    let missing = |program: &str| {
        let name = settings.postgresql.bin_name.get(program).map_or(program, String::as_str);
        match find(local.postgresql.bin_dir.as_deref(), name) {
            Some(_) => None,
            None => Some(match &local.postgresql.bin_dir {
                Some(dir) => format!(
                    "postgresql.bin_dir {}: there is no program {name}; {advice}",
                    dir.display()
                ),
                None => format!("the PATH has no program {name}; {advice}"),
            }),
        }
    };
    // One line for a wrong directory, not one for each program.
    needed.into_iter().find_map(missing).into_iter().collect()
}

/// Where the program is, if it is there and may be run.
pub fn find(bin_dir: Option<&Path>, name: &str) -> Option<PathBuf> {
    let runnable = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    match bin_dir {
        Some(dir) => Some(dir.join(name)).filter(runnable),
        None => {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(runnable)
        }
    }
}

/// Every port of this node. A PostgreSQL that runs already in our data directory keeps its own.
pub fn ports(local: &Local) -> Vec<String> {
    let mut problems = own_ports(local);
    if !local.postgresql.data_dir.join("postmaster.pid").exists() {
        problems.extend(listen("postgresql.listen", &local.postgresql.listen));
    }
    problems
}

/// The ports this process itself will listen on.
fn own_ports(local: &Local) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(listen("restapi.listen", &local.restapi.listen));
    match &local.dcs {
        DcsSection::Raft(raft) => {
            let hosts = vec![raft.bind_addr.host.clone()];
            let address = Listen { hosts, port: raft.bind_addr.port };
            problems.extend(listen("raft.bind_addr", &address));
        }
        DcsSection::Etcd3(_)
        | DcsSection::Consul(_)
        | DcsSection::ZooKeeper(_)
        | DcsSection::Redis(_)
        | DcsSection::Kubernetes(_) => {}
    }
    problems
}

fn listen(key: &str, wanted: &Listen) -> Option<String> {
    wanted.hosts.iter().find_map(|host| listen_on(key, host, wanted.port))
}

/// Takes the port for a moment; nobody is connected to.
fn listen_on(key: &str, host: &str, port: u16) -> Option<String> {
    let name = if matches!(host, "*" | "") { "0.0.0.0" } else { host };
    let shown = format!("{key} {host}:{port}");
    let addresses = match (name, port).to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return Some(format!("{shown}: {error}; correct the host name")),
    };
    for address in addresses {
        match TcpListener::bind(address).map_err(|error| error.kind()) {
            Ok(_) => {}
            Err(ErrorKind::AddrInUse) => {
                return Some(format!(
                    "{shown}: the port is in use; stop what listens there or choose another port"
                ));
            }
            Err(ErrorKind::AddrNotAvailable) if host == "localhost" => {}
            Err(ErrorKind::AddrNotAvailable) => {
                return Some(format!(
                    "{shown}: this machine does not have that address; correct it"
                ));
            }
            Err(kind) => return Some(format!("{shown}: cannot listen there: {kind}")),
        }
    }
    None
}
