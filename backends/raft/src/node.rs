//! One running member: the engine, its storage, its connections, and the tasks around them. All of
//! it lives on one runtime of its own. (DCS-197)

use crate::config::{LEASE_MS, RaftConfig, StartError, node_id};
use crate::disk::DataDir;
use crate::log::LogStore;
use crate::machine::{Command, Op, Reply, RequestId};
use crate::network::Network;
use crate::peers::{Answer, Ask, Caller, Peer};
use crate::state::{Event, State};
use crate::types::{Engine, LogId};
use crate::{elect, join, keep, serve, wire};
use hathi_dcs::{Alarm, Bell, Deadline, Millis, boottime};
use openraft::ServerState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, broadcast};

/// How long one attempt at the leader may take before it is asked again.
const ATTEMPT: Duration = Duration::from_millis(1_000);
const PAUSE: Duration = Duration::from_millis(50);

/// May this member vote? (DCS-199)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has no data and does not know yet whether the cluster has: no vote.
    Unknown,
    /// It has lost its data, or never had any, while the cluster has: no vote until it has again
    /// everything that was committed.
    Rejoining,
    Member,
}

/// The last sign of life of a leader, as this member saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign {
    pub(crate) at: Millis,
    pub(crate) leader: Option<u64>,
    /// The leader's connection broke after that.
    pub(crate) broken: bool,
}

/// A key and the value by which it is ours.
pub(crate) type Own = Arc<Mutex<Option<(String, String)>>>;

pub(crate) struct Node {
    pub(crate) config: RaftConfig,
    pub(crate) cluster: String,
    pub(crate) id: u64,
    pub(crate) engine: Engine,
    pub(crate) log: LogStore,
    pub(crate) state: State,
    pub(crate) network: Network,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) phase: Mutex<Phase>,
    /// While rejoining: the leader must be of this term at least; `None`: not known yet.
    pub(crate) floor: Mutex<Option<u64>>,
    pub(crate) sign: Mutex<Sign>,
    /// A connection broke, or something else to look at at once.
    pub(crate) alarm: Notify,
    /// Rings for who stands up when the leader is silent.
    pub(crate) patience: Bell,
    /// The leader key and our name in it, where PostgreSQL runs beside this member.
    pub(crate) own: Own,
    client: u64,
    asked: AtomicU64,
    pub(crate) data: DataDir,
    #[cfg(test)]
    pub(crate) faults: Arc<crate::tests::Faults>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Starts everything; must be called on the runtime it shall live on.
    pub(crate) async fn start(
        config: RaftConfig,
        cluster: String,
        events: broadcast::Sender<Event>,
        own: Own,
        #[cfg(test)] faults: Arc<crate::tests::Faults>,
    ) -> Result<Arc<Self>, StartError> {
        let data = DataDir::open(&config.data_dir, &cluster, &config.self_addr)?;
        let log = LogStore::open(&data.path)?;
        let state = State::open(&data.path, events)?;
        join::check_whole(&data.path, &log, &state)?;
        let bind = config.bind()?;
        let listener = serve::listen(bind)?;
        let caller = Caller {
            cluster: cluster.clone(),
            from: config.self_addr.clone(),
            password: config.password.clone().unwrap_or_default(),
            timeout_ms: config.connection_timeout_ms,
        };
        let peers = config
            .partner_addrs
            .iter()
            .map(|addr| (node_id(addr), Peer::start(addr.clone(), caller.clone())));
        let network = Network::new(peers.collect());
        let id = node_id(&config.self_addr);
        let failed = |error: &dyn std::fmt::Display| StartError::Runtime(error.to_string());
        let engine_config = openraft::Config {
            cluster_name: cluster.clone(),
            heartbeat_interval: LEASE_MS - 200,
            election_timeout_min: LEASE_MS - 100,
            election_timeout_max: LEASE_MS,
            install_snapshot_timeout: 5_000,
            max_payload_entries: 64,
            replication_lag_threshold: 1_500,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(1_000),
            snapshot_max_chunk_size: 256 << 10,
            max_in_snapshot_log_to_keep: 200,
            purge_batch_size: 64,
            // Signs of life and elections are ours: see the module `elect`.
            enable_heartbeat: false,
            enable_elect: false,
            // So its clock has nothing to do (a leader that is removed steps down by it; members
            // are not removed); that it does not run at all is `rhythm::Unticked`.
            enable_tick: false,
            ..openraft::Config::default()
        };
        let engine_config = engine_config.validate().map_err(|error| failed(&error))?;
        let phase = join::first_phase(&data.path, &log);
        let engine =
            Engine::new(id, Arc::new(engine_config), network.clone(), log.clone(), state.clone())
                .await
                .map_err(|error| failed(&error))?;
        let alarm = || Alarm::new().map_err(|error| failed(&error));
        let (standing, leading) = (alarm()?, alarm()?);
        let node = Arc::new(Self {
            patience: standing.bell(),
            client: wire::unique().map_err(|error| failed(&error))?,
            asked: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
            phase: Mutex::new(phase),
            floor: Mutex::new(None),
            sign: Mutex::new(Sign { at: boottime(), leader: None, broken: false }),
            alarm: Notify::new(),
            own,
            config,
            cluster,
            id,
            engine,
            log,
            state,
            network,
            data,
            #[cfg(test)]
            faults,
        });
        tokio::spawn(serve::accept(node.clone(), listener));
        tokio::spawn(join::form_or_wait(node.clone()));
        tokio::spawn(elect::stand_up(node.clone(), standing));
        tokio::spawn(elect::lead(node.clone(), leading));
        Ok(node)
    }

    /// A new identity for a command; repeats of the command keep it.
    pub(crate) fn command(&self, op: Op) -> Command {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        Command { id: RequestId(self.client, number), op }
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.engine.server_metrics().borrow().state == ServerState::Leader
    }

    /// Does the agent beside this member hold the cluster's leader key?
    pub(crate) fn hosts_primary(&self) -> bool {
        let own = lock(&self.own).clone();
        own.is_some_and(|(key, me)| {
            self.state.copy().machine.keys.get(&key).is_some_and(|entry| entry.value == me)
        })
    }

    fn leader(&self) -> Option<u64> {
        self.engine.server_metrics().borrow().current_leader
    }

    /// The other voters, as this member knows the membership.
    pub(crate) fn others(&self) -> Vec<u64> {
        let metrics = self.engine.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.membership().voter_ids();
        voters.filter(|id| *id != self.id).collect()
    }

    pub(crate) fn quorum_heard(&self) -> Option<Millis> {
        self.network.quorum_heard(&self.others())
    }

    /// Who answered this long ago, or more, may be gone.
    pub(crate) fn in_touch_ms(&self) -> u64 {
        self.config.append_entries_period_ms + 2_000
    }

    /// Does what this member knows come from a leader that a majority followed just now?
    pub(crate) fn in_touch(&self) -> bool {
        let bound = self.in_touch_ms();
        let now = boottime();
        if self.is_leader() {
            self.quorum_heard().is_some_and(|heard| now.since(heard) < bound)
        } else {
            let sign = *lock(&self.sign);
            sign.leader.is_some() && !sign.broken && now.since(sign.at) < bound
        }
    }

    /// Writes as the leader; the answer is this member's own. `Err`: not done, or unknown.
    pub(crate) async fn write_here(&self, command: Command) -> Result<(u64, Reply), String> {
        if let Some(kept) = keep::without_an_entry(self, &command.op).await {
            return Ok(kept);
        }
        match tokio::time::timeout(ATTEMPT, self.engine.client_write(command)).await {
            Err(_) => Err("no majority of the members answers".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(done)) => match done.data {
                Some(reply) => Ok((done.log_id.index, reply)),
                None => Err("an entry that is no command".to_owned()),
            },
        }
    }

    /// The index up to which a reader must have applied to see all that was acknowledged before.
    pub(crate) async fn read_index_here(&self) -> Result<u64, String> {
        match tokio::time::timeout(ATTEMPT, self.engine.ensure_linearizable()).await {
            Err(_) => Err("no majority of the members answers".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(at)) => Ok(at.map_or(0, |id: LogId| id.index)),
        }
    }

    async fn ask_leader(&self, ask: Ask) -> Result<Answer, String> {
        let Some(leader) = self.leader() else {
            return Err("the members have no leader at the moment".to_owned());
        };
        if leader == self.id {
            return match ask {
                Ask::Write(command) => {
                    let (index, reply) = self.write_here(command).await?;
                    Ok(Answer::Written { index, reply })
                }
                _ => self.read_index_here().await.map(Answer::ReadIndex),
            };
        }
        let Some(peer) = self.network.peers.get(&leader) else {
            return Err("the leader is a member the configuration does not name".to_owned());
        };
        let limit = ATTEMPT + Duration::from_millis(300);
        match peer.ask(ask, limit).await {
            Ok(Answer::No(why)) => Err(why),
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("the leader {}: {error}", peer.addr)),
        }
    }

    /// Writes through whoever leads, again and again under the same identity, until the answer is
    /// there or `by` has passed; then the outcome is unknown. `why` says how the last attempt went.
    pub(crate) async fn write(&self, op: Op, by: Deadline, why: &Mutex<String>) -> (u64, Reply) {
        let command = self.command(op);
        loop {
            #[cfg(test)]
            self.faults.request().await;
            let answer = self.ask_leader(Ask::Write(command.clone())).await;
            #[cfg(test)]
            let answer = self.faults.answer(answer).await;
            match answer {
                Ok(Answer::Written { index, reply }) => {
                    self.state.reaches(index).await;
                    return (index, reply);
                }
                Ok(_) => "an answer to another question".clone_into(&mut lock(why)),
                Err(error) => *lock(why) = error,
            }
            self.pause(by).await;
        }
    }

    /// Returns once this member's copy has all that was acknowledged before the call.
    pub(crate) async fn catch_up(&self, by: Deadline, why: &Mutex<String>) {
        loop {
            #[cfg(test)]
            self.faults.request().await;
            let answer = self.ask_leader(Ask::ReadIndex).await;
            #[cfg(test)]
            let answer = self.faults.answer(answer).await;
            match answer {
                Ok(Answer::ReadIndex(index)) => return self.state.reaches(index).await,
                Ok(_) => "an answer to another question".clone_into(&mut lock(why)),
                Err(error) => *lock(why) = error,
            }
            self.pause(by).await;
        }
    }

    async fn pause(&self, by: Deadline) {
        tokio::time::sleep(PAUSE.min(by.left())).await;
    }
}
