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
    // Two runtimes: the REST API has all the threads it wants, and the loop, with what it waits for, has
    // one, so that an answer of PostgreSQL or of the store wakes one thread and not three.
    let api = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("hathi-api")
        .enable_all()
        .build()
        .context("the REST API's runtime cannot be started")?;
    let core = tokio::runtime::Builder::new_current_thread()
        .thread_name("hathi-disk")
        // Longer than turns are apart: a thread begun and ended for each costs more than one that waits.
        .thread_keep_alive(std::time::Duration::from_secs(90))
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let source = (path.map(Path::to_path_buf), environment);
    let ended = core.block_on(crate::agent::run(local, source, api.handle().clone()));
    api.shutdown_timeout(std::time::Duration::from_secs(1));
    ended.map_err(Into::into)
}
