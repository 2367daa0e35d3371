//! The measurements, in the order of the issue that asked for them.

use crate::Contender;
use crate::table::Table;
use hathi_test_support::process::{belonging_to, cpu_seconds, resident_kb};
use hathi_test_support::{Agent, Cluster, Writers, check, sql};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(2);
const SETTLED: Duration = Duration::from_secs(120);
/// Long enough that a call more or less, or a turn, does not count.
const IDLE: Duration = Duration::from_secs(180);

/// All parts, or those named.
pub async fn all(
    cluster: &mut Cluster,
    who: Contender,
    rounds: usize,
    parts: &[String],
    table: &mut Table,
) {
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|p| p == part);
    if wanted("idle") {
        idle(cluster, who, table).await;
    }
    for _ in 0..if wanted("failover") { rounds } else { 0 } {
        primarys_postmaster(cluster, who, table).await;
        switchover(cluster, who, table).await;
        planned_stop(cluster, who, table).await;
        replicas_postmaster(cluster, who, table).await;
        node_death(cluster, who, table).await;
    }
}

async fn writing(cluster: &Cluster) -> (usize, Writers) {
    let leader = cluster.healthy(SETTLED).await;
    let writers = Writers::start(cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    (leader, writers)
}

/// From `since` to the acknowledgement of the first row by another node than `old`.
async fn first_write_elsewhere(writers: &Writers, old: usize, since: Instant) -> f64 {
    let deadline = since + SETTLED;
    while Instant::now() < deadline {
        if let Some(new) = writers.last().filter(|a| a.node != old && a.acked > since) {
            let first = new.acked.duration_since(since);
            return first.as_secs_f64();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("nobody took over")
}

async fn primarys_postmaster(cluster: &mut Cluster, who: Contender, table: &mut Table) {
    let (leader, writers) = writing(cluster).await;
    let killed = Instant::now();
    cluster.kill_postmaster(leader);
    let took = first_write_elsewhere(&writers, leader, killed).await;
    table.add(who, "primary's postmaster killed: first write, s", took);
    drop(writers);
    cluster.healthy(SETTLED).await;
}

async fn switchover(cluster: &mut Cluster, who: Contender, table: &mut Table) {
    let (leader, writers) = writing(cluster).await;
    let candidate = (leader + 1) % cluster.nodes.len();
    let names = (&cluster.nodes[leader].name, &cluster.nodes[candidate].name);
    let order = json!({"leader": names.0, "candidate": names.1});
    let asked = Instant::now();
    let answer = cluster.send(leader, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    first_write_elsewhere(&writers, leader, asked).await;
    let gap = check::longest_gap(&writers.stop().await.accepted, asked, Instant::now());
    table.add(who, "switchover: without writes, s", gap.as_secs_f64());
    cluster.healthy(SETTLED).await;
}

async fn planned_stop(cluster: &mut Cluster, who: Contender, table: &mut Table) {
    let (leader, writers) = writing(cluster).await;
    let asked = Instant::now();
    cluster.signal_agent(leader, Signal::TERM);
    first_write_elsewhere(&writers, leader, asked).await;
    let gap = check::longest_gap(&writers.stop().await.accepted, asked, Instant::now());
    table.add(who, "primary's agent stopped: without writes, s", gap.as_secs_f64());
    cluster.await_end(leader, SETTLED).await;
    cluster.start_agent(leader);
    cluster.healthy(SETTLED).await;
}

async fn node_death(cluster: &mut Cluster, who: Contender, table: &mut Table) {
    let (leader, writers) = writing(cluster).await;
    let killed = Instant::now();
    cluster.kill_node(leader);
    let took = first_write_elsewhere(&writers, leader, killed).await;
    table.add(who, "primary's node dies (ttl 30): first write, s", took);
    drop(writers);
    cluster.start_agent(leader);
    cluster.healthy(SETTLED).await;
}

async fn replicas_postmaster(cluster: &mut Cluster, who: Contender, table: &mut Table) {
    let leader = cluster.healthy(SETTLED).await;
    let replica = (leader + 1) % cluster.nodes.len();
    let name = &cluster.nodes[replica].name;
    let walsender = format!(
        "SELECT pid FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming'"
    );
    let port = cluster.nodes[leader].pg_port;
    let within = Duration::from_secs(5);
    let session = sql::connect(port, within).await.expect("a session");
    let before = session.rows(&walsender, within).await.expect("an answer");
    let killed = Instant::now();
    cluster.kill_postmaster(replica);
    loop {
        let now = session.rows(&walsender, within).await.expect("an answer");
        if !now.is_empty() && now != before {
            break;
        }
        assert!(killed.elapsed() < SETTLED, "the replica never came back\n{}", cluster.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = killed.elapsed().as_secs_f64();
    table.add(who, "replica's postmaster killed: streams again, s", took);
    cluster.healthy(SETTLED).await;
}

/// Agent and guard: whatever belongs to the node and is no PostgreSQL.
pub fn agents_of(cluster: &Cluster, node: usize) -> Vec<u32> {
    let all = belonging_to(&cluster.nodes[node].dir).into_iter();
    all.filter(|pid| !is_postgres(*pid)).collect()
}

pub fn is_postgres(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "postgres")
}

async fn idle(cluster: &Cluster, who: Contender, table: &mut Table) {
    let leader = cluster.healthy(SETTLED).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let nodes = cluster.nodes.len() as f64;
    let cpu = |cluster: &Cluster| -> f64 {
        let all = (0..cluster.nodes.len()).flat_map(|i| agents_of(cluster, i));
        all.filter_map(cpu_seconds).sum()
    };
    let calls_before = match &cluster.etcd {
        Some(etcd) => Some(etcd.calls().await.expect("etcd's metrics")),
        None => None,
    };
    let (before, started) = (cpu(cluster), Instant::now());
    tokio::time::sleep(IDLE).await;
    let hours = started.elapsed().as_secs_f64() / 3600.0;
    table.add(who, "idle: CPU seconds an hour and node", (cpu(cluster) - before) / hours / nodes);
    if let (Some(etcd), Some(before)) = (&cluster.etcd, calls_before) {
        let made = etcd.calls().await.expect("etcd's metrics") - before;
        let minutes = hours * 60.0;
        table.add(who, "idle: calls to the store a minute, whole cluster", made as f64 / minutes);
    }
    let resident = resident_kb(&agents_of(cluster, leader)).expect("page numbers: run it as root");
    table.add(who, "idle: resident, agent and guard of the leader, MB", resident as f64 / 1024.0);
    let what = if who.agent == Agent::Hathi { "guard included" } else { "no guard" };
    eprintln!("{}: {what}", who.name);
}
