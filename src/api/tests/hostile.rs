//! Clients that mean harm, many at once, and the others get their answers while they are there: nobody
//! among them has run out of time, and there are more of them than places. What they cost in
//! milliseconds: `scripts/bench --part http`.

use super::{PATIENCE, Served, Talk, primary, replica};
use crate::api::{Order, RestConfig, Snapshot};
use crate::ha::manual::Answer;
use hathi_test_support::certs::Certs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// More than the server keeps, and than a load balancer ever opens.
const MANY: usize = 2000;
/// What each of a crowd gets before it is given up: longer than any test takes.
const THEIR_TIME: Duration = Duration::from_secs(600);

/// A server that nobody who is slow leaves by himself.
fn patient() -> RestConfig {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.request_timeout = THEIR_TIME;
    config.handshake_timeout = THEIR_TIME;
    config
}

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

/// All of them come before any of the crowd is given up.
async fn answers_come(served: &Served, target: &str, what: &str) {
    let asking = async {
        for _ in 0..50 {
            assert_eq!(served.get(target).await.status, 200, "{what}: {target}");
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, asking).await.is_ok(),
        "{what}: {target} waits for them"
    );
}

const OPEN: &str = "hathi_rest_open_connections{";

/// Waits until one of the server's own numbers is such; a page of them may be a moment old.
async fn comes_to(served: &Served, name: &str, wanted: impl Fn(u64) -> bool) {
    let until = Instant::now() + PATIENCE;
    let mut is = number(served, name).await;
    while !wanted(is) {
        assert!(Instant::now() < until, "{name} is {is}");
        is = number(served, name).await;
    }
}

/// One of the server's own numbers.
async fn number(served: &Served, name: &str) -> u64 {
    let metrics = served.get("/metrics").await.body;
    let line = metrics.lines().find(|line| line.starts_with(name)).expect("a sample");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// Proves REST-320 (do better), REST-451: thousands who say nothing, half of a header, half of a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_crowd_keeps_nobody_out() {
    // One that reads the body of a failsafe call.
    let served = Served::with(patient(), Snapshot { failsafe_mode: true, ..replica() }).await;
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
        answers_come(&served, "/replica", what).await;
        comes_to(&served, OPEN, |held| (400..=512).contains(&held)).await;
        drop(crowd);
    }
    comes_to(&served, "hathi_rest_dropped_connections_total{", |dropped| dropped > 1000).await;
}

/// Proves REST-451, REST-363 (the handshake): thousands who connect to https and say half of a ClientHello,
/// or nothing, over TCP alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_handshakes_keep_nobody_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let mut config = patient();
    config.certfile = Some(certs.cert.clone());
    config.keyfile = Some(certs.key.clone());
    let served = Served::with(config, primary()).await;
    // A record of 512 bytes is announced, a ClientHello of 508 begins, and no more comes.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend([7; 100]);
    let crowds = [crowd(served.address, b"").await, crowd(served.address, &hello).await];
    let url = format!("https://127.0.0.1:{}/primary", served.address.port());
    let settings = crate::agent::peers::ClientSettings::default();
    let client = crate::agent::peers::HttpClient::new(&settings).expect("a client");
    for _ in 0..20 {
        let answer = client.get(&url, hathi_dcs::Deadline::in_ms(20_000)).await;
        assert_eq!(answer.expect("an answer").status, 200);
    }
    let metrics = url.replace("/primary", "/metrics");
    let page = client.get(&metrics, hathi_dcs::Deadline::in_ms(20_000)).await.expect("an answer");
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let held = page.lines().find_map(|line| line.strip_prefix("hathi_rest_open_connections{"));
    let held = held.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(held.is_some_and(|held| held > 400), "they are held meanwhile: {held:?}");
    drop(crowds);
}

/// Proves REST-363 (the handshake): who does not end it in its time is let go.
#[tokio::test]
async fn stalled_handshakes_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let certs = Certs::make(dir.path());
    let mut config = patient();
    config.handshake_timeout = Duration::from_millis(100);
    config.certfile = Some(certs.cert.clone());
    config.keyfile = Some(certs.key.clone());
    let served = Served::with(config, primary()).await;
    for sends in [b"".as_slice(), &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]] {
        let mut talk = served.connect().await;
        talk.stream.write_all(sends).await.expect("sent");
        assert!(talk.is_closed().await, "{} bytes", sends.len());
    }
}

/// Proves REST-451: who asks for much at once and reads none of it keeps nobody out; the server makes no
/// more of it than fits on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_keep_nobody_out() {
    let mut config = patient();
    config.max_connections = 100;
    let served = Served::with(config, primary()).await;
    let slow = slow_readers(&served, 80).await;
    answers_come(&served, "/primary", "slow readers").await;
    comes_to(&served, OPEN, |held| held > 80).await;
    // All of them come to a stop, with 160,000 pages asked for.
    let made =
        "hathi_rest_answers_total{scope=\"demo\",name=\"a\",endpoint=\"metrics\",code=\"200\"}";
    let until = Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        // Each page is a new one.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = number(&served, made).await;
        // One is our own question.
        if now <= before + 1 {
            break;
        }
        before = now;
        assert!(Instant::now() < until, "{now} pages, and more are made");
    }
    assert!(before < 80 * 400, "{before} pages for nobody");
    drop(slow);
}

/// Proves REST-363 (the write): they are given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_are_given_up() {
    let mut config = patient();
    config.request_timeout = Duration::from_millis(500);
    let served = Served::with(config, primary()).await;
    let slow = slow_readers(&served, 20).await;
    comes_to(&served, OPEN, |held| held <= 2).await;
    drop(slow);
}

/// Proves REST-451: who asks ahead of the answers, and reads them, gets all of them, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_ahead_is_allowed() {
    let served = Served::with(patient(), primary()).await;
    let mut talk = served.connect().await;
    let two = b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\nGET /replica HTTP/1.1\r\nHost: x\r\n\r\n";
    talk.stream.write_all(&two.repeat(100)).await.expect("sent");
    for _ in 0..100 {
        assert_eq!(talk.read("GET").await.expect("an answer").status, 200);
        assert_eq!(talk.read("GET").await.expect("an answer").status, 503);
    }
}

/// A reading half that is not read, and what goes on asking.
type SlowReader = (OwnedReadHalf, JoinHandle<OwnedWriteHalf>);

/// So many, each asking for two thousand pages.
async fn slow_readers(served: &Served, many: usize) -> Vec<SlowReader> {
    let ask = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let mut slow = Vec::new();
    for _ in 0..many {
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
    slow
}

/// Proves REST-450, REST-323 (do better): none of them holds up the end of the agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crowd_holds_up_the_end() {
    let mut served = Served::with(patient(), primary()).await;
    let mut crowds = Vec::new();
    for sends in [
        b"".as_slice(),
        b"GET /primary HTTP/1.1\r\nX-A: ",
        b"PATCH /config HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
    ] {
        crowds.push(crowd(served.address, sends).await);
    }
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
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
    let mut config = patient();
    config.max_connections = 32;
    let long_ago = hathi_dcs::boottime().minus(60_000);
    let served = Served::with(config, Snapshot { observed_at: long_ago, ..primary() }).await;
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
    let served = Served::with(patient(), Snapshot { failsafe_mode: true, ..replica() }).await;
    let crowd =
        crowd(served.address, b"POST /failsafe HTTP/1.1\r\nContent-Length: 99\r\n\r\n{").await;
    let call = r#"{"name":"a","conn_url":"x","api_url":"http://x/patroni"}"#;
    let calling = async {
        for _ in 0..50 {
            let reply = served.send("POST", "/failsafe", call).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, "Accepted"));
        }
    };
    assert!(tokio::time::timeout(PATIENCE, calling).await.is_ok(), "the calls wait for the crowd");
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
