//! `/config`: the dynamic configuration, shown from the last view, changed by orders. (REST-162 …
//! REST-165, REST-465)

use crate::api::asked::{Asked, readable_under};
use crate::api::cluster::NO_VIEW;
use crate::api::order::{ConfigOutcome, Order};
use crate::api::write::{Expects, order, route};
use crate::api::{Context, answer};
use hathi_dcs::boottime;
use http::header::{HeaderValue, WARNING};
use http::{Method, StatusCode};
use tokio::sync::oneshot;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let reading = context.clone();
    let read = readable_under("config").map(move |asked: Asked| {
        let response = show(&reading);
        answer::for_method(&asked.method, response)
    });
    let patch = route(
        context,
        Method::PATCH,
        "config",
        Expects::Document,
        |context, document| async move {
            change(&context, true, |reply| Order::PatchConfig { document, reply }).await
        },
    );
    let put =
        route(context, Method::PUT, "config", Expects::Document, |context, document| async move {
            change(&context, false, |reply| Order::PutConfig { document, reply }).await
        });
    read.or(patch).unify().or(put).unify().boxed()
}

/// (REST-162)
fn show(context: &Context) -> Response {
    let now = boottime();
    match context.shelf.at(now).snapshot.valid_view(now) {
        None => answer::text(StatusCode::SERVICE_UNAVAILABLE, NO_VIEW),
        Some(view) => match &view.config {
            Some(config) => answer::json(StatusCode::OK, &config.value),
            None => answer::page(StatusCode::BAD_GATEWAY),
        },
    }
}

/// At most so many are sent; the agents' logs have all of them.
const WARNINGS: usize = 8;

/// `299 hathi "text"`; what a header cannot carry becomes a question mark.
fn warning(text: &str) -> HeaderValue {
    let quoted: String = text
        .chars()
        .take(200)
        .map(|c| match c {
            '"' | '\\' => '\'',
            c if c.is_ascii() && !c.is_ascii_control() => c,
            _ => '?',
        })
        .collect();
    HeaderValue::try_from(format!("299 hathi \"{quoted}\""))
        .unwrap_or(HeaderValue::from_static("299 hathi \"see the log\""))
}

async fn change(
    context: &Context,
    merge: bool,
    make: impl FnOnce(oneshot::Sender<ConfigOutcome>) -> Order,
) -> Response {
    let timing = context.shelf.at(boottime()).snapshot.timing;
    // A fresh read and a write, each with the store's own patience.
    let patience = 2 * timing.retry_timeout_ms() + 1000;
    match order(context, patience, make).await {
        Err(busy) => busy,
        Ok(ConfigOutcome::Stored { document, objections }) => {
            let mut response = answer::json(StatusCode::OK, &document);
            for objection in objections.iter().take(WARNINGS) {
                response.headers_mut().append(WARNING, warning(objection));
            }
            response
        }
        Ok(ConfigOutcome::Refused(objections)) => answer::text(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("not stored (restapi.strict_config): {}", objections.join("; ")),
        ),
        Ok(ConfigOutcome::Missing) => answer::page(StatusCode::SERVICE_UNAVAILABLE),
        Ok(ConfigOutcome::Conflict) => answer::page(StatusCode::CONFLICT),
        Ok(ConfigOutcome::Failed(why)) if merge => answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the configuration was not changed as far as we know: {why}"),
        ),
        Ok(ConfigOutcome::Failed(why)) => {
            tracing::warn!(why, "PUT /config: the store did not take the configuration");
            answer::page(StatusCode::BAD_GATEWAY)
        }
    }
}
