//! The commands: each parses its arguments, does its one thing, and words what went wrong.

pub mod agent;
mod checks;
pub mod demo;
mod log_format;
pub mod logging;
pub mod replay;
pub mod validate_config;
pub mod witness;

use std::path::PathBuf;

/// Keeps a PostgreSQL cluster available: one agent beside each server.
#[derive(Debug, clap::Parser)]
#[command(name = "hathi", version, args_conflicts_with_subcommands = true)]
pub struct Hathi {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The YAML file (or directory of files) of this node. Without it the PATRONI_* variables are
    /// the configuration.
    pub config: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check a configuration without starting anything.
    ValidateConfig(validate_config::Args),
    /// A whole cluster on this machine, to look at and to break.
    Demo(demo::DemoArgs),
    /// Run a recorded turn again: why did it decide that?
    Replay(replay::Args),
    /// A third vote for the embedded store, without PostgreSQL.
    Witness(witness::Args),
}

/// The environment as it is now. Names and values that are not UTF-8 are none of ours.
fn environment() -> crate::config::Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
