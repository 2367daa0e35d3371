//! What a turn saw goes to the REST API and to the log. (docs/design.md section 2)

use crate::agent::configuration::InUse;
use crate::api::{Meter, Snapshot};
use crate::ha::journal::{Decision, Journal};
use crate::ha::ports::{Observation, Publish, Seen, Server};
use chrono::Utc;
use hathi_dcs::{Millis, boottime};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Fills the snapshot, and says each change once.
pub struct Publisher {
    snapshot: watch::Sender<Arc<Snapshot>>,
    last_line: Mutex<String>,
    last_read: Mutex<Millis>,
    configuration: Mutex<Weak<InUse>>,
    journal: Arc<Journal>,
    meter: Arc<Meter>,
}

impl Publisher {
    pub fn new(first: Snapshot) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let (journal, meter) = (first.journal.clone(), first.meter.clone());
        let (snapshot, reader) = watch::channel(Arc::new(first));
        let publisher = Self {
            snapshot,
            last_line: Mutex::default(),
            last_read: Mutex::default(),
            configuration: Mutex::new(Weak::new()),
            journal,
            meter,
        };
        (publisher, reader)
    }

    /// Whose cache file is kept up to date.
    pub fn serves(&self, configuration: &Arc<InUse>) {
        *lock(&self.configuration) = Arc::downgrade(configuration);
    }

    /// (REST-469)
    fn count(&self, decision: &Decision) {
        self.meter.turn(Duration::from_millis(decision.took_ms));
        if let Some(task) = &decision.started {
            let rule = decision.reasons.first().map_or("none", |reason| reason.rule);
            self.meter.task(task, rule);
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }

    /// The postmaster ended: the answers change now, not with the next turn. (REST-455, REST-490)
    pub fn postmaster_ended(&self) {
        self.change(|snapshot| {
            snapshot.postgres.alive = false;
            snapshot.postgres.server = Server::Down;
            snapshot.postgres.is_primary = false;
            snapshot.observed_at = boottime();
        });
    }

    /// A look somebody asked for, and when it began.
    pub fn observed(&self, postgres: &Observation, began: Millis) {
        self.change(|snapshot| snapshot.set_postgres(postgres, began));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything about one turn, at debug level. (HA-320)
fn say(decision: &Decision) {
    tracing::debug!(
        target: "hathi::decision",
        number = decision.number,
        took_ms = decision.took_ms,
        woken_by = decision.woken_by.join(", "),
        ended = decision.ended.as_deref(),
        lock = decision.lock,
        role = %decision.role,
        state = %decision.state,
        started = decision.started.as_deref(),
        "{}",
        decision.line
    );
}

impl Publish for Publisher {
    fn publish(&self, mut seen: Seen) {
        if let Some(decision) = seen.decision.take() {
            say(&decision);
            self.count(&decision);
            self.journal.add(decision);
        }
        let read_at = seen.view.as_ref().map(|(_, at)| *at);
        let read_anew = {
            let mut last = lock(&self.last_read);
            let anew = read_at.is_some_and(|at| at > *last);
            *last = read_at.unwrap_or(*last).max(*last);
            anew
        };
        self.change(|snapshot| {
            snapshot.set_seen(&seen);
            if read_anew {
                snapshot.dcs_last_seen = Utc::now().timestamp();
            }
        });
        let line = &seen.line;
        let why: Vec<String> =
            seen.reasons.iter().map(|reason| format!("{}: {}", reason.rule, reason.why)).collect();
        let mut last = lock(&self.last_line);
        if *last == *line {
            tracing::debug!(target: "hathi::turn", reasons = why.join("; "), "{line}");
        } else {
            tracing::info!(target: "hathi::turn", "{line}");
            if !why.is_empty() {
                tracing::info!(target: "hathi::why", "{}", why.join("; "));
            }
            last.clone_from(line);
        }
        drop(last);
        if let Some(configuration) = lock(&self.configuration).upgrade() {
            configuration.write_cache();
        }
    }

    fn keeps_decisions(&self) -> bool {
        true
    }
}
