//! `GET /ui`: one page that shows the cluster, for a person with a telephone at night. It reads and
//! changes nothing; all it needs is in it. (REST-474)

use crate::api::asked::{Asked, readable_under};
use crate::api::{Context, answer};
use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub const PAGE: &str = include_str!("ui.html");

/// Nothing from elsewhere, nothing sent elsewhere, in nobody's frame.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub fn routes(_: &Context) -> BoxedFilter<(Response,)> {
    readable_under("ui")
        .map(|asked: Asked| {
            let mut response = answer::text(StatusCode::OK, Bytes::from_static(PAGE.as_bytes()));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html;charset=utf-8"));
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            answer::for_method(&asked.method, response)
        })
        .boxed()
}
