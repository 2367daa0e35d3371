//! What an operator asks of one member, and when.

use super::stage::{Came, ME, Scene, WALL, control, down, replica_at};
use crate::ha::memory::{Rewind, Running};
use crate::ha::operator::{Said, Wish};
use crate::ha::ports::{ControlState, DataDir, Server, ServerDetails, Start};
use crate::ha::restart::{Conditions, Planned};
use crate::ha::task::{Demotion, Kind, Renewal, Task};
use chrono::{DateTime, FixedOffset};
use hathi_dcs::{
    Failover, History, MemberName, Millis, PendingChange, Role, Stored, Timeline, Version,
};
use serde_json::Map;

fn said(status: u16, text: &str) -> Option<Said> {
    Some(Said::Now(crate::ha::manual::Answer::new(status, text)))
}

fn at(ms: i64) -> DateTime<FixedOffset> {
    DateTime::from_timestamp_millis(WALL + ms).unwrap().fixed_offset()
}

fn details(started: &str) -> Option<ServerDetails> {
    Some(ServerDetails {
        postmaster_start_time: started.into(),
        server_version: 150_018,
        ..ServerDetails::default()
    })
}

fn restart() -> Wish {
    Wish::Restart(Conditions::default())
}

fn reinitialize(force: bool, from_leader: bool) -> Wish {
    Wish::Reinitialize { force, from_leader }
}

fn busy(scene: Scene, name: &'static str, kind: Kind) -> Scene {
    scene.remember(|memory| {
        memory.task = Some(Running { name, kind, since: Millis(900_000) });
    })
}

fn restarts_as(came: &Came) -> Option<Start> {
    match &came.task {
        Some(Task::Restart { how, .. }) => Some(how.clone()),
        _ => None,
    }
}

/// Proves REST-220 (rows 6 and 7), HA-054 (its beginning), and as what a server starts again.
#[test]
fn a_restart_at_once() {
    let (came, answer) = Scene::leader().asked(Some(&restart()));
    assert_eq!((restarts_as(&came), answer), (Some(Start::AsPrimary), Some(Said::WhenDone)));
    assert!(came.did("renew"), "not without asking the store once more: {came:?}");

    let mut scene = Scene::replica();
    let (came, _) = scene.asked(Some(&restart()));
    let Some(Start::AsStandby(Some(upstream))) = restarts_as(&came) else { panic!("{came:?}") };
    assert_eq!(upstream.name.as_str(), "b");
    assert!(scene.memory.recovering && scene.memory.start_timeout == Some(300_000));

    // Its log is perhaps not a part of the leader's: first it is asked. (PG-147)
    let unsure = Scene::replica()
        .set(|script| script.local_end = None)
        .remember(|memory| memory.rewind = Rewind::Needed)
        .set(|script| script.pg.can_rewind = false);
    let (came, _) = { unsure }.asked(Some(&restart()));
    assert_eq!(restarts_as(&came), Some(Start::AsStandby(None)));

    let (came, answer) =
        busy(Scene::replica(), "bootstrap from leader", Kind::Clone).asked(Some(&restart()));
    assert!(came.task.is_none());
    assert_eq!(answer, said(503, "bootstrap from leader already in progress"));

    // What the turn has to do itself goes first.
    let lost = Scene::leader().set(|script| {
        script.renew = Err(hathi_dcs::DcsError::NotOwner { holder: Some("b".into()) });
        script.view.leader = Some(hathi_dcs::Leader { name: "b".into(), version: Version(2) });
    });
    let (came, answer) = { lost }.asked(Some(&restart()));
    assert!(matches!(came.task, Some(Task::Demote(_))), "{came:?}");
    assert_eq!(answer, said(503, "demote already in progress"));

    let silent = Scene::leader().set(|script| script.load = Err(super::stage::unreachable()));
    let (came, answer) = { silent }.asked(Some(&restart()));
    assert!(came.task.is_none());
    assert_eq!(answer, said(503, "the store does not answer"));
    let dead = Scene::replica().set(|script| down(&mut script.pg));
    let (_, answer) = { dead }.asked(Some(&restart()));
    assert!(matches!(answer, Some(Said::Now(ref answer)) if answer.status == 503), "{answer:?}");
}

/// Proves REST-220 (row 6: each filter, and that what is not known satisfies none), PG-061.
#[test]
fn conditions_of_a_restart() {
    let change = PendingChange { old_value: "1".into(), new_value: "2".into() };
    let pending = move |scene: Scene| {
        scene.set(|script| {
            script.pg.pending_restart.insert("max_connections".into(), change);
        })
    };
    let known = || Scene::replica().set(|script| script.pg.details = details("then"));
    let conditions = Conditions::default;
    for (name, scene, conditions, done) in [
        ("role", known(), Conditions { role: Some(Role::Replica), ..conditions() }, true),
        ("other role", known(), Conditions { role: Some(Role::Primary), ..conditions() }, false),
        ("older", known(), Conditions { older_than: Some(160_000), ..conditions() }, true),
        ("the same", known(), Conditions { older_than: Some(150_018), ..conditions() }, false),
        (
            "unknown version",
            Scene::replica(),
            Conditions { older_than: Some(160_000), ..conditions() },
            false,
        ),
        ("none pending", known(), Conditions { pending: true, ..conditions() }, false),
        ("pending", pending(known()), Conditions { pending: true, ..conditions() }, true),
    ] {
        let mut scene = scene;
        let (came, answer) = scene.asked(Some(&Wish::Restart(conditions)));
        assert_eq!(came.task.is_some(), done, "{name}");
        if !done {
            assert_eq!(answer, said(503, "restart conditions are not satisfied"), "{name}");
        }
    }
}

/// Proves HA-133 (in pause a restart is for the operator; also the start of a stopped server), INV-19.
#[test]
fn a_restart_in_pause() {
    let paused = |scene: Scene| scene.set(|script| script.settings.pause = true);
    let (came, _) = paused(Scene::leader()).asked(Some(&restart()));
    assert_eq!(restarts_as(&came), Some(Start::AsPrimary));
    let dead = |scene: Scene, signal: bool, timeline: u32| {
        paused(scene).set(move |script| {
            down(&mut script.pg);
            script.pg.role = Role::Demoted;
            script.control = Some(control(ControlState::ShutDown));
            script.control.as_mut().unwrap().has_standby_signal = signal;
            script.view.history = History::parse(r#"[[1,1,"r","t","b"]]"#);
            script.control.as_mut().unwrap().checkpoint_timeline = Timeline(timeline);
        })
    };
    let (came, _) = dead(Scene::leaderless(), false, 2).asked(Some(&restart()));
    assert_eq!(restarts_as(&came), Some(Start::AsPrimary), "nobody else leads");
    let (came, answer) = dead(Scene::leaderless(), false, 1).asked(Some(&restart()));
    assert!(came.task.is_none(), "an old timeline: {answer:?}");
    let (came, answer) = dead(Scene::replica(), false, 2).asked(Some(&restart()));
    assert!(came.task.is_none(), "b leads: {answer:?}");
    let (came, _) = dead(Scene::replica(), true, 2).asked(Some(&restart()));
    assert!(matches!(restarts_as(&came), Some(Start::AsStandby(Some(_)))));
}

/// Proves INV-21 in pause: another cluster's data, started by hand, is left alone although an operator
/// orders its restart. (seed 3811 of the simulator)
#[test]
fn another_clusters_server_is_not_restarted() {
    let foreign = |script: &mut super::stage::Script| {
        script.settings.pause = true;
        script.pg.system_id = hathi_dcs::SystemId::parse("7711467298858918991");
    };
    for scene in [Scene::replica(), Scene::leaderless()] {
        let (came, answer) = scene.set(foreign).asked(Some(&restart()));
        assert!(came.task.is_none() && !came.exit, "{came:?}");
        let Some(Said::Now(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.status, 503);
        assert!(answer.text.contains("belongs to another cluster"), "{}", answer.text);
    }
}

/// Proves HA-055 (refusals, the source, force), REST-245 (the texts), INV-20 (never the leader).
#[test]
fn reinitialize_at_once() {
    let leaderless = Scene::leaderless().asked(Some(&reinitialize(true, false)));
    assert_eq!(leaderless.1, said(503, "Cluster has no leader, can not reinitialize"));
    for force in [false, true] {
        let (came, answer) = Scene::leader().asked(Some(&reinitialize(force, false)));
        assert!(came.task.is_none());
        assert_eq!(answer, said(503, "I am the leader, can not reinitialize"));
    }
    let offers = |script: &mut super::stage::Script| {
        script.view.members[2].data.tags =
            Map::from_iter([("clonefrom".to_owned(), serde_json::Value::Bool(true))]);
    };
    for (from_leader, from) in [(false, "c"), (true, "b")] {
        let (came, answer) =
            Scene::replica().set(offers).asked(Some(&reinitialize(false, from_leader)));
        assert_eq!(answer, said(200, "reinitialize started"));
        let Some(Task::Reinitialize { source, follow, why }) = came.task else { panic!() };
        assert_eq!((source.name.as_str(), follow.name.as_str()), (from, "b"));
        assert_eq!(why, Renewal::Asked { from_leader });
    }
    let (came, answer) = busy(Scene::replica(), "restart", Kind::Restart { primary: false })
        .asked(Some(&reinitialize(false, false)));
    assert!(!came.did("cancel"));
    assert_eq!(answer, said(503, "restart already in progress"), "REST-353");
    let mut scene = busy(Scene::replica(), "running pg_rewind", Kind::Rewind);
    let (came, answer) = scene.asked(Some(&reinitialize(true, false)));
    assert!(came.did("cancel") && came.task.is_none());
    assert_eq!(answer, Some(Said::Again), "it comes again when the task has ended");
    scene.memory.task = None;
    assert_eq!(scene.asked(Some(&reinitialize(true, false))).1, said(200, "reinitialize started"));
    // A server that does not start is what it is for; so is an empty place.
    let broken = Scene::replica().set(|script| down(&mut script.pg));
    assert_eq!(
        { broken }.asked(Some(&reinitialize(false, false))).1.unwrap(),
        said(200, "reinitialize started").unwrap()
    );
    let empty = Scene::replica().set(|script| script.pg.data_dir = DataDir::Empty);
    assert!({ empty }.asked(Some(&reinitialize(false, false))).0.task.is_some());
}

fn planned(ms: i64) -> Planned {
    Planned {
        at: at(ms),
        conditions: Conditions::default(),
        request: serde_json::from_str(r#"{"schedule":"x","timeout":5}"#).unwrap(),
        postmaster_start_time: Some("2026-11-23 20:41:45.026175+00".into()),
    }
}

/// Proves HA-078 (when, once, and only beside a leader), HA-074 (to the millisecond), REST-223,
/// INV-24.
#[test]
fn a_scheduled_restart() {
    let scene = |ms| {
        Scene::replica()
            .set(|script| script.pg.details = details("2026-11-23 20:41:45.026175+00"))
            .remember(move |memory| memory.scheduled_restart = Some(planned(ms)))
    };
    let mut early = scene(3_000);
    let came = early.turn();
    assert!(came.task.is_none() && early.memory.scheduled_restart.is_some());
    assert_eq!(came.again_at, Some(Millis(1_003_000)), "it wakes at the moment itself");
    for ms in [0, -15_000] {
        let mut due = scene(ms);
        let came = due.turn();
        assert!(restarts_as(&came).is_some() && came.fired("HA-078"), "{ms}: {came:?}");
        assert_eq!(due.memory.scheduled_restart, None, "it is done once");
    }
    let mut stale = scene(-15_001);
    let came = stale.turn();
    assert!(came.task.is_none() && came.fired("HA-074"));
    assert_eq!(stale.memory.scheduled_restart, None);

    let mut restarted = scene(0).set(|script| script.pg.details = details("another"));
    assert!(restarted.turn().task.is_none());
    assert_eq!(restarted.memory.scheduled_restart, None, "somebody was faster");
    let mut unknown = scene(3_000).set(|script| script.pg.details = None);
    unknown.turn();
    assert!(unknown.memory.scheduled_restart.is_some(), "not known is not restarted");

    let mut filtered = scene(0);
    filtered.memory.scheduled_restart.as_mut().unwrap().conditions.role = Some(Role::Primary);
    assert!(filtered.turn().task.is_none() && filtered.memory.scheduled_restart.is_none());

    for scene in [
        scene(0).set(|script| script.settings.pause = true),
        scene(0).set(|script| script.view.leader = None),
        busy(scene(0), "restart", Kind::Restart { primary: false }),
        scene(0).set(|script| script.load = Err(super::stage::unreachable())),
    ] {
        let mut scene = scene;
        let came = scene.turn();
        assert!(restarts_as(&came).is_none(), "{came:?}");
        assert!(scene.memory.scheduled_restart.is_some(), "it waits: {came:?}");
    }
    let leader = Scene::leader().remember(|memory| memory.scheduled_restart = Some(planned(0)));
    assert_eq!(restarts_as(&{ leader }.turn()), Some(Start::AsPrimary));
}

/// Proves REST-220 (rows 2, 4, 5), REST-224, REST-099 and HA-121 (`scheduled_restart` of the record).
#[test]
fn schedules_come_and_go() {
    let wish = |ms| Wish::ScheduleRestart {
        at: at(ms),
        conditions: Conditions::default(),
        request: serde_json::from_str(r#"{"restart_pending":true,"schedule":"s"}"#).unwrap(),
    };
    let mut scene =
        Scene::replica().set(|script| script.pg.details = details("2026-11-23 20:41:45.026175+00"));
    let (came, answer) = scene.asked(Some(&wish(3_600_000)));
    assert_eq!(answer, said(202, "Restart scheduled"));
    let record = r#""scheduled_restart":{"restart_pending":true,"schedule":"s","postmaster_start_time":"2026-11-23 20:41:45.026175+00:00"}"#;
    assert!(came.done.iter().any(|done| done.contains(record)), "{:?}", came.done);
    let (_, answer) = scene.asked(Some(&wish(7_200_000)));
    assert_eq!(answer, said(409, "Another restart is already scheduled"));
    let (came, answer) = scene.asked(Some(&Wish::CancelRestart));
    assert_eq!(answer, said(200, "scheduled restart deleted"));
    assert!(came.did("member"), "the record says so at once: {:?}", came.done);
    let (_, answer) = scene.asked(Some(&Wish::CancelRestart));
    assert_eq!(answer, said(404, "no restarts are scheduled"));
    let (_, answer) =
        Scene::replica().set(|script| script.settings.pause = true).asked(Some(&wish(3_600_000)));
    assert_eq!(answer, said(500, "Can't schedule restart in the paused state"));
}

fn switchover(ms: i64) -> Stored<Failover> {
    let value = Failover {
        leader: Some(MemberName::from(ME)),
        candidate: Some(MemberName::from("b")),
        scheduled_at: Some(at(ms)),
    };
    Stored { value, version: Version(7) }
}

/// Proves HA-074, HA-070 (row 2), REST-195: a scheduled switchover begins at its moment, or never.
#[test]
fn a_scheduled_switchover() {
    let scene = |ms| Scene::leader().set(move |script| script.view.failover = Some(switchover(ms)));
    let came = scene(25_000).turn();
    assert!(came.task.is_none() && !came.did("failover"), "{came:?}");
    assert_eq!(came.again_at, Some(Millis(1_025_000)));
    for ms in [0, -15_000] {
        let came = scene(ms).turn();
        assert_eq!(came.task, Some(Task::Demote(Demotion::Graceful)), "{ms}");
    }
    let came = scene(-15_001).turn();
    assert!(came.task.is_none() && came.did("failover {}"), "{came:?}");
}

/// Proves HA-074 (on those who race: a request outside its window decides nothing).
#[test]
fn a_schedule_decides_no_race_outside_its_window() {
    // It names b; b answers and is healthy, so within the window a leaves the lead to it.
    for (ms, races) in [(60_000, true), (0, false), (-15_001, true)] {
        let came = Scene::leaderless()
            .set(move |script| {
                script.view.failover = Some(switchover(ms));
                script.view.failover.as_mut().unwrap().value.leader = Some("c".into());
                script.probes = [("b", replica_at(1000)), ("c", replica_at(900))].into();
            })
            .turn();
        assert_eq!(came.did("acquire"), races, "{ms}: {came:?}");
    }
}

/// Proves HA-056, HA-058 and HA-059 with a restart's own limit, HA-057, HA-060, HA-010, REST-222.
#[test]
fn a_start_has_the_limit_of_its_restart() {
    let starting = |scene: Scene, own: Option<u64>| {
        scene
            .set(|script| {
                script.pg.server = Server::Starting;
                script.pg.state = hathi_dcs::State::Starting;
                script.pg.state_since = Millis(990_000);
            })
            .remember(move |memory| memory.start_timeout = own)
    };
    for (own, demotes) in [(None, false), (Some(5_000), true), (Some(20_000), false)] {
        let came = starting(Scene::leader(), own).turn();
        let demoted = came.task == Some(Task::Demote(Demotion::Immediate));
        assert_eq!(demoted, demotes, "{own:?}: {came:?}");
        assert!(came.again_at.is_some(), "nothing tells when it is ready: it is looked at");
    }
    let alone = starting(Scene::leader(), Some(5_000)).set(|script| script.probes.clear()).turn();
    assert!(alone.task.is_none(), "nobody to fail over to: {alone:?}");
    let mut ready = Scene::leader().remember(|memory| memory.start_timeout = Some(5_000));
    ready.turn();
    assert_eq!(ready.memory.start_timeout, None, "HA-056");

    let lost = starting(Scene::leader(), None).set(|script| {
        script.view.leader = Some(hathi_dcs::Leader { name: "b".into(), version: Version(2) });
        script.renew = Err(hathi_dcs::DcsError::NotOwner { holder: Some("b".into()) });
    });
    assert_eq!({ lost }.turn().task, Some(Task::Demote(Demotion::LostLock)));
    // The lease ended before anybody looked: a primary that starts is no less dangerous.
    let other = starting(Scene::replica(), None).set(|script| script.pg.is_primary = true);
    assert_eq!({ other }.turn().task, Some(Task::Demote(Demotion::LostLock)));
    let standby = starting(Scene::replica(), None).turn();
    assert!(standby.task.is_none() && standby.line.contains("starting as a secondary"));
}
