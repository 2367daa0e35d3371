//! The dynamic document and the local configuration become [`Settings`].

use super::document::Origins;
use super::postgresql::{raw_list, replica_methods, seconds, shared, use_slots};
use super::reader::{Findings, Reader};
use super::{
    BaseUnit, ConfigError, Local, Origin, Settings, StandbyCluster, SynchronousMode, Warning,
    boolean, integer, keys,
};
use hathi_dcs::Timing;
use serde_json::{Map, Value};

/// The settings in force under this dynamic document. (CFG-030 … CFG-039)
///
/// Pure: call it again at each change of the document. An empty document must not be handed in
/// once settings are in force (CFG-039). The warnings are those of the document; the ones of the
/// local configuration came with [`super::load`].
///
/// # Errors
/// The document cannot be applied; the caller keeps the settings it has and says so once. (CFG-038)
pub fn effective(
    local: &Local,
    dynamic: &Map<String, Value>,
) -> Result<(Settings, Vec<Warning>), ConfigError> {
    let origins = Origins::all_from(Origin::Dynamic);
    let (settings, warnings, _) = apply(local, dynamic, &origins, "")?;
    Ok((settings, warnings))
}

/// As [`effective`], for a document that stands at `base` of the local file; also the warnings of
/// the local `postgresql` section.
pub(super) fn apply(
    local: &Local,
    dynamic: &Map<String, Value>,
    origins: &Origins,
    base: &str,
) -> Result<(Settings, Vec<Warning>, Vec<Warning>), ConfigError> {
    let ours = Findings::new(&local.postgresql_section.origins);
    let section = Reader::at(&ours, "postgresql", &local.postgresql_section.values);
    let findings = Findings::new(origins);
    let document = Value::Object(dynamic.clone());
    let root = Reader::at(&findings, base, &document);
    let settings = settings(&root, &section);
    keys::dynamic().check(&findings, base, dynamic);
    let (settings, warnings) = findings.finish(Some(settings))?;
    let ((), local_warnings) = ours.finish(Some(()))?;
    Ok((settings, warnings, local_warnings))
}

fn settings(root: &Reader<'_>, local: &Reader<'_>) -> Settings {
    let postgresql = root.get("postgresql");
    if postgresql.is_there() {
        postgresql.map();
    }
    let bytes = |key: &str, default: i64, min: i64| {
        root.get(key).integer(BaseUnit::None, min).unwrap_or(default)
    };
    let wished_timing = timing(root);
    let standby_cluster = standby_cluster(&root.get("standby_cluster"), &postgresql, local);
    let synchronous = synchronous_mode(&root.get("synchronous_mode"));
    Settings {
        timing: wished_timing.adjusted(),
        wished_timing,
        maximum_lag_on_failover: bytes("maximum_lag_on_failover", 1_048_576, 0).unsigned_abs(),
        maximum_lag_on_syncnode: bytes("maximum_lag_on_syncnode", -1, -1),
        max_timelines_history: root.get("max_timelines_history").integer_u32(0),
        primary_start_timeout: root
            .first(&["primary_start_timeout", "master_start_timeout"])
            .integer_u32(300),
        primary_stop_timeout: root
            .first(&["primary_stop_timeout", "master_stop_timeout"])
            .integer_u32(0),
        primary_race_backoff: root.get("primary_race_backoff").integer_u32(0),
        primary_restart_limit: root.get("primary_restart_limit").integer_u32(0),
        primary_disk_timeout: root.get("primary_disk_timeout").integer_u32(0),
        // (CFG-282)
        synchronous_mode: match standby_cluster {
            Some(_) => SynchronousMode::Off,
            None => synchronous,
        },
        synchronous_mode_strict: root.get("synchronous_mode_strict").flag(),
        synchronous_node_count: root.get("synchronous_node_count").integer_u32(1),
        failsafe_mode: root.get("failsafe_mode").flag(),
        check_timeline: root.get("check_timeline").flag(),
        pause: root.get("pause").flag(),
        member_slots_ttl: seconds(&root.get("member_slots_ttl"), 1800),
        use_slots: use_slots(&postgresql),
        slots: root.first(&["slots", "permanent_slots", "permanent_replication_slots"]).map(),
        ignore_slots: raw_list(&root.get("ignore_slots")),
        standby_cluster,
        postgresql: shared(&postgresql, local),
    }
}

/// Numbers or the whole document is refused (CFG-031, CFG-038); what is corrected is said (CFG-037).
fn timing(root: &Reader<'_>) -> Timing {
    let default = Timing::default();
    let number = |key: &str, default: u32| {
        let given = root.raw().and_then(|document| document.get(key));
        match given.map(|value| integer(value, BaseUnit::None)) {
            None => default,
            Some(Some(value)) => u32::try_from(value.max(0)).unwrap_or(u32::MAX),
            Some(None) => {
                root.get(key).fail("is no whole number of seconds");
                default
            }
        }
    };
    let wished = Timing {
        ttl: number("ttl", default.ttl),
        loop_wait: number("loop_wait", default.loop_wait),
        retry_timeout: number("retry_timeout", default.retry_timeout),
    };
    let used = wished.adjusted();
    for (key, wished, used) in [
        ("ttl", wished.ttl, used.ttl),
        ("loop_wait", wished.loop_wait, used.loop_wait),
        ("retry_timeout", wished.retry_timeout, used.retry_timeout),
    ] {
        if key == "ttl" && (Timing::SHORTEST..Timing::PATRONIS_SHORTEST).contains(&wished) {
            root.get(key).warn(format!(
                "{wished} is used only while all members are hathi's and the store keeps so short a \
                 lease, and a store that does not answer for a moment costs the leadership; else \
                 {used} is used"
            ));
        } else if wished != used {
            root.get(key).warn(format!(
                "{wished} does not fit (minimum, or loop_wait + 2 * retry_timeout <= ttl); \
                 {used} is used"
            ));
        }
    }
    wished
}

/// A boolean or `quorum`. (CFG-268)
fn synchronous_mode(reader: &Reader<'_>) -> SynchronousMode {
    match reader.raw() {
        None => SynchronousMode::Off,
        Some(Value::String(text)) if text.eq_ignore_ascii_case("quorum") => SynchronousMode::Quorum,
        Some(value) => match boolean(value) {
            Some(true) => SynchronousMode::On,
            Some(false) => SynchronousMode::Off,
            None => {
                reader.warn("is neither a boolean nor quorum; off is used");
                SynchronousMode::Off
            }
        },
    }
}

/// Any one of host, port, restore_command makes it one. (CFG-277)
fn standby_cluster<'a>(
    section: &Reader<'_>,
    dynamic: &Reader<'a>,
    local: &Reader<'a>,
) -> Option<StandbyCluster> {
    if !section.is_there() {
        return None;
    }
    section.map();
    let port = section.get("port").integer(BaseUnit::None, 1);
    let methods = section.get("create_replica_methods");
    let section_of = |name: &str| {
        let reader = local.get(name);
        if reader.is_there() { reader } else { dynamic.get(name) }
    };
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let standby = StandbyCluster {
        host: given(section.get("host").text()),
        port: port.and_then(|port| u16::try_from(port).ok()),
        restore_command: given(section.get("restore_command").text()),
        primary_slot_name: section.get("primary_slot_name").text(),
        create_replica_methods: match methods.is_there() {
            true => replica_methods(&methods, &section_of),
            false => Vec::new(),
        },
        archive_cleanup_command: section.get("archive_cleanup_command").text(),
        recovery_min_apply_delay: section.get("recovery_min_apply_delay").text(),
    };
    let named =
        standby.host.is_some() || standby.port.is_some() || standby.restore_command.is_some();
    named.then_some(standby)
}
