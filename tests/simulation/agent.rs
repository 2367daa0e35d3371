//! One life of an agent: the core's real code over the ports of this world, and the small ports
//! (clock, spawn, configuration, peers, fence, publish).

use crate::executor::Sleep;
use crate::stalls::{Part, Stalling};
use crate::world::{Agent, MS, Process, Shared, World, code_of};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hathi::ha::lease::{self, Lease};
use hathi::ha::ports::{
    Clock, Configuration, Fence, PeerAnswer, Peers, Ports, Probe, Promises, Publish, Seen, Spawn,
};
use hathi::ha::promise::{Call, Gate, Promise, Vow};
use hathi::ha::run::{self, Event, Events};
use hathi::ha::settings::{Settings, Synchronous};
use hathi::watchdog::Watchdog;
use hathi_dcs::{Deadline, Lsn, MemberName, Millis, Role, State, Timeline, Timing};
use serde_json::{Map, Value};
use std::sync::{Arc, MutexGuard};

/// Every port of one agent.
#[derive(Clone)]
pub struct Agency {
    pub shared: Shared,
    pub process: Process,
}

pub fn base_settings() -> Settings {
    Settings {
        me: MemberName::from(""),
        timing: Timing::default(),
        maximum_lag_on_failover: 1_048_576,
        primary_start_timeout: 300,
        check_timeline: true,
        max_timelines_history: 0,
        member_slots_ttl: 1800,
        use_slots: true,
        pause: false,
        may_bootstrap: true,
        remove_data_directory_on_rewind_failure: true,
        remove_data_directory_on_diverged_timelines: true,
        tags: Map::new(),
        nofailover: false,
        failover_priority: 1,
        replicatefrom: None,
        nostream: false,
        conn_url: String::new(),
        api_url: String::new(),
        proxy_url: None,
        synchronous: Synchronous::default(),
        nosync: false,
        sync_priority: 1,
        failsafe_mode: false,
        standby_cluster: None,
        primary_stop_timeout: 0,
        primary_restart_limit: 0,
        primary_race_backoff: 0,
        short_ttl: false,
        disk_timeout_ms: 0,
        reinitialize_without_log: false,
        slots: Default::default(),
        ignore_slots: Vec::new(),
    }
}

/// These settings under this document, and the lease that the members agreed on. (HA-324)
fn configured(
    settings: &Settings,
    dynamic: &Map<String, Value>,
    short: bool,
    watchdog: &hathi::watchdog::Settings,
) -> Settings {
    let number = |key: &str, old: u64| dynamic.get(key).and_then(Value::as_u64).unwrap_or(old);
    let seconds = |key: &str, old: u32| u32::try_from(number(key, old.into())).unwrap_or(old);
    let truth = |key: &str, old: bool| dynamic.get(key).and_then(Value::as_bool).unwrap_or(old);
    let old = settings.timing;
    let wished = Timing {
        ttl: seconds("ttl", old.ttl),
        loop_wait: seconds("loop_wait", old.loop_wait),
        retry_timeout: seconds("retry_timeout", old.retry_timeout),
    };
    let shortest = if short { Timing::SHORTEST } else { Timing::PATRONIS_SHORTEST };
    Settings {
        timing: wished.adjusted_for(shortest),
        short_ttl: wished.ttl < Timing::PATRONIS_SHORTEST
            && watchdog.allows(wished.adjusted_for(Timing::SHORTEST)),
        maximum_lag_on_failover: number(
            "maximum_lag_on_failover",
            settings.maximum_lag_on_failover,
        ),
        primary_start_timeout: seconds("primary_start_timeout", settings.primary_start_timeout),
        failsafe_mode: truth("failsafe_mode", settings.failsafe_mode),
        pause: truth("pause", false),
        standby_cluster: dynamic.get("standby_cluster").map(|_| crate::standby::section()),
        ..settings.clone()
    }
}

/// The dynamic configuration as `/config` holds it.
pub fn dynamic_of(settings: &Settings) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("ttl".into(), settings.timing.ttl.into());
    map.insert("loop_wait".into(), settings.timing.loop_wait.into());
    map.insert("retry_timeout".into(), settings.timing.retry_timeout.into());
    map.insert("maximum_lag_on_failover".into(), settings.maximum_lag_on_failover.into());
    map.insert("primary_start_timeout".into(), settings.primary_start_timeout.into());
    map.insert("failsafe_mode".into(), settings.failsafe_mode.into());
    if settings.standby_cluster.is_some() {
        map.insert("standby_cluster".into(), crate::standby::document());
    }
    map
}

impl World {
    /// The service manager starts the agent of this node.
    pub fn start_agent(&mut self, node: usize) {
        if self.nodes[node].agent.is_some() || self.nodes[node].held_down {
            return;
        }
        if self.nodes[node].suspended {
            return self.after(1_000 * MS, move |world| world.start_agent(node));
        }
        let life = self.nodes[node].lives + 1;
        self.nodes[node].lives = life;
        let process = Process { node, life };
        let agency = Agency { shared: self.shared(), process };
        let machine = &self.nodes[node];
        let name = machine.name.clone();
        let mut tags = Map::new();
        if machine.nofailover {
            tags.insert("nofailover".into(), true.into());
        }
        if machine.priority != 1 {
            tags.insert("failover_priority".into(), machine.priority.into());
        }
        if machine.nosync {
            tags.insert("nosync".into(), true.into());
        }
        let settings = Settings {
            me: name.clone(),
            nosync: machine.nosync,
            tags,
            nofailover: machine.nofailover,
            failover_priority: machine.priority,
            conn_url: format!("postgres://{name}:5432/postgres"),
            api_url: format!("http://{name}:8008/patroni"),
            ..self.base.clone()
        };
        // What the last life knew, until this one has read `/config`. (HA-019)
        let dynamic = machine.cached.clone().unwrap_or_else(|| dynamic_of(&settings));
        let fits = self.watchdog_settings_for(settings.timing);
        let settings = configured(&settings, &dynamic, false, &fits);
        let server = &machine.server;
        let role = match &server.data {
            None => Role::Uninitialized,
            Some(_) if server.alive() && server.ready() && !server.recovering => Role::Primary,
            Some(data) if data.standby_signal || server.alive() => Role::Replica,
            Some(_) => Role::Demoted,
        };
        let state = match (server.alive(), server.ready()) {
            (false, _) => State::Stopped,
            (true, false) => State::Starting,
            (true, true) => State::Running,
        };
        let (events, reader) = Events::new();
        let lease = Arc::new(Lease::default());
        self.store.next_session += 1;
        let session = self.store.next_session;
        let copy = (self.sees_store(node) && !self.nodes[node].watch_broken)
            .then(|| (self.store.revision, self.store.view()));
        let now = self.local(node);
        let watchdog = self.watchdog_of(node, settings.timing);
        self.nodes[node].agent = Some(Agent {
            life,
            frozen: false,
            unfrozen_at: 0,
            started_at: self.now_us,
            lease: lease.clone(),
            watchdog: watchdog.clone(),
            events: events.clone(),
            watchers: Vec::new(),
            copy,
            settings: Arc::new(settings),
            dynamic,
            short_ttl: false,
            state,
            state_since: now,
            role,
            cancelled: false,
            cancels: Vec::new(),
            tasks: Vec::new(),
            line: String::new(),
            saw_primary: None,
            shutting_down: false,
            session,
            gate: Arc::default(),
            seen_as_primary: role == Role::Primary,
            licensed_until: None,
            stalls: Default::default(),
            looks: Default::default(),
        });
        self.say(node, 40, |_| "agent starts".into());
        if self.is_patroni(node) {
            let work = async move {
                let exit = crate::patroni::run(agency.clone(), reader).await;
                agency.world().agent_exited(process, &exit);
            };
            let (world, part) = (self.shared(), Part::Loop);
            let loops = Stalling { world, process, part, work: work.boxed() };
            return self.spawned.push((process, loops.boxed()));
        }
        let ports = agency.ports_with(watchdog);
        let keeper = lease::keep(ports.clone(), lease.clone(), events.clone());
        let (world, part) = (self.shared(), Part::Keeper);
        let keeper = Stalling { world, process, part, work: keeper.boxed() };
        self.spawned.push((process, keeper.boxed()));
        let work = async move {
            let exit = run::run(ports, lease, events, reader).await;
            agency.world().agent_exited(process, &exit);
        };
        let world = self.shared();
        let turns = Stalling { world, process, part: Part::Loop, work: work.boxed() };
        self.spawned.push((process, turns.boxed()));
    }

    fn agent_exited(&mut self, process: Process, exit: &run::Exit) {
        let node = process.node;
        if self.agent(process).is_none() {
            return;
        }
        self.say(node, 41, |_| format!("agent ends: {exit:?}"));
        self.nodes[node].agent = None;
        self.note_killed(process);
        self.check_exit(node, exit);
        // systemd, Restart=on-failure; what was stopped on purpose is started by whoever stopped it.
        match exit {
            // It took longer than whoever stopped it waited.
            run::Exit::Stopped if self.quiet => {
                self.after(6_000 * MS, move |world| world.start_agent(node));
            }
            run::Exit::Stopped => {}
            run::Exit::Fatal(_) | run::Exit::Left(_) => {
                self.after(5_000 * MS, move |world| world.start_agent(node));
            }
        }
    }

    /// kill -9.
    pub fn kill_agent(&mut self, node: usize) {
        self.forgive_graceful(node);
        self.leave_in_hands(node);
        if let Some(agent) = self.nodes[node].agent.take() {
            self.say(node, 42, |_| "agent is killed".into());
            self.note_killed(Process { node, life: agent.life });
            // Its futures die with it; the lock on its lease is not needed any more.
            drop(agent);
        }
    }

    pub fn freeze_agent(&mut self, node: usize) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.frozen = true;
            self.say(node, 43, |_| "agent is frozen".into());
        }
    }

    pub fn resume_agent(&mut self, node: usize) {
        let now = self.now_us;
        let suspended = self.nodes[node].suspended;
        if let Some(agent) = self.nodes[node].agent.as_mut()
            && agent.frozen
            && !suspended
        {
            agent.frozen = false;
            agent.unfrozen_at = agent.unfrozen_at.max(now);
            self.say(node, 44, |_| "agent goes on".into());
            self.note_resumed();
        }
    }

    /// SIGTERM.
    pub fn shut_down_agent(&mut self, node: usize) {
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.shutting_down = true;
            let events = agent.events.clone();
            self.say(node, 45, |_| "agent is told to stop".into());
            events.post(Event::Shutdown);
        }
    }

    /// What the REST API of this node says of its PostgreSQL.
    fn rest_answer(&self, node: usize) -> Probe {
        let machine = &self.nodes[node];
        let server = &machine.server;
        let Some(data) = server.data.as_ref().filter(|_| server.ready() && server.clients) else {
            return Probe::Unreachable("its PostgreSQL does not run".into());
        };
        Probe::Answered(PeerAnswer {
            in_recovery: server.recovering,
            lsn: Lsn(data.tip.lsn),
            timeline: Timeline(self.wal.timeline(data.tip)),
            nofailover: machine.nofailover,
            failover_priority: machine.priority,
            watchdog_failed: self.watchdog_failed(node),
        })
    }
}

impl Agency {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.lock().unwrap()
    }

    /// To be called without the world's lock.
    pub fn ports(&self) -> Ports {
        let watchdog = {
            let world = self.world();
            let agent = world.agent(self.process);
            agent.map_or_else(
                || world.watchdog_of(self.process.node, world.base.timing),
                |agent| agent.watchdog.clone(),
            )
        };
        self.ports_with(watchdog)
    }

    fn ports_with(&self, watchdog: Arc<Watchdog>) -> Ports {
        let all = Arc::new(self.clone());
        Ports {
            watchdog,
            dcs: all.clone(),
            postgres: all.clone(),
            peers: all.clone(),
            promises: all.clone(),
            fence: all.clone(),
            clock: all.clone(),
            configuration: all.clone(),
            publish: all.clone(),
            spawn: all,
        }
    }

    fn gate(&self) -> Arc<Gate> {
        self.world().agent(self.process).map(|agent| agent.gate.clone()).unwrap_or_default()
    }

    pub fn local_now(&self) -> Millis {
        self.world().local(self.process.node)
    }

    pub fn sleep(&self, until: Millis) -> Sleep {
        let until_us = self.world().true_at(self.process.node, until);
        Sleep { world: self.shared.clone(), until_us, asked: false }
    }
}

#[async_trait]
impl Clock for Agency {
    fn now(&self) -> Millis {
        self.local_now()
    }

    fn wall(&self) -> DateTime<Utc> {
        let world = self.world();
        let ahead = world.nodes.get(self.process.node).map_or(0, |node| node.wall_ahead_ms);
        let ms = 1_767_225_600_000 + i64::try_from(world.now_us / MS).unwrap_or(0) + ahead;
        DateTime::from_timestamp_millis(ms).unwrap_or_default()
    }

    async fn sleep_until(&self, at: Millis) {
        self.sleep(at).await;
    }

    fn random(&self, below: u64) -> u64 {
        self.world().random.below(below)
    }
}

impl Spawn for Agency {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>) {
        let mut world = self.world();
        world.say(self.process.node, 46, |_| format!("task begins: {name}"));
        world.check_task(self.process.node, name);
        world.check_look_before(self.process, name);
        if let Some(agent) = world.agent_mut(self.process) {
            agent.tasks.push(name);
        }
        let agency = self.clone();
        let work = async move {
            work.await;
            let mut world = agency.world();
            world.say(agency.process.node, 47, |_| format!("task ends: {name}"));
            if let Some(agent) = world.agent_mut(agency.process)
                && let Some(at) = agent.tasks.iter().position(|task| *task == name)
            {
                agent.tasks.remove(at);
            }
        };
        world.spawned.push((self.process, work.boxed()));
    }
}

#[async_trait]
impl Configuration for Agency {
    fn settings(&self) -> Arc<Settings> {
        let world = self.world();
        match world.agent(self.process) {
            Some(agent) => agent.settings.clone(),
            None => Arc::new(world.base.clone()),
        }
    }

    fn dynamic(&self) -> Map<String, Value> {
        self.world().agent(self.process).map(|agent| agent.dynamic.clone()).unwrap_or_default()
    }

    async fn apply(&self, dynamic: &Map<String, Value>) -> Result<(), String> {
        let mut world = self.world();
        let fits = world.watchdog_settings_for(Timing::default());
        let Some(agent) = world.agent_mut(self.process) else { return Ok(()) };
        let new = configured(&agent.settings, dynamic, agent.short_ttl, &fits);
        let (timing, watchdog) = (new.timing, agent.watchdog.clone());
        agent.settings = Arc::new(new);
        agent.dynamic = dynamic.clone();
        watchdog.configure(world.watchdog_settings_for(timing));
        let node = self.process.node;
        world.nodes[node].cached = Some(dynamic.clone());
        world.say(node, 48, |_| "applies a new /config".into());
        if world.agent(self.process).is_some_and(|agent| agent.settings.pause) {
            world.note_pause(node);
        }
        Ok(())
    }

    fn allow_short_ttl(&self, yes: bool) {
        let mut world = self.world();
        let fits = world.watchdog_settings_for(Timing::default());
        let Some(agent) = world.agent_mut(self.process) else { return };
        agent.short_ttl = yes;
        let new = configured(&agent.settings, &agent.dynamic, yes, &fits);
        let (timing, watchdog) = (new.timing, agent.watchdog.clone());
        agent.settings = Arc::new(new);
        watchdog.configure(world.watchdog_settings_for(timing));
        world.say(self.process.node, 49, |_| format!("ttl {} s is in force", timing.ttl));
    }
}

impl Publish for Agency {
    fn publish(&self, seen: Seen) {
        let mut world = self.world();
        let node = self.process.node;
        if let Some(decision) = &seen.decision {
            world.check_replay(node, decision);
        }
        world.count("turns");
        world.note_pause(node);
        let Some(agent) = world.agent_mut(self.process) else { return };
        agent.seen_as_primary = seen.postgres.is_primary;
        let licensed = std::mem::replace(&mut agent.licensed_until, seen.failsafe_until);
        // A shorter ttl cuts a licence down; that is no new one.
        if let Some(until) = seen.failsafe_until.filter(|_| seen.failsafe_until > licensed) {
            world.check_licence_given(node, until);
        }
        let Some(agent) = world.agent_mut(self.process) else { return };
        if agent.line != seen.line {
            agent.line.clone_from(&seen.line);
            let code = code_of(&seen.line);
            world.say(node, code, |_| {
                let why: Vec<String> =
                    seen.reasons.iter().map(|why| format!("{}: {}", why.rule, why.why)).collect();
                if why.is_empty() {
                    seen.line
                } else {
                    format!("{}  [{}]", seen.line, why.join("; "))
                }
            });
        } else if world.tracing && std::env::var_os("SIM_VERBOSE").is_some() {
            let until = seen.leader_until.map(|until| world.true_at(node, until) / MS);
            let next = world.true_at(node, seen.next_turn) / MS;
            let line = format!("t={} {node} turn, until {until:?}, next {next}", world.now_us / MS);
            world.trace.push(line);
        }
    }

    fn keeps_decisions(&self) -> bool {
        self.world().watched.recorded
    }
}

impl Fence for Agency {
    fn protect_until(&self, until: Millis) {
        let mut world = self.world();
        if !world.watched.fence_broken {
            world.arm_fence(self.process.node, until);
        }
    }

    fn stand_down(&self) {
        self.world().nodes[self.process.node].fence = None;
    }

    fn broken(&self) -> Option<String> {
        None
    }
}

impl Promises for Agency {
    fn promised(&self, now: Millis) -> Option<Promise> {
        self.gate().promised(now)
    }

    fn claim(&self, now: Millis) -> bool {
        self.gate().claim(now)
    }

    fn disclaim(&self) {
        self.gate().disclaim();
    }

    fn forget_promise(&self) {
        self.gate().forget_promise();
    }
}

impl Peers for Agency {
    fn failsafe(
        &self,
        members: Vec<(MemberName, String)>,
        call: Call,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Vow)> {
        crate::failsafe::ask(self, members, call, by)
    }

    fn probe(
        &self,
        members: Vec<(MemberName, String)>,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Probe)> {
        let (answers, stream) = mpsc::unbounded();
        let mut world = self.world();
        let from = self.process;
        world.late_call(from.node);
        if let Some(agent) = world.agent_mut(from) {
            agent.saw_primary = None;
        }
        let end = world.true_at(from.node, by.0);
        let asked = members.len();
        for (name, _) in members {
            let answered = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let out = world.random.between(1, 5) * MS;
            let back = world.random.between(1, 5) * MS;
            let to = world.node_of(&name);
            let (sender, done, peer) = (answers.clone(), answered.clone(), name.clone());
            world.after(out, move |world| {
                let Some(to) = to else { return };
                if !world.links[from.node][to] {
                    return;
                }
                let answer = match &world.nodes[to].agent {
                    Some(agent) if agent.frozen => return,
                    Some(_) => world.rest_answer(to),
                    None => Probe::Unreachable("connection refused".into()),
                };
                world.after(back, move |world| {
                    if !world.links[to][from.node]
                        || done.swap(true, std::sync::atomic::Ordering::SeqCst)
                    {
                        return;
                    }
                    if let Probe::Answered(PeerAnswer { in_recovery: false, .. }) = &answer
                        && let Some(agent) = world.agent_mut(from)
                    {
                        agent.saw_primary = Some(peer.clone());
                    }
                    let _ = sender.unbounded_send((peer, answer));
                });
            });
            let sender = answers.clone();
            world.at(end, move |_| {
                if !answered.swap(true, std::sync::atomic::Ordering::SeqCst) {
                    let _ = sender.unbounded_send((name, Probe::Unreachable("timed out".into())));
                }
            });
        }
        stream.take(asked).boxed()
    }
}
