//! A paused cluster is the operator's.

use crate::{PAUSE, SETTLED, TTL, cluster};
use hathi_test_support::{Cluster, Store, Writers, check, sql};
use serde_json::json;
use std::time::{Duration, Instant};

async fn set_pause(cluster: &Cluster, through: usize, on: bool) {
    let answer = cluster.send(through, "PATCH", "/config", json!({"pause": on})).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster
        .wait("every agent knows", SETTLED, || async {
            let shown = cluster.get(through, "/cluster").await?.json();
            if (shown["pause"] == true) != on {
                return Err(format!("{shown}"));
            }
            for i in 0..cluster.nodes.len() {
                let status = cluster.get(i, "/patroni").await?.json();
                if (status["pause"] == true) != on {
                    return Err(format!("{}: {status}", cluster.nodes[i].name));
                }
            }
            Ok(())
        })
        .await;
}

/// Holds for a whole lease.
async fn stays(cluster: &Cluster, what: &str, holds: impl AsyncFn() -> Result<(), String>) {
    let end = Instant::now() + TTL + Duration::from_secs(5);
    while Instant::now() < end {
        if let Err(why) = holds().await {
            panic!("{what}: {why}\n{}", cluster.report());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// kill -9 of the primary's postmaster in pause: nothing is started, nobody is promoted, for longer
/// than any lease; the resume brings the cluster back.
///
/// Proves HA-040, HA-088, HA-130 and HA-138 on a real server.
pub async fn killed_postgres_stays_down_in_pause(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let written = writers.stop().await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
    set_pause(&cluster, leader, true).await;
    let killed = cluster.nodes[leader].postmaster();
    cluster.kill_postmaster(leader);
    stays(&cluster, "nothing is started or promoted", async || {
        // The one that was killed may not have been reaped yet.
        let now = cluster.nodes[leader].postmaster();
        if let Some(pid) = now.filter(|pid| Some(*pid) != killed) {
            return Err(format!("a postmaster {pid} runs"));
        }
        for (i, node) in cluster.nodes.iter().enumerate().filter(|(i, _)| *i != leader) {
            let in_recovery = sql::value(node.pg_port, "SELECT pg_is_in_recovery()").await?;
            if in_recovery != "t" {
                return Err(format!("{i} was promoted"));
            }
        }
        Ok(())
    })
    .await;
    let status = cluster.get(leader, "/patroni").await.expect("an answer").json();
    assert_eq!(status["state"], "stopped", "{status}");
    set_pause(&cluster, leader, false).await;
    cluster.healthy(SETTLED).await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// Every agent ends and comes back in pause, the primary's is killed and stays away for longer than
/// the lease: no PostgreSQL is touched, not even by the guard.
///
/// Proves HA-135, HA-131 and HA-004 on a real server.
pub async fn agents_come_and_go_in_pause(store: Store) {
    let mut cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    set_pause(&cluster, leader, true).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    for i in 0..cluster.nodes.len() {
        let status = cluster.stop_agent(i).await;
        assert!(status.success(), "{status}\n{}", cluster.report());
        cluster.start_agent(i);
        cluster.healthy(SETTLED).await;
    }
    cluster.kill_agent(leader);
    stays(&cluster, "the primary goes on", async || {
        match writers.accepts_after(Instant::now(), Duration::from_secs(3)).await {
            Ok(accepted) if accepted.node == leader => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.start_agent(leader);
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    set_pause(&cluster, leader, false).await;
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    let after: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    assert_eq!(before, after, "no PostgreSQL was restarted\n{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// A switchover in pause needs a name; with one it happens, and the old primary comes back as a
/// replica although the cluster is paused.
///
/// Proves HA-133, HA-070, HA-075 and HA-040 (what a request stopped) on a real server.
pub async fn only_a_named_candidate_in_pause(store: Store) {
    let cluster = cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let new = (old + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    set_pause(&cluster, old, true).await;
    let name = |i: usize| cluster.nodes[i].name.clone();
    let anyone = cluster.send(old, "POST", "/switchover", json!({"leader": name(old)})).await;
    assert_eq!(anyone.expect("an answer").status, 400);
    let order = json!({"leader": name(old), "candidate": name(new)});
    let answer = cluster.send(old, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    set_pause(&cluster, new, false).await;
    assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}
