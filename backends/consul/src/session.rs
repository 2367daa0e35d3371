//! The one session of this process: it carries the leader key and my member key.
//! (DCS-110 … DCS-112, DCS-039, DCS-040)
//!
//! Consul ends a session between one and two of its TTLs after the last renewal; every release
//! until now takes exactly two, and a new leading server begins them anew. So half of our ttl is
//! asked for, as Patroni does.

use crate::http::Call;
use crate::store::Shared;
use hathi_dcs::flat::Tenure;
use hathi_dcs::{DcsError, Deadline, Millis, Timing, boottime};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Sessions {
    pub tenure: Tenure<String>,
    name: String,
    /// The server's own minimum, in milliseconds, once it refused a shorter one.
    minimum_ms: AtomicU64,
}

impl Sessions {
    pub fn new(name: String, timing: Timing) -> Self {
        Self { tenure: Tenure::new(timing), name, minimum_ms: AtomicU64::new(0) }
    }

    /// What is asked for: half of our ttl, or what the server allows. The ttl is in seconds.
    pub fn wanted_ms(&self) -> (u32, u64) {
        let timing = self.tenure.timing();
        (timing.ttl, (timing.ttl_ms() / 2).max(self.minimum_ms.load(Ordering::Relaxed)))
    }

    /// Whether a renewal counts that was answered now, with the one before sent at `kept`. A server that
    /// stood still finds the time of a session over and a renewal of it waiting at the same moment: it
    /// may confirm the renewal and end the session all the same. (DCS-112)
    fn in_time(&self, kept: Millis, now: Millis) -> bool {
        now.since(kept) < 2 * self.wanted_ms().1
    }
}

/// `15.0s`, as Patroni writes it.
pub(crate) fn seconds(ms: u64) -> String {
    let (whole, rest) = (ms / 1000, ms % 1000);
    if rest % 100 == 0 { format!("{whole}.{}s", rest / 100) } else { format!("{whole}.{rest:03}s") }
}

impl Shared {
    /// A session renewed by this very call: whoever counts its ttl from before the call is never
    /// late. Created anew if it was gone, or may be going.
    pub(crate) async fn prolong_session(&self, by: Deadline) -> Result<String, DcsError> {
        if let Some((id, kept)) = self.sessions.tenure.held_since() {
            let sent = boottime();
            let dc = self.agents.dc();
            let path = format!("/v1/session/renew/{id}?{}", dc.trim_start_matches('&'));
            let answer = self.agents.hedged(by, &Call::put(path, "")).await?;
            if answer.status.is_success() && self.sessions.in_time(kept, boottime()) {
                self.sessions.tenure.kept(&id, sent);
                return Ok(id);
            }
            self.sessions.tenure.forget(&id);
        }
        self.create_session(by).await
    }

    /// A session that lives, renewed at most once per loop_wait.
    pub(crate) async fn session_for_member(&self, by: Deadline) -> Result<String, DcsError> {
        match self.sessions.tenure.recently_kept() {
            Some(id) => Ok(id),
            None => self.prolong_session(by).await,
        }
    }

    async fn create_session(&self, by: Deadline) -> Result<String, DcsError> {
        let _making = self.sessions.tenure.make("consul", by).await?;
        loop {
            if let Some(id) = self.sessions.tenure.held() {
                return Ok(id);
            }
            let (ttl, ms) = self.sessions.wanted_ms();
            let body = json!({
                "name": self.sessions.name, "checks": self.agents.config().checks,
                "lockdelay": "0.001s", "behavior": "delete", "ttl": seconds(ms),
            });
            let dc = self.agents.dc();
            let path = format!("/v1/session/create?{}", dc.trim_start_matches('&'));
            let sent = boottime();
            let answer = self.agents.call(by, &Call::put(path, body.to_string())).await?;
            let text = String::from_utf8_lossy(&answer.body);
            if !answer.status.is_success() {
                self.adopt_minimum(&text, ms)?;
                continue;
            }
            let made: Option<Value> = serde_json::from_str(&text).ok();
            let id = made.as_ref().and_then(|made| made.get("ID")?.as_str().map(str::to_owned));
            let Some(id) = id else {
                return Err(DcsError::unreachable("consul", 0, "a session without name"));
            };
            if self.sessions.tenure.begin(id.clone(), ttl, sent) {
                return Ok(id);
            }
        }
    }

    /// The server wants longer sessions: ours then outlive our ttl, which costs time and no safety.
    /// (DCS-040)
    fn adopt_minimum(&self, text: &str, asked: u64) -> Result<(), DcsError> {
        let minimum_ms = least_ttl_ms(text);
        if minimum_ms <= asked {
            // Too long for it, or something else that asking again does not mend.
            return Err(DcsError::NotRetriable { store: "consul".into(), why: text.into() });
        }
        tracing::warn!(
            "Consul ends sessions after {minimum_ms} ms at the earliest (session_ttl_min): a dead \
             leader's lock is free after {} ms, not after ttl",
            2 * minimum_ms
        );
        self.sessions.minimum_ms.store(minimum_ms, Ordering::Relaxed);
        Ok(())
    }
}

/// The server says what it allows: "must be between [10s=24h0m0s]". Ten seconds if it does not.
fn least_ttl_ms(text: &str) -> u64 {
    let least = text.split_once('[').and_then(|(_, range)| range.split('=').next());
    least.and_then(duration_ns).unwrap_or(10_000_000_000) / 1_000_000
}

/// `10s`, `1m30s`, as Go prints durations.
fn duration_ns(text: &str) -> Option<u64> {
    let mut total = 0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let unit_end = rest.find(|char: char| char.is_ascii_digit()).unwrap_or(rest.len());
        let ns = match rest.get(..unit_end)? {
            "h" => 3.6e12,
            "m" => 6e10,
            "s" => 1e9,
            "ms" => 1e6,
            "us" | "µs" => 1e3,
            "ns" => 1.0,
            _ => return None,
        };
        total += number * ns;
        rest = rest.get(unit_end..)?;
    }
    Some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-110 and DCS-040 as far as words go.
    #[test]
    fn durations_are_written_and_read() {
        assert_eq!(seconds(15_000), "15.0s");
        assert_eq!(seconds(10_500), "10.5s");
        assert_eq!(seconds(1_250), "1.250s");
        assert_eq!(duration_ns("10s"), Some(10_000_000_000));
        assert_eq!(duration_ns("1m30s"), Some(90_000_000_000));
        assert_eq!(duration_ns("200ms"), Some(200_000_000));
        assert_eq!(duration_ns("fast"), None);
        let refusal = "Invalid Session TTL '2500000000', must be between [15s=24h0m0s]";
        assert_eq!((least_ttl_ms(refusal), least_ttl_ms("no")), (15_000, 10_000));
    }

    /// Proves DCS-110: half of the ttl is asked for.
    #[test]
    fn half_of_the_ttl_is_asked_for() {
        let sessions = Sessions::new("b-a".into(), Timing::default());
        assert_eq!(sessions.wanted_ms(), (30, 15_000));
        sessions.minimum_ms.store(20_000, Ordering::Relaxed);
        assert_eq!(sessions.wanted_ms(), (30, 20_000));
    }

    /// Proves DCS-112: a renewal that comes when the session may be ending already is none.
    #[test]
    fn a_late_renewal_does_not_count() {
        let sessions = Sessions::new("b-a".into(), Timing::default());
        let late = |ms: u64| sessions.in_time(Millis(5), Millis(5 + ms));
        assert_eq!((late(29_999), late(30_000)), (true, false));
    }
}
