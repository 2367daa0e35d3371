//! The long work: one task at a time, beside the turns. (section 16 of docs/spec/ha-loop.md)
//!
//! A turn asks for a task and never waits for it. A task works through the ports like a turn does
//! and hands a report to the next turn; only the turn writes [`crate::ha::memory::Memory`].

use crate::ha::breakage::{Breakage, broken};
use crate::ha::lease::{Lease, Reserve, worth_ms};
use crate::ha::ports::{
    ControlState, CopyBy, PgError, Ports, Postgres, Start, Started, Stop, StopMode, StopStep,
    Upstream,
};
use crate::ha::settings::SynchronousMode;
use crate::ha::{member, restart, standby, sync};
use futures::stream::StreamExt;
use hathi_dcs::{
    ClusterView, DcsError, Deadline, Expect, Freshness, Lsn, Millis, Role, State, Status, SystemId,
    Timing,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What kind of work it is, for the decisions while it runs. (HA-160 … HA-164)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Bootstrap,
    Clone,
    StartAsPrimary,
    Follow,
    Promote,
    Demote,
    Rewind,
    SingleUser,
    CopySlots,
    Restart { primary: bool },
}

impl Kind {
    /// Does a primary run while it does, or at its end?
    pub fn concerns_a_primary(self) -> bool {
        match self {
            Self::Bootstrap
            | Self::StartAsPrimary
            | Self::Promote
            | Self::Demote
            | Self::Restart { primary: true } => true,
            Self::Clone
            | Self::Follow
            | Self::Rewind
            | Self::SingleUser
            | Self::CopySlots
            | Self::Restart { primary: false } => false,
        }
    }
}

/// Why a primary is stopped, and what that allows. (section 10 of ha-loop.md)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Demotion {
    /// A switchover: nothing is lost, the key goes to the next one.
    Graceful,
    /// It must not go on (a start that takes too long); the key is given up.
    Immediate,
    /// The key is somebody else's already.
    LostLock,
    /// The cluster is to follow another one from now on. (HA-116)
    Cluster,
    /// The store does not answer and the lease ends at this moment, if it has not ended.
    Offline { until: Option<Millis> },
}

/// One piece of long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Creates the cluster. (HA-030, HA-031)
    Bootstrap,
    /// Creates a standby cluster: a copy of the remote primary. (HA-030, PG-115)
    BootstrapStandbyLeader {
        remote: Upstream,
    },
    /// Copies the data directory and starts following. (HA-030)
    Clone {
        source: Upstream,
        follow: Upstream,
    },
    /// Throws the data directory away and copies it anew. (PG-160, PG-161, HA-055)
    Reinitialize {
        source: Upstream,
        follow: Upstream,
        why: Renewal,
    },
    /// Restarts a crashed primary in place. (HA-043)
    StartAsPrimary {
        by: Millis,
    },
    /// Starts, restarts or turns the server into a standby of this upstream, or of nobody. (HA-049)
    Follow {
        upstream: Option<Upstream>,
        restart: bool,
    },
    /// (HA-101)
    Promote,
    Demote(Demotion),
    /// (HA-047)
    Rewind {
        source: Upstream,
        stop_first: bool,
    },
    /// (HA-044)
    SingleUser,
    /// Logical slots that only the leader has; the server stops and starts for it. (HA-016, PG-272)
    CopySlots {
        source: Upstream,
        names: Vec<String>,
    },
    /// An operator's restart; the start is waited for so long. (PG-060)
    Restart {
        how: Start,
        timeout_ms: u64,
    },
}

/// Why a data directory is copied anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renewal {
    Diverged,
    RewindFailed,
    /// Nobody has the log any more that it needs. (HA-316)
    LogIsGone,
    /// By an operator. `from_leader`: only from it, and by a base backup. (HA-055)
    Asked {
        from_leader: bool,
    },
}

impl Task {
    /// The name in logs and answers. (PG-090)
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::BootstrapStandbyLeader { .. } => "bootstrap_standby_leader",
            Self::Clone { .. } => "bootstrap from leader",
            Self::Reinitialize { why: Renewal::Asked { .. }, .. } => "reinitialize",
            Self::Reinitialize { why: Renewal::Diverged | Renewal::RewindFailed, .. } => {
                "reinitializing due to diverged timelines"
            }
            Self::Reinitialize { why: Renewal::LogIsGone, .. } => {
                "reinitializing because the log is gone"
            }
            Self::StartAsPrimary { .. } => "starting primary after failure",
            Self::Follow { restart: true, .. } => "changing primary_conninfo and restarting",
            Self::Follow { restart: false, .. } => "restarting after failure",
            Self::Promote => "promote",
            Self::Demote(Demotion::Graceful) => "switchover: demote",
            Self::Demote(Demotion::Cluster) => "demoting to a standby cluster",
            Self::Demote(_) => "demote",
            Self::Rewind { .. } => "running pg_rewind",
            Self::CopySlots { .. } => "copy_logical_slots",
            Self::SingleUser => "doing crash recovery in a single user mode",
            Self::Restart { .. } => "restart",
        }
    }

    /// An operator waits for it: an earlier failure of its kind is no reason to wait.
    pub fn is_ordered(&self) -> bool {
        match self {
            Self::Restart { .. } | Self::Reinitialize { why: Renewal::Asked { .. }, .. } => true,
            Self::Reinitialize {
                why: Renewal::Diverged | Renewal::RewindFailed | Renewal::LogIsGone,
                ..
            }
            | Self::Bootstrap
            | Self::BootstrapStandbyLeader { .. }
            | Self::Clone { .. }
            | Self::StartAsPrimary { .. }
            | Self::Follow { .. }
            | Self::Promote
            | Self::Demote(_)
            | Self::Rewind { .. }
            | Self::CopySlots { .. }
            | Self::SingleUser => false,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Bootstrap | Self::BootstrapStandbyLeader { .. } => Kind::Bootstrap,
            Self::Clone { .. } | Self::Reinitialize { .. } => Kind::Clone,
            Self::StartAsPrimary { .. } => Kind::StartAsPrimary,
            Self::Follow { .. } => Kind::Follow,
            Self::Promote => Kind::Promote,
            Self::Demote(_) => Kind::Demote,
            Self::Rewind { .. } => Kind::Rewind,
            Self::SingleUser => Kind::SingleUser,
            Self::CopySlots { .. } => Kind::CopySlots,
            Self::Restart { how, .. } => Kind::Restart { primary: *how == Start::AsPrimary },
        }
    }
}

/// What a task tells the next turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub kind: Kind,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The server lives, and did not accept connections in the time it was given.
    StillStarting,
    /// It did not work; the turn looks again and decides.
    Failed(String),
    /// The user's script forbade the promotion. (HA-100, step 2)
    PromotionRefused(String),
    /// The agent cannot go on. (HA-032)
    Fatal(String),
}

/// What a task needs besides itself.
#[derive(Clone)]
pub struct Context {
    pub ports: Ports,
    pub lease: Arc<Lease>,
    /// The cluster as the turn that ordered the task saw it.
    pub view: Arc<ClusterView>,
}

/// Runs one task to its end.
pub async fn run(task: Task, context: Context) -> Report {
    let kind = task.kind();
    let outcome = match task {
        Task::Bootstrap => bootstrap(&context).await,
        Task::BootstrapStandbyLeader { remote } => {
            bootstrap_standby_leader(&context, &remote).await
        }
        Task::Clone { source, follow } => {
            clone(&context, &source, &follow, CopyBy::ConfiguredMethods).await
        }
        Task::Reinitialize { source, follow, why } => {
            reinitialize(&context, &source, &follow, why).await
        }
        Task::StartAsPrimary { by } => {
            let ports = &context.ports;
            // The agent may have been frozen since the turn that ordered this. (INV-19)
            if context.lease.until(ports.clock.now()).is_none() {
                Outcome::Failed("lost the lease before the start".into())
            } else {
                ports.postgres.set_role(Role::Primary);
                start(&context, Start::AsPrimary, Deadline(by)).await
            }
        }
        Task::Follow { upstream, restart } => follow(&context, upstream, restart).await,
        Task::Promote => promote(&context).await,
        Task::Demote(how) => demote(&context, how).await,
        Task::Rewind { source, stop_first } => rewind(&context, &source, stop_first).await,
        Task::SingleUser => done(context.ports.postgres.recover_in_single_user_mode().await),
        Task::CopySlots { source, names } => copy_slots(&context, &source, &names).await,
        Task::Restart { how, timeout_ms } => restart::run(&context, how, timeout_ms).await,
    };
    Report { kind, outcome }
}

/// HA-016: a standby restarts for it, so no commit may wait for it meanwhile. (HA-197)
async fn copy_slots(context: &Context, source: &Upstream, names: &[String]) -> Outcome {
    member::leave_duty(&context.ports).await;
    done(context.ports.postgres.copy_logical_slots(source, names).await)
}

fn done(result: Result<(), PgError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// How long an operation on the store may take when nothing else limits it.
fn store_deadline(context: &Context) -> Deadline {
    let timing = context.ports.configuration.settings().timing;
    Deadline(context.ports.clock.now().plus(timing.retry_timeout_ms()))
}

/// How long waiting for a start or a promotion is worth; afterwards the turns go on looking.
fn start_deadline(context: &Context) -> Deadline {
    Deadline(context.ports.clock.now().plus(60_000))
}

/// HA-030, HA-031: the race for `initialize` is won already.
async fn bootstrap(context: &Context) -> Outcome {
    let ports = &context.ports;
    if let Err(error) = ports.postgres.bootstrap().await {
        return cancel_bootstrap(context, &error.to_string(), None).await;
    }
    ports.postgres.set_role(Role::Primary);
    if let Err(error) = ports.postgres.post_bootstrap().await {
        return cancel_bootstrap(context, &error.to_string(), None).await;
    }
    if let Some(names) = sync::pass::first_names(&ports.configuration.settings()) {
        let by = Deadline(ports.clock.now().plus(5_000));
        if let Err(error) = ports.postgres.set_sync_names(Some(names), by).await {
            return cancel_bootstrap(context, &error.to_string(), None).await;
        }
    }
    if let Some(why) = ports.fence.broken() {
        return cancel_bootstrap(context, &format!("the guard does not work: {why}"), None).await;
    }
    // The key is taken in a moment, and nobody else can before. (PG-112)
    let until = ports.clock.now().plus(worth_ms(ports.configuration.settings().timing));
    if let Err(why) = ports.watchdog.activate(until) {
        return cancel_bootstrap(context, &format!("the watchdog does not work: {why}"), None)
            .await;
    }
    found_the_cluster(context).await
}

/// HA-030: the first node of a standby cluster. No users and no scripts: they come with the copy.
async fn bootstrap_standby_leader(context: &Context, remote: &Upstream) -> Outcome {
    let ports = &context.ports;
    ports.postgres.set_state(State::CreatingReplica);
    member::publish_now(ports).await;
    if let Err(error) =
        Postgres::clone_from(&*ports.postgres, remote, CopyBy::ConfiguredMethods).await
    {
        return cancel_bootstrap(context, &error.to_string(), None).await;
    }
    ports.postgres.set_role(Role::StandbyLeader);
    let start = Start::AsStandby(Some(remote.clone()));
    if let Err(error) = ports.postgres.start(start, start_deadline(context)).await {
        return cancel_bootstrap(context, &error.to_string(), None).await;
    }
    // Nothing here can be written to: the lease has nothing to fence. (HA-110)
    context.lease.read_only(ports, true);
    found_the_cluster(context).await
}

/// Writes what makes it a cluster, the lock last.
async fn found_the_cluster(context: &Context) -> Outcome {
    let ports = &context.ports;
    let seen = ports.postgres.observe(Deadline(ports.clock.now().plus(2_000))).await;
    let Some(system_id) = seen.system_id else {
        return cancel_bootstrap(context, "the new cluster has no system identifier", None).await;
    };
    let finished: Result<(), DcsError> = async {
        let by = store_deadline(context);
        // Mine still? Somebody may have taken me for dead. (HA-308, INV-22)
        let mine = context.view.initialize_version.filter(|_| context.view.is_bootstrapping());
        let expect = mine.map_or(Expect::Anything, Expect::Version);
        ports.dcs.write_initialize(system_id.as_str(), expect, by).await?;
        ports.dcs.write_config(&ports.configuration.dynamic(), Expect::Anything, by).await?;
        context.lease.take(ports, by).await
    }
    .await;
    match finished {
        Ok(()) => Outcome::Done,
        // It belongs to somebody else now: only what is here is cleared away.
        Err(DcsError::Conflict { key }) if key.ends_with("initialize") => {
            let why = "another member was faster";
            clear_bootstrap(context).await;
            Outcome::Fatal(format!("failed to bootstrap the cluster: {why}"))
        }
        Err(error) => cancel_bootstrap(context, &error.to_string(), Some(&system_id)).await,
    }
}

/// HA-032: leaves the field to others. The key goes first only after PostgreSQL is gone.
async fn cancel_bootstrap(context: &Context, why: &str, made: Option<&SystemId>) -> Outcome {
    clear_bootstrap(context).await;
    if initialize_is_mine(context, made).await {
        let _ = context.ports.dcs.delete_initialize(store_deadline(context)).await;
    }
    Outcome::Fatal(format!("failed to bootstrap the cluster: {why}"))
}

/// What somebody else put there since is not ours to delete. (HA-308)
async fn initialize_is_mine(context: &Context, made: Option<&SystemId>) -> bool {
    let read = context.ports.dcs.load(Freshness::Latest, store_deadline(context)).await;
    let Ok(view) = read else { return false };
    match view.initialize.as_deref() {
        None => false,
        Some("") => view.initialize_version == context.view.initialize_version,
        Some(text) => made.is_some_and(|made| made.as_str() == text),
    }
}

async fn clear_bootstrap(context: &Context) {
    let ports = &context.ports;
    let retry = ports.configuration.settings().timing.retry_timeout_ms();
    let immediate_at = Some(ports.clock.now().plus(retry));
    stopped(ports, Stop { mode: StopMode::Immediate, checkpoint: false, immediate_at }).await;
    // Best effort on the way out: each failure is visible in the store or on the disk.
    let _ = ports.postgres.set_data_dir_aside().await;
}

async fn clone(context: &Context, source: &Upstream, upstream: &Upstream, by: CopyBy) -> Outcome {
    let ports = &context.ports;
    ports.postgres.set_state(State::CreatingReplica);
    ports.postgres.set_role(Role::Replica);
    member::publish_now(ports).await;
    if let Err(error) = Postgres::clone_from(&*ports.postgres, source, by).await {
        ports.postgres.set_state(State::Stopped);
        return Outcome::Failed(error.to_string());
    }
    start(context, Start::AsStandby(Some(upstream.clone())), start_deadline(context)).await
}

async fn reinitialize(
    context: &Context,
    source: &Upstream,
    follow: &Upstream,
    why: Renewal,
) -> Outcome {
    let ports = &context.ports;
    let retry = ports.configuration.settings().timing.retry_timeout_ms();
    let immediate_at = Some(ports.clock.now().plus(retry));
    let stop = Stop { mode: StopMode::Immediate, checkpoint: false, immediate_at };
    if let Some(why) = stopped(ports, stop).await {
        return Outcome::Failed(why);
    }
    let by = match why {
        // The methods may want what is there. (PG-125)
        Renewal::Asked { from_leader: false } => CopyBy::ConfiguredMethods,
        Renewal::Asked { from_leader: true } => CopyBy::BaseBackup,
        Renewal::Diverged | Renewal::RewindFailed | Renewal::LogIsGone => {
            if let Err(error) = ports.postgres.remove_data_dir().await {
                return Outcome::Failed(error.to_string());
            }
            CopyBy::ConfiguredMethods
        }
    };
    clone(context, source, follow, by).await
}

async fn start(context: &Context, how: Start, by: Deadline) -> Outcome {
    match how {
        Start::AsPrimary => {}
        Start::AsStandby(_) => context.ports.watchdog.disable(), // HA-174
    }
    match context.ports.postgres.start(how, by).await {
        Ok(Started::Ready | Started::StillStarting) => Outcome::Done,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

async fn follow(context: &Context, upstream: Option<Upstream>, restart: bool) -> Outcome {
    let ports = &context.ports;
    if restart {
        member::leave_duty(ports).await; // HA-197
        ports.postgres.set_state(State::Restarting);
        let how = Stop { mode: StopMode::Fast, checkpoint: true, immediate_at: None };
        if let Some(why) = stopped(ports, how).await {
            ports.postgres.set_state(State::RestartFailed);
            return Outcome::Failed(why);
        }
    }
    // Who follows the remote primary with the lock is the standby leader. (HA-110)
    let leads = upstream.as_ref().is_some_and(|upstream| upstream.remote)
        && context.lease.until(ports.clock.now()).is_some();
    ports.postgres.set_role(if leads { Role::StandbyLeader } else { Role::Replica });
    start(context, Start::AsStandby(upstream), start_deadline(context)).await
}

/// HA-101. The lock is mine, and the fence is armed by its renewal.
async fn promote(context: &Context) -> Outcome {
    let ports = &context.ports;
    if let Err(error) = ports.postgres.pre_promote().await {
        return Outcome::PromotionRefused(error.to_string());
    }
    // The script may have taken longer than the lease. (HA-162)
    if context.lease.until(ports.clock.now()).is_none() && !broken(Breakage::PromoteWithoutLock) {
        return Outcome::Failed("lost the lease before the promotion".into());
    }
    // Nor may the cluster have been told to follow another one again. (HA-113)
    let standby = ports.configuration.settings().standby_cluster.is_some();
    if standby && !broken(Breakage::StandbyClusterPromotes) {
        return Outcome::Failed("this is a standby cluster now".into());
    }
    let by = Deadline(
        ports.clock.now().plus(ports.configuration.settings().timing.loop_wait_ms().max(10_000)),
    );
    done(ports.postgres.promote(by).await)
}

/// The watchdog is not needed any more as soon as nothing can be written here; a stop that fails
/// leaves it as it is. (HA-104, HA-140, HA-174)
pub fn unwatch(ports: &Ports, step: &StopStep) {
    match step {
        StopStep::SafePoint | StopStep::ShutDown { .. } | StopStep::Stopped => {
            ports.watchdog.disable();
        }
        StopStep::Failed(_) => {}
    }
}

/// When the planned stop of a primary turns immediate: only a synchronous cluster has a limit, since
/// only there nothing is lost by it. (HA-106, PG-047)
pub fn stop_limit(ports: &Ports) -> Option<Millis> {
    let settings = ports.configuration.settings();
    let limited = settings.synchronous.mode != SynchronousMode::Off;
    let limit = u64::from(settings.primary_stop_timeout) * 1000;
    (limited && limit > 0).then(|| ports.clock.now().plus(limit))
}

/// Stops PostgreSQL; `None` when it is gone, else why it is not.
pub async fn stopped(ports: &Ports, how: Stop) -> Option<String> {
    let mut steps = ports.postgres.stop(how);
    if broken(Breakage::WatchdogOffTooEarly) {
        ports.watchdog.disable();
    }
    while let Some(step) = steps.next().await {
        unwatch(ports, &step);
        match step {
            StopStep::SafePoint | StopStep::ShutDown { .. } => {}
            StopStep::Stopped => return None,
            StopStep::Failed(why) => return Some(why),
        }
    }
    Some("the stop was given up".into())
}

async fn demote(context: &Context, how: Demotion) -> Outcome {
    let ports = &context.ports;
    match how {
        Demotion::Graceful => {
            let limit = stop_limit(ports);
            let handed_over = stop_and_release(context, true, limit).await;
            ports.postgres.set_role(Role::Demoted);
            match handed_over {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed(why),
            }
        }
        Demotion::Immediate => {
            let failed = stopped(ports, immediate()).await;
            ports.postgres.set_role(Role::Demoted);
            match failed {
                // The key stays: PostgreSQL may still be writable. It runs out. (INV-23)
                Some(why) => Outcome::Failed(why),
                None => {
                    ports.fence.stand_down();
                    released(context, None).await
                }
            }
        }
        Demotion::LostLock => {
            let failed = stopped(ports, immediate()).await;
            ports.postgres.set_role(Role::Demoted);
            if failed.is_none() {
                ports.fence.stand_down();
            }
            failed.map_or(Outcome::Done, Outcome::Failed)
        }
        Demotion::Cluster => standby::demote_cluster(context).await,
        Demotion::Offline { until } => {
            let until = until.unwrap_or_else(|| ports.clock.now());
            let failed = stopped(ports, within(ports.configuration.settings().timing, until)).await;
            context.lease.forget();
            ports.postgres.set_role(Role::Demoted);
            if let Some(why) = failed {
                return Outcome::Failed(why);
            }
            // What starts now cannot write; the guard would kill it when the lease ends.
            ports.fence.stand_down();
            // Read-only for as long as the store is away. (section 10, "offline")
            ports.postgres.set_role(Role::Replica);
            start(context, Start::AsStandby(None), start_deadline(context)).await
        }
    }
}

/// Fast, and without mercy when the lease is about to end. (HA-153, HA-304)
pub fn within(timing: Timing, until: Millis) -> Stop {
    let immediate_at = Some(until.minus(Reserve::of(timing).immediate));
    Stop { mode: StopMode::Fast, checkpoint: false, immediate_at }
}

pub fn immediate() -> Stop {
    Stop { mode: StopMode::Immediate, checkpoint: false, immediate_at: None }
}

async fn released(context: &Context, status: Option<&Status>) -> Outcome {
    match context.lease.release(&context.ports, status, store_deadline(context)).await {
        // Not mine any more is what was wanted.
        Ok(()) | Err(DcsError::NotOwner { .. }) => Outcome::Done,
        Err(error) => Outcome::Failed(format!("the leader key could not be given up: {error}")),
    }
}

/// Stops fast and gives the key up as soon as nothing can be written here any more: at the shutdown
/// checkpoint if somebody already has it, else when the postmaster is gone. (HA-105)
pub async fn stop_and_release(
    context: &Context,
    checkpoint: bool,
    immediate_at: Option<Millis>,
) -> Result<(), String> {
    let ports = &context.ports;
    if broken(Breakage::ReleaseBeforeStopped) {
        let _ = released(context, None).await;
    }
    let how = Stop { mode: StopMode::Fast, checkpoint, immediate_at };
    let mut steps = ports.postgres.stop(how);
    let mut announced: Option<Lsn> = None;
    let mut gave_up_early = false;
    if broken(Breakage::WatchdogOffTooEarly) {
        ports.watchdog.disable();
    }
    while let Some(step) = steps.next().await {
        unwatch(ports, &step);
        match step {
            StopStep::SafePoint => {}
            StopStep::ShutDown { checkpoint, previous } => {
                announced = Some(previous);
                if crate::ha::manual::somebody_has(ports, &context.view, checkpoint).await {
                    gave_up_early = true;
                    ports.postgres.set_role(Role::Demoted);
                    give_up(context, Some(previous)).await?;
                }
            }
            StopStep::Stopped => {
                if gave_up_early {
                    return Ok(());
                }
                let at = match announced {
                    Some(lsn) => Some(lsn),
                    None => {
                        let by = Deadline(ports.clock.now().plus(1_000));
                        // Only a primary's shutdown says how far the cluster is. (INV-29)
                        let control = ports.postgres.control(by).await;
                        control
                            .filter(|control| control.state == ControlState::ShutDown)
                            .map(|control| control.checkpoint)
                    }
                };
                ports.postgres.set_role(Role::Demoted);
                return give_up(context, at).await;
            }
            // Stop failed: the key stays until it runs out, and the guard stays armed. (HA-140)
            StopStep::Failed(why) => return Err(why),
        }
    }
    Err("the stop was given up".into())
}

async fn give_up(context: &Context, optime: Option<Lsn>) -> Result<(), String> {
    let status = optime.map(|optime| Status { optime, ..context.view.status.clone() });
    match released(context, status.as_ref()).await {
        Outcome::Done => Ok(()),
        Outcome::StillStarting => Ok(()),
        Outcome::Failed(why) | Outcome::Fatal(why) | Outcome::PromotionRefused(why) => Err(why),
    }
}

async fn rewind(context: &Context, source: &Upstream, stop_first: bool) -> Outcome {
    let ports = &context.ports;
    if stop_first {
        let how = Stop { mode: StopMode::Fast, checkpoint: false, immediate_at: None };
        if let Some(why) = stopped(ports, how).await {
            return Outcome::Failed(why);
        }
    }
    if let Err(error) = ports.postgres.rewind(source).await {
        return Outcome::Failed(error.to_string());
    }
    let leads = source.remote && context.lease.until(ports.clock.now()).is_some();
    ports.postgres.set_role(if leads { Role::StandbyLeader } else { Role::Replica });
    match start(context, Start::AsStandby(Some(source.clone())), start_deadline(context)).await {
        // The rewind itself worked; the next turn sees a server that does not run and starts it.
        Outcome::Failed(_) | Outcome::StillStarting | Outcome::Done => Outcome::Done,
        other @ (Outcome::PromotionRefused(_) | Outcome::Fatal(_)) => other,
    }
}
