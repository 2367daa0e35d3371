//! What the API answers from: the agent's last word on everything, as plain data.
//!
//! The agent publishes a new one whenever a turn, the keeper of the lease, the postmaster's exit or
//! a reload changed something. Nothing in here is fetched, decided or waited for; the only thing
//! that moves between two snapshots is the clock, and every method that depends on it takes `now`.

use crate::api::meter::Meter;
use crate::ha::journal::Journal;
use crate::ha::ports::{Observation, Seen};
use crate::ha::promise::Gate;
use crate::ha::settings::Settings;
use hathi_dcs::{ClusterView, Failsafe, Lsn, MemberName, Millis, Timing, boottime};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which synchronous mode the dynamic configuration in force asks for. (REST-088)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronous {
    Off,
    Priority,
    Quorum,
}

/// Everything the REST API may say. Times are on the clock of [`hathi_dcs::boottime`] unless the
/// field says otherwise.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub me: MemberName,
    pub scope: String,

    /// The rhythm in force.
    pub timing: Timing,
    /// The loop is paused. (REST-065)
    pub paused: bool,
    /// Bytes; the default of `/readiness`. (REST-067)
    pub maximum_lag_on_failover: u64,
    /// The loop runs with failsafe mode on. (REST-251)
    pub failsafe_mode: bool,
    pub synchronous: Synchronous,
    pub standby_cluster: bool,
    /// Configured tags, already filtered. (REST-094)
    pub tags: Map<String, Value>,
    pub nofailover: bool,
    /// 1 when unset. (REST-361)
    pub failover_priority: i64,
    /// The dynamic configuration in force; shown only while there is no valid view.
    pub dynamic: Arc<Map<String, Value>>,

    /// The last view and when the store answered it; `None` since a read failed.
    pub view: Option<(Arc<ClusterView>, Millis)>,
    /// The `/failsafe` record of the last successful read; it outlives the view. (REST-250)
    pub failsafe: Option<Failsafe>,
    /// Seconds since the epoch, wall clock, of the last successful read of the store; 0 before the
    /// first. (REST-093)
    pub dcs_last_seen: i64,

    /// The last look at PostgreSQL.
    pub postgres: Observation,
    /// When that look began, or when something was noticed since (a postmaster's exit): what a look
    /// tells that began before this moment is not shown any more.
    pub observed_at: Millis,
    /// Until when this node believes that it leads; a value in the past counts as none.
    pub leader_until: Option<Millis>,
    /// A demotion is under way: no client should be sent here for writes. (REST-455)
    pub demoting: bool,
    /// When the next turn comes at the latest. (REST-065)
    pub next_turn: Millis,
    /// The long task that runs, in Patroni's words.
    pub task: Option<&'static str>,
    /// Until when failsafe mode carries this primary without the store. (REST-093)
    pub failsafe_until: Option<Millis>,
    /// What this member promised others; the same one in every snapshot. (REST-251)
    pub gate: Arc<Gate>,
    /// The watchdog is required and does not work. (REST-100)
    pub watchdog_failed: bool,
    /// The accepted request, as the status document shows it. (REST-099)
    pub scheduled_restart: Option<Value>,
    /// What the last turns decided and why; the same one in every snapshot. (REST-471)
    pub journal: Arc<Journal>,
    /// What the agent counts about its work; the same one in every snapshot. (REST-469)
    pub meter: Arc<Meter>,
}

impl Snapshot {
    /// The snapshot before the first turn: nothing seen, `postgres` as the agent knows it. The store
    /// counts as never seen, so every leader check answers 503; the first turn is due now.
    pub fn new(me: MemberName, scope: impl Into<String>, postgres: Observation) -> Self {
        Self {
            me,
            scope: scope.into(),
            timing: Timing::default(),
            paused: false,
            maximum_lag_on_failover: 1_048_576,
            failsafe_mode: false,
            synchronous: Synchronous::Off,
            standby_cluster: false,
            tags: Map::new(),
            nofailover: false,
            failover_priority: 1,
            dynamic: Arc::new(Map::new()),
            view: None,
            failsafe: None,
            dcs_last_seen: 0,
            postgres,
            observed_at: Millis(0),
            leader_until: None,
            demoting: false,
            next_turn: boottime(),
            task: None,
            failsafe_until: None,
            gate: Arc::default(),
            watchdog_failed: false,
            scheduled_restart: None,
            journal: Arc::default(),
            meter: Arc::default(),
        }
    }

    /// Takes over the settings in force and the dynamic document they were made from.
    pub fn set_settings(&mut self, settings: &Settings, dynamic: Map<String, Value>) {
        self.me = settings.me.clone();
        self.timing = settings.timing;
        self.paused = settings.pause;
        self.maximum_lag_on_failover = settings.maximum_lag_on_failover;
        self.tags = settings.tags.clone();
        self.nofailover = settings.nofailover;
        self.failover_priority = settings.failover_priority;
        self.set_dynamic(dynamic);
    }

    /// The part of the settings that the API reads from the document itself.
    pub fn set_dynamic(&mut self, dynamic: Map<String, Value>) {
        self.failsafe_mode = is_on(dynamic.get("failsafe_mode"));
        self.standby_cluster =
            dynamic.get("standby_cluster").and_then(Value::as_object).is_some_and(|section| {
                ["host", "port", "restore_command"].iter().any(|key| is_on(section.get(*key)))
            });
        self.synchronous = match dynamic.get("synchronous_mode") {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("quorum") => Synchronous::Quorum,
            other if is_on(other) => Synchronous::Priority,
            _ => Synchronous::Off,
        };
        self.dynamic = Arc::new(dynamic);
    }

    /// Takes over what a turn saw; of PostgreSQL only if nothing newer is known. (REST-452)
    pub fn set_seen(&mut self, seen: &Seen) {
        if let Some((view, _)) = &seen.view {
            self.failsafe = view.failsafe.clone();
        }
        self.view = seen.view.clone();
        self.set_postgres(&seen.postgres, seen.observed_at);
        self.leader_until = seen.leader_until;
        self.failsafe_until = seen.failsafe_until;
        self.demoting = seen.demoting;
        self.next_turn = seen.next_turn;
        self.task = seen.task;
        self.watchdog_failed = seen.watchdog_failed;
        self.scheduled_restart = seen.scheduled_restart.clone().map(without_start_time);
    }

    /// Takes over a look that began then, unless something newer is known.
    pub fn set_postgres(&mut self, seen: &Observation, began: Millis) {
        if self.observed_at <= began {
            self.postgres = seen.clone();
            self.observed_at = began;
        }
    }

    /// The view, as long as it is not older than the ttl.
    pub fn valid_view(&self, now: Millis) -> Option<&Arc<ClusterView>> {
        let (view, read_at) = self.view.as_ref()?;
        (now.since(*read_at) < self.timing.ttl_ms()).then_some(view)
    }

    /// Does this node believe at `now` that it leads?
    pub fn holds_lease(&self, now: Millis) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }

    pub fn failsafe_active(&self, now: Millis) -> bool {
        self.failsafe_until.is_some_and(|until| now < until)
            || self.gate.is_active(now, self.timing.ttl_ms())
    }

    /// The dynamic configuration of the valid view, else the last one known.
    pub fn config(&self, now: Millis) -> &Map<String, Value> {
        self.valid_view(now)
            .and_then(|view| view.config.as_ref())
            .map_or(&*self.dynamic, |stored| &stored.value)
    }

    /// Paused, by the configuration an operator would be shown now. (REST-091)
    pub fn shows_pause(&self, now: Millis) -> bool {
        is_on(self.config(now).get("pause"))
    }

    /// How far the leader's log is known to be; zero when unknown. (REST-041)
    pub fn leader_lsn(&self, now: Millis) -> Lsn {
        let published = self.valid_view(now).map_or(Lsn(0), |view| view.status.optime);
        published.max(self.latest_end_lsn().unwrap_or_default())
    }

    /// What the local WAL receiver heard of the leader's position. (REST-041)
    pub fn latest_end_lsn(&self) -> Option<Lsn> {
        self.postgres.details.as_ref().and_then(|details| details.latest_end_lsn)
    }
}

/// The status document shows the request alone. (REST-099)
fn without_start_time(mut planned: Value) -> Value {
    if let Value::Object(map) = &mut planned {
        map.shift_remove("postmaster_start_time");
    }
    planned
}

/// A switch as people write it: a boolean, a number, or the text of one.
pub(crate) fn is_on(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => {
            !matches!(text.to_ascii_lowercase().as_str(), "" | "off" | "false" | "no" | "0")
        }
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
    }
}
