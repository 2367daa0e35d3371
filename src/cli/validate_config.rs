//! `hathi validate-config`: everything a start would refuse, and what would not be understood.
//! (CFG-121 … CFG-126)

use super::{checks, environment};
use crate::agent;
use crate::config::{self, Address, DcsSection, Etcd3Section, Local, Settings};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// For one store's server to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// For DNS to name the servers.
const RESOLVE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The YAML file, or the directory of files; without it the PATRONI_* variables.
    pub config: Option<PathBuf>,
    /// Print the merged local configuration, secrets included.
    #[arg(short, long)]
    pub print: bool,
    /// Do not mind ports that are in use.
    #[arg(short, long)]
    pub ignore_listen_port: bool,
    /// Do not connect to the store.
    #[arg(long)]
    pub no_connect: bool,
}

/// Problems go to stderr, one line each, and make the exit code 1; warnings go there too.
pub fn run(args: &Args) -> ExitCode {
    let path = args.config.as_deref();
    let environment = environment();
    let loaded = config::load(path, &environment).and_then(|(local, warnings)| {
        let (settings, _) = config::effective(&local, &local.first_dynamic())?;
        Ok((local, settings, warnings))
    });
    let (local, settings, warnings) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    for (key, address) in loopbacks(&local) {
        eprintln!(
            "warning: {key}: {address} means this machine to everybody; others cannot use it"
        );
    }
    let problems = problems(&local, &settings, args);
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        return ExitCode::FAILURE;
    }
    if args.print {
        match config::merged(path, &environment) {
            Ok(document) => print!("{}", config::to_yaml(&document)),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// (CFG-098, CFG-161, CFG-340) A single machine's test set-up is allowed to be one.
fn loopbacks(local: &Local) -> Vec<(&'static str, Address)> {
    let mut addresses = vec![
        ("restapi.connect_address", local.restapi.connect_address.clone()),
        ("postgresql.connect_address", local.postgresql.connect_address.clone()),
    ];
    if let Some(address) = &local.postgresql.proxy_address {
        addresses.push(("postgresql.proxy_address", address.clone()));
    }
    match &local.dcs {
        DcsSection::Raft(raft) => addresses.push(("raft.self_addr", raft.self_addr.clone())),
        DcsSection::Etcd3(_)
        | DcsSection::Consul(_)
        | DcsSection::ZooKeeper(_)
        | DcsSection::Redis(_)
        | DcsSection::Kubernetes(_) => {}
    }
    addresses.retain(|(_, address)| address.is_loopback());
    addresses
}

fn problems(local: &Local, settings: &Settings, args: &Args) -> Vec<String> {
    let mut problems = checks::binaries(local, settings);
    problems.extend(data_dir(local, settings));
    if let Some(problem) = checks::own_login(local, settings) {
        if local.postgresql.data_dir.join("PG_VERSION").exists() {
            eprintln!("warning: {problem}");
        } else {
            problems.push(problem);
        }
    }
    if !args.ignore_listen_port {
        problems.extend(checks::ports(local));
    }
    if !args.no_connect {
        problems.extend(store(&local.dcs));
    }
    problems
}

/// Missing, empty, or of the major version that is installed. (CFG-163)
fn data_dir(local: &Local, settings: &Settings) -> Option<String> {
    let dir = &local.postgresql.data_dir;
    let shown = format!("postgresql.data_dir {}", dir.display());
    let Ok(mut entries) = std::fs::read_dir(dir) else {
        return checks::data_dir(dir);
    };
    entries.next()?.ok()?;
    let Ok(version) = std::fs::read_to_string(dir.join("PG_VERSION")) else {
        return Some(format!("{shown}: is not empty and holds no PG_VERSION; name another one"));
    };
    if !dir.join("pg_wal").is_dir() && !dir.join("pg_xlog").is_dir() {
        return Some(format!("{shown}: has no pg_wal; it is no whole data directory"));
    }
    let name = settings.postgresql.bin_name.get("postgres").map_or("postgres", String::as_str);
    let program = checks::find(local.postgresql.bin_dir.as_deref(), name)?;
    let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed = text.split_whitespace().last().unwrap_or_default();
    let version = version.trim();
    let same = installed
        .strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    (!same).then(|| {
        format!(
            "{shown}: is of version {version}, {} is {installed}; correct postgresql.bin_dir",
            program.display()
        )
    })
}

/// At least one server answers. (CFG-124) The embedded store's partners may not run yet.
fn store(section: &DcsSection) -> Option<String> {
    let servers = match section {
        DcsSection::Raft(_) => return None,
        // Where its API server is, only the Pod knows that it will run in.
        DcsSection::Kubernetes(_) => return None,
        DcsSection::Etcd3(etcd) if etcd.srv.is_some() => return etcd_by_dns(etcd),
        DcsSection::Etcd3(etcd) => &etcd.hosts,
        DcsSection::Consul(consul) => &consul.hosts,
        DcsSection::ZooKeeper(zookeeper) => &zookeeper.hosts,
        DcsSection::Redis(redis) => &redis.hosts,
    };
    if servers.iter().any(answers) {
        return None;
    }
    let (name, all) = (section.name(), listed(servers));
    Some(format!("{name}: no server accepts a connection ({all}); start it or correct the hosts"))
}

fn answers(server: &Address) -> bool {
    let addresses = (server.host.as_str(), server.port).to_socket_addrs();
    let mut addresses = addresses.into_iter().flatten();
    addresses.any(|address| TcpStream::connect_timeout(&address, CONNECT).is_ok())
}

fn listed(servers: &[Address]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The same for servers that DNS names: the hosts beside them are used when it names none. (CFG-303)
fn etcd_by_dns(etcd: &Etcd3Section) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let named = match runtime {
        Ok(runtime) => runtime.block_on(agent::store::named_by_dns(etcd, RESOLVE)),
        Err(why) => Err(why.to_string()),
    };
    let urls = match named {
        Ok(urls) => urls,
        Err(why) if etcd.hosts.is_empty() => return Some(format!("etcd3: {why}")),
        Err(why) => {
            eprintln!("warning: etcd3: {why}; the hosts are used");
            let silent = !etcd.hosts.iter().any(answers);
            let all = listed(&etcd.hosts);
            return silent.then(|| format!("etcd3: no host accepts a connection either ({all})"));
        }
    };
    let places = urls.iter().filter_map(|url| url.split_once("://"));
    let servers: Vec<Address> =
        places.filter_map(|(_, place)| Address::parse(place, None)).collect();
    let all = listed(&servers);
    (!servers.iter().any(answers))
        .then(|| format!("etcd3: no server that DNS names accepts a connection ({all})"))
}
