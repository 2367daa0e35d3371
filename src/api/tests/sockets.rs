//! Where the server listens: families, several addresses, a socket file, and moving between them.

use super::{PATIENCE, Served, Talk, primary};
use crate::api::{Credentials, RestConfig, Server, VerifyClient};
use hathi_test_support::certs::Certs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};

/// A port that is free on every loopback address asked for below.
async fn free_port() -> u16 {
    let held = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("a free port");
    held.local_addr().expect("an address").port()
}

async fn answers(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(stream) => Talk::new(stream)
            .ask("GET", "/primary", "", b"")
            .await
            .is_some_and(|reply| reply.status == 200),
        Err(_) => false,
    }
}

/// Proves REST-290: IPv4, IPv6, several addresses, every address, a name.
#[tokio::test]
async fn every_kind_of_address_is_served() {
    let v4 = |last| Ipv4Addr::new(127, 0, 0, last);
    for (hosts, here, not_here) in [
        ("127.0.0.1", vec![v4(1).into()], vec![v4(2).into(), Ipv6Addr::LOCALHOST.into()]),
        ("[::1]", vec![Ipv6Addr::LOCALHOST.into()], vec![v4(1).into()]),
        ("::1", vec![Ipv6Addr::LOCALHOST.into()], vec![v4(1).into()]),
        (
            "127.0.0.1,127.0.0.2,::1",
            vec![v4(1).into(), v4(2).into(), Ipv6Addr::LOCALHOST.into()],
            vec![v4(3).into()],
        ),
        ("*", vec![v4(1).into(), v4(3).into(), Ipv6Addr::LOCALHOST.into()], vec![]),
        ("", vec![v4(1).into(), Ipv6Addr::LOCALHOST.into()], vec![]),
        ("localhost", vec![v4(1).into()], vec![v4(2).into()]),
    ] {
        let port = free_port().await;
        let mut served = Served::with(RestConfig::on(format!("{hosts}:{port}")), primary()).await;
        for host in here {
            assert!(answers(SocketAddr::new(host, port)).await, "{hosts}: {host}");
        }
        for host in not_here {
            assert!(!answers(SocketAddr::new(host, port)).await, "{hosts}: {host}");
        }
        served.stop();
        tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
    }
}

/// Proves REST-304 and REST-401: hundreds who come at one moment, before the first is accepted, find room
/// in the queue. Who does not is tried again by his kernel a second later.
#[tokio::test]
async fn a_crowd_finds_room_in_the_queue() {
    let server = Server::bind(RestConfig::on("127.0.0.1:0")).await.expect("a free port");
    let address = server.addresses()[0];
    let coming = (0..600).map(|_| TcpStream::connect(address));
    let come = tokio::time::timeout(PATIENCE, futures::future::join_all(coming)).await;
    assert!(come.expect("no queue that is full").iter().all(Result::is_ok));
}

/// Proves REST-453: from one address of a port to all of it and back; and when another address of that
/// port cannot be had, the old one is served again.
#[tokio::test]
async fn it_moves_within_its_port() {
    let port = free_port().await;
    let at = |host: &str| RestConfig::on(format!("{host}:{port}"));
    let served = Served::with(at("127.0.0.1"), primary()).await;
    let other = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
    assert!(!answers(other).await);
    served.handle.reconfigure(at("*")).await.expect("it moves");
    assert!(answers(other).await && answers(served.address).await);
    let why = served.handle.reconfigure(at("127.0.0.1,192.0.2.1")).await.expect_err("not ours");
    assert!(why.to_string().contains("192.0.2.1"), "{why}");
    assert!(answers(other).await && answers(served.address).await, "as it was");
    served.handle.reconfigure(at("127.0.0.2")).await.expect("it moves");
    assert!(answers(other).await && !answers(served.address).await);
}

/// Proves REST-315: the socket file is the owner's alone, needs neither address nor certificate, asks
/// for the password, comes and goes with a reload, replaces a dead agent's and never a living one's.
#[tokio::test]
async fn a_socket_file_for_this_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let path = dir.path().join("api.sock");
    let mut config = RestConfig::on("127.0.0.1:0");
    config.unix_socket = Some(path.clone());
    config.allowlist = vec!["192.0.2.1".into()];
    config.certfile = Some(certs.cert.clone());
    config.keyfile = Some(certs.key.clone());
    config.cafile = Some(certs.ca.clone());
    config.verify_client = VerifyClient::Required;
    // What a killed agent leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let served = Served::with(config.clone(), primary()).await;
    let found = std::fs::metadata(&path).expect("the file");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let ask = async |method: &'static str, target: &'static str| {
        let stream = UnixStream::connect(&path).await.expect("it listens");
        Talk::new(stream).ask(method, target, "", b"").await.expect("an answer").status
    };
    assert_eq!(ask("GET", "/primary").await, 200);
    assert_eq!(ask("POST", "/sigterm").await, 202, "the file's rights stand for the rest");

    let second = Server::bind(config.clone()).await.expect_err("it is served").to_string();
    assert!(second.contains("restapi.unix_socket") && second.contains("already"), "{second}");
    assert_eq!(ask("GET", "/primary").await, 200);

    config.credentials = Some(Credentials { username: "u".into(), password: "p".into() });
    served.handle.reconfigure(config.clone()).await.expect("a good configuration");
    assert_eq!(ask("POST", "/sigterm").await, 401);

    let moved = dir.path().join("moved.sock");
    config.unix_socket = Some(moved.clone());
    served.handle.reconfigure(config.clone()).await.expect("it moves");
    assert!(!path.exists() && moved.exists());
    config.unix_socket = Some("/nowhere/api.sock".into());
    let why = served.handle.reconfigure(config.clone()).await.expect_err("no directory");
    assert!(why.to_string().contains("/nowhere/api.sock"), "{why}");
    assert!(moved.exists(), "as it was");
    config.unix_socket = Some(certs.key.clone());
    served.handle.reconfigure(config.clone()).await.expect_err("not over somebody's file");
    assert!(std::fs::metadata(&certs.key).expect("the key").is_file());
    config.unix_socket = None;
    served.handle.reconfigure(config).await.expect("a good configuration");
    assert!(!moved.exists(), "it goes with the socket");
}

/// Proves REST-450 (the socket file goes with the agent, idle clients or not).
#[tokio::test]
async fn the_socket_file_goes_at_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("api.sock");
    let mut config = RestConfig::on("127.0.0.1:0");
    config.unix_socket = Some(path.clone());
    let server = Server::bind(config).await.expect("a free port");
    let (_snapshots, seen) = watch::channel(std::sync::Arc::new(primary()));
    let (orders, _orders) = mpsc::channel(1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(seen, orders, async move {
        let _ = stopped.await;
    }));
    let _idle = UnixStream::connect(&path).await.expect("it listens");
    drop(stop);
    tokio::time::timeout(PATIENCE, running).await.expect("ends").expect("cleanly");
    assert!(!path.exists());
}
