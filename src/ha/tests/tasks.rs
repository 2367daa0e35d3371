//! While a task runs, and what a task does. (sections 9, 10 and 16 of docs/spec/ha-loop.md)

use super::stage::{Scene, control, down};
use crate::ha::memory::Running;
use crate::ha::ports::{ControlState, PgError, Start, Started, StopStep, Upstream};
use crate::ha::task::{Demotion, Kind, Outcome, Renewal, Task};
use hathi_dcs::{DcsError, Leader, Lsn, Millis, Version};

fn during(scene: Scene, kind: Kind, name: &'static str) -> Scene {
    scene.remember(|memory| {
        memory.task = Some(Running { name, kind, since: Millis(900_000) });
    })
}

fn lost(scene: Scene) -> Scene {
    scene.set(|script| {
        script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
        script.renew = Err(DcsError::NotOwner { holder: Some("b".into()) });
    })
}

/// Proves HA-161 and HA-164 (the task goes on), HA-162 (a promotion is cancelled), HA-163 (a primary
/// that restarts is cancelled and stopped; once), HA-009, INV-18.
#[test]
fn the_lock_is_lost_while_a_task_runs() {
    for (kind, cancelled, stopped) in [
        (Kind::Bootstrap, false, false),
        (Kind::Clone, false, false),
        (Kind::Follow, false, false),
        (Kind::Demote, false, false),
        (Kind::Rewind, false, false),
        (Kind::SingleUser, false, false),
        (Kind::Restart { primary: false }, false, false),
        (Kind::Promote, true, false),
        (Kind::StartAsPrimary, true, true),
        (Kind::Restart { primary: true }, true, true),
    ] {
        let came = during(Scene::leader(), kind, "x").turn();
        assert!(!came.did("cancel") && !came.did("stop") && came.task.is_none(), "{kind:?}");
        assert_eq!(came.line, "x in progress");
        let mut scene = lost(during(Scene::leader(), kind, "x"));
        let came = scene.turn();
        assert_eq!(came.did("cancel"), cancelled, "{kind:?}: {came:?}");
        assert_eq!(came.did("stop Immediate"), stopped, "{kind:?}: {came:?}");
        assert!(came.task.is_none(), "one task at a time");
        let again = scene.turn();
        assert!(!again.did("cancel") && !again.did("stop"), "its end is awaited: {again:?}");
    }
}

/// Proves HA-160.
#[test]
fn a_crash_recovery_that_takes_too_long() {
    let scene = |since: u64| {
        Scene::crashed_leader().remember(move |memory| {
            let (name, kind) = ("doing crash recovery in a single user mode", Kind::SingleUser);
            memory.task = Some(Running { name, kind, since: Millis(since) });
        })
    };
    let came = scene(900_000).turn();
    assert!(!came.did("cancel"), "{came:?}");
    assert_eq!(came.again_at, Some(Millis(1_200_000)), "it wakes when the time is up");
    let came = scene(700_000).set(|script| script.probes.clear()).turn();
    assert!(!came.did("cancel"), "nobody can take over: {came:?}");
    let mut late = scene(700_000);
    let came = late.turn();
    assert!(came.did("cancel") && came.fired("HA-160") && !came.did("release"), "{came:?}");
    // The key goes when the child is gone, not before. (INV-23)
    late.memory.task = None;
    late.memory.task_cancelled = false;
    let came = late.turn();
    assert!(came.did("release") && came.task.is_none(), "{came:?}");
}

fn standby_of_b() -> Start {
    let conn_url = "postgres://b:5432/postgres".into();
    Start::AsStandby(Some(Upstream { name: "b".into(), conn_url, remote: false }))
}

/// Proves PG-060 (what a restart is), REST-220 (rows 8 … 10), INV-19 (not after the lease ended).
#[test]
fn what_a_restart_does() {
    let task = |how| Task::Restart { how, timeout_ms: 7_000 };
    let (outcome, done) = Scene::replica().perform(task(standby_of_b()));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(done, ["state restarting", "stop Fast", "start behind b, 7000 ms"]);
    let (outcome, done) = Scene::leader().perform(task(Start::AsPrimary));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(done.last().map(String::as_str), Some("start as primary, 7000 ms"));
    let (outcome, done) = Scene::leader().later(29_000).perform(task(Start::AsPrimary));
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert!(!done.iter().any(|done| done.starts_with("start")), "{done:?}");
    let slow = Scene::replica().set(|script| script.start = Ok(Started::StillStarting));
    assert_eq!({ slow }.perform(task(standby_of_b())).0, Outcome::StillStarting);
    let broken = || PgError::Failed { what: "start", why: "no space".into() };
    let failing = Scene::replica().set(|script| script.start = Err(broken()));
    let (outcome, done) = { failing }.perform(task(standby_of_b()));
    assert!(matches!(outcome, Outcome::Failed(_)));
    assert_eq!(done.last().map(String::as_str), Some("state restart failed"));
    let stuck = Scene::replica().set(|script| script.stop = vec![StopStep::Failed("no".into())]);
    let (outcome, done) = { stuck }.perform(task(standby_of_b()));
    assert!(matches!(outcome, Outcome::Failed(_)));
    assert!(!done.iter().any(|done| done.starts_with("start")), "it still runs: {done:?}");
}

/// Proves HA-055 (what it does: stop immediately, copy, start), PG-047.
#[test]
fn what_reinitialize_does() {
    let upstream = |name: &str| Upstream { name: name.into(), conn_url: "x".into(), remote: false };
    for (why, expected) in [
        (
            Renewal::Asked { from_leader: false },
            &["stop Immediate for 10000 ms", "clone c ConfiguredMethods"][..],
        ),
        (
            Renewal::Asked { from_leader: true },
            &["stop Immediate for 10000 ms", "clone c BaseBackup"],
        ),
        (
            Renewal::Diverged,
            &["stop Immediate for 10000 ms", "remove", "clone c ConfiguredMethods"],
        ),
    ] {
        let task = Task::Reinitialize { source: upstream("c"), follow: upstream("b"), why };
        let (outcome, done) = Scene::replica().perform(task);
        assert_eq!(outcome, Outcome::Done);
        let steps: Vec<_> = done
            .iter()
            .filter(|done| ["stop", "clone", "remove"].iter().any(|word| done.starts_with(word)))
            .collect();
        assert_eq!(steps, expected, "{why:?}");
        assert!(done.last().is_some_and(|done| done.starts_with("start behind b")), "{done:?}");
    }
}

/// Proves HA-101 (the order, and that a refusal promotes nothing), HA-162 (the lease ended meanwhile).
#[test]
fn what_a_promotion_does() {
    let (outcome, done) = Scene::leader().perform(Task::Promote);
    assert_eq!((outcome, done), (Outcome::Done, vec!["pre_promote".into(), "promote".into()]));
    let refuses = || PgError::Failed { what: "pre_promote", why: "exit status 1".into() };
    let (outcome, done) =
        Scene::leader().set(|script| script.pre_promote = Err(refuses())).perform(Task::Promote);
    assert!(matches!(outcome, Outcome::PromotionRefused(_)), "{outcome:?}");
    assert_eq!(done, ["pre_promote"]);
    let (outcome, done) = Scene::leader().later(29_000).perform(Task::Promote);
    assert!(matches!(outcome, Outcome::Failed(_)) && done == ["pre_promote"], "{done:?}");
}

/// Proves HA-104 (safepoint before the guard stands down), HA-105 (the early release, with the
/// position to announce), INV-23, and the table of section 10.
#[test]
fn what_a_demotion_does() {
    let steps = |done: &[String]| -> Vec<String> {
        let interesting = ["stop", "release", "stand down", "start", "role"];
        let is = |done: &&String| interesting.iter().any(|word| done.starts_with(word));
        done.iter().filter(is).cloned().collect()
    };
    let shut_down = || StopStep::ShutDown { checkpoint: Lsn(1000), previous: Lsn(990) };
    // Somebody has the shutdown checkpoint: the key goes while the archiver still works.
    let early = Scene::leader()
        .set(|script| script.stop = vec![StopStep::SafePoint, shut_down(), StopStep::Stopped]);
    let (outcome, done) = { early }.perform(Task::Demote(Demotion::Graceful));
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(steps(&done), ["stop Fast", "role demoted", "release", "role demoted"]);
    // Nobody has it: the key stays until the server is gone.
    let late = Scene::leader().set(|script| {
        script.probes.clear();
        script.stop = vec![shut_down(), StopStep::Failed("it hangs".into())];
    });
    let (outcome, done) = { late }.perform(Task::Demote(Demotion::Graceful));
    assert!(matches!(outcome, Outcome::Failed(_)));
    assert!(!done.iter().any(|done| done == "release"), "{done:?}");

    let (_, done) = Scene::leader().perform(Task::Demote(Demotion::Immediate));
    assert_eq!(steps(&done), ["stop Immediate", "role demoted", "stand down", "release"]);
    let (_, done) = Scene::leader().perform(Task::Demote(Demotion::LostLock));
    assert_eq!(steps(&done), ["stop Immediate", "role demoted", "stand down"]);
    let offline = Task::Demote(Demotion::Offline { until: Some(Millis(1_020_000)) });
    let (_, done) = Scene::leader().perform(offline);
    let done = steps(&done);
    // 20 s of its lease are left; the stop turns immediate a twelfth of the ttl before its end.
    assert_eq!(done[..3], ["stop Fast for 17500 ms", "role demoted", "stand down"]);
    assert!(done.last().is_some_and(|done| done.starts_with("start behind nobody")), "{done:?}");
}

/// Proves HA-032: the key goes last, after PostgreSQL and its directory.
#[test]
fn what_a_cancelled_bootstrap_does() {
    let scene = Scene::replica().set(|script| {
        down(&mut script.pg);
        script.broken_fence = Some("no guard".into());
        script.view.initialize = Some(String::new());
        script.control = Some(control(ControlState::ShutDown));
    });
    let (outcome, done) = { scene }.perform(Task::Bootstrap);
    assert!(matches!(outcome, Outcome::Fatal(_)), "{outcome:?}");
    let at = |what: &str| done.iter().position(|done| done.starts_with(what));
    assert!(at("stop Immediate") < at("set aside") && at("set aside") < at("delete initialize"));
    assert!(at("stop Immediate").is_some() && at("take").is_none(), "{done:?}");
}
