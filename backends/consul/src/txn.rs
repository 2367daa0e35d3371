//! One atomic step: a list of conditions and writes that happens whole or not at all. (DCS-306)

use crate::http::{Answer, Call, speaks_of_session};
use crate::store::Shared;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hathi_dcs::{DcsError, Deadline};
use serde::{Deserialize, Serialize};

/// One line of a transaction.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Op {
    verb: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
}

impl Op {
    fn new(verb: &'static str, key: String) -> Self {
        Self { verb, key, value: None, index: None, session: None }
    }

    fn valued(self, value: &str) -> Self {
        Self { value: Some(STANDARD.encode(value)), ..self }
    }

    pub fn set(key: String, value: &str) -> Self {
        Self::new("set", key).valued(value)
    }

    /// Index 0: only if the key does not exist.
    pub fn cas(key: String, value: &str, index: u64) -> Self {
        Self { index: Some(index), ..Self::new("cas", key).valued(value) }
    }

    /// Writes and binds to the session; not if another session holds the key.
    pub fn lock(key: String, value: &str, session: &str) -> Self {
        Self { session: Some(session.into()), ..Self::new("lock", key).valued(value) }
    }

    pub fn unlock(key: String, value: &str, session: &str) -> Self {
        Self { session: Some(session.into()), ..Self::new("unlock", key).valued(value) }
    }

    pub fn delete(key: String) -> Self {
        Self::new("delete", key)
    }

    pub fn delete_tree(prefix: String) -> Self {
        Self::new("delete-tree", prefix)
    }

    pub fn absent(key: String) -> Self {
        Self::new("check-not-exists", key)
    }

    /// The key exists and has this very version.
    pub fn unchanged(key: String, index: u64) -> Self {
        Self { index: Some(index), ..Self::new("check-index", key) }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// With the index of its writes; 0 when it only deleted.
    Committed { index: u64 },
    /// A condition did not hold. `repeated`: an earlier sending may have been carried out.
    Refused { repeated: bool },
    /// A session it names does not exist (any more).
    SessionGone,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reply {
    #[serde(default)]
    results: Option<Vec<Line>>,
    #[serde(default)]
    errors: Option<Vec<Trouble>>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "KV")]
    kv: Option<Written>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    #[serde(default)]
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Trouble {
    #[serde(default)]
    what: String,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(rename = "KV")]
    kv: &'a Op,
}

impl Shared {
    /// Runs the operations as one; every one of them, or none.
    pub(crate) async fn txn(&self, by: Deadline, ops: &[Op]) -> Result<Done, DcsError> {
        let lines: Vec<Request<'_>> = ops.iter().map(|kv| Request { kv }).collect();
        let body = serde_json::to_vec(&lines).map_err(|why| strange(&why))?;
        let path = format!("/v1/txn?{}", self.agents.dc().trim_start_matches('&'));
        let answer = self.agents.call(by, &Call::put(path, body)).await?;
        let done = read(&answer)?;
        if let Done::Committed { index } = done {
            self.wrote(index);
        }
        Ok(done)
    }
}

fn strange(why: &dyn std::fmt::Display) -> DcsError {
    DcsError::unreachable("consul", 0, format!("an answer that is none: {why}"))
}

fn read(answer: &Answer) -> Result<Done, DcsError> {
    if speaks_of_session(&String::from_utf8_lossy(&answer.body)) {
        return Ok(Done::SessionGone);
    }
    let reply: Reply = serde_json::from_slice(&answer.body).map_err(|why| strange(&why))?;
    match answer.status.as_u16() {
        200 => {
            let written = reply.results.into_iter().flatten().filter_map(|line| line.kv);
            let index = written.map(|kv| kv.modify_index).max().unwrap_or(0);
            Ok(Done::Committed { index })
        }
        409 => {
            for trouble in reply.errors.into_iter().flatten() {
                // No word about the key: who may not ask learns nothing of it. (DCS-041)
                if trouble.what.contains("Permission denied") {
                    return Err(DcsError::Refused { store: "consul".into(), why: trouble.what });
                }
                tracing::trace!("consul refused a transaction: {}", trouble.what);
            }
            Ok(Done::Refused { repeated: answer.repeated })
        }
        other => Err(strange(&format!("status {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;

    fn answer(status: u16, text: &'static str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, index: 0, body: Bytes::from_static(text.as_bytes()), repeated: true }
    }

    #[test]
    fn the_store_is_understood() {
        let op = Op::lock("service/b/leader".into(), "a", "s-1");
        let wire = serde_json::to_string(&[Request { kv: &op }]).unwrap();
        let expected =
            r#"[{"KV":{"Verb":"lock","Key":"service/b/leader","Value":"YQ==","Session":"s-1"}}]"#;
        assert_eq!(wire, expected);
        let committed =
            r#"{"Results":[{"KV":{"Key":"k","ModifyIndex":18,"CreateIndex":14}}],"Errors":null}"#;
        assert_eq!(read(&answer(200, committed)).unwrap(), Done::Committed { index: 18 });
        let nothing = r#"{"Results":[],"Errors":null}"#;
        assert_eq!(read(&answer(200, nothing)).unwrap(), Done::Committed { index: 0 });
        let refused = r#"{"Results":null,"Errors":[{"OpIndex":0,"What":"key \"k\" exists"}]}"#;
        assert_eq!(read(&answer(409, refused)).unwrap(), Done::Refused { repeated: true });
        let gone = r#"{"Results":null,"Errors":[{"OpIndex":0,"What":"invalid session \"x\""}]}"#;
        assert_eq!(read(&answer(409, gone)).unwrap(), Done::SessionGone);
        let denied = r#"{"Results":null,"Errors":[{"OpIndex":0,"What":"Permission denied"}]}"#;
        assert!(matches!(read(&answer(409, denied)), Err(DcsError::Refused { .. })));
        assert!(read(&answer(200, "<html>")).is_err());
    }
}
