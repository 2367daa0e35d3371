//! Which process is our postmaster, is it alive, and what are its children. (PG-010, PG-450, PG-480)
//!
//! A process is named by its pid and its start time, so that a reused pid is never taken for it; a
//! signal goes through a pidfd where we hold one. A zombie is dead.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A process by pid and start time (clock ticks since boot, field 22 of `/proc/<pid>/stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    pub pid: i32,
    pub start_time: u64,
}

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `D`, `T` (stopped), `Z` …
    pub state: char,
    pub parent: i32,
    pub start_time: u64,
}

impl Stat {
    /// Gone, or a zombie: it will never run again.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads one process; `None` when there is none.
pub fn stat(pid: i32) -> Option<Stat> {
    // Asked for several times in each turn: one read into a place that is large enough, where reading
    // to the end of a file of unknown size takes seven.
    let mut place = [0; 1024];
    let mut file = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut place).ok()?;
    parse_stat(&String::from_utf8_lossy(place.get(..length)?))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may contain anything, parentheses too.
    let rest = text.get(text.rfind(')')? + 1..)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start_time })
}

impl ProcessId {
    /// The living process with this pid, as it is now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = stat(pid).filter(|stat| !stat.is_dead())?;
        Some(Self { pid, start_time: stat.start_time })
    }

    /// Its stat line, if it is still this process and lives.
    pub fn alive(self) -> Option<Stat> {
        stat(self.pid).filter(|stat| stat.start_time == self.start_time && !stat.is_dead())
    }
}

/// A postmaster of ours that was alive when this was made.
#[derive(Clone, Debug)]
pub struct Postmaster {
    pub id: ProcessId,
    /// `None` where the kernel has no pidfds: then the pid is watched by looking.
    pidfd: Option<Arc<OwnedFd>>,
}

impl Postmaster {
    /// Takes hold of a process; `None` if it is gone.
    pub fn hold(id: ProcessId) -> Option<Self> {
        let pidfd = match pidfd_open(Pid::from_raw(id.pid)?, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(Errno::SRCH) => return None,
            Err(why) => {
                tracing::warn!(target: "hathi::postgres", "no pidfd of process {}: {why}", id.pid);
                None
            }
        };
        // Only now is it sure that the pidfd is of the process we meant.
        id.alive()?;
        Some(Self { id, pidfd })
    }

    pub fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.clone()
    }

    pub fn is_alive(&self) -> bool {
        self.id.alive().is_some()
    }

    /// Stopped by a signal: it answers nobody, whatever its children do.
    pub fn is_frozen(&self) -> bool {
        self.id.alive().is_some_and(|stat| stat.state == 'T')
    }

    /// `Ok(false)`: it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<bool, String> {
        let sent = match (&self.pidfd, Pid::from_raw(self.id.pid)) {
            (Some(pidfd), _) => pidfd_send_signal(pidfd, signal),
            (None, Some(pid)) if self.is_alive() => rustix::process::kill_process(pid, signal),
            (None, Some(_) | None) => return Ok(false),
        };
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(why) => Err(format!("cannot signal process {}: {why}", self.id.pid)),
        }
    }
}

/// The lines of `postmaster.pid` that identify its writer. (PG-010)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidFile {
    /// Negative: a single-user backend.
    pub pid: i32,
    /// Seconds since 1970 when it was written.
    pub started: u64,
    /// `starting`, `ready`, `standby`, `stopping`; empty at first.
    pub status: String,
}

impl PidFile {
    pub fn read(data_dir: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let pid: i32 = lines.first()?.parse().ok()?;
        let started = lines.get(2).and_then(|line| line.parse().ok()).unwrap_or_default();
        let status = lines.get(7).copied().unwrap_or_default().to_owned();
        (pid != 0).then_some(Self { pid, started, status })
    }
}

/// The postmaster that `postmaster.pid` names, if it lives and is one of this directory.
/// (PG-010, PG-011, PG-480)
pub fn find(data_dir: &Path) -> Option<ProcessId> {
    let file = PidFile::read(data_dir).filter(|file| file.pid > 0)?;
    let id = ProcessId::of(file.pid)?;
    let own = std::process::id().cast_signed();
    let is_ours = id.pid != own
        && works_in(id.pid, data_dir).unwrap_or_else(|| {
            // Another user's process: only the time can tell.
            wall_start(id).is_some_and(|started| started.abs_diff(file.started) <= 3)
        });
    is_ours.then_some(id)
}

/// The pid that `postmaster.pid` names although no postmaster has it: a reused one, or a zombie that
/// init has not collected yet. PostgreSQL takes both for a running server. (PG-025)
///
/// The lock files of its sockets have the same form and outlive `postmaster.pid` when something else
/// worked on the directory in between.
pub fn impostor(data_dir: &Path, socket_locks: &[PathBuf]) -> Option<i32> {
    if find(data_dir).is_some() {
        return None;
    }
    let own = PidFile::read(data_dir).map(|file| file.pid);
    let of_lock = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        let is_ours = text.lines().nth(1).is_some_and(|line| Path::new(line.trim()) == data_dir);
        PidFile::parse(&text).filter(|_| is_ours).map(|file| file.pid)
    };
    let named = own.into_iter().chain(socket_locks.iter().filter_map(of_lock));
    let mut unreal = named
        .filter(|pid| *pid > 0 && stat(*pid).is_some() && works_in(*pid, data_dir) != Some(true));
    unreal.next()
}

/// Is this a `postgres` whose working directory is `data_dir`? `None` if we may not look.
fn works_in(pid: i32, data_dir: &Path) -> Option<bool> {
    let cwd = std::fs::metadata(format!("/proc/{pid}/cwd")).ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.to_string_lossy().into_owned();
    // Packagers add to the name (`edb-postgres`), and the kernel does (` (deleted)`).
    if !name.contains("postgres") && !name.contains("postmaster") {
        return Some(false);
    }
    match std::fs::metadata(data_dir) {
        Ok(dir) => Some((dir.dev(), dir.ino()) == (cwd.dev(), cwd.ino())),
        Err(_) => Some(false),
    }
}

/// When a process began, in seconds since 1970, from the boot time and its ticks.
fn wall_start(id: ProcessId) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 =
        text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + id.start_time / rustix::param::clock_ticks_per_second().max(1))
}

/// All processes, with their stat lines.
fn all() -> Vec<(i32, Stat)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect()
}

/// The living children of a process.
pub fn children(pid: i32) -> Vec<ProcessId> {
    let living = |(_, stat): &(i32, Stat)| stat.parent == pid && !stat.is_dead();
    let id = |(pid, stat): (i32, Stat)| ProcessId { pid, start_time: stat.start_time };
    all().into_iter().filter(living).map(id).collect()
}

/// All living descendants of a process.
pub fn descendants(pid: i32) -> Vec<ProcessId> {
    let table = all();
    let mut found: Vec<ProcessId> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for (child, stat) in table.iter().filter(|(_, stat)| stat.parent == parent) {
            if !stat.is_dead() && !found.iter().any(|known| known.pid == *child) {
                found.push(ProcessId { pid: *child, start_time: stat.start_time });
                parents.push(*child);
            }
        }
    }
    found
}

/// Server processes of this data directory whose postmaster is gone. They hold its shared memory
/// and may still answer clients.
pub fn orphans(data_dir: &Path) -> Vec<ProcessId> {
    let mut found = Vec::new();
    for (pid, stat) in all() {
        if stat.is_dead() || !title(pid).starts_with("postgres: ") {
            continue;
        }
        // Its parent is still a server process of the same directory: not an orphan.
        let has_postmaster = works_in(stat.parent, data_dir) == Some(true);
        if works_in(pid, data_dir) == Some(true) && !has_postmaster {
            found.push(ProcessId { pid, start_time: stat.start_time });
        }
    }
    found
}

/// The command line as `ps` shows it; empty for a process that is gone.
pub fn title(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').replace('\0', " ")
}

/// Kills without mercy, if it is still that process.
pub fn kill(id: ProcessId, signal: Signal) {
    if id.alive().is_some()
        && let Some(pid) = Pid::from_raw(id.pid)
    {
        // Gone in between is what we want.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Does this title belong to a process that serves no client? (PG-043)
pub fn is_auxiliary(title: &str) -> bool {
    let Some(rest) = title.strip_prefix("postgres: ") else {
        // Not yet renamed: a child that is being forked may become anything.
        return false;
    };
    // An optional "<cluster_name>: " stands before the kind.
    let parts = std::iter::once(rest)
        .chain(rest.match_indices(": ").map(|(at, _)| rest.get(at + 2..).unwrap_or_default()));
    let mut kinds = parts.map(str::trim_start);
    kinds.any(|kind| AUXILIARY.iter().any(|name| starts_with_words(kind, name)))
}

fn starts_with_words(text: &str, words: &str) -> bool {
    text.strip_prefix(words).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ':']))
}

const AUXILIARY: [&str; 24] = [
    "archiver",
    "startup",
    "autovacuum launcher",
    "autovacuum worker",
    "checkpointer",
    "logger",
    "stats collector",
    "wal receiver",
    "wal writer",
    "writer",
    "walreceiver",
    "walsender",
    "wal sender process",
    "walwriter",
    "background writer",
    "logical replication launcher",
    "logical replication worker",
    "logical replication tablesync worker",
    "logical replication parallel apply worker",
    "logical replication apply worker",
    "slotsync worker",
    "walsummarizer",
    "io worker",
    "bgworker",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_names_are_read() {
        let line = "42 (a) b) (c) T 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { state: 'T', parent: 7, start_time: 98765 });
        assert!(parse_stat("").is_none() && parse_stat("1 (x").is_none());
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(me.alive().is_some());
        assert!(ProcessId { start_time: me.start_time + 1, ..me }.alive().is_none());
    }

    /// Proves PG-010 (the pid file).
    #[test]
    fn pid_files_are_read() {
        let full = "41\n/d\n1700000000\n5432\n/tmp\nlocalhost\n  5 6\nready   \n";
        let file = PidFile::parse(full).unwrap();
        assert_eq!((file.pid, file.started, file.status.as_str()), (41, 1_700_000_000, "ready"));
        assert_eq!(PidFile::parse("-41\n/d\n1\n").unwrap().pid, -41);
        for bad in ["", "x\n", "0\n"] {
            assert!(PidFile::parse(bad).is_none(), "{bad:?}");
        }
    }

    /// Proves PG-043 (which titles are auxiliary).
    #[test]
    fn client_backends_are_told_from_auxiliary_processes() {
        for title in [
            "postgres: golden: checkpointer ",
            "postgres: checkpointer",
            "postgres: golden: startup recovering 000000010000000000000004",
            "postgres: a: b: walreceiver streaming 0/4000060",
            "postgres: golden: walsender replicator 127.0.0.1(51388) streaming 0/4079158",
            "postgres: golden: logical replication launcher ",
            "postgres: golden: autovacuum worker postgres",
            "postgres: golden: archiver archiving 000000010000000000000004",
            "postgres: golden: bgworker: pg_cron",
        ] {
            assert!(is_auxiliary(title), "{title}");
        }
        for title in [
            "postgres: golden: postgres postgres 127.0.0.1(54760) idle",
            "postgres: golden: loggerx postgres [local] SELECT",
            "/usr/lib/postgresql/15/bin/postgres -D /srv",
            "",
        ] {
            assert!(!is_auxiliary(title), "{title}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_of_the_kernel_or_the_server_is_too_strange(text in ".*") {
            let _ = parse_stat(&text);
            let _ = PidFile::parse(&text);
            let _ = is_auxiliary(&text);
        }
    }
}
