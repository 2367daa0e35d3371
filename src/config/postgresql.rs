//! The `postgresql` section: what only this node decides, and what the cluster has a say in.

use super::options::{parameters, replica_method, tool_options};
use super::reader::Reader;
use super::{
    Address, Authentication, BaseUnit, Callbacks, Credentials, Environment, Listen, Postgresql,
    PostgresqlLocal, ReplicaMethod,
};
use serde_json::Value;
use std::path::PathBuf;

/// libpq's options a user may carry. (PG-320)
pub const LOGIN_OPTIONS: [&str; 10] = [
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// The local part. `None` when something required is missing (and said).
pub(super) fn local(section: &Reader<'_>, environment: &Environment) -> Option<PostgresqlLocal> {
    let listen = section.get("listen").listen(Some(5432));
    let data_dir = section.get("data_dir").required().map(PathBuf::from);
    let authentication = authentication(section);
    let connect = section.get("connect_address");
    let connect_address = match connect.is_there() {
        true => connect.address(Some(5432)),
        false => listen.as_ref().map(default_address),
    };
    let proxy_address = section.get("proxy_address").address(Some(5432));
    let (listen, data_dir) = (listen?, data_dir?);
    let home = environment.get("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute());
    Some(PostgresqlLocal {
        connect_address: connect_address?,
        proxy_address,
        config_dir: section.get("config_dir").file().unwrap_or_else(|| data_dir.clone()),
        config_base_name: section
            .get("config_base_name")
            .text()
            .unwrap_or_else(|| "postgresql".to_owned()),
        bin_dir: section.get("bin_dir").file(),
        pgpass: section.get("pgpass").file().unwrap_or_else(|| match home {
            Some(home) => home.join("pgpass"),
            None => data_dir.with_extension("pgpass"),
        }),
        authentication: authentication?,
        listen,
        data_dir,
    })
}

/// What others connect to when nobody says: the address listened on, or the host's name.
fn default_address(listen: &Listen) -> Address {
    let first = listen.hosts.iter().find(|host| !matches!(host.as_str(), "*" | "0.0.0.0" | "::"));
    let host = first
        .cloned()
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    Address { host, port: listen.port }
}

/// `authentication`, or the older sections beside it. (CFG-042, CFG-170, CFG-171)
fn authentication(section: &Reader<'_>) -> Option<Authentication> {
    let users = section.get("authentication");
    let user = |new: &str, old: &str| {
        let reader = users.get(new);
        if reader.is_there() { reader } else { section.get(old) }
    };
    let mut complete = true;
    for (new, old) in [("superuser", "superuser"), ("replication", "replication")] {
        if !user(new, old).is_there() {
            users.get(new).fail("is not defined; add it with username and password");
            complete = false;
        }
    }
    let superuser = user("superuser", "superuser");
    let rewind = user("rewind", "pg_rewind");
    complete.then(|| Authentication {
        superuser: credentials(&superuser),
        replication: credentials(&user("replication", "replication")),
        rewind: credentials(if rewind.is_there() { &rewind } else { &superuser }),
    })
}

fn credentials(reader: &Reader<'_>) -> Credentials {
    reader.map();
    let option = |name: &'static str| Some((name, reader.get(name).secret()?));
    Credentials {
        username: reader.get("username").text(),
        password: reader.get("password").secret(),
        options: LOGIN_OPTIONS.into_iter().filter_map(option).collect(),
    }
}

/// The part both have a say in: for each key the local value, else the dynamic one. (CFG-034)
pub(super) fn shared(dynamic: &Reader<'_>, local: &Reader<'_>) -> Postgresql {
    let pick = |key: &str| {
        let reader = local.get(key);
        if reader.is_there() { reader } else { dynamic.get(key) }
    };
    let (all, from_parameters) =
        super::parameters::merged(&dynamic.get("parameters"), &local.get("parameters"));
    let mut recovery_conf = parameters(&pick("recovery_conf"));
    recovery_conf.extend(from_parameters);
    let callbacks = pick("callbacks");
    let methods = match pick("create_replica_methods") {
        reader if reader.is_there() => reader,
        _ => pick("create_replica_method"),
    };
    let bin_name = pick("bin_name").entries();
    // (CFG-042) The older form of the users says by its presence whether to rewind.
    let legacy = !local.get("authentication").is_there() && local.get("pg_rewind").is_there();
    Postgresql {
        parameters: all,
        recovery_conf,
        pg_hba: pick("pg_hba").lines(),
        pg_ident: pick("pg_ident").lines(),
        custom_conf: pick("custom_conf").text(),
        pg_ctl_timeout: pick("pg_ctl_timeout").integer_u32(60),
        callback_timeout: pick("callback_timeout").integer_u32(0),
        use_pg_rewind: legacy || pick("use_pg_rewind").flag(),
        remove_data_directory_on_rewind_failure: pick("remove_data_directory_on_rewind_failure")
            .flag(),
        remove_data_directory_on_diverged_timelines: pick(
            "remove_data_directory_on_diverged_timelines",
        )
        .flag(),
        reinitialize_without_wal: pick("reinitialize_without_wal").flag(),
        use_unix_socket: pick("use_unix_socket").flag(),
        use_unix_socket_repl: pick("use_unix_socket_repl").flag(),
        krbsrvname: pick("krbsrvname").text(),
        database: pick("database").text().unwrap_or_else(|| "postgres".to_owned()),
        bin_name: bin_name.iter().filter_map(|(k, v)| Some((k.clone(), v.text()?))).collect(),
        create_replica_methods: replica_methods(&methods, &pick),
        basebackup: tool_options(&pick("basebackup")),
        callbacks: Callbacks {
            on_start: callbacks.get("on_start").command(),
            on_stop: callbacks.get("on_stop").command(),
            on_restart: callbacks.get("on_restart").command(),
            on_reload: callbacks.get("on_reload").command(),
            on_role_change: callbacks.get("on_role_change").command(),
        },
        pre_promote: pick("pre_promote").command(),
        before_stop: pick("before_stop").command(),
    }
}

/// The methods of a list of names; `basebackup` alone if there are none. (CFG-182, PG-121)
pub(super) fn replica_methods<'a>(
    names: &Reader<'_>,
    section_of: &dyn Fn(&str) -> Reader<'a>,
) -> Vec<ReplicaMethod> {
    let names = names.texts();
    if names.is_empty() {
        return vec![ReplicaMethod::Basebackup];
    }
    let method = |name: &String| match name.as_str() {
        "basebackup" => ReplicaMethod::Basebackup,
        other => replica_method(other, &section_of(other)),
    };
    names.iter().map(method).collect()
}

/// `use_slots`: the dynamic document's alone, on unless switched off. (CFG-181, CFG-033)
pub(super) fn use_slots(dynamic: &Reader<'_>) -> bool {
    dynamic.get("use_slots").boolean().unwrap_or(true)
}

/// The time unit of a duration key. Kept here because only slots and delays have one.
pub(super) fn seconds(reader: &Reader<'_>, default: u32) -> u32 {
    let value = reader.integer(BaseUnit::Seconds, 0);
    value.map_or(default, |value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// A mapping that stays as it is.
pub(super) fn raw_list(reader: &Reader<'_>) -> Vec<Value> {
    match reader.raw() {
        Some(Value::Array(list)) => list.clone(),
        Some(_) => {
            reader.warn("is no list; ignored");
            Vec::new()
        }
        None => Vec::new(),
    }
}
