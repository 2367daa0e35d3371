//! Certificates on both sides. (CFG-307)

use crate::harness::{TIMING, backend, config, install_tls};
use futures::StreamExt;
use hathi_dcs::conformance::certificates::{Shown, both_sides_are_looked_at};
use hathi_dcs::conformance::soon;
use hathi_dcs::{Change, Dcs, Freshness};
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
    let key_inside = EtcdConfig { cert: path(&both), key: None, ..right };
    backend(key_inside, "b", TIMING).load(Freshness::Latest, soon()).await.expect("key in cert");

    both_sides_are_looked_at(&certs, |Shown { cacert, cert, key }| {
        let [cacert, cert, key] = [cacert, cert, key].map(|file| file.as_deref().and_then(path));
        backend(EtcdConfig { cacert, cert, key, ..config(&etcd) }, "c", TIMING)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_on_34() {
    with_client_certificates(EtcdVersion::V34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_on_35() {
    with_client_certificates(EtcdVersion::V35).await;
}
