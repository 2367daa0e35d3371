//! A member that behaves like Patroni 4.1.5 as docs/spec/ha-loop.md describes it: it polls, it has its
//! rules for race, lock, release and following, its own member record, and no guard. What keeps such a
//! node from writing on after its lease is its watchdog. (INV-36)
//!
//! Asynchronous replication without pause: these are agreements of their own (`tests/interop.rs` has them
//! with the real one). Failsafe mode: `patroni_failsafe.rs`.

use crate::agent::Agency;
use crate::random::Random;
use crate::world::{MS, World};
use futures::channel::{mpsc, oneshot};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hathi::ha::history;
use hathi::ha::ports::*;
use hathi::ha::run::{Event, Exit};
use hathi::ha::settings::Settings;
use hathi_dcs::{
    Change, ClusterView, Dcs, DcsError, Deadline, Expect, Failover, Freshness, Lsn, MemberData,
    MemberName, Millis, Role, State, Status,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Some clusters are on their way from Patroni or to it. Drawn from a stream of its own, so that every
/// other run stays what it was.
pub fn draw(world: &mut World, seed: u64, guarded: bool) {
    let mut random = Random::new(seed ^ 0x9A7_201);
    if !random.percent(8) || world.remote.is_some() || !guarded {
        return;
    }
    let members = world.members();
    let ours = random.below(members as u64) as usize;
    // Somebody has to create the cluster, and the model of Patroni's does not.
    let ours = if world.nodes[ours].nofailover { 0 } else { ours };
    for node in 0..members {
        // One of each kind at least; the first one, which can always lead, may be either.
        world.nodes[node].patroni = node != ours && (random.percent(50) || members == 2);
    }
    let other = (ours + 1) % members;
    world.nodes[other].patroni = true;
    world.base.failsafe_mode = false;
    world.base.synchronous = Default::default();
    if world.base.timing.ttl < 20 {
        // The floor of 20 holds where Patroni's members are. (HA-324)
        world.count("short ttl beside Patroni's members");
    }
    world.watchdogs.mode = None;
    world.count("mixed clusters");
}

impl World {
    pub fn is_patroni(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|node| node.patroni)
    }

    /// A rule of section 21 was broken by this node. Where it is Patroni's it did so by its own rules:
    /// that is counted, and what follows from it is nobody's of ours.
    pub fn violation_by(&mut self, node: usize, rule: &str, what: String) {
        if !self.is_patroni(node) {
            return self.violation(rule, what);
        }
        self.say(node, 82, |_| format!("BREAKS {rule} by the rules of Patroni: {what}"));
        if !std::mem::replace(&mut self.watched.patroni_broke, true) {
            self.count("runs in which a member of Patroni's broke a rule by its own");
        }
    }

    /// The watchdog of such a member: nobody renewed the lock, and the machine is reset. (HA-171)
    pub fn reset_patroni(&mut self, node: usize) {
        self.fault("machine of a member of Patroni's reset");
        self.kill_agent(node);
        self.pg_die(node, "the machine was reset");
        let boot = self.random.between(10_000, 40_000) * MS;
        self.lasts(boot, move |world| world.start_agent(node));
    }

    pub fn is_mixed(&self) -> bool {
        self.nodes.iter().any(|node| node.patroni)
    }
}

/// The safety margin of its watchdog, in milliseconds. (HA-171)
const MARGIN_MS: u64 = 5_000;
pub const PROBE_MS: u64 = 2_000;
const CHECKPOINT: &str = "checkpoint after promotion";

/// One life of such a member.
pub struct Member {
    pub it: Agency,
    events: mpsc::Receiver<Event>,
    /// HA-001.
    old_view: Option<Arc<ClusterView>>,
    task: Option<oneshot::Receiver<()>>,
    task_name: &'static str,
    config_seen: Option<hathi_dcs::Version>,
    single_user_done: bool,
    /// The last view named it as the owner of the lock.
    owner: bool,
    /// The last map that it read.
    pub failsafe: Option<hathi_dcs::Failsafe>,
}

/// Runs it until it is told to stop, or ends as Patroni does. (section 2 of ha-loop.md)
pub async fn run(it: Agency, events: mpsc::Receiver<Event>) -> Exit {
    let mut me = Member {
        it,
        events,
        old_view: None,
        task: None,
        task_name: "",
        config_seen: None,
        single_user_done: false,
        owner: false,
        failsafe: None,
    };
    let mut next = me.now();
    loop {
        if let Some(exit) = me.cycle().await {
            return exit;
        }
        let loop_wait = me.settings().timing.loop_wait_ms();
        next = next.plus(loop_wait).max(me.now());
        if me.nap(next).await {
            me.shut_down().await;
            return Exit::Stopped;
        }
        next = next.min(me.now());
    }
}

impl Member {
    pub fn now(&self) -> Millis {
        self.it.local_now()
    }

    pub fn settings(&self) -> Arc<Settings> {
        Configuration::settings(&self.it)
    }

    fn name(&self) -> MemberName {
        self.settings().me.clone()
    }

    pub fn by(&self) -> Deadline {
        Deadline(self.now().plus(self.settings().timing.retry_timeout_ms()))
    }

    /// The watch of the leader key wakes those that do not own it; a task that ended wakes too.
    /// (HA-022, HA-180) `true`: told to stop.
    async fn nap(&mut self, until: Millis) -> bool {
        loop {
            let mut time = self.it.sleep(until).fuse();
            let mut ended = match &mut self.task {
                Some(task) => futures::future::Either::Left(task.map(drop)),
                None => futures::future::Either::Right(futures::future::pending()),
            }
            .fuse();
            futures::select_biased! {
                event = self.events.next() => match event {
                    Some(Event::Shutdown) => return true,
                    Some(Event::Store(Change::Leader)) if !self.owner => return false,
                    Some(Event::Store(Change::Config)) => return false,
                    Some(_) => {}
                    None => return true,
                },
                () = ended => {
                    self.task = None;
                    return false;
                }
                () = time => return false,
            }
        }
    }

    fn busy(&mut self) -> bool {
        if let Some(Ok(None)) = self.task.as_mut().map(oneshot::Receiver::try_recv) {
            return true;
        }
        self.task = None;
        Postgres::clear_cancel(&self.it);
        false
    }

    fn begin<F>(&mut self, name: &'static str, work: impl FnOnce(Agency) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (done, ended) = oneshot::channel();
        let work = work(self.it.clone());
        let work = async move {
            work.await;
            let _ = done.send(());
        };
        Spawn::spawn(&self.it, name, work.boxed());
        self.task = Some(ended);
        self.task_name = name;
    }

    pub fn say(&self, line: &str) {
        let mut world = self.it.world();
        let line = line.to_owned();
        world.say(self.it.process.node, crate::world::code_of(&line), |_| {
            format!("patroni: {line}")
        });
    }

    /// The order of the steps is that of section 2.
    async fn cycle(&mut self) -> Option<Exit> {
        let view = match self.it.load(Freshness::Latest, self.by()).await {
            Ok(view) => Arc::new(view),
            Err(_) => {
                self.store_is_silent().await;
                return None;
            }
        };
        self.failsafe.clone_from(&view.failsafe);
        let view = self.with_caller(view);
        if view.leader.is_some() || self.old_view.is_none() {
            self.old_view = Some(view.clone());
        }
        let me = self.name();
        self.owner = view.leader_name() == Some(&me);
        self.configure(&view).await;
        if self.busy() {
            self.while_task_runs().await;
            return None;
        }
        let pg = self.it.observe(Deadline(self.now().plus(2_000))).await;
        let exit = self.decide(&view, &pg).await;
        if exit.is_none() {
            self.touch_member().await;
        }
        exit
    }

    async fn configure(&mut self, view: &ClusterView) {
        if let Some(config) = &view.config
            && self.config_seen != Some(config.version)
            && !config.value.is_empty()
        {
            self.config_seen = Some(config.version);
            let _ = self.it.apply(&config.value).await;
        }
    }

    /// HA-160 … HA-164.
    async fn while_task_runs(&mut self) {
        if self.owner && self.renew().await {
            return;
        }
        let node = self.it.process.node;
        match self.task_name {
            "promote" => Postgres::cancel(&self.it),
            "starting primary after failure" => {
                Postgres::cancel(&self.it);
                self.stop(StopMode::Immediate).await;
            }
            _ if self.it.world().nodes[node].server.writable() => {
                self.stop(StopMode::Immediate).await;
            }
            _ => {}
        }
    }

    async fn decide(&mut self, view: &Arc<ClusterView>, pg: &Observation) -> Option<Exit> {
        if pg.alive && pg.state == State::Starting {
            if self.owner && !self.renew().await {
                self.demote_at_once().await;
            }
            return None;
        }
        if pg.data_dir == DataDir::Empty {
            if self.owner {
                let _ = self.it.release_leader(None, self.by()).await;
            } else if let Some(leader) = view.leader_name().and_then(|name| upstream(view, name)) {
                self.say("trying to bootstrap from leader");
                self.begin("bootstrap from leader", move |it| async move {
                    if Postgres::clone_from(&it, &leader, CopyBy::ConfiguredMethods).await.is_ok() {
                        start_standby(&it, Some(leader)).await;
                    }
                });
            }
            return None;
        }
        if let (Some(mine), Some(theirs)) = (&pg.system_id, view.system_id())
            && *mine != theirs
        {
            return Some(Exit::Fatal("system ID mismatch".into())); // HA-036
        }
        if !pg.alive {
            self.not_running(view, pg).await;
            return None;
        }
        self.single_user_done = false;
        match view.leader_name() {
            None => self.race(view, pg).await,
            Some(name) if *name == self.name() => self.with_lock(view, pg).await,
            Some(name) => {
                let leader = name.clone();
                self.follow(view, pg, &leader).await;
            }
        }
        None
    }

    /// Section 13.
    async fn store_is_silent(&mut self) {
        let node = self.it.process.node;
        let primary = {
            let world = self.it.world();
            let server = &world.nodes[node].server;
            server.ready() && !server.recovering
        };
        if primary && !self.busy() && !self.everybody_accepts().await {
            self.say("demoting self because DCS is not accessible");
            self.stop(StopMode::Fast).await;
            self.it.set_role(Role::Demoted);
        }
    }

    /// Renews the key; its watchdog is kept alive by that and nothing else. (HA-066, HA-172)
    async fn renew(&mut self) -> bool {
        let sent = self.now();
        match self.it.renew_leader(self.by()).await {
            Ok(()) => {
                self.keep_alive(sent);
                true
            }
            Err(_) => false,
        }
    }

    pub fn keep_alive(&self, sent: Millis) {
        let ttl = self.settings().timing.ttl_ms();
        self.it.world().arm_fence(self.it.process.node, sent.plus(ttl - MARGIN_MS));
    }

    fn watchdog_off(&self) {
        self.it.world().nodes[self.it.process.node].fence = None;
    }

    /// Section 5.
    async fn not_running(&mut self, view: &Arc<ClusterView>, pg: &Observation) {
        let control = self.it.control(Deadline(self.now().plus(2_000))).await;
        let state = control.as_ref().map(|control| control.state);
        let dirty = matches!(
            state,
            Some(
                ControlState::InProduction
                    | ControlState::ShuttingDown
                    | ControlState::InCrashRecovery
            )
        );
        if self.owner && self.renew().await {
            if self.settings().primary_start_timeout == 0 && self.target(view, None, None).await {
                self.watchdog_off();
                self.it.set_role(Role::Demoted);
                let _ = self.it.release_leader(None, self.by()).await;
                return;
            }
            let standby = control.as_ref().is_some_and(|control| control.has_standby_signal);
            let was_primary = matches!(pg.role, Role::Primary | Role::Promoted);
            if dirty && !standby && was_primary && self.settings().primary_start_timeout > 0 {
                self.say("starting primary after failure");
                self.begin("starting primary after failure", |it| async move {
                    let by = Deadline(it.local_now().plus(60_000));
                    let _ = it.start(Start::AsPrimary, by).await;
                });
                return;
            }
        }
        self.watchdog_off();
        let leader = view.leader_name().filter(|name| **name != self.name()).cloned();
        let source = leader.as_ref().and_then(|leader| upstream(view, leader));
        if dirty && !self.single_user_done && (view.leader.is_none() || pg.can_rewind) {
            self.single_user_done = true;
            self.begin("doing crash recovery in a single user mode", |it| async move {
                let _ = it.recover_in_single_user_mode().await;
            });
            return;
        }
        if let (Some(leader), Some(source)) = (&leader, &source)
            && self.must_rewind(view, leader)
        {
            self.rewind(source.clone(), pg);
            return;
        }
        self.say("starting as a secondary");
        self.begin("restarting after failure", move |it| async move {
            start_standby(&it, source).await;
        });
    }

    /// The truth stands in for the comparison of timelines: it is about the rules around it.
    fn must_rewind(&self, view: &ClusterView, leader: &MemberName) -> bool {
        let world = self.it.world();
        let ready = view
            .member(leader)
            .is_some_and(|member| member.data.checkpoint_after_promote != Some(false));
        let Some(source) = world.node_of(leader) else { return false };
        let server = &world.nodes[source].server;
        let leads =
            server.ready() && !server.recovering && server.checkpointed == world.timeline(source);
        let (Some(mine), Some(theirs)) = (world.tip(self.it.process.node), world.tip(source))
        else {
            return false;
        };
        ready && leads && !world.wal.holds(theirs, mine)
    }

    fn rewind(&mut self, source: Upstream, pg: &Observation) {
        self.say("running pg_rewind");
        let (can_rewind, alive) = (pg.can_rewind, pg.alive);
        self.begin("running pg_rewind", move |it| async move {
            if alive {
                stop_and_wait(&it, StopMode::Fast, false).await;
            }
            let same_number = {
                let world = it.world();
                let there = world.node_of(&source.name).map(|node| world.timeline(node));
                there == Some(world.timeline(it.process.node))
            };
            let rewound = can_rewind && !same_number && it.rewind(&source).await.is_ok();
            if !rewound {
                // remove_data_directory_on_diverged_timelines
                if Postgres::clone_from(&it, &source, CopyBy::ConfiguredMethods).await.is_err() {
                    return;
                }
            }
            start_standby(&it, Some(source)).await;
        });
    }

    /// Section 8.
    async fn race(&mut self, view: &Arc<ClusterView>, pg: &Observation) {
        if !self.is_healthiest(view, pg).await {
            if pg.is_primary {
                self.demote_at_once().await;
            } else {
                // HA-096: the stream of a primary that may still live is cut.
                let by = Deadline(self.now().plus(2_000));
                let _ = self.it.follow_by_reload(None, by).await;
            }
            return;
        }
        let sent = self.now();
        match self.it.acquire_leader(self.by()).await {
            Ok(()) => {
                self.say("acquired session lock as a leader");
                self.owner = true;
                self.keep_alive(sent);
                if view.pending_failover().is_some() {
                    let by = self.by();
                    let _ =
                        self.it.write_failover(&Failover::default(), Expect::Anything, by).await;
                }
                self.enforce_primary(view, pg).await;
            }
            Err(DcsError::NotOwner { .. }) => {}
            Err(_) => self.store_is_silent().await,
        }
    }

    /// Sections 8.2, 8.3 and 11.3.
    async fn is_healthiest(&mut self, view: &Arc<ClusterView>, pg: &Observation) -> bool {
        let settings = self.settings();
        let me = self.name();
        let cluster = view.history.cluster_timeline();
        let standby = match &pg.server {
            Server::Primary { timeline, .. } => return *timeline >= cluster, // HA-087
            Server::Standby(standby) => standby.clone(),
            Server::Down | Server::Starting | Server::Silent(_) => return false,
        };
        if settings.nofailover || self.is_outside_the_map(view) {
            return false; // HA-089, HA-092
        }
        let request = view.pending_failover().map(|stored| stored.value.clone());
        let request = request.filter(|request| request.scheduled_at.is_none());
        let mut left_out = None;
        if let Some(request) = &request {
            if let Some(candidate) = &request.candidate {
                if *candidate == me {
                    return true;
                }
                if self.is_fit(view, candidate).await {
                    return false;
                }
            }
            if request.leader.as_ref() == Some(&me) {
                return !self.target(view, None, request.candidate.as_ref()).await;
            }
            left_out.clone_from(&request.leader);
        }
        let mine = standby.lsn();
        let behind = view.status.optime.0.saturating_sub(mine.0);
        if request.is_none() && behind > settings.maximum_lag_on_failover {
            return false;
        }
        if settings.check_timeline && standby.timeline < cluster {
            return false;
        }
        let former = self.old_view.as_ref().and_then(|view| view.leader_name().cloned());
        let mut members = BTreeMap::new();
        for view in self.old_view.iter().chain([view]) {
            for member in &view.members {
                if member.name != me
                    && !member.data.nofailover()
                    && Some(&member.name) != left_out.as_ref()
                    && let Some(url) = &member.data.api_url
                {
                    members.insert(member.name.clone(), url.clone());
                }
            }
        }
        if let Some(map) = view.failsafe.as_ref().filter(|_| settings.failsafe_mode) {
            for (name, url) in map.0.iter().filter(|(name, _)| **name != *me.as_str()) {
                members.entry(MemberName::from(name.as_str())).or_insert_with(|| url.clone());
            }
        }
        let by = Deadline(self.now().plus(PROBE_MS));
        let mut answers = self.it.probe(members.into_iter().collect(), by);
        while let Some((peer, probe)) = answers.next().await {
            let Probe::Answered(answer) = probe else { continue };
            if answer.nofailover || answer.watchdog_failed {
                continue;
            }
            if !answer.in_recovery || answer.lsn > mine {
                return false;
            }
            let better = answer.failover_priority > settings.failover_priority;
            if answer.lsn == mine && better && former.as_ref() != Some(&peer) {
                return false;
            }
        }
        true
    }

    /// HA-076: is there anybody besides me and `without`, or is it `only` this one, that can take over? Who
    /// lags, or is on an older timeline than `/history`, cannot.
    async fn target(
        &self,
        view: &ClusterView,
        only: Option<&MemberName>,
        without: Option<&MemberName>,
    ) -> bool {
        let settings = self.settings();
        let cluster = view.history.cluster_timeline();
        let (at, most) = (view.status.optime, settings.maximum_lag_on_failover);
        let members = view.members.iter().filter(|member| {
            !member.data.nofailover()
                && Some(&member.name) != without
                && only.is_none_or(|name| *name == member.name)
        });
        let mut answers = self.ask(members);
        while let Some((_, probe)) = answers.next().await {
            let Probe::Answered(answer) = probe else { continue };
            // Of a primary it reads no position.
            let lsn = if answer.in_recovery { answer.lsn } else { Lsn(0) };
            let old = settings.check_timeline && answer.timeline < cluster;
            let lags = at.0.saturating_sub(lsn.0) > most;
            if !answer.nofailover && !answer.watchdog_failed && !old && !lags {
                return true;
            }
        }
        false
    }

    /// HA-075 row 4: neither its position nor its timeline is looked at.
    async fn is_fit(&self, view: &ClusterView, candidate: &MemberName) -> bool {
        let mut answers = self.ask(view.member(candidate).into_iter());
        let fit = |probe: &Probe| matches!(probe, Probe::Answered(answer) if !answer.nofailover && !answer.watchdog_failed);
        answers.next().await.is_some_and(|(_, probe)| fit(&probe))
    }

    fn ask<'a>(
        &self,
        members: impl Iterator<Item = &'a hathi_dcs::Member>,
    ) -> BoxStream<'static, (MemberName, Probe)> {
        let me = self.name();
        let members = members.filter(|member| member.name != me);
        let members = members
            .filter_map(|member| Some((member.name.clone(), member.data.api_url.clone()?)))
            .collect();
        self.it.probe(members, Deadline(self.now().plus(PROBE_MS)))
    }

    /// Section 7.
    async fn with_lock(&mut self, view: &Arc<ClusterView>, pg: &Observation) {
        let sent = self.now();
        match self.it.renew_leader(self.by()).await {
            Ok(()) => self.keep_alive(sent),
            Err(DcsError::NotOwner { .. }) => {
                if pg.is_primary {
                    self.demote_at_once().await; // HA-063
                }
                return;
            }
            Err(_) => {
                if pg.is_primary {
                    self.store_is_silent().await;
                }
                return;
            }
        }
        if let Server::Primary { lsn, .. } = pg.server {
            let status = Status { optime: lsn, ..view.status.clone() };
            let _ = self.it.write_status(&status, self.by()).await;
        }
        self.write_map(view).await;
        if let Some(request) = view.pending_failover().map(|stored| stored.value.clone())
            && self.manual_failover(view, pg, &request).await
        {
            return;
        }
        self.enforce_primary(view, pg).await;
    }

    /// HA-070. `true`: it is demoting.
    async fn manual_failover(
        &mut self,
        view: &Arc<ClusterView>,
        pg: &Observation,
        request: &Failover,
    ) -> bool {
        let me = self.name();
        if let Some(at) = request.scheduled_at {
            let ahead = at.timestamp_millis() - self.it.wall().timestamp_millis();
            let loop_wait = self.settings().timing.loop_wait_ms() as i64;
            if ahead > 0 {
                return false;
            }
            if ahead < -(loop_wait * 3 / 2 / 1000 * 1000) {
                self.clean(view).await;
                return false;
            }
        }
        let for_another = request.leader.as_ref().is_some_and(|leader| *leader != me);
        let to_me = request.candidate.as_ref() == Some(&me);
        if for_another || to_me || !self.target(view, request.candidate.as_ref(), None).await {
            self.clean(view).await;
            return false;
        }
        if !pg.is_primary {
            return false;
        }
        self.say("manual failover: demoting myself");
        let view = view.clone();
        let candidate = request.candidate.clone();
        self.begin("switchover: demote", move |it| async move {
            hand_over(&it, &view, candidate.as_ref(), true).await;
            it.sleep(it.local_now().plus(2_000)).await;
            let by = Deadline(it.local_now().plus(5_000));
            let fresh = it.load(Freshness::Latest, by).await.ok();
            let me = Configuration::settings(&it).me.clone();
            let leader = fresh
                .as_ref()
                .and_then(|view| upstream(view, view.leader_name().filter(|name| **name != me)?));
            // Whoever has to be rewound first is started by a later cycle.
            let diverged = leader.as_ref().is_none_or(|leader| {
                let world = it.world();
                let tips = world.node_of(&leader.name).and_then(|node| world.tip(node));
                match (tips, world.tip(it.process.node)) {
                    (Some(theirs), Some(mine)) => !world.wal.holds(theirs, mine),
                    (_, _) => true,
                }
            });
            if !diverged {
                start_standby(&it, leader).await;
            }
        });
        true
    }

    async fn clean(&mut self, view: &ClusterView) {
        if let Some(request) = &view.failover {
            let expect = Expect::Version(request.version);
            let by = self.by();
            let _ = self.it.write_failover(&Failover::default(), expect, by).await;
        }
    }

    /// HA-100.
    async fn enforce_primary(&mut self, view: &Arc<ClusterView>, pg: &Observation) {
        match &pg.server {
            Server::Primary { timeline, .. } => {
                self.it.set_role(Role::Primary);
                let timeline = *timeline;
                let node = self.it.process.node;
                let (done, runs) = {
                    let world = self.it.world();
                    let agent = world.agent(self.it.process);
                    let runs = agent.is_some_and(|agent| agent.tasks.contains(&CHECKPOINT));
                    (world.nodes[node].server.checkpointed == timeline.0, runs)
                };
                if !done && !runs {
                    let it = self.it.clone();
                    Spawn::spawn(
                        &self.it,
                        CHECKPOINT,
                        async move {
                            let by = Deadline(it.local_now().plus(60_000));
                            let _ = it.checkpoint(by).await;
                        }
                        .boxed(),
                    );
                }
                if history::is_stale(&view.history, timeline) {
                    let by = Deadline(self.now().plus(1_000));
                    let local = self.it.local_history(timeline, by).await.unwrap_or_default();
                    let new = history::merged(&view.history, &local, &self.name(), 0);
                    let _ = self.it.write_history(&new, self.by()).await;
                }
            }
            Server::Standby(_) => {
                self.say("promoted self to leader by acquiring session lock");
                self.begin("promote", |it| async move {
                    let by = Deadline(it.local_now().plus(10_000));
                    let _ = it.promote(by).await;
                });
            }
            Server::Down | Server::Starting | Server::Silent(_) => {}
        }
    }

    /// HA-065, HA-125.
    async fn follow(&mut self, view: &Arc<ClusterView>, pg: &Observation, leader: &MemberName) {
        self.watchdog_off_if_standby(pg);
        if pg.is_primary {
            return self.demote_at_once().await;
        }
        self.it.set_role(Role::Replica);
        let Some(upstream) = upstream(view, leader) else { return };
        let Server::Standby(standby) = &pg.server else { return };
        if !standby.streaming && self.must_rewind(view, leader) {
            self.rewind(upstream, pg);
            return;
        }
        let by = Deadline(self.now().plus(2_000));
        match self.it.follow_change(Some(&upstream), by).await {
            FollowChange::Nothing => {}
            FollowChange::Reload | FollowChange::Restart => {
                let _ = self.it.follow_by_reload(Some(&upstream), by).await;
            }
        }
    }

    fn watchdog_off_if_standby(&self, pg: &Observation) {
        if let Server::Standby(_) | Server::Down = pg.server {
            self.watchdog_off();
        }
    }

    /// The mode immediate-nolock of section 10: the loop waits for the stop, and starts it again.
    async fn demote_at_once(&mut self) {
        self.say("demoting self: the lock is not mine");
        self.stop(StopMode::Immediate).await;
        self.it.set_role(Role::Demoted);
    }

    async fn stop(&mut self, mode: StopMode) {
        stop_and_wait(&self.it, mode, false).await;
        self.watchdog_off();
    }

    /// HA-121.
    async fn touch_member(&mut self) {
        let settings = self.settings();
        let pg = self.it.look_now();
        let mut data = MemberData {
            conn_url: Some(settings.conn_url.clone()),
            api_url: Some(settings.api_url.clone()),
            state: Some(pg.state),
            role: Some(pg.role),
            version: Some("4.1.5".to_owned()),
            tags: settings.tags.clone(),
            ..MemberData::default()
        };
        match &pg.server {
            Server::Primary { timeline, lsn } => {
                let node = self.it.process.node;
                let done = self.it.world().nodes[node].server.checkpointed == timeline.0;
                data.xlog_location = Some(*lsn);
                data.timeline = Some(*timeline);
                data.checkpoint_after_promote = (!done).then_some(false);
            }
            Server::Standby(standby) => {
                data.xlog_location = Some(standby.lsn());
                data.timeline = Some(standby.timeline);
                data.replication_state = standby.streaming.then(|| "streaming".to_owned());
            }
            Server::Down | Server::Starting | Server::Silent(_) => {}
        }
        let _ = self.it.write_member(&data, self.by()).await;
    }

    /// HA-140.
    async fn shut_down(&mut self) {
        if self.busy() {
            Postgres::cancel(&self.it);
        }
        let view = self.old_view.clone().unwrap_or_default();
        if self.owner {
            hand_over(&self.it, &view, None, false).await;
        } else {
            stop_and_wait(&self.it, StopMode::Fast, false).await;
        }
        self.watchdog_off();
        self.touch_member().await;
    }
}

/// Where a member's PostgreSQL is, if it said so.
fn upstream(view: &ClusterView, name: &MemberName) -> Option<Upstream> {
    let conn_url = view.member(name)?.data.conn_url.clone()?;
    Some(Upstream { name: name.clone(), conn_url, remote: false })
}

async fn start_standby(it: &Agency, leader: Option<Upstream>) {
    it.set_role(Role::Replica);
    let by = Deadline(it.local_now().plus(60_000));
    let _ = it.start(Start::AsStandby(leader), by).await;
}

async fn stop_and_wait(it: &Agency, mode: StopMode, checkpoint: bool) {
    let mut steps = Postgres::stop(it, Stop { mode, checkpoint, immediate_at: None });
    while let Some(step) = steps.next().await {
        unwatch(it, &step);
    }
}

/// No client is left: its watchdog is off. (HA-104)
fn unwatch(it: &Agency, step: &StopStep) {
    if let StopStep::SafePoint | StopStep::Stopped = step {
        it.world().nodes[it.process.node].fence = None;
    }
}

/// HA-105: the key is given up when a candidate has the shutdown checkpoint, or when the server is down.
async fn hand_over(it: &Agency, view: &ClusterView, only: Option<&MemberName>, checkpoint: bool) {
    let mut steps =
        Postgres::stop(it, Stop { mode: StopMode::Fast, checkpoint, immediate_at: None });
    let mut released = false;
    let mut last = Lsn(0);
    while let Some(step) = steps.next().await {
        unwatch(it, &step);
        let StopStep::ShutDown { checkpoint, previous } = step else { continue };
        last = previous;
        it.sleep(it.local_now().plus(1_000)).await;
        let me = Configuration::settings(it).me.clone();
        let members = view.members.iter().filter(|member| {
            member.name != me
                && !member.data.nofailover()
                && only.is_none_or(|name| *name == member.name)
        });
        let members: Vec<_> = members
            .filter_map(|member| Some((member.name.clone(), member.data.api_url.clone()?)))
            .collect();
        let by = Deadline(it.local_now().plus(PROBE_MS));
        let mut answers = it.probe(members, by);
        let mut found = false;
        while let Some((_, probe)) = answers.next().await {
            found |= matches!(probe, Probe::Answered(answer) if answer.lsn >= checkpoint && !answer.nofailover);
        }
        if found {
            it.set_role(Role::Demoted);
            released = release(it, view, Some(previous)).await;
        }
    }
    it.set_role(Role::Demoted);
    if !released {
        release(it, view, (last > Lsn(0)).then_some(last)).await;
    }
}

async fn release(it: &Agency, view: &ClusterView, optime: Option<Lsn>) -> bool {
    let status = optime.map(|optime| Status { optime, ..view.status.clone() });
    let retry = Configuration::settings(it).timing.retry_timeout_ms();
    let by = Deadline(it.local_now().plus(retry));
    it.release_leader(status.as_ref(), by).await.is_ok()
}
