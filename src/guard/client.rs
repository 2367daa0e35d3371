//! The agent's side: keeps a guard alive, and tells it until when PostgreSQL may write.

use crate::guard::bell;
use crate::guard::board::{Board, BoardError};
use crate::ha::ports::Fence;
use crate::postgres::ProcessId;
use crate::postgres::process::Postmaster;
use hathi_dcs::{Millis, boottime};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// How long a new guard may take to say that it watches.
const READY_MS: u64 = 3_000;
/// Between two attempts to start one.
const AGAIN: Duration = Duration::from_millis(500);

/// Why there is no guard; one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Board(#[from] BoardError),
    #[error("the guard process does not start: {0}")]
    Start(String),
}

/// Nothing is fenced: `guard.mode: off`.
#[derive(Debug)]
pub struct NoGuard;

impl Fence for NoGuard {
    fn protect_until(&self, _: Millis) {}

    fn stand_down(&self) {}

    fn broken(&self) -> Option<String> {
        None
    }
}

/// The guard of one data directory. Dropping it leaves the guard to its deadline.
#[derive(Debug)]
pub struct GuardClient {
    board: Board,
    program: PathBuf,
    /// Held for the life of the agent: there is no second one.
    _only: File,
    /// The guard died and no new one watches yet.
    missing: AtomicBool,
    /// Whom to ring for.
    watching: Mutex<Option<Postmaster>>,
}

impl GuardClient {
    /// Finds the guard of this data directory, or starts one, and waits until it watches.
    ///
    /// # Errors
    /// Another agent has this data directory, the shared memory cannot be used, or no process can
    /// be started.
    pub fn start(data_dir: &Path) -> Result<Arc<Self>, GuardError> {
        // The kernel finds this very program even when its file was replaced.
        Self::start_program(Path::new("/proc/self/exe"), data_dir)
    }

    /// [`Self::start`] with the guard of another program, for who is not `hathi` itself.
    ///
    /// # Errors
    /// As there.
    pub fn start_program(program: &Path, data_dir: &Path) -> Result<Arc<Self>, GuardError> {
        let (board, only) = Board::open_as_agent(data_dir)?;
        board.set_agent(ProcessId::of(std::process::id().cast_signed()));
        let client = Arc::new(Self {
            board,
            program: program.to_path_buf(),
            _only: only,
            missing: AtomicBool::new(true),
            watching: Mutex::new(None),
        });
        let first = client.attach_or_spawn().map_err(GuardError::Start)?;
        let weak = Arc::downgrade(&client);
        std::thread::Builder::new()
            .name("hathi-guard".into())
            .stack_size(128 * 1024)
            .spawn(move || keep_alive(&weak, first))
            .map_err(|why| GuardError::Start(why.to_string()))?;
        Ok(client)
    }

    /// The postmaster to stop; told right after it was started or found, and when it is gone.
    pub fn postmaster(&self, process: Option<ProcessId>) {
        self.board.set_postmaster(process);
        self.ring();
    }

    /// What was written is of use only when the guard has seen it.
    fn ring(&self) {
        let watching = self.watching.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = &*watching {
            bell::ring(guard);
        }
    }

    /// From now on this one is rung for; and once at once, for what was written before.
    fn attach(&self, guard: Option<Postmaster>) {
        *self.watching.lock().unwrap_or_else(PoisonError::into_inner) = guard;
        self.missing.store(false, Ordering::SeqCst);
        self.ring();
    }

    fn attach_or_spawn(&self) -> Result<Watched, String> {
        if let Some(guard) = self.board.guard().and_then(Postmaster::hold) {
            self.attach(Some(guard.clone()));
            return Ok(Watched::Found(guard));
        }
        let mut child = Command::new(&self.program)
            .arg("guard")
            .arg(self.board.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|why| why.to_string())?;
        let pid = child.id().cast_signed();
        let asked = boottime();
        while self.board.guard().is_none_or(|guard| guard.pid != pid) {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended at once: {status}"));
            }
            if boottime().since(asked) > READY_MS {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it did not answer within {READY_MS} ms"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.attach(self.board.guard().and_then(Postmaster::hold));
        Ok(Watched::Ours(child))
    }
}

enum Watched {
    /// Started by this agent: it must be waited for.
    Ours(Child),
    /// It watched before this agent came.
    Found(Postmaster),
}

/// Waits for the guard's end and starts another one, for as long as the agent lives.
fn keep_alive(client: &Weak<GuardClient>, mut watched: Watched) {
    loop {
        wait_for_end(&mut watched);
        let Some(client) = client.upgrade() else { return };
        client.missing.store(true, Ordering::SeqCst);
        tracing::error!("the guard has ended; starting another one");
        watched = loop {
            match client.attach_or_spawn() {
                Ok(watched) => break watched,
                Err(why) => tracing::error!("no guard: {why}"),
            }
            std::thread::sleep(AGAIN);
        };
    }
}

fn wait_for_end(watched: &mut Watched) {
    match watched {
        Watched::Ours(child) => {
            let _ = child.wait();
        }
        Watched::Found(guard) => {
            if let Some(pidfd) = guard.pidfd() {
                let _ = poll(&mut [PollFd::new(pidfd.as_ref(), PollFlags::IN)], None);
            }
            while guard.is_alive() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Fence for GuardClient {
    fn protect_until(&self, until: Millis) {
        let before = self.board.deadline();
        self.board.set_deadline(Some(until));
        // A later one is seen when the earlier one comes.
        if before.is_none_or(|before| until < before) {
            self.ring();
        }
    }

    fn stand_down(&self) {
        self.board.set_deadline(None);
    }

    fn broken(&self) -> Option<String> {
        self.missing
            .load(Ordering::SeqCst)
            .then(|| "no guard process watches PostgreSQL".to_owned())
    }
}
