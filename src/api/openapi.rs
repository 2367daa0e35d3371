//! `GET /openapi.json`: this API, described. Kept true by src/api/tests/openapi.rs over the routes and by
//! tests/rest/schema.rs against a live agent.

use crate::api::asked::{Asked, readable_under};
use crate::api::{Context, answer};
use bytes::Bytes;
use http::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub const DESCRIPTION: &str = include_str!("openapi.json");

pub fn routes(_: &Context) -> BoxedFilter<(Response,)> {
    readable_under("openapi.json")
        .map(|asked: Asked| {
            let body = Bytes::from_static(DESCRIPTION.as_bytes());
            answer::for_method(&asked.method, answer::json_bytes(StatusCode::OK, body))
        })
        .boxed()
}
