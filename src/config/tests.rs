//! Whole documents through [`load`] and [`effective`].

use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
}

fn load_text(text: &str) -> Result<(Local, Vec<Warning>), ConfigError> {
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load(Some(file.path()), &environment(&[("HOME", "/home/x")]))
}

/// A whole valid file, with `change` merged over it.
fn with(change: Value) -> Value {
    let mut whole = json!({
        "scope": "batman", "name": "a",
        "restapi": {"listen": "10.0.0.1:8008", "connect_address": "10.0.0.1:8008"},
        "raft": {"self_addr": "10.0.0.1:2222", "data_dir": "/tmp/r"},
        "bootstrap": {"dcs": {}},
        "postgresql": {
            "listen": "10.0.0.1:5432", "connect_address": "10.0.0.1:5432", "data_dir": "/d",
            "authentication": {
                "superuser": {"username": "postgres", "password": "geheim"},
                "replication": {"username": "rep", "password": "geheim"}
            }
        }
    });
    merge(whole.as_object_mut().unwrap(), change.as_object().unwrap().clone());
    whole
}

fn loaded(change: Value) -> (Local, Vec<String>) {
    let (local, warnings) = load_text(&with(change).to_string()).unwrap();
    (local, warnings.iter().map(ToString::to_string).collect())
}

fn settings(change: Value, dynamic: Value) -> (Settings, Vec<String>) {
    let (local, _) = loaded(change);
    let (settings, warnings) = effective(&local, dynamic.as_object().unwrap()).unwrap();
    (settings, warnings.iter().map(ToString::to_string).collect())
}

/// Proves CFG-080, CFG-081, CFG-082, CFG-097, CFG-098, CFG-160, CFG-163, CFG-164, CFG-169,
/// CFG-170, CFG-171 (the defaults).
#[test]
fn the_smallest_file_and_its_defaults() {
    let (local, warnings) = loaded(json!({}));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(local.name.as_str(), "a");
    assert_eq!(local.scope.prefix(), "/service/batman/");
    assert_eq!(local.api_url(), "http://10.0.0.1:8008/patroni");
    assert_eq!(local.postgresql.config_dir, Path::new("/d"));
    assert_eq!(local.postgresql.pgpass, Path::new("/home/x/pgpass"));
    assert_eq!(local.postgresql.authentication.rewind, local.postgresql.authentication.superuser);
    assert_eq!(local.restapi.request_queue_size, 5);
    assert_eq!(local.watchdog, Watchdog::default());
    assert_eq!(local.guard.mode, GuardMode::Required);
    assert_eq!(local.log, Log::default());
    assert_eq!(local.tags, Tags::default());
    assert!(!format!("{local:?}").contains("geheim"), "a secret in Debug");
    let (defaults, _) = effective(&local, &Map::new()).unwrap();
    assert_eq!(defaults.maximum_lag_on_failover, 1_048_576);
    assert_eq!((defaults.primary_start_timeout, defaults.primary_stop_timeout), (300, 0));
    assert_eq!((defaults.member_slots_ttl, defaults.max_timelines_history), (1800, 0));
    assert!(defaults.use_slots && !defaults.pause && !defaults.check_timeline);
    let pg = &defaults.postgresql;
    assert_eq!(
        (pg.pg_ctl_timeout, pg.database.as_str(), pg.use_pg_rewind),
        (60, "postgres", false)
    );
    assert_eq!(pg.create_replica_methods, [ReplicaMethod::Basebackup]);
}

/// Proves REST-348, DCS-021 and DCS-062: no group is ever loaded and nothing is ever sent; such a node does
/// not start, since its keys stand at another place, and the line says what to do instead of beginning a
/// second cluster. The section that Patroni drops is nothing to us either.
#[test]
fn citus_groups_are_refused_unless_dropped() {
    let (_, warnings) = loaded(json!({"citus": {"group": "x", "database": "x"}}));
    assert!(warnings.is_empty(), "{warnings:?}");
    for group in [0, 1, 12] {
        let groups = with(json!({"citus": {"group": group, "database": "x"}})).to_string();
        let line = load_text(&groups).unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("stay with Patroni for them, or remove the section"), "{line}");
    }
}

/// Proves CFG-469: every missing or ill-typed key is one line with file, line and path.
#[test]
fn bad_values_are_named_with_path() {
    for (change, path, text) in [
        (json!({"scope": null}), "scope", "is not defined"),
        (json!({"name": ""}), "name", "is empty"),
        (json!({"name": "a/b"}), "name", "slash"),
        (json!({"restapi": null}), "restapi", "is not defined"),
        (json!({"restapi": {"listen": null}}), "restapi.listen", "is not defined"),
        (json!({"restapi": {"listen": "8008"}}), "restapi.listen", "host:port"),
        (json!({"restapi": {"listen": ["x"]}}), "restapi.listen", "text is expected"),
        (
            json!({"restapi": {"authentication": {"username": "u"}}}),
            "restapi.authentication.password",
            "is not defined",
        ),
        (json!({"citus": {"group": 1, "database": "x"}}), "citus", "not coordinated"),
        (json!({"postgresql": null}), "postgresql", "is not defined"),
        (json!({"postgresql": "x"}), "postgresql", "mapping"),
        (json!({"postgresql": {"data_dir": null}}), "postgresql.data_dir", "is not defined"),
        (
            json!({"postgresql": {"authentication": null}}),
            "postgresql.authentication.superuser",
            "is not defined",
        ),
        (
            json!({"postgresql": {"authentication": {"replication": null}}}),
            "postgresql.authentication.replication",
            "is not defined",
        ),
        (json!({"postgresql": {"parameters": [1]}}), "postgresql.parameters", "mapping"),
        (json!({"postgresql": {"parameters": {"a": [1]}}}), "postgresql.parameters.a", "single"),
        (json!({"postgresql": {"pg_hba": {"a": 1}}}), "postgresql.pg_hba", "list"),
        (
            json!({"postgresql": {"callbacks": {"on_stop": "a 'b"}}}),
            "postgresql.callbacks.on_stop",
            "quotes",
        ),
        (json!({"bootstrap": {"dcs": [1]}}), "bootstrap.dcs", "mapping"),
        (json!({"bootstrap": {"dcs": {"ttl": "x"}}}), "bootstrap.dcs.ttl", "whole number"),
        (json!({"bootstrap": {"method": "wal_e"}}), "bootstrap.wal_e", "not defined"),
        (json!({"bootstrap": {"initdb": ["pgdata"]}}), "bootstrap.initdb", "pgdata"),
        (
            json!({"bootstrap": {"initdb": [{"locale": false}]}}),
            "bootstrap.initdb.0.locale",
            "quotes",
        ),
        (json!({"raft": {"self_addr": null}}), "raft.self_addr", "is not defined"),
        (json!({"raft": {"partner_addrs": ["x"]}}), "raft.partner_addrs", "host:port"),
        (json!({"log": 5}), "log", "mapping"),
    ] {
        let file = with(change.clone()).to_string();
        let error = load_text(&file).expect_err(&file);
        let found = error.problems.iter().find(|p| p.path == path && p.text.contains(text));
        assert!(found.is_some(), "{change}: {error}");
        assert!(!error.to_string().contains("geheim"), "a secret: {error}");
    }
}

/// Proves CFG-460 (the origin of a value), CFG-005, CFG-120: what is said of a broken file.
#[test]
fn errors_name_file_and_line() {
    for (text, line, words) in [
        ("a: [1,\n", 2, "bad YAML"),
        ("a: 1\nb:\tc\n", 2, "tab"),
        ("- a\n", 1, "a mapping is expected"),
        ("\n\nscope:\n  x: 1\n", 3, "scope: is a mapping"),
    ] {
        let message = load_text(text).unwrap_err().to_string();
        assert!(message.contains(&format!(".yml:{line}: ")), "{text:?}: {message}");
        assert!(message.contains(words), "{text:?}: {message}");
    }
    assert!(load_text("").unwrap_err().to_string().contains("mapping is expected"));
    assert!(load_text("{}").unwrap_err().to_string().contains("is empty"));
    let nowhere = load(Some(Path::new("/nonexistent.yml")), &Environment::new()).unwrap_err();
    assert!(nowhere.to_string().starts_with("/nonexistent.yml: no such file"), "{nowhere}");
    assert!(load(None, &Environment::new()).unwrap_err().to_string().contains("is empty"));
}

/// Proves CFG-001, CFG-002, CFG-003, CFG-030.
#[test]
fn sources_and_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    };
    write("b.yml", json!({"name": "second", "log": {"level": "DEBUG"}}));
    write("a.yaml", with(json!({"name": "first"})));
    write("c.txt", json!({"name": "third"}));
    let (local, _) = load(Some(dir.path()), &Environment::new()).unwrap();
    assert_eq!((local.name.as_str(), local.log.level), ("second", tracing::Level::DEBUG));

    let variables = environment(&[("PATRONI_NAME", "env"), ("PATRONI_LOG_LEVEL", "ERROR")]);
    let (local, _) = load(Some(dir.path()), &variables).unwrap();
    assert_eq!((local.name.as_str(), local.log.level), ("env", tracing::Level::ERROR));

    // The whole document in a variable shuts out every other variable.
    let text = with(json!({"name": "whole"})).to_string();
    let variables = environment(&[("PATRONI_NAME", "env"), ("PATRONI_CONFIGURATION", &text)]);
    assert_eq!(load(None, &variables).unwrap().0.name.as_str(), "whole");
    assert_eq!(load(Some(Path::new("/nonexistent")), &variables).unwrap().0.name.as_str(), "whole");

    write("d.yml", json!([1]));
    assert!(load(Some(dir.path()), &Environment::new()).is_err());
}

/// Proves CFG-001, CFG-050, CFG-055, CFG-056: a node from the environment alone.
#[test]
fn the_environment_alone_is_enough() {
    let variables = environment(&[
        ("PATRONI_NAME", "a"),
        ("PATRONI_SCOPE", "s"),
        ("PATRONI_RESTAPI_LISTEN", "0.0.0.0:8008"),
        ("PATRONI_RESTAPI_CONNECT_ADDRESS", "h:8008"),
        ("PATRONI_POSTGRESQL_LISTEN", "0.0.0.0:5432"),
        ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", "h:5432"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/d"),
        ("PATRONI_SUPERUSER_USERNAME", "u"),
        ("PATRONI_REPLICATION_USERNAME", "r"),
        ("PATRONI_RAFT_SELF_ADDR", "h:1"),
        ("PATRONI_RAFT_DATA_DIR", "/r"),
    ]);
    let (local, warnings) = load(None, &variables).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(local.postgresql.authentication.replication.username.as_deref(), Some("r"));
    assert!(local.bootstrap.is_none());
}

/// Proves DCS-037, DCS-100, DCS-101, DCS-102, DCS-103, DCS-104, DCS-105 and DCS-106 (etcd's v2 API is
/// not spoken: whoever names it is told so and what to do, in one line; beside a section that is
/// spoken it is ignored with a warning, never asked), and DCS-143 (the same of Exhibitor).
#[test]
fn stores_that_are_not_spoken_are_refused_in_one_line() {
    for (section, path, advice) in [
        (json!({"etcd": {"host": "h"}}), "etcd: ", "use section etcd3, on all members"),
        (json!({"etcd": {"hosts": "h:2379", "srv": "x"}}), "etcd: ", "start"),
        (json!({"exhibitor": {"hosts": "h"}}), "exhibitor: ", "zookeeper, hosts: [host:2181]"),
    ] {
        let file = with(merge_values(json!({"raft": null}), section.clone())).to_string();
        let line = load_text(&file).unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(path) && line.contains(advice), "{line}");
        let (local, warnings) = loaded(section);
        assert!(matches!(local.dcs, DcsSection::Raft(_)));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("ignored, because section raft is used"), "{warnings:?}");
    }
}

/// Proves DCS-142 and DCS-143: the legacy place of Exhibitor's section and SASL are refused, each with
/// what to write instead.
#[cfg(feature = "zookeeper")]
#[test]
fn zookeeper_without_sasl_and_exhibitor() {
    for (section, path, advice) in [
        (json!({"exhibitor": {"hosts": "h", "port": 1}}), "zookeeper.exhibitor: ", "hosts: ["),
        (
            json!({"hosts": "h", "auth_data": {"sasl": "u:p"}}),
            "zookeeper.auth_data.sasl: ",
            "auth_data: {digest:",
        ),
    ] {
        let file = with(json!({"raft": null, "zookeeper": section})).to_string();
        let line = load_text(&file).unwrap_err().to_string();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains(path) && line.contains(advice), "{line}");
        assert!(!line.contains("u:p"), "{line}");
    }
}

/// Proves CFG-006, CFG-409.
#[test]
fn the_store_is_chosen_by_its_section() {
    let without = |section: Value| with(merge_values(json!({"raft": null}), section));
    for (section, text) in [
        (json!({}), "no section for a store"),
        (json!({"etcd": {"host": "h"}}), "etcd: etcd's v2 API is not spoken; use section etcd3"),
        (json!({"exhibitor": {"hosts": "h"}}), "exhibitor: Exhibitor is not asked for servers"),
    ] {
        let message = load_text(&without(section).to_string()).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
    if !cfg!(feature = "etcd") {
        let file = without(json!({"etcd3": {"host": "h"}})).to_string();
        let message = load_text(&file).unwrap_err().to_string();
        assert!(message.contains("build with: cargo build --features etcd"), "{message}");
    }
    if !cfg!(feature = "zookeeper") {
        let file = without(json!({"zookeeper": {"hosts": "h"}})).to_string();
        let message = load_text(&file).unwrap_err().to_string();
        assert!(message.contains("build with: cargo build --features zookeeper"), "{message}");
    }
    if !cfg!(feature = "consul") {
        let file = without(json!({"consul": {"host": "h"}})).to_string();
        let message = load_text(&file).unwrap_err().to_string();
        assert!(message.contains("build with: cargo build --features consul"), "{message}");
    }
    if !cfg!(feature = "kubernetes") {
        let file = without(json!({"kubernetes": {"labels": {"a": "b"}}})).to_string();
        let message = load_text(&file).unwrap_err().to_string();
        assert!(message.contains("build with: cargo build --features kubernetes"), "{message}");
    }
    let (local, warnings) = loaded(json!({"zookeeper": {"hosts": "h"}}));
    assert_eq!(local.dcs.name(), "raft");
    assert!(warnings[0].contains("zookeeper: ignored"), "{warnings:?}");
}

/// Proves CFG-320, CFG-321, CFG-322, CFG-323, CFG-424 and the environment of CFG-062.
#[cfg(feature = "zookeeper")]
#[test]
fn zookeeper_servers() {
    for (hosts, found) in [
        (json!("h"), "h:2181"),
        (json!(["a", "b:1", "[::1]:2"]), "a:2181 b:1 [::1]:2"),
        (json!("a:1, b"), "a:1 b:2181"),
    ] {
        let (local, warnings) = loaded(json!({"raft": null, "zookeeper": {"hosts": hosts}}));
        assert!(warnings.is_empty(), "{warnings:?}");
        let DcsSection::ZooKeeper(zookeeper) = local.dcs else { panic!("not zookeeper") };
        let hosts: Vec<String> = zookeeper.hosts.iter().map(ToString::to_string).collect();
        assert_eq!((hosts.join(" ").as_str(), zookeeper.tls), (found, None));
    }
    let section = json!({"hosts": "h", "use_ssl": true, "cacert": "/ca", "cert": "/c", "key": "/k",
        "key_password": "x", "auth_data": {"digest": "bob:secret"}, "set_acls": {"CN=a": ["create", "ALL"], "world:anyone": "READ"}});
    let (local, warnings) = loaded(json!({"raft": null, "zookeeper": section}));
    assert!(warnings.is_empty(), "{warnings:?}");
    let DcsSection::ZooKeeper(zookeeper) = local.dcs else { panic!("not zookeeper") };
    let tls = zookeeper.tls.expect("asked for");
    assert_eq!((tls.verify, tls.key), (true, Some("/k".into())));
    assert_eq!(tls.key_password.expect("given").expose(), "x");
    assert_eq!(zookeeper.auth_data[0].0, "digest");
    assert_eq!(zookeeper.auth_data[0].1.expose(), "bob:secret");
    let rights = vec![ZooKeeperRight::Create, ZooKeeperRight::All];
    assert_eq!(zookeeper.set_acls[0], ("CN=a".to_owned(), rights));
    assert_eq!(zookeeper.set_acls[1].1, [ZooKeeperRight::Read]);
    for (section, text) in [
        (json!({"use_ssl": true}), "zookeeper.hosts: is not defined"),
        (json!({"hosts": "h:port"}), "zookeeper.hosts"),
        (json!({"hosts": "h", "set_acls": {"CN=a": ["FLY"]}}), "\"FLY\" is no right"),
    ] {
        let wrong = with(json!({"raft": null, "zookeeper": section})).to_string();
        let message = load_text(&wrong).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
}

/// Proves CFG-330 … CFG-338, CFG-061 (both names of a variable), and the top-level namespace of CFG-331.
#[cfg(feature = "kubernetes")]
#[test]
fn kubernetes_objects() {
    let section = json!({"labels": {"application": "patroni", "tier": 1}});
    let (local, warnings) =
        loaded(json!({"raft": null, "namespace": "/service/", "kubernetes": section}));
    assert!(warnings.is_empty(), "{warnings:?}");
    let DcsSection::Kubernetes(found) = local.dcs else { panic!("not kubernetes") };
    assert_eq!((found.namespace.as_str(), found.labels["tier"].as_str()), ("default", "1"));
    assert_eq!((found.scope_label.as_str(), found.role_label.as_str()), ("cluster-name", "role"));
    let values =
        [found.leader_label_value, found.follower_label_value, found.standby_leader_label_value];
    assert_eq!(values, ["primary", "replica", "primary"]);
    assert_eq!((found.use_endpoints, found.bypass_api_service), (false, false));
    assert_eq!((found.ports.len(), found.ports[0].port, &found.pod_ip), (1, 5432, &None));
    let section = json!({"labels": {"a": "b"}, "namespace": "db", "use_endpoints": "on",
        "pod_ip": "10.0.0.1", "ports": [{"name": "postgresql", "port": 22432, "protocol": "TCP"}],
        "retriable_http_codes": "401, 403", "bootstrap_labels": {"phase": "new"},
        "tmp_role_label": "tmp", "leader_label_value": "master", "context": "c", "cacert": "/ca",
        "bypass_api_service": true});
    let (local, warnings) =
        loaded(json!({"raft": null, "namespace": "other", "kubernetes": section}));
    assert!(warnings.len() == 1 && warnings[0].contains("overrides"), "{warnings:?}");
    let DcsSection::Kubernetes(found) = local.dcs else { panic!("not kubernetes") };
    assert_eq!((found.namespace.as_str(), found.use_endpoints), ("other", true));
    assert_eq!(found.retriable_http_codes, [401, 403]);
    assert_eq!(found.ports[0].name.as_deref(), Some("postgresql"));
    for (section, text) in [
        (json!({"namespace": "x"}), "kubernetes.labels: is not defined"),
        (json!({"labels": {"a": "b"}, "namespace": "a/b"}), "no namespace of Kubernetes"),
        (json!({"labels": {"a": "b"}, "pod_ip": "127.0.0.1"}), "Endpoints refuse"),
        (json!({"labels": {"a": "b"}, "pod_ip": "here"}), "an IP address is expected"),
        (json!({"labels": {"a": "b"}, "ports": [{"port": 1}, {"port": 2}]}), "needs a name"),
    ] {
        let wrong = with(json!({"raft": null, "kubernetes": section})).to_string();
        let message = load_text(&wrong).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
    let variables = environment(&[
        ("PATRONI_KUBERNETES_LABELS", "a: b"),
        ("PATRONI_KUBERNETES_USE_ENDPOINTS", "true"),
        ("PATRONI_KUBERNETES_PORTS", r#"{"name": "pg", "port": 5433}"#),
        ("PATRONI_KUBERNETES_POD_IP", "10.0.0.7"),
        ("PATRONI_RETRIABLE_HTTP_CODES", "403"),
        ("HOME", "/home/x"),
    ]);
    let mut file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    file.write_all(with(json!({"raft": null})).to_string().as_bytes()).unwrap();
    let (local, warnings) = load(Some(file.path()), &variables).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let DcsSection::Kubernetes(found) = local.dcs else { panic!("not kubernetes") };
    assert_eq!((found.labels["a"].as_str(), found.use_endpoints), ("b", true));
    assert_eq!((found.ports[0].port, found.pod_ip.as_deref()), (5433, Some("10.0.0.7")));
    assert_eq!(found.retriable_http_codes, [403]);
}

/// Proves CFG-410, and that what Redis does not promise is said.
#[cfg(feature = "redis")]
#[test]
fn redis_servers() {
    let redis = |section: Value| {
        let (local, warnings) = loaded(json!({"raft": null, "redis": section}));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("Redis may lose what it acknowledged"), "{warnings:?}");
        let DcsSection::Redis(redis) = local.dcs else { panic!("not redis") };
        redis
    };
    let (local, warnings) = load_text(include_str!("../../config-examples/redis.yml")).unwrap();
    assert_eq!((local.dcs.name(), warnings.len()), ("redis", 1), "{warnings:?}");
    let one = redis(json!({"host": "h", "port": 7, "password": "p", "db": 2}));
    assert_eq!((one.hosts[0].to_string().as_str(), one.replicas, one.db), ("h:7", 0, 2));
    assert_eq!(redis(json!({"hosts": "a, b:1, c"})).replicas, 1, "a majority with the first");
    let all = redis(json!({"hosts": ["a", "b"], "replicas": 1, "use_ssl": true, "cacert": "/ca"}));
    assert_eq!(all.tls.and_then(|tls| tls.cacert), Some("/ca".into()));
    let asked = redis(json!({"sentinels": "s1, s2:5", "sentinel_password": "q", "password": "p"}));
    assert_eq!((asked.hosts.len(), asked.replicas), (0, 1));
    let sentinels = asked.sentinels.expect("they are there");
    let hosts: Vec<String> = sentinels.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(
        (hosts.join(" ").as_str(), sentinels.master.as_str()),
        ("s1:26379 s2:5", "mymaster")
    );
    assert_eq!(sentinels.password.expect("given").expose(), "q");
    for (section, text) in [
        (json!({"db": 1}), "redis.hosts: is not defined"),
        (json!({"hosts": ["a", "b", "c"], "replicas": 0}), "with 3 servers at least 1"),
        (json!({"hosts": "a", "sentinel": {"service": "m"}}), "write sentinels: [host:26379]"),
        (json!({"sentinels": "a", "replicas": 0}), "servers that Sentinel replaces at least 1"),
        (json!({"sentinels": ["a:b:c"], "hosts": "h"}), "is no host:port"),
    ] {
        let wrong = with(json!({"raft": null, "redis": section})).to_string();
        let message = load_text(&wrong).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
}

/// Proves CFG-310, CFG-311, CFG-312, CFG-313, CFG-314 and CFG-315.
#[cfg(feature = "consul")]
#[test]
fn consul_agents() {
    for (section, hosts, https) in [
        (json!({"host": "h"}), "h:8500", false),
        (json!({"host": "h:99", "port": 7}), "h:99", false),
        (json!({"host": "h", "port": 7, "scheme": "https"}), "h:7", true),
        (json!({"url": "https://h:8501"}), "h:8501", true),
        (json!({"hosts": ["a", "b:1"]}), "a:8500 b:1", false),
        (json!({"token": "t"}), "127.0.0.1:8500", false),
    ] {
        let (local, warnings) = loaded(json!({"raft": null, "consul": section}));
        assert!(warnings.is_empty(), "{warnings:?}");
        let DcsSection::Consul(consul) = local.dcs else { panic!("not consul") };
        let found: Vec<String> = consul.hosts.iter().map(ToString::to_string).collect();
        assert_eq!((found.join(" ").as_str(), consul.https), (hosts, https));
        assert!(consul.verify);
    }
    let section = json!({"verify": false, "dc": "d2", "consistency": "stale", "checks": ["serfHealth"],
        "cacert": "/ca", "cert": "/c", "key": "/k"});
    let (local, _) = loaded(json!({"raft": null, "consul": section}));
    let DcsSection::Consul(consul) = local.dcs else { panic!("not consul") };
    assert_eq!(consul.consistency, ConsulConsistency::Stale);
    assert_eq!((consul.verify, consul.dc.as_deref()), (false, Some("d2")));
    assert_eq!(consul.checks, ["serfHealth"]);
    let wrong = with(json!({"raft": null, "consul": {"host": "h:port"}})).to_string();
    assert!(load_text(&wrong).unwrap_err().to_string().contains("consul.host"));
    for odd in [json!({"consistency": "sure"}), json!({"scheme": "ftp"})] {
        let (_, warnings) = loaded(json!({"raft": null, "consul": odd}));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
    let section = json!({"register_service": true, "service_tags": ["z", "a"],
        "service_check_tls_server_name": "pg.example"});
    let (local, warnings) = loaded(json!({"raft": null, "consul": section}));
    assert!(warnings.is_empty(), "{warnings:?}");
    let DcsSection::Consul(consul) = local.dcs else { panic!("not consul") };
    let service = consul.service.expect("asked for");
    assert_eq!((service.tags.join(" ").as_str(), service.check_interval.as_str()), ("a z", "5s"));
    assert_eq!(service.check_tls_server_name.as_deref(), Some("pg.example"));
}

fn merge_values(mut base: Value, over: Value) -> Value {
    for (key, value) in over.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

/// Proves CFG-300, CFG-301, CFG-302, CFG-304, CFG-305.
#[cfg(feature = "etcd")]
#[test]
fn etcd_servers() {
    for (section, hosts, https, proxies) in [
        (json!({"host": "h"}), "h:2379", false, false),
        (json!({"hosts": "a:1,b"}), "a:1 b:2379", false, false),
        (json!({"hosts": ["a:1", "b"], "port": 7}), "a:1 b:7", false, false),
        (json!({"host": "h", "protocol": "https"}), "h:2379", true, false),
        (json!({"url": "https://u:p%40@h:99/"}), "h:99", true, false),
        (json!({"proxy": "http://h"}), "h:2379", false, true),
        (json!({"hosts": ["http://a:1"], "use_proxies": "on"}), "a:1", false, true),
    ] {
        let (local, warnings) = loaded(json!({"raft": null, "etcd3": section}));
        assert!(warnings.is_empty(), "{warnings:?}");
        let DcsSection::Etcd3(etcd) = local.dcs else { panic!("not etcd3") };
        let found: Vec<String> = etcd.hosts.iter().map(ToString::to_string).collect();
        assert_eq!((found.join(" ").as_str(), etcd.https), (hosts, https));
        assert_eq!(etcd.use_proxies, proxies);
        if hosts == "h:99" {
            assert_eq!(etcd.username.as_deref(), Some("u"));
            assert_eq!(etcd.password.unwrap().expose(), "p@");
        }
    }
    for section in [json!({}), json!({"srv_suffix": "x"}), json!({"host": "a:b:c"})] {
        assert!(load_text(&with(json!({"raft": null, "etcd3": section})).to_string()).is_err());
    }
}

/// Proves CFG-042 (the older names of the domain) and CFG-303: a domain beside or instead of servers, a
/// proxy before both; what is no domain is one line.
#[cfg(feature = "etcd")]
#[test]
fn etcd_by_dns() {
    let read = |section: Value| {
        let (local, warnings) = loaded(json!({"raft": null, "etcd3": section}));
        let DcsSection::Etcd3(etcd) = local.dcs else { panic!("not etcd3") };
        let srv = etcd.srv.map(|srv| (srv.domain, srv.suffix.unwrap_or_default()));
        let hosts: Vec<String> = etcd.hosts.iter().map(ToString::to_string).collect();
        let (domain, suffix) = srv.unwrap_or_default();
        (domain, suffix, hosts.join(" "), warnings.len())
    };
    for (section, domain, suffix, hosts) in [
        (json!({"srv": "example.org"}), "example.org", "", ""),
        (json!({"srv": "example.org.", "srv_suffix": "east_1"}), "example.org.", "east_1", ""),
        (json!({"discovery_srv": "a.b"}), "a.b", "", ""),
        (json!({"srv_domain": "a.b", "hosts": "h"}), "a.b", "", "h:2379"),
        (json!({"srv": "x", "discovery_srv": "y", "srv_domain": "z"}), "z", "", ""),
        (json!({"srv": "x", "discovery_srv": "y"}), "y", "", ""),
        (json!({"srv": "x", "url": "http://h:1"}), "x", "", "h:1"),
        (json!({"srv": "x", "proxy": "http://h:1"}), "", "", "h:1"),
        (json!({"srv": "", "host": "h"}), "", "", "h:2379"),
    ] {
        let expected = (domain.to_owned(), suffix.to_owned(), hosts.to_owned(), 0);
        assert_eq!(read(section.clone()), expected, "{section}");
    }
    assert_eq!(read(json!({"srv_suffix": "x", "host": "h"})).3, 1, "a suffix of nothing");
    let variables = environment(&[
        ("HOME", "/home/x"),
        ("PATRONI_ETCD3_SRV", "e.org"),
        ("PATRONI_ETCD3_SRV_SUFFIX", "west"),
    ]);
    let file = with(json!({"raft": null})).to_string();
    let mut with_file = tempfile::Builder::new().suffix(".yml").tempfile().unwrap();
    with_file.write_all(file.as_bytes()).unwrap();
    let (local, _) = load(Some(with_file.path()), &variables).unwrap();
    let DcsSection::Etcd3(etcd) = local.dcs else { panic!("not etcd3") };
    let srv = EtcdSrv { domain: "e.org".into(), suffix: Some("west".into()) };
    assert_eq!(etcd.srv, Some(srv));
    for (section, words) in [
        (json!({"srv": "https://example.org"}), r#"etcd3.srv: "https://example.org" is no domain"#),
        (json!({"srv": "h:2379"}), r#"etcd3.srv: "h:2379" is no domain"#),
        (json!({"discovery_srv": "a..b"}), r#"etcd3.discovery_srv: "a..b" is no domain"#),
        (json!({"srv": "a b", "hosts": "h"}), r#"etcd3.srv: "a b" is no domain"#),
        (json!({"srv": "x".repeat(64)}), "is no domain"),
        (json!({"srv": "x", "srv_suffix": "a b", "hosts": "h"}), "etcd3.srv_suffix: "),
        (json!({"srv": ["a"]}), "etcd3.srv: "),
        (json!({"srv": "x", "srv_suffix": "a.b"}), r#"etcd3.srv_suffix: "a.b" is no part"#),
    ] {
        let file = with(json!({"raft": null, "etcd3": section})).to_string();
        let line = load_text(&file).unwrap_err().to_string();
        assert!(line.contains(words) && line.lines().count() == 1, "{section}: {line}");
    }
}

/// Proves CFG-340, CFG-341.
#[test]
fn raft_section() {
    let (local, warnings) = loaded(json!({"raft": {
        "bind_addr": "0.0.0.0:2222", "password": "x",
        "partner_addrs": ["10.0.0.1:2222", "10.0.0.2:2222", "10.0.0.3:2222"]
    }}));
    let DcsSection::Raft(raft) = local.dcs else { panic!("not raft") };
    assert_eq!(raft.partner_addrs.len(), 2, "this node is not its own partner");
    assert_eq!(raft.bind_addr.to_string(), "0.0.0.0:2222");
    assert!(warnings.is_empty(), "{warnings:?}");
    let (_, warnings) = loaded(json!({"raft": {"partner_addrs": ["b:1"]}}));
    assert!(warnings[0].contains("witness"), "{warnings:?}");
}

/// Proves CFG-150, CFG-151, CFG-152, CFG-076, CFG-157, CFG-470.
#[test]
fn tags() {
    for (tags, nofailover, priority, published, warns) in [
        (json!({}), false, 1, json!({}), false),
        (json!({"nofailover": true}), true, 0, json!({"nofailover": true}), false),
        (json!({"nofailover": "false"}), false, 1, json!({}), false),
        (json!({"failover_priority": 0}), true, 0, json!({}), false),
        (json!({"failover_priority": 5}), false, 5, json!({"failover_priority": 5}), false),
        (
            json!({"nofailover": false, "failover_priority": 0}),
            false,
            1,
            json!({"nofailover": false}),
            true,
        ),
        (
            json!({"nofailover": true, "failover_priority": 2}),
            true,
            0,
            json!({"nofailover": true, "failover_priority": 2}),
            true,
        ),
        (json!({"mine": false, "clonefrom": false}), false, 1, json!({"mine": false}), false),
    ] {
        let (local, warnings) = loaded(json!({"tags": tags}));
        let got = &local.tags;
        assert_eq!((got.nofailover, got.failover_priority), (nofailover, priority), "{tags}");
        assert_eq!(Value::Object(got.published.clone()), published, "{tags}");
        assert_eq!(!warnings.is_empty(), warns, "{tags}: {warnings:?}");
    }
}

/// Proves CFG-085, CFG-086, CFG-092, CFG-093, CFG-095, CFG-102, CFG-106, CFG-108, CFG-145,
/// CFG-147.
#[test]
fn services() {
    let (local, warnings) = loaded(json!({
        "log": {"type": "json", "level": "warning", "dir": "/l", "file_size": 5, "file_num": 2,
                "mode": 420, "loggers": {"urllib3": "ERROR"}},
        "restapi": {"verify_client": "Required", "server_tokens": "ProductOnly",
                    "request_queue_size": 10, "handshake_timeout": 0, "request_timeout": 9,
                    "allowlist": ["10.0.0.0/8"]},
        "watchdog": {"mode": false, "safety_margin": -1},
        "guard": {"mode": "off"}
    }));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((local.log.kind, local.log.level), (LogType::Json, tracing::Level::WARN));
    assert_eq!((local.log.file_size, local.log.file_num, local.log.mode), (5, 2, Some(0o644)));
    assert_eq!(local.log.loggers.len(), 1);
    assert_eq!(local.restapi.verify_client, VerifyClient::Required);
    assert_eq!(local.restapi.server_tokens, ServerTokens::ProductOnly);
    assert_eq!(local.restapi.request_queue_size, 10);
    assert_eq!((local.restapi.handshake_timeout, local.restapi.request_timeout), (1, 9));
    assert_eq!((local.watchdog.mode, local.watchdog.safety_margin), (WatchdogMode::Off, -1));
    assert_eq!(local.guard.mode, GuardMode::Off);
    let (local, warnings) = loaded(json!({"watchdog": {"mode": "nonsense"}}));
    assert_eq!(local.watchdog.mode, WatchdogMode::Off);
    assert_eq!(warnings.len(), 1);
}

/// Proves CFG-132, CFG-133, CFG-134, CFG-135, CFG-136.
#[test]
fn bootstrap() {
    let (local, warnings) = loaded(json!({"bootstrap": {
        "initdb": [{"encoding": "UTF8"}, "data-checksums", {"locale": "'C.UTF-8'"}],
        "method": "mine", "post_init": "/p x", "pg_hba": ["local all all trust"],
        "mine": {"command": "/m", "fast": true, "n": 5, "no_params": "on",
                 "recovery_conf": {"restore_command": "cp"}}
    }}));
    assert!(warnings.is_empty(), "{warnings:?}");
    let bootstrap = local.bootstrap.unwrap();
    assert_eq!(
        bootstrap.initdb,
        [
            InitdbOption::Pair("encoding".into(), "UTF8".into()),
            InitdbOption::Flag("data-checksums".into()),
            InitdbOption::Pair("locale".into(), "C.UTF-8".into()),
        ]
    );
    assert_eq!(bootstrap.post_bootstrap.as_deref(), Some("/p x"));
    let BootstrapMethod::Custom(custom) = bootstrap.method else { panic!("not custom") };
    assert!(custom.no_params && !custom.keep_existing_recovery_conf);
    assert_eq!(custom.options, [("fast".into(), "True".into()), ("n".into(), "5".into())]);
    assert_eq!(custom.recovery_conf.unwrap()["restore_command"], "cp");
}

/// Proves CFG-031, CFG-033, CFG-034, CFG-036, CFG-174, PG-179, PG-180, PG-183, PG-184, PG-185,
/// PG-186, PG-187, PG-188, PG-189.
#[test]
fn parameters_are_merged_and_checked() {
    let (got, warnings) = settings(
        json!({"postgresql": {"parameters": {
            "max_connections": 5000, "Shared_Buffers": "1GB", "port": 1, "restore_command": "cp"
        }}}),
        json!({"postgresql": {"parameters": {
            "Max_Connections": 200, "shared_buffers": "2GB", "fsync": false, "max_wal_senders": 1,
            "wal_level": "HOT_STANDBY", "wal_keep_segments": 10, "hot_standby": "off",
            "listen_addresses": "x", "wal_log_hints": "no"
        }}}),
    );
    let parameters = &got.postgresql.parameters;
    let get = |name: &str| parameters.get(name).map(String::as_str);
    assert_eq!(get("max_connections"), Some("200"));
    assert_eq!(get("shared_buffers"), Some("1GB"));
    assert_eq!(get("fsync"), Some("False"));
    assert_eq!(get("max_wal_senders"), Some("10"));
    assert_eq!(get("wal_level"), Some("replica"));
    assert_eq!(get("wal_keep_size"), Some("160MB"));
    assert_eq!(get("hot_standby"), Some("on"));
    assert_eq!(get("wal_log_hints"), Some("off"));
    assert_eq!(get("max_locks_per_transaction"), Some("64"));
    assert_eq!(get("track_commit_timestamp"), Some("off"));
    for name in ["port", "listen_addresses", "cluster_name", "restore_command", "wal_keep_segments"]
    {
        assert_eq!(get(name), None, "{name}");
    }
    assert_eq!(got.postgresql.recovery_conf["restore_command"], "cp");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("dynamic configuration: postgresql.parameters."));
    let (local, _) = loaded(json!({}));
    let bad = json!({"postgresql": {"parameters": [1]}});
    assert!(effective(&local, bad.as_object().unwrap()).is_err());
}

/// Proves CFG-034: lists and sections of the node replace the cluster's whole.
#[test]
fn local_values_win_whole() {
    let (got, _) = settings(
        json!({"postgresql": {"pg_hba": ["local"], "callbacks": {"on_stop": "l"},
               "use_slots": false, "use_pg_rewind": true}}),
        json!({"ttl": 30, "postgresql": {"pg_hba": ["a", "b"], "pg_ident": ["i"],
               "callbacks": {"on_start": "d"}, "use_pg_rewind": false, "data_dir": "/evil",
               "create_replica_methods": ["wal_e", "basebackup"],
               "wal_e": {"command": "restore", "no_leader": 1, "threads": 4}}}),
    );
    let pg = &got.postgresql;
    assert_eq!(
        (pg.pg_hba.as_slice(), pg.pg_ident.as_slice()),
        (&["local".into()][..], &["i".into()][..])
    );
    assert_eq!(
        (pg.callbacks.on_start.as_deref(), pg.callbacks.on_stop.as_deref()),
        (None, Some("l"))
    );
    assert!(pg.use_pg_rewind && got.use_slots);
    let ReplicaMethod::Custom { command, no_leader, options, .. } = &pg.create_replica_methods[0]
    else {
        panic!("not custom")
    };
    assert_eq!((command.as_str(), *no_leader), ("restore", true));
    assert_eq!(options[1], ("threads".into(), "4".into()));
    assert_eq!(pg.create_replica_methods[1], ReplicaMethod::Basebackup);
}

/// Proves CFG-037, CFG-038, CFG-263 … CFG-282 (the values), CFG-465 (not accepted yet).
#[test]
fn dynamic_values() {
    let (got, warnings) = settings(
        json!({}),
        json!({"ttl": 15, "loop_wait": "5", "synchronous_mode": "Quorum", "pause": "on",
               "maximum_lag_on_failover": "10MB", "master_start_timeout": 7, "check_timeline": 1,
               "member_slots_ttl": "30min", "typo_key": 1}),
    );
    let t = got.timing;
    assert_eq!((t.ttl, t.loop_wait, t.retry_timeout), (20, 1, 9));
    assert_eq!(got.synchronous_mode, SynchronousMode::Quorum);
    assert!(got.pause && got.check_timeline && !got.failsafe_mode);
    assert_eq!(got.maximum_lag_on_failover, 1_048_576);
    assert_eq!((got.primary_start_timeout, got.member_slots_ttl), (7, 1800));
    let text = warnings.join("\n");
    for path in ["ttl", "loop_wait", "retry_timeout", "maximum_lag_on_failover", "typo_key"] {
        assert!(text.contains(&format!("dynamic configuration: {path}: ")), "{path}: {text}");
    }
    let (got, _) = settings(
        json!({}),
        json!({"synchronous_mode": true, "standby_cluster": {"host": "h", "port": "5433"},
               "slots": {"s": {"type": "physical"}}}),
    );
    assert_eq!(got.synchronous_mode, SynchronousMode::Off);
    assert_eq!(got.standby_cluster.unwrap().port, Some(5433));
    assert!(got.slots.contains_key("s"));
    let (local, _) = loaded(json!({}));
    for bad in [json!({"ttl": "x"}), json!({"ttl": null}), json!({"loop_wait": true})] {
        assert!(effective(&local, bad.as_object().unwrap()).is_err(), "{bad}");
    }
}

/// Proves CFG-042.
#[test]
fn older_forms_are_understood() {
    let (local, warnings) = loaded(json!({"name": null, "postgresql": {
        "name": "old", "authentication": null,
        "superuser": {"username": "s"}, "replication": {"username": "r"},
        "pg_rewind": {"username": "w"}, "create_replica_method": ["basebackup"]
    }}));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(local.name.as_str(), "old");
    assert_eq!(local.postgresql.authentication.rewind.username.as_deref(), Some("w"));
    let (settings, _) = effective(&local, &Map::new()).unwrap();
    assert!(settings.postgresql.use_pg_rewind);
}

/// The file real Patroni ran with is understood whole.
#[cfg(feature = "etcd")]
#[test]
fn patronis_own_file_loads_without_a_warning() {
    let text = include_str!("golden/patroni-alpha.yml");
    let (local, warnings) = load_text(text).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((local.name.as_str(), local.scope.prefix().as_str()), ("alpha", "/service/golden/"));
    let (settings, _) = effective(&local, &local.first_dynamic()).unwrap();
    assert_eq!(settings.timing.ttl, 20);
    assert_eq!(settings.postgresql.parameters["max_connections"], "40");
    assert_eq!(settings.postgresql.parameters["fsync"], "off");
    assert!(settings.postgresql.use_pg_rewind);
}

/// The examples are what a newcomer copies.
#[test]
fn the_examples_load_without_a_warning() {
    let raft = include_str!("../../config-examples/raft.yml");
    let etcd = include_str!("../../config-examples/etcd.yml");
    let consul = include_str!("../../config-examples/consul.yml");
    let zookeeper = include_str!("../../config-examples/zookeeper.yml");
    let kubernetes = include_str!("../../config-examples/kubernetes.yml");
    for (text, compiled) in [
        (raft, cfg!(feature = "raft")),
        (etcd, cfg!(feature = "etcd")),
        (consul, cfg!(feature = "consul")),
        (zookeeper, cfg!(feature = "zookeeper")),
        (kubernetes, cfg!(feature = "kubernetes")),
    ] {
        if !compiled {
            assert!(load_text(text).unwrap_err().to_string().contains("cargo build --features"));
            continue;
        }
        let (local, warnings) = load_text(text).unwrap();
        assert_eq!(warnings, []);
        let (settings, warnings) = effective(&local, &local.first_dynamic()).unwrap();
        assert_eq!(warnings, []);
        assert!(settings.postgresql.use_pg_rewind && local.restapi.authentication.is_some());
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[-a-z0-9:.,/' ]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        prop::sample::select(vec![
            "scope",
            "name",
            "restapi",
            "listen",
            "connect_address",
            "authentication",
            "raft",
            "self_addr",
            "partner_addrs",
            "bootstrap",
            "dcs",
            "method",
            "initdb",
            "postgresql",
            "parameters",
            "pg_hba",
            "data_dir",
            "superuser",
            "replication",
            "tags",
            "nofailover",
            "failover_priority",
            "ttl",
            "loop_wait",
            "max_connections",
            "wal_keep_size",
            "log",
            "level",
            "watchdog",
            "mode",
            "standby_cluster",
            "create_replica_methods",
            "slots",
        ])
        .prop_map(String::from),
        "[a-z]{0,6}",
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_file_panics(change in any_json()) {
        if change.is_object() {
            let _ = load_text(&with(change).to_string());
        }
    }

    #[test]
    fn no_dynamic_document_panics(document in any_json()) {
        if let Value::Object(document) = document {
            let (local, _) = loaded(json!({}));
            let _ = effective(&local, &document);
        }
    }
}
