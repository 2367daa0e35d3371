//! Is the description what is served? (src/api/openapi.json)

use super::{Served, primary};
use crate::api::openapi::DESCRIPTION;
use crate::api::{ConfigOutcome, Order, RestConfig, Snapshot};
use crate::ha::manual::Answer;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const METHODS: [&str; 7] = ["get", "head", "options", "post", "put", "patch", "delete"];

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).expect("JSON")
}

fn operations(description: &Value) -> Vec<(String, String, Value)> {
    let paths = description["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, operations)| {
            let operations = operations.as_object().expect("operations");
            operations.iter().map(|(method, one)| (path.clone(), method.clone(), one.clone()))
        })
        .collect()
}

/// An agent that does whatever it is told.
pub async fn obedient(config: RestConfig, snapshot: Snapshot) -> Served {
    let mut served = Served::with(config, snapshot).await;
    let mut orders = std::mem::replace(&mut served.orders, tokio::sync::mpsc::channel(1).1);
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            match order {
                Order::PatchConfig { document, reply } | Order::PutConfig { document, reply } => {
                    let _ = reply.send(ConfigOutcome::Stored { document, objections: vec![] });
                }
                Order::Manual { reply, .. }
                | Order::Member { reply, .. }
                | Order::DeleteSchedule { reply } => {
                    let _ = reply.send(Answer::new(200, "done"));
                }
                Order::Reload { reply } => {
                    let _ = reply.send(());
                }
                Order::FreshStatus { .. } => {}
            }
        }
    });
    served
}

/// Proves REST-472: each operation described is there, answers with a status and a content type that
/// are described; and each method that is not described is answered with 501, on these paths and on
/// those that only handlers know.
#[tokio::test]
async fn the_description_is_what_is_served() {
    let description = description();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        (&description["openapi"], &description["info"]["version"]),
        (&json!("3.1.0"), &json!(version))
    );
    let served = obedient(RestConfig::on("127.0.0.1:0"), primary()).await;
    assert_eq!(served.get("/openapi.json").await.json(), description);
    let operations = operations(&description);
    let described: BTreeSet<(String, String)> =
        operations.iter().map(|(path, method, _)| (path.clone(), method.clone())).collect();
    for (path, method, operation) in &operations {
        let target = path.replace("{number}", "7");
        if target == "/events" {
            continue; // It never ends; its own tests read it.
        }
        let (method_sent, body) = (method.to_uppercase(), r#"{"leader": "a", "candidate": "b"}"#);
        let reply = served.send(&method_sent, &target, body).await;
        let known = &operation["responses"][reply.status.to_string()];
        assert!(known.is_object(), "{method} {path}: {} is not described", reply.status);
        let kind = reply.header("content-type");
        match known["content"].as_object() {
            Some(kinds) => {
                assert!(
                    kind.is_some_and(|kind| kinds.contains_key(kind)),
                    "{method} {path}: {kind:?}"
                );
            }
            None if reply.body.is_empty() => {}
            None => panic!("{method} {path}: a body that is not described: {}", reply.body),
        }
    }
    let paths: BTreeSet<&String> = described.iter().map(|(path, _)| path).collect();
    assert!(paths.len() > 35);
    for path in paths {
        let target = path.replace("{number}", "7");
        for method in METHODS.iter().filter(|m| !described.contains(&(path.clone(), m.to_string())))
        {
            let reply = served.ask(&method.to_uppercase(), &target, "", b"").await;
            // Whatever is read and has no route is a health check that fails. (REST-033)
            let readable = ["get", "head", "options"].contains(method);
            assert_eq!(reply.status, if readable { 503 } else { 501 }, "{method} {path}");
        }
    }
}

/// Proves REST-472 (nothing is left out): whatever path answers a method with something else than a
/// health check's 503 or 501 is described.
#[tokio::test]
async fn nothing_served_is_left_out() {
    let served = obedient(RestConfig::on("127.0.0.1:0"), primary()).await;
    let described: BTreeSet<(String, String)> =
        operations(&description()).into_iter().map(|(path, method, _)| (path, method)).collect();
    let words = [
        "liveness",
        "readiness",
        "patroni",
        "cluster",
        "history",
        "config",
        "metrics",
        "failsafe",
        "decisions",
        "openapi.json",
        "ui",
        "reload",
        "restart",
        "reinitialize",
        "failover",
        "switchover",
        "sigterm",
        "citus",
        "mpp",
        "stop",
        "start",
        "shutdown",
        "pause",
        "resume",
        "promote",
        "demote",
        "status",
        "admin",
        "debug",
        "api",
        "v1",
        "health",
        "primary",
        "replica",
    ];
    for word in words {
        for method in METHODS {
            let path = format!("/{word}");
            let reply = served.send(&method.to_uppercase(), &path, r#"{"leader": "a"}"#).await;
            let unknown = reply.status == 501
                || (["get", "head", "options"].contains(&method) && reply.status == 503);
            assert!(
                unknown || described.contains(&(path.clone(), method.to_owned())),
                "{method} {path} answers {} and is not described",
                reply.status
            );
        }
    }
}

/// Each reference leads somewhere, each operation says what it does, each body has a schema.
#[test]
fn the_description_is_whole() {
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(to)) = map.get("$ref") {
                    out.push(to.clone());
                }
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, out)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let description = description();
    let mut all = Vec::new();
    references(&description, &mut all);
    assert!(!all.is_empty());
    for to in all {
        let pointer = to.strip_prefix('#').expect("within the document");
        assert!(description.pointer(pointer).is_some(), "{to}");
    }
    for (path, method, operation) in operations(&description) {
        assert!(
            operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
            "{method} {path}"
        );
        let wanted: Vec<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')).collect();
        for name in wanted {
            let name = name.trim_end_matches('}');
            let named = operation["parameters"].as_array().into_iter().flatten();
            assert!(named.clone().any(|one| one["name"] == name && one["in"] == "path"), "{path}");
        }
        if let Some(body) = operation.get("requestBody") {
            assert!(body["content"]["application/json"]["schema"].is_object(), "{method} {path}");
        }
    }
}

/// The documents we render keep the description's word: every key of ours is described with its type.
#[tokio::test]
async fn documents_have_the_described_keys() {
    let description = description();
    let schemas = &description["components"]["schemas"];
    let served = obedient(RestConfig::on("127.0.0.1:0"), primary()).await;
    let keys = |document: &Map<String, Value>, schema: &str| {
        let known = schemas[schema]["properties"].as_object().expect("properties");
        for key in document.keys() {
            assert!(known.contains_key(key), "{schema}: {key} is not described");
        }
        for key in schemas[schema]["required"].as_array().into_iter().flatten() {
            assert!(document.contains_key(key.as_str().expect("text")), "{schema}: no {key}");
        }
    };
    let status = served.get("/patroni").await.json();
    keys(status.as_object().expect("an object"), "Status");
    let cluster = served.get("/cluster").await.json();
    keys(cluster.as_object().expect("an object"), "Cluster");
    for member in cluster["members"].as_array().expect("members") {
        keys(member.as_object().expect("an object"), "Member");
    }
}
