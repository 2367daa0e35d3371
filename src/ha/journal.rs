//! The last turns: what woke each, what it saw, what it decided and why. (HA-320)
//!
//! Bounded in number and in bytes. Turns in a row that come to the same are one entry, so that a
//! quiet night does not push out the failover before it.

use crate::ha::ports::{Observation, Reason};
use crate::ha::record::Recording;
use crate::ha::run::Event;
use crate::ha::task::{Outcome, Report};
use crate::ha::turn::{Lock, Turned};
use chrono::{DateTime, Utc};
use hathi_dcs::{Change, Millis, Role, State};
use serde::{Serialize, Serializer};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many decisions are kept.
const KEPT: usize = 200;
/// All recordings together are never longer; the oldest go first.
const RECORDED_BYTES: usize = 512 * 1024;

/// One turn, or several in a row that came to the same.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Counts the turns since the agent began, from 1; of the last turn in this entry.
    pub number: u64,
    /// So many turns in a row came to the same.
    pub times: u64,
    /// When the first of them began, by the wall clock.
    pub since: DateTime<Utc>,
    /// When the last of them began, by the wall clock.
    pub at: DateTime<Utc>,
    pub took_ms: u64,
    /// What made the loop look.
    pub woken_by: Vec<String>,
    /// The long task that ended before this turn, and how.
    pub ended: Option<String>,
    pub lock: String,
    pub role: Role,
    pub state: State,
    pub line: String,
    pub reasons: Vec<Reason>,
    /// The long task that it started.
    pub started: Option<String>,
    /// The agent ends with it.
    pub exit: Option<String>,
    /// Bytes that `/decisions/<number>/recording` would send; `null`: not kept.
    #[serde(rename = "recording_bytes", serialize_with = "length")]
    pub recording: Option<Recording>,
}

fn length<S: Serializer>(recording: &Option<Recording>, serializer: S) -> Result<S::Ok, S::Error> {
    recording.as_ref().map(Recording::len).serialize(serializer)
}

impl Decision {
    fn comes_to_the_same(&self, other: &Self) -> bool {
        let rules = |decision: &Self| -> Vec<&'static str> {
            decision.reasons.iter().map(|reason| reason.rule).collect()
        };
        let eventful = |decision: &Self| {
            decision.ended.is_some() || decision.started.is_some() || decision.exit.is_some()
        };
        !eventful(self)
            && !eventful(other)
            && (&self.line, &self.lock) == (&other.line, &other.lock)
            && (self.role, self.state) == (other.role, other.state)
            && rules(self) == rules(other)
    }

    /// The number of the first turn in this entry.
    pub fn first(&self) -> u64 {
        self.number.saturating_sub(self.times.saturating_sub(1))
    }
}

/// Why the loop looked, as the loop collects it.
#[derive(Debug, Default)]
pub struct Calls {
    events: Vec<Event>,
    ended: Option<String>,
}

impl Calls {
    /// A reason to look. Past the eighth they are not counted.
    pub fn heard(&mut self, event: Event) {
        if self.events.len() < 8 {
            self.events.push(event);
        }
    }

    pub fn task_ended(&mut self, report: &Report) {
        let how = match &report.outcome {
            Outcome::StillStarting => "is still starting".to_owned(),
            Outcome::Done => "done".to_owned(),
            Outcome::Failed(why) => format!("failed: {why}"),
            Outcome::PromotionRefused(why) => format!("refused: {why}"),
            Outcome::Fatal(why) => format!("fatal: {why}"),
        };
        self.ended = Some(format!("{:?}: {how}", report.kind));
    }

    fn words(&self) -> Vec<String> {
        if self.events.is_empty() && self.ended.is_none() {
            return vec!["time".to_owned()];
        }
        let mut words: Vec<String> = self.events.iter().map(word).collect();
        words.extend(self.ended.as_ref().map(|_| "task ended".to_owned()));
        words.dedup();
        words
    }
}

fn word(event: &Event) -> String {
    match event {
        Event::Store(change) => match change {
            Change::Initialize => "store: initialize".to_owned(),
            Change::Config => "store: config".to_owned(),
            Change::Leader => "store: leader".to_owned(),
            Change::Member(name) => format!("store: member {name}"),
            Change::Status => "store: status".to_owned(),
            Change::Sync => "store: sync".to_owned(),
            Change::Failover => "store: failover".to_owned(),
            Change::History => "store: history".to_owned(),
            Change::Failsafe => "store: failsafe".to_owned(),
            Change::Everything => "store: everything".to_owned(),
        },
        Event::PostmasterExited => "the postmaster ended".to_owned(),
        Event::Lease => "the lease's verdict".to_owned(),
        Event::Poke(why) => (*why).to_owned(),
        Event::Shutdown => "shutdown".to_owned(),
    }
}

/// The lock in words. Without times, so that quiet turns come to the same.
fn lock_words(lock: &Lock) -> String {
    match lock {
        Lock::Free => "free".to_owned(),
        Lock::Mine { .. } => "mine".to_owned(),
        Lock::Other { holder } => format!("held by {holder}"),
        Lock::Lost { holder: Some(holder) } => format!("lost to {holder}"),
        Lock::Lost { holder: None } => "lost".to_owned(),
        Lock::Unseen { until: Some(_) } => "unseen, the lease lives".to_owned(),
        Lock::Unseen { until: None } => "unseen".to_owned(),
    }
}

/// When a turn began, by both clocks, and which one it was.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    pub number: u64,
    pub at: Millis,
    pub wall: DateTime<Utc>,
}

/// The entry for one turn, before the loop acts on it.
pub fn entry(
    began: Began,
    now: Millis,
    calls: &Calls,
    turned: &Turned,
    recording: Option<Recording>,
) -> Decision {
    let pg: &Observation = &turned.pg;
    Decision {
        number: began.number,
        times: 1,
        since: began.wall,
        at: began.wall,
        took_ms: now.since(began.at),
        woken_by: calls.words(),
        ended: calls.ended.clone(),
        lock: lock_words(&turned.lock),
        role: pg.role,
        state: pg.state,
        line: turned.decided.line.clone(),
        reasons: turned.reasons.clone(),
        started: turned.decided.start.as_ref().map(|task| task.name().to_owned()),
        exit: turned.decided.exit.as_ref().map(|exit| format!("{exit:?}")),
        recording,
    }
}

/// The last decisions of this agent.
#[derive(Debug, Default)]
pub struct Journal {
    kept: Mutex<VecDeque<Arc<Decision>>>,
}

fn lock(kept: &Mutex<VecDeque<Arc<Decision>>>) -> MutexGuard<'_, VecDeque<Arc<Decision>>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    pub fn add(&self, mut decision: Decision) {
        let mut kept = lock(&self.kept);
        if let Some(last) = kept.back()
            && last.comes_to_the_same(&decision)
        {
            decision.times = last.times.saturating_add(1);
            decision.since = last.since;
            kept.pop_back();
        }
        kept.push_back(Arc::new(decision));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        let mut bytes = 0;
        for decision in kept.iter_mut().rev() {
            bytes += decision.recording.as_ref().map_or(0, Recording::len);
            if bytes > RECORDED_BYTES && decision.recording.is_some() {
                bytes -= decision.recording.as_ref().map_or(0, Recording::len);
                Arc::make_mut(decision).recording = None;
            }
        }
    }

    /// The newest first, at most so many.
    pub fn last(&self, limit: usize) -> Vec<Arc<Decision>> {
        lock(&self.kept).iter().rev().take(limit).cloned().collect()
    }

    /// The entry that holds this turn.
    pub fn find(&self, number: u64) -> Option<Arc<Decision>> {
        let kept = lock(&self.kept);
        kept.iter().rev().find(|kept| (kept.first()..=kept.number).contains(&number)).cloned()
    }
}
