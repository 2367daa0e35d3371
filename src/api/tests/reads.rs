//! What readers get over the wire, and how fast the answer follows the facts.

use super::{Served, observation, primary, replica};
use crate::api::{RestConfig, ServerTokens, Snapshot};
use crate::ha::ports::Server;
use hathi_dcs::{Role, boottime};
use std::sync::Arc;
use std::time::Instant;

/// Proves REST-454, REST-032 (do better): each readable path answers GET, HEAD and OPTIONS with the same status.
#[tokio::test]
async fn get_head_and_options_share_every_route() {
    let mut snapshot = primary();
    snapshot.failsafe = hathi_dcs::Failsafe::parse(r#"{"a":"http://x/patroni"}"#);
    let served = Served::new(snapshot).await;
    for (target, status) in [
        ("/", 200),
        ("/primary", 200),
        ("/replica", 503),
        ("/liveness", 200),
        ("/readiness", 200),
        ("/patroni", 200),
        ("/cluster", 200),
        ("/history", 200),
        ("/config", 200),
        ("/failsafe", 200),
        ("/metrics", 200),
        ("/nosuchpath", 503),
        ("/patroni/x", 200),
        ("//cluster/", 200),
    ] {
        let get = served.get(target).await;
        let head = served.ask("HEAD", target, "", b"").await;
        let options = served.ask("OPTIONS", target, "", b"").await;
        assert_eq!([get.status, head.status, options.status], [status; 3], "{target}");
        assert!(head.body.is_empty() && options.body.is_empty(), "{target}");
    }
}

/// Proves REST-004 (liveness and readiness have no body), REST-003, REST-468.
#[tokio::test]
async fn answers_have_their_kind_and_length() {
    let served = Served::new(primary()).await;
    for (target, kind) in [
        ("/", Some("application/json")),
        ("/cluster", Some("application/json")),
        ("/metrics", Some("text/plain")),
        ("/liveness", None),
    ] {
        let reply = served.get(target).await;
        assert_eq!(reply.header("content-type"), kind, "{target}");
        assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    }
    assert_eq!(served.get("/liveness").await.body, "");
}

/// Proves REST-030, REST-031, REST-033.
#[tokio::test]
async fn paths_are_taken_as_sent() {
    let served = Served::new(replica()).await;
    let absolute = format!("http://{}/replica", served.address);
    for (target, status) in
        [("//replica", 200), ("/%72eplica", 503), (absolute.as_str(), 200), ("/Replica", 503)]
    {
        assert_eq!(served.get(target).await.status, status, "{target}");
    }
    assert_eq!(served.ask("OPTIONS", "*", "", b"").await.status, 503);
    let unknown = served.get("/nosuchpath").await;
    assert_eq!(unknown.json()["patroni"]["name"], "b", "the status document");
}

/// Proves REST-457, REST-322 (the store does not answer): an answer, with a text.
#[tokio::test]
async fn without_the_store_there_is_an_answer() {
    let served = Served::new(Snapshot { view: None, ..primary() }).await;
    for target in ["/cluster", "/history", "/config"] {
        let reply = served.get(target).await;
        assert_eq!((reply.status, reply.header("content-type")), (503, Some("text/html")));
        assert!(reply.body.contains("DCS"), "{}", reply.body);
    }
    assert_eq!(served.get("/").await.json()["cluster_unlocked"], true);
    let empty =
        Served::new(Snapshot { view: Some((super::view(&[]), boottime())), ..primary() }).await;
    assert_eq!(empty.get("/config").await.status, 502, "the store has none");
}

/// Proves REST-455: what changed is in the next answer, without a turn in between.
#[tokio::test]
async fn the_answer_changes_at_that_instant() {
    let served = Served::new(primary()).await;
    let mut talk = served.connect().await;
    let mut ask = async |target: &'static str| {
        talk.ask("GET", target, "", b"").await.expect("an answer").status
    };
    assert_eq!(ask("/primary").await, 200);
    let mut dead = primary();
    dead.postgres = observation(Role::Primary, Server::Down);
    served.snapshots.send_replace(Arc::new(dead));
    assert_eq!(ask("/primary").await, 503);
    served.snapshots.send_replace(Arc::new(primary()));
    assert_eq!(ask("/primary").await, 200);
    // Nobody publishes anything when a deadline passes.
    let until = boottime().plus(300);
    served.snapshots.send_replace(Arc::new(Snapshot { leader_until: Some(until), ..primary() }));
    loop {
        let before = boottime();
        let status = ask("/primary").await;
        let after = boottime();
        if after < until {
            assert_eq!(status, 200, "the lease still held");
        } else if before >= until {
            assert_eq!(status, 503, "the lease had ended");
            break;
        }
    }
}

/// Proves REST-040 (a view is valid for ttl after it was read).
#[tokio::test]
async fn a_view_ages_between_two_snapshots() {
    let mut old = primary();
    let ttl = old.timing.ttl_ms();
    let now = boottime();
    if let Some((_, read_at)) = &mut old.view {
        *read_at = now.minus(ttl).plus(400);
    }
    let served = Served::new(old).await;
    let mut talk = served.connect().await;
    let mut last = 0;
    while boottime() < now.plus(600) || last == 0 {
        last = talk.ask("GET", "/cluster", "", b"").await.expect("an answer").status;
    }
    assert_eq!(last, 503);
    assert_eq!(served.get("/").await.json()["cluster_unlocked"], true);
}

/// Proves REST-302, REST-303, REST-491.
#[tokio::test]
async fn headers_follow_the_configuration() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.server_tokens = ServerTokens::Minimal;
    config.http_extra_headers =
        vec![("X-Frame-Options".into(), "SAMEORIGIN".into()), ("X-Two".into(), "a b".into())];
    config.https_extra_headers = vec![("X-Two".into(), "tls only".into())];
    let served = Served::with(config, primary()).await;
    let normal = served.get("/health").await;
    assert_eq!(normal.header("server"), Some("Patroni/4.1.5"));
    assert_eq!(normal.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(normal.header("x-two"), Some("a b"));
    let page = served.ask("POST", "/nosuchpath", "", b"").await;
    assert_eq!((page.header("x-two"), page.header("server")), (None, Some("Patroni/4.1.5")));
    let bare = served.get("/liveness").await;
    assert_eq!((bare.header("x-two"), bare.header("server")), (None, None));
    let plain = Served::new(primary()).await;
    assert!(plain.get("/").await.header("server").is_some_and(|token| token.starts_with("hathi/")));
}

/// Proves REST-466: an unreadable lag does not limit, and is counted.
#[tokio::test]
async fn an_unreadable_lag_is_counted() {
    let served = Served::new(replica()).await;
    for _ in 0..3 {
        assert_eq!(served.get("/replica?lag=10mb").await.status, 200);
    }
    let metrics = served.get("/metrics").await.body;
    assert!(
        metrics.contains("hathi_rest_unreadable_lag_total{scope=\"demo\",name=\"b\"} 3"),
        "{metrics}"
    );
    assert!(metrics.contains("endpoint=\"health\",code=\"200\"} 3"), "{metrics}");
}

/// Proves REST-120 (as of now) where REST-469's counters may be a moment old: many who ask at one moment
/// get one page, but never one from before PostgreSQL died; and what was counted is shown soon.
#[tokio::test]
async fn a_page_of_metrics_is_made_once_a_moment() {
    let served = Served::new(primary()).await;
    let mut talk = served.connect().await;
    let mut page = async || talk.ask("GET", "/metrics", "", b"").await.expect("an answer").body;
    assert!(page().await.contains("patroni_primary{scope=\"demo\",name=\"a\"} 1\n"));
    let mut dead = primary();
    dead.postgres = observation(Role::Primary, Server::Down);
    served.snapshots.send_replace(Arc::new(dead));
    assert!(page().await.contains("patroni_postgres_running{scope=\"demo\",name=\"a\"} 0\n"));
    let counted = "endpoint=\"metrics\",code=\"200\"} ";
    let began = Instant::now();
    while !page().await.lines().any(|line| line.contains(counted) && !line.ends_with(" 1")) {
        assert!(began.elapsed() < super::PATIENCE, "the counters stand still");
    }
}

/// Proves REST-100, REST-101 (there is no queue of log lines here, so nothing is ever said of one).
#[tokio::test]
async fn the_watchdog_is_told_of_when_it_fails() {
    let fine = Served::new(primary()).await.get("/patroni").await.json();
    assert!(fine.get("watchdog_failed").is_none());
    let served = Served::new(Snapshot { watchdog_failed: true, ..primary() }).await;
    let document = served.get("/patroni").await.json();
    assert_eq!(document["watchdog_failed"], true);
    let last = document.as_object().and_then(|map| map.keys().next_back().cloned());
    assert_eq!(last.as_deref(), Some("watchdog_failed"), "after everything else");
    assert!(document.get("logger_queue_size").is_none());
    assert!(document.get("logger_records_lost").is_none());
}

/// Proves REST-350: dotted integers, 4.0.0 or later.
#[tokio::test]
async fn the_version_is_one_that_members_compare() {
    let document = Served::new(primary()).await.get("/patroni").await.json();
    let version = document["patroni"]["version"].as_str().expect("text").to_owned();
    let parts: Vec<u32> =
        version.split('.').map(|part| part.parse().expect("an integer")).collect();
    assert!(parts.len() == 3 && parts[0] >= 4, "{version}");
    let metrics = Served::new(primary()).await.get("/metrics").await.body;
    let padded: String = parts.iter().map(|part| format!("{part:02}")).collect();
    assert!(metrics.contains(&format!("name=\"a\"}} {padded}\n")), "{metrics}");
}

/// Proves REST-469: answers by endpoint and code, and how long they took.
#[tokio::test]
async fn answers_are_counted_and_timed() {
    let served = Served::new(primary()).await;
    for target in ["/primary", "/replica", "/cluster", "/patroni", "/liveness"] {
        served.get(target).await;
    }
    served.ask("POST", "/nosuch", "", b"").await;
    served.ask("PATCH", "/config", "", b"").await;
    let metrics = served.get("/metrics").await.body;
    for sample in [
        "hathi_rest_answers_total{scope=\"demo\",name=\"a\",endpoint=\"health\",code=\"200\"} 1",
        "hathi_rest_answers_total{scope=\"demo\",name=\"a\",endpoint=\"health\",code=\"503\"} 1",
        "hathi_rest_answers_total{scope=\"demo\",name=\"a\",endpoint=\"config\",code=\"411\"} 1",
        "hathi_rest_answers_total{scope=\"demo\",name=\"a\",endpoint=\"other\",code=\"501\"} 1",
        "hathi_rest_answer_seconds_bucket{scope=\"demo\",name=\"a\",endpoint=\"health\",le=\"+Inf\"} 2",
        "hathi_rest_answer_seconds_count{scope=\"demo\",name=\"a\",endpoint=\"patroni\"} 1",
    ] {
        assert!(metrics.contains(sample), "{sample}\n{metrics}");
    }
    assert!(!metrics.contains("endpoint=\"history\""), "what nobody asked for is left out");
}
