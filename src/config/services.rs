//! `restapi`, `ctl`, `bootstrap`, `watchdog`, `guard`, `tags` and `log`. (sections 6 and 7)

use super::options::{INITDB_FORBIDDEN, custom_bootstrap, refuse, tool_options};
use super::reader::Reader;
use super::{
    Address, BaseUnit, BasicAuth, Bootstrap, BootstrapMethod, Ctl, Guard, GuardMode, Log, LogType,
    RestApi, ServerTokens, Tags, VerifyClient, Watchdog, WatchdogDriver, WatchdogMode,
};
use hathi_dcs::MemberName;
use serde_json::{Map, Value, json};
use tracing::Level;

/// Without `group` and `database` Patroni drops the section (CFG-040); with them its nodes stand at
/// another place in the store, where this one would not look. (REST-348, DCS-021, DCS-062)
pub(super) fn citus(section: &Reader<'_>) {
    let is =
        |key: &str, kind: fn(&serde_json::Value) -> bool| section.get(key).raw().is_some_and(kind);
    if is("group", serde_json::Value::is_i64) && is("database", serde_json::Value::is_string) {
        section.fail(
            "Citus groups are not coordinated by this version, and this node would not find those \
             that are; stay with Patroni for them, or remove the section for a cluster of its own",
        );
    }
}

pub(super) fn restapi(section: &Reader<'_>) -> Option<RestApi> {
    let listen = section.get("listen").listen(None);
    let connect = section.get("connect_address");
    let connect_address = match connect.is_there() {
        true => connect.address(None),
        false => listen.as_ref().map(|listen| {
            let host = listen.hosts.first().cloned().unwrap_or_default();
            Address { host, port: listen.port }
        }),
    };
    let headers = |key: &str| -> Vec<(String, String)> {
        let entries = section.get(key).entries();
        entries.iter().filter_map(|(name, value)| Some((name.clone(), value.text()?))).collect()
    };
    let verify = [
        ("none", VerifyClient::None),
        ("optional", VerifyClient::Optional),
        ("required", VerifyClient::Required),
    ];
    let tokens = [
        ("original", ServerTokens::Original),
        ("minimal", ServerTokens::Minimal),
        ("productonly", ServerTokens::ProductOnly),
    ];
    Some(RestApi {
        listen: listen?,
        connect_address: connect_address?,
        authentication: basic_auth(&section.get("authentication")),
        certfile: section.get("certfile").file(),
        keyfile: section.get("keyfile").file(),
        keyfile_password: section.get("keyfile_password").secret(),
        cafile: section.get("cafile").file(),
        ciphers: section.get("ciphers").text(),
        verify_client: section.get("verify_client").word(&verify).unwrap_or_default(),
        allowlist: section.get("allowlist").texts(),
        allowlist_include_members: section.get("allowlist_include_members").flag(),
        http_extra_headers: headers("http_extra_headers"),
        https_extra_headers: headers("https_extra_headers"),
        server_tokens: section.get("server_tokens").word(&tokens).unwrap_or_default(),
        request_queue_size: section.get("request_queue_size").integer_u32(5),
        handshake_timeout: section.get("handshake_timeout").integer_u32(2).max(1),
        request_timeout: section.get("request_timeout").integer_u32(5).max(1),
        max_connections: section.get("max_connections").integer_u32(512).max(16),
        strict_config: section.get("strict_config").flag(),
        unix_socket: section.get("unix_socket").file(),
    })
}

pub(super) fn ctl(section: &Reader<'_>, restapi: Option<&RestApi>) -> Ctl {
    let own = basic_auth(&section.get("authentication"));
    let cacert = section.get("cacert").file();
    Ctl {
        authentication: own.or_else(|| restapi?.authentication.clone()),
        insecure: section.get("insecure").flag(),
        cacert: cacert.or_else(|| restapi?.cafile.clone()),
        certfile: section.get("certfile").file(),
        keyfile: section.get("keyfile").file(),
        keyfile_password: section.get("keyfile_password").secret(),
    }
}

/// Both or a problem: half a login protects nothing. (CFG-041, CFG-099)
fn basic_auth(section: &Reader<'_>) -> Option<BasicAuth> {
    if !section.is_there() || section.map().is_empty() {
        return None;
    }
    let username = section.get("username").required();
    let password = section.get("password").required();
    Some(BasicAuth { username: username?, password: super::Secret::new(password?) })
}

pub(super) fn bootstrap(section: &Reader<'_>) -> Option<Bootstrap> {
    if !section.is_there() {
        return None;
    }
    section.map();
    if section.get("users").is_there() {
        section.get("users").warn(
            "is no longer understood (as in Patroni since 4.0): create users in post_bootstrap",
        );
    }
    let initdb = tool_options(&section.get("initdb"));
    refuse(&section.get("initdb"), &initdb, &INITDB_FORBIDDEN);
    let method = match section.get("method").text().as_deref() {
        None | Some("initdb") => BootstrapMethod::Initdb,
        Some(name) => match custom_bootstrap(name, &section.get(name)) {
            Some(custom) => BootstrapMethod::Custom(custom),
            None => BootstrapMethod::Initdb,
        },
    };
    Some(Bootstrap {
        dcs: section.get("dcs").map(),
        method,
        initdb,
        post_bootstrap: section.first(&["post_bootstrap", "post_init"]).command(),
        pg_hba: section.get("pg_hba").lines(),
    })
}

pub(super) fn watchdog(section: &Reader<'_>) -> Watchdog {
    use WatchdogMode::*;
    section.map();
    let default = Watchdog::default();
    let modes = [
        ("off", Off),
        ("disable", Off),
        ("disabled", Off),
        ("automatic", Automatic),
        ("auto", Automatic),
        ("on", Automatic),
        ("required", Required),
        ("require", Required),
    ];
    let drivers = [("default", WatchdogDriver::Default), ("testing", WatchdogDriver::Testing)];
    let mode = section.get("mode");
    let unset = if mode.is_there() { Off } else { default.mode };
    let margin = section.get("safety_margin").integer(BaseUnit::None, -1);
    Watchdog {
        mode: mode.word(&modes).unwrap_or(unset),
        device: section.get("device").file().unwrap_or(default.device),
        safety_margin: margin.map_or(5, |margin| i32::try_from(margin).unwrap_or(i32::MAX)),
        driver: section.get("driver").word(&drivers).unwrap_or_default(),
    }
}

pub(super) fn guard(section: &Reader<'_>) -> Guard {
    section.map();
    let modes =
        [("required", GuardMode::Required), ("on", GuardMode::Required), ("off", GuardMode::Off)];
    Guard { mode: section.get("mode").word(&modes).unwrap_or_default() }
}

/// A boolean and a priority that mean the same; where they contradict, the boolean wins. (CFG-076)
fn twins(tags: &Reader<'_>, no: &str, priority: &str) -> (bool, i64) {
    let (flag, number) = (tags.get(no).boolean(), tags.get(priority));
    let number = number.integer(BaseUnit::None, i64::MIN);
    if let (Some(flag), Some(number)) = (flag, number)
        && flag != (number <= 0)
    {
        tags.get(no).warn(format!("contradicts {priority}: {number}; {no}: {flag} is used"));
    }
    match (flag, number) {
        (Some(true), _) => (true, 0),
        (Some(false), number) => (false, number.filter(|number| *number > 0).unwrap_or(1)),
        (None, Some(number)) if number <= 0 => (true, 0),
        (None, number) => (false, number.unwrap_or(1)),
    }
}

pub(super) fn tags(section: &Reader<'_>) -> Tags {
    let (nofailover, failover_priority) = twins(section, "nofailover", "failover_priority");
    let (nosync, sync_priority) = twins(section, "nosync", "sync_priority");
    let all = section.map();
    let mut published = Map::new();
    for (name, value) in &all {
        let parsed = match name.as_str() {
            "nofailover" | "nosync" | "clonefrom" | "noloadbalance" | "nostream" => {
                let flag = section.get(name).boolean().unwrap_or(false);
                let twin = match name.as_str() {
                    "nofailover" => all.contains_key("failover_priority"),
                    "nosync" => all.contains_key("sync_priority"),
                    _ => false,
                };
                (flag || twin).then(|| json!(flag))
            }
            "failover_priority" | "sync_priority" | "replicatefrom" => {
                let empty = matches!(value, Value::Null | Value::Bool(false));
                let empty = empty || *value == json!(0) || *value == json!("");
                (!empty).then(|| value.clone())
            }
            _ => Some(value.clone()),
        };
        if let Some(value) = parsed {
            published.insert(name.clone(), value);
        }
    }
    Tags {
        nofailover,
        failover_priority,
        nosync,
        sync_priority,
        clonefrom: section.get("clonefrom").flag(),
        noloadbalance: section.get("noloadbalance").flag(),
        nostream: section.get("nostream").flag(),
        replicatefrom: section.get("replicatefrom").text().map(MemberName::new),
        published,
    }
}

const LEVELS: [(&str, Level); 7] = [
    ("DEBUG", Level::DEBUG),
    ("INFO", Level::INFO),
    ("WARNING", Level::WARN),
    ("WARN", Level::WARN),
    ("ERROR", Level::ERROR),
    ("FATAL", Level::ERROR),
    ("CRITICAL", Level::ERROR),
];

/// A list of names and one-pair mappings (field: its name in the line). (CFG-088)
fn log_fields(format: &Reader<'_>) -> Vec<(String, String)> {
    if matches!(format.raw(), Some(Value::String(_)) | None) {
        return Vec::new();
    }
    let mut fields = Vec::new();
    for item in format.items() {
        match item.raw() {
            Some(Value::Object(_)) => {
                let pairs = item.entries().into_iter();
                fields.extend(pairs.filter_map(|(name, to)| Some((name, to.text()?))));
            }
            _ => fields.extend(item.text().map(|name| (name.clone(), name))),
        }
    }
    fields
}

/// One that cannot be used is reported and counts as not there. (CFG-089)
fn dateformat(reader: &Reader<'_>) -> Option<String> {
    use chrono::format::{Item, StrftimeItems};
    let text = reader.text()?;
    if StrftimeItems::new(&text).any(|item| matches!(item, Item::Error)) {
        reader.warn("is no strftime format; the usual one is used");
        return None;
    }
    Some(text)
}

pub(super) fn log(section: &Reader<'_>) -> Log {
    section.map();
    let default = Log::default();
    let kinds = [("plain", LogType::Plain), ("json", LogType::Json)];
    let level = |reader: Reader<'_>| reader.word(&LEVELS);
    let loggers = section.get("loggers").entries();
    let loggers = loggers.into_iter().filter_map(|(name, at)| Some((name, level(at)?))).collect();
    let number = |key: &str, min: i64| section.get(key).integer(BaseUnit::None, min);
    let mode = number("mode", 0).and_then(|mode| u32::try_from(mode).ok());
    Log {
        kind: section.get("type").word(&kinds).unwrap_or_default(),
        fields: log_fields(&section.get("format")),
        format: match section.get("format").raw() {
            Some(Value::String(format)) if !format.is_empty() => format.clone(),
            _ => default.format,
        },
        dateformat: dateformat(&section.get("dateformat")),
        level: level(section.get("level")).unwrap_or(default.level),
        traceback_level: level(section.get("traceback_level")).unwrap_or(default.traceback_level),
        dir: section.get("dir").file(),
        file_size: number("file_size", 1).map_or(default.file_size, i64::unsigned_abs),
        file_num: section.get("file_num").integer_u32(default.file_num),
        mode: mode.map(|mode| mode & 0o777),
        loggers,
        static_fields: section.get("static_fields").map(),
        max_queue_size: number("max_queue_size", 1)
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(default.max_queue_size),
        deduplicate_heartbeat_logs: section.get("deduplicate_heartbeat_logs").flag(),
    }
}
