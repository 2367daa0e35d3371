//! What the calls leave in ZooKeeper's nodes.

use crate::harness::{TIMING, backend, client, config};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Expect, Freshness, Lsn, MemberData, Status, Sync, Version};
use hathi_test_support::{ZooKeeper, ZooKeeperOptions};
use zookeeper_client::{Client, Error, Stat};

async fn node(client: &Client, name: &str) -> Option<(Vec<u8>, Stat)> {
    match client.get_data(&format!("/service/batman/{name}")).await {
        Ok(found) => Some(found),
        Err(Error::NoNode) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

async fn owner(client: &Client, name: &str) -> i64 {
    node(client, name).await.map_or(0, |(_, stat)| stat.ephemeral_owner)
}

/// Proves DCS-132, DCS-133, DCS-043 and DCS-308 (deleting and creating is one `multi`): the lock is a node of the session, a renewal leaves the node as
/// it is, a new life replaces it by one of its own session in one step, and what somebody else took
/// is not taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_is_a_node_of_the_session() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let client = client(&zookeeper).await;
    let former = backend(config(&zookeeper), "a", TIMING);
    let b = backend(config(&zookeeper), "b", TIMING);
    former.acquire_leader(soon()).await.expect("a free lock");
    former.acquire_leader(soon()).await.expect("the node that exists is mine");
    let lost = b.acquire_leader(soon()).await;
    assert!(matches!(lost, Err(DcsError::NotOwner { .. })), "{lost:?}");
    let before = node(&client, "leader").await;
    for _ in 0..3 {
        former.renew_leader(soon()).await.expect("mine");
    }
    assert_eq!(node(&client, "leader").await, before, "a renewal wrote the node");

    let a = backend(config(&zookeeper), "a", TIMING);
    a.renew_leader(soon()).await.expect("my name stands there");
    let (old, new) = (before.map_or(0, |(_, s)| s.ephemeral_owner), owner(&client, "leader").await);
    assert!(new != 0 && new != old, "{old:x} {new:x}");
    drop(former);
    a.release_leader(None, soon()).await.expect("mine");
    b.acquire_leader(soon()).await.expect("a free lock");
    let theirs = node(&client, "leader").await;
    let lost = a.renew_leader(soon()).await;
    assert!(matches!(lost, Err(DcsError::NotOwner { .. })), "{lost:?}");
    assert_eq!(node(&client, "leader").await, theirs);
}

/// Proves DCS-134: a release deletes the node and shows the status, in one step; session and member
/// stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_keeps_session_and_member() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let client = client(&zookeeper).await;
    let a = backend(config(&zookeeper), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    a.write_member(&MemberData::default(), soon()).await.expect("a healthy ZooKeeper");
    a.write_status(&Status::default(), soon()).await.expect("a healthy ZooKeeper");
    let session = owner(&client, "leader").await;
    let status = Status { optime: Lsn(9), ..Status::default() };
    a.release_leader(Some(&status), soon()).await.expect("mine");
    let (stored, stat) = node(&client, "status").await.expect("written");
    assert_eq!(String::from_utf8_lossy(&stored), status.to_wire());
    let parent = client.check_stat("/service/batman").await.expect("a healthy ZooKeeper");
    let children = parent.expect("it is there").pzxid;
    assert_eq!(children, stat.mzxid, "deleted and written in one step");
    assert_eq!(owner(&client, "leader").await, 0);
    assert_eq!(owner(&client, "members/a").await, session, "the member hangs on it still");
    a.acquire_leader(soon()).await.expect("a free lock");
    assert_eq!(owner(&client, "leader").await, session);
}

/// Proves DCS-135 and DCS-320: version 0 is a version, and stale once somebody wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_nought_is_compared() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let client = client(&zookeeper).await;
    let (a, b) =
        (backend(config(&zookeeper), "a", TIMING), backend(config(&zookeeper), "b", TIMING));
    let sync = |quorum| Sync { leader: Some("a".into()), quorum, voters: Vec::new() };
    // As Patroni makes it: a fresh node has version 0.
    a.write_status(&Status::default(), soon()).await.expect("it makes the parents");
    let options =
        zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    client.create("/service/batman/sync", b"{}", &options).await.expect("absent");
    b.write_sync(&sync(1), Expect::Version(Version(0)), soon()).await.expect("it is 0");
    let stale = a.write_sync(&sync(2), Expect::Version(Version(0)), soon()).await;
    assert!(matches!(stale, Err(DcsError::Conflict { .. })), "{stale:?}");
    let stored = a.load(Freshness::Latest, soon()).await.expect("a healthy ZooKeeper").sync;
    assert_eq!(stored.map(|s| s.value), Some(sync(1)));
}
