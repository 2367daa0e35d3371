//! Restart, its schedule, and reinitialise: the body is checked here, the member's own loop does the
//! rest. (REST-220 … REST-225, REST-245, REST-246, REST-458)

use crate::api::control::{from, schedule};
use crate::api::order::Order;
use crate::api::snapshot::is_on;
use crate::api::write::{Document, Expects, order, route};
use crate::api::{Context, answer};
use crate::ha::manual::Answer;
use crate::ha::operator::Wish;
use crate::ha::restart::Conditions;
use chrono::{DateTime, Utc};
use hathi_dcs::{Role, boottime, moment};
use http::{Method, StatusCode};
use serde_json::{Map, Value};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// A checkpoint before a stop may take long; the client hears of the end, or after this time that
/// it is not known.
const RESTART_MS: u64 = 3_600_000;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let restart =
        route(context, Method::POST, "restart", Expects::Optional, |context, body| async move {
            let now = boottime();
            let paused = context.shelf.at(now).snapshot.shows_pause(now);
            match read_restart(&body, paused, Utc::now()) {
                Ok(wish) => ask(&context, wish, RESTART_MS).await,
                Err(refusal) => from(refusal),
            }
        });
    let deletion =
        route(context, Method::DELETE, "restart", Expects::Nothing, |context, _| async move {
            ask(&context, Wish::CancelRestart, quick(&context)).await
        });
    let reinitialize = route(
        context,
        Method::POST,
        "reinitialize",
        Expects::Optional,
        |context, body| async move {
            let patience = quick(&context);
            ask(&context, read_reinitialize(&body), patience).await
        },
    );
    restart.or(deletion).unify().or(reinitialize).unify().boxed()
}

/// A running turn, or a task that has to be cancelled first.
fn quick(context: &Context) -> u64 {
    2 * context.shelf.at(boottime()).snapshot.timing.retry_timeout_ms() + 20_000
}

async fn ask(context: &Context, wish: Wish, patience_ms: u64) -> Response {
    match order(context, patience_ms, |reply| Order::Member { wish, reply }).await {
        // The one answer of the table that is a server error. (REST-220, row 2)
        Ok(Answer { status: 500, text }) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, text),
        Ok(answer) => from(answer),
        Err(busy) => busy,
    }
}

/// Rows 2 and 3 of REST-220: the first bad key, in the order in which they were sent, answers.
///
/// # Errors
/// The refusal for the client.
pub fn read_restart(body: &Document, paused: bool, now: DateTime<Utc>) -> Result<Wish, Answer> {
    if body.contains_key("schedule") && paused {
        return Err(Answer::new(500, "Can't schedule restart in the paused state"));
    }
    let mut conditions = Conditions::default();
    let mut request = Map::new();
    let mut at = None;
    for (key, value) in body {
        let mut shown = value.clone();
        match key.as_str() {
            "schedule" => {
                let moment = schedule("restart", value, now)?;
                shown = moment::iso(&moment).into();
                at = Some(moment);
            }
            "role" => conditions.role = Some(role(value)?),
            "postgres_version" => conditions.older_than = Some(version(value)?),
            "timeout" => {
                let timeout = seconds(value).ok_or_else(|| {
                    Answer::new(400, "Timeout should be a positive number of seconds")
                })?;
                conditions.timeout = Some(timeout);
                shown = timeout.into();
            }
            "restart_pending" => conditions.pending = is_on(Some(value)),
            other => {
                let text = format!("Unknown filter for the scheduled restart: {other}");
                return Err(Answer::new(400, text));
            }
        }
        request.insert(key.clone(), shown);
    }
    Ok(match at {
        Some(at) => Wish::ScheduleRestart { at, conditions, request },
        None => Wish::Restart(conditions),
    })
}

/// REST-245; the key of the documentation is understood as well. (REST-458)
fn read_reinitialize(body: &Document) -> Wish {
    let from_leader = ["from_leader", "from-leader"].iter().any(|key| is_on(body.get(*key)));
    Wish::Reinitialize { force: is_on(body.get("force")), from_leader }
}

fn role(value: &Value) -> Result<Role, Answer> {
    match value.as_str() {
        Some("primary") => Ok(Role::Primary),
        Some("standby_leader") => Ok(Role::StandbyLeader),
        Some("replica") => Ok(Role::Replica),
        Some(_) | None => {
            let text = "PostgreSQL role should be either primary, standby_leader, or replica";
            Err(Answer::new(400, text))
        }
    }
}

/// `15.3` is 150003, `9.6.2` is 90602: as `server_version_num` counts.
fn version(value: &Value) -> Result<u32, Answer> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let parts: Option<Vec<u32>> =
        text.split('.').map(|part| part.trim().parse::<u16>().ok().map(u32::from)).collect();
    match parts.as_deref() {
        None => Err(Answer::new(400, format!("Invalid PostgreSQL version: {text}"))),
        Some([major, minor]) if *major >= 10 => Ok(major * 10_000 + minor),
        Some([first, second, third]) => Ok(first * 10_000 + second * 100 + third),
        Some(_) => {
            let text =
                format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}");
            Err(Answer::new(400, text))
        }
    }
}

/// A time above zero: a number of seconds, or a text with a unit; halves round to even.
fn seconds(value: &Value) -> Option<u32> {
    let (number, factor) = match value {
        Value::Number(number) => (number.as_f64()?, 1.0),
        Value::String(text) => {
            let text = text.trim();
            let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
            let (number, unit) = text.split_at_checked(unit_at)?;
            let factor = match unit {
                "" | "s" => 1.0,
                "us" => 1e-6,
                "ms" => 1e-3,
                "min" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
            (number.trim().parse::<f64>().ok()?, factor)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let seconds = (number * factor).round_ties_even();
    (seconds >= 1.0 && seconds <= f64::from(u32::MAX / 1000)).then_some(seconds as u32)
}
