//! What an operator asks of this very member: restart, reinitialise, and schedules for them.
//!
//! ```text
//! API ── Order { wish, reply } ──► Events ──► run: one wish per turn ──► with_wish ──► Said
//!                                               └─ the reply, at once or when the task has ended
//! ```

use crate::ha::breakage::{Breakage, broken};
use crate::ha::look;
use crate::ha::manual::Answer;
use crate::ha::restart::{self, Conditions, Planned};
use crate::ha::start::clone_source;
use crate::ha::task::{Renewal, Task};
use crate::ha::turn::{Decided, Turn};
use chrono::{DateTime, FixedOffset};
use futures::channel::oneshot;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One wish, already checked as far as it can be without looking at PostgreSQL or the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Wish {
    /// POST /restart. (REST-220)
    Restart(Conditions),
    /// The same for a later moment; `request` as it is shown.
    ScheduleRestart {
        at: DateTime<FixedOffset>,
        conditions: Conditions,
        request: Map<String, Value>,
    },
    /// DELETE /restart. (REST-224)
    CancelRestart,
    /// POST /reinitialize. (REST-245)
    Reinitialize { force: bool, from_leader: bool },
}

/// A wish with the way back for its answer. Dropping the reply tells the asker that the agent ends.
#[derive(Debug)]
pub struct Order {
    pub wish: Wish,
    pub reply: oneshot::Sender<Answer>,
}

/// What a turn says to a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Now(Answer),
    /// The task that this turn asks for is the wish; its outcome is the answer.
    WhenDone,
    /// The running task was cancelled: the wish comes again when it has ended.
    Again,
}

fn said(status: u16, text: impl Into<String>) -> Option<Said> {
    Some(Said::Now(Answer::new(status, text)))
}

/// The decision of this turn, with the wish of an operator in it.
pub async fn with_wish(turn: &mut Turn<'_>) -> (Decided, Option<Said>) {
    let wish = turn.memory.wish.take();
    match &wish {
        None => (turn.decide().await, None),
        Some(Wish::Restart(conditions)) => {
            let decided = turn.decide().await;
            match restart::now(turn, conditions, decided).await {
                Ok(decided) => (decided, Some(Said::WhenDone)),
                Err((decided, answer)) => (decided, Some(Said::Now(answer))),
            }
        }
        Some(Wish::ScheduleRestart { at, conditions, request }) => {
            let said = schedule(turn, at, conditions, request);
            (turn.decide().await, said)
        }
        Some(Wish::CancelRestart) => {
            let said = match turn.memory.scheduled_restart.take() {
                Some(_) => said(200, "scheduled restart deleted"),
                None => said(404, "no restarts are scheduled"),
            };
            (turn.decide().await, said)
        }
        Some(Wish::Reinitialize { force, from_leader }) => {
            match reinitialize(turn, *force, *from_leader).await {
                Reinitialize::Begins(decided) => (decided, said(200, "reinitialize started")),
                Reinitialize::Refused(why) => (turn.decide().await, said(503, why)),
                Reinitialize::AfterTheTask => (turn.decide().await, Some(Said::Again)),
            }
        }
    }
}

/// The store did not answer: nothing that depends on it can be promised.
pub fn without_store(turn: &mut Turn<'_>) -> Option<Said> {
    turn.memory.wish.take()?;
    match turn.memory.task {
        Some(task) => said(503, format!("{} already in progress", task.name)),
        None => said(503, "the store does not answer"),
    }
}

/// REST-220, rows 2, 4 and 5.
fn schedule(
    turn: &mut Turn<'_>,
    at: &DateTime<FixedOffset>,
    conditions: &Conditions,
    request: &Map<String, Value>,
) -> Option<Said> {
    if turn.settings.pause {
        return said(500, "Can't schedule restart in the paused state");
    }
    if turn.memory.scheduled_restart.is_some() {
        return said(409, "Another restart is already scheduled");
    }
    let started = turn.pg.details.as_ref().map(|details| details.postmaster_start_time.clone());
    turn.memory.scheduled_restart = Some(Planned {
        at: *at,
        conditions: conditions.clone(),
        request: request.clone(),
        postmaster_start_time: started,
    });
    said(202, "Restart scheduled")
}

enum Reinitialize {
    Begins(Decided),
    Refused(String),
    AfterTheTask,
}

/// HA-055: never the leader, and only while there is one to copy from. (INV-20)
async fn reinitialize(turn: &mut Turn<'_>, force: bool, from_leader: bool) -> Reinitialize {
    if let Some(decided) = look::first(turn).await {
        return Reinitialize::Refused(decided.line);
    }
    let Some(leader) = turn.view.leader_name().cloned() else {
        return Reinitialize::Refused("Cluster has no leader, can not reinitialize".into());
    };
    let mine = leader == *turn.me() || turn.lease.until(turn.now()).is_some();
    if mine && !broken(Breakage::LeaderReinitializes) {
        return Reinitialize::Refused("I am the leader, can not reinitialize".into());
    }
    if let Some(task) = turn.memory.task {
        if !force {
            return Reinitialize::Refused(format!("{} already in progress", task.name));
        }
        turn.because("HA-055", format!("{} is cancelled for a forced reinitialize", task.name));
        turn.ports.postgres.cancel();
        return Reinitialize::AfterTheTask;
    }
    let source = if from_leader { turn.upstream(&leader) } else { clone_source(turn) };
    let Some(source) = source else {
        return Reinitialize::Refused(format!(
            "the leader {leader} has not said where its PostgreSQL is, can not reinitialize"
        ));
    };
    turn.because("HA-055", format!("an operator asked for a new copy of {}", source.name));
    let follow = turn.upstream(&leader).unwrap_or_else(|| source.clone());
    let why = Renewal::Asked { from_leader };
    Reinitialize::Begins(Decided::task(
        "reinitialize in progress",
        Task::Reinitialize { source, follow, why },
    ))
}
