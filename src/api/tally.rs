//! What the API counts about itself, for `/metrics`. (REST-469)

use http::StatusCode;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Values of `lag` that were warned about; more than this many are only counted.
const REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub struct Tally {
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    unreadable_lags: AtomicU64,
    warned: Mutex<BTreeSet<String>>,
    /// Connections open now.
    pub open: AtomicU64,
    /// Connections dropped to make room for new ones.
    pub dropped: AtomicU64,
}

impl Tally {
    pub fn count(&self, endpoint: &'static str, status: StatusCode) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((endpoint, status.as_u16())).or_default() += 1;
    }

    /// Counted each time, said once per value. (REST-466)
    pub fn unreadable_lag(&self, text: &str) {
        self.unreadable_lags.fetch_add(1, Ordering::Relaxed);
        let text: String = text.chars().take(40).collect();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() < REMEMBERED && warned.insert(text.clone()) {
            tracing::warn!(
                lag = text,
                "a health check's `lag` is no size; it does not limit anything"
            );
        }
    }

    /// Our own block of `/metrics`; Patroni's stands before it, untouched.
    pub fn render(&self, labels: &str, out: &mut String) {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "hathi_rest_answers_total";
        let _ = writeln!(out, "# HELP {name} Answers of the REST API by endpoint and status.");
        let _ = writeln!(out, "# TYPE {name} counter");
        for ((endpoint, code), count) in answers.iter() {
            let _ =
                writeln!(out, "{name}{{{labels},endpoint=\"{endpoint}\",code=\"{code}\"}} {count}");
        }
        for (name, kind, help, value) in [
            (
                "hathi_rest_unreadable_lag_total",
                "counter",
                "Health checks whose lag parameter was no size.",
                &self.unreadable_lags,
            ),
            ("hathi_rest_open_connections", "gauge", "Open connections.", &self.open),
            (
                "hathi_rest_dropped_connections_total",
                "counter",
                "Idle connections dropped to make room.",
                &self.dropped,
            ),
        ] {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    }
}
