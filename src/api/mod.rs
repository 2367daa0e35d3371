//! The REST API: what load balancers, operators and the other members ask of this node.
//!
//! GETs are answered from the published [`Snapshot`]; whatever changes something becomes an
//! [`Order`] to the agent. Never in here: PostgreSQL, the store, a decision.
//!
//! ```text
//!   agent ── watch<Snapshot> ──► shelf (rendered once per change) ──► readable routes ──► client
//!   agent ◄── mpsc<Order>, oneshot back ── changing routes, behind access and body checks ◄── client
//! ```

mod access;
mod answer;
mod asked;
mod cluster;
mod configuration;
mod connections;
mod control;
mod decisions;
mod document;
mod door;
mod dress;
mod events;
mod failsafe;
mod health;
mod history;
mod impatient;
pub mod listen;
mod local_socket;
pub mod merge;
mod meter;
mod metrics;
mod mpp;
mod openapi;
pub mod order;
mod prepared;
mod probes;
mod pyjson;
mod restart;
mod serve;
pub mod settings;
mod size;
pub mod snapshot;
mod status;
mod tally;
mod tls;
mod ui;
mod write;

#[cfg(test)]
mod tests;

pub use listen::ListenError;
pub use meter::Meter;
pub use order::{ConfigOutcome, Order};
pub use serve::{ApiError, Handle, Server, serve};
pub use settings::{Credentials, RestConfig, ServerTokens, VerifyClient};
pub use snapshot::{Snapshot, Synchronous};

use prepared::Shelf;
use serve::Current;
use std::sync::Arc;
use tally::Tally;
use tokio::sync::watch;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// What every route has at hand.
#[derive(Clone, Debug)]
struct Context {
    shelf: Arc<Shelf>,
    /// As the last reload left it.
    current: watch::Receiver<Current>,
    tally: Arc<Tally>,
    limits: Arc<write::Limits>,
    /// True when the end begins.
    closing: watch::Receiver<bool>,
}

/// The tree at one glance. The health checks come first: they are what is asked most, and whatever
/// is readable and has no route of its own is one of them.
fn routes(context: &Context) -> BoxedFilter<(Response,)> {
    health::routes(context)
        .or(probes::routes(context))
        .unify()
        .or(status::routes(context))
        .unify()
        .or(cluster::routes(context))
        .unify()
        .or(history::routes(context))
        .unify()
        .or(decisions::routes(context))
        .unify()
        .or(configuration::routes(context))
        .unify()
        .or(failsafe::routes(context))
        .unify()
        .or(metrics::routes(context))
        .unify()
        .or(control::routes(context))
        .unify()
        .or(restart::routes(context))
        .unify()
        .or(mpp::routes(context))
        .unify()
        .or(events::routes(context))
        .unify()
        .or(openapi::routes(context))
        .unify()
        .or(ui::routes(context))
        .unify()
        // Whatever else: before any access check. (REST-006)
        .or(warp::method().map(|method: http::Method| answer::unsupported(&method)))
        .unify()
        .boxed()
}
