//! What an operator does on purpose. None of it may lose an acknowledged row.

use crate::{PAUSE, SETTLED, cluster};
use hathi_test_support::process::{alive, belonging_to};
use hathi_test_support::{Cluster, Store, StoreServers, Writers, check, sql};
use serde_json::json;
use std::time::{Duration, Instant};

/// Three agents started at once on nothing become one cluster; SIGTERM leaves nothing behind.
pub async fn bootstrap_of_three(store: Store) {
    let mut cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let identity = "SELECT system_identifier FROM pg_control_system()";
    let mut systems = Vec::new();
    for (i, node) in cluster.nodes.iter().enumerate() {
        systems.push(sql::value(node.pg_port, identity).await.expect("the system identifier"));
        let expected =
            if i == leader { ("/primary", "/replica") } else { ("/replica", "/primary") };
        assert_eq!(
            cluster.get(i, expected.0).await.expect("an answer").status,
            200,
            "{}",
            node.name
        );
        assert_eq!(
            cluster.get(i, expected.1).await.expect("an answer").status,
            503,
            "{}",
            node.name
        );
        let status = cluster.get(i, "/patroni").await.expect("an answer").json();
        assert_eq!(status["timeline"], 1, "{status}");
        assert_eq!(status["database_system_identifier"], systems[0].as_str(), "{status}");
    }
    assert!(systems.windows(2).all(|w| w[0] == w[1]), "one system everywhere: {systems:?}");

    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;

    for i in (0..cluster.nodes.len()).rev() {
        let postmaster = cluster.nodes[i].postmaster().expect("a running PostgreSQL");
        let status = cluster.stop_agent(i).await;
        assert!(status.success(), "an orderly end is exit 0, not {status}\n{}", cluster.report());
        assert!(!alive(postmaster), "the agent ended before its PostgreSQL");
        // A guard ends a moment after the agent it watched.
        let dir = cluster.nodes[i].dir.clone();
        cluster
            .wait("nothing of the node runs", SETTLED, || async {
                let left = belonging_to(&dir);
                if left.is_empty() { Ok(()) } else { Err(format!("{left:?} still run")) }
            })
            .await;
    }
}

/// The lock moves to the named candidate and back again.
///
/// Proves HA-070, HA-075, HA-302 and INV-23 on a real server.
pub async fn switchover_to_and_fro(store: Store) {
    let cluster = cluster(store).await;
    let first = cluster.leader().await.expect("the leader of a healthy cluster");
    let second = (first + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    for (from, to) in [(first, second), (second, first)] {
        switch(&cluster, from, to).await;
        writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
        assert_eq!(cluster.healthy(SETTLED).await, to, "{}", cluster.report());
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

async fn switch(cluster: &Cluster, from: usize, to: usize) {
    let (leader, candidate) = (&cluster.nodes[from].name, &cluster.nodes[to].name);
    let order = json!({"leader": leader, "candidate": candidate});
    let answer = cluster.send(from, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.report());
    assert!(answer.body.contains(candidate.as_str()), "{}", answer.body);
}

/// SIGTERM of the primary's agent: PostgreSQL goes down in order, another takes over.
///
/// Proves HA-140 on a real server.
pub async fn sigterm_of_the_primarys_agent(store: Store) {
    let mut cluster = cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let status = cluster.stop_agent(old).await;
    assert!(status.success(), "{status}\n{}", cluster.report());
    assert!(cluster.nodes[old].postmaster().is_none(), "PostgreSQL outlived its agent");
    let new = cluster.another_leader(old, Duration::from_secs(15)).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    cluster.start_agent(old);
    assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// Power cut of everything, the store included; all comes back by itself with every row.
pub async fn restart_of_everything(store: Store) {
    let mut cluster = cluster(store).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let written = writers.stop().await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
    for i in 0..cluster.nodes.len() {
        cluster.kill_node(i);
    }
    if let Some(etcd) = &mut cluster.etcd {
        etcd.kill_all();
        etcd.start_all();
        etcd.ready().await;
    }
    for i in 0..cluster.nodes.len() {
        cluster.start_agent(i);
    }
    cluster.healthy(SETTLED).await;
    check::verify(&cluster, &written, &[]).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let insert = "INSERT INTO hathi_rows (id, node) VALUES (0, 0)";
    sql::query(cluster.nodes[leader].pg_port, insert).await.expect("it takes writes again");
    check::same_rows_everywhere(&cluster, SETTLED).await;
}
