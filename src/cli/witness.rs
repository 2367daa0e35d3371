//! `hathi witness FILE`: votes in the embedded store, holds its data, never leads a PostgreSQL.

use super::{environment, logging};
use crate::config;
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
        let end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tracing::info!("a witness of {}, at {}", witness.scope.prefix(), witness.raft.self_addr);
        Ok(crate::agent::store::witness(&witness.raft, witness.scope, end).await?)
    })
}
