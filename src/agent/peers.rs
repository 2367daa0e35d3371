//! The questions of the leader race and of failsafe mode to the other members. A refused connection is an answer: that
//! member is down. Nothing here decides. (REST-346)

pub use crate::agent::http::{
    ClientSettings, HttpAnswer, HttpClient, HttpError, SettingsError, endpoint,
};
use crate::ha::ports::{PeerAnswer, Peers, Probe};
use crate::ha::promise::{Call, Vow};
use futures::future::Either;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use hathi_dcs::{Deadline, Lsn, MemberData, MemberName, Timeline};
use serde_json::Value;
use std::sync::Arc;

/// The port [`Peers`], over HTTP.
#[derive(Clone, Debug)]
pub struct HttpPeers {
    client: HttpClient,
}

impl HttpPeers {
    pub fn new(client: HttpClient) -> Self {
        Self { client }
    }
}

impl Peers for HttpPeers {
    fn probe(
        &self,
        members: Vec<(MemberName, String)>,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Probe)> {
        members
            .into_iter()
            .map(|(name, url)| {
                let client = self.client.clone();
                async move {
                    let probe = match client.get(&url, by).await {
                        Ok(answer) => read(&answer.body),
                        Err(why) => Probe::Unreachable(why.to_string()),
                    };
                    (name, probe)
                }
            })
            .collect::<FuturesUnordered<_>>()
            .boxed()
    }

    fn failsafe(
        &self,
        members: Vec<(MemberName, String)>,
        call: Call,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Vow)> {
        let body = Arc::new(call.to_wire());
        members
            .into_iter()
            .map(|(name, url)| {
                let (client, body) = (self.client.clone(), body.clone());
                async move { (name, ask_twice(&client, &url, &body, by).await) }
            })
            .collect::<FuturesUnordered<_>>()
            .boxed()
    }
}

/// Asks, and asks once more at half the time: a slow network gets the whole of it, and a member that
/// just came back its second chance. (HA-156, HA-306)
async fn ask_twice(client: &HttpClient, url: &str, body: &Value, by: Deadline) -> Vow {
    let Some(url) = endpoint(url, "failsafe") else {
        return Vow::Refused(format!("{url} is no URL"));
    };
    let first = client.post(&url, body, by);
    let second = async {
        tokio::time::sleep(by.left() / 2).await;
        client.post(&url, body, by).await
    };
    let answer = match futures::future::select(std::pin::pin!(first), std::pin::pin!(second)).await
    {
        Either::Left((Err(_), second)) => second.await,
        Either::Right((Err(_), first)) => first.await,
        Either::Left((answer, _)) | Either::Right((answer, _)) => answer,
    };
    match answer {
        Ok(answer) => vow(&answer),
        Err(why) => Vow::Refused(why.to_string()),
    }
}

/// Only 200 and exactly `Accepted` is a promise. (REST-347)
fn vow(answer: &HttpAnswer) -> Vow {
    if answer.status == http::StatusCode::OK && &answer.body[..] == b"Accepted" {
        let lsn = answer.headers.get("lsn").and_then(|lsn| lsn.to_str().ok());
        return Vow::Accepted { lsn: lsn.and_then(|lsn| lsn.trim().parse().ok()).map(Lsn) };
    }
    let said: String = String::from_utf8_lossy(&answer.body).chars().take(80).collect();
    Vow::Refused(format!("{} {said}", answer.status.as_u16()))
}

/// Reads a status document; the status code does not matter. A member without positions cannot take
/// part. (REST-346)
pub fn read(body: &[u8]) -> Probe {
    let Ok(Value::Object(document)) = serde_json::from_slice(body) else {
        return Probe::Unreachable("the answer is no status document".to_owned());
    };
    let wal = ["wal", "xlog"].iter().find_map(|key| {
        document.get(*key).and_then(Value::as_object).filter(|wal| !wal.is_empty())
    });
    let Some(wal) = wal else {
        let state = document.get("state").and_then(Value::as_str).unwrap_or("unknown");
        return Probe::Unreachable(format!("its PostgreSQL has no position (state: {state})"));
    };
    let lsn = |key: &str| wal.get(key).and_then(Value::as_u64).map_or(Lsn(0), Lsn);
    let location = lsn("location");
    let says_primary = document
        .get("role")
        .and_then(Value::as_str)
        .is_some_and(|role| role == "primary" || role == "master");
    let in_recovery = location == Lsn(0) && !says_primary;
    let timeline = document.get("timeline").and_then(Value::as_u64);
    let tags = document.get("tags").and_then(Value::as_object).cloned().unwrap_or_default();
    let tags = MemberData { tags, ..MemberData::default() };
    Probe::Answered(PeerAnswer {
        in_recovery,
        lsn: location.max(lsn("received_location")).max(lsn("replayed_location")),
        timeline: Timeline(timeline.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)),
        nofailover: tags.nofailover(),
        failover_priority: tags.failover_priority(),
        watchdog_failed: document.get("watchdog_failed").and_then(Value::as_bool).unwrap_or(false),
    })
}

#[cfg(test)]
#[path = "peers_test.rs"]
mod tests;
