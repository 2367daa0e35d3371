//! The store is out of reach: nobody may lead without it, and the cluster returns with it.

use crate::{PAUSE, SETTLED, TTL, cluster};
use hathi_test_support::{Cluster, Store, Writers, check, sql};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// On etcd every member freezes; on raft the other two agents do, so that the primary's own has
/// no majority left. The primary stops taking writes before its lease could be somebody else's.
///
/// Proves HA-153 and HA-304 on a real server.
pub async fn store_out_of_reach(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), Duration::from_secs(10)).await.expect("a write");

    let cut = Instant::now();
    freeze(&cluster, leader, true);
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
    let answer = cluster.get(leader, "/primary").await.expect("the agent answers without a store");
    assert_eq!(answer.status, 503, "{}", answer.body);

    freeze(&cluster, leader, false);
    let again = writers.accepts_after(Instant::now(), SETTLED).await;
    again.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    cluster.healthy(SETTLED).await;
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, Duration::from_secs(10)).await;
}

fn freeze(cluster: &Cluster, leader: usize, on: bool) {
    if let Some(kubernetes) = &cluster.kubernetes {
        return if on { kubernetes.pause_whole() } else { kubernetes.resume_whole() };
    }
    match &cluster.etcd {
        Some(etcd) if on => etcd.pause(),
        Some(etcd) => etcd.resume(),
        None => {
            let signal = if on { Signal::STOP } else { Signal::CONT };
            for other in (0..cluster.nodes.len()).filter(|i| *i != leader) {
                cluster.signal_agent(other, signal);
            }
        }
    }
}
