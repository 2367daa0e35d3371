//! `GET /history`: how each timeline ended, as the last view has it. (REST-161)

use crate::api::asked::{Asked, readable_under};
use crate::api::cluster::NO_VIEW;
use crate::api::{Context, answer};
use hathi_dcs::boottime;
use http::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("history")
        .map(move |asked: Asked| {
            let now = boottime();
            let response = match context.shelf.at(now).snapshot.valid_view(now) {
                Some(view) => answer::json(StatusCode::OK, &view.history.to_value()),
                None => answer::text(StatusCode::SERVICE_UNAVAILABLE, NO_VIEW),
            };
            answer::for_method(&asked.method, response)
        })
        .boxed()
}
