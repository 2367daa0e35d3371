//! The one world of a run: true time, what happens next, the machines, the network, the trace.
//!
//! ```text
//! executor ── polls agents' futures ──► ports ──► World: events in true time ──► replies, wake-ups
//! ```

use crate::invariants::Watched;
use crate::plan::Planned;
use crate::random::Random;
use crate::server::Server;
use crate::store::Store;
use crate::wal::Wal;
use futures::channel::{mpsc, oneshot};
use futures::future::BoxFuture;
use hathi::ha::lease::Lease;
use hathi::ha::promise::Gate;
use hathi::ha::run::{Event, Events};
use hathi::ha::settings::Settings;
use hathi_dcs::{Change, ClusterView, MemberName, Millis, Role, State};
use serde_json::{Map, Value};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, Weak};

pub type Shared = Arc<Mutex<World>>;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

/// One life of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub node: usize,
    pub life: u64,
}

/// Lives as long as the run.
pub const OPERATOR: Process = Process { node: usize::MAX, life: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Runs,
    Frozen,
    Dead,
}

type Happening = Box<dyn FnOnce(&mut World) + Send>;

struct Scheduled {
    at: Reverse<(u64, u64)>,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// The agent on a node, while it lives.
pub struct Agent {
    pub life: u64,
    pub frozen: bool,
    /// The last moment it was not scheduled.
    pub unfrozen_at: u64,
    pub started_at: u64,
    pub lease: Arc<Lease>,
    pub watchdog: Arc<hathi::watchdog::Watchdog>,
    pub events: Events,
    pub watchers: Vec<mpsc::UnboundedSender<Change>>,
    /// The copy of the store that its watch feeds, with the revision; `None` while it is broken.
    pub copy: Option<(u64, Arc<ClusterView>)>,
    pub settings: Arc<Settings>,
    pub dynamic: Map<String, Value>,
    /// The members agreed on a ttl below Patroni's floor. (HA-324)
    pub short_ttl: bool,
    /// What it knows of its PostgreSQL.
    pub state: State,
    pub state_since: Millis,
    pub role: Role,
    pub cancelled: bool,
    pub cancels: Vec<oneshot::Sender<()>>,
    pub tasks: Vec<&'static str>,
    pub line: String,
    /// The last time it asked its peers: did one say that it is a primary?
    pub saw_primary: Option<MemberName>,
    pub shutting_down: bool,
    /// The lease of its session with the store.
    pub session: u64,
    /// What it promised over its REST API.
    pub gate: Arc<Gate>,
    /// Its last turn saw a primary.
    pub seen_as_primary: bool,
    pub licensed_until: Option<Millis>,
    pub stalls: crate::stalls::Stalls,
    pub looks: crate::looks::Looks,
}

pub struct Node {
    pub name: MemberName,
    pub offset_ms: u64,
    /// How much faster its clock runs than true time, in millionths.
    pub drift: i64,
    /// It behaves like a member of Patroni's. (patroni.rs)
    pub patroni: bool,
    pub nofailover: bool,
    pub nosync: bool,
    pub priority: i64,
    pub agent: Option<Agent>,
    pub lives: u64,
    pub server: Server,
    /// The guard's deadline on the node's clock; it outlives the agent.
    pub fence: Option<Millis>,
    /// Operations on PostgreSQL take so many times longer, and some fail.
    pub slow: u64,
    pub failing: u64,
    /// Since when nothing reaches its disk.
    pub disk_hangs_since: Option<u64>,
    /// How far ahead of true time its wall clock is, and when it was set last. (clocks.rs)
    pub wall_ahead_ms: i64,
    pub wall_set_at: u64,
    /// The whole machine stands still.
    pub suspended: bool,
    /// Until then its PostgreSQL is what an operator made of it. (pause.rs)
    pub hands_until: u64,
    /// The dynamic configuration as its last agent left it beside the data directory. (HA-019)
    pub cached: Option<Map<String, Value>>,
    /// It may not be restarted by the service manager.
    pub held_down: bool,
    /// It holds another cluster's data.
    pub foreign: bool,
    pub to_store: bool,
    pub from_store: bool,
    pub watch_broken: bool,
    pub last_request_at: u64,
    pub last_delivery_at: u64,
}

pub struct World {
    this: Weak<Mutex<World>>,
    pub now_us: u64,
    sequence: u64,
    queue: BinaryHeap<Scheduled>,
    pub random: Random,
    pub spawned: Vec<(Process, BoxFuture<'static, ()>)>,
    killed: Vec<Process>,
    resumed: bool,
    pub nodes: Vec<Node>,
    /// `links[a][b]`: packets from a reach b.
    pub links: Vec<Vec<bool>>,
    pub store: Store,
    pub wal: Wal,
    /// The remote primary of a standby cluster, and what its operator wants. (standby.rs)
    pub remote: Option<crate::standby::Remote>,
    pub watched: Watched,
    pub watchdogs: crate::watchdog::Watchdogs,
    pub late: crate::looks::Late,
    /// The options every node starts with.
    pub base: Settings,
    pub failed: Option<(String, String)>,
    pub tracing: bool,
    pub trace: Vec<String>,
    pub hash: u64,
    pub faults: BTreeMap<&'static str, u64>,
    /// Whatever else is worth a number at the end of all runs.
    pub counted: BTreeMap<&'static str, u64>,
    /// Scheduled changes that go on until their end.
    pub active_faults: u32,
    pub last_fault_at: u64,
    pub quiet: bool,
    /// What is to go wrong, and the numbers of what did.
    pub planned: Vec<Planned>,
    pub struck: Vec<usize>,
}

impl World {
    pub fn empty(seed: u64) -> Shared {
        Arc::new_cyclic(|this| {
            Mutex::new(Self {
                this: this.clone(),
                now_us: 0,
                sequence: 0,
                queue: BinaryHeap::new(),
                random: Random::new(seed),
                spawned: Vec::new(),
                killed: Vec::new(),
                resumed: false,
                nodes: Vec::new(),
                links: Vec::new(),
                store: Store::default(),
                wal: Wal::default(),
                remote: None,
                watched: Watched::default(),
                watchdogs: Default::default(),
                late: Default::default(),
                base: crate::agent::base_settings(),
                failed: None,
                tracing: false,
                trace: Vec::new(),
                hash: seed,
                faults: BTreeMap::new(),
                counted: BTreeMap::new(),
                active_faults: 0,
                last_fault_at: 0,
                quiet: false,
                planned: Vec::new(),
                struck: Vec::new(),
            })
        })
    }

    /// How many nodes are of this cluster; what it follows comes after them.
    pub fn members(&self) -> usize {
        self.nodes.len() - usize::from(self.remote.is_some())
    }

    pub fn shared(&self) -> Shared {
        self.this.upgrade().expect("the world outlives what happens in it")
    }

    pub fn add_node(&mut self, name: &str, offset_ms: u64, drift: i64) -> usize {
        self.nodes.push(Node {
            name: MemberName::from(name),
            offset_ms,
            drift,
            patroni: false,
            nofailover: false,
            nosync: false,
            priority: 1,
            agent: None,
            lives: 0,
            server: Server::default(),
            fence: None,
            slow: 1,
            failing: 0,
            disk_hangs_since: None,
            wall_ahead_ms: 0,
            wall_set_at: 0,
            suspended: false,
            hands_until: 0,
            cached: None,
            held_down: false,
            foreign: false,
            to_store: true,
            from_store: true,
            watch_broken: false,
            last_request_at: 0,
            last_delivery_at: 0,
        });
        self.watchdogs.devices.push(Default::default());
        let count = self.nodes.len();
        self.links = vec![vec![true; count]; count];
        count - 1
    }

    // Time.

    pub fn at(&mut self, at_us: u64, what: impl FnOnce(&mut World) + Send + 'static) {
        let at = at_us.max(self.now_us);
        self.sequence += 1;
        self.queue.push(Scheduled { at: Reverse((at, self.sequence)), what: Box::new(what) });
    }

    pub fn after(&mut self, us: u64, what: impl FnOnce(&mut World) + Send + 'static) {
        self.at(self.now_us + us, what);
    }

    pub fn next_event_at(&self) -> Option<u64> {
        self.queue.peek().map(|next| next.at.0.0)
    }

    pub fn fire_next(&mut self) {
        if let Some(next) = self.queue.pop() {
            self.now_us = next.at.0.0;
            (next.what)(self);
        }
    }

    /// What the node's clock shows at a moment of true time.
    pub fn local_at(&self, node: usize, true_us: u64) -> Millis {
        let Some(node) = self.nodes.get(node) else { return Millis(true_us / MS) };
        let ran = i128::from(true_us) * (1_000_000 + i128::from(node.drift)) / 1_000_000;
        Millis(node.offset_ms + u64::try_from(ran).unwrap_or(0) / MS)
    }

    pub fn local(&self, node: usize) -> Millis {
        self.local_at(node, self.now_us)
    }

    /// The first moment of true time at which the node's clock shows this.
    pub fn true_at(&self, node: usize, local: Millis) -> u64 {
        let Some(machine) = self.nodes.get(node) else { return local.0.saturating_mul(MS) };
        let ms = i128::from(local.0.saturating_sub(machine.offset_ms));
        if ms > 1 << 50 {
            return u64::MAX;
        }
        let rate = 1_000_000 + i128::from(machine.drift);
        let us = (ms * i128::from(MS) * 1_000_000).div_euclid(rate);
        let mut us = u64::try_from(us).unwrap_or(0);
        while self.local_at(node, us) < local {
            us += 1;
        }
        us
    }

    // Processes.

    pub fn fate(&self, process: Process) -> Fate {
        if process == OPERATOR {
            return Fate::Runs;
        }
        match self.agent(process) {
            Some(agent) if agent.frozen => Fate::Frozen,
            Some(_) => Fate::Runs,
            None => Fate::Dead,
        }
    }

    pub fn agent(&self, process: Process) -> Option<&Agent> {
        self.nodes.get(process.node)?.agent.as_ref().filter(|agent| agent.life == process.life)
    }

    pub fn agent_mut(&mut self, process: Process) -> Option<&mut Agent> {
        self.nodes.get_mut(process.node)?.agent.as_mut().filter(|agent| agent.life == process.life)
    }

    pub fn note_killed(&mut self, process: Process) {
        self.killed.push(process);
    }

    pub fn note_resumed(&mut self) {
        self.resumed = true;
    }

    pub fn take_process_changes(&mut self) -> (Vec<Process>, bool) {
        (std::mem::take(&mut self.killed), std::mem::take(&mut self.resumed))
    }

    /// Posts an event to the node's agent, if it has one.
    pub fn post(&self, node: usize, event: Event) {
        if let Some(agent) = &self.nodes[node].agent {
            agent.events.post(event);
        }
    }

    /// Is its agent alive, running, and not only just so?
    pub fn is_healthy(&self, node: usize, for_us: u64) -> bool {
        self.nodes[node].agent.as_ref().is_some_and(|agent| {
            !agent.frozen
                && !agent.shutting_down
                && agent.unfrozen_at + for_us <= self.now_us
                && agent.started_at + for_us <= self.now_us
        })
    }

    // Network.

    pub fn connected(&self, a: usize, b: usize) -> bool {
        a == b || (self.links[a][b] && self.links[b][a])
    }

    pub fn sees_store(&self, node: usize) -> bool {
        self.store.up && self.nodes[node].to_store && self.nodes[node].from_store
    }

    pub fn node_of(&self, name: &MemberName) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == *name)
    }

    // What is told.

    /// Notes that something happened. The text is made only when somebody reads it.
    pub fn say(&mut self, node: usize, code: u64, text: impl FnOnce(&Self) -> String) {
        let mixed = self.hash ^ self.now_us ^ (code << 48) ^ ((node as u64) << 40);
        self.hash = mixed.wrapping_mul(0x100_0000_01B3).rotate_left(23);
        if self.tracing {
            let who = self.nodes.get(node).map_or("-", |node| node.name.as_str()).to_owned();
            let text = text(self);
            let (seconds, ms) = (self.now_us / SECOND, self.now_us % SECOND / MS);
            self.trace.push(format!("t={seconds:>3}.{ms:03} {who:>2}  {text}"));
        }
    }

    /// An invariant does not hold: the run ends here.
    pub fn violation(&mut self, rule: &str, what: impl Into<String>) {
        let what = what.into();
        // After Patroni's member broke a rule only what no state of the cluster excuses counts.
        let ours = ["INV-2", "INV-3", "INV-18", "INV-19", "INV-23"].contains(&rule);
        if self.watched.patroni_broke && !ours {
            return;
        }
        if self.failed.is_none() {
            self.say(usize::MAX, 99, |_| format!("VIOLATION of {rule}: {what}"));
            self.failed = Some((rule.to_owned(), what));
        }
    }

    /// Counts something that happened and is no fault.
    pub fn count(&mut self, what: &'static str) {
        *self.counted.entry(what).or_default() += 1;
    }

    /// Counts a fault that is injected now.
    pub fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
        self.last_fault_at = self.now_us;
        self.say(usize::MAX, 1, |_| format!("FAULT {name}"));
    }
}

/// A short code for a text, for the hash of the trace.
pub fn code_of(text: &str) -> u64 {
    text.bytes()
        .fold(7, |code: u64, byte| code.wrapping_mul(31).wrapping_add(u64::from(byte)) & 0xFFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_clocks_drift_and_convert_back() {
        let world = World::empty(1);
        let mut world = world.lock().unwrap();
        for (offset, drift) in [(0, 0), (5_000, 50_000), (77, -50_000), (3, 12_345)] {
            let node = world.add_node("n", offset, drift);
            for local in [offset, offset + 1, offset + 999, offset + 28_500, offset + 600_000] {
                let at = world.true_at(node, Millis(local));
                assert!(world.local_at(node, at) >= Millis(local));
                assert!(
                    at == 0 || world.local_at(node, at - 1) < Millis(local),
                    "the first moment"
                );
            }
        }
    }
}
