//! What a server that was started again or promoted may have forgotten. (DCS-205)

use crate::harness::{TIMING, backend, config, connection};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Deadline, Expect, Freshness, boottime};
use hathi_redis::RedisConfig;
use hathi_test_support::{Redis, RedisOptions, StoreServers};

async fn has(store: &dyn Dcs) -> Option<()> {
    store.acquire_leader(soon()).await.ok()
}

/// Proves DCS-205: a server without memory is started again under an owner; the lock is given to
/// nobody before the owner's lease has ended, and the owner is not told that it lost it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_waits_for_the_lease_to_end() {
    let options = RedisOptions { forgetful: true, ..RedisOptions::default() };
    let mut redis = Redis::start(options).await;
    let (a, b) = (backend(config(&redis), "a", TIMING), backend(config(&redis), "b", TIMING));
    let early = a.acquire_leader(soon()).await;
    let Err(DcsError::Unreachable { why, .. }) = early else { panic!("{early:?}") };
    assert!(why.contains("started or promoted lately"), "{why}");
    // Who wins the race for the bootstrap takes the lock next.
    let begun = a.write_initialize("", Expect::Absent, soon()).await;
    assert!(matches!(begun, Err(DcsError::Unreachable { .. })), "{begun:?}");
    until("it is given away", 8_000, || has(&*a)).await;
    let confirmed = boottime();
    a.renew_leader(soon()).await.expect("mine");
    redis.kill_all();
    redis.start_all();
    redis.ready().await;
    let renewed = a.renew_leader(soon()).await;
    assert!(matches!(renewed, Err(DcsError::Unreachable { .. })), "{renewed:?}");
    assert!(a.load(Freshness::Latest, soon()).await.expect("it answers").is_unlocked());
    until("it is given away again", 8_000, || has(&*b)).await;
    let after = boottime().since(confirmed);
    assert!(
        after >= TIMING.ttl_ms(),
        "given away after {after} ms, within the first owner's lease"
    );
    let lost = a.renew_leader(soon()).await;
    assert!(matches!(lost, Err(DcsError::NotOwner { .. })), "{lost:?}");
}

/// Proves DCS-205 for replicas and DCS-047: what too few of them have does not count, a replica is no place to
/// write, and a promoted one waits before it gives a lock away or back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_too_few_replicas_have_does_not_count() {
    let redis = Redis::start(RedisOptions { replicas: 2, ..RedisOptions::default() }).await;
    let mut hosts = redis.hosts();
    hosts.rotate_left(1);
    let both = RedisConfig { hosts, replicas: 1, ..RedisConfig::default() };
    let a = backend(both.clone(), "a", TIMING);
    until("it is given away", 20_000, || has(&*a)).await;
    a.renew_leader(soon()).await.expect("one replica has it");
    redis.pause_member(1);
    a.renew_leader(soon()).await.expect("the other replica has it");
    redis.pause_member(2);
    let renewed = a.renew_leader(Deadline::in_ms(2_500)).await;
    let Err(DcsError::Unreachable { why, .. }) = renewed else { panic!("{renewed:?}") };
    assert!(why.contains("0 of 1 replicas"), "{why}");
    let read = a.load(Freshness::Latest, Deadline::in_ms(2_500)).await;
    assert!(matches!(read, Err(DcsError::Unreachable { .. })), "{read:?}");
    redis.resume();
    until("the replicas are back", 10_000, || async { a.renew_leader(soon()).await.ok() }).await;

    a.release_leader(None, soon()).await.expect("mine");
    until("a holds it again", 10_000, || has(&*a)).await;
    let b = backend(both, "b", TIMING);
    // The first server goes; somebody promotes the second, and the third follows it.
    redis.pause_member(0);
    for (which, arguments) in [
        (1, ["NO".to_owned(), "ONE".to_owned()]),
        (2, ["127.0.0.1".to_owned(), redis.port(1).to_string()]),
    ] {
        let mut connection = connection(&redis, which).await;
        let change = redis::cmd("REPLICAOF").arg(&arguments).to_owned();
        change.query_async::<()>(&mut connection).await.expect("it obeys");
    }
    let promoted = boottime();
    until("b has it", 30_000, || has(&*b)).await;
    let after = boottime().since(promoted);
    assert!(after >= TIMING.ttl_ms(), "given away {after} ms after the promotion");
}
