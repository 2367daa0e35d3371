//! How each fault is done to a cluster, and what heals it.

use crate::chaos::{Fault, Step};
use crate::cluster::Cluster;
use crate::network::{Cut, Network, Traffic, pair};
use crate::process::signal_pid;
use rustix::process::Signal;
use serde_json::json;

/// One thing that ends a fault, or part of it.
#[derive(Clone, Debug)]
pub enum Remedy {
    Uncut(Vec<Cut>),
    Continue(u32),
    Thaw(usize),
    /// The store's members that do not run, and the agent of a node.
    Start(usize),
    Clock(usize, i64),
}

/// Who has which role right now.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    pub primary: usize,
    pub replica: usize,
    pub other: usize,
}

impl Roles {
    pub fn of(primary: usize, nodes: usize, step: &Step) -> Self {
        let replicas = (nodes as u64 - 1).max(1);
        let nth = |n: u64| (primary + 1 + (n % replicas) as usize) % nodes;
        Self { primary, replica: nth(step.replica), other: nth(step.replica + 1) }
    }
}

/// Does it; returns what heals it, in the order it was done.
///
/// # Errors
/// It could not be done; nothing was.
pub async fn inject(
    cluster: &mut Cluster,
    network: &Network,
    step: &Step,
    roles: Roles,
) -> Result<Vec<Remedy>, String> {
    let Roles { primary, replica, other } = roles;
    let cut = |cuts: Vec<Cut>| {
        network.cut(&cuts);
        Ok(vec![Remedy::Uncut(cuts)])
    };
    let pid = |what: &str, pid: Option<u32>| pid.ok_or_else(|| format!("there is no {what}"));
    match step.fault {
        Fault::PrimaryCut => cut(network.isolation(primary, Traffic::All)),
        Fault::PrimaryCutFromStore => cut(network.isolation(primary, Traffic::Store)),
        Fault::PrimaryMute => cut(network.muteness(primary, Traffic::All)),
        Fault::PrimaryDeaf => cut(network.deafness(primary, Traffic::All)),
        Fault::ReplicaCut => cut(network.isolation(replica, Traffic::All)),
        Fault::ReplicaCutFromStore => cut(network.isolation(replica, Traffic::Store)),
        Fault::ReplicasApart => cut(pair(replica, other, Traffic::All)),
        Fault::StoreScattered => {
            // One remedy a member: whoever is healed first waits for the next to be a majority.
            let all = 0..network.len();
            Ok(all
                .map(|node| {
                    let cuts = network.isolation(node, Traffic::Store);
                    network.cut(&cuts);
                    Remedy::Uncut(cuts)
                })
                .collect())
        }
        Fault::TwoCuts => {
            let first = pair(primary, replica, Traffic::All);
            let second = network.isolation(primary, Traffic::Store);
            network.cut(&first);
            network.cut(&second);
            Ok(vec![Remedy::Uncut(first), Remedy::Uncut(second)])
        }
        Fault::PrimaryFrozen => {
            cluster.freeze_node(primary);
            Ok(vec![Remedy::Thaw(primary)])
        }
        Fault::PrimaryAgentFrozen => stop(pid("agent", cluster.nodes[primary].agent_pid())?),
        Fault::ReplicaAgentFrozen => stop(pid("agent", cluster.nodes[replica].agent_pid())?),
        Fault::PrimaryPostmasterFrozen => {
            stop(pid("postmaster", cluster.nodes[primary].postmaster())?)
        }
        Fault::PrimaryGuardFrozen => stop(pid("guard", cluster.guard_pid(primary))?),
        Fault::PrimaryAgentKilled => {
            cluster.kill_agent(primary);
            Ok(vec![Remedy::Start(primary)])
        }
        Fault::PrimaryGuardKilled => {
            signal_pid(pid("guard", cluster.guard_pid(primary))?, Signal::KILL);
            Ok(Vec::new())
        }
        Fault::PrimaryAgentAndGuardKilled => {
            let guard = pid("guard", cluster.guard_pid(primary))?;
            signal_pid(guard, Signal::KILL);
            cluster.kill_agent(primary);
            Ok(vec![Remedy::Start(primary)])
        }
        Fault::PrimaryAgentAndPostmasterKilled => {
            let postmaster = pid("postmaster", cluster.nodes[primary].postmaster())?;
            cluster.kill_agent(primary);
            signal_pid(postmaster, Signal::KILL);
            Ok(vec![Remedy::Start(primary)])
        }
        Fault::PrimaryPostmasterKilled => {
            let postmaster = pid("postmaster", cluster.nodes[primary].postmaster())?;
            signal_pid(postmaster, Signal::KILL);
            Ok(Vec::new())
        }
        Fault::PrimaryKilled => {
            cluster.kill_node(primary);
            Ok(vec![Remedy::Start(primary)])
        }
        Fault::ReplicaKilled => {
            cluster.kill_node(replica);
            Ok(vec![Remedy::Start(replica)])
        }
        Fault::AllKilled => {
            let all = 0..cluster.nodes.len();
            all.clone().for_each(|node| cluster.kill_node(node));
            Ok(all.map(Remedy::Start).collect())
        }
        Fault::PrimaryClockJumps => Ok(clock(cluster, primary, step.clock_ahead_secs)),
        Fault::ReplicaClockJumps => Ok(clock(cluster, replica, step.clock_ahead_secs)),
        Fault::Switchover => {
            let (leader, candidate) = (&cluster.nodes[primary].name, &cluster.nodes[replica].name);
            let order = json!({"leader": leader, "candidate": candidate});
            match cluster.send(primary, "POST", "/switchover", order).await {
                Ok(answer) if answer.status == 200 => Ok(Vec::new()),
                Ok(answer) => Err(format!("refused: {} {}", answer.status, answer.body)),
                Err(e) => Err(e),
            }
        }
    }
}

fn stop(pid: u32) -> Result<Vec<Remedy>, String> {
    signal_pid(pid, Signal::STOP);
    Ok(vec![Remedy::Continue(pid)])
}

fn clock(cluster: &Cluster, node: usize, ahead_secs: i64) -> Vec<Remedy> {
    cluster.machine(node).set_wall_clock(ahead_secs);
    // It jumps back, too: that is the worse direction.
    vec![Remedy::Clock(node, 0)]
}

pub fn heal(cluster: &mut Cluster, network: &Network, remedy: &Remedy) {
    match remedy {
        Remedy::Uncut(cuts) => network.heal(cuts),
        Remedy::Continue(pid) => signal_pid(*pid, Signal::CONT),
        Remedy::Thaw(node) => cluster.thaw_node(*node),
        Remedy::Start(node) => {
            cluster.restart_members();
            if !cluster.agent_running(*node) {
                cluster.start_agent(*node);
            }
        }
        Remedy::Clock(node, ahead_secs) => cluster.machine(*node).set_wall_clock(*ahead_secs),
    }
}
