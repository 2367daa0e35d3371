//! Changed settings, and the scripts that hear of changes.

use crate::node::{Node, eventually, stop, within};
use hathi::ha::ports::{CopyBy, Postgres, Server, Start, StopMode};
use hathi_dcs::{Role, State};

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
    beta.pg.clone_from(&alpha.upstream(), CopyBy::ConfiguredMethods).await.unwrap();
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

/// Proves PG-068, PG-465: a standby that its primary outgrew restarts by itself; one that an
/// operator paused stays paused.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_replay_is_resumed_only_if_it_is_stuck() {
    let (alpha, beta) = Node::pair().await;
    beta.sql("SELECT pg_wal_replay_pause()").await;
    let paused = async || matches!(beta.look().await.server, Server::Standby(standby) if standby.replay_paused);
    eventually("it is paused", paused).await;
    assert!(paused().await, "an operator's pause stays");
    beta.sql("SELECT pg_wal_replay_resume()").await;
    alpha.change(|settings| {
        settings.parameters.insert("max_connections".into(), "35".into());
    });
    stop(&alpha, StopMode::Fast, true, None).await;
    alpha.pg.start(Start::AsPrimary, within(20)).await.unwrap();
    eventually("the standby ends", async || !beta.look().await.alive).await;
    beta.pg.start(Start::AsStandby(Some(alpha.upstream())), within(20)).await.unwrap();
    beta.streams().await;
    assert_eq!(beta.sql("SHOW max_connections").await, "35");
}
