//! What breaks by itself. Asynchronous replication promises nothing for the last moment before a
//! primary dies and another takes over; everything older must be there.

use crate::{PAUSE, SETTLED, TTL, cluster, impatient_cluster, options};
use hathi_test_support::check::{Loss, longest_gap};
use hathi_test_support::{Cluster, Store, Writers, check};
use serde_json::json;
use std::time::{Duration, Instant};

/// kill -9 of the primary's postmaster: it comes back where it was, nothing is lost.
///
/// Proves HA-043 and HA-301 on a real server.
pub async fn postmaster_of_the_primary_killed(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    cluster.kill_postmaster(leader);
    let killed = Instant::now();
    let again = writers.accepts_after(killed, SETTLED).await;
    let again = again.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    assert_eq!(again.node, leader, "it is started again in place\n{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, leader);
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// The same with primary_start_timeout 0: another takes over, the old one follows it.
///
/// Proves HA-042 and HA-300 (the postmaster's exit) on a real server.
pub async fn postmaster_killed_with_failover_at_once(store: Store) {
    let cluster = impatient_cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let killed = Instant::now();
    cluster.kill_postmaster(old);
    let new = cluster.another_leader(old, SETTLED).await;
    let again = writers.accepts_after(killed + Duration::from_millis(100), SETTLED).await;
    assert_eq!(again.map(|a| a.node), Ok(new), "{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[Loss::just_before(killed)]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// Agent, guard and PostgreSQL of the primary die together; the lease runs out, another leads,
/// and the old one joins it again when it is started.
pub async fn node_of_the_primary_killed(store: Store) {
    let mut cluster = cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let killed = Instant::now();
    cluster.kill_node(old);
    let new = cluster.another_leader(old, TTL + Duration::from_secs(15)).await;
    let again = writers.accepts_after(killed + Duration::from_secs(1), SETTLED).await;
    assert_eq!(again.map(|a| a.node), Ok(new), "{}", cluster.report());
    cluster.start_agent(old);
    assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[Loss::just_before(killed)]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// The same with a ttl of 6 s, on which members of ours agree: clients wait for seconds, not for half a
/// minute. And a cluster whose lease is that short stands still for nobody while all is well.
///
/// Proves HA-324 on a real store.
pub async fn node_of_the_primary_killed_with_a_short_lease(store: Store) {
    let mut options = options(store);
    options.dcs = json!({"ttl": 6, "loop_wait": 1, "retry_timeout": 2});
    let cluster = Cluster::start(options).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    // Patroni's shortest lease alone would have lasted longer.
    killed_and_back(cluster, writers, old, Duration::from_secs(16)).await;
}

/// The node dies: another one writes within this time, and the dead one finds its place again.
async fn killed_and_back(mut cluster: Cluster, writers: Writers, old: usize, enough: Duration) {
    let killed = Instant::now();
    cluster.kill_node(old);
    let again = writers.accepts_after(killed + Duration::from_millis(500), SETTLED).await;
    let again = again.unwrap_or_else(|e| panic!("{e}\n{}", cluster.report()));
    assert_ne!(again.node, old, "{}", cluster.report());
    let waited = killed.elapsed();
    println!("writes again {waited:?} after the kill");
    assert!(waited < enough, "{waited:?}\n{}", cluster.report());
    cluster.start_agent(old);
    cluster.healthy(SETTLED).await;
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[Loss::just_before(killed)]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// The shortest lease that the store says it keeps: nobody stands still while all is well, for as long as ten
/// leases, and the death of the primary's node costs little more than the lease and a promotion.
///
/// Proves HA-324 for the number of the store.
pub async fn the_shortest_lease_is_kept(store: Store, ttl: u32) {
    let mut options = options(store);
    options.dcs = json!({"ttl": ttl, "loop_wait": 1, "retry_timeout": 1.max((ttl - 1) / 2)});
    let cluster = Cluster::start(options).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let quiet = Instant::now();
    let while_quiet = quiet + Duration::from_secs(u64::from(10 * ttl));
    let last = writers.accepts_after(while_quiet, Duration::from_secs(u64::from(11 * ttl))).await;
    assert_eq!(last.map(|a| a.node), Ok(old), "{}", cluster.report());
    killed_and_back(cluster, writers, old, Duration::from_secs(u64::from(ttl) + 10)).await;
}

/// A replica's crash is its own affair: it streams again, and the primary's clients notice
/// nothing.
pub async fn postmaster_of_a_replica_killed(store: Store) {
    let cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let replica = (leader + 1) % cluster.nodes.len();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let before = cluster.nodes[replica].postmaster();
    let killed = Instant::now();
    cluster.kill_postmaster(replica);
    cluster
        .wait("another postmaster", SETTLED, || async {
            match cluster.nodes[replica].postmaster() {
                Some(pid) if Some(pid) != before => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    let written = writers.stop().await;
    let gap = longest_gap(&written.accepted, killed, Instant::now());
    assert!(gap < Duration::from_secs(3), "writes stood still for {gap:?}\n{}", cluster.report());
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}
