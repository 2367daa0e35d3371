//! Writing the configuration files, and putting changed settings in force. (PG-170 … PG-177, PG-240 …)

use crate::ha::ports::PgError;
use crate::postgres::configuration::{
    HEADER, Recovery, access_file, cleaned_auto_conf, is_generated, postgresql_conf,
    recovery_parameters, written_recovery,
};
use crate::postgres::conninfo::{Address, passfile};
use crate::postgres::disk::major_version;
use crate::postgres::pgfiles::{mode_for, remove, replace, replace_if_changed};
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::settings::Settings;
use hathi_dcs::State;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

const WHAT: &str = "writing the configuration";

impl LocalPostgres {
    /// Puts the settings in force as far as a reload can: writes the files that changed and reloads
    /// if one did. What needs a restart is told by the next observation. (PG-240 … PG-243)
    ///
    /// # Errors
    /// A file that cannot be written, or a value PostgreSQL could not read: nothing was reloaded.
    pub async fn apply_configuration(&self) -> Result<(), PgError> {
        let state = self.state();
        let settings = self.settings();
        let may = matches!(state, State::Running | State::Starting | State::Restarting);
        if !may || self.is_busy() || major_version(&settings.data_dir) == 0 {
            // Whoever starts it writes the files; an absent directory has none. (PG-106)
            return Ok(());
        }
        let recovery = match self.recovery() {
            Some(recovery) => recovery,
            None => self.recovery_on_disk(&settings),
        };
        let changed = self.write_configuration(&recovery, None).await?;
        if changed {
            self.reload().await?;
        }
        Ok(())
    }

    /// What the running server was configured with before we came: the block stays as it is.
    pub(super) fn recovery_on_disk(&self, settings: &Settings) -> Recovery {
        let is_standby = self.facts().is_primary == Some(false);
        let text = std::fs::read_to_string(settings.config_file()).unwrap_or_default();
        if is_standby { Recovery::Given(written_recovery(&text)) } else { Recovery::Primary }
    }

    /// SIGHUP, and the callback. (PG-062)
    pub(super) async fn reload(&self) -> Result<(), PgError> {
        self.signal_reload().await?;
        self.fire_reload();
        Ok(())
    }

    pub(super) async fn signal_reload(&self) -> Result<(), PgError> {
        let failed = |why: String| Self::failed("reload", why);
        let Some(postmaster) = self.look_for_postmaster().await else {
            return Err(failed("PostgreSQL does not run".into()));
        };
        if !postmaster.signal(Signal::HUP).map_err(failed)? {
            return Err(failed("PostgreSQL does not run".into()));
        }
        Ok(())
    }

    /// Writes all files; tells whether one that a reload reads has changed. `parameters` are those
    /// of this start if they differ from the configured ones. (PG-190)
    pub(super) async fn write_configuration(
        &self,
        recovery: &Recovery,
        parameters: Option<BTreeMap<String, String>>,
    ) -> Result<bool, PgError> {
        let _writing = self.files.lock().await;
        let settings = self.settings();
        let recovery = recovery.clone();
        let mut parameters = parameters.unwrap_or_else(|| settings.effective_parameters());
        let file = settings.config_file();
        let before = on_disk(move || std::fs::read_to_string(file)).await;
        let before = before.and_then(Result::ok).unwrap_or_default();
        self.manage_names(&recovery, settings.synchronous, &before, &mut parameters);
        for (name, change) in self.facts().raised {
            parameters.insert(name, change.old_value);
        }
        let work = on_disk(move || write_all(&settings, &recovery, &parameters));
        let result = work.await.unwrap_or_else(|| Err("the agent is ending".into()));
        result.map_err(|why| Self::failed(WHAT, why))
    }

    /// The passfile of this login at this address; untouched without a password. (PG-331, PG-332)
    pub(super) async fn write_passfile(
        &self,
        path: &Path,
        address: &Address,
        login: &crate::postgres::settings::Login,
    ) -> Result<(), PgError> {
        let Some(text) = passfile(address, login) else { return Ok(()) };
        let path = path.to_owned();
        let written = on_disk(move || {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            replace_if_changed(&path, text.as_bytes(), 0o600)
        });
        let written = written.await;
        self.disk_written();
        match written {
            Some(Ok(_)) => Ok(()),
            Some(Err(why)) => Err(Self::failed("writing the passfile", why)),
            None => Err(PgError::Cancelled),
        }
    }

    /// Copies for the day an original is missing after a clone. (PG-176)
    pub(super) async fn save_copies(&self, settings: Arc<Settings>) {
        let saved = on_disk(move || copy_files(&settings)).await;
        if let Some(Err(why)) = saved {
            tracing::warn!(target: "hathi::postgres", "copies of the configuration files: {why}");
        }
    }
}

fn write_all(
    settings: &Settings,
    recovery: &Recovery,
    parameters: &BTreeMap<String, String>,
) -> Result<bool, String> {
    let tell = |path: &Path, why: io::Error| format!("{}: {why}", path.display());
    let data_dir = &settings.data_dir;
    ensure_base(settings).map_err(|why| tell(&settings.base_config_file(), why))?;
    let block = recovery_parameters(settings, recovery, major_version(data_dir));
    let text = postgresql_conf(settings, parameters, &block)?;
    let mut changed = false;
    let path = settings.config_file();
    changed |= replace_if_changed(&path, text.as_bytes(), mode_for(data_dir, &path))
        .map_err(|why| tell(&path, why))?;
    for (parameter, file, lines) in [
        ("hba_file", "pg_hba.conf", &settings.pg_hba),
        ("ident_file", "pg_ident.conf", &settings.pg_ident),
    ] {
        if let Some(text) = access_file(settings, parameter, lines) {
            let path = settings.config_dir.join(file);
            changed |= replace_if_changed(&path, text.as_bytes(), mode_for(data_dir, &path))
                .map_err(|why| tell(&path, why))?;
        }
    }
    let path = data_dir.join("postgresql.auto.conf");
    if let Some(cleaned) =
        std::fs::read_to_string(&path).ok().as_deref().and_then(cleaned_auto_conf)
    {
        let keeps = matches!(recovery, Recovery::Given(given) if given.is_empty());
        if !keeps {
            replace(&path, cleaned.as_bytes(), mode_for(data_dir, &path))
                .map_err(|why| tell(&path, why))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The file we include: the original one under a new name; never one that we wrote. (PG-171, PG-452)
/// With a `config_dir` elsewhere the files of initdb are taken over where there are none.
fn ensure_base(settings: &Settings) -> io::Result<()> {
    let in_data_dir = |name: &str| std::fs::read(settings.data_dir.join(name));
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        let path = settings.config_dir.join(name);
        if !path.exists()
            && let Ok(content) = in_data_dir(name)
        {
            replace(&path, &content, 0o600)?;
        }
    }
    let base = settings.base_config_file();
    if settings.custom_conf.is_some() || base.exists() {
        return Ok(());
    }
    let original = settings.config_file();
    let of_initdb = in_data_dir("postgresql.conf").unwrap_or_default();
    let of_initdb = String::from_utf8_lossy(&of_initdb);
    match std::fs::read_to_string(&original) {
        Ok(text) if !is_generated(&text) => std::fs::rename(&original, &base),
        Err(_) if !of_initdb.is_empty() && !is_generated(&of_initdb) => {
            replace(&base, of_initdb.as_bytes(), 0o600)
        }
        _ => {
            tracing::error!(
                target: "hathi::postgres",
                "{} is missing and there is no original to take it from; an empty one is made",
                base.display()
            );
            replace(&base, HEADER.as_bytes(), mode_for(&settings.data_dir, &base))
        }
    }
}

/// The files with a copy in the data directory. (PG-176)
fn copied_files(settings: &Settings) -> Vec<std::path::PathBuf> {
    let mut files = vec![settings.config_file()];
    if settings.custom_conf.is_none() {
        files.push(settings.base_config_file());
    }
    for (parameter, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        if !settings.parameters.contains_key(parameter) {
            files.push(settings.config_dir.join(file));
        }
    }
    files
}

fn copy_of(settings: &Settings, file: &Path) -> std::path::PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    settings.data_dir.join(format!("{name}.backup"))
}

fn copy_files(settings: &Settings) -> io::Result<()> {
    for file in copied_files(settings) {
        let Ok(content) = std::fs::read(&file) else { continue };
        let copy = copy_of(settings, &file);
        replace_if_changed(&copy, &content, mode_for(&settings.data_dir, &copy))?;
    }
    Ok(())
}

/// After a clone or a custom bootstrap: originals that did not come along are taken from the copies;
/// an empty pg_ident.conf is made. (PG-104, PG-128)
pub(super) fn restore_copies(settings: &Settings) -> io::Result<()> {
    for file in copied_files(settings) {
        if file.exists() {
            continue;
        }
        let mode = mode_for(&settings.data_dir, &file);
        match std::fs::read(copy_of(settings, &file)) {
            Ok(content) => replace(&file, &content, mode)?,
            Err(_) if file.ends_with("pg_ident.conf") => replace(&file, b"", mode)?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// Makes the signal files say what `recovery` says. (PG-003, PG-210, INV-19)
pub(super) fn write_signal_files(settings: &Settings, recovery: &Recovery) -> io::Result<()> {
    let data_dir = &settings.data_dir;
    let standby = data_dir.join("standby.signal");
    let targeted = data_dir.join("recovery.signal");
    match recovery {
        Recovery::Primary => {
            remove(&standby)?;
            remove(&targeted)
        }
        Recovery::Standby(_) => {
            remove(&targeted)?;
            if standby.exists() {
                return Ok(());
            }
            replace(&standby, b"", mode_for(data_dir, &standby))
        }
        Recovery::Given(given) => {
            let truth = ["on", "true", "yes", "1"];
            let as_standby = given
                .get("standby_mode")
                .is_some_and(|value| truth.contains(&value.to_ascii_lowercase().as_str()));
            let (wanted, other) =
                if as_standby { (standby, targeted) } else { (targeted, standby) };
            remove(&other)?;
            replace(&wanted, b"", mode_for(data_dir, &wanted))
        }
    }
}

/// Removes a promote request that came with a copy. (PG-104, PG-128)
pub(super) fn remove_triggers(settings: &Settings) -> io::Result<()> {
    remove(&settings.data_dir.join("promote"))?;
    match settings.recovery_conf.get("promote_trigger_file") {
        Some(file) => remove(&settings.data_dir.join(file)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> Settings {
        let mut settings = Settings::new("a", "s", dir, 5432);
        settings.pg_hba = vec!["local all all trust".into()];
        settings
    }

    /// Proves PG-170, PG-171, PG-173, PG-174, PG-176, PG-452: the second base is not our own file.
    #[test]
    fn files_are_written_once_and_the_original_stays_the_base() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("PG_VERSION"), "15\n").unwrap();
        std::fs::write(at("postgresql.conf"), "port = 1\n").unwrap();
        std::fs::write(at("postgresql.auto.conf"), "restore_command = 'x'\na = 1\n").unwrap();
        let parameters = settings.effective_parameters();
        assert!(write_all(&settings, &Recovery::Primary, &parameters).unwrap());
        assert!(!write_all(&settings, &Recovery::Primary, &parameters).unwrap(), "no change");
        assert_eq!(std::fs::read_to_string(at("postgresql.base.conf")).unwrap(), "port = 1\n");
        assert_eq!(std::fs::read_to_string(at("postgresql.auto.conf")).unwrap(), "a = 1\n");
        let hba = std::fs::read_to_string(at("pg_hba.conf")).unwrap();
        assert_eq!(hba, format!("{HEADER}local all all trust\n"));
        copy_files(&settings).unwrap();
        std::fs::remove_file(at("postgresql.base.conf")).unwrap();
        assert!(!write_all(&settings, &Recovery::Primary, &parameters).unwrap());
        let base = std::fs::read_to_string(at("postgresql.base.conf")).unwrap();
        assert!(!base.contains("include"), "our own file must not include itself: {base}");
        std::fs::remove_file(at("postgresql.base.conf")).unwrap();
        restore_copies(&settings).unwrap();
        assert_eq!(std::fs::read_to_string(at("postgresql.base.conf")).unwrap(), "port = 1\n");
        assert_eq!(std::fs::read_to_string(at("pg_ident.conf")).unwrap(), "");
    }

    /// Proves PG-003, PG-104, PG-210 (signal files), INV-19.
    #[test]
    fn signal_files_say_what_the_server_is_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let has = |name: &str| dir.path().join(name).exists();
        let check = |recovery: &Recovery, standby: bool, targeted: bool| {
            write_signal_files(&settings, recovery).unwrap();
            assert_eq!((has("standby.signal"), has("recovery.signal")), (standby, targeted));
        };
        check(&Recovery::Standby(None), true, false);
        check(&Recovery::Given(BTreeMap::new()), false, true);
        let standby = [("standby_mode".to_owned(), "on".to_owned())];
        check(&Recovery::Given(standby.into()), true, false);
        check(&Recovery::Primary, false, false);
    }
}
