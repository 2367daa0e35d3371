//! The page of memory that agent and guard share, and the two locks beside it.

use crate::postgres::ProcessId;
use hathi_dcs::Millis;
use rustix::fs::{FlockOperation, flock};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// "hathi" and the version of the layout.
const MAGIC: u64 = 0x6861_7468_6900_0001;
const SIZE: usize = 4096;

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
    /// Boottime milliseconds when the guard last had to act; 0: never.
    fenced_at: AtomicU64,
}

/// The mapped page. Clones are not needed: each process maps it once.
#[derive(Debug)]
pub struct Board {
    page: NonNull<Fields>,
    path: PathBuf,
    data_dir: PathBuf,
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
        Self::at(path_for(data_dir), data_dir)
    }

    /// Opens the board at `path`.
    pub fn at(path: PathBuf, data_dir: &Path) -> Result<Self, BoardError> {
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
        let board = Self { page, path: path.clone(), data_dir: data_dir.to_path_buf() };
        let fields = board.fields();
        if fields.magic.load(Ordering::SeqCst) != MAGIC {
            // New, or of a version whose guard is gone with it: start from nothing.
            for field in [
                &fields.deadline,
                &fields.postmaster_pid,
                &fields.agent_pid,
                &fields.guard_pid,
                &fields.fenced_at,
            ] {
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

    pub fn fenced_at(&self) -> Option<Millis> {
        let at = self.fields().fenced_at.load(Ordering::SeqCst);
        (at != 0).then_some(Millis(at))
    }

    pub fn set_fenced(&self, at: Millis) {
        self.fields().fenced_at.store(at.0, Ordering::SeqCst);
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

    /// One agent a data directory. The lock is held as long as the file is.
    pub fn lock_agent(&self) -> Result<File, BoardError> {
        self.lock("agent")?.ok_or_else(|| BoardError::InUse { data_dir: self.data_dir.clone() })
    }

    /// One guard a data directory. `None`: there is one.
    pub fn lock_guard(&self) -> Result<Option<File>, BoardError> {
        self.lock("guard")
    }

    fn lock(&self, whose: &str) -> Result<Option<File>, BoardError> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{whose}"));
        let path = PathBuf::from(path);
        let failed = |why| BoardError::File { path: path.clone(), why };
        let file = private(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(why) => Err(failed(why.into())),
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
        let first = Board::at(path.clone(), dir.path()).unwrap();
        let process = ProcessId { pid: 4711, start_time: 99 };
        first.set_deadline(Some(Millis(5)));
        first.set_postmaster(Some(process));
        let second = Board::at(path, dir.path()).unwrap();
        assert_eq!(second.deadline(), Some(Millis(5)));
        assert_eq!(second.postmaster(), Some(process));
        second.set_deadline(None);
        second.set_postmaster(None);
        assert_eq!((first.deadline(), first.postmaster()), (None, None));
    }

    #[test]
    fn one_agent_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let board = Board::at(dir.path().join("board"), dir.path()).unwrap();
        let held = board.lock_agent().unwrap();
        assert!(matches!(board.lock_agent(), Err(BoardError::InUse { .. })));
        drop(held);
        assert!(board.lock_agent().is_ok());
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
