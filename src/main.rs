//! `hathi`: the command line.

use clap::Parser;
use hathi::cli::{self, Command, Hathi};
use std::process::ExitCode;

fn main() -> ExitCode {
    // The guard is looked for by hand: it stays for months beside the agent, and the parser alone
    // would make a quarter of the program resident in it.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "guard") {
        return hathi::guard::main(args);
    }
    let Hathi { command, config } = Hathi::parse();
    // One provider for every TLS library in this process, chosen before the first of them asks. An
    // error would mean that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match &command {
        None => cli::agent::run(config.as_deref()),
        Some(Command::ValidateConfig(args)) => return cli::validate_config::run(args),
        Some(Command::Replay(args)) => return cli::replay::run(args),
        Some(Command::Demo(args)) => cli::demo::run(args),
        Some(Command::Witness(args)) => cli::witness::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hathi: {error:#}");
            ExitCode::FAILURE
        }
    }
}
