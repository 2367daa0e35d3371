//! What the core can see and do: the ports between deciding and the world.
//!
//! Production puts PostgreSQL, sockets and a runtime behind them; the simulator puts models. Nothing
//! here names a runtime, a socket, a file or a clock. Every call returns by the deadline it is given;
//! calls without one return at once.

use crate::ha::journal::Decision;
use crate::ha::promise::{Call, Promise, Vow};
use crate::ha::record::Word;
use crate::ha::settings::Settings;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hathi_dcs::{
    ClusterView, Dcs, Deadline, Lsn, MemberName, Millis, PendingChange, Role, State, SystemId,
    Timeline,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything outside the core, as one turn and one task get it.
#[derive(Clone)]
pub struct Ports {
    pub dcs: Arc<dyn Dcs>,
    pub postgres: Arc<dyn Postgres>,
    pub peers: Arc<dyn Peers>,
    pub promises: Arc<dyn Promises>,
    pub fence: Arc<dyn Fence>,
    pub watchdog: Arc<dyn Watchdog>,
    pub clock: Arc<dyn Clock>,
    pub configuration: Arc<dyn Configuration>,
    pub publish: Arc<dyn Publish>,
    pub spawn: Arc<dyn Spawn>,
}

/// Time and chance.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Milliseconds on a clock that goes on during suspend.
    fn now(&self) -> Millis;

    /// For schedules, history and logs only; never for a lease.
    fn wall(&self) -> DateTime<Utc>;

    async fn sleep_until(&self, at: Millis);

    /// Uniform in `0..below`; 0 for `below` 0.
    fn random(&self, below: u64) -> u64;
}

/// Starts a future of the core beside the loop; the runtime owns it until it ends.
pub trait Spawn: Send + Sync {
    fn spawn(&self, name: &'static str, work: BoxFuture<'static, ()>);
}

/// The dynamic configuration, applied.
#[async_trait]
pub trait Configuration: Send + Sync {
    /// The settings in force.
    fn settings(&self) -> Arc<Settings>;

    /// The dynamic document in force, as it would be written to `/config`. (HA-008)
    fn dynamic(&self) -> Map<String, Value>;

    /// Puts a new document in force: settings, store timing, PostgreSQL's files. An error keeps the
    /// old one; it is said once per document. (HA-002, HA-019, CFG-038)
    async fn apply(&self, dynamic: &Map<String, Value>) -> Result<(), String>;

    /// Every other member lives with a `ttl` below Patroni's floor, or not: the timing in force follows
    /// at once, also of the store and the watchdog. At first: not. (HA-324)
    fn allow_short_ttl(&self, yes: bool);
}

/// Tells the rest of the agent (REST API, log, demo) what a turn saw and decided.
pub trait Publish: Send + Sync {
    fn publish(&self, seen: Seen);

    /// Does anybody keep decisions and recordings? Without, none are made. (HA-320)
    fn keeps_decisions(&self) -> bool {
        false
    }
}

/// What a turn saw, and what it made of it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The last view and when the store answered it; `None` since a read failed.
    pub view: Option<(Arc<ClusterView>, Millis)>,
    pub postgres: Observation,
    /// When the look at PostgreSQL began; the turn may have taken long since.
    pub observed_at: Millis,
    /// My belief in the lease, if I hold it.
    pub leader_until: Option<Millis>,
    /// The long task that runs, in Patroni's words. (PG-090)
    pub task: Option<&'static str>,
    /// The status line of the turn, in the words operators know.
    pub line: String,
    /// The rules that led to it, in order.
    pub reasons: Vec<Reason>,
    /// True while a demotion is under way: no client should be sent here for writes. (REST-455)
    pub demoting: bool,
    /// When the next turn comes at the latest. (REST-065)
    pub next_turn: Millis,
    /// Shown to peers and operators until the checkpoint after a promotion is done. (PG-065)
    pub checkpoint_pending: bool,
    /// Until when the members let this primary go on without the store. (REST-093)
    pub failsafe_until: Option<Millis>,
    /// The entry for the journal, if [`Publish::keeps_decisions`]. (HA-320)
    pub decision: Option<Decision>,
    /// The watchdog is required and does not work. (REST-100)
    pub watchdog_failed: bool,
    /// As the member record shows it. (REST-099)
    pub scheduled_restart: Option<Value>,
}

/// A rule of docs/spec that fired, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    #[serde(deserialize_with = "crate::ha::record::word")]
    pub rule: Word,
    pub why: String,
}

/// Stops PostgreSQL when the lease ends and nobody prolonged it: the guard. (design section 5)
pub trait Fence: Send + Sync {
    /// PostgreSQL may stay writable until `until` (same clock as [`Clock::now`]); then it is killed,
    /// whatever the agent does. Called after each renewal, and before a promotion.
    fn protect_until(&self, until: Millis);

    /// Nothing to protect: not leader, or pause.
    fn stand_down(&self);

    /// Why it could not kill PostgreSQL in time right now, if so. A node whose fence is broken does
    /// not become leader.
    fn broken(&self) -> Option<String>;
}

/// The hardware watchdog: resets this machine when it is not kept alive. (section 17 of ha-loop.md)
///
/// Every moment is on the clock of [`Clock::now`] and lies within what the store confirmed of the
/// lock: the machine is reset before that, unless it was kept alive again. All calls return at once.
pub trait Watchdog: Send + Sync {
    /// Arms it, if it is not armed: before this server becomes a primary, and at each turn of a
    /// leader. (HA-100, HA-172)
    ///
    /// # Errors
    /// It is required and does not work: this server must not be a primary. (HA-173)
    fn activate(&self, until: Millis) -> Result<(), String>;

    /// The lock is confirmed until then. Nothing happens while it is not armed. Never by time alone.
    /// (HA-172)
    fn keep_alive(&self, until: Millis);

    /// Nothing can be written here any more, or the cluster is paused. Ends also what a former agent
    /// of this node left armed. (HA-174, HA-179)
    fn disable(&self);

    /// It is required, and known not to work: this node takes no part in a race. (HA-091)
    fn unhealthy(&self) -> Option<String>;
}

/// What another member's REST API says about itself. (REST-346)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// False: it says it is a primary.
    pub in_recovery: bool,
    /// The furthest position it has: received or replayed; its own log on a primary.
    pub lsn: Lsn,
    /// Zero when unknown.
    pub timeline: Timeline,
    pub nofailover: bool,
    pub failover_priority: i64,
    pub watchdog_failed: bool,
}

/// The outcome of asking one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Probe {
    Answered(PeerAnswer),
    /// No answer, or one without positions because its PostgreSQL does not run. (REST-080)
    Unreachable(String),
}

/// The other members' REST APIs.
pub trait Peers: Send + Sync {
    /// Asks all of them at the same time; each outcome comes as soon as it is known, all by `by`.
    /// Dropping the stream drops the questions still open. (HA-311)
    fn probe(
        &self,
        members: Vec<(MemberName, String)>,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Probe)>;

    /// Asks all of them whether this primary may go on without the store: POST /failsafe, a second
    /// time where the first has no answer, all by `by`. (HA-156)
    fn failsafe(
        &self,
        members: Vec<(MemberName, String)>,
        call: Call,
        by: Deadline,
    ) -> BoxStream<'static, (MemberName, Vow)>;
}

/// What this member promised a primary without store, against its own wish to lead. (HA-103)
pub trait Promises: Send + Sync {
    /// The promise that binds at `now`.
    fn promised(&self, now: Millis) -> Option<Promise>;

    /// From now on nothing is promised, since this member asks for the key. False: a promise binds,
    /// and it may not ask.
    fn claim(&self, now: Millis) -> bool;

    /// It neither has the key nor asks for it any more.
    fn disclaim(&self);

    /// The promise is void: this member leads, and the store says so. (HA-018)
    fn forget_promise(&self);
}

/// What is in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataDir {
    /// Missing, or nothing of PostgreSQL in it. (PG-004)
    Empty,
    Present,
    /// It cannot be read; why.
    Inaccessible(String),
}

/// What the monitoring query of this moment said. (PG-300 …)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Server {
    /// No postmaster of ours.
    Down,
    /// A postmaster that does not accept connections yet.
    Starting,
    Primary {
        timeline: Timeline,
        /// Flushed.
        lsn: Lsn,
    },
    Standby(Standby),
    /// The postmaster lives, the query failed or took too long: not known. (HA-017, PG-311)
    Silent(String),
}

/// A server in recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// What it is receiving, or else what its control file says; zero when unknown. (PG-312)
    pub timeline: Timeline,
    /// max(received, written); `None` without WAL receiver since start. (PG-309)
    pub received: Option<Lsn>,
    pub replayed: Option<Lsn>,
    /// The WAL receiver is streaming. (PG-310)
    pub streaming: bool,
    /// No stream, but a restore command. (PG-310)
    pub from_archive: bool,
    pub replay_paused: bool,
}

impl Standby {
    /// The position for the race. (PG-309)
    pub fn lsn(&self) -> Lsn {
        self.received.max(self.replayed).unwrap_or_default()
    }
}

/// One replication slot of this server. Temporary ones are not told, nor those that PostgreSQL itself
/// keeps in step with a primary (`failover`). (PG-268)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub active: bool,
    pub restart_lsn: Option<Lsn>,
    /// `None`: a physical one.
    #[serde(default)]
    pub logical: Option<LogicalSlot>,
    /// The log that it needs is gone. (PG-266)
    #[serde(default)]
    pub lost: bool,
}

/// What a logical slot decodes, and how far its reader confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalSlot {
    pub database: String,
    pub plugin: String,
    pub confirmed: Lsn,
}

impl Slot {
    /// The position that is published: restart of a physical one, confirmed of a logical one. (PG-276)
    pub fn position(&self) -> Option<Lsn> {
        match &self.logical {
            Some(logical) => Some(logical.confirmed),
            None => self.restart_lsn,
        }
    }
}

/// What the slots of this server are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlan {
    /// Name to the position that an idle one is advanced to. (PG-261, PG-264)
    pub physical: BTreeMap<String, Option<Lsn>>,
    /// Created where they are missing on a primary; advanced on a standby. (PG-271, PG-273)
    pub logical: BTreeMap<String, WantedLogical>,
    /// Dropped, unless somebody reads from them. (PG-267)
    pub unwanted: Vec<String>,
}

impl SlotPlan {
    pub fn is_empty(&self) -> bool {
        self.physical.is_empty() && self.logical.is_empty() && self.unwanted.is_empty()
    }
}

/// A logical slot as the operator declared it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedLogical {
    pub database: String,
    pub plugin: String,
    /// Only on a standby: as far as the leader's reader confirmed, and no further than is replayed here.
    pub position: Option<Lsn>,
}

/// What REST answers show and no decision reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerDetails {
    /// As PostgreSQL prints it. (REST-005)
    pub postmaster_start_time: String,
    pub server_version: u32,
    pub replayed_timestamp: Option<String>,
    pub latest_end_lsn: Option<Lsn>,
    /// Rows of pg_stat_replication as the status document shows them. (REST-090)
    pub replication: Vec<Value>,
}

/// One look at the local PostgreSQL. Nothing in it is a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub data_dir: DataDir,
    /// A postmaster of ours is alive. A zombie is dead. (PG-450)
    pub alive: bool,
    /// What the agent last did or saw, as the wire shows it. (PG-001)
    pub state: State,
    /// Since when it is in this state.
    pub state_since: Millis,
    pub role: Role,
    pub server: Server,
    /// From the control file; `None` while bootstrapping or unreadable. (PG-006)
    pub system_id: Option<SystemId>,
    pub slots: Vec<Slot>,
    pub pending_restart: BTreeMap<String, PendingChange>,
    pub details: Option<ServerDetails>,
    /// Does pg_rewind work here: wanted, installed, and checksums or wal_log_hints on. (PG-140)
    pub can_rewind: bool,
    /// The last monitoring query said so, or else the role says so. (HA-017)
    pub is_primary: bool,
    /// Who receives this server's log, and whom its commits wait for.
    #[serde(default)]
    pub replication: Replication,
    /// The longest of the last fast stops here, from the signal until no client was left, in
    /// milliseconds. (HA-321)
    #[serde(default)]
    pub fast_stop_ms: Option<u64>,
    /// For so many milliseconds a small write to the data directory has had no end; 0: none waits, or
    /// nobody tries. (HA-314)
    #[serde(default)]
    pub disk_stalls_ms: u64,
}

/// The senders of a primary. (PG-308)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// `synchronous_standby_names` in force.
    pub names: String,
    pub commit: Commit,
    /// Rows of pg_stat_replication.
    pub senders: Vec<Sender>,
}

/// What a commit waits for, by `synchronous_commit`. (HA-097)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Commit {
    Written,
    #[default]
    Flushed,
    Replayed,
}

/// One receiver of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// `application_name`: the member's name, if it is a member.
    pub name: MemberName,
    pub streaming: bool,
    /// `sync`, `quorum`, `potential` or `async`, as the server says it.
    pub sync_state: String,
    pub written: Lsn,
    pub flushed: Lsn,
    pub replayed: Lsn,
}

impl Sender {
    /// The position that counts for a commit.
    pub fn position(&self, commit: Commit) -> Lsn {
        match commit {
            Commit::Written => self.written,
            Commit::Flushed => self.flushed,
            Commit::Replayed => self.replayed,
        }
    }
}

/// What pg_control says about a server that is not running. (PG-007)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    pub state: ControlState,
    pub system_id: Option<SystemId>,
    pub checkpoint: Lsn,
    pub checkpoint_timeline: Timeline,
    pub min_recovery_end: Lsn,
    pub min_recovery_timeline: Timeline,
    /// A `standby.signal` or `recovery.signal` lies in the data directory. (PG-003)
    pub has_standby_signal: bool,
    /// A `backup_label` lies in the data directory. (PG-131)
    pub has_backup_label: bool,
}

/// "Database cluster state" of pg_controldata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
    Unknown,
}

/// Whom to stream from, clone from or rewind to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub name: MemberName,
    /// As in its member record: `postgres://host:port/database`. Empty for a remote one that is only
    /// reached through its archive.
    pub conn_url: String,
    /// It is outside of this cluster: what `standby_cluster` names. (HA-110)
    #[serde(default)]
    pub remote: bool,
}

impl Upstream {
    /// Can it be connected to?
    pub fn has_address(&self) -> bool {
        !self.conn_url.is_empty()
    }
}

/// What has to be done so that PostgreSQL follows an upstream. (PG-220)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowChange {
    Nothing,
    Reload,
    Restart,
}

/// Where a timeline ended, from a history file. (PG-145)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEnd {
    pub timeline: Timeline,
    pub switch_lsn: Lsn,
    pub reason: String,
    /// ISO 8601: the age of the history file, if it is local.
    pub at: Option<String>,
}

/// What a possible rewind source is. (PG-145)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceHistory {
    /// Or it did not say: then it is no rewind source either.
    pub in_recovery: bool,
    pub timeline: Timeline,
    pub ends: Vec<TimelineEnd>,
    /// The timeline of its last checkpoint: before it is the current one nobody may rewind to it.
    /// `None`: not asked, or it did not say. (PG-154)
    #[serde(default)]
    pub checkpoint_timeline: Option<Timeline>,
    /// Where the oldest log begins that it still has; `None`: it did not say. (HA-316)
    #[serde(default)]
    pub oldest: Option<Lsn>,
}

/// How far the local data directory is. (PG-144)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEnd {
    pub timeline: Timeline,
    /// Replayed position of a standby; the latest checkpoint of a stopped primary.
    pub lsn: Lsn,
    pub was_primary: bool,
    /// Where the latest checkpoint record ends, if that could be read. (PG-152)
    pub checkpoint_end: Option<Lsn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    Fast,
    Immediate,
}

/// How to stop. (PG-041)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub mode: StopMode,
    /// A CHECKPOINT first, so that the shutdown itself is short. (PG-042)
    pub checkpoint: bool,
    /// When the stop turns immediate, then kills. `None`: as long as it takes.
    pub immediate_at: Option<Millis>,
}

/// How a stop goes on, in this order; the last one is `Stopped` or `Failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopStep {
    /// No client backend is left: nothing can be acknowledged any more. (PG-043)
    SafePoint,
    /// The shutdown checkpoint is written while the postmaster still lives; `previous` is the
    /// position to announce. (PG-044, PG-045)
    ShutDown {
        checkpoint: Lsn,
        previous: Lsn,
    },
    Stopped,
    Failed(String),
}

/// How a data directory is copied. (PG-120, PG-121)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyBy {
    ConfiguredMethods,
    /// Whatever is configured: an operator wants the leader's own files.
    BaseBackup,
}

/// How to start. (PG-020)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// Without standby configuration. (INV-19)
    AsPrimary,
    /// As a standby of this upstream, or of nobody.
    AsStandby(Option<Upstream>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Started {
    Ready,
    /// Alive, and not accepting connections by the deadline.
    StillStarting,
}

/// Why an effect on PostgreSQL did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PgError {
    /// [`Postgres::cancel`] was called; whatever child process ran is gone.
    #[error("cancelled")]
    Cancelled,
    /// Not done by the deadline; the state is as the next observation says.
    #[error("{what} was not done within {waited_ms} ms")]
    TimedOut {
        #[serde(deserialize_with = "crate::ha::record::word")]
        what: Word,
        waited_ms: u64,
    },
    /// It ran and failed; the last lines of what it printed.
    #[error("{what} failed: {why}")]
    Failed {
        #[serde(deserialize_with = "crate::ha::record::word")]
        what: Word,
        why: String,
    },
}

/// The local PostgreSQL: one look at it, and the effects on it.
///
/// Short effects may be called by a turn. Long ones are called only by the one running task; they
/// keep [`Observation::state`] true while they run. Dropping the future of a long effect kills the
/// child process it waits for, but never the postmaster.
#[async_trait]
pub trait Postgres: Send + Sync {
    /// Looks: process, data directory, one monitoring query. What does not answer by `by` is told
    /// as [`Server::Silent`]. Joining a server that already runs happens here. (PG-014)
    async fn observe(&self, by: Deadline) -> Observation;

    /// Reads pg_control now; `None` if it cannot be read.
    async fn control(&self, by: Deadline) -> Option<ControlData>;

    /// What the agent decided this server is; shown on the wire and to callbacks.
    fn set_role(&self, role: Role);

    fn set_state(&self, state: State);

    /// Runs the callback of a changed role, if the last one told another; for a change that no start,
    /// reload or promotion goes with. (HA-122, PG-067)
    fn tell_role_change(&self);

    /// What would have to be done to follow `upstream`, as of this turn's look at files and settings if it
    /// was just made. Changes nothing; `Nothing` if the disk does not answer by `by`.
    async fn follow_change(&self, upstream: Option<&Upstream>, by: Deadline) -> FollowChange;

    /// Writes the recovery parameters for `upstream` and reloads. (PG-066)
    async fn follow_by_reload(
        &self,
        upstream: Option<&Upstream>,
        by: Deadline,
    ) -> Result<(), PgError>;

    /// Puts `synchronous_standby_names` in force, kept through every reload from now on; `None`: the
    /// user's own value again. `Ok`: every sender works by it, and on a primary the log was moved on,
    /// so that standbys confirm soon. (PG-280, PG-282)
    ///
    /// # Errors
    /// Not in force by `by`, or not known to be; it may be later. Ask for the same value again.
    async fn set_sync_names(&self, names: Option<&str>, by: Deadline) -> Result<(), PgError>;

    /// Creates the missing slots, logical ones on a primary only; advances an inactive one that is
    /// behind the position given for it; drops the unwanted ones, if inactive. One that fails does not
    /// keep the others from being handled; the first error is told. (PG-261 … PG-273)
    async fn set_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError>;

    /// Issues a CHECKPOINT and waits for it. (PG-065)
    async fn checkpoint(&self, by: Deadline) -> Result<(), PgError>;

    /// How local timelines ended: the history file of the current timeline. (PG-314)
    async fn local_history(&self, timeline: Timeline, by: Deadline) -> Option<Vec<TimelineEnd>>;

    /// (PG-144) `None`: cannot be said in this state.
    async fn local_end(&self, by: Deadline) -> Option<LocalEnd>;

    /// Asks a possible rewind source for its timeline and history. (PG-145)
    async fn source_history(
        &self,
        source: &Upstream,
        by: Deadline,
    ) -> Result<SourceHistory, PgError>;

    /// Does this server archive its log: `archive_mode` and a command? (HA-116)
    async fn archives(&self, by: Deadline) -> bool;

    /// Archives the segment with the shutdown checkpoint of a stopped server, which no archiver sees
    /// any more: who follows by the archive needs it to go on. (HA-116)
    async fn archive_shutdown_checkpoint(&self, by: Deadline) -> Result<(), PgError>;

    /// Ends the long effect that runs now, and every later one until [`Postgres::clear_cancel`].
    /// (PG-091, PG-094)
    fn cancel(&self);

    fn clear_cancel(&self);

    // Long effects.

    /// Makes the logical slots that this standby lacks from those of `source`: reads them there, stops
    /// the server, writes them, and starts it as the standby it was. Nothing is stopped while they
    /// cannot be read. (PG-272)
    async fn copy_logical_slots(&self, source: &Upstream, names: &[String]) -> Result<(), PgError>;

    /// Creates a new data directory by the configured method, and starts it. (PG-100 … PG-106)
    async fn bootstrap(&self) -> Result<(), PgError>;

    /// Users and script of a new cluster, once it is primary. (PG-108)
    async fn post_bootstrap(&self) -> Result<(), PgError>;

    /// Moves a failed bootstrap out of the way. (PG-113)
    async fn set_data_dir_aside(&self) -> Result<(), PgError>;

    /// Makes the data directory a copy of `source`; removes what a failed attempt left. Does not
    /// start it. (PG-120 … PG-128)
    async fn clone_from(&self, source: &Upstream, by: CopyBy) -> Result<(), PgError>;

    /// Starts it; `by` is when waiting ends, not when the server is killed. (PG-020)
    async fn start(&self, how: Start, by: Deadline) -> Result<Started, PgError>;

    /// Stops it. The signal is sent even if nobody reads the stream. (PG-040 …)
    fn stop(&self, how: Stop) -> BoxStream<'static, StopStep>;

    /// The user's script; an error forbids the promotion. (PG-081)
    async fn pre_promote(&self) -> Result<(), PgError>;

    /// Requests promotion and waits until the server is out of recovery. (PG-063)
    async fn promote(&self, by: Deadline) -> Result<(), PgError>;

    /// Crash recovery without clients, once. (PG-132)
    async fn recover_in_single_user_mode(&self) -> Result<(), PgError>;

    /// Rewinds the stopped data directory to `source`. (PG-153 …)
    async fn rewind(&self, source: &Upstream) -> Result<(), PgError>;

    /// Removes the data directory so that it can be cloned again. (PG-350)
    async fn remove_data_dir(&self) -> Result<(), PgError>;
}
