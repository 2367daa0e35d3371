//! `/primary` on a new connection each time, while a crowd holds this node's API.

use crate::load::{self, LATE, Load, Outcome, thread_cpu};
use hathi_test_support::Cluster;
use hathi_test_support::certs::Certs;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections an attacker opens and holds.
const CROWD: usize = 3000;
/// Who cannot get in for so long does not get in.
const SETTLED: Duration = Duration::from_secs(30);

/// Connects as often as the server lets it, within some seconds.
fn gather(to: SocketAddr, sends: &[u8]) -> Vec<TcpStream> {
    let end = Instant::now() + Duration::from_secs(5);
    let mut crowd = Vec::new();
    while crowd.len() < CROWD && Instant::now() < end {
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(sends);
            crowd.push(stream);
        }
    }
    crowd
}

/// As many files as are allowed: the crowd's ends are ours.
fn allow_a_crowd() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, wanted).expect("as many files as are allowed");
}

/// Hands the outcomes to `add`, by the kind of the crowd.
pub async fn all(
    cluster: &Cluster,
    rounds: usize,
    lasts: Duration,
    mut add: impl FnMut(&'static str, Outcome),
) {
    allow_a_crowd();
    let to = cluster.nodes[0].rest();
    let much = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50);
    for (what, sends) in [
        ("silence", b"".as_slice()),
        ("half a header", b"GET /primary HTTP/1.1\r\nHost: a\r\nX-A: "),
        ("half a body", b"PATCH /config HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"),
        ("50 pages of metrics not read", &much),
    ] {
        let sends = sends.to_vec();
        let crowd = tokio::task::spawn_blocking(move || gather(to, &sends));
        let crowd = crowd.await.expect("a crowd");
        for _ in 0..rounds {
            let load = Load { paths: &["/primary"], connections: 1, keep: false, lasts };
            let run = tokio::task::spawn_blocking(move || load::run(to, load));
            add(what, run.await.expect("the client ends").expect("sockets"));
        }
        drop(crowd);
    }
    stalled_handshakes(cluster, rounds, lasts, add).await;
}

/// The same over TLS, each time with a whole handshake, behind those who sent half of a ClientHello. The
/// node speaks TLS from here on.
async fn stalled_handshakes(
    cluster: &Cluster,
    rounds: usize,
    lasts: Duration,
    mut add: impl FnMut(&'static str, Outcome),
) {
    let to = cluster.nodes[0].rest();
    let certs = Certs::make(&cluster.nodes[0].dir);
    cluster.change_file(0, |file| {
        file["restapi"]["certfile"] = certs.cert.display().to_string().into();
        file["restapi"]["keyfile"] = certs.key.display().to_string().into();
    });
    let client = Arc::new(client(&certs));
    let run = tokio::task::spawn_blocking(move || {
        let end = Instant::now() + SETTLED;
        while let Err(why) = ask(to, &client) {
            assert!(Instant::now() < end, "no TLS: {why}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let alone: Vec<Outcome> = (0..rounds).map(|_| ask_for(to, &client, lasts)).collect();
        let crowd = gather(to, &half_a_client_hello());
        let behind: Vec<Outcome> = (0..rounds).map(|_| ask_for(to, &client, lasts)).collect();
        drop(crowd);
        (alone, behind)
    });
    let (alone, behind) = run.await.expect("the client ends");
    alone.into_iter().for_each(|one| add("(nobody, but over TLS)", one));
    behind.into_iter().for_each(|one| add("half a ClientHello, over TLS", one));
}

/// A record that announces more than follows, and the begin of a ClientHello in it.
fn half_a_client_hello() -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    bytes.extend([7; 100]);
    bytes
}

fn client(certs: &Certs) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&certs.ca).expect("the CA's file") {
        roots.add(certificate.expect("a certificate")).expect("a CA");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each request pays for the whole handshake.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn ask_for(to: SocketAddr, client: &Arc<ClientConfig>, lasts: Duration) -> Outcome {
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut outcome = Outcome::default();
    let mut times = Vec::new();
    while began.elapsed() < lasts {
        let since = Instant::now();
        match ask(to, client) {
            Ok(code) if since.elapsed() <= LATE => {
                times.push(since.elapsed());
                outcome.count(code.as_bytes());
            }
            Ok(_) | Err(_) => outcome.late += 1,
        }
    }
    outcome.finish(times, lasts);
    outcome.client_cpu = thread_cpu() - cpu;
    outcome
}

/// One request on a connection of its own; the code of its answer.
fn ask(to: SocketAddr, client: &Arc<ClientConfig>) -> io::Result<String> {
    let name = ServerName::IpAddress(IpAddr::from(to.ip()));
    let session = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&to, LATE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(LATE))?;
    socket.set_write_timeout(Some(LATE))?;
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(b"GET /primary HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // Patroni's end comes without a goodbye.
    match stream.read_to_end(&mut answer) {
        Err(why) if answer.is_empty() => return Err(why),
        Ok(_) | Err(_) => {}
    }
    let code = answer.get(9..12).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(String::from_utf8_lossy(code).into_owned())
}
