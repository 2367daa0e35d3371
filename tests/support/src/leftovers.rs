//! What a killed run left behind. Every directory of a run holds a locked file; when the lock is
//! free, its owner is gone, and the next run ends what still lives there and removes it.

use crate::process::{belonging_to, signal_pid};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LOCK: &str = "owner.lock";

/// The lock on a run's directory; free again when this process is gone, however it ended.
#[derive(Debug)]
pub struct Owner(#[allow(dead_code, reason = "held, not read")] File);

impl Owner {
    /// Claims a directory.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn of(dir: &Path) -> std::io::Result<Self> {
        // Locked before it has its name, so that nobody finds it unlocked.
        let unfinished = dir.join("owner.new");
        let file = File::create(&unfinished)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        std::fs::rename(&unfinished, dir.join(LOCK))?;
        Ok(Self(file))
    }
}

/// Ends and removes what runs with this prefix left in the temporary directory; how many there
/// were.
pub fn clean(prefix: &str) -> usize {
    let all = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    all.filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .filter(|e| end(&e.path()))
        .count()
}

fn end(dir: &Path) -> bool {
    let Ok(lock) = File::options().write(true).open(dir.join(LOCK)) else { return false };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    end_processes(dir);
    std::fs::remove_dir_all(dir).is_ok()
}

/// kill -9 of everything that belongs to a directory, until nothing does; and then away with the memory
/// that it shared, which a killed process leaves behind.
pub fn end_processes(dir: &Path) {
    let mut shared = BTreeSet::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        let all = belonging_to(dir);
        if all.is_empty() {
            break;
        }
        for pid in &all {
            shared.extend(shared_files(*pid));
        }
        all.into_iter().for_each(|pid| signal_pid(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(20));
    }
    for file in shared {
        let _ = std::fs::remove_file(file);
    }
    for segment in data_dirs(dir, 3).iter().filter_map(|data| segment(data)) {
        let _ = Command::new("ipcrm").args(["-m", &segment.to_string()]).output();
    }
}

/// The files in shared memory of an agent, its guard (the page and its locks) or a PostgreSQL.
fn shared_files(pid: u32) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let ours = ["/dev/shm/hathi-", "/dev/shm/PostgreSQL."];
    let paths = maps.lines().filter_map(|line| line.find("/dev/shm/").map(|at| &line[at..]));
    let paths = paths.filter(|path| ours.iter().any(|prefix| path.starts_with(prefix)));
    let paths = paths.filter(|path| !path.contains(' '));
    paths
        .flat_map(|path| ["", ".agent", ".guard"].map(|end| format!("{path}{end}").into()))
        .collect()
}

/// Where a postmaster.pid still lies.
fn data_dirs(dir: &Path, depth: usize) -> Vec<PathBuf> {
    if dir.join("postmaster.pid").exists() {
        return vec![dir.to_owned()];
    }
    let inner = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let inner =
        inner.filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()));
    inner.flat_map(|entry| data_dirs(&entry.path(), depth - 1)).collect()
}

/// The System V segment of a killed postmaster: it made it, and nobody is attached any more.
fn segment(data_dir: &Path) -> Option<u32> {
    let file = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid = file.lines().next()?.trim().to_owned();
    let id = file.lines().nth(6)?.split_whitespace().nth(1)?.to_owned();
    let all = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let mut rows = all.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    // key, shmid, perms, size, cpid, lpid, nattch
    let row = rows.find(|row| row.len() > 6 && row[1] == id)?;
    (row[4] == pid && row[6] == "0").then(|| id.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_owns_is_removed() {
        let prefix = format!("hathi-leftover-{}-", std::process::id());
        let dir = || tempfile::Builder::new().prefix(&prefix).tempdir().expect("a directory");
        let (owned, left, unclaimed) = (dir(), dir(), dir());
        let _owner = Owner::of(owned.path()).expect("a claim");
        drop(Owner::of(left.path()).expect("a claim"));
        assert_eq!(clean(&prefix), 1);
        assert!(owned.path().exists() && unclaimed.path().exists() && !left.path().exists());
    }
}
