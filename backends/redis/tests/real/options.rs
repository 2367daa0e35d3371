//! Passwords and certificates.

use crate::harness::{TIMING, backend, config};
use hathi_dcs::conformance::certificates::{Shown, both_sides_are_looked_at};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Freshness, MemberData};
use hathi_redis::{RedisConfig, Tls};
use hathi_test_support::{Redis, RedisOptions};

/// Proves DCS-207: without the right password every call is refused, which says nothing about the
/// lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_sent_and_a_wrong_one_is_refused() {
    let password = Some("secret".to_owned());
    let redis =
        Redis::start(RedisOptions { password: password.clone(), ..RedisOptions::default() });
    let redis = redis.await;
    let right = RedisConfig { password, ..config(&redis) };
    let me = backend(right, "a", TIMING);
    me.write_member(&MemberData::default(), soon()).await.expect("it may");
    for wrong in [None, Some("guess".to_owned())] {
        let stranger = RedisConfig { password: wrong, ..config(&redis) };
        let refused = backend(stranger, "b", TIMING).load(Freshness::Latest, soon()).await;
        assert!(matches!(refused, Err(DcsError::Refused { .. })), "{refused:?}");
    }
}

/// Proves CFG-410 for TLS: both sides show certificates, and both are looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    // The second one is told that there is a first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redis = Redis::start(RedisOptions { tls: true, ..RedisOptions::default() }).await;
    let certs = redis.certs.as_ref().expect("made with it");
    both_sides_are_looked_at(certs, |Shown { cacert, cert, key }| {
        let tls = Some(Tls { cacert, cert, key });
        backend(RedisConfig { tls, ..config(&redis) }, "a", TIMING)
    })
    .await;
}

/// Proves DCS-206: a server that may throw the lock away is not used, and says what to change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_evicts_is_refused() {
    let redis = Redis::start(RedisOptions::default()).await;
    let set = |words: &str| {
        let said = Redis::asks(redis.port(0), &["CONFIG", "SET", words]).expect("it obeys");
        assert!(said.starts_with("+OK"), "{said}");
    };
    set("maxmemory-policy volatile-ttl");
    let me = backend(config(&redis), "a", TIMING);
    me.write_member(&MemberData::default(), soon()).await.expect("no limit, nothing is evicted");
    set("maxmemory 100mb");
    let refused = backend(config(&redis), "b", TIMING).load(Freshness::Latest, soon()).await;
    let Err(DcsError::NotRetriable { why, .. }) = refused else { panic!("{refused:?}") };
    assert!(why.contains("volatile-ttl") && why.contains("noeviction"), "{why}");
    set("maxmemory-policy noeviction");
    let again = backend(config(&redis), "b", TIMING).load(Freshness::Latest, soon()).await;
    again.expect("it keeps what it has");
}
