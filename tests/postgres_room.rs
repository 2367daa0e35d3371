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
    let mut node = Node::new("alpha");
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
