//! The thin client: one request to one agent, and one call over all of them under one deadline.
//! (DCS-038, DCS-041, DCS-070, DCS-122, DCS-301, DCS-302, DCS-306, chapter 4 of docs/spec/crates.md)

use crate::{ConsulConfig, tls};
use bytes::Bytes;
use hathi_dcs::flat::{Pauses, hedged};
use hathi_dcs::{DcsError, Deadline, boottime, with_causes};
use http::header::{HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// What stays as it is in a path or a query; the slash of a key is written by [`key_path`].
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The most that is read of an answer: a cluster of hundreds of members is far below.
const BODY_LIMIT: usize = 16 << 20;
/// How long one attempt may take while there is somebody else to ask, or another try.
const ATTEMPT_MS: u64 = 1_500;

/// One request, as it is sent to whichever agent answers.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub method: Method,
    /// With query, beginning with `/v1/`.
    pub path: String,
    pub body: Bytes,
}

impl Call {
    pub fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: Bytes::new() }
    }

    pub fn put(path: String, body: impl Into<Bytes>) -> Self {
        Self { method: Method::PUT, path, body: body.into() }
    }
}

/// `/v1/kv/` and the key, each of its parts escaped by itself.
pub(crate) fn key_path(key: &str) -> String {
    let mut path = "/v1/kv".to_owned();
    for part in key.split('/') {
        path.push('/');
        path.extend(utf8_percent_encode(part, PLAIN));
    }
    path
}

/// An answer of a Consul that is well.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    /// `X-Consul-Index`: how far the store was.
    pub index: u64,
    pub body: Bytes,
    /// An earlier sending of this call had no answer: it may have been carried out.
    pub repeated: bool,
}

/// What one attempt came to.
enum Attempt {
    Answered(Answer),
    /// It may have been carried out, or not.
    Unknown(String),
    /// It was not carried out; the same agent may do it in a moment, or another one.
    NotNow(String),
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub(crate) struct Agents {
    config: ConsulConfig,
    timeout_floor: Duration,
    client: OnceLock<Result<HttpClient, String>>,
    current: AtomicUsize,
    /// Changes when the calls leave an agent.
    moved: watch::Sender<()>,
}

impl Agents {
    pub fn new(config: ConsulConfig) -> Self {
        Self {
            config,
            timeout_floor: Duration::from_millis(ATTEMPT_MS),
            client: OnceLock::new(),
            current: AtomicUsize::new(0),
            moved: watch::Sender::new(()),
        }
    }

    pub fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    pub fn config(&self) -> &ConsulConfig {
        &self.config
    }

    /// `dc` and `consistency`, as they follow a `?` or `&`.
    pub fn flags(&self, consistent: bool) -> String {
        let mut flags = String::new();
        let flag = if consistent { Some("consistent") } else { self.config.consistency.flag() };
        if let Some(flag) = flag {
            flags.push('&');
            flags.push_str(flag);
        }
        flags.push_str(&self.dc());
        flags
    }

    pub fn dc(&self) -> String {
        match &self.config.dc {
            Some(dc) => format!("&dc={}", utf8_percent_encode(dc, PLAIN)),
            None => String::new(),
        }
    }

    fn client(&self) -> Result<&HttpClient, DcsError> {
        let made = self.client.get_or_init(|| {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(Duration::from_secs(2)));
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(tls::client(&self.config)?)
                .https_or_http()
                .enable_http1()
                .wrap_connector(tcp);
            Ok(Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(10))
                // Whether a request may be sent twice is decided here, not there.
                .retry_canceled_requests(false)
                .build(connector))
        });
        made.as_ref().map_err(|why| DcsError::NotRetriable {
            store: "consul".into(),
            why: format!("TLS cannot be set up: {why}"),
        })
    }

    /// The agent that is asked at the moment.
    fn host(&self) -> (usize, &str) {
        let which = self.current.load(Ordering::Relaxed);
        (which, self.host_at(which))
    }

    fn host_at(&self, which: usize) -> &str {
        let hosts = &self.config.hosts;
        hosts.get(which % hosts.len().max(1)).map_or("127.0.0.1:8500", String::as_str)
    }

    fn next_host(&self, from: usize) {
        self.move_to(from, from.wrapping_add(1));
    }

    fn move_to(&self, from: usize, to: usize) {
        // Somebody else may have moved on already.
        let done = self.current.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if done.is_ok() {
            self.moved.send_modify(|()| {});
        }
    }

    /// Asks until somebody answers or `by` is there. A missing key or session is an answer (404), a
    /// refused one too (500 with its reason); what is not, is `Unreachable` or `Refused`.
    pub async fn call(&self, by: Deadline, call: &Call) -> Result<Answer, DcsError> {
        let client = self.client()?;
        let began = boottime();
        let mut pauses = Pauses::default();
        let mut repeated = false;
        let mut last = "no time to ask".to_owned();
        let mut asked = 0_usize;
        let unreachable = |last: String| {
            let tried = boottime().since(began);
            Err(DcsError::unreachable(format!("consul {}", self.host().1), tried, last))
        };
        loop {
            let left = by.left();
            if left.is_zero() {
                return unreachable(last);
            }
            let (which, host) = self.host();
            // With one agent a slow answer is better than none: the second try gets all the rest.
            let alone = self.config.hosts.len() <= 1;
            let share = if alone { left / 2 } else { left / 3 };
            let limit = left.min(share.max(self.timeout_floor));
            match self.attempt(client, host, limit, call).await? {
                Attempt::Answered(answer) => return Ok(Answer { repeated, ..answer }),
                Attempt::Unknown(why) => {
                    repeated = true;
                    last = why;
                }
                Attempt::NotNow(why) => last = why,
            }
            self.next_host(which);
            asked += 1;
            // Between two rounds over all agents.
            if asked.is_multiple_of(self.config.hosts.len().max(1)) {
                match pauses.next(by, None) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return unreachable(last),
                }
            }
        }
    }

    /// The same for what the lock depends on, and what does no harm when it is under way several
    /// times: see [`hedged`]. Whoever answers is asked from then on. (DCS-302)
    pub async fn hedged(&self, by: Deadline, call: &Call) -> Result<Answer, DcsError> {
        let client = self.client()?;
        let began = boottime();
        let (which, first) = self.host();
        let last = Mutex::new("no answer".to_owned());
        let settled = hedged(by, |lane| {
            let last = &last;
            async move {
                let host = self.host_at(which.wrapping_add(lane));
                match self.attempt(client, host, by.left(), call).await {
                    Ok(Attempt::Answered(answer)) => Some(Ok(answer)),
                    Ok(Attempt::Unknown(why) | Attempt::NotNow(why)) => {
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = why;
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }
        });
        match settled.await {
            Some((lane, settled)) => {
                if lane > 0 {
                    self.move_to(which, which.wrapping_add(lane));
                }
                Ok(Answer { repeated: lane > 0, ..settled? })
            }
            None if by.left().is_zero() => {
                let (store, tried) = (format!("consul {first}"), boottime().since(began));
                Err(DcsError::unreachable(store, tried, last.into_inner().unwrap_or_default()))
            }
            None => Ok(Answer { repeated: true, ..self.call(by, call).await? }),
        }
    }

    /// One request that is never sent twice: for blocking queries.
    pub async fn once(&self, limit: Duration, call: &Call) -> Result<Answer, DcsError> {
        let client = self.client()?;
        let (which, host) = self.host();
        match self.attempt(client, host, limit, call).await? {
            Attempt::Answered(answer) => Ok(answer),
            Attempt::Unknown(why) | Attempt::NotNow(why) => {
                self.next_host(which);
                Err(DcsError::unreachable(format!("consul {host}"), 0, why))
            }
        }
    }

    /// One request to the agent of this machine: what is its affair alone.
    pub async fn beside(&self, limit: Duration, call: &Call) -> Result<Answer, DcsError> {
        let client = self.client()?;
        let host = self.config.hosts.first().map_or("127.0.0.1:8500", String::as_str);
        match self.attempt(client, host, limit, call).await? {
            Attempt::Answered(answer) => Ok(answer),
            Attempt::Unknown(why) | Attempt::NotNow(why) => {
                Err(DcsError::unreachable(format!("consul {host}"), 0, why))
            }
        }
    }

    async fn attempt(
        &self,
        client: &HttpClient,
        host: &str,
        limit: Duration,
        call: &Call,
    ) -> Result<Attempt, DcsError> {
        let scheme = if self.config.https { "https" } else { "http" };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{scheme}://{host}{}", call.path))
            .header(USER_AGENT, concat!("hathi/", env!("CARGO_PKG_VERSION")));
        let hopeless =
            |why: String| DcsError::NotRetriable { store: format!("consul {host}"), why };
        if let Some(token) = &self.config.token {
            let mut value = HeaderValue::try_from(token.as_str())
                .map_err(|_| hopeless("the token has bytes that HTTP cannot carry".into()))?;
            value.set_sensitive(true);
            request = request.header("X-Consul-Token", value);
        }
        let request = request
            .body(Full::new(call.body.clone()))
            .map_err(|why| hopeless(format!("the address cannot be asked: {why}")))?;
        let exchange = async {
            let response = client.request(request).await.map_err(|why| {
                let text = with_causes(&why);
                if why.is_connect() { Attempt::NotNow(text) } else { Attempt::Unknown(text) }
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await;
            let body = body.map_err(|why| Attempt::Unknown(why.to_string()))?.to_bytes();
            Ok((head, body))
        };
        let (head, body) = match timeout(limit, exchange).await {
            Ok(Ok(both)) => both,
            Ok(Err(attempt)) => return Ok(attempt),
            Err(_elapsed) => {
                return Ok(Attempt::Unknown(format!("no answer within {} ms", limit.as_millis())));
            }
        };
        let index = head.headers.get("X-Consul-Index").and_then(|value| value.to_str().ok());
        let index = index.and_then(|text| text.parse().ok()).unwrap_or(0);
        let answer = Answer { status: head.status, index, body, repeated: false };
        judge(host, answer)
    }
}

/// Errors of the store's own, by status and text. (DCS-038 … DCS-041)
fn judge(host: &str, answer: Answer) -> Result<Attempt, DcsError> {
    let text =
        || String::from_utf8_lossy(&answer.body).trim().chars().take(200).collect::<String>();
    let store = || format!("consul {host}");
    match answer.status.as_u16() {
        200 | 404 | 409 => Ok(Attempt::Answered(answer)),
        401 | 403 => Err(DcsError::Refused { store: store(), why: text() }),
        // A session that is unknown or too short is the caller's affair.
        500 if speaks_of_session(&text()) => Ok(Attempt::Answered(answer)),
        // "No cluster leader", "rpc error ...", a leadership that was just lost: it may be done.
        500..=599 => Ok(Attempt::Unknown(format!("{} {}", answer.status.as_u16(), text()))),
        429 => Ok(Attempt::NotNow(text())),
        413 | 400 => Err(DcsError::NotRetriable { store: store(), why: text() }),
        _ => Ok(Attempt::NotNow(format!("{} {}", answer.status.as_u16(), text()))),
    }
}

pub(crate) fn speaks_of_session(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("invalid session") || text.contains("unknown session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_part_by_part() {
        assert_eq!(key_path("service/a b?c/x%20y"), "/v1/kv/service/a%20b%3Fc/x%2520y");
        assert_eq!(key_path("service/batman/members/é"), "/v1/kv/service/batman/members/%C3%A9");
    }

    /// Proves DCS-038, DCS-039, DCS-040 and DCS-041 as far as an answer tells.
    #[test]
    fn answers_are_sorted_by_what_the_caller_can_do() {
        let ask = |status: u16, text: &'static str| {
            let status = StatusCode::from_u16(status).unwrap();
            let body = Bytes::from_static(text.as_bytes());
            judge("h:1", Answer { status, index: 0, body, repeated: false })
        };
        assert!(matches!(ask(200, "true"), Ok(Attempt::Answered(_))));
        assert!(matches!(ask(404, ""), Ok(Attempt::Answered(_))));
        assert!(matches!(ask(500, "No cluster leader"), Ok(Attempt::Unknown(_))));
        assert!(matches!(ask(500, "rpc error making call: EOF"), Ok(Attempt::Unknown(_))));
        assert!(matches!(ask(500, "invalid session \"x\""), Ok(Attempt::Answered(_))));
        assert!(matches!(ask(500, "Invalid Session TTL '5s'"), Ok(Attempt::Answered(_))));
        assert!(matches!(ask(403, "ACL not found"), Err(DcsError::Refused { .. })));
        assert!(matches!(ask(429, ""), Ok(Attempt::NotNow(_))));
    }
}
