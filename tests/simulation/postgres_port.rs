//! The port to PostgreSQL over its model: how long things take, what an agent that dies in the
//! middle leaves behind.

use crate::agent::Agency;
use crate::server::Data;
use crate::world::{MS, World};
use async_trait::async_trait;
use futures::channel::{mpsc, oneshot};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hathi::ha::ports::{
    ControlData, ControlState, CopyBy, DataDir, FollowChange, LocalEnd, Observation, PgError,
    Postgres, Server, ServerDetails, Slot, SlotPlan, SourceHistory, Standby, Start, Started, Stop,
    StopStep, TimelineEnd, Upstream,
};
use hathi_dcs::{Deadline, Lsn, Millis, Role, State, Timeline};
use std::collections::BTreeMap;

/// What an agent's death does to the work it waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A child process: dies with it.
    Child,
    /// The postmaster's own: goes on.
    Server,
}

fn failed(what: &'static str, why: &str) -> PgError {
    PgError::Failed { what, why: why.to_owned() }
}

impl Agency {
    /// Waits for work that takes so long and then has its effect.
    async fn work<T: Send + 'static>(
        &self,
        kind: Kind,
        takes_us: u64,
        by: Option<Deadline>,
        what: &'static str,
        effect: impl FnOnce(&mut World) -> Result<T, PgError> + Send + 'static,
    ) -> Result<T, PgError> {
        let (done, waits) = oneshot::channel();
        let (cancel, cancelled) = oneshot::channel::<()>();
        let asked = {
            let mut world = self.world();
            let now = world.local(self.process.node);
            let Some(agent) = world.agent_mut(self.process) else { return Err(PgError::Cancelled) };
            if agent.cancelled {
                return Err(PgError::Cancelled);
            }
            agent.cancels.retain(|cancel| !cancel.is_canceled());
            agent.cancels.push(cancel);
            world.after(takes_us, move |world| {
                if kind == Kind::Server || !done.is_canceled() {
                    let result = effect(world);
                    let _ = done.send(result);
                }
            });
            now
        };
        let by = by.unwrap_or(Deadline(Millis(u64::MAX)));
        futures::select_biased! {
            result = waits.fuse() => result.unwrap_or(Err(PgError::Cancelled)),
            _ = cancelled.fuse() => Err(PgError::Cancelled),
            () = self.sleep(by.0).fuse() => {
                let waited_ms = self.local_now().since(asked);
                Err(PgError::TimedOut { what, waited_ms })
            }
        }
    }

    /// A question to the server that it answers unless it is frozen or dead.
    async fn query<T: Send + 'static>(
        &self,
        by: Deadline,
        what: &'static str,
        answer: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, PgError> {
        let node = self.process.node;
        let takes = self.world().random.between(1, 6) * MS;
        let (done, waits) = oneshot::channel();
        {
            let mut world = self.world();
            world.after(takes, move |world| {
                let server = &world.nodes[node].server;
                // One that shuts down has sent every client away, the agent too.
                if server.ready() && server.clients && !server.frozen {
                    let answer = answer(world);
                    let _ = done.send(Ok(answer));
                } else if !server.frozen {
                    let _ = done.send(Err(failed(what, "no server")));
                } else {
                    // It never comes back: the connection hangs.
                    let epoch = server.epoch;
                    world.when_thawed(node, epoch, move |_| drop(done));
                }
            });
        }
        let late = PgError::TimedOut { what, waited_ms: 0 };
        futures::select_biased! {
            result = waits.fuse() => result.unwrap_or(Err(late)),
            () = self.sleep(by.0).fuse() => Err(late),
        }
    }

    /// What it knows without asking.
    pub fn look_now(&self) -> Observation {
        self.look(false)
    }

    fn look(&self, silent: bool) -> Observation {
        let mut world = self.world();
        let node = self.process.node;
        let timeline = Timeline(world.timeline(node));
        let names: Vec<String> = world.nodes.iter().map(|node| node.name.slot_name()).collect();
        let server = &world.nodes[node].server;
        let alive = server.alive();
        let data_dir = if server.data.is_some() { DataDir::Present } else { DataDir::Empty };
        let (seen, slots) = match &server.data {
            _ if !alive => (Server::Down, Vec::new()),
            _ if silent => (Server::Silent("the query timed out".into()), Vec::new()),
            _ if !server.ready() => (Server::Starting, Vec::new()),
            None => (Server::Silent("no data".into()), Vec::new()),
            Some(data) => {
                let lsn = Lsn(data.tip.lsn);
                let seen = if server.recovering {
                    Server::Standby(Standby {
                        timeline,
                        received: server.received.then_some(lsn),
                        replayed: Some(lsn),
                        streaming: server.streaming,
                        from_archive: false,
                        replay_paused: false,
                    })
                } else {
                    Server::Primary { timeline, lsn }
                };
                let slots = data.slots.iter().map(|name| {
                    let reader = names.iter().position(|slot| slot == name).filter(|reader| {
                        let reader = &world.nodes[*reader].server;
                        reader.streaming
                            && reader.data.as_ref().is_some_and(|data| data.conninfo == Some(node))
                    });
                    let restart_lsn = reader
                        .and_then(|reader| world.tip(reader))
                        .map_or(Lsn(data.checkpoint), |tip| Lsn(tip.lsn));
                    Slot {
                        name: name.clone(),
                        active: reader.is_some(),
                        restart_lsn: Some(restart_lsn),
                        ..Slot::default()
                    }
                });
                (seen, slots.collect())
            }
        };
        // Which life of the server it is; nothing else of it is read.
        let details = server.ready().then(|| ServerDetails {
            postmaster_start_time: server.epoch.to_string(),
            ..ServerDetails::default()
        });
        let replication = if matches!(seen, Server::Primary { .. }) {
            world.replication(node)
        } else {
            Default::default()
        };
        let server = &world.nodes[node].server;
        let system_id = server.data.as_ref().map(|data| data.system_id.clone());
        let machine = &world.nodes[node];
        let fast_stop_ms = (machine.slow > 1).then(|| machine.slow * 100);
        let hangs = machine.disk_hangs_since.map_or(0, |since| (world.now_us - since) / MS);
        let disk_stalls_ms = if world.base.disk_timeout_ms > 0 { hangs } else { 0 };
        let now = world.local(node);
        let can_rewind = world.watched.can_rewind;
        let answers = matches!(seen, Server::Primary { .. } | Server::Standby(_));
        let joins = answers && std::mem::take(&mut world.nodes[node].server.joins);
        let mut seen_role = None;
        if let Some(agent) = world.agent_mut(self.process) {
            // A server that became ready after the wait for it was over.
            if answers && (agent.state == State::Starting || joins) {
                agent.state = State::Running;
                agent.state_since = now;
            }
            if joins {
                let primary = matches!(seen, Server::Primary { .. });
                agent.role = if primary { Role::Primary } else { Role::Replica };
            }
            seen_role = Some((agent.state, agent.state_since, agent.role));
        }
        let (state, state_since, role) =
            seen_role.unwrap_or((State::Stopped, now, Role::Uninitialized));
        let is_primary = match &seen {
            Server::Primary { .. } => true,
            Server::Standby(_) => false,
            // As the real one: what it was told to be, until it answers. (HA-057)
            Server::Starting | Server::Silent(_) => {
                matches!(role, Role::Primary | Role::Promoted)
            }
            Server::Down => false,
        };
        Observation {
            data_dir,
            alive,
            state,
            state_since,
            role,
            server: seen,
            system_id,
            slots,
            pending_restart: BTreeMap::new(),
            details,
            can_rewind,
            is_primary,
            replication,
            fast_stop_ms,
            disk_stalls_ms,
        }
    }

    fn upstream_node(&self, upstream: Option<&Upstream>) -> Option<usize> {
        upstream.and_then(|upstream| self.world().node_of(&upstream.name))
    }

    fn state(&self, state: State) {
        self.set_state(state);
    }
}

/// Is there a server at the other end that answers this node?
fn answers(world: &World, node: usize, source: Option<usize>) -> Result<usize, PgError> {
    let source = source.ok_or_else(|| failed("connect", "no such host"))?;
    let server = &world.nodes[source].server;
    if server.ready() && server.clients && !server.frozen && world.connected(node, source) {
        Ok(source)
    } else {
        Err(failed("connect", "the source does not answer"))
    }
}

#[async_trait]
impl Postgres for Agency {
    async fn observe(&self, by: Deadline) -> Observation {
        let node = self.process.node;
        let (alive, frozen) = {
            let mut world = self.world();
            let now = world.now_us;
            if let Some(agent) = world.agent_mut(self.process) {
                agent.looks.postgres = now;
                agent.saw_primary = None;
            }
            (world.nodes[node].server.alive(), world.nodes[node].server.frozen)
        };
        if !alive {
            return self.look(false);
        }
        let asked = self.query(by, "query", |_| ()).await;
        let sent_away = {
            let world = self.world();
            let server = &world.nodes[node].server;
            server.ready() && !server.clients
        };
        self.look(asked.is_err() && (frozen || sent_away))
    }

    async fn control(&self, _by: Deadline) -> Option<ControlData> {
        let world = self.world();
        let data = world.nodes[self.process.node].server.data.as_ref()?;
        let min = data.min_recovery;
        Some(ControlData {
            state: data.control,
            system_id: Some(data.system_id.clone()),
            checkpoint: Lsn(data.checkpoint),
            checkpoint_timeline: Timeline(data.checkpoint_timeline),
            min_recovery_end: Lsn(min.map_or(0, |tip| tip.lsn)),
            min_recovery_timeline: Timeline(min.map_or(0, |tip| world.wal.timeline(tip))),
            has_standby_signal: data.standby_signal,
            has_backup_label: data.backup_label,
        })
    }

    fn set_role(&self, role: Role) {
        let mut world = self.world();
        if let Some(agent) = world.agent_mut(self.process) {
            agent.role = role;
        }
    }

    fn set_state(&self, state: State) {
        let mut world = self.world();
        let now = world.local(self.process.node);
        if let Some(agent) = world.agent_mut(self.process)
            && agent.state != state
        {
            agent.state = state;
            agent.state_since = now;
        }
    }

    fn tell_role_change(&self) {}

    async fn archives(&self, _by: Deadline) -> bool {
        false
    }

    async fn archive_shutdown_checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        self.work(Kind::Child, 200 * MS, Some(by), "archive_command", |_| Ok(())).await
    }

    async fn follow_change(&self, upstream: Option<&Upstream>, _by: Deadline) -> FollowChange {
        let wanted = self.upstream_node(upstream);
        let world = self.world();
        let server = &world.nodes[self.process.node].server;
        let Some(data) = &server.data else { return FollowChange::Nothing };
        if server.alive() && !server.recovering {
            FollowChange::Restart
        } else if data.conninfo == wanted {
            FollowChange::Nothing
        } else {
            FollowChange::Reload
        }
    }

    async fn follow_by_reload(
        &self,
        upstream: Option<&Upstream>,
        by: Deadline,
    ) -> Result<(), PgError> {
        let wanted = self.upstream_node(upstream);
        let node = self.process.node;
        self.query(by, "reload", move |world| {
            if let Some(data) = &mut world.server(node).data {
                data.conninfo = wanted;
            }
            world.say(node, 28, |world| {
                let name = wanted.map_or("nobody", |upstream| world.nodes[upstream].name.as_str());
                format!("postgres follows {name}")
            });
        })
        .await
    }

    async fn set_sync_names(&self, names: Option<&str>, by: Deadline) -> Result<(), PgError> {
        self.change_names(names, by).await
    }

    async fn set_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError> {
        let node = self.process.node;
        let plan = plan.clone();
        self.query(by, "slots", move |world| {
            if let Some(data) = &mut world.server(node).data {
                data.slots.extend(plan.physical.into_keys());
                data.slots.retain(|slot| !plan.unwanted.contains(slot));
            }
        })
        .await
    }

    async fn copy_logical_slots(&self, _: &Upstream, _: &[String]) -> Result<(), PgError> {
        Err(failed("logical slots", "the model has none"))
    }

    async fn checkpoint(&self, by: Deadline) -> Result<(), PgError> {
        let node = self.process.node;
        let takes = self.world().takes(node, 50, 1_500);
        let epoch = self.world().nodes[node].server.epoch;
        let waits = self.work(Kind::Server, takes, Some(by), "checkpoint", move |world| {
            let server = &world.nodes[node].server;
            if server.epoch != epoch || !server.ready() || server.frozen || server.stopping {
                return Err(failed("checkpoint", "the connection was lost"));
            }
            if !server.recovering {
                world.write_checkpoint(node);
            }
            Ok(())
        });
        waits.await
    }

    async fn local_history(&self, timeline: Timeline, _by: Deadline) -> Option<Vec<TimelineEnd>> {
        let world = self.world();
        let tip = world.tip(self.process.node)?;
        let wall = |branch: usize| format!("2026-01-01T00:00:{:02}+00:00", branch % 60);
        (world.wal.timeline(tip) == timeline.0).then(|| world.wal.ends(tip, &wall))
    }

    async fn local_end(&self, by: Deadline) -> Option<LocalEnd> {
        let node = self.process.node;
        let alive = self.world().nodes[node].server.alive();
        if alive {
            let end = self.query(by, "position", move |world| {
                let tip = world.tip(node)?;
                let recovering = world.nodes[node].server.recovering;
                recovering.then(|| LocalEnd {
                    timeline: Timeline(world.wal.timeline(tip)),
                    lsn: Lsn(tip.lsn),
                    was_primary: false,
                    checkpoint_end: None,
                })
            });
            return end.await.ok().flatten();
        }
        let control = self.control(by).await?;
        let end = self.world().nodes[node].server.data.as_ref()?.checkpoint_end;
        let from_checkpoint = LocalEnd {
            timeline: control.checkpoint_timeline,
            lsn: control.checkpoint,
            was_primary: true,
            checkpoint_end: Some(Lsn(end)),
        };
        match control.state {
            ControlState::ShutDown => Some(from_checkpoint),
            ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
                if control.min_recovery_end == Lsn(0) {
                    return Some(from_checkpoint);
                }
                Some(LocalEnd {
                    timeline: control.min_recovery_timeline,
                    lsn: control.min_recovery_end,
                    was_primary: false,
                    checkpoint_end: None,
                })
            }
            ControlState::StartingUp
            | ControlState::ShuttingDown
            | ControlState::InCrashRecovery
            | ControlState::InProduction
            | ControlState::Unknown => None,
        }
    }

    async fn source_history(
        &self,
        source: &Upstream,
        by: Deadline,
    ) -> Result<SourceHistory, PgError> {
        let node = self.process.node;
        let source = self.upstream_node(Some(source));
        let takes = self.world().random.between(2, 20) * MS;
        let asked = self.work(Kind::Child, takes, Some(by), "source", move |world| {
            let source = answers(world, node, source)?;
            let tip = world.tip(source).ok_or_else(|| failed("source", "no data"))?;
            Ok(SourceHistory {
                in_recovery: world.nodes[source].server.recovering,
                timeline: Timeline(world.wal.timeline(tip)),
                ends: world.wal.ends(tip, &|_| "2026-01-01T00:00:00+00:00".into()),
                checkpoint_timeline: Some(Timeline(world.nodes[source].server.checkpointed)),
                oldest: None,
            })
        });
        asked.await
    }

    fn cancel(&self) {
        let mut world = self.world();
        if let Some(agent) = world.agent_mut(self.process) {
            agent.cancelled = true;
            let cancels = std::mem::take(&mut agent.cancels);
            drop(world);
            for cancel in cancels {
                let _ = cancel.send(());
            }
        }
    }

    fn clear_cancel(&self) {
        if let Some(agent) = self.world().agent_mut(self.process) {
            agent.cancelled = false;
        }
    }

    async fn bootstrap(&self) -> Result<(), PgError> {
        let node = self.process.node;
        let takes = {
            let mut world = self.world();
            world.check_bootstrap(node);
            world.takes(node, 1_000, 3_000)
        };
        self.state(State::Initdb);
        let made = self.work(Kind::Child, takes, None, "initdb", move |world| {
            if world.fails(node) {
                return Err(failed("initdb", "no space left on device"));
            }
            let data = world.fresh_data();
            world.server(node).data = Some(data);
            Ok(())
        });
        if let Err(error) = made.await {
            self.state(State::InitdbFailed);
            return Err(error);
        }
        let by = self.local_now().plus(60_000);
        match self.start_now(true, None, Deadline(by)).await? {
            Started::Ready => Ok(()),
            Started::StillStarting => Err(failed("start", "took too long")),
        }
    }

    async fn post_bootstrap(&self) -> Result<(), PgError> {
        self.work(Kind::Child, 100 * MS, None, "post bootstrap", |_| Ok(())).await
    }

    async fn set_data_dir_aside(&self) -> Result<(), PgError> {
        let node = self.process.node;
        let mut world = self.world();
        world.check_removal(node, "set aside");
        world.server(node).data = None;
        Ok(())
    }

    async fn clone_from(&self, source: &Upstream, _by: CopyBy) -> Result<(), PgError> {
        let node = self.process.node;
        let source = self.upstream_node(Some(source));
        let takes = {
            let mut world = self.world();
            world.check_effect(node, "clone");
            world.check_removal(node, "clone");
            world.takes(node, 1_000, 8_000)
        };
        self.state(State::CreatingReplica);
        let begun = self.work(Kind::Child, 20 * MS, None, "pg_basebackup", move |world| {
            answers(world, node, source)?;
            world.server(node).data = None;
            Ok(())
        });
        begun.await?;
        let copied = self.work(Kind::Child, takes, None, "pg_basebackup", move |world| {
            let source = answers(world, node, source)?;
            if world.fails(node) {
                return Err(failed("pg_basebackup", "no space left on device"));
            }
            let from = world.nodes[source].server.data.clone();
            let from = from.ok_or_else(|| failed("pg_basebackup", "no data"))?;
            let name = world.nodes[source].name.clone();
            world.say(node, 29, |_| format!("cloned from {name}"));
            world.server(node).data = Some(Data {
                control: ControlState::InArchiveRecovery,
                min_recovery: Some(from.tip),
                standby_signal: true,
                backup_label: true,
                conninfo: None,
                ..from
            });
            Ok(())
        });
        copied.await
    }

    async fn start(&self, how: Start, by: Deadline) -> Result<Started, PgError> {
        let (primary, upstream) = match &how {
            Start::AsPrimary => (true, None),
            Start::AsStandby(upstream) => (false, self.upstream_node(upstream.as_ref())),
        };
        {
            let mut world = self.world();
            world.check_effect(self.process.node, "start");
            if primary {
                world.check_start_as_primary(self.process.node);
            }
        }
        self.start_now(primary, upstream, by).await
    }

    fn stop(&self, how: Stop) -> BoxStream<'static, StopStep> {
        let (steps, stream) = mpsc::unbounded();
        self.state(State::Stopping);
        let mut world = self.world();
        world.check_paused_stop(self.process.node);
        world.pg_stop(self.process.node, how, steps);
        drop(world);
        let agency = self.clone();
        stream
            .map(move |step| {
                if step == StopStep::Stopped {
                    agency.state(State::Stopped);
                }
                step
            })
            .boxed()
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        Ok(())
    }

    async fn promote(&self, by: Deadline) -> Result<(), PgError> {
        let node = self.process.node;
        let (takes, epoch, fails) = {
            let mut world = self.world();
            world.check_effect(node, "promote");
            world.check_promote(node);
            let server = &world.nodes[node].server;
            if !server.ready() || !server.recovering || server.stopping {
                return Err(failed("promote", "not a running standby"));
            }
            let epoch = server.epoch;
            world.server(node).promoting = true;
            world.say(node, 30, |_| "postgres is told to promote".into());
            (world.takes(node, 40, 400), epoch, world.fails(node))
        };
        self.set_role(Role::Promoted);
        let (done, waits) = oneshot::channel();
        {
            let mut world = self.world();
            world.after(takes, move |world| {
                world.when_thawed(node, epoch, move |world| {
                    let server = world.server(node);
                    if fails || server.stopping || !server.ready() {
                        server.promoting = false;
                        return;
                    }
                    world.pg_promoted(node);
                    let _ = done.send(());
                });
            });
        }
        let promoted = self.work(Kind::Child, 3_600_000 * MS, Some(by), "promote", |_| Ok(()));
        let result = futures::select_biased! {
            done = waits.fuse() => done.map_err(|_| failed("promote", "the server is gone")),
            other = promoted.fuse() => other,
        };
        match &result {
            Ok(()) => self.set_role(Role::Primary),
            Err(_) => {
                let recovering = self.world().nodes[node].server.recovering;
                self.set_role(if recovering { Role::Replica } else { Role::Primary });
            }
        }
        result
    }

    async fn recover_in_single_user_mode(&self) -> Result<(), PgError> {
        let node = self.process.node;
        let takes = {
            let mut world = self.world();
            world.check_effect(node, "single-user recovery");
            world.takes(node, 300, 2_000)
        };
        let recovered = self.work(Kind::Child, takes, None, "single user", move |world| {
            if world.fails(node) || world.nodes[node].server.alive() {
                return Err(failed("single user", "it could not recover"));
            }
            world.say(node, 31, |_| "recovered in single-user mode".into());
            world.write_checkpoint(node);
            if let Some(data) = &mut world.server(node).data {
                data.control = ControlState::ShutDown;
                data.standby_signal = false;
                data.min_recovery = None;
            }
            Ok(())
        });
        recovered.await
    }

    async fn rewind(&self, source: &Upstream) -> Result<(), PgError> {
        let node = self.process.node;
        let source = self.upstream_node(Some(source));
        let takes = {
            let mut world = self.world();
            world.check_effect(node, "rewind");
            world.check_rewind_source(source);
            world.takes(node, 500, 4_000)
        };
        let rewound = self.work(Kind::Child, takes, None, "pg_rewind", move |world| {
            let source = answers(world, node, source)?;
            if world.nodes[source].server.recovering || world.nodes[node].server.alive() {
                return Err(failed("pg_rewind", "source in recovery, or target running"));
            }
            if world.fails(node) {
                return Err(failed("pg_rewind", "could not find previous WAL record"));
            }
            let (Some(from), Some(mine)) = (world.tip(source), world.tip(node)) else {
                return Err(failed("pg_rewind", "no data"));
            };
            let name = world.nodes[source].name.clone();
            let needed = world.timeline(source) != world.timeline(node);
            world.say(node, 32, |_| format!("rewound to {name} (needed: {needed})"));
            if let Some(data) = &mut world.server(node).data {
                if needed {
                    data.tip = from;
                    data.control = ControlState::InArchiveRecovery;
                    data.min_recovery = Some(from);
                    data.backup_label = true;
                } else {
                    data.tip = mine;
                }
            }
            Ok(())
        });
        rewound.await
    }

    async fn remove_data_dir(&self) -> Result<(), PgError> {
        let node = self.process.node;
        let mut world = self.world();
        world.check_removal(node, "removed");
        if world.nodes[node].server.alive() {
            return Err(failed("remove", "a postmaster runs in it"));
        }
        world.say(node, 33, |_| "data directory removed".into());
        world.server(node).data = None;
        Ok(())
    }
}

impl Agency {
    async fn start_now(
        &self,
        primary: bool,
        upstream: Option<usize>,
        by: Deadline,
    ) -> Result<Started, PgError> {
        let node = self.process.node;
        let epoch = {
            let mut world = self.world();
            let server = &world.nodes[node].server;
            if server.alive() {
                return Ok(Started::Ready);
            }
            if server.data.is_none() {
                return Err(failed("start", "no data directory"));
            }
            if let Some(agent) = world.agent(self.process)
                && agent.cancelled
            {
                return Err(PgError::Cancelled);
            }
            world.pg_start(node, primary, upstream)
        };
        self.state(State::Starting);
        loop {
            let (ready, same) = {
                let world = self.world();
                let server = &world.nodes[node].server;
                (server.ready(), server.epoch == epoch)
            };
            if !same {
                self.state(State::StartFailed);
                return Err(failed("start", "the postmaster ended"));
            }
            if ready {
                self.state(State::Running);
                return Ok(Started::Ready);
            }
            let cancelled = self.world().agent(self.process).is_none_or(|agent| agent.cancelled);
            if cancelled {
                return Err(PgError::Cancelled);
            }
            if self.local_now() >= by.0 {
                return Ok(Started::StillStarting);
            }
            let next = self.local_now().plus(50);
            self.sleep(next.min(by.0)).await;
        }
    }
}
