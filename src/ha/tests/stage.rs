//! Ports that answer what a test wrote down, and note what was asked of them.

use crate::ha::lease::Lease;
use crate::ha::memory::Memory;
use crate::ha::operator::{Said, Wish};
use crate::ha::ports::*;
use crate::ha::promise::{Call, Gate, Promise, Vow};
use crate::ha::record::{Recording, recorded_turn, replay};
use crate::ha::settings::{Settings, Synchronous};
use crate::ha::task::{self, Context, Outcome, Task};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use hathi_dcs::*;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The name of the node whose turns are tested.
pub const ME: &str = "a";
/// What the wall clock shows, in milliseconds since the epoch.
pub const WALL: i64 = 1_800_000_000_000;

/// What the world answers. Every test changes the few things it is about.
pub struct Script {
    pub now: Millis,
    pub view: ClusterView,
    pub pg: Observation,
    pub settings: Settings,
    pub dynamic: Map<String, Value>,
    pub probes: BTreeMap<&'static str, PeerAnswer>,
    /// Members whose answer never comes.
    pub silent: Vec<&'static str>,
    /// Who accepts POST /failsafe; the others do not answer.
    pub vows: BTreeMap<&'static str, Vow>,
    /// How long their answers take.
    pub vows_take: u64,
    pub gate: Arc<Gate>,
    pub load: Result<(), DcsError>,
    pub acquire: Result<(), DcsError>,
    pub renew: Result<(), DcsError>,
    pub initialize: Result<(), DcsError>,
    pub control: Option<ControlData>,
    pub follow: FollowChange,
    pub local_end: Option<LocalEnd>,
    pub source: Result<SourceHistory, PgError>,
    /// The remote member of a standby cluster, where it answers otherwise than `source`.
    pub remote: Option<Result<SourceHistory, PgError>>,
    /// The history file of the timeline after ours lies in pg_wal.
    pub next_history: bool,
    pub archives: bool,
    /// The position that the key was given up with.
    pub released: Option<Lsn>,
    pub broken_fence: Option<String>,
    /// Required, and it does not work.
    pub bad_watchdog: Option<String>,
    /// Milliseconds that pass while the store renews.
    pub renew_takes: u64,
    /// Milliseconds that pass while something is done whose note begins so.
    pub takes: BTreeMap<&'static str, u64>,
    /// What happens in the world meanwhile, once.
    pub meanwhile: BTreeMap<&'static str, fn(&mut Script)>,
    /// How often the store was read, and PostgreSQL looked at.
    pub looks: (u32, u32),
    /// What writing `/sync` answers, and `synchronous_standby_names`.
    pub sync: Result<(), DcsError>,
    /// So many writes of `/sync` meet another one that came before.
    pub sync_conflicts: u32,
    /// Who got the key in the moment of such a write.
    pub led_since: Option<Leader>,
    pub names: Result<(), PgError>,
    /// Turns are written down.
    pub recorded: bool,
    /// Milliseconds since the epoch.
    pub wall: i64,
    pub start: Result<Started, PgError>,
    pub pre_promote: Result<(), PgError>,
    /// The steps of a stop.
    pub stop: Vec<StopStep>,
    /// What was done to the world, in order.
    pub done: Vec<String>,
}

/// What one turn came to.
#[derive(Debug)]
pub struct Came {
    pub line: String,
    pub task: Option<Task>,
    pub exit: bool,
    pub again_at: Option<Millis>,
    pub rules: Vec<&'static str>,
    pub done: Vec<String>,
}

impl Came {
    pub fn fired(&self, rule: &str) -> bool {
        self.rules.contains(&rule)
    }

    pub fn did(&self, what: &str) -> bool {
        self.done.iter().any(|done| done.starts_with(what))
    }
}

#[derive(Clone)]
struct Stage(Arc<Mutex<Script>>);

impl Stage {
    fn with<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn note(&self, what: impl Into<String>) {
        let what = what.into();
        self.pass(&what);
        self.with(|script| script.done.push(what));
    }

    /// The time it takes, and what happens in it.
    fn pass(&self, what: &str) {
        self.with(|script| {
            let takes = script.takes.iter().find(|(begin, _)| what.starts_with(**begin));
            script.now = script.now.plus(takes.map_or(0, |(_, ms)| *ms));
            let begin = script.meanwhile.keys().find(|begin| what.starts_with(**begin)).copied();
            if let Some(happens) = begin.and_then(|begin| script.meanwhile.remove(begin)) {
                happens(script);
            }
        });
    }
}

/// One node between two turns.
pub struct Scene {
    stage: Stage,
    lease: Arc<Lease>,
    pub memory: Memory,
    /// Of the last turn.
    pub recording: Option<Recording>,
}

pub fn member(name: &str, wire: &str) -> Member {
    Member { name: name.into(), data: MemberData::parse(wire) }
}

pub fn running(name: &str, role: &str) -> Member {
    member(
        name,
        &format!(
            r#"{{"conn_url":"postgres://{name}:5432/postgres","api_url":"http://{name}:8008/patroni","state":"running","role":"{role}","timeline":1}}"#
        ),
    )
}

pub fn standby(lsn: u64) -> Server {
    Server::Standby(Standby {
        timeline: Timeline(1),
        received: Some(Lsn(lsn)),
        replayed: Some(Lsn(lsn)),
        streaming: true,
        ..Standby::default()
    })
}

pub fn replica_at(lsn: u64) -> PeerAnswer {
    PeerAnswer {
        in_recovery: true,
        lsn: Lsn(lsn),
        timeline: Timeline(1),
        nofailover: false,
        failover_priority: 1,
        watchdog_failed: false,
    }
}

pub fn control(state: ControlState) -> ControlData {
    ControlData {
        state,
        system_id: SystemId::parse("7711467298858918990"),
        checkpoint: Lsn(1000),
        checkpoint_timeline: Timeline(1),
        min_recovery_end: Lsn(0),
        min_recovery_timeline: Timeline(0),
        has_standby_signal: false,
        has_backup_label: false,
    }
}

pub fn unreachable() -> DcsError {
    DcsError::unreachable("store", 10, "no answer")
}

impl Scene {
    /// A healthy cluster of a, b and c, led by b; a is a replica of it at 1000.
    pub fn replica() -> Self {
        let view = ClusterView {
            initialize: Some("7711467298858918990".into()),
            leader: Some(Leader { name: "b".into(), version: Version(1) }),
            status: Status { optime: Lsn(1000), ..Status::default() },
            members: vec![
                running("a", "replica"),
                running("b", "primary"),
                running("c", "replica"),
            ],
            history: History::parse("[]"),
            ..ClusterView::default()
        };
        let pg = Observation {
            data_dir: DataDir::Present,
            alive: true,
            state: State::Running,
            state_since: Millis(0),
            role: Role::Replica,
            server: standby(1000),
            system_id: SystemId::parse("7711467298858918990"),
            slots: Vec::new(),
            pending_restart: BTreeMap::new(),
            details: None,
            can_rewind: true,
            is_primary: false,
            replication: Replication::default(),
            fast_stop_ms: None,
            disk_stalls_ms: 0,
        };
        let settings = Settings {
            me: ME.into(),
            timing: Timing::default(),
            maximum_lag_on_failover: 1_048_576,
            primary_start_timeout: 300,
            check_timeline: false,
            max_timelines_history: 0,
            member_slots_ttl: 1800,
            use_slots: false,
            pause: false,
            may_bootstrap: true,
            remove_data_directory_on_rewind_failure: false,
            remove_data_directory_on_diverged_timelines: false,
            tags: Map::new(),
            nofailover: false,
            failover_priority: 1,
            replicatefrom: None,
            nostream: false,
            conn_url: "postgres://a:5432/postgres".into(),
            api_url: "http://a:8008/patroni".into(),
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
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
        };
        let script = Script {
            now: Millis(1_000_000),
            view,
            pg,
            settings,
            dynamic: Map::new(),
            probes: [("b", replica_at(1000)), ("c", replica_at(1000))].into(),
            silent: Vec::new(),
            vows: BTreeMap::new(),
            vows_take: 0,
            gate: Arc::default(),
            load: Ok(()),
            acquire: Ok(()),
            renew: Ok(()),
            initialize: Ok(()),
            control: Some(control(ControlState::InArchiveRecovery)),
            follow: FollowChange::Nothing,
            local_end: Some(LocalEnd {
                timeline: Timeline(1),
                lsn: Lsn(1000),
                was_primary: false,
                checkpoint_end: None,
            }),
            source: Ok(SourceHistory {
                in_recovery: false,
                timeline: Timeline(1),
                ends: Vec::new(),
                checkpoint_timeline: Some(Timeline(1)),
                oldest: None,
            }),
            remote: None,
            next_history: false,
            archives: false,
            released: None,
            broken_fence: None,
            bad_watchdog: None,
            renew_takes: 0,
            takes: BTreeMap::new(),
            meanwhile: BTreeMap::new(),
            looks: (0, 0),
            sync: Ok(()),
            sync_conflicts: 0,
            led_since: None,
            names: Ok(()),
            recorded: true,
            wall: WALL,
            start: Ok(Started::Ready),
            pre_promote: Ok(()),
            stop: vec![StopStep::Stopped],
            done: Vec::new(),
        };
        let memory = Memory { joined: true, ..Memory::default() };
        let stage = Stage(Arc::new(Mutex::new(script)));
        Self { stage, lease: Arc::default(), memory, recording: None }
    }

    /// The same cluster, led by a, which holds the lease.
    pub fn leader() -> Self {
        let scene = Self::replica().set(|script| {
            script.view.leader = Some(Leader { name: ME.into(), version: Version(1) });
            script.view.members =
                vec![running("a", "primary"), running("b", "replica"), running("c", "replica")];
            script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
            script.pg.role = Role::Primary;
            script.pg.is_primary = true;
        });
        scene.hold_lease();
        scene
    }

    /// Nobody leads; a is a replica that was led by b.
    pub fn leaderless() -> Self {
        let mut scene = Self::replica();
        scene.memory.old_view = Some(Arc::new(scene.stage.with(|script| script.view.clone())));
        scene.set(|script| script.view.leader = None)
    }

    /// a's postmaster was killed; a held the lock.
    pub fn crashed_leader() -> Self {
        Self::leader().set(|script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::InProduction));
        })
    }

    pub fn set(self, change: impl FnOnce(&mut Script)) -> Self {
        self.stage.with(change);
        self
    }

    /// What begins so takes so many milliseconds.
    pub fn takes(self, what: &'static str, ms: u64) -> Self {
        self.set(|script| {
            script.takes.insert(what, ms);
        })
    }

    /// What happens in the world while that is done for the first time.
    pub fn meanwhile(self, what: &'static str, happens: fn(&mut Script)) -> Self {
        self.set(|script| {
            script.meanwhile.insert(what, happens);
        })
    }

    pub fn remember(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.memory);
        self
    }

    /// What was done to the world since the last turn began.
    pub fn done(&self) -> Vec<String> {
        self.stage.with(|script| script.done.clone())
    }

    pub fn now(&self) -> Millis {
        self.stage.with(|script| script.now)
    }

    /// Until when the lease is believed in, from now on.
    pub fn lease_left(&self) -> Option<u64> {
        let now = self.stage.with(|script| script.now);
        self.lease.until(now).map(|until| until.since(now))
    }

    /// What the store holds.
    pub fn view(&self) -> ClusterView {
        self.stage.with(|script| script.view.clone())
    }

    pub fn hold_lease(&self) {
        let ports = self.ports();
        let by = Deadline(self.stage.with(|script| script.now.plus(1000)));
        futures::executor::block_on(self.lease.renew(&ports, by)).unwrap();
    }

    /// The keeper asks the store, which does not answer.
    pub fn renew_fails(&self) {
        let ports = self.ports();
        let by = Deadline(self.stage.with(|script| script.now.plus(1000)));
        futures::executor::block_on(self.lease.renew(&ports, by)).unwrap_err();
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    pub fn shared_lease(&self) -> Arc<Lease> {
        self.lease.clone()
    }

    pub fn gate(&self) -> Arc<Gate> {
        self.stage.with(|script| script.gate.clone())
    }

    /// Time passes; nobody renewed meanwhile.
    pub fn later(self, ms: u64) -> Self {
        self.set(|script| script.now = script.now.plus(ms))
    }

    /// Runs a task to its end; what it did to the world comes with its outcome, except to the
    /// watchdog, which has tests of its own.
    pub fn perform(&mut self, task: Task) -> (Outcome, Vec<String>) {
        self.stage.with(|script| script.done.clear());
        let view = Arc::new(self.stage.with(|script| script.view.clone()));
        let context = Context { ports: self.ports(), lease: self.lease.clone(), view };
        let report = futures::executor::block_on(task::run(task, context));
        let mut done = self.stage.with(|script| script.done.clone());
        done.retain(|done| !done.starts_with("watchdog"));
        (report.outcome, done)
    }

    pub fn ports(&self) -> Ports {
        let stage = Arc::new(self.stage.clone());
        Ports {
            dcs: stage.clone(),
            postgres: stage.clone(),
            peers: stage.clone(),
            promises: stage.clone(),
            fence: stage.clone(),
            watchdog: stage.clone(),
            clock: stage.clone(),
            configuration: stage.clone(),
            publish: stage.clone(),
            spawn: stage,
        }
    }

    /// One turn, and the same one once more from its recording. (INV-32)
    pub fn turn(&mut self) -> Came {
        self.asked(None).0
    }

    /// A turn that has to wait for nothing; `None` if it has to.
    pub fn turn_at_once(&mut self) -> Option<Came> {
        use futures::FutureExt;
        let ports = self.ports();
        self.stage.with(|script| script.done.clear());
        let turn = recorded_turn(&ports, &self.lease, &mut self.memory, true);
        let (turned, _) = turn.now_or_never()?;
        Some(self.came(turned).0)
    }

    /// A turn with the wish of an operator, and what is said to it.
    pub fn asked(&mut self, wish: Option<&Wish>) -> (Came, Option<Said>) {
        self.memory.wish = wish.cloned();
        let came = self.lives();
        let recording = self.recording.as_ref().unwrap();
        let replayed = replay(recording.as_bytes()).unwrap();
        assert_eq!(replayed.recorded, replayed.replayed, "each turn of a test replays");
        came
    }

    /// Runs a task to its end, and says what it did.
    pub fn run(&self, task: Task) -> Vec<String> {
        let view = Arc::new(self.stage.with(|script| script.view.clone()));
        let context = Context { ports: self.ports(), lease: self.lease.clone(), view };
        self.stage.with(|script| script.done.clear());
        futures::executor::block_on(crate::ha::task::run(task, context));
        self.stage.with(|script| script.done.clone())
    }

    /// How often the store was read, and PostgreSQL looked at, since this was asked last.
    pub fn looks(&self) -> (u32, u32) {
        self.stage.with(|script| std::mem::take(&mut script.looks))
    }

    pub fn released(&self) -> Option<Lsn> {
        self.stage.with(|script| script.released)
    }

    /// What a turn would be told.
    pub fn facts(&self) -> (Settings, Observation) {
        self.stage.with(|script| (script.settings.clone(), script.pg.clone()))
    }

    pub fn set_recorded(&self, recorded: bool) {
        self.stage.with(|script| script.recorded = recorded);
    }

    /// One turn, whether or not it could be recorded.
    pub fn turn_unrecorded(&mut self) -> Came {
        self.lives().0
    }

    fn lives(&mut self) -> (Came, Option<Said>) {
        let ports = self.ports();
        self.stage.with(|script| script.done.clear());
        let turn = recorded_turn(&ports, &self.lease, &mut self.memory, true);
        let (turned, recording) = futures::executor::block_on(turn);
        self.recording = recording;
        self.came(turned)
    }

    fn came(&self, turned: crate::ha::turn::Turned) -> (Came, Option<Said>) {
        let came = Came {
            line: turned.decided.line,
            task: turned.decided.start,
            exit: turned.decided.exit.is_some(),
            again_at: turned.decided.again_at,
            rules: turned.reasons.iter().map(|reason| reason.rule).collect(),
            done: self.stage.with(|script| script.done.clone()),
        };
        (came, turned.said)
    }
}

/// As after kill -9 of the postmaster.
pub fn down(pg: &mut Observation) {
    pg.alive = false;
    pg.server = Server::Down;
    pg.is_primary = false;
}

#[async_trait]
impl Clock for Stage {
    fn now(&self) -> Millis {
        self.with(|script| script.now)
    }

    fn wall(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.with(|script| script.wall)).unwrap()
    }

    async fn sleep_until(&self, at: Millis) {
        if at > self.now() {
            futures::future::pending().await
        }
    }

    fn random(&self, _: u64) -> u64 {
        0
    }
}

impl Spawn for Stage {
    fn spawn(&self, _: &'static str, _: BoxFuture<'static, ()>) {}
}

#[async_trait]
impl Configuration for Stage {
    fn settings(&self) -> Arc<Settings> {
        Arc::new(self.with(|script| script.settings.clone()))
    }

    fn dynamic(&self) -> Map<String, Value> {
        self.with(|script| script.dynamic.clone())
    }

    async fn apply(&self, dynamic: &Map<String, Value>) -> Result<(), String> {
        self.note("apply config");
        if dynamic.contains_key("bad") { Err("bad".into()) } else { Ok(()) }
    }

    fn allow_short_ttl(&self, yes: bool) {
        self.note(format!("short ttl {yes}"));
        self.with(|script| {
            let wished = Timing { ttl: 3, loop_wait: 1, retry_timeout: 1 };
            script.settings.timing = if yes { wished } else { wished.adjusted() };
        });
    }
}

impl Publish for Stage {
    fn publish(&self, _: Seen) {}

    fn keeps_decisions(&self) -> bool {
        self.with(|script| script.recorded)
    }
}

impl Fence for Stage {
    fn protect_until(&self, _: Millis) {
        self.note("fence");
    }

    fn stand_down(&self) {
        self.note("stand down");
    }

    fn broken(&self) -> Option<String> {
        self.with(|script| script.broken_fence.clone())
    }
}

impl Watchdog for Stage {
    fn activate(&self, _: Millis) -> Result<(), String> {
        self.note("watchdog on");
        self.with(|script| script.bad_watchdog.clone()).map_or(Ok(()), Err)
    }

    fn keep_alive(&self, until: Millis) {
        self.note(format!("watchdog alive until {}", until.0));
    }

    fn disable(&self) {
        self.note("watchdog off");
    }

    fn unhealthy(&self) -> Option<String> {
        self.with(|script| script.bad_watchdog.clone())
    }
}

impl Peers for Stage {
    fn probe(
        &self,
        members: Vec<(MemberName, String)>,
        _: Deadline,
    ) -> BoxStream<'static, (MemberName, Probe)> {
        let silent = self.with(|script| script.silent.clone());
        let (later, now): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|(name, _)| silent.contains(&name.as_str()));
        let answers: Vec<_> = now
            .into_iter()
            .map(|(name, _)| {
                let answer = self.with(|script| script.probes.get(name.as_str()).cloned());
                let probe = answer.map_or(Probe::Unreachable("down".into()), Probe::Answered);
                (name, probe)
            })
            .collect();
        let answers = stream::iter(answers);
        if later.is_empty() { answers.boxed() } else { answers.chain(stream::pending()).boxed() }
    }

    fn failsafe(
        &self,
        members: Vec<(MemberName, String)>,
        call: Call,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Vow)> {
        self.note(format!("call {} by {}", call.to_wire(), by.0.0));
        self.with(|script| script.now = script.now.plus(script.vows_take));
        let answers: Vec<_> = members
            .into_iter()
            .map(|(name, _)| {
                let vow = self.with(|script| script.vows.get(name.as_str()).cloned());
                (name, vow.unwrap_or_else(|| Vow::Refused("no answer".into())))
            })
            .collect();
        stream::iter(answers).boxed()
    }
}

impl Promises for Stage {
    fn promised(&self, now: Millis) -> Option<Promise> {
        self.with(|script| script.gate.clone()).promised(now)
    }

    fn claim(&self, now: Millis) -> bool {
        self.with(|script| script.gate.clone()).claim(now)
    }

    fn disclaim(&self) {
        self.with(|script| script.gate.clone()).disclaim();
    }

    fn forget_promise(&self) {
        self.with(|script| script.gate.clone()).forget_promise();
    }
}

#[async_trait]
impl Dcs for Stage {
    fn kind(&self) -> &'static str {
        "stage"
    }

    fn set_timing(&self, _: Timing) {}

    async fn load(&self, _: Freshness, _: Deadline) -> Result<ClusterView, DcsError> {
        self.with(|script| script.looks.0 += 1);
        self.pass("load");
        self.with(|script| script.load.clone().map(|()| script.view.clone()))
    }

    async fn acquire_leader(&self, _: Deadline) -> Result<(), DcsError> {
        self.note("acquire");
        self.with(|script| script.acquire.clone())
    }

    async fn take_leader(&self, _: Deadline) -> Result<(), DcsError> {
        self.note("take");
        Ok(())
    }

    async fn renew_leader(&self, _: Deadline) -> Result<(), DcsError> {
        self.note("renew");
        self.with(|script| script.now = script.now.plus(script.renew_takes));
        self.with(|script| script.renew.clone())
    }

    async fn release_leader(&self, status: Option<&Status>, _: Deadline) -> Result<(), DcsError> {
        self.with(|script| script.released = status.map(|status| status.optime));
        self.note("release");
        Ok(())
    }

    async fn write_member(&self, data: &MemberData, _: Deadline) -> Result<(), DcsError> {
        self.note(format!("member {}", data.to_wire()));
        Ok(())
    }

    async fn write_status(&self, status: &Status, _: Deadline) -> Result<(), DcsError> {
        self.note(format!("status {}", status.to_wire()));
        Ok(())
    }

    async fn write_failsafe(&self, map: &Failsafe, _: Deadline) -> Result<(), DcsError> {
        self.note(format!("failsafe {}", map.to_wire()));
        Ok(())
    }

    async fn write_initialize(
        &self,
        value: &str,
        expect: Expect,
        _: Deadline,
    ) -> Result<(), DcsError> {
        self.note(format!("initialize {value:?} {expect:?}"));
        self.with(|script| {
            script.initialize.clone()?;
            script.view.initialize = Some(value.to_owned());
            script.view.initialize_version = Some(Version(9));
            Ok(())
        })
    }

    async fn delete_initialize(&self, _: Deadline) -> Result<(), DcsError> {
        self.note("delete initialize");
        Ok(())
    }

    async fn write_config(
        &self,
        _: &Map<String, Value>,
        _: Expect,
        _: Deadline,
    ) -> Result<Version, DcsError> {
        self.note("config");
        Ok(Version(2))
    }

    async fn write_failover(
        &self,
        failover: &Failover,
        _: Expect,
        _: Deadline,
    ) -> Result<Version, DcsError> {
        self.note(format!("failover {}", failover.to_wire()));
        Ok(Version(2))
    }

    async fn write_sync(
        &self,
        sync: &hathi_dcs::Sync,
        expect: Expect,
        _: Deadline,
    ) -> Result<Version, DcsError> {
        self.note(format!("sync {} {expect:?}", sync.to_wire()));
        self.with(|script| {
            script.sync.clone()?;
            if script.sync_conflicts > 0 {
                script.sync_conflicts -= 1;
                if let Some(leader) = script.led_since.take() {
                    script.view.leader = Some(leader);
                }
                return Err(DcsError::conflict("sync"));
            }
            let version = Version(script.view.sync.as_ref().map_or(1, |old| old.version.0 + 1));
            script.view.sync = Some(Stored { value: sync.clone(), version });
            Ok(version)
        })
    }

    async fn delete_sync(&self, expect: Expect, _: Deadline) -> Result<(), DcsError> {
        self.note(format!("sync deleted {expect:?}"));
        self.with(|script| {
            script.sync.clone()?;
            script.view.sync = None;
            Ok(())
        })
    }

    async fn write_history(&self, history: &History, _: Deadline) -> Result<(), DcsError> {
        self.note(format!("history {}", history.to_wire()));
        Ok(())
    }

    async fn delete_cluster(&self, _: Deadline) -> Result<(), DcsError> {
        Ok(())
    }

    fn watch(&self) -> BoxStream<'static, Change> {
        stream::pending().boxed()
    }
}

#[async_trait]
impl Postgres for Stage {
    async fn observe(&self, _: Deadline) -> Observation {
        self.with(|script| script.looks.1 += 1);
        self.pass("observe");
        self.with(|script| script.pg.clone())
    }

    async fn control(&self, _: Deadline) -> Option<ControlData> {
        self.with(|script| script.control.clone())
    }

    fn set_role(&self, role: Role) {
        self.note(format!("role {role}"));
        self.with(|script| script.pg.role = role);
    }

    fn set_state(&self, state: State) {
        self.note(format!("state {state}"));
        self.with(|script| script.pg.state = state);
    }

    fn tell_role_change(&self) {
        self.note("role change told");
    }

    async fn archives(&self, _: Deadline) -> bool {
        self.with(|script| script.archives)
    }

    async fn archive_shutdown_checkpoint(&self, _: Deadline) -> Result<(), PgError> {
        self.note("archived the shutdown checkpoint");
        Ok(())
    }

    async fn follow_change(&self, upstream: Option<&Upstream>, _: Deadline) -> FollowChange {
        self.note(format!("compare {}", upstream.map_or("nobody", |up| up.name.as_str())));
        self.with(|script| script.follow)
    }

    async fn follow_by_reload(
        &self,
        upstream: Option<&Upstream>,
        _: Deadline,
    ) -> Result<(), PgError> {
        self.note(format!("follow {}", upstream.map_or("nobody", |up| up.name.as_str())));
        Ok(())
    }

    async fn set_sync_names(&self, names: Option<&str>, _: Deadline) -> Result<(), PgError> {
        self.note(format!("names {}", names.unwrap_or("of the user")));
        self.with(|script| {
            script.names.clone()?;
            if let Server::Primary { .. } = script.pg.server {
                script.pg.replication.names = names.unwrap_or_default().to_owned();
                let listed = crate::ha::sync::names::Names::parse(&script.pg.replication.names);
                for sender in &mut script.pg.replication.senders {
                    sender.sync_state = match &listed {
                        crate::ha::sync::names::Names::Some { any, names, .. }
                            if names.contains(&sender.name) =>
                        {
                            if *any {
                                "quorum"
                            } else {
                                "sync"
                            }
                        }
                        _ => "async",
                    }
                    .to_owned();
                }
            }
            Ok(())
        })
    }

    async fn set_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError> {
        self.note(format!("slots {:?}", plan.physical.keys().collect::<Vec<_>>()));
        if self.now() > by.0 {
            self.with(|script| script.now = by.0);
            return Err(PgError::TimedOut { what: "slots", waited_ms: 0 });
        }
        for (name, wanted) in &plan.logical {
            self.note(format!("logical {name} in {} at {:?}", wanted.database, wanted.position));
        }
        for name in &plan.unwanted {
            self.note(format!("drop {name}"));
        }
        Ok(())
    }

    async fn copy_logical_slots(&self, source: &Upstream, names: &[String]) -> Result<(), PgError> {
        self.note(format!("copy {names:?} from {}", source.name));
        Ok(())
    }

    async fn checkpoint(&self, _: Deadline) -> Result<(), PgError> {
        Ok(())
    }

    async fn local_history(&self, timeline: Timeline, _: Deadline) -> Option<Vec<TimelineEnd>> {
        let (mine, next) = self.with(|script| {
            let mine = match &script.pg.server {
                Server::Primary { timeline, .. } => *timeline,
                Server::Standby(standby) => standby.timeline,
                Server::Down | Server::Starting | Server::Silent(_) => {
                    let control =
                        script.control.as_ref().map(|control| control.checkpoint_timeline);
                    let end = script.local_end.as_ref().map(|end| end.timeline);
                    control.max(end).unwrap_or(timeline)
                }
            };
            (mine, script.next_history)
        });
        if timeline > mine && !next {
            return None;
        }
        let ends = (1..timeline.0).map(|n| TimelineEnd {
            timeline: Timeline(n),
            switch_lsn: Lsn(u64::from(n) * 100),
            reason: "no recovery target specified".into(),
            at: Some("2026-01-01T00:00:00+00:00".into()),
        });
        Some(ends.collect())
    }

    async fn local_end(&self, _: Deadline) -> Option<LocalEnd> {
        self.with(|script| script.local_end.clone())
    }

    async fn source_history(
        &self,
        source: &Upstream,
        _: Deadline,
    ) -> Result<SourceHistory, PgError> {
        self.note(format!("asked {}", source.name));
        self.with(|script| match &script.remote {
            Some(remote) if source.remote => remote.clone(),
            Some(_) | None => script.source.clone(),
        })
    }

    fn cancel(&self) {
        self.note("cancel");
    }

    fn clear_cancel(&self) {}

    async fn bootstrap(&self) -> Result<(), PgError> {
        Ok(())
    }

    async fn post_bootstrap(&self) -> Result<(), PgError> {
        self.note("post_bootstrap");
        Ok(())
    }

    async fn set_data_dir_aside(&self) -> Result<(), PgError> {
        self.note("set aside");
        Ok(())
    }

    async fn clone_from(&self, source: &Upstream, by: CopyBy) -> Result<(), PgError> {
        self.note(format!("clone {} {by:?}", source.name));
        Ok(())
    }

    async fn start(&self, how: Start, by: Deadline) -> Result<Started, PgError> {
        let how = match how {
            Start::AsPrimary => "as primary".to_owned(),
            Start::AsStandby(None) => "behind nobody".to_owned(),
            Start::AsStandby(Some(upstream)) => format!("behind {}", upstream.name),
        };
        let wait = by.0.since(self.now());
        self.note(format!("start {how}, {wait} ms"));
        self.with(|script| script.start.clone())
    }

    fn stop(&self, how: Stop) -> BoxStream<'static, StopStep> {
        let limit = how.immediate_at.map(|at| format!(" for {} ms", at.since(self.now())));
        self.note(format!("stop {:?}{}", how.mode, limit.unwrap_or_default()));
        stream::iter(self.with(|script| script.stop.clone())).boxed()
    }

    async fn pre_promote(&self) -> Result<(), PgError> {
        self.note("pre_promote");
        self.with(|script| script.pre_promote.clone())
    }

    async fn promote(&self, _: Deadline) -> Result<(), PgError> {
        self.note("promote");
        Ok(())
    }

    async fn recover_in_single_user_mode(&self) -> Result<(), PgError> {
        Ok(())
    }

    async fn rewind(&self, _: &Upstream) -> Result<(), PgError> {
        Ok(())
    }

    async fn remove_data_dir(&self) -> Result<(), PgError> {
        self.note("remove");
        Ok(())
    }
}
