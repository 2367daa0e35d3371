//! What the agent counts about its own work, for `/metrics`: turns, the store, the long tasks and why
//! they were begun. The agent fills it in; nothing reads it but the page. (REST-469)

use crate::api::tally::seconds;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Different pairs of task and rule that are kept; the code has fewer.
const PAIRS: usize = 200;

#[derive(Debug, Default)]
struct Timed {
    count: u64,
    micros: u64,
    longest: u64,
}

impl Timed {
    fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.micros = self.micros.saturating_add(micros);
        self.longest = self.longest.max(micros);
    }
}

/// The same one in every snapshot.
#[derive(Debug, Default)]
pub struct Meter {
    turns: Mutex<Timed>,
    /// By operation.
    store: Mutex<BTreeMap<&'static str, Timed>>,
    /// By operation and kind of error.
    errors: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// By task and the rule that began it.
    tasks: Mutex<BTreeMap<(String, &'static str), u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meter {
    pub fn turn(&self, took: Duration) {
        lock(&self.turns).add(took);
    }

    /// One operation of the store; `error`: what kind, if it failed.
    pub fn store(&self, operation: &'static str, error: Option<&'static str>, took: Duration) {
        lock(&self.store).entry(operation).or_default().add(took);
        if let Some(kind) = error {
            *lock(&self.errors).entry((operation, kind)).or_default() += 1;
        }
    }

    /// A promotion, a demotion, a restart …, and the rule that wanted it.
    pub fn task(&self, name: &str, rule: &'static str) {
        let mut tasks = lock(&self.tasks);
        if tasks.len() < PAIRS {
            *tasks.entry((name.to_owned(), rule)).or_default() += 1;
        }
    }

    pub fn render(&self, labels: &str, out: &mut String) {
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let timed = |out: &mut String, name: &str, labels: &str, timed: &Timed| {
            let (sum, count) = (seconds(timed.micros), timed.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
        };
        let turns = lock(&self.turns);
        head(out, "hathi_turn_seconds", "summary", "Time of one turn of the HA loop.");
        timed(out, "hathi_turn_seconds", labels, &turns);
        let name = "hathi_turn_seconds_longest";
        head(out, name, "gauge", "The longest turn since the agent began.");
        let _ = writeln!(out, "{name}{{{labels}}} {}", seconds(turns.longest));
        drop(turns);

        let store = lock(&self.store);
        head(
            out,
            "hathi_store_seconds",
            "summary",
            "Time of the store's operations, failed or not.",
        );
        for (operation, all) in store.iter() {
            let labels = format!("{labels},operation=\"{operation}\"");
            timed(out, "hathi_store_seconds", &labels, all);
        }
        let name = "hathi_store_seconds_longest";
        head(out, name, "gauge", "The longest of them since the agent began.");
        for (operation, all) in store.iter() {
            let longest = seconds(all.longest);
            let _ = writeln!(out, "{name}{{{labels},operation=\"{operation}\"}} {longest}");
        }
        drop(store);

        let name = "hathi_store_errors_total";
        head(out, name, "counter", "Operations of the store that failed, by kind of error.");
        for ((operation, kind), count) in lock(&self.errors).iter() {
            let more = format!("operation=\"{operation}\",error=\"{kind}\"");
            let _ = writeln!(out, "{name}{{{labels},{more}}} {count}");
        }
        let name = "hathi_tasks_total";
        let help =
            "Promotions, demotions and other long tasks begun, by the rule that wanted them.";
        head(out, name, "counter", help);
        for ((task, rule), count) in lock(&self.tasks).iter() {
            let more = format!("task=\"{task}\",rule=\"{rule}\"");
            let _ = writeln!(out, "{name}{{{labels},{more}}} {count}");
        }
    }
}
