//! A restart that an operator asked for, now or at a moment. (HA-078, HA-160 … HA-163, REST-220)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::follower;
use crate::ha::look;
use crate::ha::manual::Answer;
use crate::ha::memory::Rewind;
use crate::ha::ports::{ControlState, Start, Started, Stop, StopMode};
use crate::ha::schedule::{self, Due};
use crate::ha::standby;
use crate::ha::task::{Context, Outcome, Task, stopped};
use crate::ha::turn::{Decided, Lock, Turn};
use chrono::{DateTime, FixedOffset};
use hathi_dcs::{Deadline, Role, State, moment};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What must hold for a restart to be done. (PG-061)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    pub role: Option<Role>,
    /// Only a server older than this, as in `server_version_num`.
    pub older_than: Option<u32>,
    /// Only if some setting waits for a restart.
    pub pending: bool,
    /// Seconds; unset: `primary_start_timeout`.
    pub timeout: Option<u32>,
}

/// A restart for a later moment, as the member record shows it. It lives in the agent's memory and
/// is lost with it. (REST-223)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub at: DateTime<FixedOffset>,
    pub conditions: Conditions,
    /// The accepted request, with the keys in the order in which they were sent.
    pub request: Map<String, Value>,
    /// Which life of the server it was meant for; `None`: it did not say.
    pub postmaster_start_time: Option<String>,
}

impl Planned {
    /// `scheduled_restart` of the member record.
    pub fn to_wire(&self) -> Value {
        let mut map = self.request.clone();
        let started = self.postmaster_start_time.as_deref().map(moment::shown);
        map.insert("postmaster_start_time".into(), started.map_or(Value::Null, Value::String));
        Value::Object(map)
    }
}

/// Why it is not restarted, if so. What is not known does not satisfy a condition. (REST-220, row 6)
fn unsatisfied(turn: &Turn<'_>, conditions: &Conditions) -> Option<&'static str> {
    let version = turn.pg.details.as_ref().map(|details| details.server_version);
    if conditions.role.is_some_and(|role| role != turn.pg.role) {
        Some("the role is another one")
    } else if conditions
        .older_than
        .is_some_and(|wanted| version.is_none_or(|version| version >= wanted))
    {
        Some("the server is not older than that")
    } else if conditions.pending && turn.pg.pending_restart.is_empty() {
        Some("no setting waits for a restart")
    } else {
        None
    }
}

/// An operator wants it now. `decided`: what this turn does anyway, which goes first.
pub async fn now(
    turn: &mut Turn<'_>,
    conditions: &Conditions,
    decided: Decided,
) -> Result<Decided, (Decided, Answer)> {
    if let Some(why) = unsatisfied(turn, conditions) {
        turn.because("REST-220", why);
        return Err((decided, Answer::new(503, "restart conditions are not satisfied")));
    }
    let busy = match (&decided.start, turn.memory.task) {
        (Some(task), _) => Some(task.name()),
        (None, Some(running)) => Some(running.name),
        (None, None) => None,
    };
    if let Some(name) = busy {
        return Err((decided, Answer::new(503, format!("{name} already in progress"))));
    }
    if decided.exit.is_some() {
        return Err((decided, Answer::new(503, "restart failed: the agent ends")));
    }
    match begin(turn, conditions).await {
        Ok(task) => Ok(Decided::task("restart in progress", task)),
        Err(why) => Err((decided, Answer::new(503, format!("restart failed: {why}")))),
    }
}

/// HA-078: only beside a leader, while nothing else is done.
pub async fn when_due(turn: &mut Turn<'_>, decided: Decided) -> Decided {
    if decided.start.is_some() || decided.exit.is_some() {
        return decided;
    }
    let Some(planned) = turn.memory.scheduled_restart.clone() else { return decided };
    let started = turn.pg.details.as_ref().map(|details| details.postmaster_start_time.clone());
    let restarted = match (&started, &planned.postmaster_start_time) {
        (Some(now), Some(then)) => now != then,
        (Some(_), None) => {
            // It did not say when the restart was scheduled: it is meant for this one.
            if let Some(planned) = &mut turn.memory.scheduled_restart {
                planned.postmaster_start_time = started;
            }
            false
        }
        (None, Some(_) | None) => false,
    };
    if restarted && !broken(Breakage::ScheduleOutlivesItsServer) {
        turn.because("HA-078", "the server was restarted since; the schedule is dropped");
        turn.memory.scheduled_restart = None;
        return decided;
    }
    match schedule::look(turn, &planned.at) {
        Due::Later(_) | Due::Paused => return decided,
        Due::Stale => {
            turn.because("HA-074", "the scheduled restart is too old");
            turn.memory.scheduled_restart = None;
            return decided;
        }
        Due::Now => {}
    }
    if let Some(Decided { again_at: Some(at), .. }) = look::first(turn).await {
        return decided.again_at(at);
    }
    // Whatever becomes of it, it was this once. (INV-24)
    turn.memory.scheduled_restart = None;
    if let Some(why) = unsatisfied(turn, &planned.conditions) {
        turn.because("HA-078", why);
        return decided;
    }
    match begin(turn, &planned.conditions).await {
        Ok(task) => {
            turn.because("HA-078", "the scheduled restart is due");
            Decided::task("restart initiated", task)
        }
        Err(why) => {
            turn.because("HA-078", why);
            decided
        }
    }
}

/// As what it starts again, and whether it may. Sets what the turns after it need to judge the
/// start. (HA-054, HA-058)
async fn begin(turn: &mut Turn<'_>, conditions: &Conditions) -> Result<Task, String> {
    if let (Some(mine), Some(theirs)) = (&turn.pg.system_id, turn.view.system_id())
        && *mine != theirs
    {
        // In pause such a server may run: what becomes of it is not for this cluster to say. (INV-21)
        return Err(format!(
            "its data directory belongs to another cluster: its system identifier is {mine}, the \
             cluster's is {theirs}"
        ));
    }
    let how = start_as(turn).await?;
    // It waited for the lock, and before that for whatever else this turn did.
    if let Some(decided) = look::first(turn).await {
        return Err(decided.line);
    }
    let timeout = conditions.timeout.unwrap_or(turn.settings.primary_start_timeout);
    let timeout_ms = u64::from(timeout) * 1000;
    turn.memory.recovering = true;
    turn.memory.start_timeout = Some(timeout_ms);
    Ok(Task::Restart { how, timeout_ms })
}

async fn start_as(turn: &mut Turn<'_>) -> Result<Start, String> {
    if !turn.pg.alive {
        return start_in_pause(turn).await;
    }
    let paused = turn.settings.pause;
    if turn.settings.standby_cluster.is_some() && turn.pg.is_primary {
        return Err("a primary in a standby cluster".into()); // HA-116
    }
    match (turn.lock.clone(), turn.pg.is_primary) {
        (Lock::Mine { .. }, true) => {
            if paused || turn.confirm_lock().await {
                Ok(Start::AsPrimary)
            } else {
                Err("the leader lock could not be confirmed".into())
            }
        }
        (Lock::Free | Lock::Other { .. } | Lock::Lost { .. } | Lock::Unseen { .. }, true) => {
            if paused {
                Ok(Start::AsPrimary)
            } else {
                Err("a primary without the lock".into())
            }
        }
        (Lock::Other { holder }, false) => {
            // Streaming again from a history that is perhaps not ours needs a look first. (PG-147)
            let follows = match turn.memory.rewind {
                Rewind::NotAsked | Rewind::NotNeeded | Rewind::Succeeded => true,
                Rewind::Check | Rewind::Needed | Rewind::OtherHistory | Rewind::Failed => false,
            };
            let upstream = follower::upstream(turn, &holder).filter(|_| follows);
            Ok(Start::AsStandby(upstream))
        }
        (Lock::Mine { .. }, false) => Ok(Start::AsStandby(standby::remote(turn))), // HA-110
        (Lock::Free | Lock::Lost { .. } | Lock::Unseen { .. }, false) => Ok(Start::AsStandby(None)),
    }
}

/// In a paused cluster PostgreSQL stays down until the operator starts it: this is how. As a primary
/// only where nobody else leads and its timeline is the cluster's. (HA-133, INV-17, INV-19)
async fn start_in_pause(turn: &mut Turn<'_>) -> Result<Start, String> {
    if !turn.settings.pause {
        return Err("PostgreSQL does not run; it is started as soon as that is possible".into());
    }
    let by = Deadline(turn.now().plus(2_000));
    let Some(control) = turn.ports.postgres.control(by).await else {
        return Err("pg_control cannot be read".into());
    };
    let upstream = match turn.lock.clone() {
        Lock::Other { holder } => Some(holder),
        Lock::Mine { .. } | Lock::Free => None,
        Lock::Lost { .. } | Lock::Unseen { .. } => {
            return Err("who leads is not known now".into());
        }
    };
    if control.has_standby_signal {
        let upstream = upstream.and_then(|holder| follower::upstream(turn, &holder));
        return Ok(Start::AsStandby(upstream));
    }
    if let Some(holder) = upstream {
        return Err(format!("it was a primary, and {holder} leads now"));
    }
    if turn.settings.standby_cluster.is_some() {
        return Err("it was a primary, and the cluster follows another one".into());
    }
    if control.checkpoint_timeline < turn.view.history.cluster_timeline() {
        return Err("it was a primary of an older timeline".into());
    }
    match control.state {
        ControlState::ShutDown
        | ControlState::InProduction
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery => Ok(Start::AsPrimary),
        ControlState::StartingUp
        | ControlState::ShutDownInRecovery
        | ControlState::InArchiveRecovery
        | ControlState::Unknown => Err("pg_control does not say that it was a primary".into()),
    }
}

/// How long a start is waited for when nobody gave a time. (PG-026)
const DEFAULT_WAIT_MS: u64 = 60_000;

/// Stops it and starts it again. (PG-060)
pub async fn run(context: &Context, how: Start, timeout_ms: u64) -> Outcome {
    let ports = &context.ports;
    let primary = how == Start::AsPrimary;
    if !primary {
        leave_synchronous_duty(context).await;
    }
    ports.postgres.set_state(State::Restarting);
    let stop = Stop { mode: StopMode::Fast, checkpoint: true, immediate_at: None };
    if let Some(why) = stopped(ports, stop).await {
        ports.postgres.set_state(State::RestartFailed);
        return Outcome::Failed(why);
    }
    if primary && let Err(why) = licence(context) {
        ports.postgres.set_state(State::RestartFailed);
        return Outcome::Failed(why);
    }
    if !primary {
        ports.watchdog.disable(); // HA-174
    }
    let wait_ms = if timeout_ms == 0 { DEFAULT_WAIT_MS } else { timeout_ms };
    let by = Deadline(ports.clock.now().plus(wait_ms));
    match ports.postgres.start(how, by).await {
        Ok(Started::Ready) => Outcome::Done,
        Ok(Started::StillStarting) => Outcome::StillStarting,
        Err(error) => {
            ports.postgres.set_state(State::RestartFailed);
            Outcome::Failed(error.to_string())
        }
    }
}

/// May it be a primary again? The stop may have taken longer than the lease. (HA-163, INV-19); and
/// the watchdog was off since nothing could be written. (HA-172)
fn licence(context: &Context) -> Result<(), String> {
    let ports = &context.ports;
    if ports.configuration.settings().pause {
        return Ok(());
    }
    let now = ports.clock.now();
    let until = match context.lease.until(now) {
        Some(until) => until,
        None if broken(Breakage::RestartOutlivesTheLease) => now,
        None => return Err("lost the lease during the restart".into()),
    };
    let armed = ports.watchdog.activate(until);
    armed.map_err(|why| format!("the watchdog is required and does not work: {why}"))
}

/// HA-197: a synchronous standby steps back before it stops, so that no commit waits for it.
async fn leave_synchronous_duty(context: &Context) {
    crate::ha::member::leave_duty(&context.ports).await;
}

/// The answer for whoever waits for the end of the restart. (REST-220, rows 8 … 11)
pub fn answer(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Done => Answer::new(200, "restarted successfully"),
        Outcome::StillStarting => Answer::new(503, "postgres is still starting"),
        Outcome::Failed(why) | Outcome::PromotionRefused(why) | Outcome::Fatal(why) => {
            Answer::new(503, format!("restart failed: {why}"))
        }
    }
}
