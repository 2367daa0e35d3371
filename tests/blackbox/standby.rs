//! Two clusters on one machine: the second follows the first, as one site follows another.

use crate::{SETTLED, options};
use hathi_test_support::{Agent, Cluster, ClusterOptions, Store, sql, wait};
use serde_json::{Value, json};
use std::time::Duration;

/// The first cluster, with a table of one row.
async fn primary_cluster() -> Cluster {
    let mut one = options(Store::Raft);
    one.nodes = 1;
    one.dcs = json!({"slots": {"standby_site": {"type": "physical"}}});
    let primary = Cluster::start(one).await;
    run(&primary, 0, "CREATE TABLE rows (id int)").await;
    run(&primary, 0, "INSERT INTO rows VALUES (1)").await;
    primary
}

fn section(primary: &Cluster) -> Value {
    json!({"host": "127.0.0.1", "port": primary.nodes[0].pg_port,
           "create_replica_methods": ["basebackup"]})
}

/// A cluster that follows `primary` from its beginning.
async fn standby_cluster(primary: &Cluster, mut options: ClusterOptions) -> Cluster {
    options.dcs = json!({"standby_cluster": section(primary)});
    let mut cluster = Cluster::prepare(options).await;
    for i in 0..cluster.nodes.len() {
        cluster.start_agent(i);
    }
    cluster
}

async fn run(cluster: &Cluster, i: usize, text: &str) {
    let done = sql::query(cluster.nodes[i].pg(), text).await;
    done.unwrap_or_else(|why| panic!("{text}: {why}\n{}", cluster.report()));
}

/// One standby leader, and all others stream from it.
async fn led(cluster: &Cluster, but: Option<usize>) -> usize {
    cluster
        .wait("a standby leader, all others behind it", SETTLED, || async {
            let mut leaders = Vec::new();
            for i in 0..cluster.nodes.len() {
                let answer = cluster.get(i, "/standby-leader").await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    leaders.push(i);
                }
            }
            let [leader] = leaders[..] else { return Err(format!("standby leaders {leaders:?}")) };
            if Some(leader) == but {
                return Err(format!("{leader} still leads"));
            }
            let running = if but.is_some() { 2 } else { 1 };
            let others = (cluster.nodes.len() - running).to_string();
            // A base backup streams as well, and is no member yet.
            let count = "SELECT count(*) FROM pg_stat_replication \
                         WHERE state = 'streaming' AND application_name <> 'pg_basebackup'";
            let port = cluster.nodes[leader].pg();
            let streaming = sql::value(port, count).await?;
            let receives = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
            let receives = sql::value(port, receives).await?;
            if streaming != others || receives != "1" {
                return Err(format!("{streaming} of {others} stream; receives: {receives}"));
            }
            Ok(leader)
        })
        .await
}

async fn has_rows(cluster: &Cluster, i: usize, count: usize) {
    let what = format!("{count} rows on {}", cluster.nodes[i].name);
    cluster
        .wait(&what, Duration::from_secs(20), || async {
            let found = sql::value(cluster.nodes[i].pg(), "SELECT count(*) FROM rows").await?;
            if found == count.to_string() { Ok(()) } else { Err(found) }
        })
        .await;
}

async fn patch(cluster: &Cluster, i: usize, change: Value) {
    let answer = cluster.send(i, "PATCH", "/config", change).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

async fn nobody_is_writable(cluster: &Cluster) {
    for node in &cluster.nodes {
        if let Ok(answer) = sql::value(node.pg(), "SELECT pg_is_in_recovery()").await {
            assert_eq!(answer, "t", "{} is out of recovery\n{}", node.name, cluster.report());
        }
    }
}

/// Proves HA-030 (bootstrap_standby_leader), HA-110, HA-111, HA-112 and HA-113 on real servers: the
/// second cluster is a copy of the first and cascades; its leader's node dies and another one leads;
/// half a section and an empty one promote nobody; without the section it takes writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn standby_cluster_follows_fails_over_and_is_promoted() {
    let primary = primary_cluster().await;
    let mut cluster = standby_cluster(&primary, options(Store::Raft)).await;
    let first = led(&cluster, None).await;
    for i in 0..cluster.nodes.len() {
        has_rows(&cluster, i, 1).await;
    }
    let view = cluster.get(first, "/cluster").await.expect("an answer").json();
    let roles = view["members"].as_array().cloned().unwrap_or_default();
    let leaders = roles.iter().filter(|member| member["role"] == "standby_leader").count();
    assert_eq!(leaders, 1, "{view}");
    nobody_is_writable(&cluster).await;

    cluster.kill_node(first);
    let second = led(&cluster, Some(first)).await;
    run(&primary, 0, "INSERT INTO rows VALUES (2)").await;
    has_rows(&cluster, second, 2).await;
    cluster.start_agent(first);
    assert_eq!(led(&cluster, None).await, second);
    nobody_is_writable(&cluster).await;

    // A typo is not an order to promote.
    let slot_only =
        json!({"standby_cluster": {"host": null, "port": null, "primary_slot_name": "x"}});
    patch(&cluster, second, slot_only).await;
    let still = wait::holds("nobody is writable", Duration::from_secs(6), || async {
        nobody_is_writable(&cluster).await;
        Ok(())
    });
    still.await.unwrap_or_else(|why| panic!("{why}"));
    patch(&cluster, second, json!({"standby_cluster": null})).await;
    let leader = cluster.healthy(SETTLED).await;
    run(&cluster, leader, "INSERT INTO rows VALUES (3)").await;
    for i in 0..cluster.nodes.len() {
        has_rows(&cluster, i, 3).await;
    }
}

/// Proves HA-116 on real servers: a cluster with rows of its own is told to follow another one by
/// PATCH /config, and does so without ever being writable again; back, and it is a primary again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn primary_cluster_becomes_a_standby_cluster() {
    let primary = primary_cluster().await;
    let cluster = standby_cluster(&primary, options(Store::Raft)).await;
    let leader = led(&cluster, None).await;
    patch(&cluster, leader, json!({"standby_cluster": null})).await;
    let leader = cluster.healthy(SETTLED).await;
    // It goes its own way; the rewind takes that back.
    run(&cluster, leader, "INSERT INTO rows VALUES (99)").await;
    run(&primary, 0, "INSERT INTO rows VALUES (2)").await;
    run(&primary, 0, "INSERT INTO rows VALUES (3)").await;
    patch(&cluster, leader, json!({"standby_cluster": section(&primary)})).await;
    led(&cluster, None).await;
    nobody_is_writable(&cluster).await;
    for i in 0..cluster.nodes.len() {
        has_rows(&cluster, i, 3).await;
    }
}

/// Proves INV-36 for a standby cluster: a real Patroni and two of ours follow the same remote
/// primary, and each leads when the other's node is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn standby_cluster_with_a_real_patroni() {
    let primary = primary_cluster().await;
    let mut options = options(Store::Etcd { members: 1 });
    options.dcs = json!({"standby_cluster": section(&primary)});
    let mut cluster = Cluster::prepare(options).await;
    cluster.nodes[2].agent = Agent::Patroni;
    for i in 0..cluster.nodes.len() {
        cluster.start_agent(i);
    }
    let first = led(&cluster, None).await;
    let (leader, candidate) = (cluster.nodes[first].name.clone(), if first == 2 { 0 } else { 2 });
    let order = json!({"leader": leader, "candidate": cluster.nodes[candidate].name});
    let answer = cluster.send(first, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.report());
    assert_eq!(led(&cluster, None).await, candidate, "{}", cluster.report());
    cluster.kill_node(candidate);
    let second = led(&cluster, Some(candidate)).await;
    run(&primary, 0, "INSERT INTO rows VALUES (2)").await;
    has_rows(&cluster, second, 2).await;
    cluster.start_agent(candidate);
    assert_eq!(led(&cluster, None).await, second);
    nobody_is_writable(&cluster).await;
}
