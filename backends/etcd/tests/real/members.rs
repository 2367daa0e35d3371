//! Which member is talked to: discovery, a list that changes, dead entries in it, no list at all.

use crate::harness::{TIMING, backend, client, config, install_tls};
use futures::StreamExt;
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Change, Dcs, DcsError, Deadline, Expect, Freshness, MemberData, Status};
use hathi_etcd::EtcdConfig;
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion, StoreServers};
use std::time::Duration;

/// Proves DCS-081, DCS-T11: one configured member is enough to know the others, and its end is
/// survived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_are_discovered() {
    install_tls();
    let mut etcd = Etcd::start(EtcdVersion::V35, 3).await;
    let one = EtcdConfig { endpoints: vec![etcd.urls()[0].clone()], ..EtcdConfig::default() };
    let proxies = EtcdConfig { use_proxies: true, ..one.clone() };
    let (a, b) = (backend(one, "a", TIMING), backend(proxies, "b", TIMING));
    a.acquire_leader(soon()).await.expect("a free lock");
    b.load(Freshness::Latest, soon()).await.expect("a healthy store");
    etcd.kill_member(0);
    a.renew_leader(soon()).await.expect("the others are known");
    let lost = b.load(Freshness::Latest, Deadline::in_ms(2_000)).await;
    assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "a proxy has no others: {lost:?}");
    etcd.start_all();
    etcd.ready().await;
    b.load(Freshness::Latest, soon()).await.expect("it is back");
}

/// Proves DCS-072, DCS-T11: entries that lead nowhere cost little, and a removed member is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_entries_and_removed_members_are_passed_by() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 3).await;
    let dead = hathi_test_support::ports::free_ports(2);
    let mut endpoints: Vec<String> =
        dead.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    endpoints.push("http://does-not-exist.invalid:2379".into());
    endpoints.extend(etcd.urls());
    let a = backend(EtcdConfig { endpoints, ..EtcdConfig::default() }, "a", TIMING);
    a.acquire_leader(soon()).await.expect("three of six answer");
    let mut admin = client(&etcd, 0).await;
    for gone in [1, 2] {
        let members = admin.member_list().await.expect("the members");
        let port = etcd.client_ports()[gone];
        let url = format!("http://127.0.0.1:{port}");
        let found = members.members().iter().find(|m| m.client_urls().contains(&url));
        let id = found.expect("a member").id();
        until("etcd is ready for the change", 10_000, || {
            let mut admin = admin.clone();
            async move { admin.member_remove(id).await.ok() }
        })
        .await;
        for _ in 0..3 {
            a.renew_leader(soon()).await.expect("the members that stay");
        }
    }
    a.load(Freshness::Latest, soon()).await.expect("the member that stays");
}

/// Answers every connection with these bytes and hangs up; with none it only listens.
fn impostor(says: Option<&'static [u8]>) -> String {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            match says {
                Some(says) => drop(stream.write_all(says)),
                None => kept.push(stream),
            }
        }
    });
    url
}

/// Proves DCS-030 and DCS-073: whatever stands where a server should, reading, the lock, and the writes
/// that are tried once go on with the next one, and nothing of it is a word about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_server_is_passed_by() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let dead = format!("http://127.0.0.1:{}", hathi_test_support::ports::free_ports(1)[0]);
    let strangers = [
        dead,
        impostor(Some(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")),
        impostor(Some(b"SSH-2.0-OpenSSH\r\n")),
        impostor(Some(b"")),
        impostor(None),
        format!("https://127.0.0.1:{}", etcd.client_ports()[0]),
    ];
    for stranger in strangers {
        // The first letter's number is even: it begins with the first of two.
        let endpoints = vec![stranger.clone(), etcd.urls()[0].clone()];
        let b = backend(EtcdConfig { endpoints, ..EtcdConfig::default() }, "b", TIMING);
        let read = b.load(Freshness::Latest, soon()).await;
        read.unwrap_or_else(|error| panic!("{stranger}: {error}"));
        let endpoints = vec![stranger.clone(), etcd.urls()[0].clone()];
        let b = backend(EtcdConfig { endpoints, ..EtcdConfig::default() }, "b", TIMING);
        b.write_failsafe(&Default::default(), soon()).await.expect("the next one takes it");
        b.acquire_leader(soon()).await.expect("free");
        b.renew_leader(soon()).await.expect("mine");
        b.release_leader(None, soon()).await.expect("mine");
        // Nothing else is left: unknown, never lost.
        let alone = EtcdConfig { endpoints: vec![stranger.clone()], ..EtcdConfig::default() };
        let lost = backend(alone, "b", TIMING).renew_leader(Deadline::in_ms(1_200)).await;
        assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{stranger}: {lost:?}");
    }
}

/// Proves DCS-078: a server of the same cluster that missed elections is not believed, whatever it says
/// of the lock; the newer ones are waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_copy_is_not_believed() {
    install_tls();
    let mut etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let a = backend(config(&etcd), "a", TIMING);
    a.write_initialize("7711467298858918990", Expect::Absent, soon()).await.expect("absent");
    etcd.kill_all();
    let old = Etcd::on_copy_of(&etcd).await;
    // Each start of a member that is alone is an election.
    for _ in 0..3 {
        etcd.start_all();
        etcd.ready().await;
        etcd.kill_all();
    }
    etcd.start_all();
    etcd.ready().await;
    let endpoints = [etcd.urls(), old.urls()].concat();
    let b = backend(EtcdConfig { endpoints, ..EtcdConfig::default() }, "b", TIMING);
    let status = Status { optime: hathi_dcs::Lsn(9), ..Status::default() };
    b.write_status(&status, soon()).await.expect("a healthy store");
    assert_eq!(b.load(Freshness::Latest, soon()).await.expect("read").status, status);
    etcd.kill_all();
    for _ in 0..2 {
        let read = b.load(Freshness::Latest, Deadline::in_ms(2_500)).await;
        assert!(matches!(read, Err(DcsError::Unreachable { .. })), "{read:?}");
        let taken = b.acquire_leader(Deadline::in_ms(2_500)).await;
        assert!(matches!(taken, Err(DcsError::Unreachable { .. })), "{taken:?}");
    }
    // Who never saw the newer one has no reason to doubt it.
    let c = backend(config(&old), "c", TIMING);
    assert_eq!(c.load(Freshness::Latest, soon()).await.expect("it answers").status.optime.0, 0);
    etcd.start_all();
    etcd.ready().await;
    let view = until("the newer one is found", 10_000, || async {
        b.load(Freshness::Latest, soon()).await.ok()
    })
    .await;
    assert_eq!(view.status, status);
}

/// Proves DCS-302: a renewal gets through when the server in use hangs, after a third of the time; and
/// when every server needs longer than its share of the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_is_sent_to_another_one_as_well() {
    install_tls();
    let options = EtcdOptions { proxied: true, ..EtcdOptions::new(EtcdVersion::V35, 3) };
    let etcd = Etcd::start_with(options).await;
    let a = backend(config(&etcd), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = a.watch();
    assert_eq!(wakes.next().await, Some(Change::Everything));
    a.renew_leader(soon()).await.expect("mine");
    let renewed = |ms: u64| {
        let a = a.clone();
        async move {
            let began = std::time::Instant::now();
            let answer = a.renew_leader(Deadline::in_ms(ms)).await;
            (answer, began.elapsed().as_millis())
        }
    };
    // Each of three would have 1.33 s; all of them need longer.
    etcd.proxies().for_each(|proxy| proxy.slow_answers(1_700));
    for _ in 0..3 {
        let (answer, took) = renewed(4_000).await;
        answer.unwrap_or_else(|error| panic!("after {took} ms: {error}"));
        assert!(took >= 1_700, "{took} ms: it was not slow");
    }
    etcd.proxies().for_each(|proxy| proxy.slow_answers(0));
    a.renew_leader(soon()).await.expect("mine");
    // Where "a" began: the first letter's number, 97, modulo 3.
    etcd.proxy(1).hold_answers(true);
    let (answer, took) = renewed(6_000).await;
    answer.unwrap_or_else(|error| panic!("after {took} ms: {error}"));
    assert!((1_900..4_000).contains(&took), "a third is 2 s; it took {took} ms");
    let (answer, took) = renewed(6_000).await;
    answer.expect("mine");
    assert!(took < 1_900, "the one that answered is asked first now; it took {took} ms");
}

/// Proves DCS-076: who only reads and writes records has no lease, and leaves nothing that ends by
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_tool_has_no_lease() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let tool = backend(config(&etcd), "ctl", TIMING);
    tool.load(Freshness::Latest, soon()).await.expect("a healthy store");
    tool.write_config(&serde_json::Map::new(), Expect::Absent, soon()).await.expect("absent");
    tool.write_failover(&Default::default(), Expect::Anything, soon()).await.expect("written");
    let mut other = client(&etcd, 0).await;
    let leases = other.leases().await.expect("a list");
    assert!(leases.leases().is_empty(), "{leases:?}");
    let a = backend(config(&etcd), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    assert_eq!(other.leases().await.expect("a list").leases().len(), 1, "leases are seen here");
}

#[tokio::test]
async fn without_endpoints_the_text_says_so() {
    install_tls();
    let answer = backend(EtcdConfig::default(), "a", TIMING).load(Freshness::Latest, soon()).await;
    let Err(DcsError::NotRetriable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("no endpoints"), "{why}");
}

/// Proves DCS-017, DCS-050: another scope whose name begins the same is not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_scope_is_not_touched() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V34, 1).await;
    let a = backend(config(&etcd), "a", TIMING);
    let mut other = client(&etcd, 0).await;
    for key in ["/service/batman2/leader", "/service/batman", "/service/batma/leader"] {
        other.put(key, "x", None).await.expect("a healthy store");
    }
    a.write_initialize("7711467298858918990", Expect::Absent, soon()).await.expect("absent");
    let view = a.load(Freshness::Latest, soon()).await.expect("a healthy store");
    assert!(view.is_unlocked() && view.members.is_empty());
    a.delete_cluster(soon()).await.expect("a healthy store");
    let all = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let left = other.get("/", Some(all)).await.expect("a healthy store");
    assert_eq!(left.kvs().len(), 3, "{:?}", left.kvs());
}

/// Proves DCS-093: the watch leaves a member that does not answer as soon as the calls have left
/// it, long before its own connection is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_follows_the_calls() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 3).await;
    let (a, b) = (backend(config(&etcd), "a", TIMING), backend(config(&etcd), "b", TIMING));
    let mut wakes = a.watch();
    a.write_member(&MemberData::default(), soon()).await.expect("a healthy store");
    assert_eq!(wakes.next().await, Some(Change::Everything));
    // Where "a" began: the first letter's number, 97, modulo 3.
    etcd.pause_member(1);
    a.acquire_leader(soon()).await.expect("two of three");
    b.write_status(&Status::default(), soon()).await.expect("two of three");
    let followed = async { while wakes.next().await != Some(Change::Everything) {} };
    tokio::time::timeout(Duration::from_secs(4), followed).await.expect("the watch has followed");
    b.release_leader(None, soon()).await.expect_err("it is a's");
    a.release_leader(None, soon()).await.expect("mine");
    let woken = async { while wakes.next().await != Some(Change::Leader) {} };
    tokio::time::timeout(Duration::from_secs(2), woken).await.expect("the watch delivers");
}

/// Proves DCS-086 and that a renewal is no change, also when it needs a new lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_owner_on_a_new_lease_wakes_nobody() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let (a, b) = (backend(config(&etcd), "a", TIMING), backend(config(&etcd), "b", TIMING));
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = b.watch();
    assert_eq!(wakes.next().await, Some(Change::Everything));
    a.set_timing(hathi_dcs::Timing { ttl: TIMING.ttl + 5, ..TIMING });
    a.renew_leader(soon()).await.expect("mine");
    let mut other = client(&etcd, 0).await;
    let leader = other.get("/service/batman/leader", None).await.expect("a healthy store");
    let kv = leader.kvs().first().expect("the leader key");
    assert!(kv.mod_revision() > kv.create_revision(), "it is on a new lease");
    a.write_failsafe(&Default::default(), soon()).await.expect("a healthy store");
    assert_eq!(wakes.next().await, Some(Change::Failsafe), "and nothing before it");
}
