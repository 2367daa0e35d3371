//! Checked records and small files that are replaced whole. (DCS-195)
//!
//! A record is `length, crc(length), crc(payload), payload`. What was acknowledged was synced, so
//! only the last record of a log can be torn by a crash; a bad record anywhere else is damage.

use crate::config::StartError;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub(crate) const HEADER: usize = 12;
/// Larger records are never written; a length beyond it is damage.
const LARGEST: usize = 64 << 20;

pub(crate) fn record(payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| (*length as usize) < LARGEST)
        .ok_or_else(|| io::Error::other("a record of more than 64 MiB"))?
        .to_be_bytes();
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&crc32fast::hash(&length).to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(payload).to_be_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// What stands at the beginning of `bytes`.
pub(crate) enum Found<'a> {
    Record {
        payload: &'a [u8],
        length: usize,
    },
    /// The file ends in the middle of this record, or in zeros the file system left.
    Torn,
    Bad(&'static str),
    End,
}

pub(crate) fn find(bytes: &[u8]) -> Found<'_> {
    if bytes.is_empty() {
        return Found::End;
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        word
    };
    if bytes.len() < HEADER || bytes.iter().all(|byte| *byte == 0) {
        return Found::Torn;
    }
    if crc32fast::hash(&word(0)) != u32::from_be_bytes(word(4)) {
        return Found::Bad("the head of a record does not match its checksum");
    }
    let end = HEADER + u32::from_be_bytes(word(0)) as usize;
    let Some(payload) = bytes.get(HEADER..end) else {
        return Found::Torn;
    };
    if crc32fast::hash(payload) == u32::from_be_bytes(word(8)) {
        Found::Record { payload, length: end }
    } else if end == bytes.len() {
        Found::Torn
    } else {
        Found::Bad("a record does not match its checksum")
    }
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The file has the new content or the old one, whatever happens; on `Ok` the new one is on disk.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_dir(dir)
}

/// The payload of a file that is one record; `None` if there is no such file.
pub(crate) fn read_whole(path: &Path) -> Result<Option<Vec<u8>>, StartError> {
    let dir = || path.parent().map(|dir| dir.display().to_string()).unwrap_or_default();
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StartError::DataDir { dir: dir(), why: error.to_string() }),
        Ok(mut file) => file
            .read_to_end(&mut bytes)
            .map_err(|error| StartError::DataDir { dir: dir(), why: error.to_string() })?,
    };
    match find(&bytes) {
        Found::Record { payload, length } if length == bytes.len() => Ok(Some(payload.to_vec())),
        _ => Err(damaged(path, 0, "it does not match its checksum")),
    }
}

pub(crate) fn damaged(path: &Path, at: usize, why: impl ToString) -> StartError {
    StartError::Corrupt {
        file: path.display().to_string(),
        at: at as u64,
        why: why.to_string(),
        dir: path.parent().map(|dir| dir.display().to_string()).unwrap_or_default(),
    }
}

/// The directory, ours alone for as long as this lives.
pub(crate) struct DataDir {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates it if need be, locks it and checks whose it is.
    pub(crate) fn open(path: &Path, cluster: &str, member: &str) -> Result<Self, StartError> {
        let dir = path.display().to_string();
        let cannot =
            |error: io::Error| StartError::DataDir { dir: dir.clone(), why: error.to_string() };
        std::fs::create_dir_all(path).map_err(cannot)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(cannot)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StartError::InUse { dir: dir.clone() })?;
        let owner = path.join("owner");
        let wanted = format!("cluster {cluster} member {member}");
        match read_whole(&owner)? {
            Some(found) if found == wanted.as_bytes() => {}
            Some(found) => {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(StartError::OtherOwner { dir, found, wanted });
            }
            None => {
                let stray = path.join("log").exists() || path.join("vote").exists();
                if stray {
                    let found = "something that does not say whose it is".to_owned();
                    return Err(StartError::OtherOwner { dir, found, wanted });
                }
                record(wanted.as_bytes())
                    .and_then(|bytes| replace(&owner, &bytes))
                    .map_err(cannot)?;
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }
}
