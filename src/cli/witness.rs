//! `hathi witness FILE`: votes in the embedded store, holds its data, never leads a PostgreSQL.

use super::{environment, logging};
use crate::config::{self, DcsSection};
use anyhow::Context;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// YAML with `scope` and the section `raft`.
    pub config: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What the operator has to read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (witness, warnings) = config::load_witness(args.config.as_deref(), &environment())?;
    logging::start(&witness.log).context("log.dir")?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let section = DcsSection::Raft(witness.raft);
        let timing = hathi_dcs::Timing::default();
        let store =
            crate::agent::store::open(&section, witness.scope, witness.name, timing).await?;
        tracing::info!("the witness votes");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        drop(store);
        Ok(())
    })
}
