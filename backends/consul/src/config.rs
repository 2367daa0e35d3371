//! How to reach Consul: what the section `consul` says.

use crate::ServiceConfig;
use std::path::PathBuf;

/// The section `consul`, resolved. (CFG-310 … CFG-313)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulConfig {
    /// `host:port` of agents; the first is the local one, the others are asked when it does not
    /// answer: sessions belong to the whole cluster of servers. (DCS-306)
    pub hosts: Vec<String>,
    pub https: bool,
    /// Sent as `X-Consul-Token`. (DCS-124)
    pub token: Option<String>,
    /// Another datacenter than the agent's own.
    pub dc: Option<String>,
    /// For the reads that need not be as of now; those that decide are always `consistent`.
    pub consistency: Consistency,
    /// Checks that a session depends on; none, unless the operator wants some. (DCS-110)
    pub checks: Vec<String>,
    /// False: the server's certificate is not verified.
    pub verify: bool,
    /// PEM files. Without `cacert` the well-known roots are trusted. The key may stand in the file of
    /// the certificate.
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Register this node as a service of the first agent.
    pub service: Option<ServiceConfig>,
}

impl Default for ConsulConfig {
    fn default() -> Self {
        Self {
            hosts: vec!["127.0.0.1:8500".into()],
            https: false,
            token: None,
            dc: None,
            consistency: Consistency::Default,
            checks: Vec::new(),
            verify: true,
            cacert: None,
            cert: None,
            key: None,
            service: None,
        }
    }
}

/// How sure a read is. (CFG-312)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The leading server answers; one just deposed may answer for a moment.
    #[default]
    Default,
    /// The leading server asks a majority first.
    Consistent,
    /// Any server answers, however old what it knows is.
    Stale,
}

impl Consistency {
    pub(crate) fn flag(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Consistent => Some("consistent"),
            Self::Stale => Some("stale"),
        }
    }
}
