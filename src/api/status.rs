//! `GET /patroni`: the status document. The leader race of the other members asks here, so they get it
//! as of now; everybody else as of a moment ago, which costs PostgreSQL nothing. (REST-346, REST-452)

use crate::api::asked::{Asked, readable_under};
use crate::api::{Context, answer};
use http::{HeaderValue, StatusCode};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("patroni")
        .and(from_member())
        .then(move |asked: Asked, from_member: bool| {
            let context = context.clone();
            async move {
                let prepared = match from_member {
                    true => context.shelf.as_of_now().await,
                    false => context.shelf.recent().await,
                };
                let response = answer::json_bytes(StatusCode::OK, prepared.document.clone());
                answer::for_method(&asked.method, response)
            }
        })
        .boxed()
}

/// Members say so, Patroni's and ours. (REST-349)
fn from_member() -> BoxedFilter<(bool,)> {
    warp::header::value("user-agent")
        .map(|agent: HeaderValue| {
            ["Patroni/", "hathi/"].iter().any(|name| agent.as_bytes().starts_with(name.as_bytes()))
        })
        .or(warp::any().map(|| false))
        .unify()
        .boxed()
}
