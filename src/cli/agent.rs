//! `hathi FILE.yml`: what `patroni FILE.yml` is.

use super::{checks, environment, logging};
use crate::config;
use anyhow::Context;
use std::path::Path;

/// Checks everything that can be checked before anything is touched, then runs the agent until it
/// is told to stop.
///
/// # Errors
/// What the operator has to read, in one line per problem; nothing was touched then.
pub fn run(path: Option<&Path>) -> anyhow::Result<()> {
    let environment = environment();
    let (local, warnings) = config::load(path, &environment)?;
    let (settings, _) = config::effective(&local, &local.first_dynamic())?;
    checks::before_start(&local, &settings)?;
    logging::start(&local.log).context("log.dir")?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = checks::own_login(&local, &settings) {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("hathi")
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let source = (path.map(Path::to_path_buf), environment);
    // On a worker, not on this thread: otherwise each answer that the loop waits for wakes two threads,
    // the one that reads it and this one.
    let agent = runtime.spawn(crate::agent::run(local, source));
    runtime.block_on(agent).context("the agent")?.map_err(Into::into)
}
