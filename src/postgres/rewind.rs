//! Bringing a diverged data directory back to another server's history. (PG-153 … PG-158)

use crate::ha::ports::{PgError, Upstream};
use crate::postgres::child::Run;
use crate::postgres::conninfo::{Address, Conninfo};
use crate::postgres::disk::major_version;
use crate::postgres::room::LocalPostgres;
use crate::postgres::settings::Settings;
use crate::postgres::single_user::restore_command;
use crate::postgres::spawn::dead_postmaster;
use hathi_dcs::Deadline;
use std::sync::Arc;
use tokio::process::Command;

const WHAT: &str = "pg_rewind";

impl LocalPostgres {
    pub(super) async fn rewind_to(&self, source: &Upstream) -> Result<(), PgError> {
        let _busy = self.busy();
        self.cancel.check()?;
        self.refuse_while_running(WHAT).await?;
        let settings = self.settings();
        let address = Address::from_url(&source.conn_url)
            .ok_or_else(|| Self::failed(WHAT, format!("{} has no usable address", source.name)))?;
        self.end_orphans(&settings, Deadline::in_ms(2000)).await;
        self.archive_pending(&settings).await?;
        let login = settings.rewind_login();
        // A file of its own: the one for streaming must survive a failed rewind. (PG-333, PG-464)
        let passfile = settings.pgpass.with_extension("rewind");
        self.write_passfile(&passfile, &address, login).await?;
        let mut info = Conninfo::new(&address, login);
        info.set("target_session_attrs", "read-write");
        let major = major_version(&settings.data_dir);
        let restore = self.read_parameter(&settings, "restore_command").await?;
        let outside = settings.config_dir != settings.data_dir;
        let by_itself = !restore.is_empty() && (major >= 15 || !outside);
        let mut fetched = Vec::new();
        loop {
            let mut command = Command::new(settings.binary("pg_rewind"));
            if by_itself {
                command.arg("--restore-target-wal");
            }
            if outside && major >= 15 {
                let mut word = std::ffi::OsString::from("--config-file=");
                word.push(settings.config_file());
                command.arg(word);
            }
            command
                .arg("-D")
                .arg(&settings.data_dir)
                .arg("--source-server")
                .arg(info.to_text(major))
                .env("LANG", "C")
                .env("LC_ALL", "C")
                .env("PGOPTIONS", "-c statement_timeout=0")
                .envs(dead_postmaster(&settings));
            if login.password.is_some() {
                command.env("PGPASSFILE", &passfile);
            }
            let result = Run::new(WHAT).cancel(&self.cancel).success(command).await;
            let Err(why) = result else { return Ok(()) };
            // Without help it stops at the first segment that is in the archive only. (PG-157)
            let missing = missing_segment(&why.to_string())
                .filter(|segment| !by_itself && !restore.is_empty() && !fetched.contains(segment));
            let Some(segment) = missing else { return Err(why) };
            self.fetch(&settings, &restore, &segment).await?;
            fetched.push(segment);
        }
    }

    async fn fetch(
        &self,
        settings: &Arc<Settings>,
        restore: &str,
        segment: &str,
    ) -> Result<(), PgError> {
        let mut command = restore_command(restore, segment)?;
        command.current_dir(&settings.data_dir);
        Run::new("restore_command").cancel(&self.cancel).success(command).await.map(|_| ())
    }
}

/// The segment that could not be opened. (PG-157)
fn missing_segment(output: &str) -> Option<String> {
    let (_, rest) = output.split_once("could not open file \"")?;
    let (path, _) = rest.split_once('"')?;
    let (directory, name) = path.rsplit_once('/')?;
    let valid = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    (valid && directory.ends_with("pg_wal")).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-157 (which segment is missing).
    #[test]
    fn the_missing_segment_is_found_in_the_output() {
        let text = "pg_rewind: error: could not open file \
                    \"/d/pg_wal/000000010000000000000003\": No such file or directory";
        assert_eq!(missing_segment(text).as_deref(), Some("000000010000000000000003"));
        assert_eq!(missing_segment("could not open file \"/d/base/1\": x"), None);
        assert_eq!(missing_segment(""), None);
    }
}
