//! What the calls leave in Redis.

use crate::harness::{TIMING, backend, config, connection};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Expect, Freshness, MemberData, Sync};
use hathi_test_support::{Redis, RedisOptions};

/// Proves DCS-201, DCS-202 and DCS-203: all keys lie in one slot, each record is a hash with its value
/// and revision, what hangs on a lease ends by the server's clock and the rest never; a stale
/// revision is refused, and one script reads all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_a_hash_in_the_clusters_slot() {
    let redis = Redis::start(RedisOptions::default()).await;
    let mut beside = connection(&redis, 0).await;
    let a = backend(config(&redis), "a", TIMING);
    until("it is given away", 20_000, || async { a.acquire_leader(soon()).await.ok() }).await;
    a.write_member(&MemberData::default(), soon()).await.expect("a healthy Redis");
    let sync = |quorum| Sync { leader: Some("a".into()), quorum, voters: Vec::new() };
    let first = a.write_sync(&sync(1), Expect::Absent, soon()).await.expect("absent");

    let mut keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query_async(&mut beside).await.expect("a healthy Redis");
    keys.sort();
    let names = ["/leader", "/members/a", "/sync", ":keys", ":probe", ":rev"];
    let expected = names.map(|name| format!("{{/service/batman}}{name}"));
    keys.retain(|key| !key.ends_with(":probe"));
    let expected: Vec<_> = expected.into_iter().filter(|key| !key.ends_with(":probe")).collect();
    assert_eq!(keys, expected);

    for (name, ends) in [("leader", true), ("members/a", true), ("sync", false)] {
        let key = format!("{{/service/batman}}/{name}");
        let left: i64 =
            redis::cmd("PTTL").arg(&key).query_async(&mut beside).await.expect("a healthy Redis");
        let ttl = i64::try_from(TIMING.ttl_ms()).expect("a ttl");
        let fair = if ends { (1..=ttl + 500).contains(&left) } else { left == -1 };
        assert!(fair, "{name} ends in {left} ms");
    }
    let kept: (String, u64) = redis::cmd("HMGET")
        .arg("{/service/batman}/sync")
        .arg(&["v", "r"])
        .query_async(&mut beside)
        .await
        .expect("a healthy Redis");
    assert_eq!(kept, (sync(1).to_wire(), first.0));

    let second = a.write_sync(&sync(2), Expect::Version(first), soon()).await.expect("seen");
    let stale = a.write_sync(&sync(3), Expect::Version(first), soon()).await;
    assert!(matches!(stale, Err(DcsError::Conflict { .. })), "{stale:?}");
    let revision: u64 = redis::cmd("GET")
        .arg("{/service/batman}:rev")
        .query_async(&mut beside)
        .await
        .expect("a healthy Redis");
    assert_eq!(revision, second.0, "one count for all records");
    let view = a.load(Freshness::Latest, soon()).await.expect("a healthy Redis");
    assert_eq!(view.sync.clone().map(|kept| (kept.value, kept.version)), Some((sync(2), second)));
    assert_eq!((view.leader_name(), view.members.len()), (Some(&"a".into()), 1));
}
