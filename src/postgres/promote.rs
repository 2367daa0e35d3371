//! From standby to primary. (PG-063, PG-064, PG-081)

use crate::ha::ports::{ControlState, PgError};
use crate::postgres::callbacks::Action;
use crate::postgres::child::{Run, command_line};
use crate::postgres::configuration::Recovery;
use crate::postgres::control;
use crate::postgres::pgfiles::{mode_for, replace};
use crate::postgres::room::{LocalPostgres, on_disk};
use hathi_dcs::{Deadline, Role, boottime};
use rustix::process::Signal;
use std::time::Duration;

const WHAT: &str = "promote";

impl LocalPostgres {
    pub(super) async fn run_pre_promote(&self) -> Result<(), PgError> {
        let Some(text) = self.settings().pre_promote.clone() else { return Ok(()) };
        let command = command_line("pre_promote", &text)?;
        Run::new("pre_promote").cancel(&self.cancel).success(command).await.map(|_| ())
    }

    /// Requests it as `pg_ctl promote` does (a file and a signal), and waits for the control file to
    /// say that production has begun. Once requested it cannot be taken back: only the request is
    /// cancellable.
    pub(super) async fn promote_server(&self, by: Deadline) -> Result<(), PgError> {
        let began = boottime();
        self.cancel.check()?;
        let Some(postmaster) = self.look_for_postmaster().await else {
            return Err(Self::failed(WHAT, "PostgreSQL does not run"));
        };
        let state = self.control_state().await;
        if state == Some(ControlState::InProduction) {
            self.become_role(Role::Primary);
            return Ok(());
        }
        let settings = self.settings();
        let file = settings.data_dir.join("promote");
        let mode = mode_for(&settings.data_dir, &file);
        match on_disk(move || replace(&file, b"", mode)).await {
            Some(Ok(())) => {}
            Some(Err(why)) => return Err(Self::failed(WHAT, why)),
            None => return Err(PgError::Cancelled),
        }
        match postmaster.signal(Signal::USR1) {
            Ok(true) => {}
            Ok(false) => return Err(Self::failed(WHAT, "PostgreSQL has just ended")),
            Err(why) => return Err(Self::failed(WHAT, why)),
        }
        self.set_recovery(Some(Recovery::Primary));
        self.become_role(Role::Promoted);
        self.fire(Action::RoleChange); // PG-064
        loop {
            if self.control_state().await == Some(ControlState::InProduction) {
                self.become_role(Role::Primary);
                return Ok(());
            }
            if !postmaster.is_alive() {
                return Err(Self::failed(WHAT, "PostgreSQL ended during the promotion"));
            }
            if by.left().is_zero() {
                return Err(PgError::TimedOut { what: WHAT, waited_ms: boottime().since(began) });
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    async fn control_state(&self) -> Option<ControlState> {
        let data_dir = self.settings().data_dir.clone();
        let control = on_disk(move || control::read(&data_dir)).await?.ok()?;
        Some(control.state)
    }
}
