//! May a lock that is not there be given away? (DCS-205)
//!
//! Redis says "done" before it is sure. A server that was started again may have lost its last
//! writes, one that was promoted may never have had them: the lock is then missing although its owner
//! was told that it holds it, or is back although it was given up. Whoever held it believes so for
//! at most a ttl. So nobody takes a lock from a server before it has been the writable one for a ttl;
//! and nobody goes on with a lock that he does not know to hold before that.
//!
//! With replicas, being the writable one means that enough of them follow: as long as they do, they
//! follow no other, and no other's writes count.

use hathi_dcs::{Millis, boottime};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `uptime_in_seconds` is cut to whole seconds.
const GRAIN_MS: u64 = 1_000;

/// What a server says of itself, by INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    /// Of this process, and of its history: both are new after a start, the second after a promotion.
    pub identity: String,
    pub uptime_ms: u64,
    /// It has been a replica.
    pub promoted: bool,
    pub writable: bool,
    /// It throws keys away when its memory is full, and says by which rule. (DCS-206)
    pub evicts: Option<String>,
}

impl Server {
    pub fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let former = field("master_replid2");
        Self {
            identity: format!("{}/{}", field("run_id"), field("master_replid")),
            uptime_ms: field("uptime_in_seconds").parse::<u64>().unwrap_or(0) * 1_000,
            promoted: former.bytes().any(|byte| byte != b'0'),
            writable: field("role") == "master" && field("loading") != "1",
            evicts: Some(field("maxmemory_policy"))
                .filter(|rule| !rule.is_empty() && rule != "noeviction")
                .filter(|_| field("maxmemory") != "0"),
        }
    }
}

#[derive(Default)]
struct State {
    identity: String,
    /// Since when it is known to be the writable one.
    since: Option<Millis>,
}

#[derive(Default)]
pub(crate) struct Trust(Mutex<State>);

impl Trust {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to this server begins.
    pub fn met(&self, server: &Server) {
        let mut state = self.state();
        if state.identity != server.identity {
            state.identity.clone_from(&server.identity);
            state.since = (!server.promoted).then(|| boottime().minus(server.uptime_ms));
        }
    }

    /// Is it known since when this server is the writable one?
    pub fn began(&self, identity: &str) -> bool {
        let state = self.state();
        state.identity == identity && state.since.is_some()
    }

    /// This server took a write, and as many replicas as must have it have it.
    pub fn acknowledged(&self, identity: &str) {
        let mut state = self.state();
        if state.identity == identity {
            state.since.get_or_insert_with(boottime);
        }
    }

    /// How long it still has to be waited for this server, in milliseconds; 0: its word is good.
    pub fn missing_ms(&self, identity: &str, ttl_ms: u64) -> u64 {
        let state = self.state();
        let since = state.since.filter(|_| state.identity == identity);
        match since {
            None => ttl_ms + GRAIN_MS,
            Some(since) => (ttl_ms + GRAIN_MS).saturating_sub(boottime().since(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(run: &str, uptime: u64, former: &str) -> Server {
        Server::parse(&format!(
            "# Server\r\nrun_id:{run}\r\nuptime_in_seconds:{uptime}\r\n# Replication\r\nrole:master\r\n\
             master_replid:h\r\nmaster_replid2:{former}\r\nloading:0\r\n"
        ))
    }

    /// Proves DCS-205: what a start or a promotion may have lost is waited out.
    #[test]
    fn a_server_is_trusted_after_a_ttl() {
        let trust = Trust::default();
        assert_eq!(trust.missing_ms("a/h", 20_000), 21_000, "none was met");
        trust.met(&server("a", 100, "000"));
        assert_eq!(trust.missing_ms("a/h", 20_000), 0, "it has been there all the time");
        trust.met(&server("b", 3, "000"));
        let left = trust.missing_ms("b/h", 20_000);
        assert!((17_000..=18_000).contains(&left), "started again: {left}");
        assert_eq!(trust.missing_ms("a/h", 20_000), 21_000, "it is not the one any more");
        trust.met(&server("c", 100, "5f2"));
        assert_eq!(trust.missing_ms("c/h", 20_000), 21_000, "promoted, nobody knows when");
        trust.acknowledged("b/h");
        assert_eq!(trust.missing_ms("c/h", 20_000), 21_000, "another's word");
        trust.acknowledged("c/h");
        let left = trust.missing_ms("c/h", 20_000);
        assert!((20_900..=21_000).contains(&left), "counted from its first word: {left}");
    }

    #[test]
    fn a_replica_is_no_place_to_write() {
        assert!(server("a", 1, "0").writable);
        assert!(!Server::parse("role:slave\r\nloading:0\r\n").writable);
        assert!(!Server::parse("role:master\r\nloading:1\r\n").writable);
    }
}
