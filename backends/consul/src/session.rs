//! The one session of this process: it carries the leader key and my member key.
//! (DCS-110 … DCS-112, DCS-039, DCS-040)
//!
//! Consul ends a session between one and two of its TTLs after the last renewal; every release
//! until now takes exactly two, and a new leading server begins them anew. So half of our ttl is
//! asked for, as Patroni does.

use crate::http::Call;
use crate::store::Shared;
use hathi_dcs::{DcsError, Deadline, Millis, Timing, boottime};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct State {
    timing: Timing,
    /// The session, and when its last confirmed creation or renewal was sent.
    held: Option<(String, Millis)>,
    /// The server's own minimum, in milliseconds, once it refused a shorter one.
    minimum_ms: u64,
}

pub(crate) struct Session {
    state: Mutex<State>,
    name: String,
    /// Two calls that find no session must not make two.
    creating: tokio::sync::Mutex<()>,
}

impl Session {
    pub fn new(name: String, timing: Timing) -> Self {
        let state = State { timing, held: None, minimum_ms: 0 };
        Self { state: Mutex::new(state), name, creating: tokio::sync::Mutex::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another ttl needs another session; the old one ends by itself.
    pub fn set_timing(&self, timing: Timing) {
        let mut state = self.state();
        if state.timing.ttl != timing.ttl {
            state.held = None;
        }
        state.timing = timing;
    }

    /// The store says that this session is gone.
    pub fn forget(&self, id: &str) {
        let mut state = self.state();
        if state.held.as_ref().is_some_and(|(held, _)| held == id) {
            state.held = None;
        }
    }

    fn held(&self) -> Option<String> {
        self.state().held.as_ref().map(|(id, _)| id.clone())
    }

    /// The session, if it was renewed less than about one loop_wait ago. (DCS-112)
    fn recently_kept(&self) -> Option<String> {
        let state = self.state();
        let fresh_ms = state.timing.loop_wait_ms() * 9 / 10;
        let held = state.held.as_ref();
        held.filter(|(_, kept)| boottime().since(*kept) < fresh_ms).map(|(id, _)| id.clone())
    }

    fn kept(&self, id: &str, sent: Millis) {
        let mut state = self.state();
        if let Some((held, kept)) = &mut state.held
            && held == id
        {
            *kept = (*kept).max(sent);
        }
    }

    /// What is asked for: half of our ttl, or what the server allows.
    fn wanted_ms(&self) -> (u32, u64) {
        let state = self.state();
        (state.timing.ttl, (state.timing.ttl_ms() / 2).max(state.minimum_ms))
    }
}

/// `15.0s`, as Patroni writes it.
fn seconds(ms: u64) -> String {
    let (whole, rest) = (ms / 1000, ms % 1000);
    if rest % 100 == 0 { format!("{whole}.{}s", rest / 100) } else { format!("{whole}.{rest:03}s") }
}

impl Shared {
    /// A session renewed by this very call: whoever counts its ttl from before the call is never
    /// late. Created anew if it was gone.
    pub async fn prolong_session(&self, by: Deadline) -> Result<String, DcsError> {
        if let Some(id) = self.session.held() {
            let sent = boottime();
            let dc = self.agents.dc();
            let path = format!("/v1/session/renew/{id}?{}", dc.trim_start_matches('&'));
            let answer = self.agents.call(by, &Call::put(path, "")).await?;
            if answer.status.is_success() {
                self.session.kept(&id, sent);
                return Ok(id);
            }
            self.session.forget(&id);
        }
        self.create_session(by).await
    }

    /// A session that lives, renewed at most once per loop_wait.
    pub async fn session_for_member(&self, by: Deadline) -> Result<String, DcsError> {
        match self.session.recently_kept() {
            Some(id) => Ok(id),
            None => self.prolong_session(by).await,
        }
    }

    async fn create_session(&self, by: Deadline) -> Result<String, DcsError> {
        let one_at_a_time = tokio::time::timeout(by.left(), self.session.creating.lock());
        let Ok(_creating) = one_at_a_time.await else {
            return Err(DcsError::unreachable("consul", 0, "waited for another call's session"));
        };
        loop {
            if let Some(id) = self.session.held() {
                return Ok(id);
            }
            let (ttl, ms) = self.session.wanted_ms();
            let body = json!({
                "name": self.session.name, "checks": self.agents.config().checks,
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
            let mut state = self.session.state();
            // The ttl may have changed meanwhile; then this session ends by itself.
            if state.timing.ttl == ttl {
                state.held = Some((id.clone(), sent));
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
        self.session.state().minimum_ms = minimum_ms;
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

    /// Proves the thrift of DCS-112.
    #[test]
    fn a_session_is_kept_until_the_ttl_changes() {
        let timing = Timing { ttl: 30, loop_wait: 10, retry_timeout: 10 };
        let session = Session::new("b-a".into(), timing);
        assert_eq!(session.wanted_ms(), (30, 15_000));
        session.state().held = Some(("s".into(), boottime()));
        session.set_timing(Timing { loop_wait: 5, ..timing });
        assert_eq!(session.recently_kept().as_deref(), Some("s"));
        session.state().held = Some(("s".into(), boottime().minus(4_600)));
        assert_eq!(session.recently_kept(), None);
        session.kept("other", boottime());
        assert_eq!(session.recently_kept(), None);
        session.kept("s", boottime());
        assert_eq!(session.recently_kept().as_deref(), Some("s"));
        session.set_timing(Timing { ttl: 20, ..timing });
        assert_eq!(session.held(), None);
    }
}
