//! What may be changed, by whom, and what a client is told. (sections 6, 7, 9, 10)

use super::{Served, map, primary, replica};
use crate::api::control::parse;
use crate::api::{ConfigOutcome, Credentials, Order, RestConfig, Snapshot};
use crate::ha::manual::{Answer, Request};
use crate::ha::ports::Promises;
use chrono::{DateTime, Utc};
use hathi_dcs::{Failover, MemberName};
use proptest::prelude::*;
use serde_json::{Value, json};

fn now() -> DateTime<Utc> {
    "2026-11-23T21:09:00Z".parse().expect("a moment")
}

/// Proves REST-190, rows 3 to 9, in their order and with their texts.
#[test]
fn bodies_are_checked_in_order() {
    let switchover = |body: Value, paused| refusal(true, body, paused);
    let failover = |body: Value| refusal(false, body, false);
    let unparsable =
        "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";
    for (got, status, text) in [
        (
            failover(json!({"x": 1})),
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            failover(json!({"leader": "b"})),
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            failover(json!({"candidate": ""})),
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            switchover(json!({"x": 1}), false),
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            switchover(json!({"candidate": "b"}), false),
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            switchover(json!({"leader": null, "candidate": "b"}), false),
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            failover(json!({"candidate": "a", "scheduled_at": "2026-11-23T22:11:29+00:00"})),
            400,
            "Failover can't be scheduled",
        ),
        (
            switchover(json!({"leader": "a", "scheduled_at": "nonsense"}), true),
            400,
            "Can't schedule switchover in the paused state",
        ),
        (
            switchover(json!({"leader": "a", "scheduled_at": "tomorrow-ish"}), false),
            422,
            unparsable,
        ),
        (switchover(json!({"leader": "a", "scheduled_at": 12345}), false), 422, unparsable),
        (
            switchover(json!({"leader": "a", "scheduled_at": "2026-11-23T22:09:15"}), false),
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            switchover(json!({"leader": "a", "scheduled_at": "2026-11-23T21:08:15+00:00"}), false),
            422,
            "Cannot schedule switchover in the past",
        ),
    ] {
        assert_eq!(got, Answer { status, text: text.to_owned() });
    }
    assert_eq!(switchover(json!({"leader": 7}), false).status, 400, "REST-457");
}

fn refusal(switchover: bool, body: Value, paused: bool) -> Answer {
    parse(switchover, &map(&body.to_string()), paused, now()).expect_err("refused")
}

/// Proves REST-190 (the keys).
#[test]
fn what_was_asked_is_read() {
    let name = |name: &str| Some(MemberName::from(name));
    for (switchover, body, paused, failover) in [
        (true, json!({"leader": "a"}), true, Failover { leader: name("a"), ..Failover::default() }),
        (
            true,
            json!({"leader": "a", "member": "b", "scheduled_at": ""}),
            false,
            Failover { leader: name("a"), candidate: name("b"), scheduled_at: None },
        ),
        (
            false,
            json!({"candidate": "b", "member": "c", "other": 1}),
            false,
            Failover { candidate: name("b"), ..Failover::default() },
        ),
        (
            false,
            json!({"leader": "a", "candidate": "b"}),
            false,
            Failover { leader: name("a"), candidate: name("b"), scheduled_at: None },
        ),
    ] {
        let got = parse(switchover, &map(&body.to_string()), paused, now());
        assert_eq!(got, Ok(Request { switchover, failover }), "{body}");
    }
    let body = json!({"leader": "a", "scheduled_at": "Mon Nov 24 2036 10:00 +0200"});
    let request = parse(true, &map(&body.to_string()), false, now()).expect("accepted");
    let at = request.failover.scheduled_at.expect("a schedule");
    assert_eq!(at.to_rfc3339(), "2036-11-24T10:00:00+02:00");
}

/// Proves REST-020, REST-021, REST-022, REST-023, REST-024, REST-026, REST-467, REST-011 (do better), on
/// every route with a mandatory body.
#[tokio::test]
async fn bad_bodies_do_nothing() {
    let mut served = Served::new(Snapshot { failsafe_mode: true, ..replica() }).await;
    for (method, path) in [
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/switchover"),
        ("POST", "/failover"),
        ("POST", "/failsafe"),
        ("POST", "/citus"),
        ("POST", "/mpp"),
    ] {
        assert_eq!(served.ask(method, path, "", b"").await.status, 411, "{path}");
        let chunked = served
            .ask(method, path, "Transfer-Encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n")
            .await;
        assert_eq!(chunked.status, 411, "{path}");
        for body in ["", "{}", "{", "[1,2]", "\"ttl\"", "null", "ttl: 20"] {
            let reply = served.send(method, path, body).await;
            assert_eq!(reply.status, 400, "{path} {body}");
            assert!(reply.body.contains("400 - Bad request syntax or unsupported method."));
        }
        let short = served.ask(method, path, "Content-Length: 5\r\n", b"{\"ttl\": 20}").await;
        assert_eq!(short.status, 400, "{path}");
        let not_utf8 = served.ask(method, path, "Content-Length: 9\r\n", b"{\"a\":\"\xff\"}").await;
        assert_eq!(not_utf8.status, 400, "{path}");
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1024 * 1024));
        assert_eq!(served.send(method, path, &large).await.status, 413, "{path}");
    }
    assert!(served.orders.try_recv().is_err(), "nothing was ordered");
}

/// Proves REST-006: before any access check, for every method and path without a handler.
#[tokio::test]
async fn what_is_not_there_is_501() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.credentials = Some(Credentials { username: "u".into(), password: "p".into() });
    config.allowlist = vec!["192.0.2.1".into()];
    let served = Served::with(config, primary()).await;
    for (method, path) in [
        ("POST", "/nosuchpath"),
        ("POST", "/"),
        ("PUT", "/switchover"),
        ("DELETE", "/failover"),
        ("DELETE", "/config"),
        ("PATCH", "/patroni"),
        ("PUT", "/restart"),
        ("DELETE", "/reinitialize"),
        ("patch", "/config"),
        ("TRACE", "/"),
        ("<x>", "/"),
    ] {
        let Some(reply) = served.connect().await.ask(method, path, "", b"").await else {
            panic!("{method} {path}: no answer")
        };
        if method == "<x>" {
            assert_eq!(reply.status, 400, "no token");
            continue;
        }
        assert_eq!(reply.status_line, format!("HTTP/1.1 501 Unsupported method ('{method}')"));
        assert!(reply.body.contains("Server does not support this operation"), "REST-352");
    }
}

fn stored(document: &str, objections: &[&str]) -> ConfigOutcome {
    let objections = objections.iter().map(|text| (*text).to_owned()).collect();
    ConfigOutcome::Stored { document: map(document), objections }
}

/// Proves REST-163, REST-164 (the answers).
#[tokio::test]
async fn the_configuration_is_changed_by_order() {
    let mut served = Served::new(primary()).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    for (method, outcome, status, body) in [
        ("PATCH", stored(r#"{"ttl":20,"a":{"b":1}}"#, &[]), 200, r#"{"ttl": 20, "a": {"b": 1}}"#),
        ("PATCH", ConfigOutcome::Missing, 503, "Error code: 503"),
        ("PATCH", ConfigOutcome::Conflict, 409, "Error code: 409"),
        ("PATCH", ConfigOutcome::Failed("the store is gone".into()), 503, "the store is gone"),
        ("PUT", stored(r#"{"ttl":20}"#, &[]), 200, r#"{"ttl": 20}"#),
        ("PUT", ConfigOutcome::Failed("the store is gone".into()), 502, "Error code: 502"),
    ] {
        let (reply, ()) = tokio::join!(served.send(method, "/config", r#"{"ttl": 20}"#), async {
            match orders.recv().await {
                Some(Order::PatchConfig { document, reply }) if method == "PATCH" => {
                    assert_eq!(document, map(r#"{"ttl": 20}"#));
                    reply.send(outcome).expect("it waits");
                }
                Some(Order::PutConfig { reply, .. }) if method == "PUT" => {
                    reply.send(outcome).expect("it waits");
                }
                other => panic!("{method}: {other:?}"),
            }
        });
        assert_eq!(reply.status, status);
        assert!(reply.body.contains(body), "{}", reply.body);
    }
    let (reply, ()) = tokio::join!(served.send("PATCH", "/config", r#"{"ttl": 20}"#), async {
        drop(orders.recv().await);
    });
    assert_eq!(reply.status, 503, "the agent went away");
}

/// Proves REST-465: what is not understood is stored and said in headers that every client can read;
/// a strict node's refusal is a 422 with the reasons.
#[tokio::test]
async fn objections_are_said() {
    let mut served = Served::new(primary()).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    let many: Vec<String> = (0..20).map(|n| format!("key{n}: is not \"known\" \u{e4}\n")).collect();
    let objections: Vec<&str> = many.iter().map(String::as_str).collect();
    for (outcome, status) in [
        (stored(r#"{"ttl":20}"#, &objections), 200),
        (ConfigOutcome::Refused(vec!["ttl: is no number".into(), "x: is not known".into()]), 422),
    ] {
        let (reply, ()) = tokio::join!(served.send("PATCH", "/config", r#"{"ttl": 20}"#), async {
            match orders.recv().await {
                Some(Order::PatchConfig { reply, .. }) => reply.send(outcome).expect("it waits"),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(reply.status, status);
        let warnings: Vec<_> =
            reply.head.lines().filter(|line| line.starts_with("warning: ")).collect();
        if status == 200 {
            assert_eq!(warnings.len(), 8, "{}", reply.head);
            assert_eq!(warnings[1], "warning: 299 hathi \"key1: is not 'known' ??\"");
        } else {
            assert!(reply.body.contains("ttl: is no number; x: is not known"), "{}", reply.body);
        }
    }
}

/// Proves REST-190 (the order, and the answer as it comes), REST-194, REST-240, REST-241.
#[tokio::test]
async fn operators_orders_reach_the_agent() {
    let mut served = Served::new(replica()).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    let agent = tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Manual { request, reply } => {
                    let text = format!("{} {:?}", request.switchover, request.failover.candidate);
                    reply.send(Answer { status: 412, text }).expect("it waits");
                }
                Order::DeleteSchedule { reply } => {
                    let text = "no switchover is scheduled".to_owned();
                    reply.send(Answer { status: 404, text }).expect("it waits");
                }
                Order::Reload { reply } => reply.send(()).expect("it waits"),
                Order::FreshStatus { .. } => {}
                Order::PatchConfig { .. } | Order::PutConfig { .. } | Order::Member { .. } => {
                    panic!("not asked for")
                }
            }
        }
    });
    let reply = served.send("POST", "/switchover", r#"{"leader":"a","candidate":"b"}"#).await;
    assert_eq!((reply.status, reply.body.as_str()), (412, "true Some(MemberName(\"b\"))"));
    assert_eq!(reply.header("content-type"), Some("text/html"));
    let reply = served.send("POST", "/failover/x", r#"{"candidate":"b"}"#).await;
    assert_eq!((reply.status, reply.body.as_str()), (412, "false Some(MemberName(\"b\"))"));
    for (method, path, body, status, text) in [
        ("DELETE", "/switchover", "", 404, "no switchover is scheduled"),
        ("DELETE", "/switchover", "{}", 404, "no switchover is scheduled"),
        ("POST", "/reload", "", 202, "reload scheduled"),
        ("POST", "/reload", r#"{"x":1}"#, 202, "reload scheduled"),
        ("POST", "/sigterm", "", 202, "shutdown scheduled"),
    ] {
        let reply = served.send(method, path, body).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, text), "{method} {path}");
    }
    served.stop();
    drop(served);
    agent.await.expect("the agent's end");
}

/// Proves REST-251, REST-252, HA-157: mode off, a leader, an unreadable call, a standby, and one that
/// asks for the key itself.
#[tokio::test]
async fn who_accepts_a_failsafe_request() {
    let body = r#"{"name":"a","conn_url":"x","api_url":"http://x/patroni"}"#;
    let off = Served::new(replica()).await;
    for body in [body, "{", ""] {
        assert_eq!(
            off.send("POST", "/failsafe", body).await.status,
            502,
            "the body is not looked at"
        );
    }
    let leader = Served::new(Snapshot { failsafe_mode: true, ..primary() }).await;
    let reply = leader.send("POST", "/failsafe", body).await;
    assert_eq!((reply.status, reply.body.as_str()), (500, "Running as a leader"));
    let follower = Served::new(Snapshot { failsafe_mode: true, ..replica() }).await;
    let reply = follower.send("POST", "/failsafe", r#"{"name":"a"}"#).await;
    assert_eq!(reply.status, 400, "half a call is none");
    let shown = follower.send("GET", "/patroni", "").await;
    assert!(!shown.body.contains("failsafe_mode_is_active"), "{shown:?}");
    let reply = follower.send("POST", "/failsafe", body).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "Accepted"));
    let lsn = reply.header("lsn").and_then(|lsn| lsn.parse::<u64>().ok());
    assert!(lsn.is_some_and(|lsn| lsn > 0), "{reply:?}");
    let shown = follower.send("GET", "/patroni", "").await;
    assert!(shown.body.contains(r#""failsafe_mode_is_active": true"#), "{shown:?}");
    let racing = Snapshot { failsafe_mode: true, ..replica() };
    assert!(racing.gate.claim(hathi_dcs::boottime()));
    let reply = Served::new(racing).await.send("POST", "/failsafe", body).await;
    assert!(reply.status == 500 && reply.body != "Accepted", "{reply:?}");
    let holder = Snapshot {
        failsafe_mode: true,
        leader_until: Some(hathi_dcs::boottime().plus(10_000)),
        ..replica()
    };
    let reply = Served::new(holder).await.send("POST", "/failsafe", body).await;
    assert_eq!((reply.status, reply.body.as_str()), (500, "Holding the leader key"));
}

/// Proves REST-278, REST-279, REST-270.
#[tokio::test]
async fn passwords_are_asked_for() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.credentials =
        Some(Credentials { username: "admin".into(), password: "dummy:rest".into() });
    let served = Served::with(config, primary()).await;
    let right = "Basic YWRtaW46ZHVtbXk6cmVzdA==";
    for (authorization, status, text) in [
        (None, 401, "no auth header received"),
        (Some("Basic YWRtaW46d3Jvbmc="), 401, "not authenticated"),
        (Some("Bearer abc"), 401, "not authenticated"),
        (Some("basic YWRtaW46ZHVtbXk6cmVzdA=="), 401, "not authenticated"),
        (Some("Basic %%%"), 401, "not authenticated"),
        (Some("Basic  YWRtaW46ZHVtbXk6cmVzdA=="), 401, "not authenticated"),
        (Some(right), 202, "shutdown scheduled"),
    ] {
        let header =
            authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let reply = served.ask("POST", "/sigterm", &header, b"").await;
        assert_eq!((reply.status, reply.body.as_str()), (status, text), "{authorization:?}");
        let asks = reply.header("www-authenticate");
        assert_eq!(asks, (status == 401).then_some("Basic realm=\"Patroni\""));
    }
    for path in ["/config", "/switchover", "/failover", "/reload", "/failsafe", "/citus", "/mpp"] {
        let method = if path == "/config" { "PATCH" } else { "POST" };
        assert_eq!(served.send(method, path, "{}").await.status, 401, "{path}");
        assert_ne!(served.get(path).await.status, 401, "{path}");
    }
}

/// Proves REST-271, REST-272, REST-273, REST-274, REST-275, REST-460.
#[tokio::test]
async fn addresses_are_checked_first() {
    let reload = async |config: RestConfig, snapshot: Snapshot, path: &str| {
        Served::with(config, snapshot).await.ask("POST", path, "", b"").await
    };
    let allow = |list: &[&str], members: bool| {
        let mut config = RestConfig::on("127.0.0.1:0");
        config.allowlist = list.iter().map(|entry| (*entry).to_owned()).collect();
        config.allowlist_include_members = members;
        config
    };
    for (config, status) in [
        (allow(&["127.0.0.2"], false), 403),
        (allow(&["127.0.0.0/24"], false), 202),
        (allow(&["localhost"], false), 202),
        (allow(&["no-such-host.invalid"], false), 403),
        (allow(&[], false), 202),
        (allow(&[], true), 202),
        (allow(&["127.0.0.2"], true), 202),
    ] {
        let case = format!("{:?} {}", config.allowlist, config.allowlist_include_members);
        let reply = reload(config, primary(), "/sigterm").await;
        assert_eq!(reply.status, status, "{case}");
        if status == 403 {
            assert_eq!(reply.body, "Access is denied");
        }
    }
    let nobody = Snapshot { view: None, ..primary() };
    assert_eq!(reload(allow(&[], true), nobody.clone(), "/sigterm").await.status, 403);
    assert_eq!(reload(allow(&[], true), nobody.clone(), "/failsafe").await.status, 502);
    assert_eq!(reload(allow(&["127.0.0.2"], true), nobody.clone(), "/failsafe").await.status, 403);
    let recorded = Snapshot {
        failsafe: hathi_dcs::Failsafe::parse(r#"{"x":"http://127.0.0.1:1/patroni"}"#),
        ..nobody
    };
    assert_eq!(
        reload(allow(&["127.0.0.2"], true), recorded, "/failsafe").await.status,
        502,
        "let through"
    );
    let mut both = allow(&["127.0.0.2"], false);
    both.credentials = Some(Credentials { username: "u".into(), password: "p".into() });
    assert_eq!(reload(both, primary(), "/sigterm").await.status, 403);
}

/// Proves REST-276 (do better): a client of a dual-stack socket is an IPv4 client.
#[tokio::test]
async fn mapped_addresses_are_unmapped() {
    let mut config = RestConfig::on("*:0");
    config.allowlist = vec!["127.0.0.1".into()];
    let mut served = Served::with(config, primary()).await;
    served.address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    assert_eq!(served.ask("POST", "/sigterm", "", b"").await.status, 202);
}

/// Proves REST-468: whoever is refused while still sending sees the answer, not a reset.
#[tokio::test]
async fn the_refused_see_why() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.credentials = Some(Credentials { username: "u".into(), password: "p".into() });
    let served = Served::with(config, primary()).await;
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(900_000));
    for _ in 0..5 {
        let reply = served.send("PATCH", "/config", &body).await;
        assert_eq!((reply.status, reply.body.as_str()), (401, "no auth header received"));
    }
}

proptest! {
    #[test]
    fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = crate::api::write::parse(&bytes);
    }

    #[test]
    fn no_request_panics(
        switchover: bool,
        paused: bool,
        leader in r#"("[ab]?"|null|7|\{\}|\[1\]|false)"#,
        candidate in r#"("[ab]?"|null|7|true)"#,
        at in r#"(".{0,12}"|"20[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9:]{4,8}[Z+0-9:]{0,6}"|null|7)"#,
    ) {
        let text = format!(r#"{{"leader": {leader}, "candidate": {candidate}, "scheduled_at": {at}}}"#);
        if let Ok(body) = crate::api::write::parse(text.as_bytes()) {
            let _ = parse(switchover, &body, paused, now());
        }
    }
}
