//! `GET /decisions`: what the last turns decided and why; `GET /decisions/<number>/recording`: one of
//! them, to be run again with `hathi replay`. (REST-471, HA-320)

use crate::api::asked::{Asked, readable_under};
use crate::api::{Context, answer};
use crate::ha::journal::Journal;
use bytes::Bytes;
use hathi_dcs::boottime;
use http::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// Without `limit`.
const DEFAULT_LIMIT: usize = 20;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("decisions")
        .map(move |asked: Asked| {
            let response = respond(&asked, &context.shelf.at(boottime()).snapshot.journal);
            answer::for_method(&asked.method, response)
        })
        .boxed()
}

fn respond(asked: &Asked, journal: &Journal) -> Response {
    let rest = asked.path.trim_matches('/').strip_prefix("decisions").unwrap_or_default();
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next(), parts.next()) {
        (None, _, _) => {
            let limit = match asked.query.get("limit").map(str::parse) {
                None => DEFAULT_LIMIT,
                Some(Ok(limit)) => limit,
                Some(Err(_)) => {
                    return answer::text(StatusCode::BAD_REQUEST, "limit is not a number");
                }
            };
            let decisions: Vec<_> = journal.last(limit);
            answer::json(StatusCode::OK, &decisions.iter().map(|kept| &**kept).collect::<Vec<_>>())
        }
        (Some(number), what, None) => {
            let found = number.parse().ok().and_then(|number| journal.find(number));
            match (found, what) {
                (None, _) => answer::text(StatusCode::NOT_FOUND, "this decision is not kept"),
                (Some(decision), None) => answer::json(StatusCode::OK, &*decision),
                (Some(decision), Some("recording")) => match &decision.recording {
                    Some(recording) => answer::json_bytes(
                        StatusCode::OK,
                        Bytes::copy_from_slice(recording.as_bytes()),
                    ),
                    None => answer::text(StatusCode::NOT_FOUND, "its recording is not kept"),
                },
                (Some(_), Some(_)) => answer::page(StatusCode::NOT_FOUND),
            }
        }
        (Some(_), _, Some(_)) => answer::page(StatusCode::NOT_FOUND),
    }
}
