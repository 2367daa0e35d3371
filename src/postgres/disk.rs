//! What lies in the data directory: one look, under a deadline, beside the event loop.
//! (PG-003 … PG-007)

use crate::ha::ports::{ControlData, DataDir};
use crate::postgres::child::Run;
use crate::postgres::control::{self, Control, ControlError};
use crate::postgres::process;
use crate::postgres::room::{Disk, LocalPostgres, on_disk};
use crate::postgres::settings::Settings;
use hathi_dcs::{Deadline, State};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How old an answer may be to be of this turn.
pub(super) const OF_THIS_TURN: Duration = Duration::from_secs(1);

impl LocalPostgres {
    /// Reads what lies on the disk; what does not answer by `by` is as it was last time.
    pub(super) async fn look_at_disk(&self, settings: &Settings, by: Deadline) -> Disk {
        let unknown = || {
            let silent = "the data directory did not answer in time".to_owned();
            self.last_disk().unwrap_or(Disk {
                data_dir: DataDir::Inaccessible(silent),
                control: None,
                major: 0,
                has_standby_signal: false,
                stands_by: false,
                has_backup_label: false,
                postmaster: None,
                passfile: None,
                read_at: None,
            })
        };
        while self.disk_busy.swap(true, Ordering::AcqRel) {
            // Somebody looks at this moment; what he finds will do.
            tokio::time::sleep(Duration::from_millis(3)).await;
            if !self.disk_busy.load(Ordering::Acquire)
                && let Some(disk) = self.last_disk()
            {
                return disk;
            }
            if by.left().is_zero() {
                return unknown();
            }
        }
        let (data_dir, passfile) = (settings.data_dir.clone(), settings.pgpass.clone());
        let room = self.clone();
        let work = on_disk(move || {
            let disk = read_disk(&data_dir, &passfile);
            room.remember_disk(&disk.0);
            room.disk_busy.store(false, Ordering::Release);
            disk
        });
        let Ok(Some((mut disk, error))) = tokio::time::timeout(by.left(), work).await else {
            return unknown();
        };
        if let Some(why) = error
            && disk.data_dir == DataDir::Present
            && self.state() != State::CreatingReplica
            && disk.major > 0
        {
            disk.control = self.ask_pg_controldata(settings, by, &why).await;
            self.remember_disk(&disk);
        }
        disk
    }

    /// What the turn's own look at the disk found, or else a new one. `None`: it does not answer.
    pub(super) async fn disk_of_this_turn(
        &self,
        settings: &Settings,
        by: Deadline,
    ) -> Option<Disk> {
        let recent = |disk: &Disk| disk.read_at.is_some_and(|at| at.elapsed() < OF_THIS_TURN);
        if let Some(disk) = self.last_disk().filter(recent) {
            return Some(disk);
        }
        Some(self.look_at_disk(settings, by).await).filter(recent)
    }

    /// The fall-back of PG-467.
    async fn ask_pg_controldata(
        &self,
        settings: &Settings,
        by: Deadline,
        why: &ControlError,
    ) -> Option<Control> {
        tracing::debug!(target: "hathi::postgres", "{why}; asking pg_controldata");
        let mut command = tokio::process::Command::new(settings.binary("pg_controldata"));
        command.arg(&settings.data_dir).env("LANG", "C").env("LC_ALL", "C");
        let ended = Run::new("pg_controldata").by(by).quiet().success(command).await.ok()?;
        control::parse_tool_output(&ended.stdout).ok()
    }

    pub(super) async fn control_data(&self, by: Deadline) -> Option<ControlData> {
        let settings = self.settings();
        let (data_dir, passfile) = (settings.data_dir.clone(), settings.pgpass.clone());
        let read = on_disk(move || read_disk(&data_dir, &passfile));
        let (disk, error) = tokio::time::timeout(by.left(), read).await.ok().flatten()?;
        let control = match (disk.control, error) {
            (Some(control), _) => control,
            (None, Some(why)) => self.ask_pg_controldata(&settings, by, &why).await?,
            (None, None) => return None,
        };
        Some(ControlData {
            state: control.state,
            system_id: control.system_id,
            checkpoint: control.checkpoint,
            checkpoint_timeline: control.checkpoint_timeline,
            min_recovery_end: control.min_recovery_end,
            min_recovery_timeline: control.min_recovery_timeline,
            has_standby_signal: disk.has_standby_signal,
            has_backup_label: disk.has_backup_label,
        })
    }
}

/// What the directory holds, and why the control file could not be read natively. In one go: each
/// visit to the disk costs two changes of thread.
fn read_disk(data_dir: &Path, passfile: &Path) -> (Disk, Option<ControlError>) {
    let read_at = Some(Instant::now());
    let state = data_dir_state(data_dir);
    let present = state == DataDir::Present;
    let (control, error) = match control::read(data_dir) {
        Ok(control) => (Some(control), None),
        Err(why) => (None, Some(why).filter(|_| present)),
    };
    let has = |name: &str| data_dir.join(name).exists();
    let stands_by = has("standby.signal");
    let disk = Disk {
        data_dir: state,
        control,
        major: major_version(data_dir),
        has_standby_signal: stands_by || has("recovery.signal"),
        stands_by,
        has_backup_label: has("backup_label"),
        postmaster: process::find(data_dir),
        passfile: std::fs::read_to_string(passfile).ok(),
        read_at,
    };
    (disk, error)
}

/// PG-005; 0 if unknown.
pub(super) fn major_version(data_dir: &Path) -> u32 {
    let text = std::fs::read_to_string(data_dir.join("PG_VERSION")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// PG-004.
fn data_dir_state(data_dir: &Path) -> DataDir {
    match data_dir.join("global/pg_control").try_exists() {
        Ok(true) => return DataDir::Present,
        Ok(false) => {}
        Err(why) => return DataDir::Inaccessible(format!("{}: {why}", data_dir.display())),
    }
    match std::fs::read_dir(data_dir) {
        Ok(entries) => {
            let counts = |name: &str| !name.starts_with('.') && name != "lost+found";
            let mut names = entries.flatten().map(|entry| entry.file_name());
            if names.any(|name| counts(&name.to_string_lossy())) {
                DataDir::Present
            } else {
                DataDir::Empty
            }
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => DataDir::Empty,
        Err(why) => DataDir::Inaccessible(format!("{}: {why}", data_dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-004.
    #[test]
    fn what_counts_as_an_empty_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert_eq!(data_dir_state(&data), DataDir::Empty);
        std::fs::create_dir(&data).unwrap();
        std::fs::create_dir(data.join("lost+found")).unwrap();
        std::fs::write(data.join(".hidden"), "").unwrap();
        assert_eq!(data_dir_state(&data), DataDir::Empty);
        std::fs::write(data.join("something"), "").unwrap();
        assert_eq!(data_dir_state(&data), DataDir::Present);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(data_dir_state(&file), DataDir::Inaccessible(_)));
    }
}
