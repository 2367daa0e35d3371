//! A new cluster. (PG-100 … PG-113)

use crate::ha::ports::{PgError, Server, Started};
use crate::postgres::apply::{remove_triggers, restore_copies};
use crate::postgres::callbacks::Action;
use crate::postgres::child::{Run, command_line};
use crate::postgres::configuration::Recovery;
use crate::postgres::conninfo::{Address, Conninfo};
use crate::postgres::disk::major_version;
use crate::postgres::pgfiles::{mode_for, remove, rename_tree, replace};
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::session::SqlError;
use crate::postgres::settings::{CustomBootstrap, Settings};
use hathi_dcs::{Deadline, Role, State, boottime};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::process::Command;

const WHAT: &str = "bootstrap";

/// How long a new server may refuse our own login before the bootstrap is given up.
const LOCKED_OUT_MS: u64 = 10_000;

/// Options of initdb that are ours. (PG-102)
const NOT_FOR_INITDB: [&str; 5] = ["pgdata", "nosync", "pwfile", "sync-only", "version"];

impl LocalPostgres {
    pub(super) async fn bootstrap_server(&self) -> Result<(), PgError> {
        let _busy = self.busy();
        self.cancel.check()?;
        self.bootstrapping.store(true, Ordering::Release);
        let result = self.bootstrap_and_start().await;
        if result.is_err() {
            self.bootstrapping.store(false, Ordering::Release);
        }
        result
    }

    async fn bootstrap_and_start(&self) -> Result<(), PgError> {
        let settings = self.settings();
        let method = settings.bootstrap.method.as_str();
        let (recovery, state) = if method == "initdb" {
            self.enter(State::Initdb);
            self.run_initdb(&settings).await.inspect_err(|_| self.enter(State::InitdbFailed))?;
            self.become_role(Role::Primary);
            (Recovery::Primary, State::Starting)
        } else {
            let custom = settings.bootstrap.custom.get(method).ok_or_else(|| {
                // PG-481: a typo must not create an empty cluster.
                Self::failed(WHAT, format!("bootstrap.method is {method:?}, and no section has it"))
            })?;
            self.enter(State::CustomBootstrap);
            let done = self.run_custom(&settings, custom).await;
            let recovery = done.inspect_err(|_| self.enter(State::CustomBootstrapFailed))?;
            self.become_role(Role::Primary);
            (recovery, State::BootstrapStarting)
        };
        let by = Deadline::in_ms(u64::from(settings.pg_ctl_timeout) * 1000);
        match self.start_with(recovery, state, by).await? {
            Started::Ready => Ok(()),
            Started::StillStarting if state == State::BootstrapStarting => Ok(()),
            Started::StillStarting => Err(PgError::TimedOut {
                what: "the first start",
                waited_ms: u64::from(settings.pg_ctl_timeout) * 1000,
            }),
        }
    }

    async fn run_initdb(&self, settings: &Arc<Settings>) -> Result<(), PgError> {
        let mut command = Command::new(settings.binary("initdb"));
        for (name, value) in &settings.bootstrap.initdb {
            if NOT_FOR_INITDB.contains(&name.as_str()) {
                return Err(Self::failed("initdb", format!("option {name:?} is not allowed")));
            }
            command.arg(option_word(name, value.as_deref()));
        }
        if let Some(user) = &settings.superuser.username {
            command.arg(format!("--username={user}"));
        }
        let failed = |why: std::io::Error| Self::failed("initdb", why);
        // Removed when it goes out of scope, whatever happens.
        let mut password_file = None;
        if let Some(password) = &settings.superuser.password {
            let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
            file.write_all(password.as_bytes()).and_then(|()| file.flush()).map_err(failed)?;
            command.arg(format!("--pwfile={}", file.path().display()));
            password_file = Some(file);
        }
        command.arg(&settings.data_dir);
        Run::new("initdb").cancel(&self.cancel).success(command).await?;
        drop(password_file);
        let prepare = settings.clone();
        let hba = on_disk(move || append_hba(&prepare)).await;
        hba.unwrap_or(Ok(())).map_err(failed)?;
        self.save_copies(settings.clone()).await;
        Ok(())
    }

    /// PG-103 … PG-106.
    async fn run_custom(
        &self,
        settings: &Arc<Settings>,
        custom: &CustomBootstrap,
    ) -> Result<Recovery, PgError> {
        let mut command = command_line(WHAT, &custom.command)?;
        if !custom.no_params {
            command.arg(format!("--scope={}", settings.scope));
            command.arg(format!("--datadir={}", settings.data_dir.display()));
        }
        for (name, value) in &custom.arguments {
            command.arg(format!("--{name}={value}"));
        }
        Run::new(WHAT).cancel(&self.cancel).success(command).await?;
        if major_version(&settings.data_dir) == 0 {
            let why = format!("no PG_VERSION in {}", settings.data_dir.display());
            return Err(Self::failed(WHAT, why));
        }
        let prepare = settings.clone();
        let prepared = on_disk(move || {
            restore_copies(&prepare)?;
            remove_triggers(&prepare)?;
            let hba = prepare.config_dir.join("pg_hba.conf");
            replace(&hba, trust_lines(&prepare).as_bytes(), mode_for(&prepare.data_dir, &hba))
        });
        prepared.await.unwrap_or(Ok(())).map_err(|why| Self::failed(WHAT, why))?;
        if custom.keep_existing_recovery_conf {
            return Ok(existing_recovery(settings));
        }
        Ok(match &custom.recovery_conf {
            Some(given) => Recovery::Given(given.clone()),
            None => Recovery::Primary,
        })
    }

    /// Once the server is primary: users, script, and the end of the special configuration.
    /// (PG-108, PG-110)
    pub(super) async fn finish_bootstrap(&self) -> Result<(), PgError> {
        let settings = self.settings();
        let result = async {
            self.wait_for_primary().await?;
            self.create_users_and_run_script(&settings).await
        };
        let result = result.await;
        self.bootstrapping.store(false, Ordering::Release);
        result?;
        self.become_role(Role::Primary);
        let custom = settings.bootstrap.method != "initdb";
        if custom {
            let prepare = settings.clone();
            let restored = on_disk(move || {
                let hba = prepare.config_dir.join("pg_hba.conf");
                if prepare.pg_hba.is_empty() {
                    remove(&hba)?;
                }
                restore_copies(&prepare)?;
                crate::postgres::apply::write_signal_files(&prepare, &Recovery::Primary)
            });
            restored.await.unwrap_or(Ok(())).map_err(|why| Self::failed(WHAT, why))?;
            self.write_configuration(&Recovery::Primary, None).await?;
            self.set_recovery(Some(Recovery::Primary));
            self.signal_reload().await?;
        }
        self.enter(State::Running);
        self.save_copies(settings).await;
        self.fire(Action::Start); // PG-086
        Ok(())
    }

    /// A restored backup may have long to replay; it ends with the postmaster or when cancelled.
    async fn wait_for_primary(&self) -> Result<(), PgError> {
        let mut locked_out_since = None;
        loop {
            self.cancel.check()?;
            if self.look_for_postmaster().await.is_none() {
                return Err(Self::failed(WHAT, "PostgreSQL ended before it became a primary"));
            }
            match self.monitor(Deadline::in_ms(3000)).await {
                Ok(row) if matches!(row.server, Server::Primary { .. }) => return Ok(()),
                // Class 28: it takes connections, only not ours, and waiting mends no pg_hba.conf.
                Err(SqlError::Server { code, message }) if code.starts_with("28") => {
                    let since = *locked_out_since.get_or_insert_with(boottime);
                    if boottime().since(since) > LOCKED_OUT_MS {
                        let why = format!(
                            "the agent cannot log in: {message}; correct postgresql.pg_hba or \
                             postgresql.authentication.superuser"
                        );
                        return Err(Self::failed(WHAT, why));
                    }
                }
                Ok(_) | Err(_) => locked_out_since = None,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create_users_and_run_script(&self, settings: &Settings) -> Result<(), PgError> {
        let by = Deadline::in_ms(60_000);
        self.create_superuser(settings, by).await?;
        if let Some(text) = &settings.bootstrap.post_bootstrap {
            self.run_post_bootstrap(settings, text).await?;
        }
        self.create_other_users(settings, by).await
    }

    /// PG-082.
    async fn run_post_bootstrap(&self, settings: &Settings, text: &str) -> Result<(), PgError> {
        let what = "post_bootstrap";
        let mut command = command_line(what, text)?;
        let address = Address {
            host: settings.local_host(settings.use_unix_socket),
            port: settings.port.to_string(),
            dbname: settings.database.clone(),
        };
        let passfile = settings.pgpass.with_extension("local");
        self.write_passfile(&passfile, &address, &settings.superuser).await?;
        let info = Conninfo::new(&address, &settings.superuser);
        command
            .arg(info.to_text(major_version(&settings.data_dir)))
            .env("PGPASSFILE", &passfile)
            .env("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0");
        let result = Run::new(what).cancel(&self.cancel).success(command).await;
        on_disk(move || remove(&passfile)).await;
        result.map(|_| ())
    }

    /// PG-113, PG-351.
    pub(super) async fn rename_data_dir(&self) -> Result<(), PgError> {
        self.refuse_while_running("setting the data directory aside").await?;
        self.bootstrapping.store(false, Ordering::Release);
        let data_dir = self.settings().data_dir.clone();
        match on_disk(move || rename_tree(&data_dir)).await {
            Some(Ok(aside)) => {
                tracing::info!(target: "hathi::postgres", "the failed data directory is now {}", aside.display());
                self.become_role(Role::Uninitialized);
                Ok(())
            }
            Some(Err(why)) => Err(Self::failed("setting the data directory aside", why)),
            None => Err(PgError::Cancelled),
        }
    }

    pub(super) async fn refuse_while_running(&self, what: &'static str) -> Result<(), PgError> {
        match self.look_for_postmaster().await {
            Some(postmaster) => {
                let why = format!("PostgreSQL runs (process {})", postmaster.id.pid);
                Err(Self::failed(what, why))
            }
            None => Ok(()),
        }
    }
}

/// `--name`, or `--name=value`. (PG-102)
pub(super) fn option_word(name: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    }
}

/// PG-107.
fn append_hba(settings: &Settings) -> std::io::Result<()> {
    let ours = !settings.pg_hba.is_empty() || settings.parameters.contains_key("hba_file");
    if settings.bootstrap.pg_hba.is_empty() || ours {
        return Ok(());
    }
    let path = settings.config_dir.join("pg_hba.conf");
    let mut text = std::fs::read_to_string(&path)?;
    for line in &settings.bootstrap.pg_hba {
        text.push_str(line);
        text.push('\n');
    }
    replace(&path, text.as_bytes(), mode_for(&settings.data_dir, &path))
}

/// Lets our users in while a restored cluster comes up with passwords nobody knows. (PG-106)
fn trust_lines(settings: &Settings) -> String {
    let superuser = settings.superuser.username.as_deref().unwrap_or("all");
    let replication = settings.replication.username.as_deref().unwrap_or("all");
    let mut text = crate::postgres::configuration::HEADER.to_owned();
    for (database, user) in [("replication", replication), ("all", superuser)] {
        text.push_str(&format!("local {database} {user} trust\n"));
        for address in ["127.0.0.1/32", "::1/128"] {
            text.push_str(&format!("host {database} {user} {address} trust\n"));
        }
        let host = settings.local_host(false);
        if let Ok(address) = host.parse::<std::net::IpAddr>()
            && !address.is_loopback()
        {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            text.push_str(&format!("host {database} {user} {address}/{bits} trust\n"));
        }
    }
    text
}

/// What the custom method left in postgresql.auto.conf and postgresql.conf. (PG-105)
fn existing_recovery(settings: &Settings) -> Recovery {
    let mut found = BTreeMap::new();
    if settings.data_dir.join("standby.signal").exists() {
        found.insert("standby_mode".to_owned(), "on".to_owned());
    } else if !settings.data_dir.join("recovery.signal").exists() {
        return Recovery::Primary;
    }
    for file in [settings.config_file(), settings.data_dir.join("postgresql.auto.conf")] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        found.extend(crate::postgres::configuration::written_recovery(&text));
    }
    Recovery::Given(found)
}
