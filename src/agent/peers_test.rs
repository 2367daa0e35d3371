use super::*;
use crate::agent::http::BODY_LIMIT;
use http::{HeaderValue, StatusCode};
use proptest::prelude::*;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn client() -> HttpClient {
    HttpClient::new(&ClientSettings::default()).expect("a client")
}

/// A server that answers one connection with these bytes; the request comes out of the task.
async fn answering(answer: Vec<u8>) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/patroni", listener.local_addr().expect("an address"));
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = vec![0; 4096];
        let n = stream.read(&mut request).await.expect("a request");
        // The client may have had enough of a long answer.
        let _ = stream.write_all(&answer).await;
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    (url, task)
}

fn http(body: &str) -> Vec<u8> {
    // As Patroni answers: HTTP/1.0, no length, closed at the end; the code does not matter.
    format!("HTTP/1.0 503 Service Unavailable\r\nServer: x\r\n\r\n{body}").into_bytes()
}

/// Proves REST-346 (what is read).
#[test]
fn a_status_document_is_read() {
    let replica = r#"{"state": "running", "role": "replica", "xlog": {"received_location": 7, "replayed_location": 9, "paused": false}, "timeline": 3, "tags": {"nofailover": true, "failover_priority": 2}, "watchdog_failed": true}"#;
    assert_eq!(
        read(replica.as_bytes()),
        Probe::Answered(PeerAnswer {
            in_recovery: true,
            lsn: Lsn(9),
            timeline: Timeline(3),
            nofailover: true,
            failover_priority: 2,
            watchdog_failed: true,
        })
    );
    let old_primary = r#"{"role": "master", "wal": {"location": 5}, "timeline": null}"#;
    let Probe::Answered(primary) = read(old_primary.as_bytes()) else { panic!("it answered") };
    assert_eq!((primary.in_recovery, primary.lsn, primary.timeline), (false, Lsn(5), Timeline(0)));
    for without in [
        r#"{"state": "stopped", "role": "replica"}"#,
        r#"{"state": "running", "xlog": 7}"#,
        r#"{"xlog": {}}"#,
        "[]",
        "",
        "<html>",
    ] {
        assert!(matches!(read(without.as_bytes()), Probe::Unreachable(_)), "{without}");
    }
}

/// Proves REST-346 (the request), REST-349 (credentials).
#[tokio::test]
async fn all_are_asked_at_once_and_the_slow_do_not_hold_up_the_fast() {
    let settings = ClientSettings {
        credentials: Some(("admin".to_owned(), "dummy-rest".to_owned())),
        ..ClientSettings::default()
    };
    let peers = HttpPeers::new(HttpClient::new(&settings).expect("a client"));
    let document =
        r#"{"role": "replica", "xlog": {"received_location": 1, "replayed_location": 1}}"#;
    let (good, asked) = answering(http(document)).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent_url = format!("http://{}/patroni", silent.local_addr().expect("an address"));
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let gone_url = format!("http://{}/patroni", gone.local_addr().expect("an address"));
    drop(gone);

    let members = vec![
        (MemberName::from("silent"), silent_url),
        (MemberName::from("gone"), gone_url),
        (MemberName::from("good"), good),
        (MemberName::from("odd"), "nonsense".to_owned()),
    ];
    let started = Instant::now();
    let mut probes = peers.probe(members, Deadline::in_ms(600));
    for _ in 0..3 {
        let (name, probe) = probes.next().await.expect("an outcome");
        assert!(started.elapsed() < Duration::from_millis(500), "{name} waited for the silent one");
        match name.as_str() {
            "good" => assert!(matches!(probe, Probe::Answered(_)), "{probe:?}"),
            "gone" => {
                let Probe::Unreachable(why) = probe else { panic!("nobody listens there") };
                assert!(why.contains("refused"), "{why}");
            }
            _ => assert!(matches!(probe, Probe::Unreachable(_)), "{probe:?}"),
        }
    }
    let (name, probe) = probes.next().await.expect("an outcome");
    assert_eq!(name.as_str(), "silent");
    assert!(matches!(probe, Probe::Unreachable(_)));
    assert!(started.elapsed() < Duration::from_secs(3), "the deadline holds");
    assert!(probes.next().await.is_none());

    let request = asked.await.expect("the server's task");
    assert!(request.starts_with("GET /patroni HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: Basic YWRtaW46ZHVtbXktcmVzdA=="), "{request}");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let (url, server) = answering(http(&"x".repeat(3 * BODY_LIMIT))).await;
    let outcome = client().get(&url, Deadline::in_ms(5000)).await;
    assert!(matches!(outcome, Err(HttpError::TooLarge { .. })), "{outcome:?}");
    server.await.expect("the server's task");
}

#[tokio::test]
async fn a_document_is_posted() {
    let (url, server) =
        answering(b"HTTP/1.1 200 OK\r\nlsn: 7\r\nContent-Length: 8\r\n\r\nAccepted".to_vec()).await;
    let url = endpoint(&url, "/failsafe").expect("a URL");
    let answer = client()
        .post(&url, &serde_json::json!({"name": "a"}), Deadline::in_ms(5000))
        .await
        .expect("an answer");
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"Accepted"[..]));
    assert_eq!(answer.headers.get("lsn").map(HeaderValue::as_bytes), Some(&b"7"[..]));
    let request = server.await.expect("the server's task");
    assert!(request.starts_with("POST /failsafe HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("content-length: 12"), "{request}");
}

/// Proves REST-347: 200 and exactly `Accepted` is a promise, with the position if one is given; anything
/// else is none.
#[tokio::test]
async fn only_accepted_is_a_promise() {
    for (answer, vow) in [
        ("200 OK\r\nlsn: 7\r\n\r\nAccepted", Ok(Some(Lsn(7)))),
        ("200 OK\r\n\r\nAccepted", Ok(None)),
        ("200 OK\r\nlsn: x\r\n\r\nAccepted", Ok(None)),
        ("200 OK\r\n\r\nAccepted!", Err(())),
        ("202 Accepted\r\n\r\nAccepted", Err(())),
        ("500 Internal Server Error\r\n\r\nRunning as a leader", Err(())),
    ] {
        let (url, server) = answering(format!("HTTP/1.0 {answer}").into_bytes()).await;
        let peers = HttpPeers::new(client());
        let call = Call::parse(
            &serde_json::json!({"name": "a", "conn_url": "x", "api_url": "http://x/patroni"})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        )
        .expect("a call");
        let asked = vec![(MemberName::from("b"), url)];
        let mut vows = peers.failsafe(asked, call, Deadline::in_ms(5000));
        let (_, got) = vows.next().await.expect("an outcome");
        match (got, vow) {
            (Vow::Accepted { lsn }, Ok(expected)) => assert_eq!(lsn, expected, "{answer}"),
            (Vow::Refused(_), Err(())) => {}
            (got, _) => panic!("{answer}: {got:?}"),
        }
        assert!(server.await.expect("the server").starts_with("POST /failsafe "));
    }
}

/// Proves REST-349 (URLs of other endpoints).
#[test]
fn other_endpoints_keep_scheme_and_host() {
    assert_eq!(
        endpoint("https://[::1]:8008/patroni", "failsafe").as_deref(),
        Some("https://[::1]:8008/failsafe")
    );
    assert_eq!(endpoint("nonsense", "x"), None);
}

#[test]
fn a_missing_certificate_is_said() {
    let settings =
        ClientSettings { certfile: Some("/nowhere/c.pem".into()), ..ClientSettings::default() };
    let why = HttpClient::new(&settings).expect_err("no such file").to_string();
    assert!(why.contains("ctl.") && !why.contains('\n'), "{why}");
}

proptest! {
    #[test]
    fn no_answer_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&body);
    }

    #[test]
    fn odd_types_do_not_panic(
        xlog in r#"(\{"location": (-1|1e99|"x"|null|7)\}|7|null|\[\])"#,
        timeline in r#"(-1|99999999999|"x"|null)"#,
        tags in r#"(\{"nofailover": ("x"|[0-9]|null)\}|\[\]|null)"#,
    ) {
        let body = format!(r#"{{"xlog": {xlog}, "timeline": {timeline}, "tags": {tags}}}"#);
        let _ = read(body.as_bytes());
    }
}
