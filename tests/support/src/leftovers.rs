//! What a killed run left behind. Every directory of a run holds a locked file; when the lock is
//! free, its owner is gone, and the next run ends what still lives there and removes it.

use crate::process::{belonging_to, signal_pid};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use std::fs::File;
use std::path::Path;
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

/// kill -9 of everything that belongs to a directory, until nothing does.
pub fn end_processes(dir: &Path) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        let all = belonging_to(dir);
        if all.is_empty() {
            return;
        }
        all.into_iter().for_each(|pid| signal_pid(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(20));
    }
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
