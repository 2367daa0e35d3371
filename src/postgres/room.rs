//! What the room remembers between calls, and who may change it.

use crate::ha::ports::{DataDir, PgError};
use crate::postgres::callbacks::Callbacks;
use crate::postgres::child::Cancel;
use crate::postgres::configuration::Recovery;
use crate::postgres::control::Control;
use crate::postgres::monitor::Row;
use crate::postgres::process::{self, Postmaster, ProcessId};
use crate::postgres::session::Session;
use crate::postgres::settings::Settings;
use hathi_dcs::{Deadline, Millis, PendingChange, Role, State, Timeline, boottime};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;
use tokio::io::unix::AsyncFd;

/// Whom to tell about the postmaster. Both are called from tasks of this room and must not block.
pub struct Hooks {
    /// A postmaster of ours began (right after it was spawned, or found running), or ended (`None`).
    /// The guard must know it before anything else happens.
    pub on_postmaster: Box<dyn Fn(Option<ProcessId>) + Send + Sync>,
    /// The postmaster ended, wanted or not: look now. (PG-450)
    pub on_exit: Box<dyn Fn() + Send + Sync>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { on_postmaster: Box::new(|_| {}), on_exit: Box::new(|| {}) }
    }
}

/// State and role as the wire shows them. (PG-001, PG-002)
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracked {
    pub state: State,
    pub since: Millis,
    pub role: Role,
}

/// The last look at the disk.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub data_dir: DataDir,
    pub control: Option<Control>,
    /// 13 … 18; 0 without a readable PG_VERSION. (PG-005)
    pub major: u32,
    /// Either signal file.
    pub has_standby_signal: bool,
    /// standby.signal itself. (PG-218)
    pub stands_by: bool,
    pub has_backup_label: bool,
    /// What postmaster.pid leads to.
    pub postmaster: Option<ProcessId>,
    /// What the replication passfile says. (PG-219)
    pub passfile: Option<String>,
    /// When this was read; `None` when we wrote some of it since.
    pub read_at: Option<Instant>,
}

/// Things learned that outlive one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// The last answer of the monitoring query.
    pub row: Option<Row>,
    /// When it came; `None` when what it says was changed since.
    pub row_at: Option<Instant>,
    pub is_primary: Option<bool>,
    /// The newest timeline that a standby said it was on, and the start of that server. (PG-312)
    pub timeline: Option<(String, Timeline)>,
    /// Settings kept above the configured ones because the control file demands it. (PG-190)
    pub raised: BTreeMap<String, PendingChange>,
    pub pending: BTreeMap<String, PendingChange>,
    /// Which parameters `pending` was computed from.
    pub pending_of: BTreeMap<String, String>,
}

pub struct Inner {
    settings: RwLock<Arc<Settings>>,
    hooks: Hooks,
    tracked: Mutex<Tracked>,
    postmaster: Mutex<Option<Postmaster>>,
    pub(super) session: tokio::sync::Mutex<Option<Session>>,
    facts: Mutex<Facts>,
    disk: Mutex<Option<Disk>>,
    /// A look at the disk is under way; a second one would only wait beside it.
    pub(super) disk_busy: AtomicBool,
    pub(super) cancel: Cancel,
    pub(super) callbacks: Callbacks,
    recovery: Mutex<Option<Recovery>>,
    /// One writer of configuration files at a time.
    pub(super) files: tokio::sync::Mutex<()>,
    /// A long effect owns the state now; a look must not change it.
    busy: AtomicUsize,
    /// From the beginning of a bootstrap to its end: no system id, no callbacks. (PG-006, PG-086)
    pub(super) bootstrapping: AtomicBool,
    /// The next answer of the server is the first since we found it running. (PG-014)
    pub(super) joining: AtomicBool,
    pub(super) fresh: Mutex<Option<super::observe::SharedLook>>,
    pub(super) managed: Mutex<super::synchronous::Managed>,
    pub(super) logical: Mutex<super::logical_slots::Logical>,
    /// How long the last fast stops took. (HA-321)
    pub(super) fast_stops: Mutex<std::collections::VecDeque<u64>>,
    pub(super) disk_watch: Arc<super::disk_watch::DiskWatch>,
}

/// The local PostgreSQL. Clones are the same server.
#[derive(Clone)]
pub struct LocalPostgres(Arc<Inner>);

impl Deref for LocalPostgres {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A long effect that owns the state while this lives.
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl LocalPostgres {
    /// Nothing is touched before the first call. A running server is joined by the first
    /// observation. (PG-014)
    pub fn new(settings: Arc<Settings>, hooks: Hooks) -> Self {
        let role = role_on_disk(&settings);
        let room = Self(Arc::new(Inner {
            settings: RwLock::new(settings),
            hooks,
            tracked: Mutex::new(Tracked { state: State::Stopped, since: boottime(), role }),
            postmaster: Mutex::new(None),
            session: tokio::sync::Mutex::new(None),
            facts: Mutex::new(Facts::default()),
            disk: Mutex::new(None),
            disk_busy: AtomicBool::new(false),
            cancel: Cancel::default(),
            callbacks: Callbacks::default(),
            recovery: Mutex::new(None),
            files: tokio::sync::Mutex::new(()),
            busy: AtomicUsize::new(0),
            bootstrapping: AtomicBool::new(false),
            joining: AtomicBool::new(false),
            fresh: Mutex::new(None),
            managed: Mutex::default(),
            logical: Mutex::default(),
            fast_stops: Mutex::default(),
            disk_watch: Arc::default(),
        }));
        let settings = room.settings();
        room.disk_watch.look_after(settings.watch_disk.then(|| settings.data_dir.clone()));
        room
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes other settings; [`LocalPostgres::apply_configuration`] puts them in force.
    pub fn set_settings(&self, settings: Arc<Settings>) {
        self.disk_watch.look_after(settings.watch_disk.then(|| settings.data_dir.clone()));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    pub(super) fn tracked(&self) -> Tracked {
        *lock(&self.tracked)
    }

    pub(super) fn state(&self) -> State {
        self.tracked().state
    }

    pub(super) fn role(&self) -> Role {
        self.tracked().role
    }

    pub(super) fn enter(&self, state: State) {
        let mut tracked = lock(&self.tracked);
        if tracked.state != state {
            tracing::debug!(target: "hathi::postgres", from = %tracked.state, to = %state, "state");
            tracked.state = state;
            tracked.since = boottime();
        }
    }

    pub(super) fn become_role(&self, role: Role) {
        lock(&self.tracked).role = role;
    }

    pub(super) fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    pub(super) fn with_facts<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut lock(&self.facts))
    }

    pub(super) fn last_disk(&self) -> Option<Disk> {
        lock(&self.disk).clone()
    }

    pub(super) fn remember_disk(&self, disk: &Disk) {
        *lock(&self.disk) = Some(disk.clone());
    }

    /// We wrote what a look at the disk reads: the last one is of this turn no more.
    pub(super) fn disk_written(&self) {
        if let Some(disk) = &mut *lock(&self.disk) {
            disk.read_at = None;
        }
    }

    pub(super) fn recovery(&self) -> Option<Recovery> {
        lock(&self.recovery).clone()
    }

    pub(super) fn set_recovery(&self, recovery: Option<Recovery>) {
        *lock(&self.recovery) = recovery;
    }

    pub(super) fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        Busy(&self.busy)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }

    /// The postmaster we hold, if it is alive.
    pub(super) fn postmaster(&self) -> Option<Postmaster> {
        lock(&self.postmaster).clone().filter(Postmaster::is_alive)
    }

    /// The living postmaster: the one we hold, or the one `postmaster.pid` names now.
    pub(super) async fn look_for_postmaster(&self) -> Option<Postmaster> {
        if let Some(postmaster) = self.postmaster() {
            return Some(postmaster);
        }
        let data_dir = self.settings().data_dir.clone();
        let found = on_disk(move || process::find(&data_dir)).await.flatten()?;
        self.hold(found)
    }

    /// Takes hold of a postmaster: tells the guard, and watches it end.
    pub(super) fn hold(&self, id: ProcessId) -> Option<Postmaster> {
        let postmaster = {
            let mut held = lock(&self.postmaster);
            if let Some(known) = held.as_ref().filter(|known| known.id == id && known.is_alive()) {
                return Some(known.clone());
            }
            let postmaster = Postmaster::hold(id)?;
            *held = Some(postmaster.clone());
            postmaster
        };
        (self.hooks.on_postmaster)(Some(id));
        let room = self.clone();
        let watched = postmaster.clone();
        tokio::spawn(async move {
            wait_for_exit(&watched).await;
            room.ended(watched.id).await;
        });
        Some(postmaster)
    }

    /// The postmaster is gone: said once per postmaster, after what it left behind is gone too.
    async fn ended(&self, id: ProcessId) {
        self.end_orphans(&self.settings(), Deadline::in_ms(2000)).await;
        {
            let mut held = lock(&self.postmaster);
            if held.as_ref().is_some_and(|known| known.id == id) {
                *held = None;
            } else {
                return;
            }
        }
        self.close_session();
        tracing::debug!(target: "hathi::postgres", pid = id.pid, "the postmaster has ended");
        (self.hooks.on_postmaster)(None);
        (self.hooks.on_exit)();
    }

    /// Drops the long connection, unless a query runs on it: that one finds out by itself, and
    /// nobody must wait for it here.
    pub(super) fn close_session(&self) {
        if let Ok(mut session) = self.session.try_lock() {
            *session = None;
        }
    }

    pub(super) fn failed(what: &'static str, why: impl ToString) -> PgError {
        PgError::Failed { what, why: why.to_string() }
    }
}

/// Ends when the postmaster does. Works for processes that are not our children.
pub(super) async fn wait_for_exit(postmaster: &Postmaster) {
    if let Some(pidfd) = postmaster.pidfd() {
        // A copy of its own: the runtime takes each descriptor once, and several may wait.
        let watched = pidfd.try_clone().and_then(|own| {
            // SAFETY: the registration owns the descriptor for as long as it lives.
            unsafe { AsyncFd::register(own) }.map_err(Into::into)
        });
        match watched {
            Ok(pidfd) => {
                // An error would mean that the descriptor is unusable; the loop below then looks.
                let _ = pidfd.readable().await;
            }
            Err(why) => tracing::warn!(target: "hathi::postgres", "cannot watch a pidfd: {why}"),
        }
    }
    while postmaster.is_alive() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Runs work that may block on the disk beside the event loop. `None` only if the runtime is ending.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// PG-003; a stopped primary is `demoted`.
fn role_on_disk(settings: &Settings) -> Role {
    let has = |name: &str| settings.data_dir.join(name).exists();
    if !has("global/pg_control") {
        Role::Uninitialized
    } else if has("standby.signal") || has("recovery.signal") {
        Role::Replica
    } else {
        Role::Demoted
    }
}
