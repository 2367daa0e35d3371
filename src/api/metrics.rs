//! `GET /metrics`: Prometheus text; Patroni's block byte for byte, then ours. (REST-120, REST-361,
//! REST-469)

use crate::api::asked::{Asked, readable_under};
use crate::api::document::{Positions, is_unlocked};
use crate::api::prepared::Prepared;
use crate::api::{Context, answer};
use crate::ha::settings::EMULATED_VERSION;
use bytes::Bytes;
use hathi_dcs::{Millis, Role, State, boottime, moment};
use http::StatusCode;
use std::fmt::{Display, Write};
use std::sync::{Arc, Mutex, PoisonError};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    let context = context.clone();
    let last = Arc::new(Last::default());
    readable_under("metrics")
        .map(move |asked: Asked| {
            let now = boottime();
            let prepared = context.shelf.at(now);
            context.shelf.keep_fresh(&prepared, now);
            let body = last.page(&prepared, now, || {
                let labels = labels(&prepared);
                let mut body = render(&prepared, now);
                own(&prepared, now, &labels, &mut body);
                prepared.snapshot.meter.render(&labels, &mut body);
                context.tally.render(&labels, &mut body);
                body
            });
            answer::for_method(&asked.method, answer::plain(StatusCode::OK, body))
        })
        .boxed()
}

/// The counters are shown as of so long ago at most.
const LASTS_MS: u64 = 100;

/// The last page, for all who ask at one moment: to make it costs far more than to send it. One made
/// before anything else than counters changed is never shown.
#[derive(Debug, Default)]
struct Last(Mutex<Option<(Arc<Prepared>, Millis, Bytes)>>);

impl Last {
    fn page(&self, of: &Arc<Prepared>, now: Millis, make: impl FnOnce() -> String) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made_of, at, page)) if Arc::ptr_eq(made_of, of) && now.since(*at) < LASTS_MS => {
                page.clone()
            }
            Some(_) | None => {
                let page = Bytes::from(make());
                *last = Some((Arc::clone(of), now, page.clone()));
                page
            }
        }
    }
}

fn labels(prepared: &Prepared) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let snapshot = &prepared.snapshot;
    format!("scope=\"{}\",name=\"{}\"", escape(&snapshot.scope), escape(snapshot.me.as_str()))
}

/// Collects the lines of one node.
struct Page {
    labels: String,
    text: String,
}

impl Page {
    fn put(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.put_with(kind, name, help, "", value);
    }

    fn put_with(&mut self, kind: &str, name: &str, help: &str, more: &str, value: impl Display) {
        let Self { labels, text } = self;
        let _ = writeln!(text, "# HELP {name} {help}");
        text.push_str(more);
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.put("gauge", name, help, value);
    }

    fn flag(&mut self, name: &str, help: &str, yes: bool) {
        self.gauge(name, help, u8::from(yes));
    }
}

/// Patroni's block, in its order.
pub fn render(prepared: &Prepared, now: Millis) -> String {
    let (snapshot, told) = (&prepared.snapshot, &prepared.told);
    let known = told.positions != Positions::Unknown;
    let details = snapshot.postgres.details.as_ref().filter(|_| known);
    let (location, received, replayed, paused) = match told.positions {
        Positions::Unknown => (0, 0, 0, false),
        Positions::Primary { location } => (location.0, 0, 0, false),
        Positions::Standby { received, replayed, paused } => (0, received.0, replayed.0, paused),
    };
    let is_standby = matches!(told.positions, Positions::Standby { .. });
    let started = details.map(|details| details.postmaster_start_time.as_str());
    let replayed_at =
        details.and_then(|details| details.replayed_timestamp.as_deref()).filter(|_| is_standby);

    let mut page = Page { labels: labels(prepared), text: String::with_capacity(6000) };
    page.gauge("patroni_version", "Patroni semver without periods.", padded(EMULATED_VERSION));
    page.flag(
        "patroni_postgres_running",
        "Value is 1 if Postgres is running, 0 otherwise.",
        told.state == Some(State::Running),
    );
    page.gauge(
        "patroni_postmaster_start_time",
        "Epoch seconds since Postgres started.",
        epoch(started),
    );
    page.flag(
        "patroni_primary",
        "Value is 1 if this node is the leader, 0 otherwise.",
        told.role == Role::Primary,
    );
    page.put(
        "counter",
        "patroni_xlog_location",
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        location,
    );
    page.flag(
        "patroni_standby_leader",
        "Value is 1 if this node is the standby_leader, 0 otherwise.",
        told.role == Role::StandbyLeader,
    );
    page.flag(
        "patroni_replica",
        "Value is 1 if this node is a replica, 0 otherwise.",
        told.role == Role::Replica,
    );
    page.flag(
        "patroni_sync_standby",
        "Value is 1 if this node is a sync standby, 0 otherwise.",
        told.sync_standby,
    );
    page.flag(
        "patroni_quorum_standby",
        "Value is 1 if this node is a quorum standby, 0 otherwise.",
        told.quorum_standby,
    );
    page.put(
        "counter",
        "patroni_xlog_received_location",
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        received,
    );
    page.put(
        "counter",
        "patroni_xlog_replayed_location",
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        replayed,
    );
    page.gauge(
        "patroni_xlog_replayed_timestamp",
        "Current timestamp of the replayed Postgres transaction log, 0 if null.",
        epoch(replayed_at),
    );
    page.flag(
        "patroni_xlog_paused",
        "Value is 1 if the Postgres xlog is paused, 0 otherwise.",
        paused,
    );
    if details.is_some() {
        page.flag(
            "patroni_postgres_streaming",
            "Value is 1 if Postgres is streaming, 0 otherwise.",
            told.replication_state == Some("streaming"),
        );
        page.flag(
            "patroni_postgres_in_archive_recovery",
            "Value is 1 if Postgres is replicating from archive, 0 otherwise.",
            told.replication_state == Some("in archive recovery"),
        );
    }
    page.gauge(
        "patroni_postgres_server_version",
        "Version of Postgres (if running), 0 otherwise.",
        details.map_or(0, |details| details.server_version),
    );
    page.flag(
        "patroni_cluster_unlocked",
        "Value is 1 if the cluster is unlocked, 0 if locked.",
        is_unlocked(snapshot, now),
    );
    page.flag(
        "patroni_failsafe_mode_is_active",
        "Value is 1 if failsafe mode is active, 0 if inactive.",
        snapshot.failsafe_active(now),
    );
    page.flag(
        "patroni_failsafe_mode_enabled",
        "Value is 1 if failsafe mode is enabled, 0 otherwise.",
        snapshot.failsafe_mode,
    );
    page.flag(
        "patroni_failsafe_member",
        "Value is 1 if this node is in the failsafe record, 0 otherwise.",
        snapshot
            .failsafe
            .as_ref()
            .is_some_and(|record| record.0.contains_key(snapshot.me.as_str())),
    );
    page.gauge(
        "patroni_postgres_timeline",
        "Postgres timeline of this node (if running), 0 otherwise.",
        told.timeline,
    );
    page.gauge(
        "patroni_dcs_last_seen",
        "Epoch timestamp when DCS was last contacted successfully by Patroni.",
        snapshot.dcs_last_seen,
    );
    page.flag(
        "patroni_pending_restart",
        "Value is 1 if the node needs a restart, 0 otherwise.",
        !snapshot.postgres.pending_restart.is_empty(),
    );
    page.flag(
        "patroni_is_paused",
        "Value is 1 if auto failover is disabled, 0 otherwise.",
        snapshot.shows_pause(now),
    );
    page.put_with(
        "gauge",
        "patroni_postgres_state",
        "Numeric representation of Postgres state.",
        &states(),
        told.state.map_or(-1, State::metric_index),
    );
    page.gauge(
        "patroni_failover_priority",
        "Failover priority of this node, 0 if it never becomes leader.",
        if snapshot.nofailover { 0 } else { snapshot.failover_priority },
    );
    page.text
}

/// The comment that names the states' numbers. (REST-121)
fn states() -> String {
    let names: Vec<String> = State::ALL
        .iter()
        .map(|state| format!("{}={}", state.metric_index(), metric_name(*state)))
        .collect();
    format!("# Values: {}\n", names.join(", "))
}

fn metric_name(state: State) -> &'static str {
    match state {
        State::Initdb => "initdb",
        State::InitdbFailed => "initdb_failed",
        State::CustomBootstrap => "custom_bootstrap",
        State::CustomBootstrapFailed => "custom_bootstrap_failed",
        State::CreatingReplica => "creating_replica",
        State::Running => "running",
        State::Starting => "starting",
        State::BootstrapStarting => "bootstrap_starting",
        State::StartFailed => "start_failed",
        State::Restarting => "restarting",
        State::RestartFailed => "restart_failed",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::StopFailed => "stop_failed",
        State::Crashed => "crashed",
    }
}

/// `4.1.5` is `040105`.
fn padded(version: &str) -> String {
    version.split('.').map(|part| format!("{part:0>2}")).collect()
}

/// Seconds with as many digits of the fraction as it has, `0` when unknown.
fn epoch(text: Option<&str>) -> String {
    match text.and_then(moment::epoch) {
        None => "0".to_owned(),
        Some((seconds, micros)) => {
            let fraction = format!("{micros:06}");
            let fraction = fraction.trim_end_matches('0');
            format!("{seconds}.{}", if fraction.is_empty() { "0" } else { fraction })
        }
    }
}

fn own(prepared: &Prepared, now: Millis, labels: &str, out: &mut String) {
    let name = "hathi_lease_seconds_left";
    let left = prepared.snapshot.leader_until.map_or(0, |until| until.since(now));
    let _ = writeln!(out, "# HELP {name} How long this node still believes that it leads.");
    let _ =
        writeln!(out, "# TYPE {name} gauge\n{name}{{{labels}}} {}.{:03}", left / 1000, left % 1000);
}
