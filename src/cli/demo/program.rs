//! Which programs run as whom: PostgreSQL's directory, this very executable, the OS user.

use anyhow::{Context, bail, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// PostgreSQL refuses root, so as root everything runs as this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Lets `command` run as that user. Its supplementary groups are none, not root's: the standard
/// library drops them together with the uid.
pub fn become_user<'a>(command: &'a mut Command, user: Option<&RunAs>) -> &'a mut Command {
    match user {
        Some(user) => command.gid(user.gid).uid(user.uid),
        None => command,
    }
}

/// Whom to run as: nobody else for an ordinary user, `postgres` for root.
///
/// # Errors
/// Root, and there is no such user.
pub fn run_as() -> anyhow::Result<Option<RunAs>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let name = "postgres".to_owned();
    let id = |flag: &str| -> anyhow::Result<u32> {
        let out = Command::new("id").args([flag, &name]).output().context("id cannot be run")?;
        ensure!(
            out.status.success(),
            "PostgreSQL does not run as root and there is no OS user {name}: install PostgreSQL, \
             or start the demo as an ordinary user"
        );
        String::from_utf8_lossy(&out.stdout).trim().parse().context("id printed no number")
    };
    Ok(Some(RunAs { uid: id("-u")?, gid: id("-g")?, name }))
}

/// Where initdb, postgres and the others are.
///
/// # Errors
/// Nowhere.
pub fn postgres_bin_dir(wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    let complete =
        |dir: &Path| ["postgres", "initdb", "pg_ctl"].iter().all(|p| dir.join(p).exists());
    if let Some(dir) = wanted {
        ensure!(complete(dir), "--bin-dir {}: no postgres, initdb and pg_ctl there", dir.display());
        return std::path::absolute(dir).context("--bin-dir is no usable path");
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, dir)| complete(dir))
        .collect();
    versions.sort();
    if let Some((_, newest)) = versions.pop() {
        return Ok(newest);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).find(|dir| complete(dir)) {
        Some(dir) => Ok(dir),
        None => bail!(
            "no PostgreSQL found (looked below /usr/lib/postgresql and in the PATH): install it, \
             or name its directory with --bin-dir"
        ),
    }
}

/// This executable, at a place where `user` can run it: where it lies, or copied into `dir`.
///
/// # Errors
/// It cannot be copied.
pub fn runnable_by(user: Option<&RunAs>, dir: &Path) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this executable's path is unknown")?;
    if user.is_none() {
        return Ok(own);
    }
    let mut probe = Command::new("test");
    probe.arg("-x").arg(&own).stdin(Stdio::null());
    if become_user(&mut probe, user).status().is_ok_and(|s| s.success()) {
        return Ok(own);
    }
    let copy = dir.join("hathi");
    std::fs::copy(&own, &copy).with_context(|| format!("{} cannot be written", copy.display()))?;
    Ok(copy)
}

/// A password nobody has to type: 16 hexadecimal digits from the kernel.
///
/// # Errors
/// The kernel gives none.
pub fn secret() -> anyhow::Result<String> {
    use std::io::Read;
    let mut raw = [0_u8; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut raw));
    read.context("/dev/urandom cannot be read")?;
    Ok(raw.iter().map(|b| format!("{b:02x}")).collect())
}
