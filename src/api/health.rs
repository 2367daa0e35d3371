//! The health checks: one rule per path, answered from memory. (section 3 of docs/spec/rest-api.md)

use crate::api::answer;
use crate::api::asked::{Asked, Query, readable};
use crate::api::document::{Positions, Told};
use crate::api::snapshot::Snapshot;
use crate::api::tally::{self, Tally};
use crate::api::{Context, size};
use crate::ha::ports::Server;
use hathi_dcs::{Millis, Role, State, boottime};
use http::{Method, StatusCode};
use serde_json::Value;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// Every readable path that no other route has. (REST-032, REST-033)
pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable(|first| !tally::has_its_own_route(first))
        .map(move |asked: Asked| {
            let now = boottime();
            let prepared = context.shelf.at(now);
            let rule = Rule::of(&asked.path);
            if asked.method == Method::GET || rule.needs_positions() {
                context.shelf.keep_fresh(&prepared, now);
            }
            let healthy =
                check(rule, &asked.query, &prepared.snapshot, &prepared.told, now, &context.tally);
            let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            answer::for_method(&asked.method, answer::json_bytes(status, prepared.document.clone()))
        })
        .boxed()
}

/// The rule a path selects. (REST-050)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    StandbyLeader,
    Leader,
    Primary,
    Replica,
    ReadOnly,
    Health,
    Sync,
    Quorum,
    Async,
    ReadOnlyQuorum,
    ReadOnlySync,
    Never,
}

impl Rule {
    pub fn of(path: &str) -> Self {
        let has = |word: &str| path.contains(word);
        if path == "/" {
            Self::Primary
        } else if has("standby_leader") || has("standby-leader") {
            Self::StandbyLeader
        } else if has("leader") {
            Self::Leader
        } else if has("master") || has("primary") || has("read-write") {
            Self::Primary
        } else if has("replica") {
            Self::Replica
        } else if has("read-only") && !has("sync") && !has("quorum") {
            Self::ReadOnly
        } else if has("health") {
            Self::Health
        } else {
            match path {
                "/sync" | "/synchronous" => Self::Sync,
                "/quorum" => Self::Quorum,
                "/async" | "/asynchronous" => Self::Async,
                "/read-only-quorum" => Self::ReadOnlyQuorum,
                "/read-only-sync" | "/read-only-synchronous" => Self::ReadOnlySync,
                _ => Self::Never,
            }
        }
    }

    /// Does the answer depend on how far PostgreSQL is?
    fn needs_positions(self) -> bool {
        match self {
            Self::StandbyLeader | Self::Leader | Self::Primary | Self::Never => false,
            Self::Replica
            | Self::ReadOnly
            | Self::Health
            | Self::Sync
            | Self::Quorum
            | Self::Async
            | Self::ReadOnlyQuorum
            | Self::ReadOnlySync => true,
        }
    }
}

/// What this node is good for. (REST-045)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub leader: bool,
    pub primary: bool,
    pub standby: bool,
    /// False: it leads a standby cluster and is nobody's replica.
    may_be_replica: bool,
}

impl Standing {
    pub fn of(snapshot: &Snapshot, told: &Told, now: Millis) -> Self {
        let no_view = snapshot.valid_view(now).is_none();
        let none = Self { leader: false, primary: false, standby: false, may_be_replica: true };
        if no_view && snapshot.shows_pause(now) {
            // Row 1: in pause nobody demotes; without the store the role has to do.
            let primary = told.role == Role::Primary;
            let standby = told.role == Role::StandbyLeader;
            Self {
                leader: primary || standby,
                primary: primary && serves_writes(snapshot),
                standby,
                ..none
            }
        } else if snapshot.holds_lease(now) && snapshot.standby_cluster {
            let standby = matches!(told.role, Role::Replica | Role::StandbyLeader);
            Self { leader: true, primary: false, standby, may_be_replica: false }
        } else if snapshot.holds_lease(now) {
            Self { leader: true, primary: serves_writes(snapshot), ..none }
        } else {
            none
        }
    }
}

/// Would a client that writes be served? The lease alone is not enough: PostgreSQL must run as a
/// primary, and stay one. A query that timed out says nothing against it. (REST-455, REST-490)
fn serves_writes(snapshot: &Snapshot) -> bool {
    let seen = &snapshot.postgres;
    let is_primary = match &seen.server {
        Server::Primary { .. } => true,
        Server::Silent(_) => seen.is_primary,
        Server::Down | Server::Starting | Server::Standby(_) => false,
    };
    is_primary && seen.alive && seen.state == State::Running && !snapshot.demoting
}

/// 200 or 503? (REST-050, REST-055)
pub fn check(
    rule: Rule,
    query: &Query,
    snapshot: &Snapshot,
    told: &Told,
    now: Millis,
    tally: &Tally,
) -> bool {
    let standing = Standing::of(snapshot, told, now);
    let replica = || standing.may_be_replica && replica_ok(query, snapshot, told, now, tally);
    let view = snapshot.valid_view(now).is_some();
    let tags = || tags_match(query, snapshot);
    match rule {
        Rule::StandbyLeader => standing.standby,
        Rule::Leader => standing.leader,
        Rule::Primary => standing.primary,
        Rule::Replica => replica() && tags(),
        Rule::ReadOnly => (standing.primary || standing.standby || replica()) && tags(),
        Rule::Health => told.state == Some(State::Running) && tags(),
        Rule::Sync => view && told.sync_standby && replica() && tags(),
        Rule::Quorum => view && told.quorum_standby && replica() && tags(),
        Rule::Async => view && !told.sync_standby && !told.quorum_standby && replica() && tags(),
        // A primary needs no view to be one. (REST-456)
        Rule::ReadOnlyQuorum => {
            let standby = view && (standing.standby || (told.quorum_standby && replica()));
            (standing.primary || standby) && tags()
        }
        Rule::ReadOnlySync => {
            let standby = view && (standing.standby || (told.sync_standby && replica()));
            (standing.primary || standby) && tags()
        }
        Rule::Never => false,
    }
}

/// (REST-043, REST-360)
fn replica_ok(query: &Query, snapshot: &Snapshot, told: &Told, now: Millis, tally: &Tally) -> bool {
    told.role == Role::Replica
        && told.state == Some(State::Running)
        && !snapshot.tags.get("noloadbalance").is_some_and(is_truthy)
        && !is_lagging(query, snapshot, told, now, tally)
        && query
            .get("replication_state")
            .is_none_or(|wanted| told.replication_state == Some(wanted))
}

/// (REST-042) An unreadable limit is no limit. (REST-061)
fn is_lagging(query: &Query, snapshot: &Snapshot, told: &Told, now: Millis, tally: &Tally) -> bool {
    let Some(text) = query.get("lag") else { return false };
    let Some(limit) = size::parse(text) else {
        tally.unreadable_lag(text);
        return false;
    };
    let replayed = match told.positions {
        Positions::Standby { replayed, .. } => replayed.0,
        Positions::Primary { .. } | Positions::Unknown => 0,
    };
    let leader = snapshot.leader_lsn(now).0;
    leader > 0 && i128::from(leader) > i128::from(replayed) + i128::from(limit)
}

/// Every `tag_<name>=<value>` must be one of this node's tags. (REST-055)
fn tags_match(query: &Query, snapshot: &Snapshot) -> bool {
    query.iter().all(|(key, wanted)| match key.strip_prefix("tag_") {
        None => true,
        Some(name) => match snapshot.tags.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => text == wanted,
            Some(other) => crate::api::pyjson::text(other).to_lowercase() == wanted,
        },
    })
}

/// Python's truth: `"false"` is true. (CFG-024)
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
