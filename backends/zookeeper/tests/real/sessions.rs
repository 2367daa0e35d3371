//! How long a session carries the lock.

use crate::harness::{TIMING, backend, client, config};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Freshness, MemberData, Timing, boottime};
use hathi_test_support::{ZooKeeper, ZooKeeperOptions};
use zookeeper_client::{Acl, AuthId, Permission};

const LEADER: &str = "/service/batman/leader";

/// Proves DCS-130 and DCS-308 (what the server granted counts): where sessions end earlier than the agent's
/// lease, there is no lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_no_session_can_carry_is_refused() {
    let options = ZooKeeperOptions { longest_ms: Some(10_000), ..ZooKeeperOptions::new(1) };
    let zookeeper = ZooKeeper::start(options).await;
    let me = backend(config(&zookeeper), "a", TIMING);
    let answer = me.acquire_leader(soon()).await;
    let Err(DcsError::NotRetriable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("lower ttl to 8 or raise maxSessionTimeout"), "{why}");
    assert!(me.load(Freshness::Latest, soon()).await.expect("it answers").is_unlocked());
    me.set_timing(Timing { ttl: 8, ..TIMING });
    me.acquire_leader(soon()).await.expect("as it said");
}

/// Proves DCS-T2 for an owner that is cut off: the servers free its lock after its lease, not before,
/// and no later than the margin and two ticks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_cut_off_loses_the_lock_after_its_lease() {
    let options = ZooKeeperOptions { proxied: true, ..ZooKeeperOptions::new(1) };
    let mut zookeeper = ZooKeeper::start(options).await;
    let timing = Timing { ttl: 5, loop_wait: 1, retry_timeout: 2 };
    let owner = backend(config(&zookeeper), "a", timing);
    owner.acquire_leader(soon()).await.expect("free");
    let watching = client(&zookeeper).await;
    let asked = boottime();
    owner.renew_leader(soon()).await.expect("mine");
    zookeeper.0[0].proxy = None;
    let gone = until("the lock is free", 15_000, || async {
        let found = watching.check_stat(LEADER).await.expect("a healthy ZooKeeper");
        found.is_none().then(boottime)
    })
    .await;
    let after = gone.since(asked);
    assert!(after >= timing.ttl_ms(), "free after {after} ms, before the owner's lease ended");
    assert!(after <= timing.ttl_ms() + 2_000 + 3 * 500 + 1_000, "free after {after} ms");
}

/// Proves DCS-140: a server that keeps the connection and says nothing is left for another one, long before
/// the session could end; another ttl is another session, to which the lock is bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_left_early() {
    let options = ZooKeeperOptions { proxied: true, ..ZooKeeperOptions::new(3) };
    let zookeeper = ZooKeeper::start(options).await;
    let me = backend(config(&zookeeper), "a", TIMING);
    me.acquire_leader(soon()).await.expect("free");
    for which in 0..3 {
        zookeeper.proxy(which).hold_answers(true);
        let began = boottime();
        let renewed = me.renew_leader(hathi_dcs::Deadline::in_ms(10_000)).await;
        let took = boottime().since(began);
        renewed.unwrap_or_else(|error| panic!("{which}, after {took} ms: {error}"));
        zookeeper.proxy(which).hold_answers(false);
    }
    let client = client(&zookeeper).await;
    let owner = || async {
        let found = client.check_stat(LEADER).await.expect("a healthy ZooKeeper");
        found.expect("never free").ephemeral_owner
    };
    let before = owner().await;
    me.set_timing(Timing { loop_wait: 2, ..TIMING });
    me.renew_leader(soon()).await.expect("mine");
    assert_eq!(owner().await, before, "the same ttl");
    me.set_timing(Timing { ttl: TIMING.ttl + 5, ..TIMING });
    me.renew_leader(soon()).await.expect("mine");
    assert_ne!(owner().await, before, "another ttl");
}

/// Proves DCS-076: who only reads and writes records has a plain session, on which nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_tool_leaves_nothing_on_its_session() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let tool = backend(config(&zookeeper), "ctl", TIMING);
    tool.load(Freshness::Latest, soon()).await.expect("a healthy ZooKeeper");
    let any = hathi_dcs::Expect::Anything;
    tool.write_config(&Default::default(), any, soon()).await.expect("written");
    tool.write_failover(&Default::default(), any, soon()).await.expect("written");
    let client = client(&zookeeper).await;
    let names = client.list_children("/service/batman").await.expect("a healthy ZooKeeper");
    assert_eq!(names.len(), 2, "{names:?}");
    for name in names {
        let stat = client.check_stat(&format!("/service/batman/{name}")).await.expect("healthy");
        assert_eq!(stat.map(|stat| stat.ephemeral_owner), Some(0), "{name}");
    }
}

/// Proves DCS-131 and DCS-136: what stands on the session, who may change it, and what stands for
/// no `sync`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_are_patronis() {
    let zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    let me = backend(config(&zookeeper), "alpha", TIMING);
    me.acquire_leader(soon()).await.expect("free");
    me.write_member(&MemberData::default(), soon()).await.expect("a healthy ZooKeeper");
    me.write_initialize("", hathi_dcs::Expect::Absent, soon()).await.expect("free");
    let sync = hathi_dcs::Sync { leader: Some("alpha".into()), ..hathi_dcs::Sync::default() };
    me.write_sync(&sync, hathi_dcs::Expect::Absent, soon()).await.expect("absent");
    me.delete_sync(hathi_dcs::Expect::Anything, soon()).await.expect("a healthy ZooKeeper");
    let client = client(&zookeeper).await;
    let everybody = [Acl::new(Permission::ALL, AuthId::anyone())];
    let mut owners = Vec::new();
    for name in ["", "/leader", "/members", "/members/alpha", "/initialize", "/sync"] {
        let path = format!("/service/batman{name}");
        let (access, stat) = client.get_acl(&path).await.unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(access, everybody, "{path}");
        owners.push(stat.ephemeral_owner);
    }
    assert!(owners[1] != 0 && owners[1] == owners[3], "{owners:?}");
    assert_eq!([owners[0], owners[2], owners[4], owners[5]], [0; 4], "{owners:?}");
    let (sync, _) = client.get_data("/service/batman/sync").await.expect("never deleted");
    assert_eq!(sync, b"{}");
}
