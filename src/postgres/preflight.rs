//! What can be said before anything is touched: can PostgreSQL run here at all?
//!
//! One clear line each: what, where, what to do. The agent ends with the first one.

use crate::postgres::disk::major_version;
use crate::postgres::hba::{self, Admits, From};
use crate::postgres::process;
use crate::postgres::settings::Settings;
use rustix::fs::{Access, access};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The majors this house was built for.
const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// Looks at user, programs, directories and port. Blocks on the disk and runs `postgres --version`;
/// for the start of the agent only.
///
/// # Errors
/// The first obstacle. Nothing was changed.
pub fn preflight(settings: &Settings) -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        let owner = std::fs::metadata(&settings.data_dir).map(|meta| meta.uid());
        let who = owner.map_or_else(|_| "postgres".into(), |uid| format!("the user with id {uid}"));
        return Err(format!("PostgreSQL does not run as root: start hathi as {who}"));
    }
    programs(settings)?;
    data_dir(settings)?;
    let config_dir = &settings.config_dir;
    if *config_dir != settings.data_dir {
        writable("postgresql.config_dir", config_dir)?;
    }
    if settings.pgpass.exists() && !settings.pgpass.is_file() {
        let path = settings.pgpass.display();
        return Err(format!(
            "postgresql.pgpass: {path} exists and is not a file: name another one"
        ));
    }
    // A server that was set up before may know better; there the caller warns.
    if major_version(&settings.data_dir) == 0
        && let Some(why) = own_login(settings)
    {
        return Err(why);
    }
    port(settings)
}

/// Would the agent itself be locked out by `postgresql.pg_hba`? One line, if that is certain: such
/// a cluster would be created, and never led.
pub fn own_login(settings: &Settings) -> Option<String> {
    if settings.pg_hba.is_empty() || settings.parameters.contains_key("hba_file") {
        return None;
    }
    let host = settings.local_host(settings.use_unix_socket);
    let any = |listen: &str| listen.split(',').any(|a| matches!(a.trim(), "*" | "::" | "::1"));
    let doors = if host.starts_with('/') {
        vec![From::Socket]
    } else if host == "localhost" {
        let v4 = From::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        let v6 = From::Address(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
        if any(&settings.listen_addresses) { vec![v4, v6] } else { vec![v4] }
    } else {
        vec![From::Address(host.parse().ok()?)]
    };
    let user = settings.superuser.username.as_deref()?;
    let database = &settings.database;
    let locked_out =
        doors.iter().all(|from| hba::admits(&settings.pg_hba, *from, database, user) == Admits::No);
    let line = match doors.first()? {
        From::Socket => format!("local {database} {user} scram-sha-256"),
        From::Address(ip) => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            format!("host {database} {user} {ip}/{bits} scram-sha-256")
        }
    };
    locked_out.then(|| {
        format!(
            "postgresql.pg_hba: no line lets the agent itself in (user {user}, database {database}, \
             from {host}); add: {line}"
        )
    })
}

fn programs(settings: &Settings) -> Result<(), String> {
    let place = match &settings.bin_dir {
        Some(dir) => format!("in postgresql.bin_dir {}", dir.display()),
        None => "on the PATH: set postgresql.bin_dir".to_owned(),
    };
    let mut needed = vec!["postgres", "initdb", "pg_basebackup", "pg_controldata"];
    if settings.use_pg_rewind {
        needed.push("pg_rewind");
    }
    for name in needed {
        if !settings.has_binary(name) {
            let file = settings.binary(name);
            return Err(format!(
                "{} is not {place}",
                file.file_name().unwrap_or_default().display()
            ));
        }
    }
    let binary = settings.binary("postgres");
    let output = std::process::Command::new(&binary).arg("--version").output();
    let output = output.map_err(|why| format!("{} cannot be run: {why}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(major) = major_of(&text) else {
        return Err(format!("{} --version says {:?}", binary.display(), text.trim()));
    };
    if !SUPPORTED.contains(&major) {
        return Err(format!("{} is PostgreSQL {major}; 13 to 18 are supported", binary.display()));
    }
    let data = major_version(&settings.data_dir);
    if data != 0 && data != major {
        return Err(format!(
            "{} was made by PostgreSQL {data}, and {} is {major}: set postgresql.bin_dir to that of {data}",
            settings.data_dir.display(),
            binary.display()
        ));
    }
    Ok(())
}

/// `postgres (PostgreSQL) 15.18 (Debian …)`, `17beta1`.
fn major_of(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("(PostgreSQL) ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn data_dir(settings: &Settings) -> Result<(), String> {
    let path = &settings.data_dir;
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => {
            Err(format!("postgresql.data_dir: {shown} is not a directory"))
        }
        Ok(meta) => {
            let me = rustix::process::geteuid().as_raw();
            if meta.uid() != me {
                return Err(format!(
                    "postgresql.data_dir: {shown} belongs to the user with id {}, and hathi runs as {me}",
                    meta.uid()
                ));
            }
            let is_used = path.join("PG_VERSION").exists();
            if is_used && meta.mode() & 0o027 != 0 {
                let mode = meta.mode() & 0o777;
                return Err(format!(
                    "postgresql.data_dir: {shown} has mode {mode:o}, PostgreSQL wants 700 or 750"
                ));
            }
            writable("postgresql.data_dir", path)
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.ancestors().skip(1).find(|parent| parent.exists());
            let parent = parent.unwrap_or(Path::new("/"));
            writable("postgresql.data_dir", parent).map_err(|why| {
                format!("{why}; {shown} cannot be made there: correct the path or make it by hand")
            })
        }
        Err(why) => Err(format!("postgresql.data_dir: {shown}: {why}")),
    }
}

fn writable(key: &str, path: &Path) -> Result<(), String> {
    access(path, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|why| format!("{key}: cannot write to {}: {why}", path.display()))
}

/// Somebody else's listener keeps ours from starting; our own running PostgreSQL does not.
fn port(settings: &Settings) -> Result<(), String> {
    if process::find(&settings.data_dir).is_some() {
        return Ok(());
    }
    for host in settings.listen_addresses.split(',').map(str::trim) {
        let address: IpAddr = match host {
            "*" => IpAddr::from([0, 0, 0, 0]),
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            // Names are PostgreSQL's to resolve.
            other => match other.parse() {
                Ok(address) => address,
                Err(_) => continue,
            },
        };
        match TcpListener::bind(SocketAddr::new(address, settings.port)) {
            Err(why) if why.kind() == std::io::ErrorKind::AddrInUse => {
                return Err(format!(
                    "postgresql.listen: port {} on {host} is in use by another program",
                    settings.port
                ));
            }
            Err(why) if why.kind() == std::io::ErrorKind::AddrNotAvailable => {
                return Err(format!("postgresql.listen: {host} is not an address of this machine"));
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 17beta1", Some(17)),
            ("postgres (EnterpriseDB) 15", None),
            ("", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }

    #[test]
    fn directories_and_ports_that_will_not_do() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = taken.local_addr().unwrap().port();
        let mut settings = Settings::new("a", "s", dir.path().join("data"), busy);
        settings.bin_dir = Some(dir.path().join("bin"));
        let error = programs(&settings).unwrap_err();
        assert!(error.contains("postgres") && error.contains("bin_dir"), "{error}");
        let error = port(&settings).unwrap_err();
        assert!(error.contains(&busy.to_string()) && error.contains("in use"), "{error}");
        drop(taken);
        assert_eq!(port(&settings), Ok(()));
        settings.listen_addresses = "192.0.2.1".into();
        assert!(port(&settings).unwrap_err().contains("192.0.2.1"));
        assert_eq!(data_dir(&settings), Ok(()), "it can be made");
        std::fs::write(&settings.data_dir, "").unwrap();
        assert!(data_dir(&settings).unwrap_err().contains("not a directory"));
        std::fs::remove_file(&settings.data_dir).unwrap();
        std::fs::create_dir(&settings.data_dir).unwrap();
        std::fs::write(settings.data_dir.join("PG_VERSION"), "15").unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&settings.data_dir, mode(0o755)).unwrap();
        assert!(data_dir(&settings).unwrap_err().contains("755"));
        std::fs::set_permissions(&settings.data_dir, mode(0o700)).unwrap();
        assert_eq!(data_dir(&settings), Ok(()));
    }
}
