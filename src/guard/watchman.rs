//! The guard process itself: waits for the deadline, and then makes sure.

use crate::guard::bell::Bell;
use crate::guard::board::Board;
use crate::guard::memory;
use crate::postgres::ProcessId;
use crate::postgres::process::{Postmaster, stat};
use hathi_dcs::boottime;
use nix::sys::signal::{SigHandler, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The longest sleep beside an agent whose end the kernel tells. Whatever the agent writes it rings for,
/// and dying between the two wakes the guard as well.
const LOOK_MS: u64 = 60_000;
/// The longest sleep otherwise.
const LOOK_ALONE_MS: u64 = 10_000;
/// Between SIGQUIT and SIGKILL. The agent's deadline leaves twice this at the shortest ttl.
const GRACE_MS: u64 = 300;
/// How long a guard without a living agent stays before it was ever attached to one.
const ALONE_MS: u64 = 10_000;

/// `hathi guard BOARD`: what follows the word `guard`.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(path), None) = (args.next(), args.next()) else {
        eprintln!("hathi guard: started by the agent only");
        return ExitCode::from(2);
    };
    match watch(PathBuf::from(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hathi guard: {why}");
            ExitCode::FAILURE
        }
    }
}

fn watch(path: PathBuf) -> Result<(), String> {
    stand_apart();
    let board = Board::at(path).map_err(|error| error.to_string())?;
    let Some(_only) = board.lock_guard().map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let me = ProcessId::of(std::process::id().cast_signed()).ok_or("no /proc")?;
    let (mut bell, told) = Bell::new();
    if let Err(why) = told {
        eprintln!("hathi guard: {why}");
    }
    // Touches the pages of the path that must not wait for a disk later.
    let _ = children_of(me);
    if let Some(me) = Postmaster::hold(me) {
        moment(1, &me);
    }
    bell.sleep(boottime().plus(1), &[]);
    if let Err(why) = memory::stay() {
        eprintln!("hathi guard: {why}");
    }
    board.set_guard(Some(me));
    let started = boottime();
    let mut agent: Option<Postmaster> = None;
    let mut postmaster: Option<Postmaster> = None;
    loop {
        hold(&mut agent, board.agent());
        hold(&mut postmaster, board.postmaster());
        let now = boottime();
        let deadline = board.deadline();
        if let (Some(deadline), Some(postmaster)) = (deadline, &postmaster)
            && now >= deadline
            && postmaster.is_alive()
            && board.deadline() == Some(deadline)
        {
            fence(postmaster);
            continue;
        }
        let armed = deadline.is_some() && postmaster.as_ref().is_some_and(Postmaster::is_alive);
        let attached = agent.as_ref().is_some_and(Postmaster::is_alive);
        if !attached && !armed && (agent.is_some() || now.since(started) > ALONE_MS) {
            board.set_guard(None);
            board.remove_if_unused();
            return Ok(());
        }
        let watched = [agent.as_ref().filter(|_| attached), postmaster.as_ref().filter(|_| armed)];
        let told = attached && watched.iter().flatten().all(|one| one.pidfd().is_some());
        let look = now.plus(if told { LOOK_MS } else { LOOK_ALONE_MS });
        let until = deadline.filter(|_| armed).map_or(look, |at| at.min(look));
        bell.sleep(until.max(now.plus(1)), &watched);
    }
}

/// Takes no part in the agent's end: not its session, not its signals; and is the last to be
/// starved. All of it as far as this user may.
fn stand_apart() {
    // Started by way of /proc/self/exe, it would be called "exe".
    let _ = rustix::thread::set_name(c"hathi-guard");
    let _ = rustix::process::setsid();
    for ignored in [
        nix::sys::signal::Signal::SIGTERM,
        nix::sys::signal::Signal::SIGINT,
        nix::sys::signal::Signal::SIGHUP,
        nix::sys::signal::Signal::SIGPIPE,
    ] {
        // SAFETY: ignoring a signal installs no handler that could run.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let _ = rustix::process::nice(-20);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::env::set_current_dir("/");
}

/// Follows the board to another process; the one held stays as long as the board names it.
fn hold(held: &mut Option<Postmaster>, named: Option<ProcessId>) {
    match named {
        Some(id) if held.as_ref().is_none_or(|known| known.id != id) => {
            if let Some(new) = Postmaster::hold(id) {
                *held = Some(new);
            }
        }
        Some(_) | None => {}
    }
}

/// Waits a moment, or until the process ends.
fn moment(ms: u64, process: &Postmaster) {
    let timeout =
        Timespec { tv_sec: 0, tv_nsec: i64::try_from(ms).unwrap_or(1).min(999) * 1_000_000 };
    let pidfd = process.pidfd();
    let mut watched: Vec<PollFd<'_>> =
        pidfd.iter().map(|fd| PollFd::new(fd.as_ref(), PollFlags::IN)).collect();
    let _ = poll(&mut watched, Some(&timeout));
}

/// The lease ends: nothing may be written any more. Everything of this postmaster is gone when this
/// returns, or the kernel cannot kill it.
fn fence(postmaster: &Postmaster) {
    let began = boottime();
    eprintln!(
        "hathi guard: the lease ends and the agent did not prolong it; stopping PostgreSQL (pid {})",
        postmaster.id.pid
    );
    let mut tree = children_of(postmaster.id);
    let _ = postmaster.signal(Signal::QUIT);
    while postmaster.is_alive() && boottime().since(began) < GRACE_MS {
        moment(5, postmaster);
    }
    if postmaster.is_alive() {
        // Stopped, so that it cannot start another child while its children are listed.
        let _ = postmaster.signal(Signal::STOP);
        tree.extend(children_of(postmaster.id));
        let _ = postmaster.signal(Signal::KILL);
    }
    for child in tree.iter().filter_map(|id| Postmaster::hold(*id)) {
        let _ = child.signal(Signal::KILL);
    }
    while postmaster.is_alive() && boottime().since(began) < 10 * GRACE_MS {
        moment(5, postmaster);
    }
    if !postmaster.is_alive() {
        eprintln!("hathi guard: PostgreSQL is down after {} ms", boottime().since(began));
    }
}

/// The living children of a process. A backend is always a direct child of its postmaster.
fn children_of(parent: ProcessId) -> Vec<ProcessId> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let seen = stat(pid).filter(|seen| seen.parent == parent.pid && !seen.is_dead())?;
            Some(ProcessId { pid, start_time: seen.start_time })
        })
        .collect()
}
