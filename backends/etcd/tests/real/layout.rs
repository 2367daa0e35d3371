//! What stands in etcd, as a Patroni beside us reads it.

use crate::harness::{TIMING, backend, client, config, install_tls};
use base64::Engine;
use etcd_client::KeyValue;
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Expect, Freshness, Lsn, MemberData, Status, Sync, Version};
use hathi_test_support::{Etcd, EtcdVersion};

async fn key(etcd: &Etcd, name: &str) -> Option<KeyValue> {
    let mut client = client(etcd, 0).await;
    let found = client.get(format!("/service/batman/{name}"), None).await;
    found.expect("a healthy etcd").kvs().first().cloned()
}

async fn revision(etcd: &Etcd, name: &str) -> Option<Version> {
    let revision = key(etcd, name).await?.mod_revision();
    u64::try_from(revision).ok().map(Version)
}

/// Proves DCS-085, DCS-086 and DCS-303 (one lease for both, as Patroni has; each renewal asks for a verdict
/// of its own): the lock is created once, hangs on the lease that carries the member,
/// and a renewal leaves its revision as it is; a new life of the owner binds it to its own lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_hangs_on_the_members_lease() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let former = backend(config(&etcd), "a", TIMING);
    former.acquire_leader(soon()).await.expect("a free lock");
    former.write_member(&MemberData::default(), soon()).await.expect("a healthy etcd");
    let (leader, member) = (key(&etcd, "leader").await, key(&etcd, "members/a").await);
    let (leader, member) = (leader.expect("created"), member.expect("written"));
    let before = revision(&etcd, "leader").await;
    assert_ne!(leader.lease(), 0);
    assert_eq!(leader.lease(), member.lease());
    assert_eq!((leader.value(), leader.version()), (&b"a"[..], 1));
    for _ in 0..3 {
        former.renew_leader(soon()).await.expect("mine");
        former.acquire_leader(soon()).await.expect("mine: asking again changes nothing");
    }
    assert_eq!(revision(&etcd, "leader").await, before, "a renewal wrote the key");

    let a = backend(config(&etcd), "a", TIMING);
    a.renew_leader(soon()).await.expect("my name stands there");
    let bound = key(&etcd, "leader").await.expect("it never was away");
    assert_ne!(bound.lease(), leader.lease());
    assert_eq!(bound.create_revision(), leader.create_revision(), "it never was away");
}

/// Proves DCS-087: a release deletes what is mine, the status before it; another's stays. Taking puts
/// whatever stands there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_deletes_what_is_mine() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let (a, b) = (backend(config(&etcd), "a", TIMING), backend(config(&etcd), "b", TIMING));
    a.acquire_leader(soon()).await.expect("a free lock");
    let status = Status { optime: Lsn(9), ..Status::default() };
    let refused = b.release_leader(Some(&status), soon()).await;
    assert!(matches!(refused, Err(DcsError::NotOwner { .. })), "{refused:?}");
    assert!(key(&etcd, "status").await.is_none(), "written by who was refused");
    a.release_leader(Some(&status), soon()).await.expect("mine");
    assert!(key(&etcd, "leader").await.is_none());
    let stored = key(&etcd, "status").await.expect("written");
    assert_eq!(String::from_utf8_lossy(stored.value()), status.to_wire());
    a.acquire_leader(soon()).await.expect("free again");
    b.take_leader(soon()).await.expect("after a bootstrap");
    let stored = key(&etcd, "leader").await.expect("put");
    assert_eq!(stored.value(), b"b");
}

/// Proves DCS-088 and DCS-089: a version is the key's revision, compared; `initialize` is created once,
/// then put.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_revisions() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let (a, b) = (backend(config(&etcd), "a", TIMING), backend(config(&etcd), "b", TIMING));
    let sync = |quorum| Sync { leader: Some("a".into()), quorum, voters: Vec::new() };
    let first = a.write_sync(&sync(1), Expect::Absent, soon()).await.expect("absent");
    assert_eq!(revision(&etcd, "sync").await, Some(first));
    let second = a.write_sync(&sync(2), Expect::Version(first), soon()).await.expect("seen");
    assert_eq!(revision(&etcd, "sync").await, Some(second));
    let stale = b.write_sync(&sync(3), Expect::Version(first), soon()).await;
    assert!(matches!(stale, Err(DcsError::Conflict { .. })), "{stale:?}");
    let seen = b.load(Freshness::Latest, soon()).await.expect("a healthy etcd").sync;
    assert_eq!(seen.map(|kept| kept.version), Some(second));

    a.write_initialize("", Expect::Absent, soon()).await.expect("absent");
    let late = b.write_initialize("", Expect::Absent, soon()).await;
    assert!(matches!(late, Err(DcsError::Conflict { .. })), "{late:?}");
    a.write_initialize("7711467298858918990", Expect::Anything, soon()).await.expect("put");
    let stored = key(&etcd, "initialize").await.expect("put");
    assert_eq!((stored.value(), stored.lease()), (&b"7711467298858918990"[..], 0));
    a.delete_initialize(soon()).await.expect("deleted");
    assert!(key(&etcd, "initialize").await.is_none());
}

/// Proves DCS-080 and DCS-094: Patroni speaks the JSON gateway, with bytes in base64 and numbers as text,
/// and we gRPC; it is the same key space, on each version, in both directions.
async fn the_gateway_shows_the_same(version: EtcdVersion) {
    install_tls();
    let etcd = Etcd::start(version, 1).await;
    let a = backend(config(&etcd), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let key = base64("/service/batman/leader");
    let range = etcd.gateway("kv/range", &serde_json::json!({"key": key})).await.expect("a range");
    let found = &range["kvs"][0];
    assert_eq!(found["value"], base64("a"), "{range}");
    let leader = self::key(&etcd, "leader").await.expect("created");
    assert_eq!(found["lease"], leader.lease().to_string(), "numbers are text: {range}");
    assert_eq!(found["mod_revision"], leader.mod_revision().to_string(), "{range}");

    let member = r#"{"conn_url":"postgres://h:1/p","role":"replica","version":"4.1.5"}"#;
    let put =
        serde_json::json!({"key": base64("/service/batman/members/b"), "value": base64(member)});
    etcd.gateway("kv/put", &put).await.expect("a put");
    let view = a.load(Freshness::Latest, soon()).await.expect("a healthy etcd");
    let seen = view.member(&"b".into()).expect("written by the gateway");
    assert_eq!(seen.data, MemberData::parse(member));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_shows_the_same_on_34() {
    the_gateway_shows_the_same(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_shows_the_same_on_35() {
    the_gateway_shows_the_same(EtcdVersion::V35).await;
}
