//! What stands in Consul, as a Patroni beside us reads it and as an operator sees it.

use crate::harness::{TIMING, backend, config};
use hathi_consul::{Consistency, ConsulConfig};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Expect, Freshness, Lsn, MemberData, Status, Sync, boottime};
use hathi_test_support::{Consul, ConsulOptions, ports};
use serde_json::Value;

async fn one_server() -> Consul {
    Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await
}

async fn asked(consul: &Consul, path: &str) -> Value {
    consul.request("GET", path, None).await.expect("a healthy Consul").json()
}

/// One key as Consul lists it.
async fn key(consul: &Consul, name: &str) -> Value {
    asked(consul, &format!("/v1/kv/service/batman/{name}?consistent")).await[0].clone()
}

async fn destroy(consul: &Consul, session: &Value) {
    let path = format!("/v1/session/destroy/{}", session.as_str().expect("a session"));
    consul.request("PUT", &path, None).await.expect("a healthy Consul");
}

/// Proves DCS-110, DCS-111, DCS-113, DCS-116 and DCS-117: one session of half the ttl without checks
/// carries leader and member; with it both vanish, and the next owner need not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_session_carries_the_keys() {
    let consul = one_server().await;
    let (a, b) = (backend(config(&consul), "a", TIMING), backend(config(&consul), "b", TIMING));
    a.acquire_leader(soon()).await.expect("a free lock");
    a.acquire_leader(soon()).await.expect("mine: asking again changes nothing");
    a.write_member(&MemberData::default(), soon()).await.expect("it may");
    let sessions = asked(&consul, "/v1/session/list").await;
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
    let session = &sessions[0];
    assert_eq!(session["TTL"], "10.0s");
    assert_eq!(session["Name"], "batman-a");
    assert_eq!(session["Behavior"], "delete");
    assert_eq!(session["LockDelay"], 1_000_000, "in nanoseconds");
    for checks in ["Checks", "NodeChecks", "ServiceChecks"] {
        assert!(session[checks].as_array().is_none_or(Vec::is_empty), "{session}");
    }
    for name in ["leader", "members/a"] {
        let key = key(&consul, name).await;
        assert_eq!(key["Session"], session["ID"], "{name}");
        assert_eq!(key["Flags"], 0, "{name}");
        assert_eq!(key["LockIndex"], 1, "{name}");
    }
    destroy(&consul, &session["ID"]).await;
    let gone = boottime();
    until("the next owner", 2_000, || async { b.acquire_leader(soon()).await.ok() }).await;
    assert!(boottime().since(gone) < 2_000, "Consul's own delay is fifteen seconds");
    assert_eq!(key(&consul, "members/a").await, Value::Null);
    let lost = a.renew_leader(soon()).await;
    assert!(matches!(lost, Err(DcsError::NotOwner { .. })), "{lost:?}");
}

/// Proves DCS-114, DCS-306 and DCS-322: a new life of the owner binds the key to its own session in
/// one step, and what somebody else took is not taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_life_binds_the_key_or_learns_who_has_it() {
    let consul = one_server().await;
    let former = backend(config(&consul), "a", TIMING);
    former.acquire_leader(soon()).await.expect("a free lock");
    former.write_member(&MemberData::default(), soon()).await.expect("it may");
    let (old, member) = (key(&consul, "leader").await, key(&consul, "members/a").await);
    let a = backend(config(&consul), "a", TIMING);
    a.renew_leader(soon()).await.expect("my name stands there");
    a.write_member(&MemberData::default(), soon()).await.expect("it may");
    let new = key(&consul, "leader").await;
    assert_ne!(new["Session"], old["Session"]);
    assert_eq!(key(&consul, "members/a").await["Session"], new["Session"]);
    destroy(&consul, &member["Session"]).await;
    assert_eq!(key(&consul, "leader").await, new, "it hung on the former life");

    destroy(&consul, &new["Session"]).await;
    let b = backend(config(&consul), "b", TIMING);
    b.acquire_leader(soon()).await.expect("a free lock");
    let theirs = key(&consul, "leader").await;
    for _ in 0..2 {
        let lost = a.renew_leader(soon()).await;
        assert!(matches!(lost, Err(DcsError::NotOwner { .. })), "{lost:?}");
    }
    assert_eq!(key(&consul, "leader").await, theirs);
}

/// Proves DCS-112, DCS-115 and DCS-118: a renewal writes no key, an equal record neither; a release
/// takes the key that was seen, the status with it, and nothing of the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_need_not_be_written_is_not() {
    let consul = one_server().await;
    let a = backend(config(&consul), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    a.write_member(&MemberData::default(), soon()).await.expect("it may");
    let before = (key(&consul, "leader").await, key(&consul, "members/a").await);
    for _ in 0..3 {
        a.renew_leader(soon()).await.expect("mine");
        a.write_member(&MemberData::default(), soon()).await.expect("it may");
    }
    assert_eq!((key(&consul, "leader").await, key(&consul, "members/a").await), before);
    let status = Status { optime: Lsn(7), ..Status::default() };
    a.release_leader(Some(&status), soon()).await.expect("mine");
    assert_eq!(key(&consul, "leader").await, Value::Null);
    assert_eq!(key(&consul, "members/a").await, before.1, "the member stays");
    let view = a.load(Freshness::Latest, soon()).await.expect("a healthy Consul");
    assert_eq!(view.status, status);
}

/// Proves DCS-119: a compare-and-set names the index it saw, and gives the one it made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_indexes() {
    let consul = one_server().await;
    let a = backend(config(&consul), "a", TIMING);
    let sync = |quorum| Sync { leader: Some("a".into()), quorum, voters: Vec::new() };
    let first = a.write_sync(&sync(1), Expect::Absent, soon()).await.expect("absent");
    assert_eq!(key(&consul, "sync").await["ModifyIndex"], first.0);
    let second = a.write_sync(&sync(2), Expect::Version(first), soon()).await.expect("seen");
    assert_eq!(key(&consul, "sync").await["ModifyIndex"], second.0);
    let stale = a.write_sync(&sync(3), Expect::Version(first), soon()).await;
    assert!(matches!(stale, Err(DcsError::Conflict { .. })), "{stale:?}");
    assert!(a.delete_sync(Expect::Version(first), soon()).await.is_err(), "stale as well");
    a.delete_sync(Expect::Version(second), soon()).await.expect("seen");
}

/// Proves DCS-120, DCS-122 and DCS-306: everything is read at once at each level of consistency, and an
/// agent that does not answer is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_agent_is_asked() {
    let consul = one_server().await;
    let nobody = format!("127.0.0.1:{}", ports::free_port());
    for consistency in [Consistency::Default, Consistency::Consistent, Consistency::Stale] {
        let hosts = [vec![nobody.clone()], consul.hosts()].concat();
        let config = ConsulConfig { hosts, consistency, ..ConsulConfig::default() };
        let a = backend(config, "a", TIMING);
        a.take_leader(soon()).await.expect("the second agent answers");
        a.write_member(&MemberData::default(), soon()).await.expect("it may");
        for freshness in [Freshness::Latest, Freshness::Watched] {
            let view = a.load(freshness, soon()).await.expect("the second agent answers");
            assert_eq!(view.leader_name(), Some(&"a".into()), "{consistency:?}");
            assert_eq!(view.members.len(), 1, "{consistency:?}");
        }
        drop(a);
    }
}
