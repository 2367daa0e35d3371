//! Patroni's real answers to requests that change something (tests/golden/rest/requests.json), against
//! ours: whatever is decided in this room, before the agent hears of it.

use super::{Served, Talk, map, primary, replica};
use crate::api::{ConfigOutcome, Credentials, Order, RestConfig, ServerTokens, Snapshot};
use crate::ha::manual::Answer;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use std::net::Ipv4Addr;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

/// When the sections with times were captured, within a minute or two.
const CAPTURED: &str = "2026-11-23T21:09:00Z";

fn sections() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rest/requests.json");
    let text = std::fs::read_to_string(path).expect("requests.json");
    serde_json::from_str(&text).expect("JSON")
}

/// The requests of the sections whose names begin so.
fn requests(section: &str) -> Vec<Value> {
    let found: Vec<Value> = sections()
        .iter()
        .filter(|one| one["section"].as_str().is_some_and(|name| name.starts_with(section)))
        .flat_map(|one| one["requests"].as_array().cloned().unwrap_or_default())
        .collect();
    assert!(!found.is_empty(), "no section {section}");
    found
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

/// The captured times lie as far from now as they lay from the moment of the capture.
fn shifted(body: &str) -> String {
    let by = Utc::now() - CAPTURED.parse::<DateTime<Utc>>().expect("a moment");
    let mut out = body.to_owned();
    while let Some(at) = out.find("2026-11-23T") {
        let moment = out[at..at + 19].to_owned();
        let naive = chrono::NaiveDateTime::parse_from_str(&moment, "%Y-%m-%dT%H:%M:%S");
        let shifted = naive.expect("a moment") + TimeDelta::seconds(by.num_seconds());
        out = out.replace(&moment, &shifted.format("%Y-%m-%dT%H:%M:%S").to_string());
    }
    out
}

/// From the client address of the capture.
async fn connect(served: &Served, request: &Value) -> Talk<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Ok(from) = text(request, "client_address").parse::<Ipv4Addr>() {
        socket.bind((from, 0).into()).expect("a loopback address");
    }
    Talk::new(socket.connect(served.address).await.expect("it listens"))
}

/// Sends what was sent, and compares status, body and the headers that say something.
async fn compare(served: &Served, request: &Value) {
    let case = format!("{} to {}", text(request, "case"), text(request, "request"));
    let (method, target) = text(request, "request").split_once(' ').expect("method and path");
    let body = request["body"].as_str().map(shifted);
    let mut headers: String = request["request_headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}: {}\r\n", value.as_str().expect("text")))
        .collect();
    if let Some(body) = &body
        && request["request_note"].is_null()
    {
        headers.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut talk = connect(served, request).await;
    let body = body.filter(|_| request["request_note"].is_null()).unwrap_or_default();
    let reply = talk.ask(method, target, &headers, body.as_bytes()).await.expect("an answer");
    assert_eq!(reply.status_line, format!("HTTP/1.1 {}", text(request, "status")), "{case}");
    match text(request, "answer").strip_prefix("(html error page) ") {
        Some(page) => {
            for part in page.split(" | ") {
                assert!(reply.body.contains(part), "{case}: {part}\n{}", reply.body);
            }
        }
        None if text(request, "answer").starts_with("(as without") => {}
        None => assert_eq!(reply.body, text(request, "answer"), "{case}"),
    }
    let said = request["answer_headers"].as_array().cloned().unwrap_or_default();
    for line in said.iter().filter_map(Value::as_str) {
        let (name, value) = line.split_once(": ").expect("a header");
        if !["lsn", "Server"].contains(&name) {
            assert_eq!(reply.header(name), Some(value), "{case}");
        }
    }
}

/// Takes every order for carried out.
fn agent(served: &mut Served) -> JoinHandle<()> {
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Reload { reply } => reply.send(()).expect("it waits"),
                Order::FreshStatus { .. } => {}
                Order::PatchConfig { document, reply } => {
                    let objections = Vec::new();
                    reply.send(ConfigOutcome::Stored { document, objections }).expect("it waits");
                }
                Order::Member { reply, .. } => {
                    let answer = Answer::new(404, "no restarts are scheduled");
                    reply.send(answer).expect("it waits");
                }
                other => panic!("nobody asked for {other:?}"),
            }
        }
    })
}

/// What the store, the other members or the loop decide; tests/rest asks them.
fn is_the_agents(request: &Value) -> bool {
    let answer = text(request, "answer");
    let status: u16 = text(request, "status").split(' ').next().unwrap_or("").parse().unwrap_or(0);
    let refused_here = matches!(status, 400 | 411 | 422 | 500);
    !refused_here
        || answer == "Switchover target and source are the same"
        || answer.starts_with("Switchover is possible only")
}

/// Proves REST-020, REST-021, REST-022, REST-023, REST-190, REST-220, REST-246 by every refusal
/// captured that needs nobody else, in the order and with the words of Patroni; REST-352.
#[tokio::test]
async fn refusals_are_the_same() {
    let mut served = Served::new(primary()).await;
    let mut paused = primary();
    paused.paused = true;
    paused.view = Some((super::view(&[("config", r#"{"pause": true}"#)]), hathi_dcs::boottime()));
    let in_pause = Served::new(paused).await;
    let mut compared = 0;
    for section in [
        "PATCH /config",
        "PUT /config",
        "POST /restart",
        "POST /switchover, refusals",
        "POST /switchover while paused",
        "POST /failover",
    ] {
        for request in requests(section).iter().filter(|request| !is_the_agents(request)) {
            let case = text(request, "case");
            let pauses = section.ends_with("paused") || case.starts_with("paused");
            compare(if pauses { &in_pause } else { &served }, request).await;
            compared += 1;
        }
    }
    assert!(compared >= 45, "{compared} refusals");
    assert!(served.orders.try_recv().is_err(), "nothing was ordered");
}

/// Proves REST-163 (nothing to merge into; the lost compare-and-set), REST-164 (PUT makes the first one) and
/// REST-162 (none stored) by every answer captured; tests/rest has the same of a store.
#[tokio::test]
async fn what_the_store_makes_of_a_configuration_is_the_same() {
    let mut without = replica();
    without.view = Some((super::view(&[("leader", "a")]), hathi_dcs::boottime()));
    let mut served = Served::new(without).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    let store = tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::PatchConfig { document, reply } => {
                    let lost = document.contains_key("maximum_lag_on_failover");
                    let outcome =
                        if lost { ConfigOutcome::Conflict } else { ConfigOutcome::Missing };
                    reply.send(outcome).expect("it waits");
                }
                Order::PutConfig { document, reply } => {
                    let outcome = ConfigOutcome::Stored { document, objections: Vec::new() };
                    reply.send(outcome).expect("it waits");
                }
                other => panic!("nobody asked for {other:?}"),
            }
        }
    });
    let mut compared = 0;
    for section in ["PATCH /config from two sides at once", "PATCH /config and others while"] {
        for mut request in requests(section) {
            if let Some(body) = request["body"].as_str() {
                // The capture leaves the two values out.
                request["body"] = body.replace("...", "1048576").into();
            }
            compare(&served, &request).await;
            compared += 1;
        }
    }
    assert_eq!(compared, 4, "answers compared");
    drop(served);
    store.abort();
}

/// Proves REST-240, REST-241, REST-255 by every answer captured; REST-459: `/mpp` as the others.
#[tokio::test]
async fn what_is_accepted_at_once_is_the_same() {
    let mut served = Served::new(replica()).await;
    let agent = agent(&mut served);
    for section in ["POST /reload", "POST /sigterm", "POST /citus"] {
        for request in requests(section) {
            compare(&served, &request).await;
        }
    }
    drop(served);
    agent.abort();
}

/// Proves REST-251, REST-252 by every answer captured: mode off, a standby, a leader, bad bodies.
#[tokio::test]
async fn failsafe_is_the_same() {
    let record = r#"{"beta": "http://127.0.0.1:22009/patroni", "gamma": "http://127.0.0.1:22010/patroni", "alpha": "http://127.0.0.1:22008/patroni"}"#;
    let on = |snapshot: Snapshot| Snapshot {
        failsafe_mode: true,
        failsafe: hathi_dcs::Failsafe::parse(record),
        ..snapshot
    };
    let off = Served::new(replica()).await;
    let standby = Served::new(on(replica())).await;
    let leader = Served::new(on(primary())).await;
    for request in requests("POST /failsafe") {
        let served = match text(&request, "case") {
            case if case.starts_with("failsafe_mode off") => &off,
            "to the leader" => &leader,
            _ => &standby,
        };
        if text(&request, "request").starts_with("GET") {
            let ours = served.get("/failsafe").await.json();
            assert_eq!(ours, Value::Object(map(text(&request, "answer"))));
        } else if text(&request, "status").starts_with('(') {
            let reply = served.send("POST", "/failsafe", text(&request, "body")).await;
            assert_eq!(reply.status, 400, "always an answer: REST-457");
        } else {
            compare(served, &request).await;
        }
    }
}

/// Proves REST-270, REST-271, REST-278, REST-279, REST-302 by every answer captured; REST-459.
#[tokio::test]
async fn passwords_are_asked_for_as_by_patroni() {
    let mut config = RestConfig::on("127.0.0.1:0");
    config.credentials =
        Some(Credentials { username: "admin".into(), password: "dummy-rest".into() });
    config.http_extra_headers =
        vec![("X-Frame-Options".into(), "SAMEORIGIN".into()), ("X-Two".into(), "a b".into())];
    let mut served = Served::with(config, primary()).await;
    let agent = agent(&mut served);
    for request in requests("Basic authentication") {
        let stored = text(&request, "request") == "PATCH /config"
            && text(&request, "status").starts_with("200");
        if text(&request, "request") == "POST /mpp" {
            let reply = served.send("POST", "/mpp", "{}").await;
            assert_eq!((reply.status, reply.body.as_str()), (401, "no auth header received"));
        } else if text(&request, "request").starts_with("HEAD") {
            let reply = served.ask("HEAD", "/", "", b"").await;
            assert_eq!((reply.status, reply.body.as_str()), (200, ""));
        } else if stored {
            let headers = "Authorization: Basic YWRtaW46ZHVtbXktcmVzdA==\r\nContent-Length: 11\r\n";
            let reply = served.ask("PATCH", "/config", headers, b"{\"ttl\": 20}").await;
            assert_eq!((reply.status, reply.header("x-two")), (200, Some("a b")));
        } else {
            compare(&served, &request).await;
        }
    }
    drop(served);
    agent.abort();
}

/// Proves REST-272, REST-273, REST-274, REST-275 by every answer captured; where members are locked
/// out of `/failsafe` we let them in (REST-460).
#[tokio::test]
async fn addresses_are_checked_as_by_patroni() {
    for (section, list, members, password) in [
        ("Allowlist", vec!["127.0.0.2", "127.0.0.16/28"], false, false),
        ("Allowlist with members", vec!["127.0.0.2"], true, false),
        ("allowlist_include_members without allowlist", vec![], true, false),
        ("Allowlist and authentication together", vec!["127.0.0.2"], false, true),
    ] {
        let mut config = RestConfig::on("127.0.0.1:0");
        config.allowlist = list.into_iter().map(str::to_owned).collect();
        config.allowlist_include_members = members;
        config.credentials = password
            .then(|| Credentials { username: "admin".into(), password: "dummy-rest".into() });
        let mut served = Served::with(config, replica()).await;
        let agent = agent(&mut served);
        let exact = sections()
            .into_iter()
            .find(|one| one["section"] == section)
            .unwrap_or_else(|| panic!("no section {section}"));
        for request in exact["requests"].as_array().expect("requests") {
            let case = text(request, "case");
            if text(request, "request").starts_with("GET") {
                assert_eq!(served.get("/config").await.status, 200);
            } else if section == "Allowlist with members"
                && case.starts_with("failsafe from 127.0.0.1")
            {
                let reply = served.send("POST", "/failsafe", "{}").await;
                assert_eq!(reply.status, 502, "let through: failsafe mode is off");
            } else {
                compare(&served, request).await;
            }
        }
        drop(served);
        agent.abort();
    }
}

/// Proves REST-303 by every answer captured, REST-491 (our own name for the third).
#[tokio::test]
async fn the_server_names_itself_as_asked() {
    for request in requests("restapi.server_tokens") {
        let mut config = RestConfig::on("127.0.0.1:0");
        let case = text(&request, "case");
        config.server_tokens = match case {
            "Minimal" => ServerTokens::Minimal,
            "ProductOnly" => ServerTokens::ProductOnly,
            _ => ServerTokens::Original,
        };
        let reply = Served::with(config, primary()).await.get("/health").await;
        let server = reply.header("server").expect("a Server header");
        let said = request["answer_headers"].as_array().expect("headers");
        let exact = said.iter().any(|line| *line == format!("Server: {server}"));
        let own = server.starts_with("hathi/") && ["Original", "nonsense"].contains(&case);
        assert!(exact || own, "{case}: {server}");
        for target in ["/liveness", "/readiness"] {
            let bare = Served::new(primary()).await.get(target).await;
            assert_eq!(bare.header("server"), None);
        }
    }
}
