//! `/liveness` and `/readiness`: is the agent's loop going round, and may traffic be sent here?

use crate::api::asked::{Asked, Query, readable_under};
use crate::api::document::{Positions, Told};
use crate::api::health::Standing;
use crate::api::snapshot::Snapshot;
use crate::api::tally::Tally;
use crate::api::{Context, answer, size};
use hathi_dcs::{Millis, Role, State, boottime};
use http::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    let live = context.clone();
    let liveness = readable_under("liveness").map(move |_: Asked| {
        let now = boottime();
        reply(is_alive(&live.shelf.at(now).snapshot, now))
    });
    let readiness = readable_under("readiness").map(move |asked: Asked| {
        let now = boottime();
        let prepared = context.shelf.at(now);
        context.shelf.keep_fresh(&prepared, now);
        let ready = is_ready(&asked.query, &prepared.snapshot, &prepared.told, now, &context.tally);
        reply(ready)
    });
    liveness.or(readiness).unify().boxed()
}

fn reply(yes: bool) -> Response {
    answer::bare(if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

/// The loop goes round, or is paused. Knows nothing of PostgreSQL's health. (REST-065)
pub fn is_alive(snapshot: &Snapshot, now: Millis) -> bool {
    let seen = &snapshot.postgres;
    let patience = if seen.role == Role::Primary && seen.alive { 1 } else { 2 };
    snapshot.paused || now < snapshot.next_turn.plus(snapshot.timing.ttl_ms() * patience)
}

/// The first row that applies decides. (REST-066)
pub fn is_ready(
    query: &Query,
    snapshot: &Snapshot,
    told: &Told,
    now: Millis,
    tally: &Tally,
) -> bool {
    // Row 1. In pause without the store the role stands in for the lease. (REST-456)
    if snapshot.holds_lease(now) || Standing::of(snapshot, told, now).primary {
        return true;
    }
    if snapshot.postgres.state != State::Running || told.replication_state != Some("streaming") {
        return false;
    }
    if snapshot.valid_view(now).is_none() && snapshot.latest_end_lsn().is_none() {
        return snapshot.failsafe_active(now);
    }
    let position = match told.positions {
        Positions::Unknown => return false,
        Positions::Primary { location } => location,
        Positions::Standby { received, .. } if query.get("mode") == Some("write") => received,
        Positions::Standby { replayed, .. } => replayed,
    };
    let wanted = query.get("lag");
    let limit = wanted.and_then(size::parse);
    if let (Some(text), None) = (wanted, limit) {
        tally.unreadable_lag(text);
    }
    let limit = limit.map_or(i128::from(snapshot.maximum_lag_on_failover), i128::from);
    // The boundary is inclusive. (REST-067)
    i128::from(snapshot.leader_lsn(now).0) - i128::from(position.0) <= limit
}
