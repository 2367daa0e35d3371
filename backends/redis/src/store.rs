//! `Flat` for Redis: reading everything, and what the calls and the watch have in common.

use crate::RedisConfig;
use crate::server::{Reply, Servers, number, text};
use async_trait::async_trait;
use hathi_dcs::flat::copy::{self, view_of};
use hathi_dcs::flat::{Ended, Flat, Handle, Kept, Wake};
use hathi_dcs::{ClusterView, DcsError, Deadline, MemberName, Millis, Scope, Timing, boottime};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A lease is named by text; empty: none.
pub(crate) type Entry = copy::Entry<String>;
pub(crate) type Keys = BTreeMap<String, Entry>;

/// What the calls and the watch have in common.
pub struct Shared {
    pub(crate) servers: Servers,
    pub(crate) me: MemberName,
    /// Who I am to the leader key and my member record: this process, not only this name.
    pub(crate) lease: String,
    /// Until when I hold the lock by what I was last told, in milliseconds of boottime; 0: I do not.
    pub(crate) held_until: AtomicU64,
    /// The revision of the leader key as I last bound it.
    pub(crate) bound: AtomicI64,
    pub(crate) kept: Kept<String>,
    timing: Mutex<Timing>,
    /// When my member record was last prolonged, and for which ttl in seconds.
    member: Mutex<Option<(Millis, u32)>>,
    calls: AtomicU64,
}

/// One reading of everything.
pub(crate) struct Reading {
    pub revision: i64,
    pub keys: Keys,
    /// In how many milliseconds the next key ends if nobody prolongs it.
    pub next_end_ms: Option<u64>,
}

impl Shared {
    pub(crate) fn timing(&self) -> Timing {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name that no other call of any member has.
    pub(crate) fn call_name(&self) -> String {
        format!("{}-{}", self.lease, self.calls.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn member_kept(&self) -> Option<(Millis, u32)> {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has to be written again, whatever is known of it.
    pub(crate) fn doubt_member(&self) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn keep_member(&self, sent: Millis, ttl: u32) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = Some((sent, ttl));
    }

    /// All keys, as one script sees them. (DCS-203)
    pub(crate) async fn read_all(&self, by: Deadline) -> Result<Reading, DcsError> {
        let Reply::All(parts) = self.servers.call(by, &["load"]).await?.reply else {
            return Err(self.servers.unreachable(0, "a reading that is none"));
        };
        let revision = parts.first().map_or(0, number);
        let mut reading = Reading { revision, keys: Keys::new(), next_end_ms: None };
        for part in parts.get(1..).unwrap_or_default().chunks_exact(5) {
            let [name, value, version, lease, left] = part else { continue };
            if let Ok(left) = u64::try_from(number(left)) {
                reading.next_end_ms =
                    Some(reading.next_end_ms.map_or(left, |least| least.min(left)));
            }
            let entry = Entry { value: text(value), version: number(version), lease: text(lease) };
            reading.keys.insert(text(name), entry);
        }
        Ok(reading)
    }
}

/// One cluster in Redis, as seen by one member.
pub type Redis = Handle<Shared>;

/// Touches neither the network nor a file: the first use does. A wrong password is then `Refused`, an
/// unreadable certificate is `NotRetriable`.
pub fn open(config: RedisConfig, scope: Scope, me: MemberName, timing: Timing) -> Arc<Redis> {
    let prefix = format!("{{{}}}", scope.prefix().trim_end_matches('/'));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    static HANDLES: AtomicU64 = AtomicU64::new(0);
    let handle = HANDLES.fetch_add(1, Ordering::Relaxed);
    let lease = format!("{me}-{:x}-{:x}-{nanos:x}-{handle:x}", std::process::id(), boottime().0);
    Handle::new(Arc::new(Shared {
        servers: Servers::new(config, prefix),
        kept: Kept::new(&me),
        me,
        lease,
        held_until: AtomicU64::new(0),
        bound: AtomicI64::new(0),
        timing: Mutex::new(timing),
        member: Mutex::new(None),
        calls: AtomicU64::new(0),
    }))
}

#[async_trait]
impl Flat for Shared {
    type Lease = String;
    const KIND: &'static str = "redis";

    fn kept(&self) -> &Kept<String> {
        &self.kept
    }

    fn retime(&self, timing: Timing) {
        *self.timing.lock().unwrap_or_else(PoisonError::into_inner) = timing;
    }

    async fn read(&self, by: Deadline) -> Result<ClusterView, DcsError> {
        let marked = self.kept.own();
        let reading = self.read_all(by).await?;
        self.kept.read_again(marked, reading.revision);
        if reading.revision >= self.kept.own() {
            self.kept.took(&reading.keys);
        }
        Ok(view_of(&reading.keys))
    }

    async fn watch_once(&self, wake: &Wake) -> Ended {
        self.follow(wake).await
    }
}
