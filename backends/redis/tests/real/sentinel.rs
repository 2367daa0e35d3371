//! A real trio of Sentinels over a server with two replicas.

use crate::harness::backend;
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Deadline, Freshness, Lsn, Status, Timing};
use hathi_redis::{RedisConfig, Sentinels};
use hathi_test_support::{REDIS_MASTER, Redis, RedisOptions, StoreServers};

/// Longer than Sentinel needs to promote.
const TIMING: Timing = Timing { ttl: 20, loop_wait: 1, retry_timeout: 3 };

async fn trio() -> (Redis, RedisConfig) {
    let options = RedisOptions { replicas: 2, sentinels: true, ..RedisOptions::default() };
    let redis = Redis::start(options).await;
    let sentinels = Sentinels {
        hosts: redis.sentinel_hosts(),
        master: REDIS_MASTER.to_owned(),
        ..Sentinels::default()
    };
    (redis, RedisConfig { sentinels, replicas: 1, ..RedisConfig::default() })
}

fn named(redis: &Redis, sentinel: usize) -> String {
    let port = redis.sentinel_hosts()[sentinel].1;
    let said = Redis::asks(port, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", REDIS_MASTER]);
    said.unwrap_or_else(|why| why)
}

/// Proves DCS-200, DCS-204 and DCS-205 with Sentinel: the writable server dies, with the Sentinel
/// that is asked first, and another one is promoted; the owner goes on with its lock, nobody else
/// gets it, the watch goes on, and nothing acknowledged is missing. The old server comes back and
/// follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_server_is_found() {
    let (mut redis, config) = trio().await;
    let (a, b) = (backend(config.clone(), "a", TIMING), backend(config, "b", TIMING));
    until("it is given away", 60_000, || async { a.acquire_leader(soon()).await.ok() }).await;
    let status = Status { optime: Lsn(55), ..Status::default() };
    a.write_status(&status, soon()).await.expect("a healthy store");
    until("both replicas have it", 10_000, || async {
        let offset = |which: usize, name: &str| {
            let said = Redis::asks(redis.port(which), &["INFO", "replication"]).ok()?;
            said.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
        };
        let first = offset(0, "master_repl_offset:")?;
        let has = |which| offset(which, "slave_repl_offset:").is_some_and(|at| at >= first);
        (has(1) && has(2)).then_some(())
    })
    .await;
    a.renew_leader(soon()).await.expect("mine");
    let before = named(&redis, 2);
    redis.kill_sentinel(0);
    redis.kill_member(0);
    until("a goes on", 20_000, || async {
        match a.renew_leader(Deadline::in_ms(2_000)).await {
            Ok(()) => Some(()),
            Err(DcsError::Unreachable { .. }) => None,
            Err(other) => panic!("{other}"),
        }
    })
    .await;
    assert_ne!(named(&redis, 2), before, "another server is the writable one");
    // Not even told who has it: the server is the writable one for too short a time.
    let lost = b.acquire_leader(Deadline::in_ms(1_000)).await;
    assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{lost:?}");
    let view = b.load(Freshness::Latest, soon()).await.expect("two of three answer");
    assert_eq!(view.leader_name(), Some(&"a".into()));
    assert_eq!(view.status, status, "acknowledged, then lost");

    redis.start_all();
    redis.ready().await;
    until("the old one follows", 30_000, || async {
        a.renew_leader(soon()).await.expect("mine still");
        let said = Redis::asks(redis.port(0), &["INFO", "replication"]).ok()?;
        said.contains("role:slave").then_some(())
    })
    .await;
    a.renew_leader(soon()).await.expect("mine still");
    let watched = b.load(Freshness::Watched, soon()).await.expect("the watch went along");
    assert_eq!(watched.leader_name(), Some(&"a".into()));
}

/// Proves DCS-200 and DCS-301: a name that no Sentinel knows is said, within the deadline, and says
/// nothing about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_name_is_said() {
    let (_redis, mut config) = trio().await;
    config.sentinels.master = "other".to_owned();
    let a = backend(config, "a", TIMING);
    let answer = a.load(Freshness::Latest, Deadline::in_ms(1_500)).await;
    let Err(DcsError::Unreachable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("knows no server by the name \"other\""), "{why}");
}
