//! The run itself. Whatever happens it ends in a verdict: what does not come back is in doubt.

use crate::chaos::faults::{Roles, heal, inject};
use crate::chaos::{Evidence, Fault, Judgement, Mode, Schedule, Step, Table, Verdict, judge};
use crate::check::{Loss, longest_gap, one_primary, rows_agree};
use crate::cluster::{Agent, Cluster, ClusterOptions, Store};
use crate::network::Network;
use crate::writers::{TABLE, Writers};
use crate::{sql, wait};
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two rows of one writer.
const PAUSE: Duration = Duration::from_millis(20);
/// A cluster that is not whole again after this long did not survive.
const SETTLED: Duration = Duration::from_secs(240);

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// How long faults are injected; the end's verification comes on top.
    pub lasts: Duration,
    pub store: Store,
    pub mode: Mode,
    pub agent: Agent,
    /// The hathi binary under test.
    pub hathi: String,
    /// Without it, a frozen or killed agent leaves a primary behind: the control.
    pub guard: bool,
    /// Only these faults, in the order of the seed; empty: all.
    pub only: Vec<Fault>,
    /// Whether wall clocks can jump here (libfaketime).
    pub wall_clocks: bool,
}

impl Options {
    /// The schedule of this run. What is not possible here (a guard that is off, clocks that cannot
    /// jump) is left out of the seed's schedule; the rest stays the same, so that two agents can be
    /// compared.
    pub fn schedule(&self) -> impl Iterator<Item = Step> + use<> {
        let guarded = self.guard && self.agent == Agent::Hathi;
        let wall_clocks = self.wall_clocks;
        let deck = if self.only.is_empty() { Fault::ALL.to_vec() } else { self.only.clone() };
        let possible = move |f: Fault| {
            (guarded || !f.needs_guard()) && (wall_clocks || !f.needs_wall_clocks())
        };
        let deck = if deck.iter().any(|f| possible(*f)) { deck } else { Vec::new() };
        Schedule::new(self.seed, deck).filter(move |step| possible(step.fault))
    }

    fn cluster(&self, network: &Arc<Network>) -> ClusterOptions {
        let mut options = ClusterOptions::new(self.agent, self.store, &self.hathi);
        options.nodes = network.len();
        options.network = Some(network.clone());
        options.wall_clocks = self.wall_clocks;
        options.dcs = self.mode.dcs();
        if !self.guard && self.agent == Agent::Hathi {
            options.local = json!({"guard": {"mode": "off"}});
        }
        options
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub why: Vec<String>,
    pub table: Table,
    pub acknowledged: usize,
    /// Rows that are gone and may be, in this mode.
    pub permitted: usize,
    /// Rows of which the writers do not know whether they were committed.
    pub unanswered: u64,
    /// The end of every log, if the verdict is not clean.
    pub report: String,
}

struct Run<'a> {
    network: Arc<Network>,
    cluster: Cluster,
    writers: Writers,
    table: Table,
    windows: Vec<Loss>,
    /// Since when the primary is being lost, until all is whole again.
    losing: Option<Instant>,
    say: &'a (dyn Fn(&str) + Sync),
}

/// Runs it. `say` gets a line for everything that happens.
///
/// # Panics
/// If the cluster does not even start.
pub async fn run(network: Arc<Network>, options: &Options, say: &(dyn Fn(&str) + Sync)) -> Outcome {
    let cluster = Cluster::start(options.cluster(&network)).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    let (table, windows) = (Table::default(), Vec::new());
    let mut run = Run { network, cluster, writers, table, windows, losing: None, say };
    let end = Instant::now() + options.lasts;
    let mut broken = None;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    for (number, step) in options.schedule().enumerate() {
        let one = run.step(number + 1, &step);
        let ended = tokio::select! {
            ended = one => Some(ended),
            _ = &mut interrupted => None,
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(e)) => {
                broken = Some(e);
                break;
            }
            // What was injected and not yet healed is healed by the end of the whole.
            None => {
                say("interrupted");
                break;
            }
        }
        if Instant::now() >= end {
            break;
        }
    }
    run.verdict(options.mode, broken).await
}

impl Run<'_> {
    /// One fault from beginning to end.
    ///
    /// # Errors
    /// The cluster did not survive it.
    async fn step(&mut self, number: usize, step: &Step) -> Result<(), String> {
        let leads = self.survives(async |run: &Self| run.cluster.leader().await).await;
        let primary = leads.map_err(|e| format!("no primary to hurt: {e}"))?;
        let roles = Roles::of(primary, self.cluster.nodes.len(), step);
        let start = Instant::now();
        let name = step.fault.name();
        (self.say)(&format!("{number}: {name} for {:?} ({:?})", step.hold, roles));
        if step.fault.may_lose() {
            self.losing.get_or_insert(Loss::just_before(start).from);
        }
        let remedies = match inject(&mut self.cluster, &self.network, step, roles).await {
            Ok(remedies) => remedies,
            Err(e) => {
                (self.say)(&format!("{number}: {name} was not done: {e}"));
                return Ok(());
            }
        };
        self.table.begins(step.fault);
        tokio::time::sleep(step.hold).await;
        let order: Vec<_> = match step.reversed {
            true => remedies.iter().rev().collect(),
            false => remedies.iter().collect(),
        };
        for (i, remedy) in order.into_iter().enumerate() {
            if i > 0 {
                tokio::time::sleep(step.between).await;
            }
            heal(&mut self.cluster, &self.network, remedy);
        }
        let healed = Instant::now();
        let writes = self
            .survives(async |run: &Self| match run.writers.last() {
                Some(last) if last.sent > healed => Ok(last.node),
                other => Err(format!("no write since it was healed; the last: {other:?}")),
            })
            .await;
        let now_primary = writes.map_err(|e| format!("after {name}: {e}"))?;
        if step.settle {
            self.settle().await.map_err(|e| format!("after {name}: {e}"))?;
        }
        let end = Instant::now();
        let gap = self.writers.look(|rows| longest_gap(rows, start, end));
        self.table.survived(step.fault, gap, now_primary != primary);
        (self.say)(&format!(
            "{number}: {name} survived, longest write gap {:.1} s",
            gap.as_secs_f64()
        ));
        let recent: Vec<_> = self
            .writers
            .look(|rows| rows.iter().rev().take_while(|r| r.acked > start).cloned().collect());
        if let Err(two) = one_primary(&recent) {
            (self.say)(&format!("{number}: {name}: {two}"));
            self.table.two_writers(step.fault);
        }
        Ok(())
    }

    /// Waits for a whole healthy cluster; from then on nothing may be lost.
    async fn settle(&mut self) -> Result<(), String> {
        let others = self.cluster.nodes.len() - 1;
        self.survives(async |run: &Self| run.cluster.looks_healthy(others).await).await?;
        if let Some(from) = self.losing.take() {
            self.windows.push(Loss { from, to: Instant::now() });
        }
        Ok(())
    }

    /// Waits for a fact, and keeps starting agents that ended by themselves, as systemd would.
    async fn survives<T, F>(&mut self, mut probe: F) -> Result<T, String>
    where
        F: AsyncFnMut(&Self) -> Result<T, String>,
    {
        let started = Instant::now();
        loop {
            for node in 0..self.cluster.nodes.len() {
                if !self.cluster.agent_running(node) {
                    let name = &self.cluster.nodes[node].name;
                    (self.say)(&format!("the agent of {name} has ended; started again"));
                    self.table.agents_ended += 1;
                    self.cluster.start_agent(node);
                }
            }
            match probe(self).await {
                Ok(value) => return Ok(value),
                Err(e) if started.elapsed() > SETTLED => {
                    return Err(format!("not within {SETTLED:?}: {e}"));
                }
                Err(_) => tokio::time::sleep(wait::POLL * 4).await,
            }
        }
    }

    async fn verdict(mut self, mode: Mode, broken: Option<String>) -> Outcome {
        (self.say)("healing everything, verifying every acknowledged row");
        self.network.heal_all();
        for node in 0..self.cluster.nodes.len() {
            self.cluster.thaw_node(node);
            self.cluster.machine(node).set_wall_clock(0);
        }
        self.cluster.restart_members();
        let mut why: Vec<String> = broken.into_iter().collect();
        if let Err(e) = self.settle().await {
            why.push(format!("the cluster is not whole at the end: {e}"));
            if let Some(from) = self.losing.take() {
                self.windows.push(Loss { from, to: Instant::now() });
            }
        }
        let Self { cluster, writers, table, windows, .. } = self;
        let written = writers.stop().await;
        let present = rows_of_the_primary(&cluster).await;
        let agree = wait::until("all nodes agree", SETTLED, || rows_agree(&cluster)).await;
        why.extend(agree.err());
        let evidence = Evidence {
            mode,
            accepted: &written.accepted,
            present: present.as_ref().ok(),
            windows: &windows,
        };
        let judged = judge(&evidence);
        let Judgement { verdict, permitted, .. } = judged;
        why.extend(judged.why);
        let verdict = match verdict {
            Verdict::Clean if !why.is_empty() => Verdict::InDoubt,
            Verdict::Clean | Verdict::TwoWriters | Verdict::InDoubt => verdict,
        };
        let report = if verdict == Verdict::Clean { String::new() } else { cluster.report() };
        let (acknowledged, unanswered) = (written.accepted.len(), written.in_doubt);
        Outcome { verdict, why, table, acknowledged, permitted, unanswered, report }
    }
}

async fn rows_of_the_primary(cluster: &Cluster) -> Result<HashSet<u64>, String> {
    let leader = cluster.leader().await?;
    let session = sql::connect(cluster.nodes[leader].pg(), Duration::from_secs(10)).await?;
    let ask = format!("SELECT id FROM {TABLE}");
    let rows = session.rows(&ask, Duration::from_secs(300)).await?;
    Ok(rows.into_iter().flatten().flatten().filter_map(|v| v.parse().ok()).collect())
}
