//! What operators say of a node by its tags, on real servers: who may take over, where a new node is
//! copied from, and whom a replica streams from.

use crate::{SETTLED, TTL, options};
use hathi_test_support::{Cluster, Store, sql};
use serde_json::json;
use std::time::Duration;

async fn ask(cluster: &Cluster, i: usize, sql: &str) -> Result<String, String> {
    sql::value(cluster.nodes[i].pg(), sql).await
}

/// Waits until the question to PostgreSQL of node `i` has this answer.
async fn says(cluster: &Cluster, i: usize, sql: &str, expected: &str) {
    let what = format!("{expected:?} from {} on {sql}", cluster.nodes[i].name);
    cluster
        .wait(&what, SETTLED, || async {
            let said = ask(cluster, i, sql).await?;
            if said == expected { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
}

/// Who streams from node `i`, by name.
const READERS: &str = "SELECT coalesce(string_agg(application_name, ',' ORDER BY 1), '') \
                       FROM pg_stat_replication WHERE state = 'streaming'";

/// The leader's node dies while both replicas have all of its log. Whoever is preferred takes over,
/// and who is excluded never does, although it is as far.
///
/// Proves HA-095 (f) and HA-089 on real servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_preferred_one_takes_over() {
    let mut cluster = Cluster::start(options(Store::Raft)).await;
    for nobody in [0, -1] {
        let leader = cluster.healthy(SETTLED).await;
        let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
        // Once the lower one of two priorities, once none at all.
        let low =
            if nobody == 0 { json!({"failover_priority": 1}) } else { json!({"nofailover": true}) };
        cluster.tag(first, &low).await;
        cluster.tag(second, &json!({"failover_priority": 2})).await;
        let end =
            ask(&cluster, leader, "SELECT pg_current_wal_flush_lsn()").await.expect("it leads");
        for replica in [first, second] {
            // Its receiver may have begun anew behind what it has replayed from its own log.
            let all = format!(
                "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) >= '{end}'"
            );
            says(&cluster, replica, &all, "t").await;
        }
        cluster.kill_node(leader);
        let new = cluster.another_leader(leader, TTL + Duration::from_secs(15)).await;
        assert_eq!(new, second, "{}", cluster.report());
        cluster.start_agent(leader);
        cluster.healthy(SETTLED).await;
        for node in [first, second] {
            cluster.tag(node, &json!({})).await;
        }
    }
}

/// A third node is copied from the replica that offers itself, streams from the one it is told to, from
/// the leader while that one is away, and from nobody when it shall not; slots follow.
///
/// Proves PG-120 (`clonefrom`), HA-125 (`replicatefrom`, `nostream`), PG-211, PG-261, PG-262 and PG-264
/// on real servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_stream_from_where_they_are_told_to() {
    let mut cluster = Cluster::prepare(options(Store::Etcd { members: 1 })).await;
    cluster.start_agent(0);
    cluster.wait("a leader", SETTLED, || cluster.looks_healthy(0)).await;
    cluster.start_agent(1);
    cluster.wait("one replica", SETTLED, || cluster.looks_healthy(1)).await;
    cluster.tag(1, &json!({"clonefrom": true})).await;
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.name.clone()).collect();

    cluster.change_file(2, |file| file["tags"] = json!({"replicatefrom": names[1]}));
    cluster.start_agent(2);
    says(&cluster, 1, READERS, &names[2]).await;
    says(&cluster, 0, READERS, &names[1]).await;
    let label = std::fs::read_to_string(cluster.nodes[2].data().join("backup_label.old"));
    let label = label.expect("what the copy began with");
    assert!(label.contains("BACKUP FROM: standby"), "{label}");
    // Its slot is used where it streams, and moves on where it would have to go if that one died.
    let slot = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", names[2]);
    says(&cluster, 1, &slot, "t").await;
    says(&cluster, 0, &slot, "f").await;
    let wrote = "CREATE TABLE tagged AS SELECT generate_series(1, 1000) AS n";
    sql::query(cluster.nodes[0].pg(), wrote).await.expect("it leads");
    says(&cluster, 2, "SELECT count(*) FROM tagged", "1000").await;
    let end = ask(&cluster, 0, "SELECT pg_current_wal_lsn()").await.expect("it leads");
    let moved = format!(
        "SELECT restart_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'",
        names[2]
    );
    says(&cluster, 0, &moved, "t").await;

    cluster.kill_node(1);
    says(&cluster, 0, READERS, &names[2]).await;
    cluster.start_agent(1);
    says(&cluster, 1, READERS, &names[2]).await;
    says(&cluster, 0, READERS, &names[1]).await;

    cluster.tag(2, &json!({"nostream": true})).await;
    says(&cluster, 1, READERS, "").await;
    says(&cluster, 2, "SELECT count(*) FROM pg_stat_wal_receiver", "0").await;
    says(&cluster, 2, "SHOW primary_conninfo", "").await;
    says(&cluster, 0, READERS, &names[1]).await;
    cluster
        .wait("all see that it does not stream", SETTLED, || async {
            let shown = cluster.get(0, "/cluster").await?.json();
            let members = shown["members"].as_array().cloned().unwrap_or_default();
            let third = members.iter().find(|member| member["name"] == names[2].as_str());
            match third {
                Some(third) if third["state"] == "running" => Ok(()),
                _ => Err(shown.to_string()),
            }
        })
        .await;
    cluster.tag(2, &json!({})).await;
    cluster.healthy(SETTLED).await;
}
