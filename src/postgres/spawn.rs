//! Starting the postmaster so that it belongs to nobody: it survives us, and is reaped by init.
//! (PG-022 … PG-025)

use crate::postgres::process::{self, ProcessId};
use crate::postgres::settings::{FORCED, Settings};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The postmaster's command line. (PG-022)
pub fn arguments(settings: &Settings, parameters: &BTreeMap<String, String>) -> Vec<OsString> {
    let mut config_file = OsString::from("--config-file=");
    config_file.push(settings.config_file());
    let mut all = vec![OsString::from("-D"), settings.data_dir.clone().into(), config_file];
    for name in FORCED {
        if let Some(value) = parameters.get(name) {
            all.push(format!("--{name}={value}").into());
        }
    }
    all
}

/// Is this variable ours, or one that would confuse the server? (PG-024)
fn is_withheld(name: &str) -> bool {
    name == "NOTIFY_SOCKET"
        || ["PATRONI_", "KUBERNETES_", "HATHI_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Starts the postmaster and says which process it is. Blocks until the program runs (not until it
/// is ready).
pub fn postmaster(
    settings: &Settings,
    parameters: &BTreeMap<String, String>,
) -> io::Result<ProcessId> {
    let mut command = Command::new(settings.binary("postgres"));
    command.args(arguments(settings, parameters)).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if is_withheld(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    if let Some(count) = std::env::var_os("PG_MALLOC_ARENA_MAX") {
        command.env("MALLOC_ARENA_MAX", count);
    }
    if let Some((name, pid)) = dead_postmaster(settings) {
        command.env(name, pid);
    }
    if let Some(path) = &settings.server_output {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        command.stdout(file.try_clone()?).stderr(file);
    }
    detached(command)
}

/// The variable by which PostgreSQL's programs know that the pid in `postmaster.pid` is not a
/// postmaster, if it is not. (PG-025)
pub fn dead_postmaster(settings: &Settings) -> Option<(&'static str, String)> {
    let pid = process::impostor(&settings.data_dir, &settings.socket_locks())?;
    Some(("PG_GRANDPARENT_PID", pid.to_string()))
}

/// Runs a program as a grandchild in a session of its own; its parent ends at once.
fn detached(mut command: Command) -> io::Result<ProcessId> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let pipe = write.as_raw_fd();
    let step = move || {
        rustix::process::setsid()?;
        // SAFETY: fork, write and _exit are async-signal-safe, and nothing else runs in between;
        // the child goes on to exec as the child of any `Command` does.
        unsafe {
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                pid => {
                    let bytes = pid.to_ne_bytes();
                    libc::write(pipe, bytes.as_ptr().cast(), bytes.len());
                    libc::_exit(0)
                }
            }
        }
    };
    // SAFETY: `step` calls only async-signal-safe functions and does not allocate.
    unsafe { command.pre_exec(step) };
    // Returns when the program runs, or with the error of exec.
    let mut child = command.spawn()?;
    child.wait()?;
    drop(write);
    let mut bytes = [0_u8; 4];
    std::fs::File::from(read).read_exact(&mut bytes)?;
    let pid = i32::from_ne_bytes(bytes);
    ProcessId::of(pid).ok_or_else(|| io::Error::other("it ended at once; its output says why"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-022, PG-180 … PG-189 (the order) against the command line of a real Patroni.
    #[test]
    fn the_command_line_is_what_patroni_runs() {
        let mut settings = Settings::new("beta", "golden", "/srv/pg/beta/data", 22433);
        settings.listen_addresses = "127.0.0.1".into();
        settings.parameters.insert("max_connections".into(), "40".into());
        let all = arguments(&settings, &settings.effective_parameters());
        let text: Vec<_> = all.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            text.join(" "),
            "-D /srv/pg/beta/data --config-file=/srv/pg/beta/data/postgresql.conf \
             --listen_addresses=127.0.0.1 --port=22433 --cluster_name=golden --wal_level=replica \
             --hot_standby=on --max_connections=40 --max_wal_senders=10 \
             --max_prepared_transactions=0 --max_locks_per_transaction=64 \
             --track_commit_timestamp=off --max_replication_slots=10 --max_worker_processes=8 \
             --wal_log_hints=on"
        );
    }

    /// Proves PG-023: a session of its own, and not our child.
    #[test]
    fn a_detached_program_is_not_our_child() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let id = detached(command).unwrap();
        let stat = id.alive().unwrap();
        process::kill(id, rustix::process::Signal::KILL);
        assert_ne!(stat.parent, std::process::id().cast_signed());
        assert!(detached(Command::new("/no/such/program")).is_err());
    }

    /// Proves PG-024.
    #[test]
    fn our_environment_stays_ours() {
        for name in ["NOTIFY_SOCKET", "PATRONI_X", "KUBERNETES_SERVICE_HOST", "HATHI_Y"] {
            assert!(is_withheld(name), "{name}");
        }
        assert!(!is_withheld("PATH") && !is_withheld("LANG"));
    }
}
