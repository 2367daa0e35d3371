//! What a cluster leaves in the store, as a member of Patroni's beside it would read it.

use crate::{SETTLED, TTL, options};
use hathi_test_support::yaml::SCOPE;
use hathi_test_support::{Cluster, Store, sql};
use serde_json::{Value, json};
use std::time::Duration;

/// Every member says that it is at least as new as Patroni 4, so that nobody writes the old key or reads
/// members' positions for those of slots. The slot of a member that died is kept, in memory and in `status`:
/// whoever leads next knows of it, until its time is over.
///
/// Proves DCS-060 and DCS-061 on a real server.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn versions_and_slots_of_members() {
    let mut cluster = Cluster::start(options(Store::Etcd { members: 1 })).await;
    let value = |cluster: &Cluster, name: &str| {
        let text = cluster.etcd.as_ref()?.value(&format!("/service/{SCOPE}/{name}"))?;
        Some(serde_json::from_str::<Value>(&text).unwrap_or(Value::String(text)))
    };
    for node in &cluster.nodes {
        let member = value(&cluster, &format!("members/{}", node.name)).expect("it is there");
        let version = member["version"].as_str().expect("a version");
        let numbers: Vec<u32> =
            version.split('.').map(|part| part.parse().expect("a number")).collect();
        assert!(numbers >= vec![4, 1, 5], "{version}");
    }
    assert_eq!(value(&cluster, "optime/leader"), None, "nobody is older than 2.1");

    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let (next, dead) = ((leader + 1) % 3, (leader + 2) % 3);
    let slot = cluster.nodes[dead].name.clone();
    let retained = |cluster: &Cluster| {
        let status = value(cluster, "status").unwrap_or_default();
        status["retain_slots"]
            .as_array()
            .is_some_and(|names| names.iter().any(|name| *name == slot))
    };
    cluster.kill_node(dead);
    cluster
        .wait("its record ends with its lease", TTL + Duration::from_secs(15), || async {
            match value(&cluster, &format!("members/{slot}")) {
                None => Ok(()),
                Some(member) => Err(member.to_string()),
            }
        })
        .await;
    assert!(retained(&cluster), "{:?}", value(&cluster, "status"));
    let names = (&cluster.nodes[leader].name, &cluster.nodes[next].name);
    let order = json!({"leader": names.0, "candidate": names.1});
    let answer = cluster.send(leader, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster.wait("the other one leads", SETTLED, || async { cluster.looks_healthy(1).await }).await;
    let count = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let port = cluster.nodes[next].pg_port;
    assert_eq!(sql::value(port, &count).await.as_deref(), Ok("1"), "the new leader keeps it");
    assert!(retained(&cluster), "{:?}", value(&cluster, "status"));

    let answer = cluster.send(next, "PATCH", "/config", json!({"member_slots_ttl": 0})).await;
    assert_eq!(answer.expect("an answer").status, 200);
    cluster
        .wait("nobody keeps it any more", SETTLED, || async {
            match sql::value(port, &count).await?.as_str() {
                "0" if !retained(&cluster) => Ok(()),
                other => Err(format!("{other}, {:?}", value(&cluster, "status"))),
            }
        })
        .await;
}
