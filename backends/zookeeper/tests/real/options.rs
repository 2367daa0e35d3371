//! Certificates, credentials and access lists.

use crate::harness::{TIMING, backend, client, config};
use hathi_dcs::conformance::certificates::{Shown, both_sides_are_looked_at};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Deadline, Freshness, MemberData};
use hathi_test_support::{ZooKeeper, ZooKeeperOptions};
use hathi_zookeeper::{Right, Tls, ZooKeeperConfig};

fn short() -> Deadline {
    Deadline::in_ms(2_500)
}

/// Proves DCS-142, CFG-321, CFG-322: the server's certificate is verified, a client's certificate is shown,
/// and the access list names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    // The second one is told that there is a first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let zookeeper =
        ZooKeeper::start(ZooKeeperOptions { tls: true, ..ZooKeeperOptions::new(1) }).await;
    let certs = zookeeper.certs.as_ref().expect("made with it");
    let right = Tls {
        verify: true,
        cacert: Some(certs.ca.clone()),
        cert: Some(certs.cert.clone()),
        key: Some(certs.key.clone()),
        key_password: None,
    };
    let with = |tls: Tls| ZooKeeperConfig { tls: Some(tls), ..config(&zookeeper) };
    let acls = vec![("CN=root".to_owned(), vec![Right::All])];
    let me = backend(ZooKeeperConfig { acls, ..with(right.clone()) }, "a", TIMING);
    me.acquire_leader(soon()).await.expect("both certificates");
    me.write_member(&MemberData::default(), soon()).await.expect("both certificates");
    let inside =
        Tls { cert: Some(certs.cert.with_file_name("leaf.pem")), key: None, ..right.clone() };
    let view = backend(with(inside), "b", TIMING).load(Freshness::Latest, soon()).await;
    assert_eq!(view.expect("the key is in the certificate's file").members.len(), 1);

    let key_password = |password: &str| Some(password.to_owned());
    let locked = Tls {
        key: Some(certs.locked_key("dummy-key")),
        key_password: key_password("dummy-key"),
        ..right.clone()
    };
    let view = backend(with(locked.clone()), "b", TIMING).load(Freshness::Latest, soon()).await;
    assert_eq!(view.expect("the key has a password").members.len(), 1);
    let wrong = Tls { key_password: key_password("another"), ..locked };
    let answer = backend(with(wrong), "b", TIMING).load(Freshness::Latest, short()).await;
    let Err(DcsError::NotRetriable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("locked.key: the password does not open the key"), "{why}");

    let plain = ZooKeeperConfig { hosts: zookeeper.plain_hosts(), ..ZooKeeperConfig::default() };
    let stranger = backend(plain, "c", TIMING);
    let refused = stranger.load(Freshness::Latest, soon()).await;
    assert!(matches!(refused, Err(DcsError::Refused { .. })), "{refused:?}");
    let refused = stranger.renew_leader(soon()).await;
    assert!(matches!(refused, Err(DcsError::Refused { .. })), "{refused:?}");

    both_sides_are_looked_at(certs, |Shown { cacert, cert, key }| {
        let shown = Tls { cacert, cert, key, ..right.clone() };
        backend(with(shown), "a", TIMING)
    })
    .await;
}

/// Proves CFG-323 and CFG-424: who shows the credential may, who does not is refused, which says
/// nothing about the lock; also on the connection after a restart of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_is_shown() {
    use hathi_test_support::StoreServers;
    let mut zookeeper = ZooKeeper::start(ZooKeeperOptions::new(1)).await;
    // The digest of bob:secret, as ZooKeeper keeps it.
    let principal = "digest:bob:fyVmFCwVbTJYrznoSu1koqYEYF0=".to_owned();
    let bob = ZooKeeperConfig {
        auth: vec![("digest".to_owned(), "bob:secret".to_owned())],
        acls: vec![(principal, vec![Right::All])],
        ..config(&zookeeper)
    };
    let me = backend(bob, "a", TIMING);
    me.acquire_leader(soon()).await.expect("it may");
    let stranger = backend(config(&zookeeper), "b", TIMING);
    let refused = stranger.acquire_leader(soon()).await;
    assert!(matches!(refused, Err(DcsError::Refused { .. })), "{refused:?}");
    zookeeper.kill_all();
    zookeeper.start_all();
    zookeeper.ready().await;
    me.renew_leader(Deadline::in_ms(15_000)).await.expect("it may again");
    let client = client(&zookeeper).await;
    let read = client.get_data("/service/batman/leader").await;
    assert!(read.is_err(), "{read:?}");
}

/// Proves DCS-142: a server that takes nothing but SASL is refused with a line that says so, and that says
/// nothing about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_sasl_is_named() {
    let options = ZooKeeperOptions { sasl: true, ..ZooKeeperOptions::new(1) };
    let zookeeper = ZooKeeper::start(options).await;
    let me = backend(config(&zookeeper), "a", TIMING);
    for answer in [
        me.load(Freshness::Latest, short()).await.map(drop),
        me.renew_leader(short()).await,
        me.acquire_leader(short()).await,
    ] {
        let Err(DcsError::Refused { why, .. }) = answer else { panic!("{answer:?}") };
        assert!(why.contains("no auth_data") && why.contains("SASL is not spoken"), "{why}");
    }
}
