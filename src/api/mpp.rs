//! `POST /citus` and `POST /mpp`: a worker group of a sharded cluster announces a change of its
//! leader to the coordinator. This version coordinates no groups, so every announcement is heard and
//! ignored, as Patroni does where none are configured. Guarded like every other change. (REST-255,
//! REST-459)

use crate::api::write::{Expects, route};
use crate::api::{Context, answer};
use http::{Method, StatusCode};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let heard = |endpoint| {
        route(context, Method::POST, endpoint, Expects::Document, |_, _| async move {
            answer::text(StatusCode::OK, "OK")
        })
    };
    heard("citus").or(heard("mpp")).unify().boxed()
}
