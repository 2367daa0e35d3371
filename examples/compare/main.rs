//! Measures hathi beside real Patroni, on this machine, in one run, and prints a table of medians.
//! Nothing here is a test: a slow machine gives slow numbers, and the ratio is what counts.
//!
//! `scripts/bench [--rounds N] [--only hathi-raft|hathi-etcd|patroni-etcd]... [--part idle|failover|http|attack]...`

mod attack;
mod http;
mod load;
mod measure;
mod sheet;
mod table;

use hathi_test_support::{Agent, Cluster, ClusterOptions, Store};
use serde_json::json;
use std::path::PathBuf;

/// One column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    pub name: &'static str,
    pub agent: Agent,
    pub store: Store,
}

const CONTENDERS: [Contender; 3] = [
    Contender { name: "hathi-raft", agent: Agent::Hathi, store: Store::Raft },
    Contender { name: "hathi-etcd", agent: Agent::Hathi, store: Store::Etcd { members: 1 } },
    Contender { name: "patroni-etcd", agent: Agent::Patroni, store: Store::Etcd { members: 1 } },
];

#[tokio::main]
async fn main() {
    let mut rounds = 3_usize;
    let mut only: Vec<String> = Vec::new();
    let mut parts: Vec<String> = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--rounds", Some(n)) => rounds = n.parse().expect("--rounds wants a number"),
            ("--only", Some(name)) => only.push(name),
            ("--part", Some(part)) => parts.push(part),
            _ => panic!("usage: compare [--rounds N] [--only NAME]... [--part PART]..."),
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    let hathi = hathi_binary();
    let mut table = table::Table::new(rounds);
    for contender in CONTENDERS {
        let left_out = !only.is_empty() && !only.iter().any(|o| o == contender.name);
        if left_out || !(wanted("idle") || wanted("failover")) {
            continue;
        }
        eprintln!("{}: bootstrap", contender.name);
        let mut cluster = Cluster::start(options(contender, &hathi)).await;
        measure::all(&mut cluster, contender, rounds, &parts, &mut table).await;
    }
    if wanted("idle") || wanted("failover") {
        table.print();
    }
    if wanted("http") || wanted("attack") {
        http::compare(rounds, &only, wanted("http")).await;
    }
}

/// The timing of a default installation; a primary's crash fails over at once.
fn options(contender: Contender, hathi: &str) -> ClusterOptions {
    let mut options = ClusterOptions::new(contender.agent, contender.store, hathi);
    options.dcs = json!({
        "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "primary_start_timeout": 0
    });
    options
}

/// The release binary lies beside our own directory.
fn hathi_binary() -> String {
    let own = std::env::current_exe().expect("our own path");
    let beside: Option<PathBuf> = own.parent().and_then(|p| p.parent()).map(|p| p.join("hathi"));
    let path = beside.expect("a target directory");
    assert!(path.exists(), "{} is not there: scripts/bench builds it", path.display());
    path.display().to_string()
}
