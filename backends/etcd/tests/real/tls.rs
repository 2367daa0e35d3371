//! Certificates on both sides. (CFG-307)

use crate::harness::{TIMING, backend, config, install_tls};
use futures::StreamExt;
use hathi_dcs::conformance::soon;
use hathi_dcs::{Change, Dcs, DcsError, Deadline, Freshness};
use hathi_etcd::EtcdConfig;
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion};

async fn with_client_certificates(version: EtcdVersion) {
    install_tls();
    let etcd = Etcd::start_with(EtcdOptions { tls: true, ..EtcdOptions::new(version, 1) }).await;
    let certs = etcd.certs.clone().expect("made for TLS");
    let path = |path: &std::path::Path| Some(path.to_string_lossy().into_owned());
    let right = EtcdConfig {
        cacert: path(&certs.ca),
        cert: path(&certs.cert),
        key: path(&certs.key),
        ..config(&etcd)
    };
    let a = backend(right.clone(), "a", TIMING);
    a.acquire_leader(soon()).await.expect("both certificates");
    let view = a.load(Freshness::Latest, soon()).await.expect("both certificates");
    assert_eq!(view.leader_name(), Some(&"a".into()));
    assert_eq!(a.watch().next().await, Some(Change::Everything));

    let both = certs.ca.with_file_name("both.pem");
    let one = std::fs::read(&certs.key).expect("a file");
    let two = std::fs::read(&certs.cert).expect("a file");
    std::fs::write(&both, [one, two].concat()).expect("a file");
    let key_inside = EtcdConfig { cert: path(&both), key: None, ..right.clone() };
    backend(key_inside, "b", TIMING).load(Freshness::Latest, soon()).await.expect("key in cert");

    let stranger = EtcdConfig { cert: None, key: None, ..right.clone() };
    let distrust = EtcdConfig { cacert: None, ..right.clone() };
    for (what, config) in [("no client certificate", stranger), ("an unknown CA", distrust)] {
        let answer =
            backend(config, "c", TIMING).load(Freshness::Latest, Deadline::in_ms(1_500)).await;
        assert!(matches!(answer, Err(DcsError::Unreachable { .. })), "{what}: {answer:?}");
    }
    let missing = EtcdConfig { cacert: Some("/nowhere/ca.pem".into()), ..right };
    let answer = backend(missing, "d", TIMING).load(Freshness::Latest, soon()).await;
    let Err(DcsError::NotRetriable { why, .. }) = answer else { panic!("{answer:?}") };
    assert!(why.contains("/nowhere/ca.pem"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_on_34() {
    with_client_certificates(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_on_35() {
    with_client_certificates(EtcdVersion::V35).await;
}
