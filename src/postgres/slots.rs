//! Replication slots as the core wants them: physical ones here, logical ones by way of
//! logical_slots.rs. (PG-261 … PG-273)

use crate::ha::ports::{PgError, SlotPlan};
use crate::postgres::logical_slots::Todo;
use crate::postgres::room::LocalPostgres;
use crate::postgres::session::{Session, SqlError, literal};
use hathi_dcs::{Deadline, Lsn};
use std::collections::BTreeMap;

const WHAT: &str = "replication slots";

/// One row of `pg_get_replication_slots()`.
struct Found {
    logical: bool,
    active: bool,
    confirmed: Option<Lsn>,
    restart: Option<Lsn>,
    has_xmin: bool,
    lost: bool,
}

impl LocalPostgres {
    /// One slot that fails does not keep the others from being handled; the first error is told.
    pub(super) async fn bring_slots(&self, plan: &SlotPlan, by: Deadline) -> Result<(), PgError> {
        if plan.is_empty() {
            return Ok(());
        }
        let late = |_| Self::failed(WHAT, "the connection is busy");
        let mut held = tokio::time::timeout(by.left(), self.session.lock()).await.map_err(late)?;
        if held.as_ref().is_none_or(Session::is_closed) {
            let opened = self.open_long_session(by).await;
            *held = Some(opened.map_err(|why| Self::failed(WHAT, why))?);
        }
        let mut todo = Vec::new();
        let result = match held.as_ref() {
            Some(session) => work(session, plan, &mut todo, by).await,
            None => Ok(()),
        };
        self.work_on_logical(todo);
        if result.as_ref().is_err_and(|why| why.code().is_none()) {
            *held = None;
        }
        result.map_err(|why| Self::failed(WHAT, why))
    }
}

async fn work(
    session: &Session,
    plan: &SlotPlan,
    todo: &mut Vec<Todo>,
    by: Deadline,
) -> Result<(), SqlError> {
    let found = read(session, by).await?;
    for (name, wanted) in &plan.logical {
        let slot = found.get(name);
        let work = match wanted.position {
            None => slot.is_none(),
            // One that somebody reads from, or that is not logical, is not ours to move.
            Some(to) => {
                slot.is_some_and(|slot| slot.logical && !slot.active && slot.confirmed < Some(to))
            }
        };
        if work {
            todo.push(Todo { name: name.clone(), wanted: wanted.clone() });
        }
    }
    let mut first_error = None;
    let mut note = |result: Result<(), SqlError>| match result {
        Ok(()) => Ok(()),
        Err(why) if why.code().is_some() => {
            first_error.get_or_insert(why);
            Ok(())
        }
        // The connection is of no more use.
        Err(why) => Err(why),
    };
    for (name, position) in &plan.physical {
        let sql = match found.get(name) {
            None => create(name),
            Some(slot) if slot.active || slot.logical => continue,
            Some(slot) => {
                let idle = position.is_some();
                if slot.lost || slot.restart.is_none() || (idle && slot.has_xmin) {
                    // PG-265, PG-266: of no use as it is.
                    note(session.run(&drop_slot(name), by).await)?;
                    create(name)
                } else if let (Some(to), Some(restart)) = (position, slot.restart)
                    && *to > restart
                {
                    format!("SELECT pg_replication_slot_advance({}, '{to}')", literal(name))
                } else {
                    continue;
                }
            }
        };
        note(session.run(&sql, by).await)?;
    }
    for name in &plan.unwanted {
        if found.get(name).is_some_and(|slot| !slot.active) {
            note(session.run(&drop_slot(name), by).await)?;
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn create(name: &str) -> String {
    format!("SELECT pg_create_physical_replication_slot({}, true)", literal(name))
}

fn drop_slot(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", literal(name))
}

async fn read(session: &Session, by: Deadline) -> Result<BTreeMap<String, Found>, SqlError> {
    let sql = "SELECT slot_name, slot_type, active, restart_lsn, confirmed_flush_lsn, \
               xmin IS NOT NULL AS has_xmin, wal_status \
               FROM pg_get_replication_slots() WHERE NOT temporary";
    let mut found = BTreeMap::new();
    for row in session.rows(sql, by).await? {
        let text = |name: &str| row.try_get(name).ok().flatten();
        let Some(name) = text("slot_name") else { continue };
        let slot = Found {
            logical: text("slot_type") == Some("logical"),
            confirmed: text("confirmed_flush_lsn").and_then(Lsn::parse),
            active: text("active") == Some("t"),
            restart: text("restart_lsn").and_then(Lsn::parse),
            has_xmin: text("has_xmin") == Some("t"),
            lost: text("wal_status") == Some("lost"),
        };
        found.insert(name.to_owned(), slot);
    }
    Ok(found)
}
