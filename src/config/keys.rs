//! Which keys there are, and what to say about those there are not. (CFG-461, CFG-123)

use super::document::join;
use super::reader::Findings;
use serde_json::{Map, Value};

/// Keys of the local file, one dotted path each; `*` is any name, `**` anything at all below.
const LOCAL: &str = "
name scope namespace thread_pool_size thread_stack_size
log.type log.level log.traceback_level log.format log.dateformat log.static_fields.**
log.max_queue_size log.dir log.file_size log.file_num log.mode log.loggers.**
log.deduplicate_heartbeat_logs
restapi.listen restapi.connect_address restapi.authentication.username
restapi.authentication.password restapi.certfile restapi.keyfile restapi.keyfile_password
restapi.cafile restapi.ciphers restapi.verify_client restapi.allowlist
restapi.allowlist_include_members restapi.http_extra_headers.** restapi.https_extra_headers.**
restapi.request_queue_size restapi.thread_pool_size restapi.server_tokens
restapi.handshake_timeout restapi.request_timeout restapi.max_connections
restapi.strict_config restapi.unix_socket
ctl.authentication.username ctl.authentication.password ctl.insecure ctl.cacert ctl.certfile
ctl.keyfile ctl.keyfile_password
bootstrap.dcs.** bootstrap.method bootstrap.initdb.** bootstrap.post_bootstrap bootstrap.post_init
bootstrap.pg_hba bootstrap.users.**
citus.group citus.database
watchdog.mode watchdog.device watchdog.safety_margin watchdog.driver
guard.mode
tags.**
postgresql.listen postgresql.connect_address postgresql.proxy_address postgresql.data_dir
postgresql.config_dir postgresql.config_base_name postgresql.bin_dir postgresql.pgpass
postgresql.name
postgresql.authentication.superuser.USER postgresql.authentication.replication.USER
postgresql.authentication.rewind.USER
postgresql.superuser.USER postgresql.replication.USER postgresql.pg_rewind.USER
etcd3.host etcd3.hosts etcd3.port etcd3.url etcd3.proxy etcd3.srv etcd3.srv_suffix
etcd3.discovery_srv etcd3.srv_domain
etcd3.use_proxies etcd3.protocol etcd3.username etcd3.password etcd3.cacert etcd3.cert etcd3.key
raft.self_addr raft.bind_addr raft.partner_addrs raft.data_dir raft.password
raft.min_timeout raft.max_timeout raft.connection_timeout raft.append_entries_period
consul.host consul.hosts consul.port consul.url consul.scheme consul.token consul.dc
consul.consistency consul.checks consul.verify consul.cacert consul.cert consul.key
consul.register_service consul.service_tags consul.service_check_interval
consul.service_check_tls_server_name
redis.host redis.hosts redis.port redis.username redis.password redis.db redis.replicas
redis.use_ssl redis.cacert redis.cert redis.key redis.sentinel.**
redis.sentinels redis.sentinel_master redis.sentinel_username redis.sentinel_password
zookeeper.hosts zookeeper.use_ssl zookeeper.verify zookeeper.cacert zookeeper.cert zookeeper.key
zookeeper.key_password zookeeper.set_acls.** zookeeper.auth_data.** zookeeper.exhibitor.**
kubernetes.namespace kubernetes.labels.** kubernetes.scope_label kubernetes.role_label
kubernetes.leader_label_value kubernetes.follower_label_value kubernetes.standby_leader_label_value
kubernetes.tmp_role_label kubernetes.bootstrap_labels.** kubernetes.use_endpoints kubernetes.pod_ip
kubernetes.ports kubernetes.bypass_api_service kubernetes.retriable_http_codes kubernetes.cacert
kubernetes.context
etcd.** exhibitor.**
";

/// Keys of `postgresql` that the dynamic document may hold too. (section 8, src LD)
const POSTGRESQL: &str = "
postgresql.bin_name.** postgresql.database postgresql.use_unix_socket
postgresql.use_unix_socket_repl postgresql.krbsrvname postgresql.parameters.** postgresql.pg_hba
postgresql.pg_ident postgresql.custom_conf postgresql.recovery_conf.** postgresql.pg_ctl_timeout
postgresql.callback_timeout postgresql.reinitialize_without_wal
postgresql.use_pg_rewind postgresql.remove_data_directory_on_rewind_failure
postgresql.remove_data_directory_on_diverged_timelines postgresql.create_replica_methods
postgresql.create_replica_method postgresql.basebackup.** postgresql.callbacks.on_start
postgresql.callbacks.on_stop postgresql.callbacks.on_restart postgresql.callbacks.on_reload
postgresql.callbacks.on_role_change postgresql.pre_promote postgresql.before_stop
";

/// Keys of the dynamic document alone. (section 9)
const DYNAMIC: &str = "
ttl loop_wait retry_timeout maximum_lag_on_failover maximum_lag_on_syncnode max_timelines_history
primary_start_timeout master_start_timeout primary_stop_timeout master_stop_timeout
primary_race_backoff
primary_restart_limit primary_disk_timeout
synchronous_mode synchronous_mode_strict synchronous_node_count failsafe_mode check_timeline pause
member_slots_ttl slots.** permanent_slots.** permanent_replication_slots.** ignore_slots
standby_cluster.host standby_cluster.port standby_cluster.restore_command
standby_cluster.primary_slot_name standby_cluster.create_replica_methods
standby_cluster.archive_cleanup_command standby_cluster.recovery_min_apply_delay
postgresql.use_slots
";

const USER: &str = "username password sslmode sslcert sslkey sslpassword sslrootcert sslcrl \
                    sslcrldir gssencmode channel_binding sslnegotiation";

/// The keys of one document.
pub(super) struct Known {
    here: Vec<Vec<&'static str>>,
    elsewhere: Vec<Vec<&'static str>>,
    misplaced: &'static str,
}

fn paths(tables: &[&'static str]) -> Vec<Vec<&'static str>> {
    let words = tables.iter().flat_map(|table| table.split_whitespace());
    let mut paths = Vec::new();
    for word in words {
        let parts: Vec<&str> = word.split('.').collect();
        match parts.split_last() {
            Some((&"USER", parents)) => paths.extend(
                USER.split_whitespace().map(|key| parents.iter().copied().chain([key]).collect()),
            ),
            _ => paths.push(parts),
        }
    }
    paths
}

/// The keys of file and environment.
pub(super) fn local() -> Known {
    Known {
        here: paths(&[LOCAL, POSTGRESQL]),
        elsewhere: paths(&[DYNAMIC]),
        misplaced: "belongs to the dynamic configuration: put it under bootstrap.dcs for a new \
                    cluster, or PATCH /config for a running one; ignored here",
    }
}

/// The keys of `/config` and `bootstrap.dcs`.
pub(super) fn dynamic() -> Known {
    Known {
        here: paths(&[DYNAMIC, POSTGRESQL]),
        elsewhere: paths(&[LOCAL]),
        misplaced: "belongs into the local file of each node; ignored here",
    }
}

impl Known {
    /// One warning for each key that is not understood. `base` is where the document stands in its
    /// file.
    pub fn check(&self, findings: &Findings<'_>, base: &str, values: &Map<String, Value>) {
        self.level(findings, base, &[], values);
    }

    fn level(&self, findings: &Findings<'_>, base: &str, at: &[&str], map: &Map<String, Value>) {
        let here = next_words(&self.here, at);
        let elsewhere = next_words(&self.elsewhere, at);
        for (key, value) in map {
            let path = at.iter().fold(base.to_owned(), |path, part| join(&path, part));
            let path = join(&path, key);
            if here.contains(&key.as_str()) {
                let inner: Vec<&str> = at.iter().copied().chain([key.as_str()]).collect();
                let open = next_words(&self.here, &inner).contains(&"**");
                if let (Value::Object(map), false) = (value, open) {
                    self.level(findings, base, &inner, map);
                }
            } else if method_section(at, map, key) {
                // A section that a method names is the method's own.
            } else if elsewhere.contains(&key.as_str()) {
                findings.warn(&path, self.misplaced);
            } else {
                match nearest(key, &here).or_else(|| nearest(key, &elsewhere)) {
                    Some(word) => {
                        let text = format!("unknown key, ignored; did you mean {word}?");
                        findings.warn(&path, text);
                    }
                    None => findings.warn(&path, "unknown key, ignored"),
                }
            }
        }
    }
}

/// The words that may stand below `at`.
fn next_words(paths: &[Vec<&'static str>], at: &[&str]) -> Vec<&'static str> {
    let below = paths.iter().filter(|path| path.len() > at.len() && path.starts_with(at));
    let mut words: Vec<&str> = below.map(|path| path[at.len()]).collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// `bootstrap.<method>` and `postgresql.<method>`. (CFG-134, CFG-183)
fn method_section(at: &[&str], map: &Map<String, Value>, key: &str) -> bool {
    let named = |list: &str| match map.get(list) {
        Some(Value::Array(list)) => list.iter().any(|name| name == key),
        Some(Value::String(text)) => text.split(',').any(|name| name.trim() == key),
        _ => false,
    };
    let has_command = map.get(key).is_some_and(|value| value.get("command").is_some());
    match at {
        ["bootstrap"] => named("method") || has_command,
        ["postgresql"] => {
            named("create_replica_methods") || named("create_replica_method") || has_command
        }
        _ => false,
    }
}

/// The known word a typing error away.
fn nearest<'w>(key: &str, words: &[&'w str]) -> Option<&'w str> {
    let near = |word: &&&str| distance(key, word) <= 1 + key.chars().count() / 5;
    let best = words.iter().filter(|w| **w != "**").filter(near).min_by_key(|w| distance(key, w));
    best.copied()
}

/// Levenshtein's distance; exchanged neighbours count as one.
fn distance(one: &str, other: &str) -> usize {
    let a: Vec<char> = one.chars().take(64).collect();
    let b: Vec<char> = other.chars().take(64).collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::document::Origins;
    use super::*;
    use serde_json::json;

    fn warnings(known: &Known, values: &Value) -> Vec<String> {
        let origins = Origins::default();
        let findings = Findings::new(&origins);
        known.check(&findings, "", values.as_object().unwrap());
        let ((), warnings) = findings.finish(Some(())).unwrap();
        warnings.iter().map(ToString::to_string).collect()
    }

    /// Proves CFG-461, CFG-033 (the warning), CFG-134, CFG-183.
    #[test]
    fn unknown_and_misplaced_keys_are_named() {
        for (known, values, expected) in [
            (local(), json!({"scop": "x"}), Some(("scop", "did you mean scope?"))),
            (local(), json!({"restapi": {"lsiten": 1}}), Some(("restapi.lsiten", "listen?"))),
            (local(), json!({"ttl": 30}), Some(("ttl", "belongs to the dynamic"))),
            (
                local(),
                json!({"postgresql": {"use_slots": true}}),
                Some(("postgresql.use_slots", "belongs to the dynamic")),
            ),
            (local(), json!({"unknown_top": 1}), Some(("unknown_top", "unknown key, ignored"))),
            (local(), json!({"tags": {"mine": 1}}), None),
            (local(), json!({"postgresql": {"parameters": {"x": 1}}}), None),
            (local(), json!({"bootstrap": {"method": "mine", "mine": {"command": "x"}}}), None),
            (
                local(),
                json!({"postgresql": {"create_replica_methods": ["wal_e"], "wal_e": {"no_leader": 1}}}),
                None,
            ),
            (
                local(),
                json!({"postgresql": {"authentication": {"superuser": {"usrname": "x"}}}}),
                Some(("postgresql.authentication.superuser.usrname", "username?")),
            ),
            (dynamic(), json!({"ttl": 30, "postgresql": {"use_slots": true}}), None),
            (
                dynamic(),
                json!({"maximum_lag_on_failver": 1}),
                Some(("maximum_lag_on_failver", "maximum_lag_on_failover?")),
            ),
            (dynamic(), json!({"watchdog": {"mode": "off"}}), Some(("watchdog", "local file"))),
            (
                dynamic(),
                json!({"postgresql": {"data_dir": "/x"}}),
                Some(("postgresql.data_dir", "local file")),
            ),
        ] {
            let got = warnings(&known, &values);
            match expected {
                None => assert!(got.is_empty(), "{values}: {got:?}"),
                Some((path, text)) => {
                    assert_eq!(got.len(), 1, "{values}: {got:?}");
                    assert!(got[0].starts_with(&format!("{path}: ")), "{got:?}");
                    assert!(got[0].contains(text), "{got:?}");
                }
            }
        }
    }
}
