//! The demo's agents: started, started again when somebody killed them, stopped in order.

use super::place::{NodePlan, Place};
use super::program::become_user;
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// As systemd's RestartSec.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// A stopping PostgreSQL writes a checkpoint; then it is asked less politely.
const STOP_WITHIN: Duration = Duration::from_secs(40);

#[derive(Debug)]
enum State {
    Running(Child),
    /// Ended without being asked; to be started again then.
    Down {
        until: Instant,
    },
}

#[derive(Debug)]
struct Agent {
    node: NodePlan,
    state: State,
}

#[derive(Debug)]
pub struct Herd {
    agents: Vec<Agent>,
    command: Commander,
}

/// What happened to an agent's process since we looked last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Ended { node: String, how: String, again_in: Duration },
    Started { node: String, pid: u32 },
    NotStarted { node: String, why: String },
}

impl Herd {
    /// Starts one agent a node.
    ///
    /// # Errors
    /// One did not start; those that did are killed again.
    pub fn start(place: &Place) -> anyhow::Result<Self> {
        let command = Commander { program: place.program.clone(), run_as: place.run_as.clone() };
        let mut herd = Self { agents: Vec::new(), command };
        for node in &place.nodes {
            match herd.command.spawn(node) {
                Ok(child) => {
                    herd.agents.push(Agent { node: node.clone(), state: State::Running(child) });
                }
                Err(e) => {
                    herd.agents.iter_mut().for_each(Agent::kill);
                    place.finish(false);
                    return Err(e);
                }
            }
        }
        Ok(herd)
    }

    pub fn pid(&self, node: &str) -> Option<u32> {
        self.agents.iter().find(|a| a.node.name == node).and_then(|a| match &a.state {
            State::Running(child) => Some(child.id()),
            State::Down { .. } => None,
        })
    }

    /// Reaps who ended, starts whose pause is over.
    pub fn tend(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for agent in &mut self.agents {
            let node = agent.node.name.clone();
            match &mut agent.state {
                State::Running(child) => {
                    if let Ok(Some(status)) = child.try_wait() {
                        let how = in_words(status);
                        changes.push(Change::Ended { node, how, again_in: RESTART_AFTER });
                        agent.state = State::Down { until: Instant::now() + RESTART_AFTER };
                    }
                }
                State::Down { until } if *until <= Instant::now() => {
                    match self.command.spawn(&agent.node) {
                        Ok(child) => {
                            changes.push(Change::Started { node, pid: child.id() });
                            agent.state = State::Running(child);
                        }
                        Err(e) => {
                            changes.push(Change::NotStarted { node, why: format!("{e:#}") });
                            *until = Instant::now() + RESTART_AFTER;
                        }
                    }
                }
                State::Down { .. } => {}
            }
        }
        changes
    }

    /// SIGTERM to every agent, which stops its PostgreSQL and ends; whatever is left after
    /// [`STOP_WITHIN`], PostgreSQL included, is killed.
    ///
    /// # Errors
    /// Names the nodes that had to be killed.
    pub async fn stop(&mut self, place: &Place) -> anyhow::Result<()> {
        for agent in &self.agents {
            if let State::Running(child) = &agent.state {
                signal(child.id(), Signal::CONT);
                signal(child.id(), Signal::TERM);
            }
        }
        let started = Instant::now();
        while self.agents.iter_mut().any(Agent::runs) && started.elapsed() < STOP_WITHIN {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut late = Vec::new();
        for agent in &mut self.agents {
            if agent.runs() {
                late.push(agent.node.name.clone());
            }
            agent.kill();
        }
        // An agent that was down, or had to be killed, may have left its PostgreSQL.
        let orphans: Vec<u32> = place.nodes.iter().filter_map(NodePlan::postmaster).collect();
        orphans.iter().for_each(|pid| signal(*pid, Signal::QUIT));
        let started = Instant::now();
        while place.nodes.iter().any(|n| n.postmaster().is_some()) {
            if started.elapsed() > Duration::from_secs(10) {
                place
                    .nodes
                    .iter()
                    .filter_map(NodePlan::postmaster)
                    .for_each(|p| signal(p, Signal::KILL));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let names = late.join(", ");
        ensure!(late.is_empty(), "{names}: still running after {STOP_WITHIN:?}, killed");
        Ok(())
    }
}

impl Agent {
    fn runs(&mut self) -> bool {
        match &mut self.state {
            State::Running(child) => matches!(child.try_wait(), Ok(None)),
            State::Down { .. } => false,
        }
    }

    fn kill(&mut self) {
        if let State::Running(child) = &mut self.state {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Debug)]
struct Commander {
    program: std::path::PathBuf,
    run_as: Option<super::program::RunAs>,
}

impl Commander {
    fn spawn(&self, node: &NodePlan) -> anyhow::Result<Child> {
        let log = node.log();
        let open = || {
            let mut options = std::fs::File::options();
            options.create(true).append(true).open(&log)
        };
        let out = open().with_context(|| format!("{} cannot be written", log.display()))?;
        let err = out.try_clone().context("a file handle cannot be duplicated")?;
        let mut command = Command::new(&self.program);
        command.arg(node.file()).current_dir(&node.dir);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Ctrl-C in the terminal is for the demo, which then stops the agents in order.
        command.process_group(0);
        become_user(&mut command, self.run_as.as_ref())
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone already needs no signal.
        let _ = kill_process(pid, signal);
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => format!("killed by signal {number}"),
        (None, None) => "ended".to_owned(),
    }
}
