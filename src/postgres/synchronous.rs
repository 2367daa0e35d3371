//! `synchronous_standby_names`: written, reloaded, and waited for until every sender works by it.
//! (PG-280, PG-282, PG-288)

use crate::ha::ports::PgError;
use crate::postgres::configuration::{Recovery, is_generated, written_value};
use crate::postgres::room::{LocalPostgres, lock};
use crate::postgres::session::{Session, Target};
use hathi_dcs::Deadline;
use std::collections::BTreeMap;
use std::time::Duration;

const WHAT: &str = "synchronous_standby_names";
pub(super) const PARAMETER: &str = "synchronous_standby_names";
/// A sender that was busy when the reload came looks at its settings again within this time.
const SENDERS: Duration = Duration::from_millis(100);

/// Who decides about the parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Managed {
    /// Not said yet, by this life of the agent: a primary keeps what our file says, so that nothing
    /// is confirmed with less than before; a standby needs nothing.
    #[default]
    Kept,
    /// The core; empty: commits wait for nobody.
    Core(String),
    User,
}

impl LocalPostgres {
    pub(super) async fn change_sync_names(
        &self,
        names: Option<&str>,
        by: Deadline,
    ) -> Result<(), PgError> {
        let failed = |why: String| Self::failed(WHAT, why);
        let wanted = names.map_or(Managed::User, |names| Managed::Core(names.to_owned()));
        *lock(&self.managed) = wanted;
        let recovery = match self.recovery() {
            Some(recovery) => recovery,
            None => self.recovery_on_disk(&self.settings()),
        };
        if self.write_configuration(&recovery, None).await? {
            self.reload().await?;
        }
        let target = Target::local(&self.settings(), 2_000);
        let session = Session::open(&target, by).await.map_err(|why| failed(why.to_string()))?;
        // Set by the file alone: what the user has in its own is not known here.
        let expected = names.map(str::to_owned);
        loop {
            let row = session.row(IN_FORCE, by).await.map_err(|why| failed(why.to_string()))?;
            let text = |name: &str| row.try_get(name).ok().flatten().unwrap_or_default();
            let is_set = expected.as_ref().is_none_or(|expected| text("names") == expected);
            if is_set {
                tokio::time::sleep(SENDERS.min(by.left())).await;
                if text("in_recovery") == "f" && expected.is_some_and(|names| !names.is_empty()) {
                    // Waiting commits are looked at only when a standby confirms something.
                    session.run(MOVE_ON, by).await.map_err(|why| failed(why.to_string()))?;
                }
                return Ok(());
            }
            if by.left().is_zero() {
                return Err(failed("not in force yet".into()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The value for the file that is written now, in place of the configured one.
    pub(super) fn manage_names(
        &self,
        recovery: &Recovery,
        synchronous: bool,
        on_disk: &str,
        parameters: &mut BTreeMap<String, String>,
    ) {
        let managed = lock(&self.managed).clone();
        let value = match (managed, recovery) {
            (Managed::User, _) => return,
            (Managed::Core(names), _) => Some(names),
            (Managed::Kept, Recovery::Primary) if is_generated(on_disk) => {
                written_value(on_disk, PARAMETER)
            }
            (Managed::Kept, Recovery::Primary) if synchronous => None,
            (Managed::Kept, Recovery::Primary) => return,
            (Managed::Kept, Recovery::Standby(_) | Recovery::Given(_)) if synchronous => None,
            (Managed::Kept, Recovery::Standby(_) | Recovery::Given(_)) => return,
        };
        match value.filter(|names| !names.is_empty()) {
            Some(names) => parameters.insert(PARAMETER.into(), names),
            None => parameters.remove(PARAMETER),
        };
    }

    /// Who follows holds up no commits. (PG-288)
    pub(super) fn forget_sync_names(&self) {
        let mut managed = lock(&self.managed);
        if let Managed::Core(_) = *managed {
            *managed = Managed::Kept;
        }
    }
}

const IN_FORCE: &str = "SELECT current_setting('synchronous_standby_names') AS names, \
     pg_is_in_recovery() AS in_recovery";
/// A few bytes of log, flushed here and waited for nowhere.
const MOVE_ON: &str = "SELECT pg_logical_emit_message(true, 'hathi', '')";
