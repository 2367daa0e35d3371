//! Before leadership matters: a server that starts, a data directory that is empty, and whether it
//! belongs to this cluster. (sections 4 and 6 of docs/spec/ha-loop.md)

use crate::ha::breakage::{Breakage, broken};
use crate::ha::ports::{DataDir, Server, Upstream};
use crate::ha::task::{Demotion, Task};
use crate::ha::turn::{Decided, Lock, Turn};
use crate::ha::{leader, look, request, standby};
use hathi_dcs::{DcsError, Expect, Millis, Role, State, Version};

/// How soon a starting server is looked at again.
const STARTING_MS: u64 = 500;

/// The server does not accept connections yet. `None`: go on as if it ran. (section 6)
pub async fn starting(turn: &mut Turn<'_>) -> Option<Decided> {
    // Nothing tells when a server accepts connections: it is looked at.
    let again = turn.now().plus(STARTING_MS);
    turn.wake_at(again);
    let starts_as_primary = turn.pg.is_primary;
    match turn.lock.clone() {
        Lock::Mine { .. } => {}
        // It would be writable in a moment, and nobody licensed that.
        Lock::Lost { .. } | Lock::Free | Lock::Other { .. } if starts_as_primary => {
            turn.because("HA-057", "the lock was lost while starting");
            turn.memory.rewind.ask();
            let line = "demoting self because leader lock was lost while starting";
            return Some(Decided::task(line, Task::Demote(Demotion::LostLock)));
        }
        // A starting standby takes part in nothing, and follows nobody yet. (HA-060)
        Lock::Free | Lock::Other { .. } | Lock::Unseen { .. } | Lock::Lost { .. } => {
            return Some(Decided::line("starting as a secondary in progress"));
        }
    }
    let configured = u64::from(turn.settings.primary_start_timeout) * 1000;
    let timeout_ms = turn.memory.start_timeout.unwrap_or(configured);
    let waited = turn.now().since(turn.pg.state_since);
    if waited < timeout_ms {
        if let Some(decided) = request::on_owner(turn).await {
            return Some(decided); // HA-059
        }
        let left = (timeout_ms - waited).div_ceil(1000);
        let line = format!("PostgreSQL is still starting up, {left} seconds until timeout");
        return Some(Decided::line(line).again_at(turn.pg.state_since.plus(timeout_ms)));
    }
    if leader::someone_can_take_over(turn).await {
        if let Some(decided) = look::first(turn).await {
            return Some(decided);
        }
        turn.because("HA-058", format!("not ready after {timeout_ms} ms"));
        let line = "demoting self because PostgreSQL takes too long to start";
        return Some(Decided::task(line, Task::Demote(Demotion::Immediate)));
    }
    Some(Decided::line("still starting up; there is nobody to fail over to"))
}

/// HA-013, HA-030. `None`: there is a data directory.
pub async fn empty_data_dir(turn: &mut Turn<'_>) -> Option<Decided> {
    let inaccessible = match &turn.pg.data_dir {
        DataDir::Present => return None,
        DataDir::Empty => None,
        DataDir::Inaccessible(why) => Some(why.clone()),
    };
    turn.ports.watchdog.disable(); // HA-013
    if turn.pg.role != Role::Uninitialized {
        turn.ports.postgres.set_role(Role::Uninitialized);
    }
    if turn.i_own_the_lock() {
        if let Some(decided) = look::first(turn).await {
            return Some(decided);
        }
        turn.because("HA-013", "I hold the lock and have no data directory");
        let by = turn.store_deadline();
        let _ = turn.lease.release(turn.ports, None, by).await;
        turn.memory.want_latest = true;
        return Some(Decided::line("released leader key voluntarily as data dir empty or missing"));
    }
    if let Some(why) = inaccessible {
        return Some(Decided::line(format!("the data directory cannot be read: {why}")));
    }
    Some(bootstrap(turn).await)
}

async fn bootstrap(turn: &mut Turn<'_>) -> Decided {
    if let Some(leader) = turn.view.leader_name().cloned() {
        let Some(source) = clone_source(turn) else {
            return Decided::line(format!("waiting for {leader} to say where its PostgreSQL is"));
        };
        if let Some(decided) = look::first(turn).await {
            return decided;
        }
        let follow = turn.upstream(&leader).unwrap_or_else(|| source.clone());
        turn.because("HA-030", format!("empty data directory, leader {leader}"));
        let line = format!("trying to bootstrap from '{}'", source.name);
        return Decided::task(line, Task::Clone { source, follow });
    }
    let waits = waiting(turn);
    let expect = match turn.view.initialize.as_deref() {
        None => Expect::Absent,
        Some("") => match abandoned(turn) {
            Abandoned::Since(version) => Expect::Version(version),
            Abandoned::PerhapsAt(at) => return waits.again_at(at),
            Abandoned::No => return waits,
        },
        Some(_) => return waits,
    };
    if turn.settings.nofailover || !turn.settings.may_bootstrap {
        return waits;
    }
    let by = turn.store_deadline();
    match turn.ports.dcs.write_initialize("", expect, by).await {
        Ok(()) => {
            turn.because("HA-030", "won the race for initialize");
            // Whose it is at the end is told by its version. (HA-308)
            if !turn.read_again().await || !turn.view.is_bootstrapping() {
                return Decided::line("won the race for initialize, and cannot read it");
            }
            if let Some(decided) = look::first(turn).await {
                return decided;
            }
            turn.memory.bootstrapping = true;
            if let Some(remote) = standby::remote(turn) {
                turn.because("HA-030", "the cluster begins as a copy of the remote member");
                let line = "trying to bootstrap a new standby leader";
                return Decided::task(line, Task::BootstrapStandbyLeader { remote });
            }
            Decided::task("trying to bootstrap a new cluster", Task::Bootstrap)
        }
        Err(DcsError::Conflict { .. }) => {
            turn.memory.want_latest = true;
            Decided::line("failed to acquire initialize lock")
        }
        Err(error) => {
            turn.memory.want_latest = true;
            Decided::line(format!("the race for initialize has no known outcome: {error}"))
        }
    }
}

/// Is an empty `initialize` left over from somebody who died?
enum Abandoned {
    No,
    /// Not long enough to say; look then.
    PerhapsAt(Millis),
    /// Nobody is at it: whoever replaces this version takes it over.
    Since(Version),
}

/// HA-308: for a whole ttl and two turns no member was seen that could be at it, or that has data.
fn abandoned(turn: &mut Turn<'_>) -> Abandoned {
    let Some(version) = turn.view.initialize_version else { return Abandoned::No };
    let me = turn.me().clone();
    let others = turn.view.members.iter().filter(|member| member.name != me);
    let busy = others.into_iter().any(|member| !is_idle(member.data.state));
    let now = turn.now();
    if broken(Breakage::BootstrapIsTakenOver) {
        return Abandoned::Since(version);
    }
    if busy {
        turn.memory.abandoned = None;
        return Abandoned::No;
    }
    // Another version is another bootstrapper: its time begins anew.
    let since = match turn.memory.abandoned {
        Some((seen, since)) if seen == version => since,
        Some(_) | None => now,
    };
    turn.memory.abandoned = Some((version, since));
    let timing = turn.settings.timing;
    let sure_at = since.plus(timing.ttl_ms() + 2 * timing.loop_wait_ms());
    if now < sure_at {
        return Abandoned::PerhapsAt(sure_at);
    }
    turn.because("HA-308", "initialize is empty and nobody creates the cluster");
    Abandoned::Since(version)
}

/// A member that has nothing and does nothing.
fn is_idle(state: Option<State>) -> bool {
    match state {
        None | Some(State::Stopped | State::InitdbFailed | State::CustomBootstrapFailed) => true,
        Some(
            State::Initdb
            | State::CustomBootstrap
            | State::CreatingReplica
            | State::Running
            | State::Starting
            | State::BootstrapStarting
            | State::StartFailed
            | State::Restarting
            | State::RestartFailed
            | State::Stopping
            | State::StopFailed
            | State::Crashed,
        ) => false,
    }
}

fn waiting(turn: &Turn<'_>) -> Decided {
    let what = if turn.settings.standby_cluster.is_some() { "standby_" } else { "" };
    Decided::line(format!("waiting for {what}leader to bootstrap"))
}

/// A running member that offers itself by the tag `clonefrom`, else the leader. (PG-120)
pub fn clone_source(turn: &Turn<'_>) -> Option<Upstream> {
    let leader = turn.view.leader_name()?;
    let offered: Vec<_> = turn
        .view
        .members
        .iter()
        .filter(|member| {
            member.name != *leader
                && member.name != *turn.me()
                && member.data.state == Some(State::Running)
                && member.data.tag_is_truthy("clonefrom")
                && member.data.conn_url.is_some()
        })
        .collect();
    let chosen = if offered.is_empty() {
        leader
    } else {
        let at = turn.ports.clock.random(offered.len() as u64) as usize;
        offered.get(at).map_or(leader, |member| &member.name)
    };
    turn.upstream(chosen)
}

/// Does this data directory belong to this cluster? `None`: it does. (section 4.3)
pub async fn identity(turn: &mut Turn<'_>) -> Option<Decided> {
    let Some(mine) = turn.pg.system_id.clone() else {
        turn.because("HA-035", "the system identifier of the data directory cannot be read");
        let line = "system ID is invalid: consider doing reinitialize";
        return Some(Decided::line(line));
    };
    match turn.view.system_id() {
        Some(theirs) if theirs == mine || broken(Breakage::IgnoreSystemId) => None,
        Some(theirs) => {
            turn.because("HA-036", format!("{mine} is not {theirs}"));
            Some(Decided::exit(format!(
                "the data directory belongs to another cluster: its system identifier is {mine}, \
                 the cluster's is {theirs}; check scope and data_dir"
            )))
        }
        None if turn.view.leader.is_some() || turn.memory.joined => None,
        None => identity_is_ours_to_give(turn, mine.as_str()).await,
    }
}

/// HA-038: the cluster has no identifier and no leader, and this agent just came.
async fn identity_is_ours_to_give(turn: &mut Turn<'_>, mine: &str) -> Option<Decided> {
    // A standby cluster has nothing but standbys; what one of them says makes nobody a primary.
    if let Server::Standby(_) = turn.pg.server
        && turn.settings.standby_cluster.is_none()
    {
        turn.because("HA-038", "a standby cannot give the cluster its identifier");
        return Some(Decided {
            exit: Some(crate::ha::run::Exit::Left(
                "the cluster has no system identifier yet and PostgreSQL runs here as a standby; \
                 start the agent of its primary first"
                    .into(),
            )),
            ..Decided::line("standby of a cluster that does not exist")
        });
    }
    let expect = if turn.view.initialize.is_none() { Expect::Absent } else { Expect::Anything };
    let by = turn.store_deadline();
    match turn.ports.dcs.write_initialize(mine, expect, by).await {
        Ok(()) => {
            turn.because("HA-038", "gave the cluster my system identifier");
            turn.read_again().await;
            None
        }
        Err(error) => {
            turn.memory.want_latest = true;
            Some(Decided::line(format!("initialize could not be written: {error}")))
        }
    }
}
