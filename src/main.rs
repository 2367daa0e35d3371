//! `hathi`: the command line.

use clap::Parser;
use hathi::cli::{self, Command, Hathi};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Hathi { command, config } = Hathi::parse();
    if let Some(Command::Guard(args)) = &command {
        // Before any thread, any runtime, any memory that is not needed.
        return hathi::guard::main(&args.args);
    }
    // One provider for every TLS library in this process, chosen before the first of them asks. An
    // error would mean that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match &command {
        None => cli::agent::run(config.as_deref()),
        Some(Command::ValidateConfig(args)) => return cli::validate_config::run(args),
        Some(Command::Demo(args)) => cli::demo::run(args),
        Some(Command::Witness(args)) => cli::witness::run(args),
        Some(Command::Guard(_)) => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hathi: {error:#}");
            ExitCode::FAILURE
        }
    }
}
