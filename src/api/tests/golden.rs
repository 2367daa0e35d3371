//! Patroni's real answers, member by member, against ours for the same facts. (tests/golden/rest)

use super::{Served, Talk, map, observation};
use crate::api::{Order, Snapshot};
use crate::ha::ports::{DataDir, Server, ServerDetails, Standby};
use hathi_dcs::{
    Failsafe, Lsn, PendingChange, Role, State, SystemId, Timeline, Version, ViewBuilder, boottime,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rest")
}

fn json(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display())))
}

/// One captured state.
struct Captured {
    name: String,
    folder: PathBuf,
    rest: Value,
    /// Request, and the status each member gave (`ERR`: none).
    statuses: Vec<(String, BTreeMap<String, String>)>,
    members: Vec<String>,
}

fn captured() -> Vec<Captured> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("tests/golden/rest")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() > 25, "all states are there");
    folders.into_iter().map(Captured::read).collect()
}

impl Captured {
    fn read(folder: PathBuf) -> Self {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let rest = json(&folder.join("rest.json")).expect("rest.json");
        let table = std::fs::read_to_string(folder.join("status.tsv")).expect("status.tsv");
        let mut lines = table.lines().map(|line| line.split('\t').map(str::to_owned));
        let members: Vec<String> = lines.next().expect("a head").skip(1).collect();
        let statuses = lines
            .map(|mut cells| {
                let request = cells.next().expect("a request");
                (request, members.iter().cloned().zip(cells).collect())
            })
            .collect();
        Self { name, folder, rest, statuses, members }
    }

    fn status(&self, request: &str, member: &str) -> Option<&str> {
        let (_, row) = self.statuses.iter().find(|(asked, _)| asked == request)?;
        row.get(member).map(String::as_str)
    }

    fn body(&self, request: &str, member: &str) -> Option<&str> {
        let responses = self.rest["responses"][member].as_array()?;
        let group = responses.iter().find(|group| {
            group["requests"].as_array().is_some_and(|all| all.iter().any(|one| one == request))
        })?;
        self.rest["bodies"][group["body"].as_str()?].as_str()
    }

    /// The snapshot this member's agent must have had: the store's records, and of its own document
    /// what says how PostgreSQL is.
    fn snapshot(&self, member: &str) -> Snapshot {
        let now = boottime();
        let document = map(self.body("GET /patroni", member).expect("a document"));
        let mut snapshot = Snapshot::new(member.into(), "golden", observed(&document));
        snapshot.scope = document["patroni"]["scope"].as_str().expect("a scope").to_owned();
        snapshot.timing.ttl = 20;
        snapshot.observed_at = now;
        snapshot.next_turn = now.plus(2000);
        snapshot.dcs_last_seen = document["dcs_last_seen"].as_i64().expect("a number");
        snapshot.scheduled_restart = document.get("scheduled_restart").cloned();
        let lock = if let Some(dump) = json(&self.folder.join("dcs.json")) {
            let mut builder = ViewBuilder::default();
            for key in dump["kvs"].as_array().expect("kvs") {
                let path = key["key"].as_str().expect("a key");
                let Some(record) = path.strip_prefix(&format!("/service/{}/", snapshot.scope))
                else {
                    continue;
                };
                builder.put(record, key["value"].as_str().expect("a value"), Version(1));
            }
            let view = builder.build();
            if let Some(config) = &view.config {
                snapshot.set_dynamic(config.value.clone());
            }
            snapshot.failsafe = view.failsafe.clone();
            let leads = view.leader_name() == Some(&snapshot.me);
            snapshot.view = Some((Arc::new(view), now));
            leads
        } else {
            snapshot.failsafe = self.body("GET /failsafe", member).and_then(Failsafe::parse);
            // In failsafe mode the primary's lease goes on by the others' word.
            self.status("GET /leader", member) == Some("200")
        };
        if lock {
            snapshot.leader_until = Some(now.plus(19_000));
        }
        if document.contains_key("failsafe_mode_is_active") {
            snapshot.failsafe_until = Some(now.plus(19_000));
        }
        if document.contains_key("pause") && snapshot.view.is_none() {
            snapshot.set_dynamic(map(r#"{"pause": true}"#));
        }
        snapshot.paused = document.contains_key("pause");
        if let Some(Value::Object(tags)) = document.get("tags") {
            snapshot.tags = tags.clone();
        }
        snapshot
    }
}

fn observed(document: &Map<String, Value>) -> crate::ha::ports::Observation {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let role = Role::from_wire(text("role").expect("a role")).expect("a known role");
    let xlog = document.get("xlog").and_then(Value::as_object);
    let lsn = |key: &str| xlog.and_then(|xlog| xlog.get(key)).and_then(Value::as_u64).map(Lsn);
    let timeline = document.get("timeline").and_then(Value::as_u64).unwrap_or(0);
    let timeline = Timeline(u32::try_from(timeline).expect("a timeline"));
    let server = match (lsn("location"), lsn("replayed_location")) {
        (Some(lsn), _) => Server::Primary { timeline, lsn },
        (None, Some(replayed)) => Server::Standby(Standby {
            timeline,
            received: lsn("received_location"),
            replayed: Some(replayed),
            streaming: text("replication_state") == Some("streaming"),
            from_archive: text("replication_state") == Some("in archive recovery"),
            replay_paused: xlog.and_then(|xlog| xlog.get("paused")) == Some(&Value::Bool(true)),
        }),
        (None, None) => Server::Down,
    };
    let mut seen = observation(role, server);
    seen.state = State::from_wire(text("state").expect("a state")).unwrap_or(State::Running);
    seen.system_id = text("database_system_identifier").and_then(SystemId::parse);
    seen.data_dir = DataDir::Present;
    let postgres_prints = |shown: &str| shown.trim_end_matches(":00").to_owned();
    seen.details = xlog.map(|xlog| ServerDetails {
        postmaster_start_time: text("postmaster_start_time").map(postgres_prints).expect("a time"),
        server_version: document["server_version"].as_u64().expect("a number") as u32,
        replayed_timestamp: xlog
            .get("replayed_timestamp")
            .and_then(Value::as_str)
            .map(postgres_prints),
        latest_end_lsn: text("replication_state")
            .filter(|state| *state == "streaming")
            .and_then(|_| lsn("received_location")),
        replication: document
            .get("replication")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default(),
    });
    if let Some(Value::Object(reasons)) = document.get("pending_restart_reason") {
        seen.pending_restart = reasons
            .iter()
            .map(|(parameter, change)| {
                let value = |key: &str| change[key].as_str().expect("text").to_owned();
                let change =
                    PendingChange { old_value: value("old_value"), new_value: value("new_value") };
                (parameter.clone(), change)
            })
            .collect();
    }
    seen
}

/// A served member whose orders for a fresh look are refused at once: its snapshot is all it knows.
async fn serve(snapshot: Snapshot) -> (Talk<TcpStream>, Served) {
    let mut served = Served::new(snapshot).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            assert!(matches!(order, Order::FreshStatus { .. }), "{order:?}");
        }
    });
    (served.connect().await, served)
}

async fn ask(talk: &mut Talk<TcpStream>, request: &str) -> super::Reply {
    let (method, target) = request.split_once(' ').expect("method and path");
    talk.ask(method, target, "", b"").await.expect("an answer")
}

/// Proves REST-082, REST-083, REST-084, REST-085, REST-086, REST-087, REST-088, REST-089 (the fields of
/// PostgreSQL), by every document captured.
/// Proves REST-090, REST-091, REST-092, REST-093, REST-094, REST-095, REST-096, REST-097, REST-098,
/// REST-099: each of them stands in some document, as the last lines check.
/// Proves REST-080 (a document without positions), REST-005 (the order, the times).
#[tokio::test]
async fn status_documents_are_the_same_text() {
    let mut compared = 0;
    let mut fields = std::collections::BTreeSet::new();
    for state in captured() {
        for member in &state.members {
            let expected = state.body("GET /patroni", member).expect("a document");
            fields.extend(map(expected).keys().cloned());
            let (mut talk, _served) = serve(state.snapshot(member)).await;
            let reply = ask(&mut talk, "GET /patroni").await;
            assert_eq!(reply.body, expected, "{} {member}", state.name);
            assert_eq!(reply.header("content-type"), Some("application/json"));
            compared += 1;
        }
    }
    assert!(compared > 70, "{compared} documents");
    for field in [
        "state",
        "postmaster_start_time",
        "role",
        "server_version",
        "xlog",
        "sync_standby",
        "quorum_standby",
        "timeline",
        "replication_state",
        "replication",
        "pause",
        "cluster_unlocked",
        "failsafe_mode_is_active",
        "dcs_last_seen",
        "tags",
        "database_system_identifier",
        "pending_restart",
        "pending_restart_reason",
        "patroni",
        "scheduled_restart",
    ] {
        assert!(fields.contains(field), "no document has {field}");
    }
}

/// Proves REST-160, REST-161, REST-162, REST-250 by every answer captured.
#[tokio::test]
async fn cluster_history_and_configuration_are_the_same_text() {
    let mut compared = 0;
    for state in captured() {
        let known = state.folder.join("dcs.json").exists();
        for member in state.members.iter().filter(|_| known) {
            let (mut talk, _served) = serve(state.snapshot(member)).await;
            for request in ["GET /cluster", "GET /history", "GET /config", "GET /failsafe"] {
                let Some(expected) = state.body(request, member) else { continue };
                let reply = ask(&mut talk, request).await;
                if expected == "html-502" {
                    assert_eq!((reply.status, reply.body.len()), (502, 346), "{request}");
                } else if request == "GET /failsafe" {
                    // The order of the names means nothing there.
                    assert_eq!(
                        reply.json(),
                        serde_json::from_str::<Value>(expected).expect("JSON")
                    );
                } else {
                    assert_eq!(reply.body, expected, "{} {member} {request}", state.name);
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 200, "{compared} answers");
}

/// What we answer where Patroni answered `captured`.
fn wanted(state: &Captured, request: &str, member: &str, captured: &str) -> String {
    let own = ["patroni", "cluster", "config", "liveness", "readiness"];
    let (method, target) = request.split_once(' ').expect("method and path");
    let path = target.split('?').next().unwrap_or_default();
    let document = map(state.body("GET /patroni", member).expect("a document"));
    let is = |key: &str, value: &str| document.get(key).and_then(Value::as_str) == Some(value);
    if method != "GET" && own.contains(&path.trim_start_matches('/')) {
        // As GET does. (REST-454)
        let get = state.status(&format!("GET {target}"), member).unwrap_or("?");
        return wanted(state, &format!("GET {target}"), member, get);
    }
    if captured == "ERR" {
        // Always an answer. (REST-457)
        return "503".to_owned();
    }
    if target.contains("replication_state=") && captured == "200" {
        // Honoured. (REST-360)
        let value = if target.ends_with("streaming") { "streaming" } else { "in archive recovery" };
        return if is("replication_state", value) { "200" } else { "503" }.to_owned();
    }
    let primary_without_view = state.status("GET /primary", member) == Some("200")
        && !state.folder.join("dcs.json").exists();
    let readers = ["/read-only-sync", "/read-only-synchronous", "/read-only-quorum", "/readiness"];
    if primary_without_view && readers.contains(&path) {
        // A primary needs no view. (REST-456)
        return "200".to_owned();
    }
    captured.to_owned()
}

/// Proves REST-050, REST-052 (200 and 503 only), REST-066, REST-070 (all rows but those of pause without
/// the store), REST-360, REST-454, REST-456, REST-457 by every status captured.
#[tokio::test]
async fn status_codes_are_the_same_where_we_do_not_do_better() {
    let mut differing = Vec::new();
    let mut compared = 0;
    for state in captured() {
        for member in &state.members {
            let (mut talk, served) = serve(state.snapshot(member)).await;
            for (request, row) in &state.statuses {
                let expected = wanted(&state, request, member, &row[member]);
                let reply = ask(&mut talk, request).await;
                if reply.header("connection") == Some("close") {
                    talk = served.connect().await;
                }
                let got = reply.status.to_string();
                if got != expected {
                    differing
                        .push(format!("{} {member} {request}: {got}, not {expected}", state.name));
                }
                compared += 1;
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(compared > 4000, "{compared} requests");
}

/// Proves REST-120, REST-121, REST-361 by every page captured: what Patroni writes stands in ours in
/// the same order, and only what we say more comes between.
#[tokio::test]
async fn metrics_are_patronis_and_ours() {
    let mut compared = 0;
    for state in captured() {
        for member in &state.members {
            let file = state.folder.join(format!("metrics-{member}.txt"));
            let Ok(expected) = std::fs::read_to_string(&file) else { continue };
            let (mut talk, _served) = serve(state.snapshot(member)).await;
            let reply = ask(&mut talk, "GET /metrics").await;
            assert_eq!(reply.header("content-type"), Some("text/plain"));
            let mut ours = reply.body.lines();
            for line in expected.lines() {
                // The position and the clock moved on between the two captures.
                let name = line.split('{').next().unwrap_or_default();
                let mut moving = ["_location", "_timestamp", "patroni_dcs_last_seen"]
                    .iter()
                    .any(|end| name.ends_with(end));
                // The one state in which failsafe mode ran out while it was captured.
                moving |=
                    state.name.starts_with("09d") && name == "patroni_failsafe_mode_is_active";
                let found = ours.any(|our| {
                    our == line || (moving && !line.starts_with('#') && our.starts_with(name))
                });
                assert!(found, "{} {member}: {line}\n{}", state.name, reply.body);
            }
            for more in [
                "patroni_failsafe_mode_enabled{",
                "patroni_failsafe_member{",
                "patroni_failover_priority{",
            ] {
                assert!(reply.body.contains(more), "{more}");
            }
            compared += 1;
        }
    }
    assert!(compared > 50, "{compared} pages");
}

/// Proves REST-002 (the error page), REST-006 by the bytes of the capture.
#[tokio::test]
async fn error_pages_are_the_same_bytes() {
    let raw = std::fs::read_to_string(root().join("01-fresh/raw-http.txt")).expect("raw-http.txt");
    let mut served = Served::new(super::primary()).await;
    let mut compared = 0;
    for exchange in raw.split(">>> ").skip(1) {
        let (request, answer) = exchange.split_once('\n').expect("a request line");
        let Some(at) = answer.find("<!DOCTYPE") else { continue };
        let request = request.strip_suffix(" HTTP/1.1").expect("a version");
        let (method, target) = request.split_once(' ').expect("method and path");
        let reply = served.ask(method, target, "", b"").await;
        let status = answer.split("\\r").next().unwrap_or_default().replace("HTTP/1.0", "HTTP/1.1");
        assert_eq!(reply.status_line, status, "{request}");
        assert_eq!(reply.body.trim_end(), answer[at..].trim_end(), "{request}");
        assert_eq!(reply.header("content-type"), Some("text/html;charset=utf-8"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(answer.contains(&format!("Content-Length: {}", reply.body.len())), "{request}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared} pages");
    served.stop();
}
