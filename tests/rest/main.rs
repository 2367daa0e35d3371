//! The REST API of a live cluster: Patroni's captured answers against ours, and clients that mean
//! harm against an agent that has a lease to keep.

mod browser;
mod golden;
mod hostile;
mod live;
mod play;
mod schema;
mod unable;

use hathi_test_support::{Agent, ClusterOptions, Store};
use std::time::Duration;

/// For what takes as long as a node needs to find its place again.
const SETTLED: Duration = Duration::from_secs(90);

fn options(store: Store) -> ClusterOptions {
    ClusterOptions::new(Agent::Hathi, store, env!("CARGO_BIN_EXE_hathi"))
}
