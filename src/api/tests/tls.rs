//! https: who gets in with which certificate. (REST-293 … REST-310)

use super::{PATIENCE, Reply, Served, Talk, primary};
use crate::agent::peers::{ClientSettings, HttpClient};
use crate::api::{RestConfig, Server, VerifyClient};
use hathi_dcs::Deadline;
use hathi_test_support::certs::Certs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn config(certs: &Certs, verify_client: VerifyClient) -> RestConfig {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.certfile = Some(certs.cert.clone());
    config.keyfile = Some(certs.key.clone());
    config.cafile = Some(certs.ca.clone());
    config.verify_client = verify_client;
    config.https_extra_headers = vec![("Strict-Transport-Security".into(), "max-age=1".into())];
    config
}

/// A client that trusts `ca` and shows the certificate of `shows`.
fn connector(ca: &Certs, shows: Option<&Certs>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&ca.ca).expect("a CA") {
        roots.add(certificate.expect("a certificate")).expect("a usable CA");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match shows {
        None => builder.with_no_client_auth(),
        Some(certs) => {
            let chain: Vec<_> = CertificateDer::pem_file_iter(&certs.cert)
                .expect("a certificate")
                .map(|certificate| certificate.expect("a certificate"))
                .collect();
            let key = PrivateKeyDer::from_pem_file(&certs.key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("they fit")
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// `None`: the handshake failed or the connection was closed.
async fn ask(served: &Served, tls: &TlsConnector, method: &str, path: &str) -> Option<Reply> {
    let tcp = TcpStream::connect(served.address).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = tls.connect(name, tcp).await.ok()?;
    Talk::new(stream).ask(method, path, "", b"").await
}

/// Proves REST-277, REST-307, REST-308, REST-309, REST-302 (the extra headers of https).
#[tokio::test]
async fn certificates_open_doors() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = Certs::make(dir.path());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let theirs = Certs::make(elsewhere.path());
    for (verify, get, post, get_with, post_with, get_other) in [
        (VerifyClient::None, Some(200), Some(202), Some(200), Some(202), Some(200)),
        (VerifyClient::Optional, Some(200), Some(403), Some(200), Some(202), None),
        (VerifyClient::Required, None, None, Some(200), Some(202), None),
    ] {
        let served = Served::with(config(&ours, verify), primary()).await;
        let (nothing, right, other) = (
            connector(&ours, None),
            connector(&ours, Some(&ours)),
            connector(&ours, Some(&theirs)),
        );
        for (tls, method, path, expected) in [
            (&nothing, "GET", "/primary", get),
            (&nothing, "POST", "/sigterm", post),
            (&right, "GET", "/primary", get_with),
            (&right, "POST", "/sigterm", post_with),
            (&other, "GET", "/primary", get_other),
        ] {
            let reply = ask(&served, tls, method, path).await;
            assert_eq!(reply.as_ref().map(|reply| reply.status), expected, "{verify:?} {method}");
            if let Some(reply) = reply {
                assert_eq!(reply.header("strict-transport-security"), Some("max-age=1"));
                assert!(reply.status != 403 || reply.body == "client certificate required");
            }
        }
    }
}

/// Proves REST-310, REST-450 (a stalled handshake does not hold up the end).
#[tokio::test]
async fn plain_http_and_stalled_handshakes_get_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let mut config = config(&certs, VerifyClient::None);
    config.handshake_timeout = Duration::from_millis(200);
    let mut served = Served::with(config, primary()).await;
    let mut plain = TcpStream::connect(served.address).await.expect("it listens");
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    // A TLS alert may come; an HTTP answer must not.
    let _ = tokio::time::timeout(PATIENCE, plain.read_to_end(&mut answer)).await.expect("closed");
    assert!(!answer.starts_with(b"HTTP"));
    assert!(served.connect().await.is_closed().await, "silence is let go");
    let _stalled = served.connect().await;
    served.stop();
    tokio::time::timeout(Duration::from_secs(5), &mut served.running)
        .await
        .expect("ends")
        .expect("cleanly");
}

/// Proves REST-294: a key with a password serves https and shows itself to others, and what is wrong
/// with the password is one clear line.
#[tokio::test]
async fn keys_may_have_a_password() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let locked = certs.locked_key("dummy-key");
    let mut config = config(&certs, VerifyClient::Required);
    config.keyfile = Some(locked.clone());
    config.keyfile_password = Some("dummy-key".to_owned());
    let served = Served::with(config.clone(), primary()).await;
    let url = format!("https://127.0.0.1:{}/liveness", served.address.port());
    let mut settings = ClientSettings {
        certfile: Some(certs.cert.clone()),
        keyfile: Some(locked),
        keyfile_password: Some("dummy-key".to_owned()),
        cafile: Some(certs.ca.clone()),
        ..ClientSettings::default()
    };
    let client = HttpClient::new(&settings).expect("a client");
    let answer = client.get(&url, Deadline::in_ms(10_000)).await.expect("an answer");
    assert_eq!(answer.status, 200);
    for (password, says) in [
        (None, "no password is given (restapi.keyfile_password)"),
        (Some("another"), "the password does not open the key"),
    ] {
        let password = password.map(str::to_owned);
        let wrong = RestConfig { keyfile_password: password.clone(), ..config.clone() };
        let line = Server::bind(wrong.clone()).await.expect_err("not servable").to_string();
        assert!(line.contains(says) && line.contains("locked.key"), "{line}");
        served.handle.reconfigure(wrong).await.expect_err("a reload is refused");
        settings.keyfile_password = password;
        let line = HttpClient::new(&settings).expect_err("no client").to_string();
        assert!(line.starts_with("ctl.keyfile: ") && line.contains("password"), "{line}");
    }
    let client = client.get(&url, Deadline::in_ms(10_000)).await;
    assert_eq!(client.expect("the old one stays").status, 200);
}

/// Proves REST-349: members are not verified without `ctl.certfile`; with it by the CA, not the name.
#[tokio::test]
async fn members_talk_over_https() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let theirs = Certs::make(elsewhere.path());
    let served = Served::with(config(&certs, VerifyClient::None), primary()).await;
    let url = format!("https://127.0.0.1:{}/liveness", served.address.port());
    for (certfile, cafile, works) in [
        (None, None, true),
        (Some(&certs), Some(&certs), true),
        (Some(&certs), Some(&theirs), false),
    ] {
        let settings = ClientSettings {
            certfile: certfile.map(|certs: &Certs| certs.cert.clone()),
            keyfile: certfile.map(|certs: &Certs| certs.key.clone()),
            cafile: cafile.map(|certs: &Certs| certs.ca.clone()),
            ..ClientSettings::default()
        };
        let client = HttpClient::new(&settings).expect("a client");
        let answer = client.get(&url, Deadline::in_ms(10_000)).await;
        assert_eq!(answer.is_ok_and(|answer| answer.status == 200), works, "{settings:?}");
    }
}

/// Proves REST-313 (do better), REST-461: what is wrong with the files is one clear line at the start.
#[tokio::test]
async fn broken_files_are_said_at_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let theirs = Certs::make(elsewhere.path());
    let good = config(&certs, VerifyClient::Required);
    for (config, says) in [
        (RestConfig { cafile: None, ..good.clone() }, "restapi.cafile"),
        (RestConfig { keyfile: Some(theirs.key.clone()), ..good.clone() }, "do not work together"),
        (RestConfig { keyfile: Some(certs.cert.clone()), ..good.clone() }, "restapi.keyfile"),
        (RestConfig { certfile: Some(certs.key.clone()), ..good }, "restapi.certfile"),
    ] {
        let line = Server::bind(config).await.expect_err("not servable").to_string();
        assert!(line.contains(says) && !line.contains('\n'), "{line}");
    }
}

/// Waits until the server shows a certificate that `ca` signed.
async fn shows(served: &Served, ca: &Certs) -> bool {
    let until = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < until {
        if let Some(reply) = ask(served, &connector(ca, None), "GET", "/primary").await {
            return reply.status == 200;
        }
    }
    false
}

/// Proves REST-311 (do better), REST-453: renewed files are in use without a reload, open connections
/// go on, and files that do not fit together (yet) change nothing.
#[tokio::test]
async fn renewed_certificates_are_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = Certs::make(dir.path());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let new = Certs::make(elsewhere.path());
    let mut config = config(&old, VerifyClient::None);
    config.certificate_check = Duration::from_millis(20);
    let old_ca = elsewhere.path().join("old-ca.crt");
    std::fs::copy(&old.ca, &old_ca).expect("a copy");
    let trusts_old = Certs { ca: old_ca, ..old.clone() };
    let mut served = Served::with(config.clone(), primary()).await;
    let tcp = TcpStream::connect(served.address).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector(&trusts_old, None).connect(name, tcp).await.expect("a handshake");
    let mut kept = Talk::new(stream);
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);

    // Half of a renewal: the key does not belong to the certificate that is there now.
    std::fs::copy(&new.cert, &old.cert).expect("a copy");
    tokio::time::sleep(10 * config.certificate_check).await;
    assert!(shows(&served, &trusts_old).await, "the old one stays in use");
    std::fs::copy(&new.key, &old.key).expect("a copy");
    assert!(shows(&served, &new).await, "the new one is in use");
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    assert!(ask(&served, &connector(&trusts_old, None), "GET", "/").await.is_none());

    std::fs::write(&old.cert, "nonsense").expect("a file");
    let why = served.handle.reconfigure(config).await.expect_err("no certificate").to_string();
    assert!(why.contains("restapi.certfile"), "{why}");
    assert!(shows(&served, &new).await, "a reload that fails changes nothing");
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
}

/// Proves REST-293, REST-312 (do better): from http to https and back on one port while it is in use;
/// what was open before goes on as it was.
#[tokio::test]
async fn https_comes_and_goes_by_reload() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let served = Served::new(primary()).await;
    let plain = RestConfig::on("127.0.0.1:0");
    let secured = config(&certs, VerifyClient::None);
    let mut kept = served.connect().await;
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    served.handle.reconfigure(secured).await.expect("a good configuration");
    let tls = connector(&certs, None);
    let reply = ask(&served, &tls, "GET", "/primary").await.expect("an answer over https");
    assert_eq!(reply.header("strict-transport-security"), Some("max-age=1"));
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    served.handle.reconfigure(plain).await.expect("a good configuration");
    assert_eq!(served.get("/primary").await.status, 200);
}
