//! `GET /events`: what changes, as server-sent events, so that nobody has to poll. (REST-473)
//!
//! ```text
//!   event: cluster    data: the document of /cluster, or null while the store does not answer
//!   event: status     data: this node in a few words
//!   event: decision   data: one entry of /decisions, without what it was made from
//! ```
//! The first two come at once and then when they change; a comment comes when nothing does.

use crate::api::asked::{Asked, readable_under};
use crate::api::prepared::{Prepared, Shelf};
use crate::api::snapshot::Snapshot;
use crate::api::{Context, answer, pyjson};
use crate::ha::journal::Decision;
use bytes::Bytes;
use futures::Stream;
use futures::stream;
use hathi_dcs::{Millis, boottime};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::json;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use warp::filters::BoxedFilter;
use warp::reply::Response;
use warp::{Filter, Reply};

/// Listeners at the same time: pages that people look at, not load balancers.
pub const LISTENERS: usize = 32;
/// Between two signs of life; also how late the passing of a deadline may be told.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// What changes more often is told together.
const AT_MOST_EVERY: Duration = Duration::from_millis(100);
/// Decisions told at once, if so many came in between.
const DECISIONS: usize = 50;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("events").map(move |asked: Asked| respond(&context, &asked)).boxed()
}

fn respond(context: &Context, asked: &Asked) -> Response {
    let Ok(place) = Arc::clone(&context.limits.listeners).try_acquire_owned() else {
        let response = answer::text(StatusCode::SERVICE_UNAVAILABLE, "too many listen already");
        return answer::for_method(&asked.method, response);
    };
    let listener = Listener::new(context, place);
    let mut response = warp::reply::stream(events(listener)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.extensions_mut().insert(answer::Normal);
    answer::for_method(&asked.method, response)
}

/// One client, and what it was told last.
struct Listener {
    shelf: Arc<Shelf>,
    published: watch::Receiver<Arc<Snapshot>>,
    closing: watch::Receiver<bool>,
    told: Option<Told>,
    _place: OwnedSemaphorePermit,
}

#[derive(PartialEq)]
struct Told {
    cluster: Option<Bytes>,
    status: String,
    /// The last turn that was told.
    turn: u64,
}

impl Listener {
    fn new(context: &Context, place: OwnedSemaphorePermit) -> Self {
        Self {
            shelf: Arc::clone(&context.shelf),
            published: context.shelf.published(),
            closing: context.closing.clone(),
            told: None,
            _place: place,
        }
    }

    /// Waits until there may be something new, or a sign of life is due. False: the end begins.
    async fn wait(&mut self) -> bool {
        if self.told.is_none() {
            return true;
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
        tokio::select! {
            changed = self.published.changed() => changed.is_ok(),
            _ = self.closing.changed() => false,
            () = tokio::time::sleep(SIGN_OF_LIFE) => true,
        }
    }

    /// What is new since the last time; a comment if nothing is.
    fn news(&mut self) -> Bytes {
        let now = boottime();
        let prepared = self.shelf.at(now);
        let journal = prepared.snapshot.journal.last(DECISIONS);
        let seen = Told {
            cluster: prepared.cluster(),
            status: pyjson::text(&status(&prepared, now)),
            turn: journal.first().map_or(0, |newest| newest.number),
        };
        let mut out = String::new();
        if self.told.as_ref().is_none_or(|told| told.cluster != seen.cluster) {
            let document = seen.cluster.as_deref().unwrap_or(b"null");
            event(&mut out, "cluster", &String::from_utf8_lossy(document));
        }
        if self.told.as_ref().is_none_or(|told| told.status != seen.status) {
            event(&mut out, "status", &seen.status);
        }
        // Whoever just came asks /decisions for what was before. Turns that come to the same as one
        // that was told are no news.
        if let Some(told) = &self.told {
            for decision in journal.iter().rev().filter(|one| one.first() > told.turn) {
                event(&mut out, "decision", &pyjson::text(&brief(decision)));
            }
        }
        if out.is_empty() {
            out.push_str(":\n\n");
        }
        self.told = Some(seen);
        Bytes::from(out)
    }
}

fn events(listener: Listener) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + Sync {
    stream::unfold(listener, |mut listener| async move {
        listener.wait().await.then(|| (Ok(listener.news()), listener))
    })
}

/// The data is one line: JSON of ours has no line ends.
fn event(out: &mut String, name: &str, data: &str) {
    let _ = write!(out, "event: {name}\ndata: {data}\n\n");
}

fn status(prepared: &Prepared, now: Millis) -> serde_json::Value {
    let (snapshot, told) = (&prepared.snapshot, &prepared.told);
    json!({
        "name": snapshot.me.as_str(),
        "scope": snapshot.scope,
        "state": told.state_text(),
        "role": told.role.as_str(),
        "timeline": told.timeline.0,
        "leads": snapshot.holds_lease(now),
        "demoting": snapshot.demoting,
        "pause": snapshot.shows_pause(now),
        "failsafe_mode_is_active": snapshot.failsafe_active(now),
        "store_answers": snapshot.valid_view(now).is_some(),
        "task": snapshot.task,
        "pending_restart": !snapshot.postgres.pending_restart.is_empty(),
    })
}

fn brief(decision: &Decision) -> serde_json::Value {
    json!({
        "number": decision.number,
        "at": decision.at,
        "line": decision.line,
        "lock": decision.lock,
        "role": decision.role,
        "reasons": decision.reasons,
        "started": decision.started,
        "ended": decision.ended,
    })
}
