//! What the API counts about itself, for `/metrics`. (REST-469)

use http::StatusCode;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Values of `lag` that were warned about; more than this many are only counted.
const REMEMBERED: usize = 64;

/// Routes of their own, by the first segment of the path. Whatever else is asked is one of the last
/// two: a health check, or nothing we have.
const ENDPOINTS: [&str; 22] = [
    "liveness",
    "readiness",
    "patroni",
    "cluster",
    "history",
    "config",
    "metrics",
    "failsafe",
    "decisions",
    "events",
    "ui",
    "openapi.json",
    "reload",
    "restart",
    "reinitialize",
    "failover",
    "switchover",
    "sigterm",
    "citus",
    "mpp",
    "health",
    "other",
];
const READABLE: usize = 12;
const HEALTH: usize = 20;
const OTHER: usize = 21;

/// Upper bounds in milliseconds; the last bucket has none.
const BOUNDS_MS: [u64; 8] = [1, 5, 10, 50, 100, 500, 1000, 5000];

/// Is this first segment of a path read by a route of its own, so that it is no health check? (REST-031)
pub fn has_its_own_route(segment: &str) -> bool {
    ENDPOINTS[..READABLE].contains(&segment)
}

/// Which of the counted endpoints a request belongs to; an index for [`Tally::answered`].
pub fn endpoint(readable: bool, path: &str) -> usize {
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let known = ENDPOINTS[..HEALTH].iter().position(|name| *name == segment);
    match (known, readable) {
        (Some(known), true) if known < READABLE => known,
        (_, true) => HEALTH,
        (Some(known), false) => known,
        (None, false) => OTHER,
    }
}

#[derive(Debug, Default)]
struct Endpoint {
    codes: Mutex<BTreeMap<u16, u64>>,
    within: [AtomicU64; BOUNDS_MS.len() + 1],
    micros: AtomicU64,
}

#[derive(Debug, Default)]
pub struct Tally {
    endpoints: [Endpoint; ENDPOINTS.len()],
    unreadable_lags: AtomicU64,
    warned: Mutex<BTreeSet<String>>,
    /// Connections open now.
    pub open: AtomicU64,
    /// Connections dropped to make room for new ones.
    pub dropped: AtomicU64,
}

impl Tally {
    pub fn answered(&self, endpoint: usize, status: StatusCode, took: Duration) {
        let Some(endpoint) = self.endpoints.get(endpoint) else { return };
        *endpoint
            .codes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(status.as_u16())
            .or_default() += 1;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS.iter().position(|bound| micros <= bound * 1000);
        endpoint.within[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        endpoint.micros.fetch_add(micros, Ordering::Relaxed);
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
        self.render_answers(labels, out);
        self.render_times(labels, out);
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
                "Connections dropped to make room.",
                &self.dropped,
            ),
        ] {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    }

    fn render_answers(&self, labels: &str, out: &mut String) {
        let name = "hathi_rest_answers_total";
        let _ = writeln!(out, "# HELP {name} Answers of the REST API by endpoint and status.");
        let _ = writeln!(out, "# TYPE {name} counter");
        for (endpoint, kept) in ENDPOINTS.iter().zip(&self.endpoints) {
            let codes = kept.codes.lock().unwrap_or_else(PoisonError::into_inner);
            for (code, count) in codes.iter() {
                let more = format!("endpoint=\"{endpoint}\",code=\"{code}\"");
                let _ = writeln!(out, "{name}{{{labels},{more}}} {count}");
            }
        }
    }

    fn render_times(&self, labels: &str, out: &mut String) {
        let name = "hathi_rest_answer_seconds";
        let _ = writeln!(out, "# HELP {name} Time from the whole header to the answer.");
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (endpoint, kept) in ENDPOINTS.iter().zip(&self.endpoints) {
            let mut count = 0;
            let bounds = BOUNDS_MS.iter().map(|ms| seconds(ms * 1000));
            let mut lines = String::new();
            for (within, bound) in kept.within.iter().zip(bounds.chain(["+Inf".to_owned()])) {
                count += within.load(Ordering::Relaxed);
                let more = format!("endpoint=\"{endpoint}\",le=\"{bound}\"");
                let _ = writeln!(lines, "{name}_bucket{{{labels},{more}}} {count}");
            }
            if count > 0 {
                let more = format!("{labels},endpoint=\"{endpoint}\"");
                let sum = seconds(kept.micros.load(Ordering::Relaxed));
                let _ = writeln!(out, "{lines}{name}_sum{{{more}}} {sum}");
                let _ = writeln!(out, "{name}_count{{{more}}} {count}");
            }
        }
    }
}

/// `1500000` microseconds are `1.5`.
pub fn seconds(micros: u64) -> String {
    let fraction = format!("{:06}", micros % 1_000_000);
    match fraction.trim_end_matches('0') {
        "" => format!("{}", micros / 1_000_000),
        digits => format!("{}.{digits}", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-469 (which endpoint a request is counted under).
    #[test]
    fn requests_belong_to_endpoints() {
        for (readable, path, name) in [
            (true, "/", "health"),
            (true, "/primary", "health"),
            (true, "//cluster/x", "cluster"),
            (true, "/switchover", "health"),
            (true, "/liveness", "liveness"),
            (true, "*", "health"),
            (false, "/switchover", "switchover"),
            (false, "/config/", "config"),
            (false, "/nosuch", "other"),
            (false, "/health", "other"),
        ] {
            assert_eq!(ENDPOINTS[endpoint(readable, path)], name, "{path}");
        }
    }

    #[test]
    fn times_are_seconds() {
        for (micros, text) in
            [(0, "0"), (1000, "0.001"), (1_500_000, "1.5"), (2_000_000, "2"), (10, "0.00001")]
        {
            assert_eq!(seconds(micros), text);
        }
    }
}
