//! Crash recovery without clients, and archiving what a crash left behind. (PG-130 … PG-133, PG-141)

use crate::ha::ports::PgError;
use crate::postgres::apply::write_signal_files;
use crate::postgres::child::{Run, command_line};
use crate::postgres::configuration::Recovery;
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::settings::Settings;
use crate::postgres::spawn::dead_postmaster;
use hathi_dcs::{Deadline, Lsn, Timeline};
use std::path::Path;
use std::sync::Arc;
use tokio::process::Command;

const WHAT: &str = "crash recovery in single-user mode";

impl LocalPostgres {
    pub(super) async fn recover_alone(&self) -> Result<(), PgError> {
        let _busy = self.busy();
        self.cancel.check()?;
        self.refuse_while_running(WHAT).await?;
        let settings = self.settings();
        self.end_orphans(&settings, Deadline::in_ms(2000)).await;
        self.archive_pending(&settings).await?;
        let prepare = settings.clone();
        let options = on_disk(move || -> std::io::Result<Vec<String>> {
            empty_archive_status(&prepare.data_dir)?;
            write_signal_files(&prepare, &Recovery::Primary)?;
            let text = std::fs::read_to_string(prepare.data_dir.join("postmaster.opts"));
            Ok(parse_options(&text.unwrap_or_default()))
        });
        let options = match options.await {
            Some(Ok(options)) => options,
            Some(Err(why)) => return Err(Self::failed(WHAT, why)),
            None => return Err(PgError::Cancelled),
        };
        self.write_configuration(&Recovery::Primary, None).await?;
        let mut command = Command::new(settings.binary("postgres"));
        command.arg("--single").arg("-D").arg(&settings.data_dir);
        for option in options {
            if !option.starts_with("archive_mode=") && !option.starts_with("archive_command=") {
                command.args(["-c", &option]);
            }
        }
        command.args(["-c", "archive_mode=on", "-c", "archive_command=false", "template1"]);
        command.envs(dead_postmaster(&settings));
        Run::new(WHAT).cancel(&self.cancel).success(command).await.map(|_| ())
    }

    /// Archives finished segments that nobody archived, or a rewind would lose them. A segment that
    /// cannot be archived stays as it is. (PG-141)
    pub(super) async fn archive_pending(&self, settings: &Arc<Settings>) -> Result<(), PgError> {
        let wal = settings.data_dir.join("pg_wal");
        let look = wal.clone();
        let segments = on_disk(move || ready_segments(&look)).await.unwrap_or_default();
        if segments.is_empty() {
            return Ok(());
        }
        let Some(text) = self.archive_command().await else { return Ok(()) };
        for segment in segments {
            self.cancel.check()?;
            let mut command = Command::new("sh");
            command.arg("-c").arg(expand(&text, &segment)).current_dir(&settings.data_dir);
            let run = Run::new("archive_command").cancel(&self.cancel).success(command).await;
            match run {
                Ok(_) => {
                    let status = wal.join("archive_status");
                    let (from, to) = (
                        status.join(format!("{segment}.ready")),
                        status.join(format!("{segment}.done")),
                    );
                    on_disk(move || std::fs::rename(from, to)).await;
                }
                Err(PgError::Cancelled) => return Err(PgError::Cancelled),
                Err(why) => tracing::warn!(target: "hathi::postgres", %segment, "{why}"),
            }
        }
        Ok(())
    }

    /// The command by which this server archives its log, if it does.
    pub(super) async fn archive_command(&self) -> Option<String> {
        let settings = self.settings();
        let mode = self.read_parameter(&settings, "archive_mode").await.ok()?;
        let text = self.read_parameter(&settings, "archive_command").await.ok()?;
        let archives = matches!(mode.as_str(), "on" | "always");
        (archives && !text.is_empty() && text != "(disabled)").then_some(text)
    }

    /// A stopped server archives no more, and its shutdown checkpoint may be in a segment of its own.
    /// What was ready and not archived goes first. (HA-116)
    pub(super) async fn archive_last_segment(&self, by: Deadline) -> Result<(), PgError> {
        let _busy = self.busy();
        let settings = self.settings();
        let failed = |why: &str| Self::failed("archiving the shutdown checkpoint", why);
        let Some(text) = self.archive_command().await else { return Ok(()) };
        self.archive_pending(&settings).await?;
        let control = self.control_data(by).await.ok_or_else(|| failed("no control file"))?;
        let size = self.read_parameter(&settings, "wal_segment_size").await?;
        let size = size.parse().ok().filter(|size| *size > 0).unwrap_or(16 << 20);
        let segment = segment_name(control.checkpoint_timeline, control.checkpoint, size);
        let mut command = Command::new("sh");
        command.arg("-c").arg(expand(&text, &segment)).current_dir(&settings.data_dir);
        Run::new("archive_command").cancel(&self.cancel).by(by).success(command).await.map(|_| ())
    }

    /// A parameter of the stopped server, from its files. Empty if `postgres` cannot say.
    pub(super) async fn read_parameter(
        &self,
        settings: &Settings,
        name: &str,
    ) -> Result<String, PgError> {
        let mut command = Command::new(settings.binary("postgres"));
        command.arg("-D").arg(&settings.data_dir).args(["-C", name]);
        let mut config_file = std::ffi::OsString::from("--config-file=");
        config_file.push(settings.config_file());
        command.arg(config_file);
        let by = Deadline::in_ms(10_000);
        let ended =
            Run::new("postgres -C").cancel(&self.cancel).by(by).quiet().ended(command).await?;
        Ok(if ended.status.success() { ended.stdout.trim().to_owned() } else { String::new() })
    }
}

/// The file of the log that holds this position.
fn segment_name(timeline: Timeline, at: Lsn, size: u64) -> String {
    let number = at.0 / size;
    let each = (1 << 32) / size;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / each, number % each)
}

/// `%p`, `%f` and `%%`.
pub(super) fn expand(command: &str, segment: &str) -> String {
    let mut out = String::new();
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.next() {
                Some('p') => out.push_str(&format!("pg_wal/{segment}")),
                Some('f') => out.push_str(segment),
                Some('r') => out.push_str("000000010000000000000001"),
                Some('%') => out.push('%'),
                Some(other) => out.extend(['%', other]),
                None => out.push('%'),
            },
            (c, false) => out.push(c),
        }
    }
    out
}

fn ready_segments(wal: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(wal.join("archive_status")) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned();
            let segment = name.strip_suffix(".partial").unwrap_or(&name);
            let valid = segment.len() == 24 && segment.bytes().all(|b| b.is_ascii_hexdigit());
            (valid && wal.join(&name).exists()).then_some(name)
        })
        .collect();
    found.sort();
    found
}

fn empty_archive_status(data_dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(data_dir.join("pg_wal/archive_status"))?.flatten() {
        if entry.path().is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The `name=value` options of postmaster.opts. (PG-132)
fn parse_options(text: &str) -> Vec<String> {
    let words = shell_words::split(text.trim()).unwrap_or_default();
    let names = words.iter().filter_map(|word| word.strip_prefix("--"));
    names
        .filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some(format!("{}={value}", name.replace('-', "_")))
        })
        .collect()
}

/// Splits and expands a restore command for one segment. (PG-157)
pub(super) fn restore_command(text: &str, segment: &str) -> Result<Command, PgError> {
    command_line("restore_command", &expand(text, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-132 (the options), PG-141 (which segments, the expansion).
    #[test]
    fn what_a_crash_left_behind() {
        let text = "/usr/lib/postgresql/15/bin/postgres \"-D\" \"/srv/d\" \
                    \"--config-file=/srv/d/postgresql.conf\" \"--cluster_name=a b\" \"--port=1\"\n";
        let options = parse_options(text);
        assert_eq!(options, ["config_file=/srv/d/postgresql.conf", "cluster_name=a b", "port=1"]);
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("archive_status");
        std::fs::create_dir(&status).unwrap();
        let names = ["000000010000000000000002", "000000010000000000000001", "00000002.history"];
        for name in names {
            std::fs::write(status.join(format!("{name}.ready")), "").unwrap();
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::write(status.join("000000010000000000000009.ready"), "").unwrap();
        std::fs::write(status.join("000000010000000000000003.done"), "").unwrap();
        assert_eq!(ready_segments(dir.path()), [names[1], names[0]]);
        assert_eq!(expand("cp %p /a/%f 5%% %x %", "S"), "cp pg_wal/S /a/S 5% %x %");
    }
}
