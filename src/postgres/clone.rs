//! Making the data directory a copy of another server. (PG-120 … PG-128, PG-350)

use crate::ha::ports::{CopyBy, PgError, Upstream};
use crate::postgres::apply::{remove_triggers, restore_copies};
use crate::postgres::bootstrap::option_word;
use crate::postgres::child::{Run, command_line};
use crate::postgres::conninfo::{Address, Conninfo};
use crate::postgres::pgfiles::{remove_tree, rename_tree};
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::settings::{ReplicaMethod, Settings};
use hathi_dcs::{Role, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;

const WHAT: &str = "creating a replica";

/// Options of pg_basebackup that are ours. (PG-127)
const NOT_FOR_BASEBACKUP: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];

impl LocalPostgres {
    pub(super) async fn copy_from(&self, source: &Upstream, by: CopyBy) -> Result<(), PgError> {
        let _busy = self.busy();
        self.cancel.check()?;
        self.refuse_while_running(WHAT).await?;
        self.enter(State::CreatingReplica);
        self.become_role(Role::Replica);
        let settings = self.settings();
        let result = self.try_methods(&settings, source, by).await;
        match result {
            Ok(()) => Ok(()),
            Err(why) => {
                self.enter(State::Stopped);
                self.become_role(Role::Uninitialized);
                Err(why)
            }
        }
    }

    async fn try_methods(
        &self,
        settings: &Arc<Settings>,
        source: &Upstream,
        by: CopyBy,
    ) -> Result<(), PgError> {
        // The remote member of a standby cluster may be known by its archive alone. (PG-121)
        let address = Address::from_url(&source.conn_url);
        if let Some(address) = &address {
            self.write_passfile(&settings.pgpass, address, &settings.replication).await?;
        }
        let no_address = || {
            let why = format!("{} has no usable address: {:?}", source.name, source.conn_url);
            Self::failed(WHAT, why)
        };
        let several = source.remote && address.as_ref().is_some_and(|at| at.host.contains(','));
        let basebackup = "basebackup".to_owned();
        let methods = match (by, settings.create_replica_methods.as_slice()) {
            (CopyBy::BaseBackup, _) | (CopyBy::ConfiguredMethods, []) => {
                std::slice::from_ref(&basebackup)
            }
            (CopyBy::ConfiguredMethods, methods) => methods,
        };
        let mut last = Self::failed(WHAT, "no method is configured");
        for method in methods {
            self.cancel.check()?;
            let custom = match by {
                CopyBy::ConfiguredMethods => settings.replica_methods.get(method),
                CopyBy::BaseBackup => None,
            };
            let (result, keep) = match custom {
                Some(custom) => {
                    let result = self.run_method(settings, custom, address.as_ref()).await;
                    (result, custom.keep_data)
                }
                None if method == "basebackup" => match &address {
                    Some(address) => (self.run_basebackup(settings, address, several).await, false),
                    None => (Err(no_address()), true),
                },
                None => {
                    let own = ReplicaMethod { command: method.clone(), ..ReplicaMethod::default() };
                    (self.run_method(settings, &own, address.as_ref()).await, false)
                }
            };
            match result {
                Ok(()) => return self.after_copy(settings).await,
                Err(why) => {
                    tracing::warn!(target: "hathi::postgres", %method, "{why}");
                    if !keep {
                        self.clear_data_dir(settings).await?;
                    }
                    let stop = why == PgError::Cancelled;
                    last = why;
                    if stop {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// PG-126: two attempts.
    async fn run_basebackup(
        &self,
        settings: &Settings,
        address: &Address,
        several: bool,
    ) -> Result<(), PgError> {
        let mut info = Conninfo::new(address, &settings.replication);
        if several {
            info.set("target_session_attrs", "read-write"); // PG-216
        }
        let major = 18; // A client older than a key would say so; none is set that nobody asked for.
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.clear_data_dir(settings).await?;
            let mut command = Command::new(settings.binary("pg_basebackup"));
            command
                .arg(format!("--pgdata={}", settings.data_dir.display()))
                .args(["-X", "stream"])
                .arg(format!("--dbname={}", info.to_text(major)));
            for (name, value) in &settings.basebackup {
                if NOT_FOR_BASEBACKUP.contains(&name.as_str()) {
                    tracing::error!(target: "hathi::postgres", "pg_basebackup option {name:?} is not allowed");
                    continue;
                }
                command.arg(option_word(name, value.as_deref()));
            }
            if !settings.basebackup.iter().any(|(name, _)| name == "checkpoint") {
                // A new member should not wait for the spread checkpoint of an idle source.
                command.arg("--checkpoint=fast");
            }
            if settings.replication.password.is_some() {
                command.env("PGPASSFILE", &settings.pgpass);
            }
            let result = Run::new("pg_basebackup").cancel(&self.cancel).success(command).await;
            match result {
                Ok(_) => return Ok(()),
                Err(why) if attempt >= 2 || why == PgError::Cancelled => return Err(why),
                Err(why) => tracing::warn!(target: "hathi::postgres", "{why}; once more in 5 s"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = self.cancel.wait() => return Err(PgError::Cancelled),
            }
        }
    }

    /// PG-123, PG-124, PG-125.
    async fn run_method(
        &self,
        settings: &Settings,
        method: &ReplicaMethod,
        address: Option<&Address>,
    ) -> Result<(), PgError> {
        if !method.keep_data {
            self.clear_data_dir(settings).await?;
        }
        let mut command = command_line(WHAT, &method.command)?;
        for (name, value) in &method.arguments {
            command.arg(option_word(name, Some(value)));
        }
        if !method.no_params {
            let info = address.map(|at| Conninfo::new(at, &settings.replication).to_text(18));
            command.arg(format!("--scope={}", settings.scope));
            command.arg("--role=replica");
            command.arg(format!("--datadir={}", settings.data_dir.display()));
            command.arg(format!("--connstring={}", info.unwrap_or_default()));
        }
        command.env("PGPASSFILE", &settings.pgpass);
        Run::new(WHAT).cancel(&self.cancel).success(command).await.map(|_| ())
    }

    /// PG-128.
    async fn after_copy(&self, settings: &Arc<Settings>) -> Result<(), PgError> {
        let settings = settings.clone();
        let done = on_disk(move || {
            restore_copies(&settings)?;
            remove_triggers(&settings)
        });
        done.await.unwrap_or(Ok(())).map_err(|why| Self::failed(WHAT, why))
    }

    /// Empties the place of the data directory; what cannot be removed is set aside. (PG-350)
    async fn clear_data_dir(&self, settings: &Settings) -> Result<(), PgError> {
        let data_dir = settings.data_dir.clone();
        let cleared = on_disk(move || {
            remove_tree(&data_dir).or_else(|why| {
                tracing::error!(target: "hathi::postgres", "removing {}: {why}", data_dir.display());
                rename_tree(&data_dir).map(|_| ())
            })
        });
        cleared
            .await
            .unwrap_or(Ok(()))
            .map_err(|why| Self::failed("removing the data directory", why))
    }

    pub(super) async fn delete_data_dir(&self) -> Result<(), PgError> {
        let _busy = self.busy();
        self.refuse_while_running("removing the data directory").await?;
        self.close_session();
        self.become_role(Role::Uninitialized);
        let settings = self.settings();
        tracing::info!(target: "hathi::postgres", "removing {}", settings.data_dir.display());
        self.clear_data_dir(&settings).await
    }
}
