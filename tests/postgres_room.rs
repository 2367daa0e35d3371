//! The PostgreSQL room on a real PostgreSQL: every effect of the port ends in a checked fact.
//!
//! PostgreSQL refuses to run as root; started as root, this test program becomes the OS user
//! `postgres` before its first test does anything.

mod room;

use futures::StreamExt;
use hathi::ha::ports::{
    ControlState, DataDir, FollowChange, PgError, Postgres, Server, Start, Started, Stop, StopMode,
    StopStep,
};
use hathi_dcs::{Deadline, Role, State, Timeline};
use room::{Node, eventually, within};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

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

/// Proves PG-020 … PG-023, PG-126, PG-210, PG-214, PG-215: a clone streams through its slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_follows_its_source() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    alpha.slot("beta").await;
    beta.pg.clone_from(&alpha.upstream()).await.unwrap();
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

async fn stop(node: &Node, mode: StopMode, checkpoint: bool, limit: Option<u64>) -> Vec<StopStep> {
    let immediate_at = limit.map(|ms| Deadline::in_ms(ms).0);
    let steps = node.pg.stop(Stop { mode, checkpoint, immediate_at });
    tokio::time::timeout(Duration::from_secs(30), steps.collect()).await.unwrap()
}

/// Proves PG-041, PG-043, PG-044, PG-047: the steps come in order, and soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_fast_stop_tells_its_steps() {
    let node = Node::primary("alpha").await;
    let client = node.client().await;
    let began = Instant::now();
    let steps = stop(&node, StopMode::Fast, true, None).await;
    assert!(
        matches!(
            steps.as_slice(),
            [StopStep::SafePoint, StopStep::ShutDown { checkpoint, previous }, StopStep::Stopped]
                if checkpoint == previous
        ),
        "{steps:?}"
    );
    println!("fast stop took {:?}", began.elapsed());
    assert!(client.is_closed());
    let seen = node.look().await;
    assert_eq!((seen.alive, seen.state, seen.server), (false, State::Stopped, Server::Down));
    let control = node.pg.control(within(2)).await.unwrap();
    assert_eq!(control.state, ControlState::ShutDown);
    let StopStep::ShutDown { checkpoint, .. } = steps[1] else { unreachable!() };
    assert_eq!(checkpoint, control.checkpoint);
    let end = node.pg.local_end(within(5)).await.unwrap();
    assert!(end.was_primary && end.checkpoint_end.is_some_and(|end| end > checkpoint), "{end:?}");
    assert_eq!(stop(&node, StopMode::Fast, true, None).await, [StopStep::Stopped], "twice");
    let began = Instant::now();
    node.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    println!("start took {:?}", began.elapsed());
}

/// Proves PG-045: with an archive the WAL switch before the checkpoint is announced.
#[tokio::test(flavor = "multi_thread")]
async fn with_an_archive_the_switch_is_announced() {
    let node = Node::primary("alpha").await;
    stop(&node, StopMode::Fast, false, None).await;
    node.change(|settings| {
        settings.parameters.insert("archive_mode".into(), "on".into());
        settings.parameters.insert("archive_command".into(), "true".into());
    });
    node.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    node.sql("CREATE TABLE t(x int)").await;
    let steps = stop(&node, StopMode::Fast, false, None).await;
    assert!(
        steps.iter().any(|step| matches!(step, StopStep::ShutDown { checkpoint, previous } if previous < checkpoint)),
        "{steps:?}"
    );
}

/// Proves PG-040, PG-046: immediate, and what follows when a stop does not end.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_hangs_is_escalated() {
    let node = Node::primary("alpha").await;
    let steps = stop(&node, StopMode::Immediate, false, None).await;
    assert_eq!(steps, [StopStep::SafePoint, StopStep::Stopped]);
    let control = node.pg.control(within(2)).await.unwrap();
    assert_eq!(control.state, ControlState::InProduction);
    node.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    node.freeze();
    let steps = stop(&node, StopMode::Fast, false, Some(200)).await;
    assert_eq!(steps.last(), Some(&StopStep::Stopped), "{steps:?}");
    assert_eq!(node.server_processes(), 0);
    node.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    node.sql("SELECT 1").await;
}

/// Proves PG-450: the end of a postmaster, ours or adopted, is noticed at once, and it starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postmaster_is_noticed_and_started_again() {
    let (alpha, beta) = Node::pair().await;
    let began = Instant::now();
    beta.kill_postmaster();
    beta.exited().await;
    println!("exit noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_millis(500));
    let seen = beta.look().await;
    assert_eq!((seen.alive, seen.state, seen.server), (false, State::Crashed, Server::Down));
    beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(20)).await.unwrap();
    beta.streams().await;
    println!("streams again after {:?}", began.elapsed());
    alpha.kill_postmaster();
    alpha.exited().await;
    assert_eq!(alpha.look().await.state, State::Crashed);
    alpha.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    alpha.sql("CREATE TABLE t(x int)").await;
    assert_eq!(alpha.look().await.state, State::Running);
}

/// Proves PG-010, PG-014, PG-015, PG-023, PG-480: another agent takes a running server over, and the
/// server outlives the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_adopted() {
    let node = Node::primary("alpha").await;
    let told = node.dir.path().join("told");
    node.script("callback.sh", &format!("echo \"$@\" >> {}", told.display()));
    let callback = node.dir.path().join("callback.sh").display().to_string();
    node.change(|settings| {
        settings.callbacks.insert("on_start".into(), callback);
    });
    let pid = node.postmaster_pid();
    let second = node.another_agent();
    let seen = second.pg.observe(within(5)).await;
    assert_eq!((seen.state, seen.role, seen.alive), (State::Running, Role::Primary, true));
    assert!(matches!(seen.server, Server::Primary { .. }), "{seen:?}");
    eventually("on_start is told", async || {
        std::fs::read_to_string(&told).is_ok_and(|text| text == "on_start primary room\n")
    })
    .await;
    assert_eq!(node.postmaster_pid(), pid, "not restarted");
    node.kill_postmaster();
    second.exited().await;
    assert!(!second.pg.observe(within(5)).await.alive);
}

/// Proves PG-311 and the promise of the port: a frozen server costs the deadline, never more.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_silent_in_time() {
    let node = Node::primary("alpha").await;
    node.look().await;
    node.freeze_backends();
    let began = Instant::now();
    let seen = node.pg.observe(Deadline::in_ms(300)).await;
    assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
    assert!(matches!(seen.server, Server::Silent(_)), "{seen:?}");
    assert!(seen.alive && seen.is_primary, "HA-017: what it was");
    node.freeze();
    let seen = node.pg.observe(Deadline::in_ms(300)).await;
    assert!(matches!(seen.server, Server::Silent(_)), "{seen:?}");
    assert!(node.pg.fresh(Deadline::in_ms(100)).await.is_none_or(|seen| seen.alive));
    node.thaw();
    eventually("it answers again", async || {
        matches!(node.look().await.server, Server::Primary { .. })
    })
    .await;
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

/// Proves PG-091, PG-094, PG-411: a clone that is cancelled leaves neither process nor directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_clone_can_be_cancelled() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    // About 20 MB at 32 kB a second: it does not end by itself.
    beta.change(|settings| settings.basebackup = vec![("max-rate".into(), Some("32k".into()))]);
    let (pg, source) = (beta.pg.clone(), alpha.upstream());
    let clone = tokio::spawn(async move { pg.clone_from(&source).await });
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
    let refused = beta.pg.clone_from(&alpha.upstream()).await;
    assert_eq!(refused, Err(PgError::Cancelled), "until the flag is cleared");
    beta.pg.clear_cancel();
    beta.change(|settings| settings.basebackup = Vec::new());
    beta.pg.clone_from(&alpha.upstream()).await.unwrap();
    // Dropping the future is cancelling, too.
    beta.change(|settings| settings.basebackup = vec![("max-rate".into(), Some("32k".into()))]);
    let source = alpha.upstream();
    let dropped =
        tokio::time::timeout(Duration::from_millis(300), beta.pg.clone_from(&source)).await;
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
    node.pg.clone_from(&node.upstream()).await.unwrap();
    let said = std::fs::read_to_string(words).unwrap();
    let expected = format!(
        "--threads=4 --scope=room --role=replica --datadir={} --connstring=dbname=postgres \
         user=replicator host=127.0.0.1 port={}\n",
        node.data().display(),
        node.pg.settings().port
    );
    assert_eq!(said, expected);
    node.change(|settings| settings.create_replica_methods = vec!["first".into()]);
    let error = node.pg.clone_from(&node.upstream()).await.unwrap_err();
    assert!(error.to_string().contains("no luck"), "PG-461: {error}");
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
    let wanted = [("beta".to_owned(), Some(lsn)), ("gamma".to_owned(), None)].into();
    node.pg.set_slots(&wanted, &[], within(5)).await.unwrap();
    assert_eq!(slot("beta").await.unwrap().restart_lsn, Some(lsn));
    assert!(slot("gamma").await.is_some());
    let unwanted = ["gamma".to_owned(), "never".to_owned()];
    node.pg.set_slots(&Default::default(), &unwanted, within(5)).await.unwrap();
    assert!(slot("gamma").await.is_none() && slot("beta").await.is_some());
    // A bad name does not keep the good ones from being made.
    let wanted = [("Bad Name".to_owned(), None), ("delta".to_owned(), None)].into();
    let error = node.pg.set_slots(&wanted, &[], within(5)).await.unwrap_err();
    assert!(error.to_string().contains("42602"), "{error}");
    assert!(slot("delta").await.is_some());
}

/// Proves PG-240, PG-242, PG-243, PG-245: what a reload can do is done, the rest is told.
#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_are_reloaded_or_pending() {
    let node = Node::primary("alpha").await;
    node.change(|settings| {
        settings.parameters.insert("work_mem".into(), "7MB".into());
        settings.parameters.insert("max_connections".into(), "40".into());
        settings.parameters.insert("shared_buffers".into(), "8192kB".into());
        settings.pg_hba.push("host all nobody 127.0.0.1/32 reject".into());
    });
    node.pg.apply_configuration().await.unwrap();
    eventually("the reload arrives", async || node.sql("SHOW work_mem").await == "7MB").await;
    assert_eq!(node.sql("SELECT count(*) FROM pg_hba_file_rules").await, "4");
    let mut pending = Default::default();
    eventually("the pending restart is seen", async || {
        pending = node.look().await.pending_restart;
        pending.len() == 2
    })
    .await;
    let change = |name: &str| (pending[name].old_value.clone(), pending[name].new_value.clone());
    assert_eq!(change("max_connections"), ("30".into(), "40".into()));
    assert_eq!(change("shared_buffers"), ("4MB".into(), "8MB".into()));
    // An ALTER SYSTEM of a forced parameter can never take effect, so it is not pending. (PG-245)
    node.sql("ALTER SYSTEM SET max_wal_senders = 7").await;
    node.sql("SELECT pg_reload_conf()").await;
    eventually("the server flags it", async || {
        node.sql("SELECT count(*) FROM pg_settings WHERE pending_restart").await == "3"
    })
    .await;
    assert_eq!(node.look().await.pending_restart.len(), 2);
    stop(&node, StopMode::Fast, false, None).await;
    node.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    assert_eq!(node.sql("SHOW max_connections").await, "40");
    assert!(node.look().await.pending_restart.is_empty());
    // A value PostgreSQL could not read never gets into the file. (PG-178)
    node.change(|settings| {
        settings.parameters.insert("search_path".into(), "a\nb".into());
    });
    assert!(node.pg.apply_configuration().await.is_err());
    assert_eq!(node.sql("SHOW work_mem").await, "7MB");
}

/// Proves PG-190: a standby keeps what its primary's WAL demands, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_does_not_start_below_its_primary() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    beta.change(|settings| {
        settings.parameters.insert("max_connections".into(), "25".into());
        settings.use_slots = false;
    });
    beta.pg.clone_from(&alpha.upstream()).await.unwrap();
    beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(20)).await.unwrap();
    assert_eq!(beta.sql("SHOW max_connections").await, "30");
    let pending = beta.look().await.pending_restart;
    let change = &pending["max_connections"];
    assert_eq!((&*change.old_value, &*change.new_value), ("30", "25"));
}

/// Proves PG-063 (the callback), PG-067, PG-080, PG-081, PG-084, PG-088: scripts hear what happens,
/// in order.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_hear_of_a_switchover() {
    let (alpha, beta) = Node::pair().await;
    for node in [&alpha, &beta] {
        let told = node.dir.path().join("told");
        let script = node.script("told.sh", &format!("echo \"$@\" >> {}", told.display()));
        let script = script.display().to_string();
        node.change(|settings| {
            for action in ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"] {
                settings.callbacks.insert(action.into(), script.clone());
            }
            settings.before_stop = Some(format!("{script} before_stop"));
            settings.pre_promote = Some(format!("{script} pre_promote"));
        });
    }
    let heard = async |node: &Node, lines: &[&str]| {
        let told = node.dir.path().join("told");
        let expected = lines.join("\n") + "\n";
        let read = || std::fs::read_to_string(&told).unwrap_or_default();
        eventually(&expected, async || read() == expected).await;
    };
    alpha.pg.set_role(Role::Demoted);
    stop(&alpha, StopMode::Fast, true, None).await;
    heard(&alpha, &["before_stop", "on_stop demoted room"]).await;
    beta.pg.pre_promote().await.unwrap();
    beta.pg.promote(within(10)).await.unwrap();
    heard(&beta, &["pre_promote", "on_role_change primary room"]).await;
    beta.slot("alpha").await;
    alpha.pg.start(Start::AsStandby(Some(beta.upstream())), within(20)).await.unwrap();
    alpha.streams().await;
    heard(&alpha, &["before_stop", "on_stop demoted room", "on_role_change replica room"]).await;
    alpha.pg.set_state(State::Restarting);
    stop(&alpha, StopMode::Fast, true, None).await;
    assert_eq!(alpha.look().await.state, State::Restarting);
    alpha.pg.start(Start::AsStandby(Some(beta.upstream())), within(20)).await.unwrap();
    let lines = [
        "before_stop",
        "on_stop demoted room",
        "on_role_change replica room",
        "before_stop",
        "on_restart replica room",
    ];
    heard(&alpha, &lines).await;
    beta.change(|settings| settings.pre_promote = Some("false".into()));
    assert!(beta.pg.pre_promote().await.is_err(), "PG-081");
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

/// Proves the guard's promise of the hooks: told before anything else, at each begin and end.
#[tokio::test(flavor = "multi_thread")]
async fn the_hooks_know_every_postmaster() {
    let node = Node::primary("alpha").await;
    let pid = node.postmaster_pid();
    stop(&node, StopMode::Fast, false, None).await;
    node.exited().await;
    let held = node.held.lock().unwrap().clone();
    let pids: Vec<_> = held.iter().map(|id| id.map(|id| id.pid)).collect();
    assert_eq!(pids, [Some(pid), None]);
}

/// Proves PG-093's neighbour: a start that cannot succeed ends at once and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why() {
    let node = Node::primary("alpha").await;
    stop(&node, StopMode::Fast, false, None).await;
    node.change(|settings| {
        settings.parameters.insert("shared_preload_libraries".into(), "no_such_library".into());
    });
    let began = Instant::now();
    let error = node.pg.start(Start::AsPrimary, within(20)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("no_such_library"), "{error}");
    let seen = node.look().await;
    assert_eq!((seen.alive, seen.state), (false, State::StartFailed));
    node.change(|settings| {
        settings.parameters.remove("shared_preload_libraries");
        settings.bin_dir = Some("/no/such/place".into());
    });
    let error = node.pg.start(Start::AsPrimary, within(20)).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/place/postgres"), "{error}");
}
