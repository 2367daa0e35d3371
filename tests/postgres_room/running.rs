//! Start, stop, crash, adoption, freezing.

use crate::node::{Node, eventually, stop, within};
use hathi::ha::ports::{
    ControlState, CopyBy, FollowChange, PgError, Postgres, Server, Start, Started, StopMode,
    StopStep,
};
use hathi_dcs::{Deadline, Role, State};
use std::time::{Duration, Instant};

/// Proves HA-107, PG-041, PG-043, PG-044, PG-047: the steps come in order, and soon.
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

/// Proves HA-025, PG-311 and the promise of the port: a frozen server costs the deadline, never more.
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

/// Proves PG-025, PG-414: pids of processes that are no postmaster do not keep it from starting.
#[tokio::test(flavor = "multi_thread")]
async fn stale_pid_files_of_other_processes_are_ignored() {
    let node = Node::primary("alpha").await;
    let sockets = node.dir.path().join(format!(".s.PGSQL.{}.lock", node.pg.settings().port));
    let pid_file = node.data().join("postmaster.pid");
    let (socket_lock, lock) =
        (std::fs::read_to_string(&sockets).unwrap(), std::fs::read_to_string(&pid_file).unwrap());
    stop(&node, StopMode::Fast, false, None).await;
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let of_other = |text: &str| {
        let (_, rest) = text.split_once('\n').unwrap();
        format!("{}\n{rest}", other.id())
    };
    std::fs::write(&sockets, of_other(&socket_lock)).unwrap();
    let started = node.pg.start(Start::AsPrimary, within(20)).await;
    assert!(started.is_ok(), "the socket's lock: {started:?}");
    stop(&node, StopMode::Fast, false, None).await;
    std::fs::write(&pid_file, of_other(&lock)).unwrap();
    assert!(!node.look().await.alive, "another process is not our postmaster");
    let started = node.pg.start(Start::AsPrimary, within(20)).await;
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(started.is_ok(), "postmaster.pid: {started:?}");
}

/// A commit that a server process acknowledges after its postmaster's death would be lost when
/// another node leads: nobody hears "it is down" while such a process lives.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_survives_a_killed_postmaster() {
    let node = Node::primary("alpha").await;
    let client = node.client().await;
    // Busy in the executor, it would not notice the death of its postmaster for hours.
    let query = tokio::spawn(async move {
        client.simple_query("SELECT count(*) FROM generate_series(1, 100000000000)").await
    });
    eventually("the query runs", async || {
        node.sql("SELECT count(*) FROM pg_stat_activity WHERE query ~ '10{5,}' AND state = 'active' AND pid <> pg_backend_pid()").await == "1"
    })
    .await;
    node.kill_postmaster();
    node.exited().await;
    assert_eq!(node.server_processes(), 0);
    assert_eq!(node.look().await.server, Server::Down);
    assert!(query.await.unwrap().is_err());
}

/// Proves PG-014, PG-222's cure: an agent that comes to a running standby changes nothing on it.
#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_standby_keeps_its_upstream() {
    let (alpha, beta) = Node::pair().await;
    let file = beta.data().join("postgresql.conf");
    let before = std::fs::read_to_string(&file).unwrap();
    let second = beta.another_agent();
    let seen = second.pg.observe(within(5)).await;
    assert_eq!((seen.state, seen.role), (State::Running, Role::Replica));
    second.pg.apply_configuration().await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    let change = second.pg.follow_change(Some(&alpha.upstream()), within(5)).await;
    assert_eq!(change, FollowChange::Nothing);
    let pids = second.held.lock().unwrap().iter().map(|id| id.unwrap().pid).collect::<Vec<_>>();
    assert_eq!(pids, [beta.postmaster_pid()], "the guard is told at once");
}

/// Proves PG-028, PG-029, PG-032: a server that takes long is starting, for all to see, and the wait
/// can be cancelled without harm to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_start_is_told_as_starting() {
    let alpha = Node::primary("alpha").await;
    let beta = Node::new("beta");
    beta.change(|settings| {
        settings.use_slots = false;
        settings.recovery_conf.insert("restore_command".into(), "sleep 600; false".into());
    });
    beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
    let how = Start::AsStandby(Some(alpha.upstream()));
    let started = beta.pg.start(how.clone(), Deadline::in_ms(400)).await.unwrap();
    assert_eq!(started, Started::StillStarting);
    let seen = beta.look().await;
    assert_eq!((seen.state, seen.server), (State::Starting, Server::Starting));
    assert!(seen.alive && !seen.is_primary);
    let pg = beta.pg.clone();
    let waiting = tokio::spawn(async move { pg.start(how, within(60)).await });
    tokio::task::yield_now().await;
    beta.pg.cancel();
    assert_eq!(waiting.await.unwrap(), Err(PgError::Cancelled));
    assert!(beta.look().await.alive, "cancelling never touches the postmaster");
    beta.pg.clear_cancel();
    let steps = stop(&beta, StopMode::Fast, true, Some(2000)).await;
    assert_eq!(steps.last(), Some(&StopStep::Stopped), "{steps:?}");
    assert_eq!(beta.server_processes(), 0);
}

/// Proves HA-048 and PG-288: whoever starts as a standby makes no commit wait for the names of its time as
/// a primary, also when it is promoted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_forgets_whom_commits_waited_for() {
    let node = Node::primary("alpha").await;
    node.change(|settings| settings.synchronous = true);
    node.pg.set_sync_names(Some("beta"), within(10)).await.unwrap();
    assert_eq!(node.sql("SHOW synchronous_standby_names").await, "beta");
    stop(&node, StopMode::Fast, false, None).await;
    node.pg.start(Start::AsStandby(None), within(20)).await.unwrap();
    node.pg.promote(within(20)).await.unwrap();
    assert_eq!(node.sql("SHOW synchronous_standby_names").await, "");
    node.sql("CREATE TABLE waits_for_nobody(x int)").await;
}

/// Proves HA-316 (the leader's answer) and HA-321 (what is measured) on a real server.
#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_log_and_the_time_of_a_stop_are_told() {
    let (alpha, beta) = Node::pair().await;
    let told = beta.pg.source_history(&alpha.upstream(), within(10)).await.unwrap();
    let oldest = told.oldest.expect("who may rewind may list the directory");
    let name = alpha.sql("SELECT min(substr(name, 9)) FROM pg_ls_waldir()").await;
    let begins = u64::from_str_radix(&name[..8], 16).unwrap() << 32;
    let segment = u64::from_str_radix(&name[8..], 16).unwrap();
    assert_eq!(oldest.0, begins + segment * 16 * 1024 * 1024);
    assert_eq!(alpha.look().await.fast_stop_ms, None);
    stop(&alpha, StopMode::Fast, true, None).await;
    let took = alpha.look().await.fast_stop_ms.expect("it was stopped fast");
    assert!(took < 60_000, "{took} ms");
}
