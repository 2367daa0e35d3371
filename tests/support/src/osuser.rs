//! Who runs the servers: PostgreSQL refuses root, so as root everything runs as the OS user
//! postgres; otherwise as whoever started the test.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The numeric ids to run servers under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OsUser {
    pub uid: u32,
    pub gid: u32,
}

/// `Some` as root (the user postgres), `None` when we are an ordinary user already.
pub fn servers_run_as() -> Option<OsUser> {
    static USER: OnceLock<Option<OsUser>> = OnceLock::new();
    *USER.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let id = |flag: &str| -> u32 {
            let out = Command::new("id").args([flag, "postgres"]).output().expect("id runs");
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            text.parse().unwrap_or_else(|_| {
                panic!("there is no OS user postgres (scripts/setup installs PostgreSQL)")
            })
        };
        Some(OsUser { uid: id("-u"), gid: id("-g") })
    })
}

/// Makes `command` run as the servers' user.
pub fn as_server(command: &mut Command) -> &mut Command {
    if let Some(user) = servers_run_as() {
        command.gid(user.gid).uid(user.uid);
    }
    command
}

/// Gives a file or directory (not what is below it) to the servers' user.
pub fn give(path: &Path) {
    if let Some(user) = servers_run_as() {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// A fresh directory below the system's temporary one that the servers own.
pub fn server_dir(prefix: &str) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory");
    give(dir.path());
    dir
}
