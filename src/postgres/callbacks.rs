//! The user's scripts that hear about changes. (PG-083 … PG-089)
//!
//! One runs at a time; a new one ends the one that runs and takes the place of one that waits.
//! `on_reload` has a lane of its own. Nobody waits for them. With `callback_timeout` they queue up
//! instead, one of each kind, and each has that time. (HA-319)

use crate::postgres::child::command_line;
use crate::postgres::process::{ProcessId, descendants, kill};
use crate::postgres::room::{LocalPostgres, lock};
use hathi_dcs::Role;
use rustix::process::Signal;
use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::process::Command;
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
struct Lane {
    running: Mutex<Option<JoinHandle<()>>>,
    queue: Arc<Mutex<Queue>>,
}

/// Scripts that wait for each other; at most one of each kind.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Action, Command)>,
    /// Somebody is at it.
    working: bool,
}

impl Queue {
    /// A newer one of its kind takes the place of one that waits. True: nobody is at it yet.
    fn push(&mut self, action: Action, command: Command) -> bool {
        self.waiting.retain(|(waits, _)| *waits != action);
        self.waiting.push_back((action, command));
        !std::mem::replace(&mut self.working, true)
    }

    fn next(&mut self) -> Option<(Action, Command)> {
        let next = self.waiting.pop_front();
        self.working = next.is_some();
        next
    }
}

/// Runs what waits, one after the other. One that takes longer than its time is ended as soon as
/// another one waits.
async fn work_off(queue: Arc<Mutex<Queue>>, timeout: Duration) {
    loop {
        let next = lock(&queue).next();
        let Some((action, command)) = next else { return };
        let mut script = std::pin::pin!(run(action, command));
        if tokio::time::timeout(timeout, &mut script).await.is_ok() {
            continue;
        }
        loop {
            if !lock(&queue).waiting.is_empty() {
                tracing::warn!(
                    target: "hathi::postgres",
                    "{} takes longer than {} s and another callback waits: it is ended",
                    action.key(),
                    timeout.as_secs()
                );
                break;
            }
            if tokio::time::timeout(Duration::from_millis(200), &mut script).await.is_ok() {
                break;
            }
        }
    }
}

/// One script to its end. Dropped: it is killed with all it started.
async fn run(action: Action, mut command: Command) {
    tracing::debug!(target: "hathi::postgres", action = action.key(), "callback");
    match command.spawn() {
        Ok(mut child) => {
            let _guard = child.id().and_then(|id| ProcessId::of(id.cast_signed())).map(KillTree);
            // Its exit code is its own affair.
            let _ = child.wait().await;
        }
        Err(why) => tracing::error!(target: "hathi::postgres", "{}: {why}", action.key()),
    }
}

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
        if settings.callback_timeout > 0 {
            let timeout = Duration::from_secs(settings.callback_timeout.into());
            if lock(&lane.queue).push(action, command) {
                tokio::spawn(work_off(lane.queue.clone(), timeout));
            }
            return;
        }
        let mut running = lock(&lane.running);
        let previous = running.take();
        *running = Some(tokio::spawn(async move {
            if let Some(previous) = previous {
                previous.abort();
                // Its guard kills the script; afterwards it is gone.
                let _ = previous.await;
            }
            run(action, command).await;
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

    /// Proves HA-319 and CFG-492: callbacks wait for each other, a newer one takes the place of one of its
    /// kind, and one that takes too long is ended when another one waits.
    #[tokio::test]
    async fn callbacks_queue_up_and_have_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let script = |text: String| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(text).process_group(0);
            command
        };
        let tells = |name: &str| script(format!("echo {name} >> {}", told.display()));
        let queue = Arc::new(Mutex::new(Queue::default()));
        let slow = format!("echo slow >> {}; sleep 600; echo never >> {0}", told.display());
        assert!(lock(&queue).push(Action::Start, script(slow)), "nobody is at it");
        let work = tokio::spawn(work_off(queue.clone(), Duration::from_millis(300)));
        let began = std::time::Instant::now();
        while !told.exists() {
            assert!(began.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!lock(&queue).push(Action::RoleChange, tells("first")));
        assert!(!lock(&queue).push(Action::Restart, tells("second")));
        assert!(!lock(&queue).push(Action::RoleChange, tells("newer")));
        tokio::time::timeout(Duration::from_secs(20), work).await.unwrap().unwrap();
        let lines = std::fs::read_to_string(&told).unwrap();
        assert_eq!(lines.lines().collect::<Vec<_>>(), ["slow", "second", "newer"]);
        assert!(lock(&queue).push(Action::Stop, tells("later")), "it begins anew");
    }

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
