//! Servers that DNS names: found, lost, named anew; and whatever a name server can answer instead.
//! (CFG-303, DCS-073)

use crate::harness::{TIMING, backend, client, install_tls};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Deadline, Expect, Freshness};
use hathi_etcd::{EtcdConfig, named_by_dns};
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion, Mood, NameServer, StoreServers, ports};
use std::time::{Duration, Instant};

const DOMAIN: &str = "example.org";

fn by_srv(names: &NameServer) -> EtcdConfig {
    let name_servers = vec![names.address];
    EtcdConfig { srv: Some(DOMAIN.to_owned()), name_servers, ..EtcdConfig::default() }
}

fn name(label: &str) -> String {
    format!("{label}._tcp.{DOMAIN}")
}

/// `label` leads to these ports of this machine, one as good as the other.
fn lead(names: &NameServer, label: &str, ports: &[u16]) {
    let records: Vec<_> = ports.iter().map(|port| (10, 10, "localhost.", *port)).collect();
    names.srv(&name(label), &records);
}

fn urls(ports: &[u16]) -> Vec<String> {
    let mut urls: Vec<_> = ports.iter().map(|port| format!("http://localhost:{port}")).collect();
    urls.sort();
    urls
}

async fn named(config: &EtcdConfig) -> Result<Vec<String>, String> {
    let mut urls = named_by_dns(config, soon()).await?;
    urls.sort();
    Ok(urls)
}

/// Why nothing was read, and how long that took.
async fn silence(config: EtcdConfig, within_ms: u64) -> (String, Duration) {
    let (a, began) = (backend(config, "a", TIMING), Instant::now());
    let answer = a.load(Freshness::Latest, Deadline::in_ms(within_ms)).await;
    let Err(error @ DcsError::Unreachable { .. }) = answer else { panic!("{answer:?}") };
    (error.to_string(), began.elapsed())
}

/// Proves CFG-303: three servers that only DNS knows; one of them dies, and no name server is needed
/// for going on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_are_found_and_one_dies() {
    install_tls();
    let names = NameServer::start();
    let mut etcd = Etcd::start(EtcdVersion::V35, 3).await;
    lead(&names, "_etcd-client", &etcd.client_ports());
    let (a, b) = (backend(by_srv(&names), "a", TIMING), backend(by_srv(&names), "b", TIMING));
    a.acquire_leader(soon()).await.expect("a free lock");
    b.load(Freshness::Latest, soon()).await.expect("a healthy store");
    let mut asked = names.asked();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 6, "{asked:?}");
    names.mood(Mood::Silent);
    for dies in 0..3 {
        etcd.kill_member(dies);
        a.renew_leader(soon()).await.expect("two of three");
        let view = b.load(Freshness::Latest, soon()).await.expect("two of three");
        assert_eq!(view.leader_name(), Some(&"a".into()));
        etcd.start_all();
        etcd.ready().await;
    }
}

/// Proves DCS-073: everybody that DNS named is gone, others are named by now, and the same call finds
/// them; also when the servers hang instead of being gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_named_when_all_are_gone() {
    install_tls();
    let names = NameServer::start();
    let (mut one, two) =
        tokio::join!(Etcd::start(EtcdVersion::V35, 3), Etcd::start(EtcdVersion::V35, 1));
    lead(&names, "_etcd-client", &one.client_ports());
    let (a, b) = (backend(by_srv(&names), "a", TIMING), backend(by_srv(&names), "b", TIMING));
    let frozen = backend(by_srv(&names), "c", TIMING);
    for each in [&a, &b, &frozen] {
        each.load(Freshness::Latest, soon()).await.expect("the first ones");
    }
    lead(&names, "_etcd-client", &two.client_ports());
    (0..3).for_each(|member| one.pause_member(member));
    // All the time goes to those that hang; the next call knows that.
    let lost = frozen.load(Freshness::Latest, Deadline::in_ms(3_000)).await;
    assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{lost:?}");
    frozen.load(Freshness::Latest, soon()).await.expect("the new one");
    one.kill_all();
    a.load(Freshness::Latest, soon()).await.expect("the new one");
    // What a lock depends on goes another way through the servers.
    b.acquire_leader(soon()).await.expect("free there");
    b.renew_leader(soon()).await.expect("mine");
    let mut other = client(&two, 0).await;
    let leader = other.get("/service/batman/leader", None).await.expect("a healthy store");
    assert_eq!(leader.kvs().first().expect("the key").value(), b"b");
}

/// Proves DCS-073: no name server answers at the start, and later one does; no name server answers when
/// all servers were away, and they come back where they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_is_away_for_a_while() {
    install_tls();
    let names = NameServer::start();
    let mut etcd = Etcd::start(EtcdVersion::V35, 1).await;
    lead(&names, "_etcd-client", &etcd.client_ports());
    names.mood(Mood::Silent);
    let a = backend(by_srv(&names), "a", TIMING);
    let lost = a.load(Freshness::Latest, Deadline::in_ms(1_500)).await;
    let text = lost.expect_err("nobody is known").to_string();
    let labels = "_etcd-client-ssl, _etcd-client, _etcd-ssl, _etcd, _etcd-server-ssl, _etcd-server";
    let words =
        format!("DNS names no etcd below {DOMAIN}: {} says no answer to {labels}", names.address);
    assert!(text.contains(&words) && text.lines().count() == 1, "{text}");
    names.mood(Mood::Well);
    a.load(Freshness::Latest, soon()).await.expect("DNS is there");
    names.mood(Mood::Silent);
    etcd.kill_all();
    let lost = a.load(Freshness::Latest, Deadline::in_ms(2_500)).await;
    let text = lost.expect_err("nobody answers").to_string();
    assert!(text.contains("DNS names no etcd") && text.contains("localhost"), "{text}");
    etcd.start_all();
    etcd.ready().await;
    a.load(Freshness::Latest, soon()).await.expect("where it was");
    // Nobody listens where the name server was.
    drop(names);
    let port = ports::free_port();
    let nobody = vec![([127, 0, 0, 1], port).into()];
    let config =
        EtcdConfig { srv: Some(DOMAIN.into()), name_servers: nobody, ..EtcdConfig::default() };
    let (text, _) = silence(config, 1_000).await;
    assert!(text.contains(&format!("127.0.0.1:{port} says ")), "{text}");
}

/// Proves CFG-303: what is no list of servers is said in one line, and the configured hosts are asked,
/// if there are some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_name_nobody() {
    install_tls();
    let names = NameServer::start();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    for (mood, words) in [
        (Mood::Well, "says NXDOMAIN to _etcd-client-ssl, _etcd-client, _etcd-ssl, _etcd, "),
        (Mood::Empty, "says no records to _etcd-client-ssl, _etcd-client, "),
        (Mood::Failing, "to _etcd-client-ssl, _etcd-client, "),
        (Mood::Garbage, "to _etcd-client-ssl, _etcd-client, "),
    ] {
        names.mood(mood);
        let (text, took) = silence(by_srv(&names), 1_500).await;
        assert!(text.contains(words) && text.lines().count() == 1, "{mood:?}: {text}");
        assert!(took < Duration::from_millis(2_000), "{mood:?}: {took:?}");
        let both = EtcdConfig { endpoints: etcd.urls(), ..by_srv(&names) };
        let b = backend(both, "b", TIMING);
        b.load(Freshness::Latest, soon()).await.unwrap_or_else(|why| panic!("{mood:?}: {why}"));
    }
    names.mood(Mood::Well);
    names.srv(&name("_etcd-client"), &[(0, 0, ".", 0)]);
    let (text, _) = silence(by_srv(&names), 800).await;
    assert!(text.contains("_etcd-client names no host"), "{text}");
}

/// Proves DCS-301 for DNS: a slow name server is waited for as long as the caller has time, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_name_server_keeps_the_deadline() {
    install_tls();
    let names = NameServer::start();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    lead(&names, "_etcd-client", &etcd.client_ports());
    names.mood(Mood::Slow(700));
    let began = Instant::now();
    backend(by_srv(&names), "a", TIMING).load(Freshness::Latest, soon()).await.expect("in time");
    assert!(began.elapsed() >= Duration::from_millis(700), "it was not slow");
    names.mood(Mood::Slow(3_000));
    let (text, took) = silence(by_srv(&names), 1_000).await;
    assert!(text.contains("says no answer to _etcd-client-ssl"), "{text}");
    assert!(took < Duration::from_millis(1_300), "{took:?}");
}

/// Proves CFG-303: the members tell where clients are served, at the port where they talk to each other;
/// one of those listed is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_found_through_their_own_ports() {
    install_tls();
    let names = NameServer::start();
    let plain = Etcd::start(EtcdVersion::V35, 3).await;
    let dead = ports::free_port();
    names.srv(
        &name("_etcd-server"),
        &[(1, 0, "localhost.", dead), (2, 0, "localhost.", plain.peer_ports()[1])],
    );
    let mut expected = plain.urls();
    expected.sort();
    assert_eq!(named(&by_srv(&names)).await, Ok(expected));
    backend(by_srv(&names), "a", TIMING).acquire_leader(soon()).await.expect("a free lock");
    // A certificate that nobody knows, and a member that wants to see one of ours.
    let options = EtcdOptions { peer_tls: true, ..EtcdOptions::new(EtcdVersion::V35, 1) };
    let locked = Etcd::start_with(options).await;
    lead(&names, "_etcd-server-ssl", &locked.peer_ports());
    let certs = locked.certs.clone().expect("made for TLS");
    let path = |path: &std::path::Path| Some(path.to_string_lossy().into_owned());
    let shown = EtcdConfig { cert: path(&certs.cert), key: path(&certs.key), ..by_srv(&names) };
    assert_eq!(named(&shown).await, Ok(locked.urls()), "the one with TLS goes before");
    // Without it the next name is tried, and with nothing left both are told.
    assert_eq!(named(&by_srv(&names)).await.expect("the plain ones").len(), 3);
    lead(&names, "_etcd-server", &[dead]);
    let why = named(&by_srv(&names)).await.expect_err("nobody tells");
    assert!(
        why.contains(&format!("_etcd-server leads to http://localhost:{dead}/members: ")),
        "{why}"
    );
    assert!(why.contains("_etcd-server-ssl leads to https://localhost:"), "{why}");
    // A client's port is no member's.
    lead(&names, "_etcd-server", &plain.client_ports()[..1]);
    let why = named(&by_srv(&names)).await.expect_err("not here");
    assert!(why.contains("/members: 404"), "{why}");
}

/// Proves CFG-303: the first name that leads somewhere counts, `-ssl` is https, and with a suffix only the
/// names that have it are asked for. A long answer comes by TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_name_counts() {
    install_tls();
    let names = NameServer::start();
    let config = by_srv(&names);
    let labels = ["_etcd-server", "_etcd", "_etcd-ssl", "_etcd-client", "_etcd-client-ssl"];
    for (port, label) in (1_u16..).zip(labels) {
        lead(&names, label, &[port]);
        let scheme = if label.ends_with("-ssl") { "https" } else { "http" };
        if label != "_etcd-server" {
            assert_eq!(named(&config).await, Ok(vec![format!("{scheme}://localhost:{port}")]));
        }
    }
    let east = EtcdConfig { srv_suffix: Some("east".into()), ..config.clone() };
    lead(&names, "_etcd-client-east", &[7, 8]);
    names.asked();
    assert_eq!(named(&east).await, Ok(urls(&[7, 8])));
    assert!(names.asked().iter().all(|name| name.contains("-east._tcp.")));
    names.mood(Mood::Long);
    assert_eq!(named(&east).await, Ok(urls(&[7, 8])), "by TCP");
    let certain = EtcdConfig { srv: Some(format!("{DOMAIN}.")), ..east };
    assert_eq!(named(&certain).await, Ok(urls(&[7, 8])), "a last dot is no part of it");
}

/// Proves CFG-303: where priorities differ everybody begins with the first; what a client certificate
/// protects is found under `-ssl`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lowest_priority_is_asked_first() {
    install_tls();
    let names = NameServer::start();
    let (first, second) =
        tokio::join!(Etcd::start(EtcdVersion::V35, 1), Etcd::start(EtcdVersion::V35, 1));
    names.srv(
        &name("_etcd-client"),
        &[
            (20, 65_535, "localhost.", second.client_ports()[0]),
            (10, 0, "localhost.", first.client_ports()[0]),
        ],
    );
    // As proxies, so that the two are not told apart by their members.
    let config = EtcdConfig { use_proxies: true, ..by_srv(&names) };
    let a = backend(config.clone(), "a", TIMING);
    a.write_initialize("1", Expect::Absent, soon()).await.expect("absent");
    for me in ["a", "b", "c", "d"] {
        let view = backend(config.clone(), me, TIMING).load(Freshness::Latest, soon()).await;
        let view = view.expect("a healthy store");
        assert_eq!(view.initialize.map(|key| key.to_string()).as_deref(), Some("1"), "{me}");
    }
    drop(first);
    let view = a.load(Freshness::Latest, soon()).await.expect("the second");
    assert!(view.initialize.is_none(), "it is another store");

    let options = EtcdOptions { tls: true, ..EtcdOptions::new(EtcdVersion::V35, 1) };
    let etcd = Etcd::start_with(options).await;
    lead(&names, "_etcd-client-ssl", &etcd.client_ports());
    let certs = etcd.certs.clone().expect("made for TLS");
    let path = |path: &std::path::Path| Some(path.to_string_lossy().into_owned());
    let (cacert, cert, key) = (path(&certs.ca), path(&certs.cert), path(&certs.key));
    let a = backend(EtcdConfig { cacert, cert, key, ..by_srv(&names) }, "a", TIMING);
    a.acquire_leader(soon()).await.expect("both certificates");
}
