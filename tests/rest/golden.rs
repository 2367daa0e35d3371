//! What Patroni 4.1.5 answered to requests that change something (tests/golden/rest/requests.json),
//! asked of a live cluster of three on etcd, in the order of the capture. Where we answer otherwise on
//! purpose, the rule stands beside it.

use crate::live::{Reply, ask};
use crate::{SETTLED, options};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use hathi_test_support::{Cluster, Store};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// When the sections with times were captured, within a minute or two.
const CAPTURED: &str = "2026-11-23T21:09:00Z";
/// Far above `loop_wait`, for what is told by the store.
const SOON: Duration = Duration::from_secs(15);

struct Play {
    cluster: Cluster,
    sections: Vec<Value>,
    /// The names of the capture, and which of our nodes plays each.
    cast: BTreeMap<&'static str, usize>,
    compared: usize,
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

impl Play {
    async fn new() -> Self {
        let mut options = options(Store::Etcd { members: 1 });
        // What the servers of the capture were started with, or a restart would be pending.
        options.dcs = json!({"postgresql": {"parameters": {"max_connections": 40}}});
        let cluster = Cluster::start(options).await;
        let leader = cluster.leader().await.expect("a leader");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rest/requests.json");
        let golden = std::fs::read_to_string(path).expect("requests.json");
        let sections = serde_json::from_str(&golden).expect("JSON");
        let cast = [("alpha", leader), ("beta", (leader + 1) % 3), ("gamma", (leader + 2) % 3)];
        Self { cluster, sections, cast: cast.into(), compared: 0 }
    }

    fn requests(&self, section: &str) -> Vec<Value> {
        let found = self.sections.iter().find(|one| one["section"] == section);
        let found = found.unwrap_or_else(|| panic!("no section {section}"));
        found["requests"].as_array().cloned().expect("requests")
    }

    /// Our nodes' names for those of the capture, and times as far from now as they were then.
    fn ours(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (theirs, ours) in &self.cast {
            out = out.replace(theirs, &self.cluster.nodes[*ours].name);
        }
        let by = Utc::now() - CAPTURED.parse::<DateTime<Utc>>().expect("a moment");
        while let Some(at) = out.find("2026-11-23T") {
            let moment = out[at..at + 19].to_owned();
            let parsed = NaiveDateTime::parse_from_str(&moment, "%Y-%m-%dT%H:%M:%S");
            let shifted = parsed.expect("a moment") + TimeDelta::seconds(by.num_seconds());
            out = out.replace(&moment, &shifted.format("%Y-%m-%dT%H:%M:%S").to_string());
        }
        out
    }

    async fn send(&self, request: &Value) -> Reply {
        let to = self.cluster.nodes[self.cast[text(request, "to")]].rest();
        let (method, target) = text(request, "request").split_once(' ').expect("method and path");
        let body = request["body"].as_str().map(|body| self.ours(body));
        let body = body.filter(|_| request["request_note"].is_null());
        let reply = ask(to, method, target, body.as_deref()).await;
        reply.unwrap_or_else(|why| panic!("{why}\n{}", self.cluster.report()))
    }

    /// Sends it, and wants the captured answer.
    async fn same(&mut self, request: &Value) {
        let reply = self.send(request).await;
        self.judge(request, &reply, text(request, "status"), text(request, "answer"));
    }

    /// Sends it, and wants this instead.
    async fn other(&mut self, request: &Value, status: &str, answer: &str) {
        let reply = self.send(request).await;
        self.judge(request, &reply, status, answer);
    }

    fn judge(&mut self, request: &Value, reply: &Reply, status: &str, answer: &str) {
        let case = format!(
            "{}: {} {}\n{}",
            text(request, "case"),
            text(request, "request"),
            text(request, "body"),
            self.cluster.report()
        );
        assert_eq!(reply.status, status, "{}\n{case}", reply.body);
        match answer.strip_prefix("(html error page) ") {
            Some(page) => {
                for part in page.split(" | ") {
                    assert!(reply.body.contains(part), "{part} in {}\n{case}", reply.body);
                }
            }
            // What we say more stands after the known text. (REST-463)
            None if reply.code() == 412 => {
                assert!(reply.body.starts_with(&self.ours(answer)), "{}\n{case}", reply.body);
            }
            None => assert_eq!(reply.body, self.ours(answer), "{case}"),
        }
        let kind = request["answer_headers"].as_array().into_iter().flatten();
        let kind = kind.filter_map(Value::as_str).find_map(|h| h.strip_prefix("Content-Type: "));
        if status == text(request, "status") {
            assert_eq!(reply.header("content-type"), kind, "{case}");
        }
        self.compared += 1;
    }

    async fn all(&mut self, section: &str) {
        for request in self.requests(section) {
            self.same(&request).await;
        }
    }

    /// Waits until everybody stands where the next requests want them; `leader` leads.
    async fn settled(&self, leader: &str) {
        let is = self.cluster.healthy(SETTLED).await;
        assert_eq!(is, self.cast[leader], "{leader} leads\n{}", self.cluster.report());
    }

    async fn patch(&self, patch: Value, shown: impl Fn(&Value) -> bool) {
        let answer = self.cluster.send(0, "PATCH", "/config", patch.clone()).await;
        assert_eq!(answer.expect("an answer").status, 200, "{patch}");
        for i in 0..3 {
            self.cluster
                .wait("the configuration on every member", SOON, || async {
                    let config = self.cluster.get(i, "/config").await?.json();
                    if shown(&config) { Ok(()) } else { Err(config.to_string()) }
                })
                .await;
        }
    }

    async fn pause(&self, on: bool) {
        let wanted = if on { json!(true) } else { Value::Null };
        self.patch(json!({ "pause": wanted }), |config| config["pause"] == wanted).await;
    }
}

/// Proves REST-163, REST-164, REST-165 (what is stored is what was sent, however senseless).
/// Proves REST-190, REST-191, REST-193, REST-194, REST-220, REST-224, REST-240, REST-245, REST-251.
/// Proves REST-255, REST-352, REST-353 and REST-354: all by the answers of Patroni to the same requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_are_answered_as_by_patroni() {
    let mut play = Play::new().await;
    configuration(&mut play).await;
    restarts(&mut play).await;
    refusals(&mut play).await;
    changes_of_the_leader(&mut play).await;
    the_rest(&mut play).await;
    assert!(play.compared > 120, "{} answers compared", play.compared);
}

async fn configuration(play: &mut Play) {
    let whole = play.requests("PUT /config").remove(0);
    play.same(&whole).await;
    play.all("PATCH /config").await;
    play.all("PUT /config").await;
    // The agents heard all of that, and none of the senseless values is in force.
    play.settled("alpha").await;
}

async fn restarts(play: &mut Play) {
    play.all("POST /reload").await;
    for request in play.requests("POST /restart and DELETE /restart") {
        match text(&request, "case") {
            // Answered at all. (REST-457)
            "postgres_version as a number" => {
                let answer = "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 16";
                play.other(&request, "400 Bad Request", answer).await;
            }
            // False is false. (REST-458)
            "restart_pending false, none pending (the key alone counts)" => {
                play.other(&request, "200 OK", "restarted successfully").await;
            }
            // At the same time, below. Schedules that are carried out: tests/blackbox.
            "second while the first runs"
            | "reinitialize while a restart runs"
            | "first of two at the same time"
            | "scheduled 6 s ahead" => {}
            case if case.starts_with("paused") => {
                play.pause(true).await;
                play.same(&request).await;
                play.pause(false).await;
            }
            _ => play.same(&request).await,
        }
    }
    let both = play.requests("POST /restart and DELETE /restart").remove(1);
    let (one, other) = tokio::join!(play.send(&both), play.send(&both));
    let mut said = [(one.code(), one.body), (other.code(), other.body)];
    said.sort();
    let [done, busy] = &said;
    assert_eq!((done.0, done.1.as_str()), (200, "restarted successfully"));
    assert_eq!((busy.0, busy.1.as_str()), (503, "restart already in progress"));
    play.settled("alpha").await;
    for request in play.requests("POST /reinitialize") {
        if text(&request, "case") == "body is not JSON" {
            // The capture shows its two answers elsewhere; here is one, and nothing happens. (REST-246)
            play.other(&request, "400 Bad Request", "(html error page) Error code: 400").await;
            continue;
        }
        play.same(&request).await;
        play.settled("alpha").await;
    }
}

async fn refusals(play: &mut Play) {
    let mut refused = false;
    for request in play.requests("POST /switchover, refusals") {
        match text(&request, "case") {
            // Checked like any other. (REST-462)
            "scheduled, wrong leader and unknown candidate: not checked" => {
                play.other(&request, "412 Precondition Failed", "leader name does not match").await;
                refused = true;
            }
            "DELETE" if refused => refused = false,
            _ => play.same(&request).await,
        }
    }
}

async fn changes_of_the_leader(play: &mut Play) {
    play.pause(true).await;
    for request in play.requests("POST /switchover while paused") {
        play.same(&request).await;
    }
    play.pause(false).await;
    play.settled("beta").await;
    for request in play.requests("POST /switchover, carried out") {
        match text(&request, "case") {
            "no candidate: any healthy replica" => {
                let reply = play.send(&request).await;
                assert_eq!(reply.code(), 200, "{}", reply.body);
                // Either may be the one; from here on it plays beta.
                let new = play.cluster.healthy(SETTLED).await;
                let expected =
                    format!("Successfully switched over to \"{}\"", play.cluster.nodes[new].name);
                assert_eq!(reply.body, expected);
                if play.cast["beta"] != new {
                    let beta = play.cast["beta"];
                    play.cast.extend([("beta", new), ("gamma", beta)]);
                }
                play.settled("beta").await;
            }
            // Carried out at its moment: tests/blackbox. Here by two at the same time.
            "scheduled 6 s ahead" => {
                let mut now = request.clone();
                now["body"] = json!(r#"{"leader": "alpha", "candidate": "beta"}"#);
                let (one, other) = tokio::join!(play.send(&now), play.send(&now));
                let answer = play.ours("Successfully switched over to \"beta\"");
                for reply in [one, other] {
                    assert_eq!((reply.code(), &reply.body), (200, &answer), "REST-193");
                }
                play.settled("beta").await;
            }
            _ => {
                play.same(&request).await;
                play.settled("alpha").await;
            }
        }
    }
    for request in play.requests("POST /failover") {
        play.same(&request).await;
        let leads = match text(&request, "case") {
            "to a replica" => "alpha",
            "leader and candidate right: carried out as a switchover" => "gamma",
            _ => continue,
        };
        play.settled(leads).await;
    }
}

async fn the_rest(play: &mut Play) {
    let failsafe = play.requests("POST /failsafe");
    play.same(&failsafe[0]).await;
    play.patch(json!({"failsafe_mode": true}), |config| config["failsafe_mode"] == true).await;
    for request in &failsafe[1..] {
        match text(request, "case") {
            // Answered at all. (REST-457)
            "to a replica, without a name" => {
                let reply = play.send(request).await;
                assert_eq!(reply.code(), 400, "{}", reply.body);
            }
            "GET" => {
                let to = play.cast["alpha"];
                play.cluster
                    .wait("everybody in the failsafe record", SOON, || async {
                        let record = play.cluster.get(to, "/failsafe").await?.json();
                        let named = play.cluster.nodes.iter().all(|n| record[&n.name].is_string());
                        if named { Ok(()) } else { Err(record.to_string()) }
                    })
                    .await;
            }
            _ => {
                // The mode has to be in force, not only stored.
                let reply = play
                    .cluster
                    .wait("failsafe mode in force", SOON, || async {
                        let reply = play.send(request).await;
                        if reply.code() == 502 { Err(reply.body) } else { Ok(reply) }
                    })
                    .await;
                play.judge(request, &reply, text(request, "status"), text(request, "answer"));
            }
        }
    }
    play.patch(json!({"failsafe_mode": null}), |config| config["failsafe_mode"].is_null()).await;
    play.all("POST /sigterm").await;
    play.all("POST /citus and POST /mpp").await;
    play.settled("gamma").await;
}
