//! The user's scripts that hear about changes. (PG-083 … PG-089)
//!
//! One runs at a time; a new one ends the one that runs and takes the place of one that waits.
//! `on_reload` has a lane of its own. Nobody waits for them.

use crate::postgres::child::command_line;
use crate::postgres::process::{ProcessId, descendants, kill};
use crate::postgres::room::{LocalPostgres, lock};
use hathi_dcs::Role;
use rustix::process::Signal;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Start,
    Stop,
    Restart,
    Reload,
    RoleChange,
}

impl Action {
    fn key(self) -> &'static str {
        match self {
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Restart => "on_restart",
            Self::Reload => "on_reload",
            Self::RoleChange => "on_role_change",
        }
    }
}

/// The two lanes, and what was told last.
#[derive(Default)]
pub(super) struct Callbacks {
    main: Lane,
    reload: Lane,
    /// The role of the last callback. (PG-067)
    told: Mutex<Option<Role>>,
    /// What the next "running" means to callbacks.
    pending: Mutex<Option<Action>>,
}

#[derive(Default)]
struct Lane(Mutex<Option<JoinHandle<()>>>);

impl Callbacks {
    pub fn expect_start(&self) {
        *lock(&self.pending) = Some(Action::Start);
    }

    pub fn expect_restart(&self) {
        *lock(&self.pending) = Some(Action::Restart);
    }

    /// The action for a server that has just become ready in `role`. (PG-067)
    fn take_pending(&self, role: Role) -> Option<Action> {
        let pending = lock(&self.pending).take()?;
        let was = *lock(&self.told);
        if was.is_some_and(|was| is_role_change(was, role)) {
            return Some(Action::RoleChange);
        }
        Some(pending)
    }
}

/// Following somebody from this role in that one is a change of role. (PG-067)
fn is_role_change(was: Role, is: Role) -> bool {
    let secondary = matches!(is, Role::Replica | Role::StandbyLeader);
    match was {
        Role::Primary | Role::Promoted | Role::Demoted => secondary,
        Role::Replica => is == Role::StandbyLeader,
        Role::StandbyLeader => is == Role::Replica,
        Role::Uninitialized => false,
    }
}

impl LocalPostgres {
    /// Starts the script of this action, if there is one. (PG-083, PG-086)
    pub(super) fn fire(&self, action: Action) {
        if self.bootstrapping.load(Ordering::Acquire) {
            return;
        }
        let role = self.role();
        *lock(&self.callbacks.told) = Some(role);
        let settings = self.settings();
        let Some(text) = settings.callbacks.get(action.key()) else { return };
        let argument = match role {
            Role::Promoted => Role::Primary, // PG-084
            Role::Primary
            | Role::StandbyLeader
            | Role::Replica
            | Role::Demoted
            | Role::Uninitialized => role,
        };
        let mut command = match command_line(action.key(), text) {
            Ok(command) => command,
            Err(why) => {
                tracing::error!(target: "hathi::postgres", "callback: {why}");
                return;
            }
        };
        command.args([action.key(), argument.as_str(), &settings.scope]);
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(false);
        let lane = match action {
            Action::Reload => &self.callbacks.reload,
            Action::Start | Action::Stop | Action::Restart | Action::RoleChange => {
                &self.callbacks.main
            }
        };
        let mut running = lock(&lane.0);
        let previous = running.take();
        *running = Some(tokio::spawn(async move {
            if let Some(previous) = previous {
                previous.abort();
                // Its guard kills the script; afterwards it is gone.
                let _ = previous.await;
            }
            tracing::debug!(target: "hathi::postgres", action = action.key(), "callback");
            match command.spawn() {
                Ok(mut child) => {
                    let _guard =
                        child.id().and_then(|id| ProcessId::of(id.cast_signed())).map(KillTree);
                    // Its exit code is its own affair.
                    let _ = child.wait().await;
                }
                Err(why) => {
                    tracing::error!(target: "hathi::postgres", "{}: {why}", action.key());
                }
            }
        }));
    }

    pub(super) fn fire_reload(&self) {
        self.fire(Action::Reload);
    }

    /// The server is ready: the callback that was waiting for that. (PG-030)
    pub(super) fn fire_pending(&self) {
        if self.bootstrapping.load(Ordering::Acquire) {
            return;
        }
        if let Some(action) = self.callbacks.take_pending(self.role()) {
            self.fire(action);
        }
    }

    /// Following somebody else without a restart, in another role than before. (PG-067)
    pub(super) fn role_changed(&self) -> bool {
        let was = *lock(&self.callbacks.told);
        was.is_some_and(|was| is_role_change(was, self.role()))
    }
}

/// Kills a script with all it started, unless it has ended. (PG-085)
struct KillTree(ProcessId);

impl Drop for KillTree {
    fn drop(&mut self) {
        if self.0.alive().is_none() {
            return;
        }
        kill(self.0, Signal::STOP);
        let family = descendants(self.0.pid);
        kill(self.0, Signal::KILL);
        for member in family {
            kill(member, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-067 (what a role change is).
    #[test]
    fn only_some_transitions_are_changes_of_role() {
        for (was, is, changed) in [
            (Role::Primary, Role::Replica, true),
            (Role::Demoted, Role::Replica, true),
            (Role::Demoted, Role::StandbyLeader, true),
            (Role::Replica, Role::StandbyLeader, true),
            (Role::StandbyLeader, Role::Replica, true),
            (Role::Replica, Role::Replica, false),
            (Role::Primary, Role::Primary, false),
            (Role::Demoted, Role::Primary, false),
            (Role::Uninitialized, Role::Replica, false),
        ] {
            assert_eq!(is_role_change(was, is), changed, "{was} -> {is}");
        }
    }
}
