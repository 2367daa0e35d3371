//! Options of PostgreSQL's tools and of custom methods. (PG-102, PG-103, PG-123, PG-127)

use super::document::join;
use super::reader::{Reader, kind};
use super::{CustomBootstrap, InitdbOption, Parameters, ReplicaMethod, python_text};
use serde_json::Value;

/// initdb's own: we pass them, or they would break the bootstrap. (PG-102)
pub(super) const INITDB_FORBIDDEN: [&str; 5] =
    ["pgdata", "nosync", "pwfile", "sync-only", "version"];

/// A list of words and one-pair mappings, or a mapping (empty values left out).
pub(super) fn tool_options(reader: &Reader<'_>) -> Vec<InitdbOption> {
    match reader.raw() {
        Some(Value::Object(_)) => {
            reader.entries().iter().filter_map(|(key, value)| pair(key, value)).collect()
        }
        _ => reader.items().iter().flat_map(item).collect(),
    }
}

fn item(item: &Reader<'_>) -> Vec<InitdbOption> {
    match item.raw() {
        Some(Value::Object(map)) if map.len() == 1 => {
            item.entries().iter().filter_map(|(key, value)| pair(key, value)).collect()
        }
        Some(Value::Object(_)) => {
            item.fail("holds several keys; write each option as its own list item");
            Vec::new()
        }
        _ => item.text().map(InitdbOption::Flag).into_iter().collect(),
    }
}

fn pair(key: &str, value: &Reader<'_>) -> Option<InitdbOption> {
    match value.raw()? {
        Value::Bool(_) => {
            value
                .fail("is a boolean, text is expected; put it in quotes, or name the option alone");
            None
        }
        _ => Some(InitdbOption::Pair(key.to_owned(), unquoted(&value.text()?))),
    }
}

/// One level of shell quoting removed, if it is one word.
fn unquoted(text: &str) -> String {
    match shell_words::split(text) {
        Ok(words) if words.len() == 1 => words.concat(),
        Ok(_) | Err(_) => text.to_owned(),
    }
}

/// Refuses options that are not the operator's to set.
pub(super) fn refuse(reader: &Reader<'_>, options: &[InitdbOption], forbidden: &[&str]) {
    for option in options {
        let (InitdbOption::Flag(name) | InitdbOption::Pair(name, _)) = option;
        if forbidden.contains(&name.as_str()) {
            reader.fail(format!("the option {name} is set by hathi itself; remove it"));
        }
    }
}

/// Name in lower case → value in Python's spelling; nulls left out. (CFG-027)
pub(super) fn parameters(reader: &Reader<'_>) -> Parameters {
    let mut parameters = Parameters::new();
    for (name, value) in reader.entries() {
        match value.raw() {
            Some(found @ (Value::Array(_) | Value::Object(_))) => {
                value.fail(format!("is {}, a single value is expected", kind(found)));
            }
            Some(found) => {
                parameters.insert(name.to_lowercase(), python_text(found));
            }
            None => {}
        }
    }
    parameters
}

/// `bootstrap.<name>`. `None` and a problem without a command. (CFG-134)
pub(super) fn custom_bootstrap(name: &str, section: &Reader<'_>) -> Option<CustomBootstrap> {
    let own = [
        "command",
        "no_params",
        "keep_existing_recovery_conf",
        "recovery_conf",
        "scope",
        "datadir",
    ];
    let recovery_conf = section.get("recovery_conf");
    if !section.get("command").is_there() {
        section.fail(format!(
            "bootstrap.method is {name} but {} is not defined; add it, or use method: initdb",
            join(section.path(), "command")
        ));
    }
    Some(CustomBootstrap {
        name: name.to_owned(),
        command: section.get("command").command()?,
        no_params: section.get("no_params").flag(),
        keep_existing_recovery_conf: section.get("keep_existing_recovery_conf").flag(),
        recovery_conf: recovery_conf.is_there().then(|| parameters(&recovery_conf)),
        options: arguments(section, &own),
    })
}

/// One way of making a replica. A custom one's command defaults to its name. (PG-123)
pub(super) fn replica_method(name: &str, section: &Reader<'_>) -> ReplicaMethod {
    if name == "basebackup" {
        return ReplicaMethod::Basebackup;
    }
    let no_params = section.get("no_params").flag();
    let mut own = vec!["command"];
    if no_params {
        own.extend(["no_params", "no_leader", "keep_data"]);
    }
    ReplicaMethod::Custom {
        name: name.to_owned(),
        command: section.get("command").command().unwrap_or_else(|| name.to_owned()),
        keep_data: section.get("keep_data").flag(),
        no_params,
        no_leader: section.get("no_leader").flag(),
        options: arguments(section, &own),
    }
}

fn arguments(section: &Reader<'_>, own: &[&str]) -> Vec<(String, String)> {
    let entries = section.entries().into_iter().filter(|(key, _)| !own.contains(&key.as_str()));
    entries.filter_map(|(key, value)| value.raw().map(|raw| (key, python_text(raw)))).collect()
}
