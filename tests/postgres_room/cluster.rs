//! Clone, follow, promote, rewind, slots: two servers.

use crate::node::{Node, eventually, physical, stop, within};
use hathi::ha::ports::{
    ControlState, CopyBy, FollowChange, Postgres, Server, SlotPlan, Start, Started, StopMode,
};
use hathi_dcs::{Role, State, Timeline};

/// Proves PG-020 … PG-023, PG-126, PG-210, PG-214, PG-215: a clone streams through its slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_follows_its_source() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    alpha.slot("beta").await;
    beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
    assert_eq!(beta.pg.observe(within(2)).await.state, State::CreatingReplica);
    let started =
        beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(20)).await.unwrap();
    assert_eq!(started, Started::Ready);
    beta.streams().await;
    let seen = beta.look().await;
    assert_eq!((seen.state, seen.role, seen.is_primary), (State::Running, Role::Replica, false));
    let source = alpha.look().await;
    assert!(source.slots.iter().any(|slot| slot.name == "beta" && slot.active), "{source:?}");
    assert_eq!(source.details.unwrap().replication[0]["application_name"], "beta");
    alpha.sql("CREATE TABLE t AS SELECT 1 AS x").await;
    eventually("the row arrives", async || beta.try_sql("SELECT x FROM t").await == Ok("1".into()))
        .await;
    // Nothing to change; then another address needs a reload; nobody needs a reload too.
    let change = beta.pg.follow_change(Some(&alpha.upstream()), within(2)).await;
    assert_eq!(change, FollowChange::Nothing);
    assert_eq!(beta.pg.follow_change(None, within(2)).await, FollowChange::Reload);
    beta.pg.follow_by_reload(None, within(2)).await.unwrap();
    eventually("the stream ends", async || {
        let seen = beta.look().await;
        matches!(seen.server, Server::Standby(standby) if !standby.streaming)
    })
    .await;
    beta.pg.follow_by_reload(Some(&alpha.upstream()), within(2)).await.unwrap();
    beta.streams().await;
    std::fs::remove_file(beta.data().join("standby.signal")).unwrap();
    beta.look().await;
    let change = beta.pg.follow_change(Some(&alpha.upstream()), within(2)).await;
    assert_eq!(change, FollowChange::Restart, "PG-218");
}

/// Proves PG-063, PG-314: a promoted standby takes writes on a new timeline.
#[tokio::test(flavor = "multi_thread")]
async fn promotion_ends_recovery() {
    let (alpha, beta) = Node::pair().await;
    beta.pg.promote(within(10)).await.unwrap();
    beta.sql("CREATE TABLE t(x int)").await;
    let seen = beta.look().await;
    assert_eq!(seen.role, Role::Primary);
    assert!(matches!(seen.server, Server::Primary { timeline: Timeline(2), .. }), "{seen:?}");
    assert!(!beta.data().join("standby.signal").exists());
    let history = beta.pg.local_history(Timeline(2), within(2)).await.unwrap();
    assert_eq!(history.len(), 1);
    assert!(history[0].at.is_some() && history[0].timeline == Timeline(1));
    let source = alpha.pg.source_history(&beta.upstream(), within(5)).await.unwrap();
    assert_eq!((source.in_recovery, source.timeline), (false, Timeline(2)));
    assert_eq!(source.ends[0].switch_lsn, history[0].switch_lsn);
    beta.pg.promote(within(10)).await.unwrap();
    let again = alpha.pg.source_history(&alpha.upstream(), within(5)).await.unwrap();
    assert_eq!((again.timeline, again.ends.len()), (Timeline(1), 0));
}

/// Proves PG-131, PG-132, PG-144 … PG-146, PG-153, PG-155, PG-156, PG-158: a primary that went its
/// own way comes back as a standby of the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_primary_is_rewound() {
    let (alpha, beta) = Node::pair().await;
    alpha.sql("CREATE TABLE common(x int)").await;
    eventually("beta has it", async || beta.try_sql("SELECT * FROM common").await.is_ok()).await;
    beta.pg.promote(within(10)).await.unwrap();
    beta.sql("CREATE TABLE new_way(x int)").await;
    beta.pg.checkpoint(within(10)).await.unwrap();
    alpha.sql("CREATE TABLE old_way(x int)").await;
    alpha.kill_postmaster();
    alpha.exited().await;
    assert_eq!(alpha.pg.local_end(within(2)).await, None, "not before it is recovered");
    alpha.pg.recover_in_single_user_mode().await.unwrap();
    let control = alpha.pg.control(within(2)).await.unwrap();
    assert_eq!(control.state, ControlState::ShutDown);
    let end = alpha.pg.local_end(within(5)).await.unwrap();
    let source = alpha.pg.source_history(&beta.upstream(), within(5)).await.unwrap();
    assert!(end.was_primary && end.timeline == Timeline(1), "{end:?}");
    assert!(end.lsn >= source.ends[0].switch_lsn, "diverged: {end:?} {source:?}");
    assert!(alpha.look().await.can_rewind);
    alpha.pg.rewind(&beta.upstream()).await.unwrap();
    beta.slot("alpha").await;
    alpha.pg.start(Start::AsStandby(Some(beta.upstream())), within(20)).await.unwrap();
    alpha.streams().await;
    assert_eq!(alpha.look().await.role, Role::Replica);
    eventually("the new table is there", async || {
        alpha.try_sql("SELECT * FROM new_way").await.is_ok()
    })
    .await;
    assert!(alpha.try_sql("SELECT * FROM old_way").await.is_err(), "the old way is gone");
    let end = alpha.pg.local_end(within(5)).await.unwrap();
    assert!(!end.was_primary && end.timeline == Timeline(2), "IDENTIFY_SYSTEM: {end:?}");
    // Its settings are its own, not those that came with the rewind.
    assert_eq!(alpha.sql("SHOW port").await, alpha.pg.settings().port.to_string());
    let other = alpha.pg.source_history(&alpha.upstream(), within(5)).await.unwrap();
    assert!(other.in_recovery);
}

/// Proves PG-261, PG-264, PG-266: slots are made, advanced and dropped.
#[tokio::test(flavor = "multi_thread")]
async fn slots_follow_what_is_wanted() {
    let node = Node::primary("alpha").await;
    node.slot("beta").await;
    let slot =
        async |name: &str| node.look().await.slots.into_iter().find(|slot| slot.name == name);
    let before = slot("beta").await.unwrap();
    assert!(!before.active && before.restart_lsn.is_some());
    node.sql("CREATE TABLE t AS SELECT generate_series(1, 10000)").await;
    let Server::Primary { lsn, .. } = node.look().await.server else { panic!("a primary") };
    let wanted = physical([("beta", Some(lsn)), ("gamma", None)]);
    node.pg.set_slots(&wanted, within(5)).await.unwrap();
    assert_eq!(slot("beta").await.unwrap().restart_lsn, Some(lsn));
    assert!(slot("gamma").await.is_some());
    let unwanted = vec!["gamma".to_owned(), "never".to_owned()];
    let unwanted = SlotPlan { unwanted, ..SlotPlan::default() };
    node.pg.set_slots(&unwanted, within(5)).await.unwrap();
    assert!(slot("gamma").await.is_none() && slot("beta").await.is_some());
    // A bad name does not keep the good ones from being made.
    let wanted = physical([("Bad Name", None), ("delta", None)]);
    let error = node.pg.set_slots(&wanted, within(5)).await.unwrap_err();
    assert!(error.to_string().contains("42602"), "{error}");
    assert!(slot("delta").await.is_some());
}

/// Proves PG-320 (certificates), PG-145: TLS as libpq's options say, for SQL and replication.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_as_configured() {
    let alpha = Node::primary("alpha").await;
    let dir = alpha.dir.path();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(alpha.data().join("server.key"))
        .arg("-out")
        .arg(alpha.data().join("server.crt"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::copy(alpha.data().join("server.crt"), dir.join("root.crt")).unwrap();
    let root = dir.join("root.crt").display().to_string();
    alpha.change(|settings| {
        settings.parameters.insert("ssl".into(), "on".into());
        settings.pg_hba = vec![
            "hostssl replication replicator 127.0.0.1/32 scram-sha-256".into(),
            "hostssl all all 127.0.0.1/32 scram-sha-256".into(),
        ];
    });
    alpha.pg.apply_configuration().await.unwrap();
    stop(&alpha, StopMode::Fast, false, None).await;
    alpha.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    let seen = alpha.look().await;
    assert!(matches!(seen.server, Server::Primary { .. }), "prefer uses TLS: {seen:?}");
    let asked = async |mode: &str, host: &str| {
        let options = [("sslmode", mode.to_owned()), ("sslrootcert", root.clone())];
        alpha.change(|settings| {
            let login = settings.rewind.as_mut().unwrap();
            login.options = options.iter().map(|(k, v)| ((*k).into(), v.clone())).collect();
            settings.replication.options = login.options.clone();
        });
        let mut source = alpha.upstream();
        source.conn_url = source.conn_url.replace("127.0.0.1", host);
        alpha.pg.source_history(&source, within(5)).await
    };
    assert!(asked("verify-full", "localhost").await.is_ok());
    assert!(asked("verify-full", "127.0.0.1").await.is_err(), "the name is another");
    assert!(asked("verify-ca", "127.0.0.1").await.is_ok());
    assert!(asked("disable", "localhost").await.is_err(), "the server insists on TLS");
}

/// Proves PG-321: the socket directory is used where it is configured.
#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_are_used_if_wanted() {
    let (alpha, beta) = Node::pair().await;
    beta.change(|settings| {
        settings.use_unix_socket = true;
        settings.use_unix_socket_repl = true;
        settings.pg_hba = vec!["local all all trust".into(), "local replication all trust".into()];
    });
    beta.pg.apply_configuration().await.unwrap();
    stop(&beta, StopMode::Fast, false, None).await;
    beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(20)).await.unwrap();
    beta.streams().await;
    let end = beta.pg.local_end(within(5)).await.unwrap();
    assert_eq!((end.timeline, end.was_primary), (Timeline(1), false));
}
