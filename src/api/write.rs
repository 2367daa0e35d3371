//! How a request that changes something gets in: who may, then the body, then the handler. Whatever
//! is refused leaves the connection clean, so that the client sees the answer. (REST-020 … REST-026,
//! REST-270, REST-468)

use crate::api::access::{Peer, Refused};
use crate::api::asked::writes;
use crate::api::connections::Line;
use crate::api::events::LISTENERS;
use crate::api::order::Order;
use crate::api::serve::Current;
use crate::api::snapshot::Snapshot;
use crate::api::{Context, answer};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use hathi_dcs::boottime;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Method, StatusCode};
use serde_json::{Map, Value};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// The largest body that is read. (REST-467)
pub const BODY_LIMIT: usize = 1024 * 1024;
/// Bodies up to this size are read whatever else is going on; larger ones only a few at a time, so
/// that nobody fills the memory of a database server from outside.
const SMALL_BODY: usize = 64 * 1024;
const LARGE_BODIES: usize = 8;
/// Orders under way at the same time, fewer than the agent works on (`agent::orders`).
const ORDERS: usize = 24;
/// How long the rest of an unwanted body is read and thrown away.
const DRAIN_FOR: Duration = Duration::from_millis(200);

/// How much at the same time.
#[derive(Debug)]
pub struct Limits {
    large_bodies: Semaphore,
    orders: Semaphore,
    /// Of `/events`.
    pub listeners: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            large_bodies: Semaphore::new(LARGE_BODIES),
            orders: Semaphore::new(ORDERS),
            listeners: Arc::new(Semaphore::new(LISTENERS)),
        }
    }
}

/// The object a client sent. Empty when the route does not want one.
pub type Document = Map<String, Value>;

/// What a route expects as body.
#[derive(Clone, Copy, Debug)]
pub enum Expects {
    /// A JSON object with at least one key. (REST-020 … REST-024)
    Document,
    /// As `Document`, unless this already answers.
    DocumentUnless(fn(&Snapshot) -> Option<StatusCode>),
    /// No body is as good as an empty object; a bad one is refused all the same. (REST-020 …
    /// REST-024, second column; REST-246, REST-458)
    Optional,
    /// Whatever comes is read and dropped.
    Nothing,
}

/// One changing route: `method` on the first path segment `endpoint`, behind the access checks.
pub fn route<H, F>(
    context: &Context,
    method: Method,
    endpoint: &'static str,
    expects: Expects,
    handler: H,
) -> BoxedFilter<(Response,)>
where
    H: Fn(Context, Document) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let context = context.clone();
    writes(method, endpoint)
        .and(warp::ext::optional::<Peer>())
        .and(warp::ext::optional::<Arc<Line>>())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |peer: Option<Peer>, line: Option<Arc<Line>>, headers: HeaderMap, body| {
            let (context, handler) = (context.clone(), handler.clone());
            async move {
                match enter(&context, endpoint, expects, peer, &headers, body).await {
                    Ok(document) => {
                        if let Some(line) = line {
                            line.obeys();
                        }
                        handler(context.clone(), document).await
                    }
                    Err(refusal) => refusal,
                }
            }
        })
        .boxed()
}

async fn enter<B: Buf>(
    context: &Context,
    endpoint: &'static str,
    expects: Expects,
    peer: Option<Peer>,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Result<Document, Response> {
    let mut body = pin!(body);
    let snapshot = context.shelf.at(boottime()).snapshot.clone();
    let Current { access, request_timeout, .. } = context.current.borrow().clone();
    if let Err(refused) = access.check(endpoint, peer, headers, &snapshot).await {
        drain(body).await;
        return Err(refusal(refused));
    }
    let early = match expects {
        Expects::Nothing => {
            drain(body).await;
            return Ok(Document::new());
        }
        Expects::Optional if is_absent(headers) => {
            drain(body).await;
            return Ok(Document::new());
        }
        Expects::Document | Expects::Optional => None,
        Expects::DocumentUnless(answers) => answers(&snapshot),
    };
    let document = match early {
        Some(status) => Err(status),
        None => match announced(headers) {
            Ok(length) => {
                let read = async {
                    // Closed never: the permit is there, or the client's time runs out.
                    let _permit = match length > SMALL_BODY {
                        true => context.limits.large_bodies.acquire().await.ok(),
                        false => None,
                    };
                    collect(body.as_mut(), length).await
                };
                match tokio::time::timeout(request_timeout, read).await {
                    Ok(read) => read.and_then(|bytes| match expects {
                        Expects::Optional => parse_object(&bytes),
                        Expects::Document | Expects::DocumentUnless(_) | Expects::Nothing => {
                            parse(&bytes)
                        }
                    }),
                    Err(_) => return Err(answer::page(StatusCode::REQUEST_TIMEOUT)),
                }
            }
            Err(status) => Err(status),
        },
    };
    match document {
        Ok(document) => Ok(document),
        Err(status) => {
            drain(body).await;
            Err(answer::page(status))
        }
    }
}

fn refusal(refused: Refused) -> Response {
    let mut response = answer::text(refused.status(), refused.text());
    if refused.asks_for_credentials() {
        let realm = http::HeaderValue::from_static("Basic realm=\"Patroni\"");
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, realm);
    }
    response
}

/// The length the client announced. A body without one is not read. (REST-020, REST-021, REST-467)
fn announced(headers: &HeaderMap) -> Result<usize, StatusCode> {
    let length = headers.get(CONTENT_LENGTH).ok_or(StatusCode::LENGTH_REQUIRED)?;
    let length = length.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
    match length.map(usize::try_from) {
        None | Some(Ok(0)) => Err(StatusCode::BAD_REQUEST),
        Some(Ok(length)) if length <= BODY_LIMIT => Ok(length),
        Some(_) => Err(StatusCode::PAYLOAD_TOO_LARGE),
    }
}

async fn collect<B: Buf>(
    mut body: impl Stream<Item = Result<B, warp::Error>> + Unpin,
    length: usize,
) -> Result<Bytes, StatusCode> {
    let mut bytes = BytesMut::with_capacity(length.min(SMALL_BODY));
    while let Some(part) = body.next().await {
        let mut part = part.map_err(|_| StatusCode::BAD_REQUEST)?;
        if bytes.len() + part.remaining() > BODY_LIMIT {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let part = part.copy_to_bytes(part.remaining());
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.freeze())
}

/// No length, or nothing to come. (REST-020, REST-021)
fn is_absent(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_LENGTH)
        .is_none_or(|length| length.to_str().is_ok_and(|text| matches!(text.trim(), "" | "0")))
}

fn parse_object(bytes: &[u8]) -> Result<Document, StatusCode> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) | Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

/// (REST-022, REST-023)
pub fn parse(bytes: &[u8]) -> Result<Document, StatusCode> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(document)) if !document.is_empty() => Ok(document),
        Ok(_) | Err(_) => Err(StatusCode::BAD_REQUEST),
    }
}

/// Reads what is already on its way, so that closing the connection does not reset it and take the
/// answer with it.
async fn drain<B: Buf>(mut body: impl Stream<Item = Result<B, warp::Error>> + Unpin) {
    let _ = tokio::time::timeout(DRAIN_FOR, async {
        let mut left = 4 * BODY_LIMIT;
        while let Some(Ok(part)) = body.next().await {
            left = left.saturating_sub(part.remaining());
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

/// Sends an order to the agent and waits for what comes of it, `patience_ms` at most.
///
/// # Errors
/// The answer for the client when the agent does not take or answer it: the outcome is unknown.
pub async fn order<T>(
    context: &Context,
    patience_ms: u64,
    make: impl FnOnce(oneshot::Sender<T>) -> Order,
) -> Result<T, Response> {
    let Ok(_permit) = context.limits.orders.try_acquire() else {
        return Err(answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many orders are under way; nothing was done, try again",
        ));
    };
    let (reply, outcome) = oneshot::channel();
    let work = async {
        context.shelf.orders().send(make(reply)).await.ok()?;
        outcome.await.ok()
    };
    let outcome = tokio::time::timeout(Duration::from_millis(patience_ms), work).await;
    context.shelf.ordered();
    match outcome {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) => {
            Err(answer::text(StatusCode::SERVICE_UNAVAILABLE, "the agent is shutting down"))
        }
        Err(_) => Err(answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no answer from the agent in time; the operation may still be in progress",
        )),
    }
}
