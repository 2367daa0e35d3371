//! The store is out of reach: nobody may lead without it, and the cluster returns with it.

use crate::{PAUSE, SETTLED, TTL, cluster, options};
use hathi_test_support::yaml::SCOPE;
use hathi_test_support::{Cluster, Store, Writers, check, sql, wait};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Every server of the store freezes; on raft the other two agents do, so that the primary's own has
/// no majority left. The primary stops taking writes before its lease could be somebody else's.
///
/// Proves HA-153 and HA-304 on a real server.
pub async fn store_out_of_reach(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");

    let cut = Instant::now();
    freeze(&cluster, leader, true);
    gives_up(&cluster, leader, &writers, cut).await;
    let answer = cluster.get(leader, "/primary").await.expect("the agent answers without a store");
    assert_eq!(answer.status, 503, "{}", answer.body);

    freeze(&cluster, leader, false);
    serves_again(&cluster, writers).await;
}

/// The primary stops taking writes before its lease, seen last at `cut`, could be somebody else's.
pub async fn gives_up(cluster: &Cluster, leader: usize, writers: &Writers, cut: Instant) {
    cluster
        .wait("the primary gives up", TTL + Duration::from_secs(15), || async {
            let port = cluster.nodes[leader].pg_port;
            match sql::value(port, "SELECT pg_is_in_recovery()").await.as_deref() {
                Ok("t") => Ok(()),
                other => Err(format!("pg_is_in_recovery: {other:?}")),
            }
        })
        .await;
    let last = writers.last().expect("an accepted write");
    let held = last.acked.saturating_duration_since(cut);
    assert!(held <= TTL, "writes were accepted for {held:?} without the store");
}

/// The whole cluster, with every row that it acknowledged.
pub async fn serves_again(cluster: &Cluster, writers: Writers) {
    let again = writers.accepts_after(Instant::now(), SETTLED).await;
    again.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    cluster.healthy(SETTLED).await;
    let written = writers.stop().await;
    check::verify(cluster, &written, &[]).await;
    check::same_rows_everywhere(cluster, SETTLED).await;
}

fn freeze(cluster: &Cluster, leader: usize, on: bool) {
    match cluster.store() {
        Store::Raft => {
            let signal = if on { Signal::STOP } else { Signal::CONT };
            for other in (0..cluster.nodes.len()).filter(|i| *i != leader) {
                cluster.signal_agent(other, signal);
            }
        }
        _ if on => cluster.pause_store(),
        _ => cluster.resume_store(),
    }
}

/// etcd is full: leases are kept alive, and nothing is written. The primary keeps its lock for as long as
/// that lasts, well beyond the lease, whatever becomes of its other records; they are written afterwards.
///
/// Proves DCS-022, DCS-023, DCS-034 and DCS-311 (records never delay the renewal) on a real server.
pub async fn a_full_store_costs_no_primary() {
    let cluster = cluster(Store::Etcd { members: 1 }).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let etcd = cluster.etcd.as_ref().expect("its etcd");
    let status = || etcd.value(&format!("/service/{SCOPE}/status")).expect("written by the leader");
    let postmasters: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    etcd.full(true).await;
    let full = Instant::now();
    let before = status();
    let long_after = full + TTL + Duration::from_secs(10);
    let late = writers.accepts_after(long_after, TTL + Duration::from_secs(20)).await;
    let late = late.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    assert_eq!(late.node, leader, "{}", cluster.report());
    assert_eq!(status(), before, "it was not full");
    assert_eq!(cluster.leader().await, Ok(leader), "{}", cluster.report());
    etcd.full(false).await;
    cluster
        .wait("the status is written again", SETTLED, || async {
            let now = status();
            if now == before { Err(now) } else { Ok(()) }
        })
        .await;
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    let after: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    assert_eq!(postmasters, after, "no PostgreSQL was restarted\n{}", cluster.report());
    let written = writers.stop().await;
    let gap = check::longest_gap(&written.accepted, full, Instant::now());
    assert!(gap < Duration::from_secs(3), "no write for {gap:?}");
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// The store is gone when an agent starts beside a PostgreSQL that runs: one line says what was tried,
/// the agent goes on trying, and PostgreSQL is not touched until the store is back, nor after.
///
/// Proves DCS-077 on a real store.
pub async fn store_down_at_start(store: Store) {
    let mut options = options(store);
    options.nodes = 2;
    let mut cluster = Cluster::start(options).await;
    let replica = 1 - cluster.leader().await.expect("the leader of a healthy cluster");
    let postmaster = cluster.nodes[replica].postmaster();
    assert!(postmaster.is_some(), "{}", cluster.report());
    cluster.kill_agent(replica);
    cluster.kill_store();
    let log = cluster.nodes[replica].log();
    let before = std::fs::read_to_string(&log).expect("the agent's log").len();
    cluster.start_agent(replica);
    let waits = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let new = text.get(before..).unwrap_or_default();
        let lines = new.lines().filter(|line| line.contains("waiting for the store"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    cluster
        .wait("it says what it waits for", Duration::from_secs(30), || async {
            if waits().is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
        })
        .await;
    // Longer than from one try to the next.
    let untouched = wait::holds("PostgreSQL runs on", Duration::from_secs(18), || async {
        let now = cluster.nodes[replica].postmaster();
        if now == postmaster { Ok(()) } else { Err(format!("{now:?}, not {postmaster:?}")) }
    });
    untouched.await.unwrap_or_else(|why| panic!("{why}\n{}", cluster.report()));
    assert!(cluster.agent_running(replica), "it gave up\n{}", cluster.report());
    let said = waits();
    assert_eq!(said.len(), 1, "one line, not {said:#?}");
    assert!(said[0].contains("127.0.0.1:"), "it does not say what it tried: {}", said[0]);
    cluster.restart_store().await;
    cluster.healthy(SETTLED).await;
    assert_eq!(cluster.nodes[replica].postmaster(), postmaster, "{}", cluster.report());
}
