//! Plays captured requests on a live cluster, and compares the answers.

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
pub const SOON: Duration = Duration::from_secs(30);

/// A cluster, and who plays whom of the capture.
pub struct Play {
    pub cluster: Cluster,
    sections: Vec<Value>,
    /// The names of the capture, and which of our nodes plays each.
    pub cast: BTreeMap<&'static str, usize>,
    pub compared: usize,
}

pub fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

impl Play {
    /// Three nodes on etcd with this dynamic configuration, the leader as alpha.
    pub async fn new(dcs: Value) -> Self {
        let mut options = options(Store::Etcd { members: 1 });
        options.dcs = dcs;
        let cluster = Cluster::start(options).await;
        let leader = cluster.leader().await.expect("a leader");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/rest/requests.json");
        let golden = std::fs::read_to_string(path).expect("requests.json");
        let sections = serde_json::from_str(&golden).expect("JSON");
        let cast = [("alpha", leader), ("beta", (leader + 1) % 3), ("gamma", (leader + 2) % 3)];
        Self { cluster, sections, cast: cast.into(), compared: 0 }
    }

    pub fn requests(&self, section: &str) -> Vec<Value> {
        let found = self.sections.iter().find(|one| one["section"] == section);
        let found = found.unwrap_or_else(|| panic!("no section {section}"));
        found["requests"].as_array().cloned().expect("requests")
    }

    /// Our nodes' names for those of the capture, and times as far from now as they were then.
    pub fn ours(&self, text: &str) -> String {
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

    pub async fn send(&self, request: &Value) -> Reply {
        let to = self.cluster.nodes[self.cast[text(request, "to")]].rest();
        let (method, target) = text(request, "request").split_once(' ').expect("method and path");
        let body = request["body"].as_str().map(|body| self.ours(body));
        let body = body.filter(|_| request["request_note"].is_null());
        let reply = ask(to, method, target, body.as_deref()).await;
        reply.unwrap_or_else(|why| panic!("{why}\n{}", self.cluster.report()))
    }

    /// Sends it, and wants the captured answer.
    pub async fn same(&mut self, request: &Value) {
        let reply = self.send(request).await;
        self.judge(request, &reply, text(request, "status"), text(request, "answer"));
    }

    /// Sends it, and wants this instead.
    pub async fn other(&mut self, request: &Value, status: &str, answer: &str) {
        let reply = self.send(request).await;
        self.judge(request, &reply, status, answer);
    }

    pub fn judge(&mut self, request: &Value, reply: &Reply, status: &str, answer: &str) {
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
            // What we say more stands after the known text. (REST-463, REST-362)
            None if reply.code() == 412 || answer.ends_with("status unknown") => {
                assert!(reply.body.starts_with(&self.ours(answer)), "{}\n{case}", reply.body);
            }
            None => assert_eq!(reply.body, self.ours(answer), "{case}"),
        }
        let headers = request["answer_headers"].as_array().into_iter().flatten();
        let headers = headers.filter_map(Value::as_str).filter_map(|line| line.split_once(": "));
        for (name, value) in headers.filter(|_| status == text(request, "status")) {
            if !["lsn", "Server"].contains(&name) {
                assert_eq!(reply.header(name), Some(value), "{name}: {case}");
            }
        }
        self.compared += 1;
    }

    pub async fn all(&mut self, section: &str) {
        for request in self.requests(section) {
            self.same(&request).await;
        }
    }

    /// Waits until everybody stands where the next requests want them; `leader` leads.
    pub async fn settled(&self, leader: &str) {
        let wanted = self.cast[leader];
        // A leader that was held shows itself as one until it gets to what it is asked for.
        self.cluster
            .wait(&format!("{leader} leads"), SETTLED, || async {
                match self.cluster.leader().await? {
                    is if is == wanted => Ok(()),
                    is => Err(format!("{} leads", self.cluster.nodes[is].name)),
                }
            })
            .await;
        let is = self.cluster.healthy(SETTLED).await;
        assert_eq!(is, wanted, "{leader} leads\n{}", self.cluster.report());
    }

    pub async fn patch(&self, patch: Value, shown: impl Fn(&Value) -> bool) {
        let answer = self.cluster.send(0, "PATCH", "/config", patch.clone()).await;
        assert_eq!(answer.expect("an answer").status, 200, "{patch}");
        for who in ["alpha", "beta", "gamma"] {
            self.shows_config(who, &shown).await;
        }
    }

    /// Waits until this member shows such a configuration.
    pub async fn shows_config(&self, who: &str, wanted: impl Fn(&Value) -> bool) {
        let to = self.cast[who];
        self.cluster
            .wait("the configuration", SOON, || async {
                let config = self.cluster.get(to, "/config").await?.json();
                if wanted(&config) { Ok(()) } else { Err(config.to_string()) }
            })
            .await;
    }

    /// When its PostgreSQL started; null while it does not run.
    pub async fn started_at(&self, who: &str) -> Value {
        let status = self.cluster.get(self.cast[who], "/patroni").await.expect("an answer").json();
        status["postmaster_start_time"].clone()
    }

    pub async fn is_started_anew(&self, who: &str, before: &Value) {
        self.cluster
            .wait("another server", SETTLED, || async {
                let now = self.started_at(who).await;
                if now.is_null() || now == *before { Err(now.to_string()) } else { Ok(()) }
            })
            .await;
    }

    pub async fn pause(&self, on: bool) {
        let wanted = if on { json!(true) } else { Value::Null };
        self.patch(json!({ "pause": wanted }), |config| config["pause"] == wanted).await;
    }

    /// Gives the node that plays `who` exactly these tags.
    pub async fn tags(&self, who: &str, tags: Value) {
        self.cluster.tag(self.cast[who], &tags).await;
    }
}
