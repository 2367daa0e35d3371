//! The agents' REST API as any client sees it.

use crate::ports::Place;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// One request on a fresh connection, at most `within`.
///
/// # Errors
/// No complete answer in time, as text.
pub async fn request(
    method: &str,
    place: impl Place,
    path: &str,
    body: Option<&Value>,
    within: Duration,
) -> Result<Answer, String> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let text = body.map(|b| b.to_string()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", place.at()))
        .header("content-length", text.len())
        .header("connection", "close")
        .body(Full::new(Bytes::from(text)))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let reply = client.request(request).await.map_err(|e| format!("{e:?}"))?;
        let status = reply.status().as_u16();
        let raw = reply.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&raw).into_owned() })
    };
    tokio::time::timeout(within, answer).await.map_err(|_| format!("no answer in {within:?}"))?
}

/// GET with the patience of a load balancer.
///
/// # Errors
/// As [`request`].
pub async fn get(place: impl Place, path: &str) -> Result<Answer, String> {
    request("GET", place, path, None, Duration::from_secs(3)).await
}
