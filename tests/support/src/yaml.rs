//! The YAML files the agents get: one text for hathi and for Patroni, which is the point.

use crate::sql::{SUPERUSER, SUPERUSER_PASSWORD};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::Path;

pub const SCOPE: &str = "hathi-test";

/// What differs between two nodes of a cluster.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    pub name: &'a str,
    pub dir: &'a Path,
    pub host: Ipv4Addr,
    /// Who may connect, in pg_hba's words.
    pub clients: &'a str,
    pub pg_port: u16,
    pub rest_port: u16,
}

/// The dynamic configuration a cluster starts with. The shortest lease Patroni allows, so that a
/// test of a node's death is over in half a minute.
pub fn default_dcs() -> Value {
    json!({
        "ttl": 20, "loop_wait": 2, "retry_timeout": 3,
        "maximum_lag_on_failover": 1_048_576,
        "postgresql": {
            "use_pg_rewind": true, "use_slots": true,
            "parameters": {"max_connections": 60, "max_worker_processes": 8}
        }
    })
}

/// A whole configuration file. JSON is YAML, and cannot be mistaken in its indentation.
pub fn node(places: &Places<'_>, store: &Value, dcs: &Value) -> Value {
    let address = format!("{}:{}", places.host, places.pg_port);
    let rest = format!("{}:{}", places.host, places.rest_port);
    let mut whole = json!({
        "scope": SCOPE,
        "name": places.name,
        "log": {"level": std::env::var("HATHI_TEST_LOG").unwrap_or_else(|_| "INFO".into())},
        "restapi": {"listen": rest, "connect_address": rest},
        "bootstrap": {
            "dcs": dcs,
            "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums"]
        },
        "postgresql": {
            "listen": address,
            "connect_address": address,
            "data_dir": places.dir.join("data"),
            "bin_dir": bin_dir(),
            "pgpass": places.dir.join("pgpass"),
            "authentication": {
                "superuser": {"username": SUPERUSER, "password": SUPERUSER_PASSWORD},
                "replication": {"username": "replicator", "password": "dummy-repl"},
                "rewind": {"username": "rewind_user", "password": "dummy-rewind"}
            },
            "parameters": {
                "unix_socket_directories": places.dir,
                "shared_buffers": "16MB",
                "fsync": "off",
                "log_min_messages": "log",
                "log_min_error_statement": "panic"
            },
            "pg_hba": [
                "local all all trust",
                format!("host replication replicator {} scram-sha-256", places.clients),
                format!("host all all {} scram-sha-256", places.clients)
            ]
        }
    });
    if let (Some(whole), Some(store)) = (whole.as_object_mut(), store.as_object()) {
        whole.extend(store.clone());
    }
    whole
}

/// Lays `change` over `base` as Patroni merges configuration: recursively, null removes.
pub fn merge(base: &mut Value, change: &Value) {
    match (base.as_object_mut(), change.as_object()) {
        (Some(old), Some(new)) => {
            for (key, value) in new {
                if value.is_null() {
                    old.remove(key);
                } else {
                    merge(old.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        _ => *base = change.clone(),
    }
}

/// Where PostgreSQL's programs are.
pub fn bin_dir() -> String {
    std::env::var("HATHI_PG_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned())
}
