//! `/failsafe`, as far as a member answers it that does not take part in failsafe mode: the record
//! of the store, and to a leader the clear word that it must not count on us. (REST-250, REST-251)

use crate::api::asked::{Asked, readable_under};
use crate::api::document::Positions;
use crate::api::write::{Expects, route};
use crate::api::{Context, answer};
use hathi_dcs::boottime;
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
        reading.tally.count("failsafe", response.status());
        answer::for_method(&asked.method, response)
    });
    // Mode off: the body is not looked at.
    let expects =
        Expects::DocumentUnless(|now| (!now.failsafe_mode).then_some(StatusCode::BAD_GATEWAY));
    let write = route(context, Method::POST, "failsafe", expects, |context, _| async move {
        match context.shelf.at(boottime()).told.positions {
            Positions::Primary { .. } => {
                answer::text(StatusCode::INTERNAL_SERVER_ERROR, "Running as a leader")
            }
            Positions::Standby { .. } | Positions::Unknown => answer::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "this member does not take part in failsafe mode",
            ),
        }
    });
    read.or(write).unify().boxed()
}
