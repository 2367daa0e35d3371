//! Writing files so that nobody ever reads half of one, with the modes PostgreSQL's own files have.
//! (PG-355, PG-356, PG-452)

use rustix::fs::Mode;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// May the group read? PostgreSQL decides by the mode of its data directory. (PG-355)
fn group_reads(data_dir: &Path) -> bool {
    std::fs::metadata(data_dir).is_ok_and(|meta| meta.mode() & 0o050 == 0o050)
}

/// The mode of a file we make: 0600 or 0640 inside the data directory, 0666 minus the umask outside.
/// (PG-356)
pub fn mode_for(data_dir: &Path, path: &Path) -> u32 {
    if !path.starts_with(data_dir) {
        // The kernel takes the umask off.
        0o666
    } else if group_reads(data_dir) {
        0o640
    } else {
        0o600
    }
}

/// Replaces `path` as a whole: temporary file beside it, fsync, rename, fsync of the directory.
/// Reading gives the old or the new content, also after a crash.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.hathi", std::process::id()));
    let result = write_synced(&temporary, content, mode)
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| std::fs::File::open(directory)?.sync_all());
    if result.is_err() {
        // What is left of a failed attempt helps nobody.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    if mode != 0o666 {
        // Whatever our umask is: PostgreSQL's rule decides inside its directory.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(io::Error::from)?;
    }
    file.write_all(content)?;
    file.sync_all()
}

/// Replaces a file only if its content differs; tells whether it did.
pub fn replace_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    replace(path, content, mode).map(|()| true)
}

/// Removes a file; its absence is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Creates a directory if it is missing and proves that we may write there. (PG-021)
pub fn ensure_writable(directory: &Path) -> Result<(), String> {
    let tell = |why: io::Error| format!("directory {} : {why}", directory.display());
    if !directory.is_dir() {
        std::fs::create_dir_all(directory).map_err(tell)?;
    }
    tempfile::Builder::new().prefix(".hathi").tempfile_in(directory).map(|_| ()).map_err(tell)
}

/// The places outside that belong to a data directory: the targets of a linked pg_wal and of the
/// tablespaces, each with its link. (PG-350)
pub fn linked_directories(data_dir: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut links = vec![data_dir.join("pg_wal")];
    if let Ok(entries) = std::fs::read_dir(data_dir.join("pg_tblspc")) {
        let numeric = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        links.extend(entries.flatten().map(|entry| entry.path()).filter(numeric));
    }
    links
        .into_iter()
        .filter_map(|link| {
            let target = std::fs::read_link(&link).ok()?;
            Some((link.clone(), link.parent()?.join(target)))
        })
        .collect()
}

/// Removes a data directory with what is linked from it; a mount point is emptied. (PG-350, PG-352)
pub fn remove_tree(data_dir: &Path) -> io::Result<()> {
    let meta = match std::fs::symlink_metadata(data_dir) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(why),
        Ok(meta) => meta,
    };
    if !meta.is_dir() {
        return std::fs::remove_file(data_dir);
    }
    for (_, target) in linked_directories(data_dir) {
        if target.is_dir() {
            std::fs::remove_dir_all(&target)?;
        }
    }
    match std::fs::remove_dir_all(data_dir) {
        Ok(()) => Ok(()),
        // A mount point, or a parent that is not ours: empty is as good as gone.
        Err(_) if std::fs::read_dir(data_dir)?.next().is_none() => Ok(()),
        Err(why) => Err(why),
    }
}

/// Renames a data directory and what is linked from it with the suffix `.failed`; an older one goes.
/// (PG-351)
pub fn rename_tree(data_dir: &Path) -> io::Result<PathBuf> {
    let failed = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".failed");
        PathBuf::from(name)
    };
    let aside = failed(data_dir);
    if !data_dir.exists() {
        // The tool that failed has cleaned up after itself.
        return Ok(aside);
    }
    remove_tree(&aside)?;
    for (link, target) in linked_directories(data_dir) {
        let moved = failed(&target);
        if moved.exists() {
            std::fs::remove_dir_all(&moved)?;
        }
        if target.is_dir() {
            std::fs::rename(&target, &moved)?;
            std::fs::remove_file(&link)?;
            std::os::unix::fs::symlink(&moved, &link)?;
        }
    }
    std::fs::rename(data_dir, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    /// Proves PG-355, PG-356, PG-452.
    #[test]
    fn files_are_replaced_whole_with_the_mode_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let file = data.join("postgresql.conf");
        for (directory_mode, file_mode) in [(0o700, 0o600), (0o750, 0o640)] {
            std::fs::set_permissions(
                &data,
                std::os::unix::fs::PermissionsExt::from_mode(directory_mode),
            )
            .unwrap();
            replace(&file, b"x", mode_for(&data, &file)).unwrap();
            assert_eq!(modes(&file), file_mode);
        }
        assert!(!replace_if_changed(&file, b"x", 0o600).unwrap());
        assert!(replace_if_changed(&file, b"y", 0o600).unwrap());
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "no temporary file is left");
    }

    /// Proves PG-350, PG-351.
    #[test]
    fn a_data_directory_goes_with_what_is_linked_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let (data, wal, space) =
            (dir.path().join("data"), dir.path().join("wal"), dir.path().join("space"));
        let build = || {
            for path in [&data, &wal, &space] {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("f"), "x").unwrap();
            }
            std::fs::create_dir(data.join("pg_tblspc")).unwrap();
            std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
            std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16384")).unwrap();
        };
        build();
        let aside = rename_tree(&data).unwrap();
        assert_eq!(aside, dir.path().join("data.failed"));
        assert!(aside.join("pg_wal/f").exists() && aside.join("pg_tblspc/16384/f").exists());
        assert!(!data.exists() && !wal.exists() && !space.exists());
        build();
        rename_tree(&data).unwrap();
        build();
        remove_tree(&data).unwrap();
        assert!(!data.exists() && !wal.exists() && !space.exists());
        remove_tree(&data).unwrap();
    }
}
