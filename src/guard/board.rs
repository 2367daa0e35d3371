//! The page of memory that agent and guard share, and the two locks beside it.

use crate::postgres::ProcessId;
use hathi_dcs::Millis;
use rustix::fs::{FlockOperation, flock};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// "hathi" and the version of the layout.
const MAGIC: u64 = 0x6861_7468_6900_0001;
const SIZE: usize = 4096;
/// Whose lock; the ends of the names of two files beside the board.
const AGENT: &str = "agent";
const GUARD: &str = "guard";

/// Why the board cannot be used; one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: io::Error },
    #[error("another hathi manages {} already", data_dir.display())]
    InUse { data_dir: PathBuf },
}

/// Each field is written by one side and read by the other; a process is two fields, the pid last
/// and cleared first, so that a reader never pairs a pid with another process's start time.
#[repr(C)]
struct Fields {
    magic: AtomicU64,
    /// Boottime milliseconds after which PostgreSQL must be dead; 0: nothing to protect.
    deadline: AtomicU64,
    postmaster_pid: AtomicU64,
    postmaster_start: AtomicU64,
    agent_pid: AtomicU64,
    agent_start: AtomicU64,
    guard_pid: AtomicU64,
    guard_start: AtomicU64,
}

/// The mapped page. Clones are not needed: each process maps it once.
#[derive(Debug)]
pub struct Board {
    page: NonNull<Fields>,
    path: PathBuf,
    inode: u64,
}

// SAFETY: the page is only ever touched through atomics, and lives as long as the board.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped in `open` with this size, and nobody else unmaps it.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), SIZE) };
    }
}

/// Where the board of a data directory lies: memory, not disk, so that a hung disk stops nobody.
pub fn path_for(data_dir: &Path) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let directory = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    let uid = rustix::process::geteuid().as_raw();
    let name = resolved(data_dir);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325; // FNV-1a: the same in every build
    for byte in name.as_os_str().as_encoded_bytes() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    directory.join(format!("hathi-{uid}-{hash:016x}"))
}

/// The data directory may not exist yet: the part that does is made canonical.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for ancestor in absolute.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), absolute.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    absolute
}

impl Board {
    /// Opens or creates the board of a data directory.
    pub fn open(data_dir: &Path) -> Result<Self, BoardError> {
        Self::at(path_for(data_dir))
    }

    /// Opens the board at `path`.
    pub fn at(path: PathBuf) -> Result<Self, BoardError> {
        let failed = |why| BoardError::File { path: path.clone(), why };
        let file = private(&path).map_err(failed)?;
        file.set_len(SIZE as u64).map_err(failed)?;
        // SAFETY: a fresh shared mapping of a file of at least this size; all access is atomic.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .map_err(|why| failed(why.into()))?;
        let page = NonNull::new(page.cast()).ok_or_else(|| failed(io::ErrorKind::Other.into()))?;
        let inode = file.metadata().map_err(failed)?.ino();
        let board = Self { page, path: path.clone(), inode };
        let fields = board.fields();
        if fields.magic.load(Ordering::SeqCst) != MAGIC {
            // New, or of a version whose guard is gone with it: start from nothing.
            for field in
                [&fields.deadline, &fields.postmaster_pid, &fields.agent_pid, &fields.guard_pid]
            {
                field.store(0, Ordering::SeqCst);
            }
            fields.magic.store(MAGIC, Ordering::SeqCst);
        }
        Ok(board)
    }

    fn fields(&self) -> &Fields {
        // SAFETY: mapped, aligned to a page, and only atomics; lives as long as `self`.
        unsafe { self.page.as_ref() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn deadline(&self) -> Option<Millis> {
        let at = self.fields().deadline.load(Ordering::SeqCst);
        (at != 0).then_some(Millis(at))
    }

    pub fn set_deadline(&self, at: Option<Millis>) {
        self.fields().deadline.store(at.map_or(0, |at| at.0), Ordering::SeqCst);
    }

    pub fn postmaster(&self) -> Option<ProcessId> {
        read(&self.fields().postmaster_pid, &self.fields().postmaster_start)
    }

    pub fn set_postmaster(&self, process: Option<ProcessId>) {
        write(&self.fields().postmaster_pid, &self.fields().postmaster_start, process);
    }

    pub fn agent(&self) -> Option<ProcessId> {
        read(&self.fields().agent_pid, &self.fields().agent_start)
    }

    pub fn set_agent(&self, process: Option<ProcessId>) {
        write(&self.fields().agent_pid, &self.fields().agent_start, process);
    }

    pub fn guard(&self) -> Option<ProcessId> {
        read(&self.fields().guard_pid, &self.fields().guard_start)
    }

    pub fn set_guard(&self, process: Option<ProcessId>) {
        write(&self.fields().guard_pid, &self.fields().guard_start, process);
    }

    /// The board of a data directory, and the agent's lock on it: one agent a data directory. The lock is
    /// held as long as the file is.
    ///
    /// # Errors
    /// Another agent has it, or the shared memory cannot be used.
    pub fn open_as_agent(data_dir: &Path) -> Result<(Self, File), BoardError> {
        // A guard that goes removes both, and holds the lock for that moment.
        let mut tries = 10;
        loop {
            let board = Self::open(data_dir)?;
            match board.lock(AGENT)? {
                Some(only) if board.is_current() => return Ok((board, only)),
                Some(_) | None if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Some(_) | None => {
                    return Err(BoardError::InUse { data_dir: data_dir.to_path_buf() });
                }
            }
        }
    }

    /// Is this still the page that others find by the path?
    fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }

    /// The guard goes and no agent is here: nothing is left behind.
    pub fn remove_if_unused(&self) {
        // Held until the files are gone, so that no agent comes in between.
        let Ok(Some(_nobody)) = self.lock(AGENT) else { return };
        for name in [self.path.clone(), self.lock_path(AGENT), self.lock_path(GUARD)] {
            let _ = std::fs::remove_file(name);
        }
    }

    /// One guard a data directory. `None`: there is one.
    pub fn lock_guard(&self) -> Result<Option<File>, BoardError> {
        self.lock(GUARD)
    }

    fn lock_path(&self, whose: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{whose}"));
        PathBuf::from(path)
    }

    fn lock(&self, whose: &str) -> Result<Option<File>, BoardError> {
        let path = self.lock_path(whose);
        let failed = |why| BoardError::File { path: path.clone(), why };
        loop {
            let file = private(&path).map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(why) => return Err(failed(why.into())),
            }
            // It may have been removed between the two: then nobody else would find this lock.
            let own = file.metadata().map_err(failed)?.ino();
            if std::fs::metadata(&path).is_ok_and(|found| found.ino() == own) {
                return Ok(Some(file));
            }
        }
    }
}

fn private(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn read(pid: &AtomicU64, start: &AtomicU64) -> Option<ProcessId> {
    loop {
        let first = pid.load(Ordering::SeqCst);
        let start_time = start.load(Ordering::SeqCst);
        if first == pid.load(Ordering::SeqCst) {
            let pid = i32::try_from(first).ok().filter(|pid| *pid > 0)?;
            return Some(ProcessId { pid, start_time });
        }
    }
}

fn write(pid: &AtomicU64, start: &AtomicU64, process: Option<ProcessId>) {
    pid.store(0, Ordering::SeqCst);
    if let Some(process) = process {
        start.store(process.start_time, Ordering::SeqCst);
        pid.store(u64::from(process.pid.unsigned_abs()), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_is_found_again_by_its_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("board");
        let first = Board::at(path.clone()).unwrap();
        let process = ProcessId { pid: 4711, start_time: 99 };
        first.set_deadline(Some(Millis(5)));
        first.set_postmaster(Some(process));
        let second = Board::at(path).unwrap();
        assert_eq!(second.deadline(), Some(Millis(5)));
        assert_eq!(second.postmaster(), Some(process));
        second.set_deadline(None);
        second.set_postmaster(None);
        assert_eq!((first.deadline(), first.postmaster()), (None, None));
    }

    #[test]
    fn one_agent_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = Board::open_as_agent(dir.path()).unwrap();
        assert!(matches!(Board::open_as_agent(dir.path()), Err(BoardError::InUse { .. })));
        drop(held);
        let (board, again) = Board::open_as_agent(dir.path()).unwrap();
        board.remove_if_unused();
        assert!(board.is_current(), "an agent is here");
        drop(again);
        board.remove_if_unused();
        for name in [board.path().to_path_buf(), board.lock_path(AGENT), board.lock_path(GUARD)] {
            assert!(!name.exists(), "{}", name.display());
        }
        let (new, _only) = Board::open_as_agent(dir.path()).unwrap();
        assert!(new.is_current() && !board.is_current());
        for name in [new.path().to_path_buf(), new.lock_path(AGENT)] {
            std::fs::remove_file(name).unwrap();
        }
    }

    #[test]
    fn the_path_does_not_depend_on_how_it_is_spelled() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("data");
        let before = path_for(&there);
        std::fs::create_dir(&there).unwrap();
        assert_eq!(before, path_for(&there));
        std::os::unix::fs::symlink(&there, dir.path().join("link")).unwrap();
        assert_eq!(before, path_for(&dir.path().join("link")));
        assert_ne!(before, path_for(dir.path()));
    }
}
