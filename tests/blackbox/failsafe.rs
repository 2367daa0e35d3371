//! Failsafe mode: the store is away, the members are not.

use crate::outage::{gives_up, serves_again};
use crate::{PAUSE, SETTLED, TTL, options};
use hathi_test_support::{Cluster, Store, Writers, check, sql};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

/// Half of what Patroni allows, where the store keeps such leases: an outage of two leases is over sooner.
fn ttl(store: Store) -> Duration {
    match store {
        Store::Raft | Store::Etcd { .. } | Store::Consul { .. } => TTL,
        Store::ZooKeeper { .. } | Store::Redis | Store::Kubernetes { .. } => TTL / 2,
    }
}

/// A cluster in failsafe mode in which every member knows the map.
async fn cluster(store: Store) -> Cluster {
    let mut options = options(store);
    options.dcs = json!({"failsafe_mode": true, "ttl": ttl(store).as_secs()});
    let cluster = Cluster::start(options).await;
    cluster
        .wait("every member knows /failsafe", SETTLED, || async {
            for i in 0..cluster.nodes.len() {
                let answer = cluster.get(i, "/failsafe").await?;
                let known = answer.status == 200
                    && cluster.nodes.iter().all(|node| answer.body.contains(&node.name));
                if !known {
                    return Err(format!("{}: {}", cluster.nodes[i].name, answer.body));
                }
            }
            Ok(())
        })
        .await;
    cluster
}

/// The store hangs for twice the lease: the primary goes on writing, nobody else leads, and PostgreSQL is
/// not touched, neither then nor when the store is back. What was last seen of it is said as such.
///
/// Proves HA-154, HA-156, HA-157, HA-158 (the same outage), HA-103, HA-307, REST-093 and DCS-020 on a real
/// server.
pub async fn the_primary_outlives_the_store(store: Store) {
    let (cluster, ttl) = (cluster(store).await, ttl(store));
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let postmasters: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();

    let map = cluster.get(leader, "/failsafe").await.expect("an answer").json();
    let (cut, wall) = (Instant::now(), unix_time());
    cluster.pause_store();
    cluster
        .wait("failsafe mode is active everywhere", ttl, || async {
            for i in 0..cluster.nodes.len() {
                let status = cluster.get(i, "/patroni").await?.json();
                if status["failsafe_mode_is_active"] != true {
                    return Err(format!("{}: {status}", cluster.nodes[i].name));
                }
            }
            Ok(())
        })
        .await;
    let long_after = writers.accepts_after(cut + 2 * ttl, 2 * ttl + Duration::from_secs(10)).await;
    let long_after = long_after.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    assert_eq!(long_after.node, leader, "{}", cluster.report());
    let primary = cluster.get(leader, "/primary").await.expect("an answer");
    assert_eq!(primary.status, 200, "{}", primary.body);
    for i in (0..cluster.nodes.len()).filter(|i| *i != leader) {
        let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let streams = sql::value(cluster.nodes[i].pg_port, streams).await;
        assert_eq!(streams.as_deref(), Ok("1"), "{} still streams", cluster.nodes[i].name);
    }

    for i in 0..cluster.nodes.len() {
        let seen = cluster.get(i, "/patroni").await.expect("an answer").json();
        let seen = seen["dcs_last_seen"].as_u64().expect("a time");
        // A watch that fell silent is believed for less than a lease. (DCS-074)
        let believed = wall - 5..wall + ttl.as_secs();
        assert!(believed.contains(&seen), "seen at {seen}, silent since {wall}");
    }
    let kept = cluster.get(leader, "/failsafe").await.expect("an answer").json();
    assert_eq!(kept, map, "the map that was last seen is the one that counts");

    cluster.resume_store();
    let again = cluster.healthy(SETTLED).await;
    assert_eq!(again, leader, "the same leader\n{}", cluster.report());
    let after: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    assert_eq!(postmasters, after, "no PostgreSQL was restarted\n{}", cluster.report());
    let status = cluster.get(leader, "/patroni").await.expect("an answer").json();
    assert_eq!(status["timeline"], 1, "{status}");
    assert!(status["dcs_last_seen"].as_u64() > Some(wall + ttl.as_secs()), "{status}");
    let written = writers.stop().await;
    let gap = check::longest_gap(&written.accepted, cut, Instant::now());
    assert!(gap < Duration::from_secs(3), "no write for {gap:?}");
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

fn unix_time() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// One member does not answer: the primary stops taking writes within its lease, as without
/// failsafe mode. On the embedded store the members are the store, so that this is what an outage
/// of it always is.
///
/// Proves HA-155 and HA-304 on a real server.
pub async fn a_member_down_at_the_same_time(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let others: Vec<usize> = (0..cluster.nodes.len()).filter(|i| *i != leader).collect();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let cut = Instant::now();
    let frozen = match &cluster.etcd {
        Some(etcd) => {
            etcd.pause();
            &others[..1]
        }
        None => &others[..],
    };
    for other in frozen {
        cluster.signal_agent(*other, Signal::STOP);
    }
    gives_up(&cluster, leader, &writers, cut).await;
    for other in frozen {
        cluster.signal_agent(*other, Signal::CONT);
    }
    if let Some(etcd) = &cluster.etcd {
        etcd.resume();
    }
    serves_again(&cluster, writers).await;
}
