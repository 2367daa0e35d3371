//! What the YAML section `raft` says, checked once; and the errors of a start. (DCS-191)

use sha2::{Digest, Sha256};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// The section `raft`, with Patroni's key names. Every member names itself and all the others.
#[derive(Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// `host:port` under which the partners reach this member, spelled as they spell it: the
    /// member's identity is derived from this text.
    pub self_addr: String,
    /// Where to listen; `self_addr` if absent.
    pub bind_addr: Option<String>,
    /// All the other members, each spelled as its own `self_addr`.
    pub partner_addrs: Vec<String>,
    /// Log, vote and snapshots. Created if missing; belongs to one member of one cluster.
    pub data_dir: PathBuf,
    /// Shared by all members; without one anybody who reaches the port can write.
    pub password: Option<String>,
    /// How long a leader may be silent before it is replaced, milliseconds: at least this,
    pub min_timeout_ms: u64,
    /// and at most this; random in between, so that two do not stand up at once.
    pub max_timeout_ms: u64,
    /// How often an idle leader shows that it lives, milliseconds.
    pub append_entries_period_ms: u64,
    /// How long connecting to a partner, and one answer of it, may take, milliseconds.
    pub connection_timeout_ms: u64,
}

impl std::fmt::Debug for RaftConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftConfig")
            .field("self_addr", &self.self_addr)
            .field("bind_addr", &self.bind_addr)
            .field("partner_addrs", &self.partner_addrs)
            .field("data_dir", &self.data_dir)
            .field("password", &self.password.as_ref().map(|_| "..."))
            .field("timeouts_ms", &(self.min_timeout_ms, self.max_timeout_ms))
            .field("append_entries_period_ms", &self.append_entries_period_ms)
            .field("connection_timeout_ms", &self.connection_timeout_ms)
            .finish()
    }
}

/// How long after a sign of life of its leader a member refuses to help replacing it. Below every
/// permitted `min_timeout`; a leader whose process died is replaced this long after its last sign.
pub(crate) const LEASE_MS: u64 = 2_400;

/// How late a sign of life may come before the leader counts as silent: longer than TCP needs to
/// repeat a packet that was lost twice.
const SLACK_MS: u64 = 1_200;

impl RaftConfig {
    /// A member with the default rhythm: a sign of life every 2.2 seconds, a silent leader replaced
    /// after 3.5 to 4.7 seconds, a dead one (its connections break) within 2.7. The rhythm is what an
    /// idle agent costs: see the README.
    pub fn new(self_addr: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            self_addr: self_addr.into(),
            bind_addr: None,
            partner_addrs: Vec::new(),
            data_dir: data_dir.into(),
            password: None,
            min_timeout_ms: 3_500,
            max_timeout_ms: 4_700,
            append_entries_period_ms: 2_200,
            connection_timeout_ms: 1_500,
        }
    }

    /// Corrects a rhythm that cannot work and checks the addresses.
    pub(crate) fn checked(mut self) -> Result<Self, StartError> {
        split_addr("self_addr", &self.self_addr)?;
        for partner in &self.partner_addrs {
            split_addr("partner_addrs", partner)?;
        }
        if let Some(bind) = &self.bind_addr {
            split_addr("bind_addr", bind)?;
        }
        let own = self.self_addr.clone();
        self.partner_addrs.retain(|partner| *partner != own);
        self.partner_addrs.sort();
        self.partner_addrs.dedup();
        self.append_entries_period_ms = self.append_entries_period_ms.clamp(50, 10_000);
        self.connection_timeout_ms = self.connection_timeout_ms.clamp(100, 30_000);
        let least = (self.append_entries_period_ms + SLACK_MS).max(LEASE_MS + 300);
        self.min_timeout_ms = self.min_timeout_ms.max(least);
        self.max_timeout_ms = self.max_timeout_ms.max(self.min_timeout_ms + 300);
        Ok(self)
    }

    /// The socket to listen on.
    pub(crate) fn bind(&self) -> Result<SocketAddr, StartError> {
        let (key, text) = match &self.bind_addr {
            Some(bind) => ("bind_addr", bind),
            None => ("self_addr", &self.self_addr),
        };
        let bad = |why: String| StartError::Address { key, text: text.clone(), why };
        text.to_socket_addrs()
            .map_err(|error| bad(error.to_string()))?
            .next()
            .ok_or_else(|| bad("it resolves to nothing".to_owned()))
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.self_addr).chain(&self.partner_addrs)
    }
}

fn split_addr(key: &'static str, text: &str) -> Result<(), StartError> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    good.then_some(()).ok_or_else(|| StartError::Address {
        key,
        text: text.to_owned(),
        why: "it must be host:port".to_owned(),
    })
}

/// The same address gives the same member everywhere and after every restart.
pub(crate) fn node_id(addr: &str) -> u64 {
    let digest = Sha256::digest(addr.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first) | 1
}

/// Why the store did not start. Each is one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("raft.{key}: cannot use {text:?}: {why}")]
    Address { key: &'static str, text: String, why: String },
    #[error("raft: cannot listen on {addr}: {why}; is another agent running here?")]
    Listen { addr: SocketAddr, why: String },
    #[error("raft.data_dir {dir}: {why}; it must be a directory this user can write")]
    DataDir { dir: String, why: String },
    #[error("raft.data_dir {dir} is in use by another process")]
    InUse { dir: String },
    #[error(
        "raft.data_dir {dir} belongs to {found}, not to {wanted}; configure another directory, or \
         empty this one if what is in it is not wanted any more"
    )]
    OtherOwner { dir: String, found: String, wanted: String },
    #[error(
        "{file} is damaged at byte {at}: {why}; this member does not vote with a damaged log: if \
         a majority of the others is healthy, empty {dir} and start it again"
    )]
    Corrupt { file: String, at: u64, why: String, dir: String },
    #[error("raft: {0}")]
    Runtime(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_named() {
        for bad in ["nonsense", "host:", ":2222", "host:0", "host:70000"] {
            let error = RaftConfig::new(bad, "/x").checked().expect_err(bad).to_string();
            assert!(error.contains("raft.self_addr") && error.contains(bad), "{error}");
        }
        assert!(RaftConfig::new("[::1]:2222", "/x").checked().is_ok());
    }

    #[test]
    fn an_impossible_rhythm_is_corrected() {
        for period in [1, 2_200, 60_000] {
            let mut config = RaftConfig::new("a:1", "/x");
            config.min_timeout_ms = 1;
            config.max_timeout_ms = 1;
            config.append_entries_period_ms = period;
            config.partner_addrs = vec!["b:1".into(), "a:1".into(), "b:1".into()];
            let config = config.checked().expect("good");
            assert!(config.min_timeout_ms > LEASE_MS, "{period}");
            assert!(config.min_timeout_ms >= config.append_entries_period_ms + 1_200, "{period}");
            assert!(config.max_timeout_ms > config.min_timeout_ms, "{period}");
            assert_eq!(config.partner_addrs, ["b:1"]);
        }
        assert_eq!(node_id("a:1"), node_id("a:1"));
        assert_ne!(node_id("a:1"), node_id("b:1"));
    }
}
