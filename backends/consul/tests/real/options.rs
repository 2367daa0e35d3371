//! Tokens, certificates, and a server's own minimum for sessions.

use crate::harness::{TIMING, backend, config};
use hathi_consul::ConsulConfig;
use hathi_dcs::conformance::certificates::{Shown, both_sides_are_looked_at};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Dcs, DcsError, Freshness};
use hathi_test_support::{Consul, ConsulOptions};
use std::time::Duration;

const TOKEN: &str = "3f1b7a70-0f3b-4d0e-9d34-0d2d2c1d9e11";

/// Proves DCS-041 and DCS-124: without the right token every call is refused, which says nothing
/// about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_sent_and_a_wrong_one_is_refused() {
    let options =
        ConsulOptions { members: 1, token: Some(TOKEN.into()), ..ConsulOptions::default() };
    let consul = Consul::start(options).await;
    let good = ConsulConfig { token: Some(TOKEN.into()), ..config(&consul) };
    let owner = backend(good, "a", TIMING);
    owner.acquire_leader(soon()).await.expect("the token may");
    owner.renew_leader(soon()).await.expect("and again");
    let bad = ConsulConfig {
        token: Some("00000000-0000-4000-8000-000000000000".into()),
        ..config(&consul)
    };
    let stranger = backend(bad, "b", TIMING);
    let refused = stranger.acquire_leader(soon()).await;
    assert!(matches!(refused, Err(DcsError::Refused { .. })), "{refused:?}");
}

/// Proves DCS-040: ten seconds is the least Consul allows, a shorter ttl is served with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_minimum_is_adopted() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let timing = hathi_dcs::Timing { ttl: 5, ..TIMING };
    let owner = backend(config(&consul), "a", timing);
    owner.acquire_leader(soon()).await.expect("with a longer session");
    let listed = consul.request("GET", "/v1/session/list", None).await.expect("a list").json();
    let ttls: Vec<_> = listed.as_array().expect("a list").iter().map(|s| &s["TTL"]).collect();
    assert_eq!(ttls, ["10.0s"], "{listed}");
}

/// Proves CFG-311: the server's certificate is verified, and a client's certificate is shown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    let options = ConsulOptions { members: 1, tls: true, ..ConsulOptions::default() };
    let consul = Consul::start(options).await;
    let certs = consul.certs.as_ref().expect("made with it");
    let with = |shown: Shown| {
        let Shown { cacert, cert, key } = shown;
        ConsulConfig { https: true, cacert, cert, key, ..config(&consul) }
    };
    both_sides_are_looked_at(certs, |shown| backend(with(shown), "a", TIMING)).await;

    let (cert, key) = (Some(certs.cert.clone()), Some(certs.key.clone()));
    let unverified = ConsulConfig { verify: false, ..with(Shown { cacert: None, cert, key }) };
    backend(unverified, "a", TIMING).load(Freshness::Latest, soon()).await.expect("not verified");
}

/// Proves DCS-110: the session in the store is the one Patroni makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_is_patronis() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let timing = hathi_dcs::Timing { ttl: 30, loop_wait: 10, retry_timeout: 10 };
    let me = backend(config(&consul), "alpha", timing);
    me.acquire_leader(soon()).await.expect("free");
    let listed = consul.request("GET", "/v1/session/list", None).await.expect("a list").json();
    let session = &listed[0];
    assert_eq!(session["Name"], "batman-alpha");
    assert_eq!(session["TTL"], "15.0s");
    assert_eq!(session["Behavior"], "delete");
    assert_eq!(session["LockDelay"], Duration::from_millis(1).as_nanos() as u64);
    assert!(session["NodeChecks"].as_array().is_none_or(Vec::is_empty), "{session}");
    let leader = consul.request("GET", "/v1/kv/service/batman/leader", None).await.expect("it");
    assert_eq!(leader.json()[0]["Session"], session["ID"]);
}
