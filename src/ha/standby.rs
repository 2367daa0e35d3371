//! The cluster follows another one: its leader streams from the remote primary, is never promoted,
//! and the others cascade behind it. (section 15 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::follower::{self, Place};
use crate::ha::history;
use crate::ha::look;
use crate::ha::memory::Rewind;
use crate::ha::ports::{FollowChange, Ports, Server, Stop, StopMode, StopStep, Upstream};
use crate::ha::settings::Settings;
use crate::ha::task::{Context, Demotion, Outcome, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use hathi_dcs::{ClusterView, DcsError, Deadline, Expect, Lsn, MemberName, Role, Status, Timeline};

/// The timeline a candidate must be on; zero: any. What `/history` holds in a standby cluster is of
/// its former life as a primary one. (HA-112, HA-117)
pub fn demanded_timeline(settings: &Settings, view: &ClusterView) -> Timeline {
    if settings.check_timeline && settings.standby_cluster.is_none() {
        view.history.cluster_timeline()
    } else {
        Timeline(0)
    }
}

/// Does the leader of this cluster follow another one?
pub fn is_in_force(turn: &Turn<'_>) -> bool {
    turn.settings.standby_cluster.is_some() && !broken(Breakage::StandbyClusterPromotes)
}

/// Before anything is promoted or started as a primary: the fence is armed again for a lease that
/// had nothing to fence. `false`: the lock could not be confirmed. (HA-113)
pub async fn arm(turn: &mut Turn<'_>) -> bool {
    if !std::mem::take(&mut turn.memory.standby_leader) {
        return true;
    }
    turn.because("HA-113", "the cluster does not follow another one any more");
    turn.lease.read_only(turn.ports, false);
    let confirmed = turn.confirm_lock().await;
    // Asked again by the next turn.
    turn.memory.standby_leader = !confirmed;
    confirmed
}

/// The lock is mine: follows the remote primary, whatever PostgreSQL is now. (HA-110, HA-116)
pub async fn lead(turn: &mut Turn<'_>) -> Decided {
    let me = turn.me().clone();
    match &turn.pg.server {
        Server::Primary { .. } => {
            if let Some(decided) = look::first(turn).await {
                return decided;
            }
            turn.because("HA-116", "a primary in a standby cluster");
            turn.lease.read_only(turn.ports, false);
            turn.memory.standby_leader = false;
            turn.memory.rewind.ask();
            let line = "cannot be a real primary in standby cluster";
            Decided::task(line, Task::Demote(Demotion::Cluster))
        }
        Server::Standby(_) => {
            turn.lease.read_only(turn.ports, true);
            turn.ports.watchdog.disable();
            turn.memory.standby_leader = true;
            forget_the_former_life(turn).await;
            let line = if turn.pg.role == Role::StandbyLeader {
                format!("no action. I am ({me}), the standby leader with the lock")
            } else {
                "promoted self to a standby leader by acquiring session lock".to_owned()
            };
            let place = place(turn, Role::StandbyLeader, line);
            follower::take(turn, place).await
        }
        Server::Silent(why) => {
            let why = why.clone();
            turn.because("HA-017", format!("PostgreSQL does not answer: {why}"));
            Decided::line(format!("postgres communication error; I am ({me}), the standby leader"))
        }
        Server::Down | Server::Starting => {
            Decided::line(format!("I am ({me}), the standby leader, and PostgreSQL is starting"))
        }
    }
}

/// What `/history` says of the time in which this cluster was a primary one has been rewound away. Left
/// there it would keep everybody from leading after the next promotion: their timeline would be behind
/// it. Only while we stream, so that we are on the remote primary's timeline. (HA-117)
///
/// `/sync` likewise: what was confirmed under it has been handed over, or rewound away; left there it
/// would say whom the next promotion may choose. (HA-110; the simulator, seeds 4725, 9233)
async fn forget_the_former_life(turn: &mut Turn<'_>) {
    let Server::Standby(standby) = &turn.pg.server else { return };
    let timeline = standby.timeline;
    let record = turn.view.sync.clone().filter(|read| read.value.leader.is_some());
    let outlived = turn.view.history.cluster_timeline() > timeline;
    let follows = standby.streaming
        && !turn.settings.pause
        && timeline != Timeline(0)
        && (record.is_some() || outlived)
        && streams_from_the_remote(turn).await;
    if !follows {
        return;
    }
    if let Some(read) = record {
        let by = turn.store_deadline();
        match turn.ports.dcs.delete_sync(Expect::Version(read.version), by).await {
            Ok(()) => {
                turn.because("HA-117", "/sync of the former life as a primary cluster is deleted");
                turn.remember_sync(None);
            }
            // Repeated by the next turn.
            Err(error) => turn.because("HA-117", format!("/sync was not deleted: {error}")),
        }
    }
    if !outlived {
        return;
    }
    let by = Deadline(turn.now().plus(1_000));
    let Some(local) = turn.ports.postgres.local_history(timeline, by).await else { return };
    let max = turn.settings.max_timelines_history;
    let new = history::merged(&turn.view.history, &local, &turn.settings.me, max);
    turn.because("HA-117", format!("history ends before timeline {timeline} again"));
    let by = turn.store_deadline();
    // Repeated by the next turn.
    let _ = turn.ports.dcs.write_history(&new, by).await;
}

/// And not from a member of the former life, before the place of a standby leader is taken.
async fn streams_from_the_remote(turn: &mut Turn<'_>) -> bool {
    let known = match turn.memory.rewind {
        Rewind::NotAsked | Rewind::NotNeeded | Rewind::Succeeded => true,
        Rewind::Check | Rewind::Needed | Rewind::OtherHistory | Rewind::Failed => false,
    };
    let Some(remote) = remote(turn).filter(|_| known) else { return false };
    let by = turn.deadline(1_000);
    turn.ports.postgres.follow_change(Some(&remote), by).await == FollowChange::Nothing
}

/// Nobody leads and it is not for me to: the remote primary is still there. (HA-111)
pub async fn without_leader(turn: &mut Turn<'_>) -> Decided {
    let me = turn.me().clone();
    let line = format!("no action. I am ({me}), and following the remote member without a leader");
    let place = place(turn, Role::Replica, line);
    follower::take(turn, place).await
}

/// Behind the remote primary.
fn place(turn: &Turn<'_>, role: Role, line: String) -> Place {
    let remote = remote(turn);
    // A standby leader without streaming is fed by the archive alone.
    let nostream = turn.settings.nostream;
    Place {
        upstream: remote.clone().filter(|_| !nostream),
        sources: remote.into_iter().filter(Upstream::has_address).collect(),
        role,
        leader: None,
        line,
    }
}

/// What `standby_cluster` names.
pub fn remote(turn: &Turn<'_>) -> Option<Upstream> {
    turn.settings.standby_cluster.as_ref().map(crate::ha::settings::StandbyCluster::remote)
}

/// Who can say whether my log is a part of what is followed, and can be rewound to: the leader, or
/// the remote primary. Behind a standby leader that one is asked while the remote one is away: its
/// word is enough to follow it, never to rewind to it. (HA-047, PG-145)
pub fn sources(turn: &Turn<'_>, leader: Option<&MemberName>) -> Vec<Upstream> {
    let member = leader.filter(|name| *name != turn.me()).and_then(|name| turn.upstream(name));
    let remote = remote(turn).filter(Upstream::has_address);
    remote.into_iter().chain(member).collect()
}

/// A history file of the timeline after mine: the remote primary went on without me, perhaps from
/// before where I am. (HA-114)
pub async fn ask_when_the_remote_moved_on(turn: &mut Turn<'_>) {
    if turn.settings.standby_cluster.is_none() {
        return;
    }
    let Server::Standby(standby) = &turn.pg.server else { return };
    if standby.streaming || standby.timeline == Timeline(0) {
        return;
    }
    let next = Timeline(standby.timeline.0 + 1);
    let by = Deadline(turn.now().plus(1_000));
    if turn.ports.postgres.local_history(next, by).await.is_some() {
        turn.because("HA-114", format!("the remote member is on timeline {next} or later"));
        turn.memory.rewind.ask();
    }
}

/// Whom a server that is to be started follows, and in which role's words. `None`: this is no
/// standby cluster. (HA-046)
pub fn start_place(turn: &Turn<'_>) -> Option<(Option<Upstream>, &'static str)> {
    let remote = remote(turn)?;
    let remote = (!turn.settings.nostream).then_some(remote);
    match &turn.lock {
        Lock::Mine { .. } => {
            Some((remote, "starting as a standby leader because i had the session lock"))
        }
        Lock::Free | Lock::Lost { holder: None } => {
            Some((remote, "trying to follow a remote member because standby cluster is unhealthy"))
        }
        Lock::Other { .. } | Lock::Lost { holder: Some(_) } | Lock::Unseen { .. } => None,
    }
}

/// HA-116: a primary whose cluster is to follow another one from now on. What it wrote must reach
/// those that followed it so far, the former standby cluster among them: its shutdown checkpoint goes
/// to the archive, or to a replica that then becomes the standby leader. Otherwise the key stays
/// here and the next turn starts the server as the standby leader.
pub async fn demote_cluster(context: &Context) -> Outcome {
    let ports = &context.ports;
    let archives = ports.postgres.archives(Deadline(ports.clock.now().plus(5_000))).await;
    let how = Stop { mode: StopMode::Fast, checkpoint: false, immediate_at: None };
    let mut released = false;
    let mut steps = ports.postgres.stop(how);
    let mut stopped = Err("the stop was given up".to_owned());
    while let Some(step) = futures::stream::StreamExt::next(&mut steps).await {
        crate::ha::task::unwatch(ports, &step);
        match step {
            StopStep::SafePoint => {}
            StopStep::ShutDown { checkpoint, .. } => {
                if !archives && !released && somebody_has(ports, &context.view, checkpoint).await {
                    ports.postgres.set_role(Role::Demoted);
                    released = release(context, checkpoint).await;
                }
            }
            StopStep::Stopped => stopped = Ok(()),
            // The key stays until it runs out, and the guard stays armed. (INV-23)
            StopStep::Failed(why) => stopped = Err(why),
        }
    }
    if let Err(why) = stopped {
        return Outcome::Failed(why);
    }
    ports.postgres.set_role(Role::Demoted);
    ports.fence.stand_down();
    if archives {
        // The archive is the operator's; as long as his command takes, within reason.
        let by = Deadline(ports.clock.now().plus(600_000));
        if let Err(error) = ports.postgres.archive_shutdown_checkpoint(by).await {
            return Outcome::Failed(error.to_string());
        }
    }
    Outcome::Done
}

async fn somebody_has(ports: &Ports, view: &ClusterView, checkpoint: Lsn) -> bool {
    crate::ha::manual::somebody_has(ports, view, checkpoint).await
}

/// The next standby leader must have the shutdown checkpoint, so this is what `/status` says.
async fn release(context: &Context, checkpoint: Lsn) -> bool {
    let ports = &context.ports;
    let status = Status { optime: checkpoint, ..context.view.status.clone() };
    let timing = ports.configuration.settings().timing;
    let by = Deadline(ports.clock.now().plus(timing.retry_timeout_ms()));
    match context.lease.release(ports, Some(&status), by).await {
        Ok(()) | Err(DcsError::NotOwner { .. }) => true,
        Err(
            DcsError::Conflict { .. }
            | DcsError::Unreachable { .. }
            | DcsError::Refused { .. }
            | DcsError::NotRetriable { .. },
        ) => false,
    }
}
