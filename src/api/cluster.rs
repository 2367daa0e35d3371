//! `GET /cluster`: all members as the last view has them. (REST-160)

use crate::api::asked::{Asked, readable_under};
use crate::api::snapshot::{Snapshot, is_on};
use crate::api::{Context, answer};
use hathi_dcs::{ClusterView, Lsn, Member, boottime, moment};
use http::StatusCode;
use serde_json::{Map, Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// What a client is told while the store does not answer. (REST-457)
pub const NO_VIEW: &str = "the cluster is not known now: its store (DCS) does not answer";

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    readable_under("cluster")
        .map(move |asked: Asked| {
            let response = match context.shelf.at(boottime()).cluster() {
                Some(body) => answer::json_bytes(StatusCode::OK, body),
                None => answer::text(StatusCode::SERVICE_UNAVAILABLE, NO_VIEW),
            };
            answer::for_method(&asked.method, response)
        })
        .boxed()
}

/// The configuration that counts here is the view's own; without one, the one in force.
pub fn render(snapshot: &Snapshot, view: &ClusterView) -> Map<String, Value> {
    let config = view.config.as_ref().map_or(&*snapshot.dynamic, |stored| &stored.value);
    let members: Vec<Value> =
        view.members.iter().map(|member| member_of(view, config, member).into()).collect();
    let mut out = Map::new();
    out.insert("members".into(), members.into());
    if is_on(config.get("pause")) {
        out.insert("pause".into(), true.into());
    }
    if let Some(stored) = view.pending_failover()
        && let Some(at) = &stored.value.scheduled_at
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".into(), moment::iso(at).into());
        if let Some(from) = &stored.value.leader {
            scheduled.insert("from".into(), from.as_str().into());
        }
        if let Some(to) = &stored.value.candidate {
            scheduled.insert("to".into(), to.as_str().into());
        }
        out.insert("scheduled_switchover".into(), scheduled.into());
    }
    out.insert("scope".into(), snapshot.scope.as_str().into());
    out
}

fn member_of(
    view: &ClusterView,
    config: &Map<String, Value>,
    member: &Member,
) -> Map<String, Value> {
    let data = &member.data;
    let leads = view.leader_name() == Some(&member.name);
    let role = role_of(view, config, member);
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("name", member.name.as_str().into());
    put("role", role.into());
    let state = data.state.map_or("", |state| state.as_str());
    let streaming = data.replication_state.as_deref().filter(|_| role != "leader");
    put("state", streaming.unwrap_or(state).into());
    put("api_url", data.api_url.as_deref().into());
    if let Some((host, port)) = data.conn_url.as_deref().and_then(host_and_port) {
        put("host", host.into());
        put("port", port.into());
    }
    if let Some(timeline) = data.timeline {
        put("timeline", timeline.0.into());
    }
    if data.pending_restart {
        put("pending_restart", true.into());
    }
    if !data.pending_restart_reason.is_empty() {
        put("pending_restart_reason", json!(data.pending_restart_reason));
    }
    if let Some(restart) = &data.scheduled_restart {
        put("scheduled_restart", restart.clone());
    }
    if !data.tags.is_empty() {
        put("tags", data.tags.clone().into());
    }
    if !leads {
        let leader_lsn = view.status.optime;
        for (name, lsn) in
            [("receive_", data.receive_lsn), ("replay_", data.replay_lsn), ("", data.lsn())]
        {
            let (lag_key, lsn_key) = (format!("{name}lag"), format!("{name}lsn"));
            match lsn {
                Some(lsn) => {
                    put(&lag_key, lag(leader_lsn, lsn).into());
                    put(&lsn_key, lsn.to_string().into());
                }
                None => {
                    put(&lsn_key, "unknown".into());
                    put(&lag_key, "unknown".into());
                }
            }
        }
    }
    out
}

fn lag(leader: Lsn, member: Lsn) -> u64 {
    leader.0.saturating_sub(member.0)
}

fn role_of(view: &ClusterView, config: &Map<String, Value>, member: &Member) -> &'static str {
    let standby_cluster = config.get("standby_cluster").is_some_and(Value::is_object);
    if view.leader_name() == Some(&member.name) {
        return if standby_cluster { "standby_leader" } else { "leader" };
    }
    let mode = config.get("synchronous_mode");
    let listed = view.sync.as_ref().is_some_and(|sync| {
        sync.value
            .voters
            .iter()
            .any(|name| name.as_str().eq_ignore_ascii_case(member.name.as_str()))
    });
    if standby_cluster || !listed || !is_on(mode) {
        "replica"
    } else if mode.and_then(Value::as_str).is_some_and(|text| text.eq_ignore_ascii_case("quorum")) {
        "quorum_standby"
    } else {
        "sync_standby"
    }
}

/// Of `postgres://host:port/database`; an IPv6 address without its brackets.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    // Several hosts: the first, as libpq would try it.
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let authority = authority.split(',').next()?;
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return None;
    }
    Some((host.to_owned(), port.map_or(Some(5432), |port| port.parse().ok())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-160 (host and port).
    #[test]
    fn the_address_comes_from_the_connection_url() {
        for (url, expected) in [
            ("postgres://127.0.0.1:22433/postgres", Some(("127.0.0.1", 22433))),
            ("postgres://[::1]:5433/postgres", Some(("::1", 5433))),
            ("postgres://host/postgres", Some(("host", 5432))),
            ("postgres://u:p@host:1/x", Some(("host", 1))),
            ("postgres://host:port/x", None),
            ("nonsense", None),
            ("postgres://", None),
        ] {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(host_and_port(url), expected, "{url}");
        }
    }
}
