//! What the API asks of the agent: each order carries the way back for its answer.
//!
//! The queue is bounded and every order is waited for under a deadline; an order whose asker went
//! away may be dropped. Nothing in `api` decides: the agent executes.

use crate::ha::manual::{Answer, Request};
use crate::ha::operator::Wish;
use crate::ha::ports::Observation;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

/// One wish of a client, with its reply channel. Dropping the channel answers the client with 503.
#[derive(Debug)]
pub enum Order {
    /// Merge into the stored configuration, compare-and-set, then wake the loop. (REST-163)
    PatchConfig { document: Map<String, Value>, reply: oneshot::Sender<ConfigOutcome> },
    /// Replace the stored configuration. (REST-164)
    PutConfig { document: Map<String, Value>, reply: oneshot::Sender<ConfigOutcome> },
    /// Checks 2 and 10 … 20 of REST-190, then the waiting of REST-192: `ha::manual::request` and
    /// `ha::manual::outcome`. The agent answers within 2 × max(10, `loop_wait`) seconds plus one
    /// `retry_timeout`; the API gives up five seconds after that.
    Manual { request: Request, reply: oneshot::Sender<Answer> },
    /// Restart, its schedule, reinitialise: the member's own loop answers; a restart when it is
    /// done. (REST-220, REST-245)
    Member { wish: Wish, reply: oneshot::Sender<Answer> },
    /// DELETE /switchover. (REST-194)
    DeleteSchedule { reply: oneshot::Sender<Answer> },
    /// Look at PostgreSQL now. The look has 500 ms; when PostgreSQL does not answer in them, that is
    /// the answer (`Server::Silent`). The agent should publish the observation too. At most one is
    /// under way at any time. (REST-452)
    FreshStatus { reply: oneshot::Sender<Observation> },
    /// Read the local configuration again. (REST-240)
    Reload { reply: oneshot::Sender<()> },
}

/// How a change of the dynamic configuration ended.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigOutcome {
    /// This is the configuration now.
    Stored {
        document: Map<String, Value>,
        /// What the agents will not take as it was meant; one sentence each. (REST-465)
        objections: Vec<String>,
    },
    /// Not stored: `restapi.strict_config` is on, and these are the objections. Never empty.
    /// (REST-465)
    Refused(Vec<String>),
    /// PATCH: there is no valid configuration to merge into.
    Missing,
    /// PATCH: somebody else changed it at the same moment.
    Conflict,
    /// PUT: the store did not take it; or no answer from it: the outcome is unknown.
    Failed(String),
}
