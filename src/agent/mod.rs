//! The shell around the core: the event loop, the executor of decisions, the clients.

pub mod peers;
pub mod store;

use crate::config::{Local, Warning};

/// Runs the agent of this node until it is told to stop. `warnings` are logged already; the REST
/// API may show them.
///
/// # Errors
/// What the operator has to read, in one line.
pub async fn run(local: Local, warnings: Vec<Warning>) -> anyhow::Result<()> {
    let _ = (local, warnings);
    anyhow::bail!("the agent is not built yet")
}

/// The guard's own `main`: no runtime, no threads.
pub fn guard_main(args: &[String]) -> std::process::ExitCode {
    let _ = args;
    eprintln!("hathi guard: not built yet");
    std::process::ExitCode::FAILURE
}
