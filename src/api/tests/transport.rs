//! Clients that misbehave, and the end of the server.

use super::{PATIENCE, Served, Talk, primary};
use crate::api::RestConfig;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Proves REST-001 (1.0 closes), REST-451 (1.1 stays open).
#[tokio::test]
async fn old_clients_get_a_close_and_new_ones_may_stay() {
    let served = Served::new(primary()).await;
    let mut old = TcpStream::connect(served.address).await.expect("it listens");
    old.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, old.read_to_string(&mut answer))
        .await
        .expect("closed")
        .expect("read");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with('}'), "{answer}");
    let mut new = served.connect().await;
    for _ in 0..3 {
        let reply = new.ask("GET", "/primary", "", b"").await.expect("an answer");
        assert_eq!(reply.status_line, "HTTP/1.1 200 OK");
    }
}

/// Proves REST-007.
#[tokio::test]
async fn nonsense_is_refused() {
    let served = Served::new(primary()).await;
    let long_line = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000));
    let long_header = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for (bytes, codes) in [
        ("nonsense\r\n\r\n".to_owned(), vec![400]),
        ("GET / HTTP/9.1\r\n\r\n".to_owned(), vec![400, 505]),
        (long_line, vec![414, 431]),
        (long_header, vec![431]),
        (many, vec![431]),
    ] {
        let mut talk = served.connect().await;
        // It may have had enough before all is sent.
        let _ = talk.stream.write_all(bytes.as_bytes()).await;
        if let Some(reply) = talk.read("GET").await {
            assert!(codes.contains(&reply.status), "{} for {:.30}", reply.status_line, bytes);
        }
    }
    assert_eq!(served.get("/primary").await.status, 200);
}

/// Proves REST-030, REST-006, REST-457: a target that is no path is taken for one. (Found by fuzzing: warp
/// alone panics, and the client gets nothing.)
#[tokio::test]
async fn a_target_without_a_path_is_answered() {
    let served = Served::new(primary()).await;
    for (method, target, status) in [
        ("GET", "primary", 200),
        ("GET", "replica", 503),
        ("GET", "host:80", 503),
        ("HEAD", "user@host:80", 503),
        ("PATCH", "config", 411),
        ("POST", "nosuch", 501),
        ("CONNECT", "host:80", 501),
    ] {
        let reply = served.ask(method, target, "", b"").await;
        assert_eq!(reply.status, status, "{method} {target}");
    }
}

/// Proves REST-010 and REST-025 (do better), REST-363, REST-451 (deadlines): a client that sends half a request, or
/// nothing, is let go; the others do not notice.
#[tokio::test]
async fn the_slow_are_let_go() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.request_timeout = Duration::from_millis(300);
    let served = Served::with(config, primary()).await;
    let mut silent = served.connect().await;
    let mut half = served.connect().await;
    half.stream.write_all(b"GET /primary HTTP/1.1\r\nHo").await.expect("sent");
    let mut stalled = served.connect().await;
    let head = b"PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"ttl\"";
    stalled.stream.write_all(head).await.expect("sent");
    assert_eq!(served.get("/primary").await.status, 200);
    assert!(silent.is_closed().await && half.is_closed().await);
    assert_eq!(stalled.read("PATCH").await.expect("an answer").status, 408, "REST-025");
}

/// Proves REST-320 (do better), REST-451 (thousands of idle clients, 10 ms).
#[tokio::test]
async fn idle_clients_keep_nobody_out() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.max_connections = 64;
    let served = Served::with(config, primary()).await;
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(TcpStream::connect(served.address).await.expect("accepted"));
    }
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        assert_eq!(served.get("/primary").await.status, 200);
        times.push(started.elapsed());
    }
    times.sort();
    assert!(times[25] < Duration::from_millis(100), "{times:?}");
    let metrics = served.get("/metrics").await.body;
    let open = metrics.lines().find_map(|line| {
        line.strip_prefix("hathi_rest_open_connections{scope=\"demo\",name=\"a\"} ")
    });
    assert!(open.is_some_and(|open| open.parse::<u32>().is_ok_and(|open| open <= 64)), "{metrics}");
}

/// Proves REST-450, REST-323 (do better): idle clients, half-sent requests and a request that nobody
/// answers do not hold up the end.
#[tokio::test]
async fn the_end_does_not_wait_for_clients() {
    let mut served = Served::new(primary()).await;
    let mut idle = served.connect().await;
    let mut kept = served.connect().await;
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    let mut half = served.connect().await;
    half.stream.write_all(b"GET /primary HTTP/1.1\r\n").await.expect("sent");
    let mut waiting = served.connect().await;
    let body = br#"{"leader":"a"}"#;
    let head =
        format!("POST /switchover HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    waiting.stream.write_all(head.as_bytes()).await.expect("sent");
    waiting.stream.write_all(body).await.expect("sent");
    let order = served.orders.recv().await.expect("the order");
    let started = Instant::now();
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("it ends").expect("cleanly");
    let took = started.elapsed();
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert!(idle.is_closed().await && kept.is_closed().await && half.is_closed().await);
    assert!(waiting.is_closed().await);
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens");
    drop(order);
}

/// Proves REST-450: a request under way when the end begins is answered within the grace.
#[tokio::test]
async fn a_running_request_is_answered() {
    let mut served = Served::new(primary()).await;
    let mut talk: Talk<TcpStream> = served.connect().await;
    talk.stream
        .write_all(b"PATCH /config HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"ttl\":1}")
        .await
        .expect("sent");
    let order = served.orders.recv().await.expect("the order");
    served.stop();
    let crate::api::Order::PatchConfig { reply, .. } = order else { panic!("{order:?}") };
    reply.send(crate::api::ConfigOutcome::Conflict).expect("it waits");
    assert_eq!(talk.read("PATCH").await.expect("an answer").status, 409);
    (&mut served.running).await.expect("cleanly");
}

#[tokio::test]
async fn what_cannot_be_served_is_said_before_serving() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.http_extra_headers = vec![("bad name".into(), "x".into())];
    let why = crate::api::Server::bind(config).await.expect_err("a bad header").to_string();
    assert!(why.contains("bad name"), "{why}");
    let mut config = RestConfig::on("127.0.0.1:0");
    config.certfile = Some("/nowhere/server.pem".into());
    let why = crate::api::Server::bind(config).await.expect_err("no certificate").to_string();
    assert!(why.contains("restapi.certfile") && why.contains("/nowhere/server.pem"), "{why}");
}

/// Proves REST-453, REST-313, REST-314 (do better): a reload takes all of the new configuration or
/// nothing, and open connections go on.
#[tokio::test]
async fn a_reload_is_all_or_nothing() {
    let mut served = Served::new(primary()).await;
    let old = served.address;
    let mut kept = served.connect().await;
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let busy = taken.local_addr().expect("an address").to_string();
    let mut secured = RestConfig::on(busy.clone());
    secured.credentials =
        Some(crate::api::Credentials { username: "u".into(), password: "p".into() });
    let why = served.handle.reconfigure(secured.clone()).await.expect_err("the port is taken");
    assert!(why.to_string().contains("in use"), "{why}");
    assert_eq!(served.ask("POST", "/sigterm", "", b"").await.status, 202, "as it was");

    drop(taken);
    served.handle.reconfigure(secured.clone()).await.expect("it moves");
    served.address = busy.parse().expect("an address");
    assert_eq!(served.ask("POST", "/sigterm", "", b"").await.status, 401, "the new rules");
    assert_eq!(kept.ask("GET", "/primary", "", b"").await.expect("an answer").status, 200);
    assert!(TcpStream::connect(old).await.is_err(), "the old address is given up");

    secured.certfile = Some("/nowhere".into());
    let why = served.handle.reconfigure(secured).await.expect_err("no certificate");
    assert!(why.to_string().contains("/nowhere"), "{why}");
    assert_eq!(served.get("/primary").await.status, 200);
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
    let ended = served.handle.reconfigure(RestConfig::on("127.0.0.1:0")).await;
    assert!(matches!(ended, Err(crate::api::ApiError::Ended)), "{ended:?}");
}

/// Collects what is logged on this thread, with its level.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(tracing::Level, String)>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Words(String);
        impl tracing::field::Visit for Words {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut words = Words(String::new());
        event.record(&mut words);
        if let Ok(mut heard) = self.0.lock() {
            heard.push((*event.metadata().level(), words.0));
        }
    }
}

/// Proves REST-009: a request is told at debug level only, with its client and how long it took; who
/// hangs up early is no more than that either.
#[tokio::test]
async fn requests_are_told_at_debug_level() {
    use tracing_subscriber::layer::SubscriberExt;
    let heard = Heard::default();
    let registry = tracing_subscriber::registry().with(heard.clone());
    let _guard = tracing::subscriber::set_default(registry);
    let mut served = Served::new(primary()).await;
    // Whether anybody listens is remembered for each place that speaks, by whichever test came there
    // first; one that came there just now may have remembered it without us.
    let told = |heard: &Heard| {
        let heard = heard.0.lock().expect("the log");
        heard.iter().any(|(_, words)| words.contains("target=/primary?x=1"))
    };
    let asked = std::time::Instant::now();
    while !told(&heard) && asked.elapsed() < PATIENCE {
        tracing::callsite::rebuild_interest_cache();
        assert_eq!(served.get("/primary?x=1").await.status, 200);
    }
    let mut hung_up = TcpStream::connect(served.address).await.expect("it listens");
    hung_up.write_all(b"GET /primary HTTP/1.1\r\nHo").await.expect("sent");
    drop(hung_up);
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
    let heard = heard.0.lock().expect("the log").clone();
    let ours: Vec<_> = heard.iter().filter(|(_, words)| words.contains("peer=127.0.0.1")).collect();
    assert!(ours.iter().all(|(level, _)| *level >= tracing::Level::DEBUG), "{ours:?}");
    let told = ours.iter().find(|(_, words)| words.contains("target=/primary?x=1"));
    let told = told.unwrap_or_else(|| panic!("not told: {heard:?}"));
    assert!(told.1.contains("status=200") && told.1.contains("took_ms="), "{told:?}");
}
