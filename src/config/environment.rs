//! The PATRONI_* variables: which exist, where each goes, how its text is read. (section 4)

use super::document::{Document, value_of};
use super::{BaseUnit, Origin, Problem, Warning, boolean, integer, yaml};
use serde_json::Value;
use std::collections::BTreeMap;

/// The environment as it was at start.
pub type Environment = BTreeMap<String, String>;

const PREFIX: &str = "PATRONI_";

/// A whole configuration document; used instead of everything else. (CFG-001)
pub(super) const CONFIGURATION: &str = "PATRONI_CONFIGURATION";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Text,
    Boolean,
    Integer,
    /// A YAML list; the brackets may be left out.
    List,
    /// A YAML mapping; the braces may be left out.
    Map,
    /// Text if it holds `%(name)`, else a list. (CFG-051)
    Format,
}

/// Variable without the prefix → path. (CFG-050 … CFG-056, CFG-059, CFG-060, CFG-467)
const VARIABLES: &[(&str, &str, Read)] = &[
    ("NAME", "name", Read::Text),
    ("NAMESPACE", "namespace", Read::Text),
    ("SCOPE", "scope", Read::Text),
    ("THREAD_POOL_SIZE", "thread_pool_size", Read::Integer),
    ("THREAD_STACK_SIZE", "thread_stack_size", Read::Text),
    ("LOGLEVEL", "log.level", Read::Text),
    ("LOGFORMAT", "log.format", Read::Format),
    ("LOG_DATEFMT", "log.dateformat", Read::Text),
    ("LOG_TYPE", "log.type", Read::Text),
    ("LOG_LEVEL", "log.level", Read::Text),
    ("LOG_TRACEBACK_LEVEL", "log.traceback_level", Read::Text),
    ("LOG_FORMAT", "log.format", Read::Format),
    ("LOG_DATEFORMAT", "log.dateformat", Read::Text),
    ("LOG_DIR", "log.dir", Read::Text),
    ("LOG_STATIC_FIELDS", "log.static_fields", Read::Map),
    ("LOG_LOGGERS", "log.loggers", Read::Map),
    ("LOG_MAX_QUEUE_SIZE", "log.max_queue_size", Read::Integer),
    ("LOG_FILE_SIZE", "log.file_size", Read::Integer),
    ("LOG_FILE_NUM", "log.file_num", Read::Integer),
    ("LOG_MODE", "log.mode", Read::Integer),
    ("LOG_DEDUPLICATE_HEARTBEAT_LOGS", "log.deduplicate_heartbeat_logs", Read::Boolean),
    ("RESTAPI_LISTEN", "restapi.listen", Read::Text),
    ("RESTAPI_CONNECT_ADDRESS", "restapi.connect_address", Read::Text),
    ("RESTAPI_CERTFILE", "restapi.certfile", Read::Text),
    ("RESTAPI_KEYFILE", "restapi.keyfile", Read::Text),
    ("RESTAPI_KEYFILE_PASSWORD", "restapi.keyfile_password", Read::Text),
    ("RESTAPI_CAFILE", "restapi.cafile", Read::Text),
    ("RESTAPI_CIPHERS", "restapi.ciphers", Read::Text),
    ("RESTAPI_VERIFY_CLIENT", "restapi.verify_client", Read::Text),
    ("RESTAPI_SERVER_TOKENS", "restapi.server_tokens", Read::Text),
    ("RESTAPI_ALLOWLIST", "restapi.allowlist", Read::List),
    ("RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "restapi.allowlist_include_members", Read::Boolean),
    ("RESTAPI_HTTP_EXTRA_HEADERS", "restapi.http_extra_headers", Read::Map),
    ("RESTAPI_HTTPS_EXTRA_HEADERS", "restapi.https_extra_headers", Read::Map),
    ("RESTAPI_REQUEST_QUEUE_SIZE", "restapi.request_queue_size", Read::Integer),
    ("RESTAPI_THREAD_POOL_SIZE", "restapi.thread_pool_size", Read::Integer),
    ("RESTAPI_USERNAME", "restapi.authentication.username", Read::Text),
    ("RESTAPI_PASSWORD", "restapi.authentication.password", Read::Text),
    ("CTL_CACERT", "ctl.cacert", Read::Text),
    ("CTL_CERTFILE", "ctl.certfile", Read::Text),
    ("CTL_KEYFILE", "ctl.keyfile", Read::Text),
    ("CTL_KEYFILE_PASSWORD", "ctl.keyfile_password", Read::Text),
    ("CTL_INSECURE", "ctl.insecure", Read::Boolean),
    ("CTL_USERNAME", "ctl.authentication.username", Read::Text),
    ("CTL_PASSWORD", "ctl.authentication.password", Read::Text),
    ("POSTGRESQL_LISTEN", "postgresql.listen", Read::Text),
    ("POSTGRESQL_CONNECT_ADDRESS", "postgresql.connect_address", Read::Text),
    ("POSTGRESQL_PROXY_ADDRESS", "postgresql.proxy_address", Read::Text),
    ("POSTGRESQL_CONFIG_DIR", "postgresql.config_dir", Read::Text),
    ("POSTGRESQL_DATA_DIR", "postgresql.data_dir", Read::Text),
    ("POSTGRESQL_PGPASS", "postgresql.pgpass", Read::Text),
    ("POSTGRESQL_BIN_DIR", "postgresql.bin_dir", Read::Text),
    ("POSTGRESQL_BIN_PG_CTL", "postgresql.bin_name.pg_ctl", Read::Text),
    ("POSTGRESQL_BIN_INITDB", "postgresql.bin_name.initdb", Read::Text),
    ("POSTGRESQL_BIN_PG_CONTROLDATA", "postgresql.bin_name.pg_controldata", Read::Text),
    ("POSTGRESQL_BIN_PG_BASEBACKUP", "postgresql.bin_name.pg_basebackup", Read::Text),
    ("POSTGRESQL_BIN_POSTGRES", "postgresql.bin_name.postgres", Read::Text),
    ("POSTGRESQL_BIN_IS_READY", "postgresql.bin_name.pg_isready", Read::Text),
    ("POSTGRESQL_BIN_PG_ISREADY", "postgresql.bin_name.pg_isready", Read::Text),
    ("POSTGRESQL_BIN_PG_REWIND", "postgresql.bin_name.pg_rewind", Read::Text),
    ("RAFT_DATA_DIR", "raft.data_dir", Read::Text),
    ("RAFT_SELF_ADDR", "raft.self_addr", Read::Text),
    ("RAFT_BIND_ADDR", "raft.bind_addr", Read::Text),
    ("RAFT_PASSWORD", "raft.password", Read::Text),
    ("RAFT_PARTNER_ADDRS", "raft.partner_addrs", Read::List),
    ("CITUS_GROUP", "citus.group", Read::Integer),
    ("CITUS_DATABASE", "citus.database", Read::Text),
    ("CONSUL_SCHEME", "consul.scheme", Read::Text),
    ("REDIS_DB", "redis.db", Read::Integer),
    ("REDIS_REPLICAS", "redis.replicas", Read::Integer),
    ("REDIS_SENTINELS", "redis.sentinels", Read::List),
    ("REDIS_SENTINEL_MASTER", "redis.sentinel_master", Read::Text),
    ("RETRIABLE_HTTP_CODES", "kubernetes.retriable_http_codes", Read::List),
    ("WATCHDOG_MODE", "watchdog.mode", Read::Text),
    ("WATCHDOG_DEVICE", "watchdog.device", Read::Text),
    ("WATCHDOG_SAFETY_MARGIN", "watchdog.safety_margin", Read::Integer),
    ("GUARD_MODE", "guard.mode", Read::Text),
    ("TAGS_NOFAILOVER", "tags.nofailover", Read::Boolean),
    ("TAGS_FAILOVER_PRIORITY", "tags.failover_priority", Read::Integer),
    ("TAGS_NOSYNC", "tags.nosync", Read::Boolean),
    ("TAGS_SYNC_PRIORITY", "tags.sync_priority", Read::Integer),
    ("TAGS_CLONEFROM", "tags.clonefrom", Read::Boolean),
    ("TAGS_NOLOADBALANCE", "tags.noloadbalance", Read::Boolean),
    ("TAGS_NOSTREAM", "tags.nostream", Read::Boolean),
    ("TAGS_REPLICATEFROM", "tags.replicatefrom", Read::Text),
];

/// Options of the three users, and the sections' keys with what they are read as. (CFG-056, CFG-057)
const USERS: [&str; 3] = ["SUPERUSER", "REPLICATION", "REWIND"];
const USER_KEYS: [&str; 12] = [
    "USERNAME",
    "PASSWORD",
    "SSLMODE",
    "SSLCERT",
    "SSLKEY",
    "SSLPASSWORD",
    "SSLROOTCERT",
    "SSLCRL",
    "SSLCRLDIR",
    "GSSENCMODE",
    "CHANNEL_BINDING",
    "SSLNEGOTIATION",
];
const SECTION_KEYS: &[(&str, Read)] = &[
    ("HOST", Read::Text),
    ("HOSTS", Read::List),
    ("PORT", Read::Integer),
    ("USE_PROXIES", Read::Boolean),
    ("PROTOCOL", Read::Text),
    ("SRV", Read::Text),
    ("SRV_SUFFIX", Read::Text),
    ("URL", Read::Text),
    ("PROXY", Read::Text),
    ("CACERT", Read::Text),
    ("CERT", Read::Text),
    ("KEY", Read::Text),
    ("VERIFY", Read::Boolean),
    ("TOKEN", Read::Text),
    ("CHECKS", Read::List),
    ("DC", Read::Text),
    ("CONSISTENCY", Read::Text),
    ("REGISTER_SERVICE", Read::Boolean),
    ("SERVICE_CHECK_INTERVAL", Read::Text),
    ("SERVICE_CHECK_TLS_SERVER_NAME", Read::Text),
    ("SERVICE_TAGS", Read::List),
    ("NAMESPACE", Read::Text),
    ("CONTEXT", Read::Text),
    ("USE_ENDPOINTS", Read::Boolean),
    ("SCOPE_LABEL", Read::Text),
    ("ROLE_LABEL", Read::Text),
    ("POD_IP", Read::Text),
    ("PORTS", Read::List),
    ("LABELS", Read::Map),
    ("BOOTSTRAP_LABELS", Read::Map),
    ("BYPASS_API_SERVICE", Read::Boolean),
    ("RETRIABLE_HTTP_CODES", Read::List),
    ("KEY_PASSWORD", Read::Text),
    ("USE_SSL", Read::Boolean),
    ("SET_ACLS", Read::Map),
    ("AUTH_DATA", Read::Map),
    ("LEADER_LABEL_VALUE", Read::Text),
    ("FOLLOWER_LABEL_VALUE", Read::Text),
    ("STANDBY_LEADER_LABEL_VALUE", Read::Text),
    ("TMP_ROLE_LABEL", Read::Text),
];

/// Puts the variables over the document. (CFG-003)
pub(super) fn apply(document: &mut Document, environment: &Environment) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut later = Vec::new();
    for (name, text) in environment {
        let Some(short) = name.strip_prefix(PREFIX).filter(|_| name != CONFIGURATION) else {
            continue;
        };
        if text.is_empty() {
            continue;
        }
        let Some((path, read)) = target(short) else {
            if !is_store_login(short) {
                let text = "is not a variable this version reads; ignored".to_owned();
                warnings.push(warning(name, "", text));
            } else {
                later.push((name, short, text));
            }
            continue;
        };
        // The older names of three variables give way to the newer ones. (CFG-051)
        let newer = match short {
            "LOGLEVEL" => "PATRONI_LOG_LEVEL",
            "LOGFORMAT" => "PATRONI_LOG_FORMAT",
            "LOG_DATEFMT" => "PATRONI_LOG_DATEFORMAT",
            "POSTGRESQL_BIN_IS_READY" => "PATRONI_POSTGRESQL_BIN_PG_ISREADY",
            _ => "",
        };
        if environment.get(newer).is_some_and(|text| !text.is_empty()) {
            continue;
        }
        match value(text, read) {
            Some(value) => document.set(&path, value, Origin::Environment(name.clone())),
            None => {
                let text = format!("cannot be read as {}; ignored", described(read));
                warnings.push(warning(name, &path, text));
            }
        }
    }
    // A password alone makes no section. (CFG-058)
    for (name, short, text) in later {
        let (section, key) = short.split_once('_').unwrap_or_default();
        let section = section.to_lowercase();
        if document.values.contains_key(&section) {
            let path = format!("{section}.{}", key.to_lowercase());
            let origin = Origin::Environment(name.clone());
            document.set(&path, Value::String(text.clone()), origin);
        }
    }
    warnings
}

/// A variable we read. Children of the agent get none of them. (CFG-004)
pub fn is_ours(name: &str) -> bool {
    let short = name.strip_prefix(PREFIX);
    name == CONFIGURATION || short.is_some_and(|s| target(s).is_some() || is_store_login(s))
}

fn is_store_login(short: &str) -> bool {
    let names = [
        "ETCD_USERNAME",
        "ETCD_PASSWORD",
        "ETCD3_USERNAME",
        "ETCD3_PASSWORD",
        "REDIS_USERNAME",
        "REDIS_PASSWORD",
        "REDIS_SENTINEL_USERNAME",
        "REDIS_SENTINEL_PASSWORD",
    ];
    names.contains(&short)
}

fn target(short: &str) -> Option<(String, Read)> {
    if let Some((_, path, read)) = VARIABLES.iter().find(|(name, _, _)| *name == short) {
        return Some(((*path).to_owned(), *read));
    }
    let (section, key) = short.split_once('_')?;
    if USERS.contains(&section) && USER_KEYS.contains(&key) {
        let (user, key) = (section.to_lowercase(), key.to_lowercase());
        return Some((format!("postgresql.authentication.{user}.{key}"), Read::Text));
    }
    let (_, read) = SECTION_KEYS.iter().find(|(name, _)| *name == key)?;
    let path = format!("{}.{}", section.to_lowercase(), key.to_lowercase());
    (!section.is_empty()).then_some((path, *read))
}

fn value(text: &str, read: Read) -> Option<Value> {
    let as_text = || Value::String(text.to_owned());
    match read {
        Read::Text => Some(as_text()),
        Read::Boolean => boolean(&as_text()).map(Value::Bool),
        Read::Integer => integer(&as_text(), BaseUnit::None).map(Value::from),
        Read::Format if text.contains("%(") => Some(as_text()),
        Read::Format | Read::List => {
            let bare = !text.trim_start().starts_with('-') && !text.contains('[');
            let text = if bare { format!("[{text}]") } else { text.to_owned() };
            yaml::parse(&text).ok().map(|node| value_of(&node)).filter(Value::is_array)
        }
        Read::Map => {
            let bare = !text.trim_start().starts_with('{');
            let text = if bare { format!("{{{text}}}") } else { text.to_owned() };
            yaml::parse(&text).ok().map(|node| value_of(&node)).filter(Value::is_object)
        }
    }
}

fn described(read: Read) -> &'static str {
    match read {
        Read::Text => "text",
        Read::Boolean => "a boolean (on or off)",
        Read::Integer => "a whole number without a unit",
        Read::List | Read::Format => "a YAML list",
        Read::Map => "a YAML mapping",
    }
}

fn warning(name: &str, path: &str, text: String) -> Warning {
    let origin = Some(Origin::Environment(name.to_owned()));
    Warning(Problem { origin, path: path.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(variables: &[(&str, &str)]) -> (Value, Vec<String>) {
        let environment =
            variables.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        let mut document = Document::default();
        let warnings = apply(&mut document, &environment);
        (Value::Object(document.values), warnings.iter().map(ToString::to_string).collect())
    }

    /// Proves CFG-050, CFG-051, CFG-052, CFG-053, CFG-054, CFG-055, CFG-056, CFG-057, CFG-058,
    /// CFG-059, CFG-060, CFG-062, CFG-467.
    /// Proves REST-306.
    #[test]
    fn variables_reach_their_keys() {
        for (variables, expected) in [
            (&[("PATRONI_NAME", "a")][..], json!({"name": "a"})),
            (&[("PATRONI_NAME", "")], json!({})),
            (&[("PATRONI_LOGLEVEL", "DEBUG")], json!({"log": {"level": "DEBUG"}})),
            (
                &[("PATRONI_LOGLEVEL", "DEBUG"), ("PATRONI_LOG_LEVEL", "INFO")],
                json!({"log": {"level": "INFO"}}),
            ),
            (&[("PATRONI_LOG_MODE", "0644")], json!({"log": {"mode": 420}})),
            (
                &[("PATRONI_LOG_LOGGERS", "urllib3: WARNING")],
                json!({"log": {"loggers": {"urllib3": "WARNING"}}}),
            ),
            (
                &[("PATRONI_RESTAPI_USERNAME", "u")],
                json!({"restapi": {"authentication": {"username": "u"}}}),
            ),
            (
                &[("PATRONI_RESTAPI_ALLOWLIST", "a,b")],
                json!({"restapi": {"allowlist": ["a", "b"]}}),
            ),
            (
                &[("PATRONI_RESTAPI_HTTP_EXTRA_HEADERS", "X-A: b, X-C: d")],
                json!({"restapi": {"http_extra_headers": {"X-A": "b", "X-C": "d"}}}),
            ),
            (
                &[("PATRONI_RESTAPI_HTTPS_EXTRA_HEADERS", "{X-A: b}")],
                json!({"restapi": {"https_extra_headers": {"X-A": "b"}}}),
            ),
            (
                &[
                    ("PATRONI_RESTAPI_LISTEN", "*:8008"),
                    ("PATRONI_RESTAPI_CONNECT_ADDRESS", "10.0.0.1:8008"),
                    ("PATRONI_RESTAPI_CERTFILE", "/c"),
                    ("PATRONI_RESTAPI_VERIFY_CLIENT", "required"),
                    ("PATRONI_RESTAPI_ALLOWLIST_INCLUDE_MEMBERS", "on"),
                    ("PATRONI_RESTAPI_REQUEST_QUEUE_SIZE", "9"),
                    ("PATRONI_RESTAPI_SERVER_TOKENS", "Minimal"),
                    ("PATRONI_RESTAPI_PASSWORD", "dummy"),
                ],
                json!({"restapi": {
                    "listen": "*:8008", "connect_address": "10.0.0.1:8008", "certfile": "/c",
                    "verify_client": "required", "allowlist_include_members": true,
                    "request_queue_size": 9, "server_tokens": "Minimal",
                    "authentication": {"password": "dummy"},
                }}),
            ),
            (
                &[("PATRONI_RESTAPI_THREAD_POOL_SIZE", "7")],
                json!({"restapi": {"thread_pool_size": 7}}),
            ),
            (&[("PATRONI_CTL_INSECURE", "on")], json!({"ctl": {"insecure": true}})),
            (
                &[("PATRONI_POSTGRESQL_BIN_PG_CTL", "pgctl")],
                json!({"postgresql": {"bin_name": {"pg_ctl": "pgctl"}}}),
            ),
            (
                &[("PATRONI_REPLICATION_SSLMODE", "require")],
                json!({"postgresql": {"authentication": {"replication": {"sslmode": "require"}}}}),
            ),
            (
                &[("PATRONI_ETCD3_HOSTS", "'a:1','b:2'")],
                json!({"etcd3": {"hosts": ["a:1", "b:2"]}}),
            ),
            (&[("PATRONI_FOO_HOST", "h")], json!({"foo": {"host": "h"}})),
            (&[("PATRONI_ZOOKEEPER_USE_SSL", "false")], json!({"zookeeper": {"use_ssl": false}})),
            (&[("PATRONI_ETCD3_PASSWORD", "x")], json!({})),
            (
                &[("PATRONI_ETCD3_PASSWORD", "x"), ("PATRONI_ETCD3_HOST", "h")],
                json!({"etcd3": {"host": "h", "password": "x"}}),
            ),
            (
                &[("PATRONI_RAFT_PARTNER_ADDRS", "\"a:1\", 'b:2'")],
                json!({"raft": {"partner_addrs": ["a:1", "b:2"]}}),
            ),
            (&[("PATRONI_CITUS_GROUP", "1")], json!({"citus": {"group": 1}})),
            (&[("PATRONI_TAGS_NOFAILOVER", "no")], json!({"tags": {"nofailover": false}})),
            (&[("PATRONI_WATCHDOG_MODE", "off")], json!({"watchdog": {"mode": "off"}})),
        ] {
            let (got, warnings) = applied(variables);
            assert_eq!(got, expected, "{variables:?}");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
    }

    /// Proves CFG-061, CFG-467: what cannot be read is said, and its value is not.
    #[test]
    fn bad_values_are_reported() {
        for (name, text) in [
            ("PATRONI_CTL_INSECURE", "perhaps"),
            ("PATRONI_LOG_FILE_SIZE", "10MB"),
            ("PATRONI_LOG_LOGGERS", "[perhaps"),
            ("PATRONI_UNKNOWN", "perhaps"),
        ] {
            let (got, warnings) = applied(&[(name, text)]);
            assert_eq!(got, json!({}), "{name}");
            assert_eq!(warnings.len(), 1, "{name}");
            assert!(warnings[0].starts_with(&format!("{name}: ")), "{warnings:?}");
            assert!(!warnings[0].contains("perhaps"), "{warnings:?}");
        }
    }

    /// Proves CFG-004.
    #[test]
    fn our_variables_are_known() {
        for name in
            ["PATRONI_CONFIGURATION", "PATRONI_SUPERUSER_PASSWORD", "PATRONI_ETCD3_PASSWORD"]
        {
            assert!(is_ours(name), "{name}");
        }
        for name in ["PATH", "PATRONI_", "PATRONI_WHATEVER"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
