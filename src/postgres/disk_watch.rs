//! Does the disk of the data directory still take a write? (HA-314)
//!
//! A thread of its own tries once a second. It may hang with the disk; nobody waits for it, everybody
//! may ask how long it has hung.

use crate::postgres::room::lock;
use hathi_dcs::boottime;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Beside the data, as the cached configuration is.
const FILE: &str = "hathi.disk";
const EVERY: Duration = Duration::from_secs(1);

/// What is looked after, and since when a write has been on its way.
#[derive(Debug, Default)]
pub struct DiskWatch {
    data_dir: Mutex<Option<PathBuf>>,
    /// Boottime milliseconds; 0: none is on its way.
    since: AtomicU64,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl DiskWatch {
    /// This data directory from now on, or none. The thread ends with the last one who holds this, as
    /// soon as its disk lets it.
    pub fn look_after(self: &Arc<Self>, data_dir: Option<PathBuf>) {
        let begins = data_dir.is_some();
        *lock(&self.data_dir) = data_dir;
        let mut thread = lock(&self.thread);
        if !begins || thread.is_some() {
            return;
        }
        let watch = Arc::downgrade(self);
        let spawned = std::thread::Builder::new().name("disk".into()).spawn(move || {
            while let Some(watch) = watch.upgrade() {
                watch.try_once();
                drop(watch);
                std::thread::sleep(EVERY);
            }
        });
        match spawned {
            Ok(handle) => *thread = Some(handle),
            Err(why) => tracing::warn!("nobody looks after the disk: {why}"),
        }
    }

    /// How long a write has had no end. 0: none is on its way.
    pub fn stalls_ms(&self) -> u64 {
        match self.since.load(Ordering::Acquire) {
            0 => 0,
            since => boottime().since(hathi_dcs::Millis(since)),
        }
    }

    fn try_once(&self) {
        let Some(data_dir) = lock(&self.data_dir).clone() else { return };
        self.since.store(boottime().0.max(1), Ordering::Release);
        // An error is an answer: what it means PostgreSQL itself will tell.
        let _ = write(&data_dir);
        self.since.store(0, Ordering::Release);
    }
}

/// Not where there is no data directory yet: a bootstrap wants it empty.
fn write(data_dir: &Path) -> std::io::Result<()> {
    if !data_dir.join("PG_VERSION").exists() {
        return Ok(());
    }
    let path = data_dir.join(FILE);
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&[b'\n'; 512])?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves HA-314 (the look): a disk that answers stalls nobody; one that does not is told of, by the
    /// time it has hung. A named pipe that nobody reads stands in for the disk.
    #[test]
    fn a_write_without_an_end_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("PG_VERSION"), "15").unwrap();
        let watch = Arc::new(DiskWatch::default());
        watch.look_after(Some(folder.path().to_owned()));
        let until = |what: &dyn Fn() -> bool| {
            let began = std::time::Instant::now();
            while !what() {
                assert!(began.elapsed() < Duration::from_secs(20), "it does not come");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let file = folder.path().join(FILE);
        until(&|| file.exists());
        until(&|| watch.stalls_ms() == 0);
        std::fs::remove_file(&file).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, mode, 0).unwrap();
        until(&|| watch.stalls_ms() > 1_500);
        // The disk comes back.
        let mut reader = std::fs::File::open(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let _ = std::io::Read::read_to_end(&mut reader, &mut Vec::new());
        until(&|| watch.stalls_ms() == 0 && file.is_file());
    }
}
