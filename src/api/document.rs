//! The status document: what every health check and `/patroni` show of this node. (section 4 of
//! docs/spec/rest-api.md)

use crate::api::probes;
use crate::api::snapshot::{Snapshot, Synchronous};
use crate::ha::ports::{Server, ServerDetails, Standby};
use crate::ha::settings::EMULATED_VERSION;
use hathi_dcs::{Lsn, Millis, Role, State, Timeline, moment};
use serde_json::{Map, Value, json};

/// PostgreSQL as the document tells it; the health checks judge by the same words. (REST-040)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `None` is written `unknown`.
    pub state: Option<State>,
    pub role: Role,
    pub positions: Positions,
    pub timeline: Timeline,
    pub replication_state: Option<&'static str>,
    pub sync_standby: bool,
    pub quorum_standby: bool,
}

/// `xlog` of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// The query did not run or failed: a member without positions counts as unreachable in the
    /// leader race. (REST-080)
    Unknown,
    Primary {
        location: Lsn,
    },
    Standby {
        received: Lsn,
        replayed: Lsn,
        paused: bool,
    },
}

impl Told {
    pub fn of(snapshot: &Snapshot, now: Millis) -> Self {
        let seen = &snapshot.postgres;
        let lost = is_long_lost(snapshot, now);
        let answers = seen.state.answers() && !lost;
        let mut told = Self {
            state: Some(seen.state),
            role: if lost { Role::Demoted } else { seen.role },
            positions: Positions::Unknown,
            timeline: Timeline(0),
            replication_state: None,
            sync_standby: false,
            quorum_standby: false,
        };
        match &seen.server {
            Server::Primary { timeline, lsn } if answers => {
                told.role = Role::Primary;
                told.timeline = *timeline;
                told.positions = Positions::Primary { location: *lsn };
            }
            Server::Standby(standby) if answers => {
                if !snapshot.standby_cluster {
                    told.role = Role::Replica;
                }
                told.timeline = standby.timeline;
                told.positions = positions_of(standby);
                told.replication_state = replication_state_of(standby);
            }
            Server::Primary { .. }
            | Server::Standby(_)
            | Server::Down
            | Server::Starting
            | Server::Silent(_) => {
                if seen.state == State::Running {
                    told.state = None;
                }
            }
        }
        if told.role == Role::Replica && told.positions != Positions::Unknown {
            let listed = is_listed(snapshot, now);
            match snapshot.synchronous {
                Synchronous::Off => {}
                Synchronous::Priority => told.sync_standby = listed,
                Synchronous::Quorum => told.quorum_standby = listed,
            }
        }
        told
    }

    pub fn state_text(&self) -> &'static str {
        self.state.map_or("unknown", State::as_str)
    }
}

/// A primary whose lease ended more than a ttl ago, and whose loop has not gone round since: its last
/// look at PostgreSQL is no news, and whoever races must not wait for it. (HA-312)
fn is_long_lost(snapshot: &Snapshot, now: Millis) -> bool {
    let ended =
        snapshot.leader_until.is_some_and(|until| now > until.plus(snapshot.timing.ttl_ms()));
    ended && !probes::is_alive(snapshot, now)
}

/// (REST-087)
fn positions_of(standby: &Standby) -> Positions {
    let replayed = standby.replayed.unwrap_or_default();
    let received = standby.received.filter(|lsn| *lsn > Lsn(0)).unwrap_or(replayed);
    Positions::Standby { received, replayed, paused: standby.replay_paused }
}

/// (REST-090)
pub(crate) fn replication_state_of(standby: &Standby) -> Option<&'static str> {
    if standby.streaming {
        Some("streaming")
    } else if standby.from_archive {
        Some("in archive recovery")
    } else {
        None
    }
}

/// Is this node one of the standbys that hold every commit? (REST-088)
fn is_listed(snapshot: &Snapshot, now: Millis) -> bool {
    !snapshot.standby_cluster
        && snapshot.valid_view(now).and_then(|view| view.sync.as_ref()).is_some_and(|sync| {
            sync.value
                .voters
                .iter()
                .any(|name| name.as_str().eq_ignore_ascii_case(snapshot.me.as_str()))
        })
}

/// The document, its keys in the order clients know. (REST-082 … REST-100)
pub fn render(snapshot: &Snapshot, told: &Told, now: Millis) -> Map<String, Value> {
    let seen = &snapshot.postgres;
    let details = seen.details.as_ref().filter(|_| told.positions != Positions::Unknown);
    let mut doc = Map::new();
    let mut put = |key: &str, value: Value| {
        doc.insert(key.to_owned(), value);
    };
    put("state", told.state_text().into());
    if let Some(ServerDetails { postmaster_start_time, .. }) = details
        && !postmaster_start_time.is_empty()
    {
        put("postmaster_start_time", moment::shown(postmaster_start_time).into());
    }
    put("role", told.role.as_str().into());
    if let Some(ServerDetails { server_version, .. }) = details {
        put("server_version", (*server_version).into());
    }
    let timeline = if told.timeline.0 == 0 { Value::Null } else { told.timeline.0.into() };
    match told.positions {
        Positions::Unknown => {}
        Positions::Primary { location } => {
            put("xlog", json!({ "location": location.0 }));
            put("timeline", timeline);
        }
        Positions::Standby { received, replayed, paused } => {
            let at = details.and_then(|details| details.replayed_timestamp.as_deref());
            put(
                "xlog",
                json!({
                    "received_location": received.0,
                    "replayed_location": replayed.0,
                    "replayed_timestamp": at.map(moment::shown),
                    "paused": paused,
                }),
            );
            if told.sync_standby {
                put("sync_standby", true.into());
            }
            if told.quorum_standby {
                put("quorum_standby", true.into());
            }
            put("timeline", timeline);
        }
    }
    if let Some(state) = told.replication_state {
        put("replication_state", state.into());
    }
    if let Some(ServerDetails { replication, .. }) = details
        && !replication.is_empty()
    {
        put("replication", replication.clone().into());
    }
    if snapshot.shows_pause(now) {
        put("pause", true.into());
    }
    if is_unlocked(snapshot, now) {
        put("cluster_unlocked", true.into());
    }
    if snapshot.failsafe_active(now) {
        put("failsafe_mode_is_active", true.into());
    }
    put("dcs_last_seen", snapshot.dcs_last_seen.into());
    if !snapshot.tags.is_empty() {
        put("tags", snapshot.tags.clone().into());
    }
    if let Some(id) = &seen.system_id {
        put("database_system_identifier", id.as_str().into());
    }
    if !seen.pending_restart.is_empty() {
        put("pending_restart", true.into());
        let reasons = seen.pending_restart.iter().map(|(parameter, change)| {
            let change = json!({ "old_value": change.old_value, "new_value": change.new_value });
            (parameter.clone(), change)
        });
        put("pending_restart_reason", Value::Object(reasons.collect()));
    }
    put(
        "patroni",
        json!({
            "version": EMULATED_VERSION,
            "scope": snapshot.scope,
            "name": snapshot.me.as_str(),
        }),
    );
    if let Some(restart) = &snapshot.scheduled_restart {
        put("scheduled_restart", restart.clone());
    }
    if snapshot.watchdog_failed {
        put("watchdog_failed", true.into());
    }
    doc
}

/// Nobody leads, as far as this node knows. (REST-092)
pub fn is_unlocked(snapshot: &Snapshot, now: Millis) -> bool {
    snapshot.valid_view(now).is_none_or(|view| view.is_unlocked())
}
