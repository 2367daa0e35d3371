//! The parameters that have to agree in the whole cluster: only the dynamic configuration sets
//! them, within limits. (PG-180 … PG-189, CFG-034, CFG-035)

use super::reader::Reader;
use super::{BaseUnit, Parameters, boolean, integer, python_text};
use serde_json::Value;

/// Set from `postgresql.listen` and the scope; never from parameters. (PG-180 … PG-182)
const OURS: [&str; 3] = ["listen_addresses", "port", "cluster_name"];

/// Whole numbers: name, default, smallest. (PG-185, PG-186, PG-188, PG-189)
const NUMBERS: [(&str, i64, i64); 6] = [
    ("max_connections", 100, 25),
    ("max_wal_senders", 10, 3),
    ("max_prepared_transactions", 0, 0),
    ("max_locks_per_transaction", 64, 32),
    ("max_replication_slots", 10, 4),
    ("max_worker_processes", 8, 2),
];

/// Booleans and their defaults. `hot_standby` is always on. (PG-184, PG-189)
const SWITCHES: [(&str, &str); 2] = [("track_commit_timestamp", "off"), ("wal_log_hints", "on")];

/// Recovery parameters live in `recovery_conf`. (PG-179)
pub const RECOVERY: [&str; 16] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "trigger_file",
];

fn is_forced(name: &str) -> bool {
    OURS.contains(&name)
        || ["wal_level", "hot_standby", "wal_keep_segments", "wal_keep_size"].contains(&name)
        || NUMBERS.iter().any(|(number, _, _)| *number == name)
        || SWITCHES.iter().any(|(switch, _)| *switch == name)
}

/// Forced ones (checked), then the cluster's, then this node's; and the recovery parameters that
/// stood among them.
pub(super) fn merged(dynamic: &Reader<'_>, local: &Reader<'_>) -> (Parameters, Parameters) {
    let mut all = Parameters::new();
    for reader in [dynamic, local] {
        let given = super::options::parameters(reader);
        all.extend(given.into_iter().filter(|(name, _)| !is_forced(name)));
    }
    let (recovery, mut parameters): (Parameters, Parameters) =
        all.into_iter().partition(|(name, _)| RECOVERY.contains(&name.as_str()));
    parameters.extend(forced(dynamic));
    (parameters, recovery)
}

fn forced(dynamic: &Reader<'_>) -> Parameters {
    let given = dynamic.entries();
    let find = |name: &str| given.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name));
    // The value in force: the given one if it passes, else the default and a warning.
    let checked = |name: &str, default: String, check: &dyn Fn(&Value) -> Option<String>| {
        let Some((_, reader)) = find(name) else { return default };
        let value = reader.raw().unwrap_or(&Value::Null);
        check(value).unwrap_or_else(|| {
            let value = python_text(value);
            reader.warn(format!("{value} is out of range; {default} is used instead"));
            default
        })
    };
    let mut forced = Parameters::new();
    for (name, default, min) in NUMBERS {
        let check = |value: &Value| {
            let number = integer(value, BaseUnit::None)?;
            (number >= min).then(|| number.to_string())
        };
        forced.insert(name.to_owned(), checked(name, default.to_string(), &check));
    }
    for (name, default) in SWITCHES {
        let check = |value: &Value| Some(if boolean(value)? { "on" } else { "off" }.to_owned());
        forced.insert(name.to_owned(), checked(name, default.to_owned(), &check));
    }
    let on = |value: &Value| boolean(value)?.then(|| "on".to_owned());
    forced.insert("hot_standby".to_owned(), checked("hot_standby", "on".to_owned(), &on));
    let level = |value: &Value| match python_text(value).to_lowercase().as_str() {
        "hot_standby" | "replica" => Some("replica".to_owned()),
        "logical" => Some("logical".to_owned()),
        _ => None,
    };
    forced.insert("wal_level".to_owned(), checked("wal_level", "replica".to_owned(), &level));
    let segments = |value: &Value| {
        let number = integer(value, BaseUnit::None)?;
        (number >= 1).then(|| format!("{}MB", number.saturating_mul(16)))
    };
    let size = |value: &Value| {
        let megabytes = integer(value, BaseUnit::Megabytes)?;
        (megabytes >= 16).then(|| python_text(value))
    };
    // (PG-187) One is the other at 16 MB a segment.
    let default = checked("wal_keep_segments", "128MB".to_owned(), &segments);
    forced.insert("wal_keep_size".to_owned(), checked("wal_keep_size", default, &size));
    forced
}
