//! How data directories come to be, and go.

use crate::node::{Node, eventually, stop, within};
use hathi::ha::ports::{ControlState, CopyBy, DataDir, PgError, Postgres, Server, Start, StopMode};
use hathi_dcs::{Role, State, Timeline};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// Proves PG-100, PG-102, PG-108, PG-172, PG-176, PG-324 on a real initdb, and PG-004, PG-006.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_has_its_users_and_files() {
    let node = Node::new("alpha");
    assert_eq!(node.look().await.data_dir, DataDir::Empty);
    let hook = node.dir.path().join("post_bootstrap");
    node.script("hook.sh", &format!("echo \"$@\" > {}; env | grep ^PG >> {0}", hook.display()));
    let command = node.dir.path().join("hook.sh").display().to_string();
    node.change(|settings| {
        settings.bootstrap.post_bootstrap = Some(command);
        settings.bootstrap.initdb = vec![
            ("encoding".into(), Some("UTF8".into())),
            ("data-checksums".into(), None),
            ("no-sync".into(), None),
        ];
    });
    node.pg.bootstrap().await.unwrap();
    assert_eq!(node.look().await.system_id, None, "PG-006: not while bootstrapping");
    node.pg.post_bootstrap().await.unwrap();
    let seen = node.look().await;
    assert_eq!((seen.state, seen.role), (State::Running, Role::Primary));
    assert!(matches!(seen.server, Server::Primary { timeline: Timeline(1), .. }), "{seen:?}");
    assert!(seen.system_id.is_some() && seen.alive && seen.is_primary);
    let details = seen.details.unwrap();
    assert!(details.server_version >= 130_000, "{details:?}");
    assert!(details.postmaster_start_time.ends_with("+00:00"), "{details:?}");
    let roles = node
        .sql("SELECT string_agg(rolname || rolsuper || rolreplication || rolcanlogin, ',' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'")
        .await;
    assert_eq!(roles, "postgrestruetruetrue,replicatorfalsetruetrue,rewinderfalsefalsetrue");
    let granted = node
        .sql("SELECT has_function_privilege('rewinder', 'pg_read_binary_file(text)', 'EXECUTE')")
        .await;
    assert_eq!(granted, "t");
    let said = std::fs::read_to_string(&hook).unwrap();
    assert!(said.contains("dbname=postgres user=postgres host=localhost port="), "{said}");
    assert!(
        said.contains("PGOPTIONS=-c synchronous_commit=local -c statement_timeout=0"),
        "{said}"
    );
    for file in ["postgresql.conf", "postgresql.base.conf", "pg_hba.conf", "pg_ident.conf"] {
        let at = node.data().join(file);
        assert_eq!(std::fs::metadata(&at).unwrap().mode() & 0o777, 0o600, "{file}");
        let copy = std::fs::read(node.data().join(format!("{file}.backup"))).unwrap();
        assert_eq!(std::fs::read(at).unwrap(), copy, "{file}");
    }
    // The native reader and the program agree. (PG-467)
    let control = node.pg.control(within(2)).await.unwrap();
    assert_eq!(control.state, ControlState::InProduction);
    let tool = node.tool("pg_controldata", &[&node.data().display().to_string()]);
    assert!(tool.contains(control.system_id.as_ref().unwrap().as_str()), "{tool}");
    assert!(tool.contains(&format!("{}", control.checkpoint)), "{tool}");
}

/// Proves PG-091, PG-094, PG-411: a clone that is cancelled leaves neither process nor directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_clone_can_be_cancelled() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    // About 20 MB at 32 kB a second: it does not end by itself.
    beta.change(|settings| settings.basebackup = vec![("max-rate".into(), Some("32k".into()))]);
    let (pg, source) = (beta.pg.clone(), alpha.upstream());
    let clone =
        tokio::spawn(async move { pg.clone_from(&source, CopyBy::ConfiguredMethods).await });
    eventually("it is copying", async || {
        let copying = "SELECT count(*) FROM pg_stat_replication WHERE state = 'backup'";
        alpha.sql(copying).await == "1" && beta.data().exists()
    })
    .await;
    assert_eq!(beta.look().await.state, State::CreatingReplica);
    beta.pg.cancel();
    assert_eq!(clone.await.unwrap(), Err(PgError::Cancelled));
    eventually("the source has no backup connection left", async || {
        alpha.sql("SELECT count(*) FROM pg_stat_replication").await == "0"
    })
    .await;
    assert_eq!(beta.look().await.data_dir, DataDir::Empty);
    let refused = beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await;
    assert_eq!(refused, Err(PgError::Cancelled), "until the flag is cleared");
    beta.pg.clear_cancel();
    beta.change(|settings| settings.basebackup = Vec::new());
    beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
    // Dropping the future is cancelling, too.
    beta.change(|settings| settings.basebackup = vec![("max-rate".into(), Some("32k".into()))]);
    let source = alpha.upstream();
    let dropped = tokio::time::timeout(
        Duration::from_millis(300),
        beta.pg.clone_from(&source, CopyBy::ConfiguredMethods),
    )
    .await;
    assert!(dropped.is_err());
    eventually("its child is gone", async || {
        alpha.sql("SELECT count(*) FROM pg_stat_replication").await == "0"
    })
    .await;
}

/// Proves PG-123, PG-124, PG-125: other ways to make a replica, tried in order, their words.
#[tokio::test(flavor = "multi_thread")]
async fn custom_replica_methods_are_tried_in_order() {
    let node = Node::new("beta");
    let words = node.dir.path().join("words");
    node.script("first.sh", "echo no luck; exit 1");
    let body = format!(
        "echo \"$@\" > {}; mkdir -p {}/global; exit 0",
        words.display(),
        node.data().display()
    );
    node.script("second.sh", &body);
    let path = |name: &str| node.dir.path().join(name).display().to_string();
    let (first, second) = (path("first.sh"), path("second.sh"));
    node.change(|settings| {
        settings.create_replica_methods = vec!["first".into(), "second".into()];
        let method = |command| hathi::postgres::settings::ReplicaMethod {
            command,
            arguments: vec![("threads".into(), "4".into())],
            ..Default::default()
        };
        settings.replica_methods.insert("first".into(), method(first));
        settings.replica_methods.insert("second".into(), method(second));
    });
    node.pg.clone_from(&node.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
    let said = std::fs::read_to_string(words).unwrap();
    let expected = format!(
        "--threads=4 --scope=room --role=replica --datadir={} --connstring=dbname=postgres \
         user=replicator host=127.0.0.1 port={}\n",
        node.data().display(),
        node.pg.settings().port
    );
    assert_eq!(said, expected);
    node.change(|settings| settings.create_replica_methods = vec!["first".into()]);
    let error = node.pg.clone_from(&node.upstream(), CopyBy::ConfiguredMethods).await.unwrap_err();
    assert!(error.to_string().contains("no luck"), "PG-461: {error}");
}

/// Proves PG-113, PG-350, PG-351, PG-481: what fails is set aside, and what is removed is gone.
#[tokio::test(flavor = "multi_thread")]
async fn failed_and_unwanted_directories() {
    let node = Node::new("alpha");
    node.change(|settings| settings.bootstrap.method = "typo".into());
    assert!(node.pg.bootstrap().await.is_err());
    assert_eq!(node.look().await.data_dir, DataDir::Empty, "nothing touched");
    node.change(|settings| {
        settings.bootstrap.method = "initdb".into();
        settings.bootstrap.post_bootstrap = Some("sh -c 'echo hopeless; exit 7'".into());
    });
    node.pg.bootstrap().await.unwrap();
    let error = node.pg.post_bootstrap().await.unwrap_err();
    assert!(error.to_string().contains("hopeless"), "{error}");
    assert!(node.pg.set_data_dir_aside().await.is_err(), "not while it runs");
    assert!(node.pg.remove_data_dir().await.is_err(), "not while it runs");
    stop(&node, StopMode::Immediate, false, None).await;
    node.pg.set_data_dir_aside().await.unwrap();
    assert!(node.dir.path().join("data.failed/PG_VERSION").exists());
    let seen = node.look().await;
    assert_eq!((seen.data_dir, seen.role), (DataDir::Empty, Role::Uninitialized));
    std::fs::rename(node.dir.path().join("data.failed"), node.data()).unwrap();
    node.pg.remove_data_dir().await.unwrap();
    assert!(!node.data().exists());
}

/// Proves PG-103, PG-104, PG-106, PG-110: a cluster from somewhere else, recovered to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_custom_bootstrap_restores_a_backup() {
    let alpha = Node::primary("alpha").await;
    alpha.sql("CREATE TABLE t AS SELECT 5 AS x").await;
    stop(&alpha, StopMode::Fast, true, None).await;
    let node = Node::new("alpha");
    let words = node.dir.path().join("words");
    let body = format!(
        "echo \"$@\" > {}; cp -a {}/. {}",
        words.display(),
        alpha.data().display(),
        node.data().display()
    );
    let command = node.script("restore.sh", &body).display().to_string();
    node.change(|settings| {
        let method = hathi::postgres::settings::CustomBootstrap {
            command,
            arguments: vec![("level".into(), "9".into())],
            ..Default::default()
        };
        settings.bootstrap.method = "restore".into();
        settings.bootstrap.custom.insert("restore".into(), method);
    });
    node.pg.bootstrap().await.unwrap();
    node.pg.post_bootstrap().await.unwrap();
    assert_eq!(node.sql("SELECT x FROM t").await, "5");
    let said = std::fs::read_to_string(words).unwrap();
    assert_eq!(said, format!("--scope=room --datadir={} --level=9\n", node.data().display()));
    let hba = std::fs::read_to_string(node.data().join("pg_hba.conf")).unwrap();
    assert!(hba.contains("scram-sha-256") && !hba.contains("postgres trust"), "{hba}");
}

/// Proves PG-170, PG-171 with the configuration outside of the data directory.
#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_may_live_elsewhere() {
    let node = Node::new("alpha");
    let conf = node.dir.path().join("conf");
    std::fs::create_dir(&conf).unwrap();
    node.change(|settings| {
        settings.config_dir = conf.clone();
        settings.pg_hba.clear();
    });
    node.pg.bootstrap().await.unwrap();
    node.pg.post_bootstrap().await.unwrap();
    assert_eq!(
        node.sql("SHOW config_file").await,
        conf.join("postgresql.conf").display().to_string()
    );
    assert_eq!(node.sql("SHOW hba_file").await, conf.join("pg_hba.conf").display().to_string());
    let base = std::fs::read_to_string(conf.join("postgresql.base.conf")).unwrap();
    assert!(base.contains("dynamic_shared_memory_type"), "{base}");
    let beta = Node::new("beta");
    beta.change(|settings| settings.use_slots = false);
    beta.pg.clone_from(&node.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
    beta.pg.start(Start::AsStandby(Some(node.upstream())), within(20)).await.unwrap();
    beta.streams().await;
}
