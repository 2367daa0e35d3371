//! `hathi demo`: a whole cluster on this machine, to look at and to break.
//!
//! It plans directories and ports (`place`), runs one agent a node and starts an agent that was
//! killed again, as systemd would (`herd`), asks the agents' REST API how things stand (`watch`),
//! and tells it: as a live view (`view`), as plain lines (`plain`) or as one JSON document
//! (`document`). It is an operator, not a part of the cluster: nothing it does is needed for the
//! agents to lead, follow or fail over.

mod document;
mod herd;
mod picture;
mod place;
mod plain;
mod program;
mod view;
mod watch;

use anyhow::Context;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// `hathi demo`
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Directory of the cluster: a new or empty one [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the directory at the end
    #[arg(long)]
    pub keep: bool,
    /// Use this etcd (host:port[,host:port...]) instead of the embedded store
    #[arg(long, value_name = "HOSTS")]
    pub etcd: Option<String>,
    /// First port: PostgreSQL from here, the REST API from here + 10, the embedded store from
    /// here + 20 [default: free ports]
    #[arg(long, value_name = "PORT")]
    pub port_base: Option<u16>,
    /// Where PostgreSQL's programs are [default: the newest below /usr/lib/postgresql, or the PATH]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Print one JSON document when the cluster is ready, then stay until Ctrl-C
    #[arg(long)]
    pub json: bool,
}

/// How long the first election, initdb and the clones may take before the demo gives up.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Runs the demo to its end.
///
/// # Errors
/// One line that says what is missing or in the way; what was started is stopped by then.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime does not start")?;
    runtime.block_on(demo(args))
}

async fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let mut end = End::listen()?;
    let place = place::Place::prepare(args)?;
    let mut herd = herd::Herd::start(&place)?;
    let mut watch = watch::Watch::new(&place);
    let told = if args.json {
        document::tell(&place, &mut herd, &mut watch, &mut end).await
    } else if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        view::tell(&place, &mut herd, &mut watch, &mut end).await
    } else {
        plain::tell(&mut herd, &mut watch, &mut end).await
    };
    // Stopped in any case; the first fault is the one to report.
    if !args.json {
        println!("stopping {} agents and their PostgreSQL ...", place.nodes.len());
    }
    let stopped = herd.stop(&place).await;
    let failed = told.is_err();
    let left = place.finish(failed);
    if let Some(directory) = left.filter(|_| !args.json || failed) {
        eprintln!("kept: {}", directory.display());
    }
    told.and(stopped)
}

/// Somebody wants the demo to end: Ctrl-C, SIGTERM, or the terminal is gone.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl End {
    fn listen() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let to = |kind| signal(kind).context("signals cannot be received");
        Ok(Self {
            interrupt: to(SignalKind::interrupt())?,
            terminate: to(SignalKind::terminate())?,
            hangup: to(SignalKind::hangup())?,
        })
    }

    /// Resolves when the first of them arrives. May be dropped and awaited again.
    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
