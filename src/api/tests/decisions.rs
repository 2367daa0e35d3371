//! `/decisions`. (REST-471)

use super::{Served, primary};
use crate::ha::journal::{Decision, Journal};
use crate::ha::ports::Reason;
use chrono::Utc;
use hathi_dcs::{Role, State};

pub fn add(journal: &Journal, number: u64, line: &str) {
    journal.add(Decision {
        number,
        times: 1,
        since: Utc::now(),
        at: Utc::now(),
        took_ms: 3,
        woken_by: vec!["store: leader".into()],
        ended: None,
        lock: "free".into(),
        role: Role::Replica,
        state: State::Running,
        line: line.into(),
        reasons: vec![Reason { rule: "HA-084", why: "somebody else was faster".into() }],
        started: Some("promote".into()),
        exit: None,
        recording: None,
    });
}

/// Proves REST-471: newest first, as many as asked for, one by its number; what is not kept is 404.
#[tokio::test]
async fn the_last_decisions_are_told() {
    let snapshot = primary();
    let journal = snapshot.journal.clone();
    let served = Served::new(snapshot).await;
    assert_eq!(served.get("/decisions").await.body, "[]");
    for number in 1..=30 {
        add(&journal, number, &format!("line {number}"));
    }
    let all = served.get("/decisions").await.json();
    assert_eq!(all.as_array().map(Vec::len), Some(20));
    assert_eq!(all[0]["number"], 30);
    assert_eq!(all[0]["line"], "line 30");
    assert_eq!(all[0]["reasons"][0]["rule"], "HA-084");
    assert_eq!(all[0]["woken_by"][0], "store: leader");
    assert_eq!(all[0]["started"], "promote");
    assert_eq!(all[0]["recording_bytes"], serde_json::Value::Null);
    let two = served.get("/decisions?limit=2").await.json();
    assert_eq!(two.as_array().map(Vec::len), Some(2));
    assert_eq!(served.get("/decisions/7").await.json()["line"], "line 7");
    for (target, status) in [
        ("/decisions?limit=x", 400),
        ("/decisions/31", 404),
        ("/decisions/x", 404),
        ("/decisions/7/recording", 404),
        ("/decisions/7/other", 404),
        ("/decisions/7/recording/x", 404),
    ] {
        assert_eq!(served.get(target).await.status, status, "{target}");
    }
}
