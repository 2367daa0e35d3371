//! One server process: started with its output in a file, signalled and ended by pid.

use crate::network::Machine;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child of the test. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` as the servers' user, its output appended to `log`.
    pub fn start(command: Command, log: &Path) -> Self {
        Self::start_on(None, command, log)
    }

    /// The same on a machine of its own.
    pub fn start_on(machine: Option<&Machine>, command: Command, log: &Path) -> Self {
        Self::start_by(command, log, |command| match machine {
            Some(machine) => machine.spawn(command),
            None => command.spawn(),
        })
    }

    /// The same, spawned by the caller.
    pub fn start_by(
        mut command: Command,
        log: &Path,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("the log file opens");
        let err = out.try_clone().expect("a file handle can be cloned");
        crate::osuser::as_server(&mut command).stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn(&mut command);
        let child = child.unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        Self { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        signal_pid(self.child.id(), signal);
    }

    /// SIGSTOP, and waits until every thread stands still.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let stands = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // A thread that has ended meanwhile stands still, too.
            stat.rsplit(") ").next().is_none_or(|rest| !rest.starts_with(['R', 'S', 'D']))
        };
        let started = Instant::now();
        while !std::fs::read_dir(&tasks).is_ok_and(|all| all.flatten().all(stands)) {
            assert!(started.elapsed() < Duration::from_secs(5), "{tasks} does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end, by polling, so that it can be called from async code's blocking pool or
    /// from a destructor alike. `None`: still running after `within`.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if started.elapsed() > within {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9, and reaps.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // "pid (comm) S ...": the state is the first letter after the last parenthesis.
    stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z'))
}

/// Every process that belongs to `dir`: its command line, working directory or environment says
/// so. This finds what an agent started and left: postmasters, guards.
pub fn belonging_to(dir: &Path) -> Vec<u32> {
    let needle = dir.to_string_lossy().into_owned();
    let me = std::process::id();
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    all.flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok())
        .filter(|pid| *pid != me)
        .filter(|pid| {
            let has = |file: &str| {
                std::fs::read(format!("/proc/{pid}/{file}"))
                    .is_ok_and(|raw| String::from_utf8_lossy(&raw).contains(&needle))
            };
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"));
            cwd.is_ok_and(|c| c.starts_with(dir)) || has("cmdline") || has("environ")
        })
        .collect()
}

/// What these processes occupy together, in kilobytes: each page of physical memory once, also where
/// several of them share it, as an agent and its guard share their program. `None` where the kernel
/// does not tell the pages' numbers (root is needed).
pub fn resident_kb(pids: &[u32]) -> Option<u64> {
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    let page = rustix::param::page_size() as u64;
    let mut pages = std::collections::HashSet::new();
    for pid in pids {
        let map = File::open(format!("/proc/{pid}/pagemap")).ok()?;
        for line in std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?.lines() {
            let range = line.split_whitespace().next()?.split_once('-')?;
            let from = u64::from_str_radix(range.0, 16).ok()? / page;
            let to = u64::from_str_radix(range.1, 16).ok()? / page;
            let mut entries = vec![0; usize::try_from((to - from) * 8).ok()?];
            // [vsyscall] lies outside what can be read, and is no memory of theirs.
            let Ok(read) = map.read_at(&mut entries, from * 8) else { continue };
            for entry in entries[..read].chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().ok()?);
                if entry & PRESENT != 0 && entry & NUMBER != 0 {
                    pages.insert(entry & NUMBER);
                }
            }
        }
    }
    (!pages.is_empty()).then_some(pages.len() as u64 * page / 1024)
}

/// CPU time a process has used so far, user and system, ended threads included, in seconds. To the
/// nanosecond: an idle agent uses less than one tick of /proc/PID/stat in ten seconds.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let used = nix::time::clock_getcpuclockid(pid).ok()?.now().ok()?;
    Some(std::time::Duration::from(used).as_secs_f64())
}

/// The last lines of a file, for a failure's report.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
    let text = text.unwrap_or_else(|e| format!("({e})"));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
