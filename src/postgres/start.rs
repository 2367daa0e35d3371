//! Starting the server. (PG-020 … PG-032, PG-190)

use crate::ha::ports::{PgError, Start, Started};
use crate::postgres::apply::write_signal_files;
use crate::postgres::configuration::Recovery;
use crate::postgres::conninfo::Address;
use crate::postgres::disk::major_version;
use crate::postgres::pgfiles::ensure_writable;
use crate::postgres::process::{self, PidFile, Postmaster};
use crate::postgres::room::{LocalPostgres, on_disk};
use crate::postgres::session::SqlError;
use crate::postgres::settings::Settings;
use crate::postgres::{control, spawn};
use hathi_dcs::{Deadline, PendingChange, Role, State, boottime};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const WHAT: &str = "start";

impl LocalPostgres {
    pub(super) async fn start_server(&self, how: Start, by: Deadline) -> Result<Started, PgError> {
        let _busy = self.busy();
        self.cancel.check()?;
        let recovery = match &how {
            Start::AsPrimary => Recovery::Primary,
            Start::AsStandby(upstream) => Recovery::Standby(upstream.clone()),
        };
        if let Start::AsStandby(_) = how {
            self.forget_sync_names();
        }
        match how {
            Start::AsPrimary => self.become_role(Role::Primary),
            Start::AsStandby(_) if self.role() == Role::StandbyLeader => {}
            Start::AsStandby(_) => self.become_role(Role::Replica),
        }
        if self.state() == State::Restarting {
            self.callbacks.expect_restart();
        } else {
            self.callbacks.expect_start();
        }
        self.start_with(recovery, State::Starting, by).await
    }

    /// Starts it with this recovery configuration; the state while it starts is `state`.
    pub(super) async fn start_with(
        &self,
        recovery: Recovery,
        state: State,
        by: Deadline,
    ) -> Result<Started, PgError> {
        let settings = self.settings();
        self.close_session();
        if let Some(postmaster) = self.look_for_postmaster().await {
            tracing::error!(
                target: "hathi::postgres", pid = postmaster.id.pid,
                "PostgreSQL is to be started and runs already"
            );
            self.enter(state);
            return self.wait_until_ready(&postmaster, by).await;
        }
        self.enter(state);
        let result = self.launch(settings, recovery, by).await;
        let postmaster = match result {
            Ok(postmaster) => postmaster,
            Err(why) => {
                self.enter(State::StartFailed);
                return Err(why);
            }
        };
        self.wait_until_ready(&postmaster, by).await
    }

    async fn launch(
        &self,
        settings: Arc<Settings>,
        recovery: Recovery,
        by: Deadline,
    ) -> Result<Postmaster, PgError> {
        let major = major_version(&settings.data_dir);
        if major == 0 {
            let why = format!("{} has no readable PG_VERSION", settings.data_dir.display());
            return Err(Self::failed(WHAT, why));
        }
        let mut parameters = settings.effective_parameters();
        let raised = match &recovery {
            // A restored backup demands them as well. (PG-106)
            Recovery::Standby(_) | Recovery::Given(_) => {
                raise_to_control(&settings, &mut parameters)
            }
            Recovery::Primary => BTreeMap::new(),
        };
        self.with_facts(|facts| {
            facts.raised = raised;
            facts.pending.clear(); // PG-246
            facts.pending_of.clear();
            facts.row = None;
        });
        let prepare = settings.clone();
        let signals = recovery.clone();
        let prepared = on_disk(move || {
            for directory in needed_directories(&prepare) {
                ensure_writable(&directory)?;
            }
            write_signal_files(&prepare, &signals).map_err(|why| why.to_string())
        });
        let prepared = prepared.await;
        self.disk_written();
        prepared.unwrap_or(Ok(())).map_err(|why| Self::failed(WHAT, why))?;
        if let Recovery::Standby(Some(upstream)) = &recovery
            && let Some(address) = Address::from_url(&upstream.conn_url)
        {
            self.write_passfile(&settings.pgpass, &address, &settings.replication).await?;
        }
        self.write_configuration(&recovery, Some(parameters.clone())).await?;
        self.set_recovery(Some(recovery));
        self.end_orphans(&settings, by).await;
        self.cancel.check()?;
        let spawned = on_disk(move || spawn::postmaster(&settings, &parameters)).await;
        let id = match spawned {
            Some(Ok(id)) => id,
            Some(Err(why)) => return Err(Self::failed(WHAT, format!("{}: {why}", self.program()))),
            None => return Err(PgError::Cancelled),
        };
        self.hold(id).ok_or_else(|| Self::failed(WHAT, self.last_output("it ended at once")))
    }

    fn program(&self) -> String {
        self.settings().binary("postgres").display().to_string()
    }

    /// Server processes that outlive their postmaster may go on answering their clients, who then
    /// believe in commits that no other node will know; and they keep the next postmaster from
    /// starting. Nobody says "it is down" while one of them lives.
    pub(super) async fn end_orphans(&self, settings: &Settings, by: Deadline) {
        let limit = by.earlier(Deadline::in_ms(2000));
        loop {
            let data_dir = settings.data_dir.clone();
            let left = on_disk(move || {
                let found = process::orphans(&data_dir);
                for orphan in &found {
                    process::kill(*orphan, Signal::KILL);
                }
                found.len()
            });
            if left.await.unwrap_or_default() == 0 || limit.left().is_zero() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until it takes connections, dies, or time is up. (PG-027, PG-028, PG-031)
    pub(super) async fn wait_until_ready(
        &self,
        postmaster: &Postmaster,
        by: Deadline,
    ) -> Result<Started, PgError> {
        let settings = self.settings();
        let began = boottime();
        let mut last_try = began;
        loop {
            if !postmaster.is_alive() {
                self.enter(State::StartFailed);
                return Err(Self::failed(
                    WHAT,
                    self.last_output("PostgreSQL ended during its start"),
                ));
            }
            self.cancel.check()?;
            let status = PidFile::read(&settings.data_dir)
                .filter(|file| file.pid == postmaster.id.pid)
                .map(|file| file.status);
            // The file says when it is worth asking; once in a while we ask all the same.
            let worth = status.as_deref() == Some("ready") || boottime().since(last_try) > 250;
            if worth {
                last_try = boottime();
                match self.monitor(by.earlier(Deadline::in_ms(3000))).await {
                    Ok(row) => {
                        self.with_facts(|facts| {
                            facts.is_primary = Some(matches!(
                                row.server,
                                crate::ha::ports::Server::Primary { .. }
                            ));
                            facts.row = Some(row);
                        });
                        self.became_running();
                        return Ok(Started::Ready);
                    }
                    Err(
                        SqlError::Rejecting(_)
                        | SqlError::NoResponse(_)
                        | SqlError::TimedOut { .. },
                    ) => {}
                    Err(why @ (SqlError::Server { .. } | SqlError::Other(_))) => {
                        // It takes connections, only not ours: for the operator to mend.
                        tracing::warn!(target: "hathi::postgres", "cannot log in as superuser: {why}");
                        if status.as_deref() == Some("ready") {
                            self.became_running();
                            return Ok(Started::Ready); // PG-029
                        }
                    }
                }
            }
            if by.left().is_zero() {
                return Ok(Started::StillStarting);
            }
            let pause = if boottime().since(began) < 2000 { 5 } else { 25 };
            tokio::time::sleep(by.left().min(Duration::from_millis(pause))).await;
        }
    }

    /// State `running`, copies of the files, the callback that waited. (PG-030)
    pub(super) fn became_running(&self) {
        self.enter(State::Running);
        if !self.bootstrapping.load(Ordering::Acquire) {
            let room = self.clone();
            tokio::spawn(async move { room.save_copies(room.settings()).await });
        }
        self.fire_pending();
    }

    /// The end of what the server printed, if that is kept in a file.
    fn last_output(&self, why: &str) -> String {
        let settings = self.settings();
        let output = settings.server_output.as_ref().and_then(|path| tail(path));
        match output {
            Some(text) => format!("{why}: {text}"),
            None => why.to_owned(),
        }
    }
}

fn tail(path: &std::path::Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(2048))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().rev().take(6).collect();
    Some(lines.into_iter().rev().collect::<Vec<_>>().join("\n")).filter(|text| !text.is_empty())
}

/// A standby must not have less than the primary whose WAL it replays. Raises the parameters and
/// tells which, from what to what. (PG-190)
fn raise_to_control(
    settings: &Settings,
    parameters: &mut BTreeMap<String, String>,
) -> BTreeMap<String, PendingChange> {
    let mut raised = BTreeMap::new();
    let Ok(control) = control::read(&settings.data_dir) else { return raised };
    for (name, needed) in control.limits {
        let configured: Option<i64> = parameters.get(name).and_then(|value| value.parse().ok());
        if let Some(configured) = configured
            && needed > configured
        {
            let change =
                PendingChange { old_value: needed.to_string(), new_value: configured.to_string() };
            raised.insert(name.to_owned(), change);
            parameters.insert(name.to_owned(), needed.to_string());
        }
    }
    raised
}

/// PG-021.
fn needed_directories(settings: &Settings) -> Vec<std::path::PathBuf> {
    let mut needed = settings.socket_directories().unwrap_or_default();
    if let Some(path) = settings.parameters.get("stats_temp_directory") {
        needed.push(settings.data_dir.join(path));
    }
    if settings.krbsrvname.is_none()
        && let Some(parent) = settings.pgpass.parent().filter(|path| !path.as_os_str().is_empty())
    {
        needed.push(parent.to_owned());
    }
    needed
}
