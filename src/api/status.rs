//! `GET /patroni`: the status document as of now. The leader race of the other members asks here,
//! so a fresh look at PostgreSQL is waited for, half a second at most. (REST-346, REST-452)

use crate::api::asked::{Asked, readable_under};
use crate::api::{Context, answer};
use http::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("patroni")
        .then(move |asked: Asked| {
            let context = context.clone();
            async move {
                let prepared = context.shelf.fresh().await;
                let response = answer::json_bytes(StatusCode::OK, prepared.document.clone());
                answer::for_method(&asked.method, response)
            }
        })
        .boxed()
}
