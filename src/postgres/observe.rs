//! One look at the server. (PG-004 … PG-016, PG-300 … PG-312, PG-450)

use crate::ha::ports::{Observation, Replication, Server};
use crate::postgres::monitor::{self, Row};
use crate::postgres::process;
use crate::postgres::room::{Disk, LocalPostgres, lock};
use crate::postgres::session::{Session, SqlError, Target};
use crate::postgres::settings::Settings;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hathi_dcs::{Deadline, Role, State};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A look that several wait for.
pub(super) type SharedLook = Shared<BoxFuture<'static, Option<Observation>>>;

impl LocalPostgres {
    pub(super) async fn look(&self, by: Deadline) -> Observation {
        let settings = self.settings();
        let disk = self.look_at_disk(&settings, by).await;
        let held = match self.postmaster() {
            Some(held) => Some(held),
            None => disk.postmaster.and_then(|id| self.join(id)),
        };
        let server = match &held {
            None => Server::Down,
            Some(postmaster) if postmaster.is_frozen() => {
                Server::Silent("the postmaster is stopped by a signal".into())
            }
            Some(_) => match self.monitor_timeline(by).await {
                Ok(row) => {
                    self.answered(&row);
                    self.explain_pending(&settings, &row, by).await;
                    self.resume_if_stuck(&disk, &row, by).await;
                    row.server
                }
                Err(SqlError::Rejecting(_) | SqlError::NoResponse(_))
                    if self.postmaster().is_none() =>
                {
                    Server::Down
                }
                Err(SqlError::Rejecting(_)) => {
                    if !self.is_busy() && self.state() == State::Running {
                        self.enter(State::Starting); // PG-311
                    }
                    Server::Starting
                }
                Err(SqlError::NoResponse(why)) => match self.state() {
                    State::Starting | State::BootstrapStarting | State::Restarting => {
                        Server::Starting
                    }
                    State::Initdb
                    | State::InitdbFailed
                    | State::CustomBootstrap
                    | State::CustomBootstrapFailed
                    | State::CreatingReplica
                    | State::Running
                    | State::StartFailed
                    | State::RestartFailed
                    | State::Stopping
                    | State::Stopped
                    | State::StopFailed
                    | State::Crashed => Server::Silent(why),
                },
                Err(
                    why
                    @ (SqlError::TimedOut { .. } | SqlError::Server { .. } | SqlError::Other(_)),
                ) => {
                    if self.postmaster().is_none() {
                        Server::Down
                    } else {
                        Server::Silent(why.to_string())
                    }
                }
            },
        };
        let alive = server != Server::Down;
        if !alive && !self.is_busy() {
            self.end_orphans(&settings, by).await;
            self.note_death();
        }
        self.describe(&settings, &disk, server, alive)
    }

    /// What a server that was not stopped by us looks like when it is gone.
    fn note_death(&self) {
        match self.state() {
            State::Running => self.enter(State::Crashed),
            State::Starting | State::BootstrapStarting => self.enter(State::StartFailed),
            State::Initdb
            | State::InitdbFailed
            | State::CustomBootstrap
            | State::CustomBootstrapFailed
            | State::CreatingReplica
            | State::StartFailed
            | State::Restarting
            | State::RestartFailed
            | State::Stopping
            | State::Stopped
            | State::StopFailed
            | State::Crashed => {}
        }
    }

    fn describe(
        &self,
        settings: &Settings,
        disk: &Disk,
        server: Server,
        alive: bool,
    ) -> Observation {
        let tracked = self.tracked();
        let facts = self.facts();
        let is_primary = match &server {
            Server::Primary { .. } => true,
            Server::Standby(_) | Server::Down => false,
            Server::Starting | Server::Silent(_) => {
                matches!(tracked.role, Role::Primary | Role::Promoted)
            }
        };
        let answered = matches!(server, Server::Primary { .. } | Server::Standby(_));
        let row = facts.row.filter(|_| answered);
        let (details, slots, replication) = match row {
            Some(row) => (Some(row.details), row.slots, row.replication),
            None => (None, Vec::new(), Replication::default()),
        };
        let bootstrapping = self.bootstrapping.load(Ordering::Acquire);
        let control = disk.control.as_ref();
        let creating = bootstrapping || tracked.state == State::CreatingReplica;
        Observation {
            data_dir: disk.data_dir.clone(),
            alive,
            state: tracked.state,
            state_since: tracked.since,
            role: tracked.role,
            server,
            system_id: control.and_then(|c| c.system_id.clone()).filter(|_| !creating),
            slots,
            pending_restart: if alive { facts.pending } else { BTreeMap::new() },
            details,
            can_rewind: settings.use_pg_rewind
                && settings.has_binary("pg_rewind")
                && control.is_some_and(|c| c.wal_log_hints || c.data_checksums),
            is_primary,
            replication,
            fast_stop_ms: self.longest_fast_stop(),
            disk_stalls_ms: self.disk_watch.stalls_ms(),
        }
    }

    /// Asks the monitoring query, over the one long connection; a broken connection is replaced
    /// once.
    pub(super) async fn monitor(&self, by: Deadline) -> Result<Row, SqlError> {
        let late = |_| SqlError::TimedOut { waited_ms: 0 };
        let mut held = tokio::time::timeout(by.left(), self.session.lock()).await.map_err(late)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let is_old = held.as_ref().is_some_and(|session| !session.is_closed());
            if !is_old {
                *held = None;
                *held = Some(self.open_long_session(by).await?);
            }
            let known = self.facts().row;
            let answer = match held.as_ref() {
                Some(session) => session.row(&monitor::query(known.as_ref()), by).await,
                None => Err(SqlError::Other("not connected".into())),
            };
            match answer {
                Ok(row) => {
                    return monitor::parse(&row, known.as_ref())
                        .ok_or_else(|| SqlError::Other("the row could not be read".into()));
                }
                Err(why) => {
                    // Keeps nothing whose state is not known.
                    *held = None;
                    let again = is_old && attempts < 2 && !matches!(why, SqlError::TimedOut { .. });
                    if !again {
                        return Err(why);
                    }
                }
            }
        }
    }

    /// The one long connection.
    pub(super) async fn open_long_session(&self, by: Deadline) -> Result<Session, SqlError> {
        let session = Session::open(&Target::watching(&self.settings()), by).await?;
        session.run(monitor::PREPARE, by).await?;
        Ok(session)
    }

    /// A standby with smaller settings than its primary's WAL demands pauses its replay for ever;
    /// resumed, it ends, and starts again with larger ones. A pause that an operator asked for
    /// stays. (PG-068, PG-190, PG-465)
    async fn resume_if_stuck(&self, disk: &Disk, row: &Row, by: Deadline) {
        let Server::Standby(standby) = &row.server else { return };
        let Some(control) = disk.control.as_ref().filter(|_| standby.replay_paused) else { return };
        let below = control
            .limits
            .iter()
            .map(|(name, needed)| format!("current_setting('{name}')::bigint < {needed}"));
        let sql = format!(
            "SELECT pg_wal_replay_resume() WHERE {}",
            below.collect::<Vec<_>>().join(" OR ")
        );
        let Ok(held) = tokio::time::timeout(by.left(), self.session.lock()).await else { return };
        let Some(session) = held.as_ref() else { return };
        match session.rows(&sql, by).await {
            Ok(rows) if !rows.is_empty() => tracing::warn!(
                target: "hathi::postgres",
                "replay waits for larger settings; resumed, so that the server restarts with them"
            ),
            Ok(_) => {}
            Err(why) => tracing::debug!(target: "hathi::postgres", "resuming the replay: {why}"),
        }
    }

    /// The server answered: what follows from that for state and role. (PG-014, PG-030)
    pub(super) fn answered(&self, row: &Row) {
        let is_primary = matches!(row.server, Server::Primary { .. });
        self.with_facts(|facts| {
            facts.row = Some(row.clone());
            facts.row_at = Some(Instant::now());
            facts.is_primary = Some(is_primary);
        });
        if self.is_busy() {
            return;
        }
        let joining = self.joining.swap(false, Ordering::AcqRel);
        if joining {
            let role = match (is_primary, self.role()) {
                (true, Role::Promoted) => Role::Promoted,
                (true, _) => Role::Primary,
                (false, Role::StandbyLeader) => Role::StandbyLeader,
                (false, _) => Role::Replica,
            };
            self.become_role(role);
        }
        match self.state() {
            State::Running | State::Stopping | State::Restarting => {}
            State::Initdb
            | State::InitdbFailed
            | State::CustomBootstrap
            | State::CustomBootstrapFailed
            | State::CreatingReplica
            | State::Starting
            | State::BootstrapStarting
            | State::StartFailed
            | State::RestartFailed
            | State::Stopped
            | State::StopFailed
            | State::Crashed => self.became_running(),
        }
        if joining {
            let room = self.clone();
            tokio::spawn(async move {
                if let Err(why) = room.apply_configuration().await {
                    tracing::error!(target: "hathi::postgres", "joining the running server: {why}");
                }
            });
        }
    }

    /// A postmaster that we did not start. (PG-014)
    fn join(&self, id: process::ProcessId) -> Option<process::Postmaster> {
        let postmaster = self.hold(id)?;
        if !self.is_busy() {
            tracing::info!(target: "hathi::postgres", pid = id.pid, "joining a running PostgreSQL");
            self.joining.store(true, Ordering::Release);
            self.callbacks.expect_start();
            if self.state() != State::Restarting {
                self.enter(State::Starting);
            }
        }
        Some(postmaster)
    }

    /// A look as of now for GET /patroni; all who ask at the moment share one. `None`: nothing new
    /// by `by`. (REST-080, REST-346)
    pub async fn fresh(&self, by: Deadline) -> Option<Observation> {
        let shared = {
            let mut running = lock(&self.fresh);
            match running.as_ref().filter(|shared| shared.peek().is_none()) {
                Some(shared) => shared.clone(),
                None => {
                    let room = self.clone();
                    // It outlives its first caller, so it keeps its own limit.
                    let limit = by.earlier(Deadline::in_ms(2000));
                    let look = async move { Some(room.look(limit).await) };
                    let shared = look.boxed().shared();
                    *running = Some(shared.clone());
                    shared
                }
            }
        };
        tokio::time::timeout(by.left(), shared).await.ok().flatten()
    }
}
