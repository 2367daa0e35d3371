//! What operators order: switchover, failover, reload. The body is checked here; everything that
//! needs the store is the agent's. (REST-190, REST-194, REST-240)

use crate::api::order::Order;
use crate::api::write::{Document, Expects, order, route};
use crate::api::{Context, answer};
use crate::ha::manual::{Answer, Request};
use chrono::{DateTime, FixedOffset, Utc};
use hathi_dcs::moment::{self, Typed};
use hathi_dcs::{Failover, MemberName, boottime};
use http::{Method, StatusCode};
use serde_json::{Map, Value};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let switchover =
        route(context, Method::POST, "switchover", Expects::Document, |context, body| async move {
            change_leader(&context, true, &body).await
        });
    let failover =
        route(context, Method::POST, "failover", Expects::Document, |context, body| async move {
            change_leader(&context, false, &body).await
        });
    let deletion =
        route(context, Method::DELETE, "switchover", Expects::Nothing, |context, _| async move {
            delete_schedule(&context).await
        });
    let reload =
        route(context, Method::POST, "reload", Expects::Nothing, |context, _| async move {
            reload(&context).await
        });
    // Known for a test suite on another system; it has no effect anywhere else. (REST-241)
    let sigterm = route(context, Method::POST, "sigterm", Expects::Nothing, |_, _| async move {
        answer::text(StatusCode::ACCEPTED, "shutdown scheduled")
    });
    let manual = switchover.or(failover).unify().or(deletion).unify();
    manual.or(reload).unify().or(sigterm).unify().boxed()
}

async fn change_leader(context: &Context, switchover: bool, document: &Document) -> Response {
    let now = boottime();
    let snapshot = context.shelf.at(now).snapshot.clone();
    let request = match parse(switchover, document, snapshot.shows_pause(now), Utc::now()) {
        Ok(request) => request,
        Err(refusal) => return from(refusal),
    };
    let timing = snapshot.timing;
    // What the agent may need at most (`Order::Manual`), and five seconds for the way.
    let waits = 2 * timing.loop_wait_ms().max(10_000);
    let patience = waits + timing.retry_timeout_ms() + 5000;
    match order(context, patience, |reply| Order::Manual { request, reply }).await {
        Ok(answer) => from(answer),
        Err(busy) => busy,
    }
}

pub(super) fn from(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer::text(status, answer.text)
}

/// Checks 3 to 9 of REST-190, in their order.
///
/// # Errors
/// The refusal for the client.
pub fn parse(
    switchover: bool,
    body: &Map<String, Value>,
    paused: bool,
    now: DateTime<Utc>,
) -> Result<Request, Answer> {
    let refuse = |status: u16, text: &str| Err(Answer { status, text: text.to_owned() });
    let leader = name(body.get("leader"))?;
    let candidate = match name(body.get("candidate"))? {
        Some(candidate) => Some(candidate),
        None => name(body.get("member"))?,
    };
    let scheduled = given(body.get("scheduled_at"));
    if !switchover && candidate.is_none() {
        return refuse(400, "Failover could be performed only to a specific candidate");
    }
    if switchover && leader.is_none() {
        return refuse(400, "Switchover could be performed only from a specific leader");
    }
    let scheduled_at = match scheduled {
        None => None,
        Some(_) if !switchover => return refuse(400, "Failover can't be scheduled"),
        Some(_) if paused => {
            return refuse(400, "Can't schedule switchover in the paused state");
        }
        Some(value) => Some(schedule("switchover", value, now)?),
    };
    Ok(Request { switchover, failover: Failover { leader, candidate, scheduled_at } })
}

/// Rows 7 to 9: a moment that lies ahead, wherever on earth. (REST-190, REST-220)
///
/// # Errors
/// The refusal for the client.
pub(super) fn schedule(
    action: &str,
    value: &Value,
    now: DateTime<Utc>,
) -> Result<DateTime<FixedOffset>, Answer> {
    match value.as_str().map_or(Typed::Unreadable, moment::read) {
        Typed::Unreadable => Err(Answer::new(
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, \
             e.g. ISO 8601",
        )),
        Typed::WithoutZone => Err(Answer::new(
            400,
            format!("Timezone information is mandatory for the scheduled {action}"),
        )),
        Typed::At(at) if at < now => {
            Err(Answer::new(422, format!("Cannot schedule {action} in the past")))
        }
        Typed::At(at) => Ok(at),
    }
}

/// Empty values count as absent.
fn given(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    })
}

/// A member's name; anything but text is refused instead of guessed at. (REST-457)
fn name(value: Option<&Value>) -> Result<Option<MemberName>, Answer> {
    match given(value) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(MemberName(name.clone()))),
        Some(other) => {
            Err(Answer { status: 400, text: format!("a member's name is text, not {other}") })
        }
    }
}

/// (REST-194)
async fn delete_schedule(context: &Context) -> Response {
    let timing = context.shelf.at(boottime()).snapshot.timing;
    let patience = 2 * timing.retry_timeout_ms() + 1000;
    match order(context, patience, |reply| Order::DeleteSchedule { reply }).await {
        Ok(Answer { status: 409, .. }) => answer::page(StatusCode::CONFLICT),
        Ok(answer) => from(answer),
        Err(busy) => busy,
    }
}

/// Always accepted; what comes of it stands in the log. (REST-240)
async fn reload(context: &Context) -> Response {
    match order(context, 2000, |reply| Order::Reload { reply }).await {
        Ok(()) => answer::text(StatusCode::ACCEPTED, "reload scheduled"),
        Err(busy) => busy,
    }
}
