//! What this member promised to a primary that lost the store: not to race for as long as that
//! primary counts on it. (HA-103, HA-157, INV-15)
//!
//! A promise and a race exclude each other: whoever comes first wins. The promise is given by the
//! REST API, the race runs in a turn, and one lock lies between the two.

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::Promises;
use hathi_dcs::{Lsn, MemberName, Millis, Timing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A primary without store asks: may I go on? The body of POST /failsafe. (HA-156)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub name: MemberName,
    pub conn_url: String,
    pub api_url: String,
    /// The caller's slots and how far they are; idle slots here may follow.
    pub slots: BTreeMap<String, Lsn>,
    /// For how long the caller counts on the promise, in seconds. Patroni's members do not say it
    /// and ignore it. Whoever can read the store may know another ttl than who cannot.
    pub ttl: Option<u32>,
}

impl Call {
    /// Reads what a member sent. A call without its three texts is none. (REST-252)
    pub fn parse(body: &Map<String, Value>) -> Option<Self> {
        let text = |key: &str| Some(body.get(key)?.as_str()?.to_owned());
        let slots = body.get("slots").and_then(Value::as_object);
        let slots = slots.into_iter().flatten();
        Some(Self {
            name: MemberName::from(text("name").filter(|name| !name.is_empty())?.as_str()),
            conn_url: text("conn_url")?,
            api_url: text("api_url")?,
            slots: slots.filter_map(|(name, at)| Some((name.clone(), Lsn(at.as_u64()?)))).collect(),
            ttl: body.get("ttl").and_then(Value::as_u64).and_then(|ttl| u32::try_from(ttl).ok()),
        })
    }

    pub fn to_wire(&self) -> Value {
        let slots: Map<String, Value> =
            self.slots.iter().map(|(name, at)| (name.clone(), at.0.into())).collect();
        let mut wire = json!({
            "name": self.name.as_str(),
            "conn_url": self.conn_url,
            "api_url": self.api_url,
            "slots": slots,
        });
        if let (Some(ttl), Some(wire)) = (self.ttl, wire.as_object_mut()) {
            wire.insert("ttl".into(), ttl.into());
        }
        wire
    }
}

/// The answer to a call. (HA-157)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Vow {
    /// With the last position this member knows of its own, if any.
    Accepted {
        lsn: Option<Lsn>,
    },
    Refused(String),
}

/// A call that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    pub call: Call,
    pub at: Millis,
    /// A twentieth longer than the ttl, so that a clock that runs 5 % fast never makes the promise
    /// shorter than the belief it gives. (INV-15, INV-28)
    pub until: Millis,
}

/// How long a promise binds.
pub fn binds_ms(ttl_ms: u64) -> u64 {
    ttl_ms + ttl_ms / 20
}

/// Patroni's members do not say their ttl in a call: it is ours, and never shorter than this. (HA-324)
const PATRONIS: u32 = Timing::PATRONIS_SHORTEST;

/// How long somebody may count on a promise of which nothing else is known. (HA-323)
pub fn may_bind_ms(timing: Timing) -> u64 {
    binds_ms(timing.ttl_ms().max(u64::from(PATRONIS) * 1000))
}

#[derive(Debug, Default)]
struct State {
    promise: Option<Promise>,
    /// This member asks for the key, or has it, or may have it without knowing: nobody else may
    /// count on it.
    claims: bool,
}

/// The promise of this member, shared by its REST API and its turns.
#[derive(Debug, Default)]
pub struct Gate(Mutex<State>);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the promise, unless this member claims the key itself. `ttl_ms`: the one in force here.
    ///
    /// # Errors
    /// Why not; the caller has to stop.
    pub fn accept(&self, call: Call, ttl_ms: u64, now: Millis) -> Result<(), &'static str> {
        let mut state = self.lock();
        if state.claims && !broken(Breakage::PromiseWhileRacing) {
            return Err("asking for the leader key itself");
        }
        let theirs = u64::from(call.ttl.unwrap_or(PATRONIS)).min(86_400) * 1000;
        let until = now.plus(binds_ms(ttl_ms.max(theirs)));
        let until = match &state.promise {
            Some(before) => before.until.max(until),
            None => until,
        };
        state.promise = Some(Promise { call, at: now, until });
        Ok(())
    }

    /// Was a primary without store promised something less than its ttl ago? For what is told to
    /// others. (REST-093)
    pub fn is_active(&self, now: Millis, ttl_ms: u64) -> bool {
        self.lock().promise.as_ref().is_some_and(|promise| now.since(promise.at) < ttl_ms)
    }
}

impl Promises for Gate {
    fn promised(&self, now: Millis) -> Option<Promise> {
        self.lock().promise.clone().filter(|promise| now < promise.until)
    }

    fn claim(&self, now: Millis) -> bool {
        let mut state = self.lock();
        let bound = state.promise.as_ref().is_some_and(|promise| now < promise.until);
        if bound && !broken(Breakage::RaceDespitePromise) {
            return false;
        }
        state.claims = true;
        true
    }

    fn disclaim(&self) {
        self.lock().claims = false;
    }

    fn forget_promise(&self) {
        self.lock().promise = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(from: &str) -> Call {
        Call {
            name: from.into(),
            conn_url: "postgres://h/postgres".into(),
            api_url: "http://h/patroni".into(),
            slots: BTreeMap::new(),
            ttl: None,
        }
    }

    /// Proves HA-157 and INV-15: a promise and a race exclude each other.
    #[test]
    fn whoever_comes_first() {
        let gate = Gate::default();
        assert!(gate.claim(Millis(0)));
        assert!(gate.accept(call("a"), 30_000, Millis(1)).is_err(), "it asks for the key itself");
        gate.disclaim();
        assert_eq!(gate.accept(call("a"), 30_000, Millis(1_000)), Ok(()));
        assert!(!gate.claim(Millis(31_000)), "a ttl, and a twentieth for the clocks");
        assert!(gate.promised(Millis(32_499)).is_some());
        assert!(gate.promised(Millis(32_500)).is_none() && gate.claim(Millis(32_500)));
    }

    /// Proves HA-157: the caller's ttl counts if it is the longer one, and no call shortens what
    /// was promised before.
    #[test]
    fn the_longer_ttl_binds() {
        let gate = Gate::default();
        let long = Call { ttl: Some(60), ..call("a") };
        assert_eq!(gate.accept(long, 20_000, Millis(0)), Ok(()));
        assert_eq!(gate.accept(call("a"), 20_000, Millis(1_000)), Ok(()));
        assert!(gate.promised(Millis(62_999)).is_some());
        assert!(gate.is_active(Millis(20_999), 20_000) && !gate.is_active(Millis(21_000), 20_000));
    }

    /// Proves HA-324: a call of Patroni's binds for Patroni's shortest ttl, however short ours is.
    #[test]
    fn a_call_without_a_ttl_is_patronis() {
        let gate = Gate::default();
        assert_eq!(gate.accept(call("a"), 3_000, Millis(0)), Ok(()));
        assert!(gate.promised(Millis(20_999)).is_some() && gate.promised(Millis(21_000)).is_none());
        let ours = Call { ttl: Some(3), ..call("a") };
        let gate = Gate::default();
        assert_eq!(gate.accept(ours, 3_000, Millis(0)), Ok(()));
        assert!(gate.promised(Millis(3_149)).is_some() && gate.promised(Millis(3_150)).is_none());
        let short = Timing { ttl: 3, loop_wait: 1, retry_timeout: 1 };
        assert_eq!((may_bind_ms(short), may_bind_ms(Timing::default())), (21_000, 31_500));
    }

    /// Proves HA-156 (the body): what we send is what Patroni reads, and the other way round.
    #[test]
    fn the_body_is_patronis() {
        let sent = r#"{"name":"pg1","conn_url":"postgres://h:5432/postgres",
            "api_url":"http://h:8008/patroni","slots":{"pg2":67113960}}"#;
        let Value::Object(document) = serde_json::from_str(sent).unwrap() else { panic!() };
        let call = Call::parse(&document).unwrap();
        assert_eq!(call.slots, [("pg2".to_owned(), Lsn(67_113_960))].into());
        assert_eq!(call.to_wire(), Value::Object(document.clone()));
        for missing in ["name", "conn_url", "api_url"] {
            let mut less = document.clone();
            less.remove(missing);
            assert_eq!(Call::parse(&less), None, "{missing}");
        }
    }
}
