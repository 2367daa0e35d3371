//! The one query of a turn, and what its row says. (PG-300 … PG-313)

use crate::ha::ports::{
    Commit, LogicalSlot, Replication, Sender, Server, ServerDetails, Slot, Standby,
};
use crate::postgres::session::literal;
use hathi_dcs::{Lsn, MemberName, Timeline};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tokio_postgres::SimpleQueryRow;

/// Everything about the running server in one row; no privileges beyond the superuser's, one round
/// trip, bounded work. Works on 13 … 18. Prepared once in a session: to plan it costs PostgreSQL three
/// times what it costs to run. `pg_stat_replication` is spelled out, because the view looks at every
/// backend; and the settings, hundreds of them, are read only after a reload.
pub const PREPARE: &str = "\
PREPARE hathi_look (text) AS SELECT pg_is_in_recovery() AS in_recovery,
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS wal_file,
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END AS flushed,
 pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed,
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
 to_char(pg_last_xact_replay_timestamp(), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM') AS replayed_at,
 to_char(pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM') AS started_at,
 r.status AS receiver_status, r.written_lsn AS written, r.latest_end_lsn AS latest_end,
 CASE WHEN r.latest_end_lsn IS NULL THEN NULL ELSE r.received_tli END AS received_tli,
 c.timeline_id AS control_timeline,
 current_setting('restore_command', true) AS restore_command,
 current_setting('primary_conninfo', true) AS primary_conninfo,
 current_setting('primary_slot_name', true) AS primary_slot_name,
 current_setting('server_version_num') AS version,
 current_setting('archive_mode') AS archive_mode,
 current_setting('synchronous_standby_names') AS sync_names,
 current_setting('synchronous_commit') AS sync_commit,
 (SELECT json_agg(json_build_object('name', s.slot_name, 'active', s.active, 'restart_lsn', s.restart_lsn::text,
    'type', s.slot_type, 'plugin', s.plugin, 'database', d.datname, 'confirmed', s.confirmed_flush_lsn::text,
    'lost', s.wal_status = 'lost'))
    FROM pg_get_replication_slots() s LEFT JOIN pg_database d ON d.oid = s.datoid
    WHERE NOT s.temporary AND to_jsonb(s) ->> 'failover' IS DISTINCT FROM 'true') AS slots,
 (SELECT json_agg(json_build_object('usename', pg_get_userbyid(a.usesysid), 'application_name', a.application_name,
    'client_addr', a.client_addr, 'state', w.state, 'sync_state', w.sync_state, 'sync_priority', w.sync_priority,
    'written', w.write_lsn::text, 'flushed', w.flush_lsn::text, 'replayed', w.replay_lsn::text))
    FROM pg_stat_get_wal_senders() w CROSS JOIN LATERAL pg_stat_get_activity(w.pid) a) AS replication,
 pg_conf_load_time()::text AS loaded,
 CASE WHEN pg_conf_load_time()::text = $1 THEN NULL ELSE
  (SELECT json_object_agg(name, current_setting(name)) FROM pg_settings WHERE pending_restart) END AS pending
FROM pg_control_checkpoint() c LEFT JOIN pg_stat_get_wal_receiver() r ON true";

/// What the row said.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub server: Server,
    pub details: ServerDetails,
    /// What the receiver of a standby says it streams, if there is one. (PG-305)
    pub received_timeline: Option<Timeline>,
    pub slots: Vec<Slot>,
    pub replication: Replication,
    /// Names of parameters that wait for a restart, with their values in force.
    pub pending: BTreeMap<String, String>,
    /// When the server, as this session sees it, read its files last.
    pub loaded: String,
    pub primary_conninfo: String,
    pub primary_slot_name: String,
    pub restore_command: String,
    pub archive_mode: String,
}

/// Asks for the row; what cannot have changed since `known` is left out.
pub fn query(known: Option<&Row>) -> String {
    let loaded = known.map(|row| row.loaded.as_str()).unwrap_or_default();
    format!("EXECUTE hathi_look ({})", literal(loaded))
}

/// `None` if the row is not what [`query`] gives. `known` is what was left out of it.
pub fn parse(row: &SimpleQueryRow, known: Option<&Row>) -> Option<Row> {
    let text = |name: &str| row.try_get(name).ok().flatten();
    let owned = |name: &str| text(name).unwrap_or_default().to_owned();
    let lsn = |name: &str| text(name).and_then(Lsn::parse);
    let json = |name: &str| text(name).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let restore_command = owned("restore_command");
    let received_timeline = text("received_tli").and_then(|text| text.parse().ok()).map(Timeline);
    let server = match text("in_recovery")? {
        "f" => Server::Primary {
            timeline: Timeline(u32::from_str_radix(text("wal_file")?, 16).ok()?),
            lsn: lsn("flushed")?,
        },
        _ => {
            let streaming = text("receiver_status") == Some("streaming");
            let number = |name: &str| text(name).and_then(|text| text.parse().ok());
            let control = number("control_timeline").map(Timeline);
            Server::Standby(Standby {
                timeline: received_timeline.or(control).unwrap_or_default(),
                received: lsn("received").max(lsn("written")).filter(|lsn| *lsn > Lsn(0)),
                replayed: lsn("replayed").filter(|lsn| *lsn > Lsn(0)),
                streaming,
                from_archive: !streaming && !restore_command.is_empty(),
                replay_paused: text("paused") == Some("t"),
            })
        }
    };
    let mut replication = match json("replication") {
        Some(Value::Array(rows)) => rows,
        _ => Vec::new(),
    };
    let senders = replication.iter_mut().filter_map(sender).collect();
    let commit = match text("sync_commit") {
        Some("remote_write") => Commit::Written,
        Some("remote_apply") => Commit::Replayed,
        Some(_) | None => Commit::Flushed,
    };
    let synchronous = Replication { names: owned("sync_names"), commit, senders };
    let details = ServerDetails {
        postmaster_start_time: trim_fraction(text("started_at")?),
        server_version: text("version")?.parse().ok()?,
        replayed_timestamp: text("replayed_at").map(trim_fraction),
        latest_end_lsn: lsn("latest_end").filter(|lsn| *lsn > Lsn(0)),
        replication,
    };
    let slots = match json("slots") {
        Some(Value::Array(rows)) => rows.iter().filter_map(slot).collect(),
        _ => Vec::new(),
    };
    let loaded = owned("loaded");
    let pending = match (json("pending"), known) {
        (Some(Value::Object(map)), _) => pairs(map),
        (_, Some(known)) if known.loaded == loaded => known.pending.clone(),
        (_, _) => BTreeMap::new(),
    };
    Some(Row {
        server,
        details,
        received_timeline,
        slots,
        replication: synchronous,
        pending,
        loaded,
        primary_conninfo: owned("primary_conninfo"),
        primary_slot_name: owned("primary_slot_name"),
        restore_command,
        archive_mode: owned("archive_mode"),
    })
}

/// The positions are for us; the rest of the row is what REST answers show. (REST-090)
fn sender(row: &mut Value) -> Option<Sender> {
    let row = row.as_object_mut()?;
    let mut position = |name: &str| {
        let taken = row.shift_remove(name);
        taken.as_ref().and_then(Value::as_str).and_then(Lsn::parse).unwrap_or_default()
    };
    let (written, flushed, replayed) =
        (position("written"), position("flushed"), position("replayed"));
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
    Some(Sender {
        name: MemberName::from(text("application_name")),
        streaming: text("state") == "streaming",
        sync_state: text("sync_state").to_owned(),
        written,
        flushed,
        replayed,
    })
}

/// Temporary slots, and those that PostgreSQL 17 keeps in step by itself, are not asked for. (PG-268)
fn slot(value: &Value) -> Option<Slot> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let logical = (text("type") == Some("logical")).then(|| LogicalSlot {
        database: text("database").unwrap_or_default().to_owned(),
        plugin: text("plugin").unwrap_or_default().to_owned(),
        confirmed: text("confirmed").and_then(Lsn::parse).unwrap_or_default(),
    });
    Some(Slot {
        name: text("name")?.to_owned(),
        active: value.get("active")?.as_bool()?,
        restart_lsn: text("restart_lsn").and_then(Lsn::parse),
        logical,
        lost: value.get("lost").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn pairs(map: Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
    map.into_iter().map(|(name, value)| (name, text(value))).collect()
}

/// Timestamps as the REST API shows them: no fraction if it is zero. (REST-005)
fn trim_fraction(text: &str) -> String {
    text.replace(".000000", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves REST-005 (the fraction).
    #[test]
    fn a_zero_fraction_is_left_out() {
        let full = "2026-11-23 20:35:41.444611+00:00";
        assert_eq!(trim_fraction(full), full);
        assert_eq!(trim_fraction("2026-11-23 20:35:41.000000+05:30"), "2026-11-23 20:35:41+05:30");
    }

    #[test]
    fn slots_without_a_position_are_kept() {
        let json = serde_json::json!({"name": "beta", "active": false, "restart_lsn": null});
        assert_eq!(slot(&json), Some(Slot { name: "beta".into(), ..Slot::default() }));
        assert_eq!(slot(&Value::Null), None);
        let json = serde_json::json!({"name": "cdc", "active": true, "restart_lsn": "0/10", "lost": true,
            "type": "logical", "database": "app", "plugin": "pgoutput", "confirmed": "0/20"});
        let logical =
            LogicalSlot { database: "app".into(), plugin: "pgoutput".into(), confirmed: Lsn(32) };
        let expected = Slot {
            name: "cdc".into(),
            active: true,
            restart_lsn: Some(Lsn(16)),
            logical: Some(logical),
            lost: true,
        };
        assert_eq!(slot(&json), Some(expected));
    }
}
