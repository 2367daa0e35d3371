//! `/failsafe`: the record of the store, and the promise to a primary that lost the store. Whether it
//! is given, and what it binds to, is the core's: [`crate::ha::promise`]. (REST-250 … REST-252)

use crate::api::asked::{Asked, readable_under};
use crate::api::document::Positions;
use crate::api::write::{Document, Expects, route};
use crate::api::{Context, answer};
use crate::ha::promise::Call;
use hathi_dcs::{Lsn, Millis, boottime};
use http::header::HeaderValue;
use http::{Method, StatusCode};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let reading = context.clone();
    let read = readable_under("failsafe").map(move |asked: Asked| {
        let response = match &reading.shelf.at(boottime()).snapshot.failsafe {
            Some(record) => answer::json(StatusCode::OK, record),
            None => answer::page(StatusCode::BAD_GATEWAY),
        };
        answer::for_method(&asked.method, response)
    });
    // Mode off: the body is not looked at.
    let expects =
        Expects::DocumentUnless(|now| (!now.failsafe_mode).then_some(StatusCode::BAD_GATEWAY));
    let write = route(context, Method::POST, "failsafe", expects, |context, document| async move {
        promise(&context, &document, boottime())
    });
    read.or(write).unify().boxed()
}

/// HA-157.
fn promise(context: &Context, document: &Document, now: Millis) -> Response {
    let prepared = context.shelf.at(now);
    let (snapshot, told) = (&prepared.snapshot, &prepared.told);
    if snapshot.postgres.is_primary || matches!(told.positions, Positions::Primary { .. }) {
        return answer::text(StatusCode::INTERNAL_SERVER_ERROR, "Running as a leader");
    }
    if snapshot.holds_lease(now) {
        return answer::text(StatusCode::INTERNAL_SERVER_ERROR, "Holding the leader key");
    }
    let Some(call) = Call::parse(document) else {
        return answer::text(StatusCode::BAD_REQUEST, "name, conn_url and api_url are required");
    };
    match snapshot.gate.accept(call, snapshot.timing.ttl_ms(), now) {
        Ok(()) => {
            let mut response = answer::text(StatusCode::OK, "Accepted");
            let lsn = match told.positions {
                Positions::Standby { received, replayed, .. } => received.max(replayed),
                Positions::Primary { .. } | Positions::Unknown => Lsn(0),
            };
            if lsn > Lsn(0) {
                response.headers_mut().insert("lsn", HeaderValue::from(lsn.0));
            }
            response
        }
        Err(why) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}
