//! A paused cluster, decision by decision. (section 14 of docs/spec/ha-loop.md)

use super::stage::{Came, Scene, control, down, unreachable};
use crate::ha::memory::{Rewind, Running};
use crate::ha::ports::{ControlState, DataDir, FollowChange, Server};
use crate::ha::task::{Demotion, Kind, Task};
use hathi_dcs::{
    DcsError, Failover, Leader, Lsn, MemberName, Millis, Role, State, Stored, SystemId, Timeline,
    Version,
};
use serde_json::{Map, json};

fn paused(scene: Scene) -> Scene {
    scene.set(|script| script.settings.pause = true)
}

fn asks(leader: Option<&str>, candidate: Option<&str>) -> Stored<Failover> {
    let value = Failover {
        leader: leader.map(MemberName::from),
        candidate: candidate.map(MemberName::from),
        scheduled_at: None,
    };
    Stored { value, version: Version(7) }
}

/// Proves HA-017 and INV-23 in pause: a server that says nothing may be about to become a primary; its key
/// is not given away. (the simulator, seed 4630)
#[test]
fn a_silent_server_keeps_its_key() {
    let quiet = paused(Scene::leader()).set(|script| {
        script.pg.server = Server::Silent("timed out".into());
        script.pg.role = Role::Replica;
        script.pg.is_primary = false;
    });
    let came = { quiet }.turn();
    assert!(came.fired("HA-017") && !came.did("release") && came.task.is_none(), "{came:?}");
}

/// Proves HA-085 with HA-084: the candidate that an operator named in pause takes no key while its server
/// says nothing: nobody knows its timeline. (the simulator, seed 4630)
#[test]
fn a_silent_candidate_takes_no_key() {
    let asked = || {
        let asked = |script: &mut super::stage::Script| {
            script.view.failover = Some(asks(None, Some("a")));
        };
        paused(Scene::leaderless()).set(asked)
    };
    assert!(asked().turn().did("acquire"), "it answers");
    let came = asked().set(|script| script.pg.server = Server::Silent("timed out".into())).turn();
    assert!(came.fired("HA-085") && !came.did("acquire"), "{came:?}");
}

fn lost(scene: Scene) -> Scene {
    scene.set(|script| {
        script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
        script.renew = Err(DcsError::NotOwner { holder: Some("b".into()) });
    })
}

fn primary(scene: Scene) -> Scene {
    scene.set(|script| {
        script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
        script.pg.role = Role::Primary;
        script.pg.is_primary = true;
    })
}

fn left_alone(came: &Came) -> bool {
    let touched = ["role demoted", "cancel", "follow", "call"];
    came.task.is_none() && !came.exit && !touched.iter().any(|what| came.did(what))
}

/// Proves HA-130, HA-132, HA-004, INV-27: whatever the lock is, nothing is started, stopped or
/// promoted, the guard stands down, and the line says why.
#[test]
fn whatever_the_lock_is_postgres_is_left_alone() {
    let table = vec![
        ("the leader", paused(Scene::leader())),
        ("a replica", paused(Scene::replica())),
        ("nobody leads", paused(Scene::leaderless())),
        ("a primary that lost the lock", lost(paused(Scene::leader()))),
        ("a primary beside another", paused(primary(Scene::replica()))),
        ("a crashed leader", paused(Scene::crashed_leader())),
        ("the lease ended, the store is silent", {
            paused(Scene::leader()).later(60_000).set(|script| script.load = Err(unreachable()))
        }),
        ("a restart would be needed to follow", {
            paused(Scene::replica()).set(|script| script.follow = FollowChange::Restart)
        }),
        ("a diverged replica", {
            paused(Scene::replica()).remember(|memory| memory.rewind = Rewind::Needed)
        }),
    ];
    for (why, mut scene) in table {
        let came = scene.turn();
        assert!(left_alone(&came), "{why}: {came:?}");
        assert!(
            came.line.starts_with("PAUSE: ") && !came.line.contains("PAUSE: PAUSE"),
            "{came:?}"
        );
        assert!(came.did("stand down"), "{why}: {came:?}");
        let last = came.done.iter().rfind(|done| *done == "fence" || *done == "stand down");
        assert_eq!(last.map(String::as_str), Some("stand down"), "{why}: never armed: {came:?}");
    }
}

/// Proves HA-086, HA-131: the owner keeps the lock while it is a primary; a primary without any leader takes
/// it if its system identifier is the cluster's, or the cluster has none.
#[test]
fn who_has_the_lock_in_pause() {
    assert!(!paused(Scene::leader()).turn().did("release"));
    let demoted_by_hand = paused(Scene::leader()).set(|script| {
        script.pg.server = super::stage::standby(1000);
        script.pg.is_primary = false;
    });
    let mut demoted_by_hand = demoted_by_hand;
    assert!(demoted_by_hand.turn().did("release"));
    let alone = |initialize: Option<&str>| {
        let initialize = initialize.map(str::to_owned);
        paused(primary(Scene::leaderless()))
            .set(|script| script.view.initialize = initialize)
            .turn()
    };
    assert!(alone(Some("7711467298858918990")).did("acquire"));
    for empty in [None, Some("")] {
        assert!(alone(empty).did("acquire"), "HA-086: {empty:?}");
    }
    let foreign = alone(Some("1234567890123"));
    assert!(!foreign.did("acquire") && foreign.fired("HA-086"), "{foreign:?}");
    let standby = paused(Scene::leaderless()).turn();
    assert!(!standby.did("acquire") && standby.fired("HA-088"), "{standby:?}");
}

/// Proves HA-131 in a wiped store: the primary that takes the lock again puts back what is missing.
#[test]
fn a_wiped_store_is_filled_again() {
    let mut scene = paused(Scene::leader()).later(60_000).set(|script| {
        script.view = hathi_dcs::ClusterView::default();
        script.dynamic = Map::from_iter([("pause".to_owned(), json!(true))]);
    });
    assert!(scene.turn().did("acquire"), "nobody leads any more");
    let mut scene = scene.set(|script| {
        script.view.leader = Some(Leader { name: "a".into(), version: Version(1) });
    });
    let came = scene.turn();
    assert!(came.did("initialize \"7711467298858918990\"") && came.did("config"), "{came:?}");
    assert!(left_alone(&came), "{came:?}");
}

/// Proves HA-131 (standby cluster).
#[test]
fn a_standby_leader_in_pause() {
    let remote = |script: &mut super::stage::Script| {
        script.settings.standby_cluster =
            Some(crate::ha::settings::StandbyCluster { conn_url: None });
        script.pg.server = super::stage::standby(1000);
        script.pg.is_primary = false;
        script.pg.role = Role::StandbyLeader;
    };
    let kept = paused(Scene::leader()).set(remote).turn();
    assert!(!kept.did("release") && left_alone(&kept), "{kept:?}");
    let wiped = paused(Scene::leaderless()).set(remote).set(|s| s.view.initialize = None).turn();
    assert!(wiped.did("acquire"), "{wiped:?}");
}

/// Proves HA-040: a stopped server stays stopped, its owner gives the key up; only what a requested
/// failover stopped comes back.
#[test]
fn a_stopped_server_stays_stopped() {
    let mut owner = paused(Scene::crashed_leader());
    let came = owner.turn();
    assert!(came.did("release") && came.did("state stopped") && came.task.is_none(), "{came:?}");
    let stopped = || {
        paused(Scene::replica()).set(|script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::ShutDown));
        })
    };
    assert!(left_alone(&stopped().turn()));
    let came = stopped().remember(|memory| memory.owes_restart = true).turn();
    assert!(matches!(came.task, Some(Task::Follow { .. })), "{came:?}");
    let leaderless = stopped()
        .remember(|memory| memory.owes_restart = true)
        .set(|script| script.view.leader = None)
        .turn();
    assert!(leaderless.task.is_none(), "not before there is a leader: {leaderless:?}");
}

/// Proves HA-040 and HA-017 in pause: a server that hangs is what it was, and keeps the key; once its postmaster is
/// gone it is `stopped`, as with the peer, and the key is given up.
#[test]
fn a_server_that_hangs_and_is_killed() {
    let mut scene = paused(Scene::leader()).set(|script| {
        script.pg.server = Server::Silent("frozen".into());
    });
    let came = scene.turn();
    assert!(!came.did("release") && !came.did("state") && came.task.is_none(), "{came:?}");
    let mut scene = scene.set(|script| {
        down(&mut script.pg);
        script.pg.state = State::Crashed;
    });
    let came = scene.turn();
    assert!(came.did("state stopped") && came.did("release") && came.task.is_none(), "{came:?}");
}

/// Proves HA-013 and HA-037 in pause, HA-135.
#[test]
fn data_that_is_not_ours() {
    let empty = |script: &mut super::stage::Script| {
        down(&mut script.pg);
        script.pg.data_dir = DataDir::Empty;
        script.pg.system_id = None;
    };
    let came = paused(Scene::replica()).set(empty).turn();
    assert!(left_alone(&came), "no clone: {came:?}");
    assert!(paused(Scene::leader()).set(empty).turn().did("release"));
    let foreign = |script: &mut super::stage::Script| {
        script.pg.system_id = SystemId::parse("1234567890123");
    };
    let came = paused(Scene::leader()).set(foreign).turn();
    assert!(came.fired("HA-037") && came.did("release") && left_alone(&came), "{came:?}");
    let came = paused(Scene::replica()).set(foreign).turn();
    assert!(came.fired("HA-037") && left_alone(&came), "{came:?}");
}

/// Proves HA-133, HA-070 (rows for pause), HA-074: only to a named candidate, nothing scheduled.
#[test]
fn a_failover_in_pause_needs_a_name() {
    let with = |request: Stored<Failover>| {
        paused(Scene::leader()).set(|script| script.view.failover = Some(request))
    };
    let mut scene = with(asks(Some("a"), Some("b")));
    let came = scene.turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::Graceful))), "{came:?}");
    assert!(scene.memory.owes_restart, "it comes back as a replica");
    let came = with(asks(Some("a"), None)).turn();
    assert!(left_alone(&came) && came.did("failover {}"), "{came:?}");
    let mut later = asks(Some("a"), Some("b"));
    later.value.scheduled_at = chrono::DateTime::from_timestamp(1_800_000_000, 0).map(Into::into);
    let came = with(later).turn();
    assert!(left_alone(&came) && !came.did("failover"), "never due in pause: {came:?}");
}

/// Proves HA-075 (rows for pause), HA-080 (the request kept), HA-084.
#[test]
fn the_named_candidate_is_promoted_in_pause() {
    let with = |scene: Scene, request: Stored<Failover>| {
        paused(scene).set(|script| script.view.failover = Some(request))
    };
    let came = with(Scene::leaderless(), asks(Some("b"), Some("a"))).turn();
    assert!(came.did("acquire"), "{came:?}");
    assert!(came.did(r#"failover {"member":"a"}"#), "remembered until it is a primary: {came:?}");
    assert!(came.task.as_ref().is_some_and(|task| task.kind() == Kind::Promote), "{came:?}");
    let tagged = with(Scene::leaderless(), asks(Some("b"), Some("a")))
        .set(|script| script.settings.nofailover = true)
        .turn();
    assert!(!tagged.did("acquire"), "{tagged:?}");
    let other = with(Scene::leaderless(), asks(Some("b"), Some("c"))).turn();
    assert!(!other.did("acquire") && other.fired("HA-075"), "{other:?}");
    let nobody = with(Scene::leaderless(), asks(Some("b"), None)).turn();
    assert!(!nobody.did("acquire") && nobody.fired("HA-075"), "{nobody:?}");
    let waits = with(primary(Scene::leaderless()), asks(None, Some("c"))).turn();
    assert!(!waits.did("acquire"), "a primary leaves it to the candidate: {waits:?}");
    let gone = with(primary(Scene::leaderless()), asks(None, Some("x"))).turn();
    assert!(gone.did("failover {}") && gone.did("acquire"), "who is not there: {gone:?}");
}

/// Proves HA-061.
#[test]
fn an_unfinished_promotion_goes_on_in_pause() {
    let scene = || {
        paused(Scene::leader()).set(|script| {
            script.pg.server = super::stage::standby(1000);
            script.pg.is_primary = false;
            script.pg.role = Role::Replica;
            script.view.failover = Some(asks(None, Some("a")));
        })
    };
    let came = scene().turn();
    assert!(!came.did("release") && came.fired("HA-061"), "{came:?}");
    assert!(came.task.is_some_and(|task| task.kind() == Kind::Promote));
}

/// Proves HA-134: another upstream by a reload, the role of a parallel primary kept.
#[test]
fn following_in_pause() {
    let came = paused(Scene::replica()).set(|script| script.follow = FollowChange::Reload).turn();
    assert!(came.did("follow b") && came.task.is_none(), "{came:?}");
    let beside =
        paused(primary(Scene::replica())).set(|script| script.pg.role = Role::Replica).turn();
    assert!(beside.did("role primary") && beside.fired("HA-134"), "{beside:?}");
}

/// Proves HA-136: the member key says so.
#[test]
fn the_member_key_says_pause() {
    let said = |came: &Came| came.done.iter().any(|done| done.contains(r#""pause":true"#));
    assert!(said(&paused(Scene::leader()).turn()) && said(&paused(Scene::replica()).turn()));
    assert!(!said(&Scene::leader().turn()));
}

/// Proves HA-137: what a member that is gone left behind stays in pause.
#[test]
fn slots_in_pause() {
    let scene = |pause: bool| {
        Scene::leader()
            .set(|script| {
                script.settings.pause = pause;
                script.settings.use_slots = true;
                script.pg.slots = vec![crate::ha::ports::Slot {
                    name: "gone".into(),
                    ..crate::ha::ports::Slot::default()
                }];
            })
            .remember(|memory| {
                memory.slots_seen.insert("gone".into(), Millis(1_000_000));
            })
            .later(0)
    };
    let dropped = |scene: Scene| {
        let scene = scene.later(1_800_001);
        scene.hold_lease();
        let mut scene = scene;
        scene.turn().done.iter().any(|done| done.contains("drop gone"))
    };
    assert!(dropped(scene(false)) && !dropped(scene(true)));
}

/// Proves HA-162 in pause: no task is cancelled for the lock's sake.
#[test]
fn tasks_go_on_in_pause() {
    let came = lost(paused(Scene::leader()))
        .remember(|memory| {
            memory.task = Some(Running { name: "promote", kind: Kind::Promote, since: Millis(0) });
        })
        .turn();
    assert!(!came.did("cancel") && came.line == "PAUSE: promote in progress", "{came:?}");
}

/// Proves HA-138 and HA-005: the first turn after a pause confirms the lock, which arms the guard,
/// and asks again what was known before.
#[test]
fn the_first_turn_after_a_pause() {
    let mut scene = paused(Scene::leader());
    scene.turn();
    let mut scene = scene
        .set(|script| script.settings.pause = false)
        .remember(|memory| memory.rewind = Rewind::NotNeeded);
    let came = scene.turn();
    assert!(came.fired("HA-138") && came.did("renew") && came.did("fence"), "{came:?}");
    assert!(came.task.is_none() && !scene.memory.was_paused, "{came:?}");
    let mut replica = paused(Scene::replica()).set(|script| script.follow = FollowChange::Reload);
    replica.turn();
    let replica = replica.remember(|memory| memory.rewind = Rewind::Failed);
    let mut replica = replica.set(|script| script.settings.pause = false);
    replica.turn();
    assert_ne!(replica.memory.rewind, Rewind::Failed, "asked anew");
}

/// Proves HA-138 and HA-065: what a pause left alone is put in order by the resume.
#[test]
fn a_resume_recovers() {
    let resumed = |mut scene: Scene| {
        scene.turn();
        scene.set(|script| script.settings.pause = false)
    };
    let came = resumed(paused(primary(Scene::replica()))).turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::LostLock))), "{came:?}");
    let mut stopped = resumed(paused(Scene::replica()).set(|script| {
        down(&mut script.pg);
        script.pg.state = State::Stopped;
        script.control = Some(control(ControlState::ShutDownInRecovery));
    }));
    assert!(matches!(stopped.turn().task, Some(Task::Follow { .. })));
    let mut lost_lock = resumed(lost(paused(Scene::leader())));
    let came = lost_lock.turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::LostLock))), "{came:?}");
    let mut foreign = resumed(
        paused(Scene::replica())
            .set(|script| script.pg.system_id = SystemId::parse("1234567890123")),
    );
    assert!(foreign.turn().exit, "HA-036 holds again");
}
