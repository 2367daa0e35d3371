//! `hathi replay FILE`: runs a recorded turn again and shows why it came to what it did. (HA-320)

use crate::ha::record::{Came, Replayed, Transcribed, replay};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `GET /decisions/<number>/recording` sent; `-`: standard input.
    pub file: PathBuf,
    /// Show every question of the turn and its answer.
    #[arg(short, long)]
    pub calls: bool,
}

/// 0: the same decision again; 1: another one, or no recording.
pub fn run(args: &Args) -> ExitCode {
    let bytes = match read(args) {
        Ok(bytes) => bytes,
        Err(why) => {
            eprintln!("hathi replay: {}: {why}", args.file.display());
            return ExitCode::FAILURE;
        }
    };
    match replay(&bytes) {
        Ok(replayed) => show(&replayed, args.calls),
        Err(why) => {
            eprintln!("hathi replay: {}: {why}", args.file.display());
            ExitCode::FAILURE
        }
    }
}

fn read(args: &Args) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if args.file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(&args.file)?.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn show(replayed: &Replayed, calls: bool) -> ExitCode {
    if calls {
        for Transcribed { name, asked, answer } in &replayed.calls {
            println!("{name} {asked} -> {answer}");
        }
    }
    tell(&replayed.recorded);
    if replayed.is_identical() {
        println!("replayed: the same (recorded by hathi {})", replayed.version);
        return ExitCode::SUCCESS;
    }
    println!("replayed: ANOTHER decision than that of hathi {}:", replayed.version);
    tell(&replayed.replayed);
    ExitCode::FAILURE
}

fn tell(came: &Came) {
    println!("{}", came.line);
    for reason in &came.reasons {
        println!("  {}: {}", reason.rule, reason.why);
    }
    if let Some(task) = &came.task {
        println!("  starts: {task:?}");
    }
    if let Some(exit) = &came.exit {
        println!("  ends: {exit:?}");
    }
}
