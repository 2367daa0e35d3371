//! Clients that mean harm, many at once: what they cost the others. The numbers of REST-451 with room
//! for a busy machine; `scripts/bench` measures them.

use super::{PATIENCE, Served, Talk, primary, replica};
use crate::api::{Order, RestConfig, Snapshot};
use crate::ha::manual::Answer;
use hathi_test_support::certs::Certs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// More than the server keeps, and than a load balancer ever opens.
const MANY: usize = 2000;
/// REST-451 says 10 ms; a debug build on a shared machine gets ten times as much.
const QUICK: Duration = Duration::from_millis(100);

/// Opens many connections and sends this on each; they stay open.
async fn crowd(address: SocketAddr, sends: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..MANY {
        let mut stream = TcpStream::connect(address).await.expect("accepted");
        // Who was dropped already to make room for the others cannot send.
        let _ = stream.write_all(sends).await;
        crowd.push(stream);
    }
    crowd
}

/// Half of the answers come sooner than this; each comes at all.
async fn median(served: &Served, target: &str) -> Duration {
    let mut times = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(served.get(target).await.status, 200, "{target}");
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// Proves REST-320 (do better), REST-451: thousands who say nothing, half of a header, half of a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_crowd_keeps_nobody_out() {
    let served = Served::new(primary()).await;
    for (what, sends) in [
        ("nothing", b"".as_slice()),
        ("half a header", b"GET /primary HTTP/1.1\r\nHost: x\r\nX-A: "),
        ("half a body", b"PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"),
        (
            "half a large body",
            b"PUT /config HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n{",
        ),
        ("half a failsafe call", b"POST /failsafe HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"),
    ] {
        let crowd = crowd(served.address, sends).await;
        let took = median(&served, "/primary").await;
        assert!(took < QUICK, "{what}: {took:?}");
        drop(crowd);
    }
    let metrics = served.get("/metrics").await.body;
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).expect("a sample");
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    assert!(value("hathi_rest_open_connections{") <= 512, "{metrics}");
    assert!(value("hathi_rest_dropped_connections_total{") > 1000, "{metrics}");
}

/// Proves REST-451, REST-363 (the handshake): thousands who connect to https and say nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_keep_nobody_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let mut config = RestConfig::on("127.0.0.1:0");
    config.certfile = Some(certs.cert.clone());
    config.keyfile = Some(certs.key.clone());
    config.unix_socket = Some(dir.path().join("api.sock"));
    let served = Served::with(config, primary()).await;
    // The first bytes of a handshake, and no more.
    let crowd = crowd(served.address, &[0x16, 3, 1, 2, 0]).await;
    let url = format!("https://127.0.0.1:{}/primary", served.address.port());
    let settings = crate::agent::peers::ClientSettings::default();
    let client = crate::agent::peers::HttpClient::new(&settings).expect("a client");
    let mut times = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        let answer = client.get(&url, hathi_dcs::Deadline::in_ms(20_000)).await;
        assert_eq!(answer.expect("an answer").status, 200);
        times.push(started.elapsed());
    }
    times.sort();
    // Two handshakes' work in a debug build are in it.
    assert!(times[10] < 5 * QUICK, "{times:?}");
    drop(crowd);
}

/// Proves REST-451, REST-363 (the write): who asks for much and reads none of it is given up, and
/// keeps nobody out meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_keep_nobody_out() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.request_timeout = Duration::from_millis(500);
    config.max_connections = 100;
    let served = Served::with(config, primary()).await;
    let ask = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(served.address).await.expect("accepted");
        let (reader, mut writer) = stream.into_split();
        let ask = ask.clone();
        // It may never get all of it sent: the server stops reading when nobody reads its answers.
        let asking = tokio::spawn(async move {
            let _ = writer.write_all(&ask).await;
            writer
        });
        slow.push((reader, asking));
    }
    let took = median(&served, "/primary").await;
    assert!(took < QUICK, "{took:?}");
    let is_given_up = async |served: &Served| {
        let metrics = served.get("/metrics").await.body;
        let open =
            metrics.lines().find_map(|line| line.strip_prefix("hathi_rest_open_connections{"));
        open.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).is_some_and(|n| n <= 2)
    };
    let until = Instant::now() + PATIENCE;
    while !is_given_up(&served).await {
        assert!(Instant::now() < until, "they are still there");
    }
    drop(slow);
}

/// Proves REST-450, REST-323 (do better): none of them holds up the end of the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crowd_holds_up_the_end() {
    let mut served = Served::new(primary()).await;
    let mut crowds = Vec::new();
    for sends in [
        b"".as_slice(),
        b"GET /primary HTTP/1.1\r\nX-A: ",
        b"PATCH /config HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
    ] {
        crowds.push(crowd(served.address, sends).await);
    }
    let started = Instant::now();
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

/// Proves REST-324 (do better), REST-451: orders that wait for the agent take no place from readers,
/// nor without bound from other orders; what is refused was not done.
#[tokio::test]
async fn waiting_orders_take_no_place_from_readers() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.max_connections = 40;
    let mut served = Served::with(config, primary()).await;
    let body = r#"{"leader":"a"}"#;
    let request = format!(
        "POST /switchover HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (mut waiting, mut replies) = (Vec::new(), Vec::new());
    loop {
        let mut talk = served.connect().await;
        talk.stream.write_all(request.as_bytes()).await.expect("sent");
        tokio::select! {
            order = served.orders.recv() => match order {
                Some(Order::Manual { reply, .. }) => {
                    waiting.push(talk);
                    replies.push(reply);
                }
                other => panic!("{other:?}"),
            },
            refused = talk.read("POST") => {
                let refused = refused.expect("an answer");
                assert_eq!(refused.status, 503);
                assert!(refused.body.contains("nothing was done"), "{}", refused.body);
                break;
            }
        }
        assert!(waiting.len() < 40, "no bound");
    }
    assert!(waiting.len() >= 16, "{} at once", waiting.len());
    for _ in 0..100 {
        assert_eq!(served.get("/primary").await.status, 200);
    }
    replies.pop().expect("one").send(Answer::new(200, "done")).expect("it waits");
    let done = waiting.pop().expect("one").read("POST").await.expect("an answer");
    assert_eq!((done.status, done.body.as_str()), (200, "done"), "it kept its place");
}

/// Proves REST-451 (readers that wait for a look at a frozen PostgreSQL): the latest ones are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_postgresql_keep_nobody_out() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.max_connections = 32;
    let served = Served::with(config, primary()).await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(served.address).await.expect("accepted");
        let _ = stream.write_all(b"GET /patroni HTTP/1.1\r\nHost: x\r\n\r\n").await;
        crowd.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(served.get("/primary").await.status, 200);
    }
    assert_eq!(served.get("/patroni").await.status, 200);
}

/// Proves REST-451: a promise for a primary without its store is given while a crowd does its worst.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failsafe_calls_get_through() {
    let served = Served::new(Snapshot { failsafe_mode: true, ..replica() }).await;
    let crowd =
        crowd(served.address, b"POST /failsafe HTTP/1.1\r\nContent-Length: 99\r\n\r\n{").await;
    let call = r#"{"name":"a","conn_url":"x","api_url":"http://x/patroni"}"#;
    let mut times = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        let reply = served.send("POST", "/failsafe", call).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "Accepted"));
        times.push(started.elapsed());
    }
    times.sort();
    assert!(times[25] < QUICK, "{times:?}");
    drop(crowd);
}

/// Proves REST-007, REST-467, REST-011 (do better): limits on header, number of headers and body, each
/// with an answer, and the server as before.
#[tokio::test]
async fn everything_has_a_limit() {
    let served = Served::new(primary()).await;
    for (bytes, codes) in [
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), [414, 431]),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300_000)), [431, 431]),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200)), [431, 431]),
        ("PUT /config HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n".to_owned(), [413, 413]),
        (format!("PUT /config HTTP/1.1\r\nContent-Length: {}\r\n\r\n", u64::MAX), [413, 431]),
        (
            "PUT /config HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n".to_owned(),
            [400, 413],
        ),
        ("PUT /config HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(), [400, 400]),
    ] {
        let mut talk = Talk::new(TcpStream::connect(served.address).await.expect("accepted"));
        let _ = talk.stream.write_all(bytes.as_bytes()).await;
        let mut first = vec![0; 64];
        let read = tokio::time::timeout(PATIENCE, talk.stream.read(&mut first)).await;
        // Who is still sending when it is refused may see a reset instead.
        if let Ok(Ok(n)) = read
            && n > 12
        {
            let line = String::from_utf8_lossy(&first[..n]).into_owned();
            let code: u16 = line[9..12].parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(codes.contains(&code), "{line} for {bytes:.60}");
        }
    }
    assert_eq!(served.get("/primary").await.status, 200);
}
