//! The decisions of one turn, by the sections of docs/spec/ha-loop.md.

use super::stage::{Came, Scene, control, down, member, replica_at, standby, unreachable};
use crate::ha::memory::{Rewind, Running};
use crate::ha::ports::{
    ControlState, DataDir, FollowChange, LocalEnd, PeerAnswer, Server, SourceHistory, TimelineEnd,
};
use crate::ha::task::{Demotion, Kind, Task};
use hathi_dcs::{
    DcsError, Failover, History, Leader, Lsn, MemberName, Millis, Role, State, Stored, Sync,
    SystemId, Timeline, Version,
};
use serde_json::{Map, json};

fn held_by(name: &str) -> DcsError {
    DcsError::NotOwner { holder: Some(name.into()) }
}

fn asks(leader: Option<&str>, candidate: Option<&str>) -> Stored<Failover> {
    let value = Failover {
        leader: leader.map(MemberName::from),
        candidate: candidate.map(MemberName::from),
        scheduled_at: None,
    };
    Stored { value, version: Version(7) }
}

fn starts(came: &Came, kind: Kind) -> bool {
    came.task.as_ref().is_some_and(|task| task.kind() == kind)
}

/// Proves HA-030 (every row), HA-013 (the empty directory).
#[test]
fn an_empty_data_directory() {
    let empty = || {
        Scene::replica().set(|script| {
            down(&mut script.pg);
            script.pg.data_dir = DataDir::Empty;
            script.pg.system_id = None;
            script.pg.role = Role::Uninitialized;
        })
    };
    let new = |scene: Scene| {
        scene.set(|script| {
            script.view.leader = None;
            script.view.initialize = None;
        })
    };
    let came = new(empty()).turn();
    assert!(matches!(came.task, Some(Task::Bootstrap)), "{came:?}");
    assert!(came.did("initialize \"\" Absent"), "created only if absent");

    let came =
        new(empty()).set(|script| script.initialize = Err(DcsError::conflict("initialize"))).turn();
    assert!(came.task.is_none(), "lost the race: {came:?}");
    assert!(new(empty()).set(|script| script.settings.nofailover = true).turn().task.is_none());
    assert!(new(empty()).set(|script| script.settings.may_bootstrap = false).turn().task.is_none());
    let came = new(empty()).set(|script| script.view.initialize = Some(String::new())).turn();
    assert!(came.task.is_none() && came.line.contains("waiting for leader to bootstrap"));

    let came = empty().turn();
    let Some(Task::Clone { source, follow }) = &came.task else { panic!("{came:?}") };
    assert_eq!((source.name.as_str(), follow.name.as_str()), ("b", "b"));
    let offered = member(
        "c",
        r#"{"conn_url":"postgres://c:1/postgres","state":"running","tags":{"clonefrom":true}}"#,
    );
    let came = empty().set(|script| script.view.members[2] = offered).turn();
    let Some(Task::Clone { source, follow }) = &came.task else { panic!("{came:?}") };
    assert_eq!((source.name.as_str(), follow.name.as_str()), ("c", "b"));
}

/// Proves HA-013 (the lock without data), INV-20.
#[test]
fn a_leader_without_data_gives_the_key_up() {
    let came = Scene::leader()
        .set(|script| {
            down(&mut script.pg);
            script.pg.data_dir = DataDir::Empty;
            script.pg.system_id = None;
        })
        .turn();
    assert!(came.did("release") && came.task.is_none(), "{came:?}");
}

/// Proves HA-035, HA-036, HA-039.
#[test]
fn whose_data_it_is() {
    let unreadable = Scene::replica().set(|script| script.pg.system_id = None).turn();
    assert!(unreadable.fired("HA-035") && unreadable.task.is_none());
    let foreign = Scene::replica()
        .set(|script| script.pg.system_id = SystemId::parse("1234567890123"))
        .turn();
    assert!(foreign.fired("HA-036") && foreign.exit, "{foreign:?}");
    assert!(Scene::replica().turn().line.starts_with("no action"));
}

/// Proves HA-038.
#[test]
fn a_cluster_without_identifier() {
    let unknown = |scene: Scene| {
        scene
            .set(|script| {
                script.view.initialize = None;
                script.view.leader = None;
            })
            .remember(|memory| memory.joined = false)
    };
    let came = unknown(Scene::replica()).turn();
    assert!(came.exit && !came.did("initialize"), "a standby refuses: {came:?}");
    let primary = Scene::replica().set(|script| {
        script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1) };
        script.pg.is_primary = true;
    });
    let came = unknown(primary).turn();
    assert!(came.did("initialize \"7711467298858918990\" Absent"), "{came:?}");
}

/// Proves HA-007, HA-008.
#[test]
fn a_leader_puts_back_what_was_wiped() {
    let came = Scene::leader()
        .set(|script| {
            script.view.initialize = None;
            script.dynamic = Map::from_iter([("ttl".to_owned(), json!(30))]);
        })
        .turn();
    assert!(came.did("initialize \"7711467298858918990\" Absent"), "{came:?}");
    assert!(came.did("config"), "{came:?}");
    let healthy = Scene::leader().turn();
    assert!(!healthy.did("initialize") && !healthy.did("config"));
    assert!(!Scene::replica().set(|script| script.view.initialize = None).turn().did("initialize"));
}

/// Proves HA-002, HA-019 (once per version).
#[test]
fn a_changed_configuration_is_applied_once() {
    let mut scene = Scene::replica().set(|script| {
        let value = Map::from_iter([("ttl".to_owned(), json!(40))]);
        script.view.config = Some(Stored { value, version: Version(3) });
    });
    assert!(scene.turn().did("apply config"));
    assert!(!scene.turn().did("apply config"));
    let mut bad = Scene::replica().set(|script| {
        let value = Map::from_iter([("bad".to_owned(), json!(1))]);
        script.view.config = Some(Stored { value, version: Version(3) });
    });
    assert!(bad.turn().fired("CFG-038"));
    assert!(!bad.turn().did("apply config"), "said once");
}

/// Proves HA-041, HA-043.
#[test]
fn a_crashed_primary_starts_in_place() {
    let came = Scene::crashed_leader().turn();
    assert!(came.did("state crashed") && came.did("renew"), "{came:?}");
    assert!(matches!(came.task, Some(Task::StartAsPrimary { .. })), "{came:?}");
    for (why, scene) in [
        ("not the lock any more", Scene::crashed_leader().set(|s| s.renew = Err(held_by("b")))),
        (
            "a standby",
            Scene::crashed_leader().set(|s| {
                s.control = Some(crate::ha::ports::ControlData {
                    has_standby_signal: true,
                    ..control(ControlState::InProduction)
                });
            }),
        ),
        ("was a replica", Scene::crashed_leader().set(|s| s.pg.role = Role::Replica)),
        ("was stopped by us", Scene::crashed_leader().set(|s| s.pg.state = State::Stopped)),
    ] {
        let mut scene = scene;
        let came = scene.turn();
        assert!(!matches!(came.task, Some(Task::StartAsPrimary { .. })), "{why}: {came:?}");
    }
}

/// Proves HA-042, INV-23.
#[test]
fn a_crashed_primary_fails_over_at_once_if_told_so() {
    let impatient = |scene: Scene| scene.set(|script| script.settings.primary_start_timeout = 0);
    let came = impatient(Scene::crashed_leader()).turn();
    assert!(came.fired("HA-042") && came.did("release"), "{came:?}");
    let alone = impatient(Scene::crashed_leader()).set(|script| script.probes.clear()).turn();
    assert!(!alone.did("release"), "nobody can take over: {alone:?}");
}

/// Proves HA-026: whoever gave the key up does not come back before the others had their race, but
/// for no longer than that, and at once behind a new leader.
#[test]
fn the_key_is_left_to_the_others() {
    let gave_up = || {
        let mut scene = Scene::crashed_leader().set(|s| s.settings.primary_start_timeout = 0);
        assert!(scene.turn().did("release"));
        scene.set(|script| script.view.leader = None)
    };
    let mut waits = gave_up();
    let came = waits.turn();
    assert!(came.fired("HA-026") && came.task.is_none(), "{came:?}");
    let came = waits.set(|script| script.now = script.now.plus(2_000)).turn();
    assert_eq!(came.task, Some(Task::SingleUser), "{came:?}");
    let leader = hathi_dcs::Leader { name: "b".into(), version: hathi_dcs::Version(2) };
    let came = gave_up().set(|script| script.view.leader = Some(leader)).turn();
    assert!(came.task.is_some(), "a new leader ends the wait: {came:?}");
}

/// Proves HA-044.
#[test]
fn crash_recovery_without_clients_once() {
    let crashed = || {
        Scene::replica().set(|script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::InProduction));
        })
    };
    let mut scene = crashed();
    assert!(matches!(scene.turn().task, Some(Task::SingleUser)));
    assert!(!matches!(scene.turn().task, Some(Task::SingleUser)), "once per outage");
    let no_use = crashed().set(|script| script.pg.can_rewind = false).turn();
    assert!(!starts(&no_use, Kind::SingleUser), "a leader is there, and no rewind: {no_use:?}");
    let restored = crashed()
        .set(|script| {
            let backup = control(ControlState::InProduction);
            script.control =
                Some(crate::ha::ports::ControlData { has_backup_label: true, ..backup });
        })
        .turn();
    assert!(!starts(&restored, Kind::SingleUser));
}

/// Proves HA-045.
#[test]
fn a_stopped_owner_of_the_lock_starts_as_a_standby_first() {
    let came = Scene::crashed_leader()
        .set(|script| {
            script.pg.state = State::Stopped;
            script.control = Some(control(ControlState::ShutDown));
        })
        .turn();
    let expected = Some(Task::Follow { upstream: None, restart: false });
    assert_eq!(came.task, expected, "{came:?}");
}

/// Proves HA-046, HA-049.
#[test]
fn a_dead_replica_is_started_behind_the_leader() {
    let came = Scene::replica().set(|script| down(&mut script.pg)).turn();
    let Some(Task::Follow { upstream: Some(up), restart: false }) = &came.task else {
        panic!("{came:?}")
    };
    assert_eq!(up.name.as_str(), "b");
    let came = Scene::leaderless().set(|script| down(&mut script.pg)).turn();
    assert_eq!(came.task, Some(Task::Follow { upstream: None, restart: false }), "{came:?}");
}

fn diverged(scene: Scene) -> Scene {
    scene.set(|script| {
        down(&mut script.pg);
        script.pg.state = State::Stopped;
        script.control = Some(control(ControlState::ShutDown));
        script.view.members[1].data.timeline = Some(Timeline(2));
        script.local_end = Some(LocalEnd {
            timeline: Timeline(1),
            lsn: Lsn(500),
            was_primary: true,
            checkpoint_end: None,
        });
        script.source = Ok(SourceHistory {
            in_recovery: false,
            timeline: Timeline(2),
            ends: vec![TimelineEnd {
                timeline: Timeline(1),
                switch_lsn: Lsn(400),
                reason: String::new(),
                at: None,
            }],
            checkpoint_timeline: None,
            oldest: None,
        });
    })
}

/// Proves HA-047, PG-154 (the wait), PG-161, INV-30.
#[test]
fn a_diverged_data_directory_is_rewound_before_it_starts() {
    let came = diverged(Scene::replica()).turn();
    assert!(matches!(came.task, Some(Task::Rewind { stop_first: false, .. })), "{came:?}");
    let early = diverged(Scene::replica())
        .set(|script| script.view.members[1].data.checkpoint_after_promote = Some(false))
        .turn();
    assert!(early.task.is_none() && early.fired("PG-154"), "{early:?}");
    let removed = diverged(Scene::replica())
        .set(|script| {
            script.pg.can_rewind = false;
            script.settings.remove_data_directory_on_diverged_timelines = true;
        })
        .turn();
    assert!(matches!(removed.task, Some(Task::Reinitialize { .. })), "{removed:?}");
    let standby_leader = diverged(Scene::replica())
        .set(|script| {
            if let Ok(source) = &mut script.source {
                source.in_recovery = true;
            }
        })
        .turn();
    assert!(!starts(&standby_leader, Kind::Rewind), "not against a node in recovery");
}

/// Proves HA-054.
#[test]
fn a_start_that_failed_is_judged() {
    let owner = Scene::crashed_leader().remember(|memory| memory.recovering = true).turn();
    assert!(owner.did("release") && owner.did("role demoted"), "{owner:?}");
    let other = Scene::replica()
        .set(|script| down(&mut script.pg))
        .remember(|memory| memory.recovering = true)
        .turn();
    assert!(!other.did("release") && other.task.is_none(), "{other:?}");
}

/// Proves HA-056, HA-057, HA-058, HA-059, HA-060.
#[test]
fn a_server_that_starts() {
    let starting = |scene: Scene| {
        scene.set(|script| {
            script.pg.state = State::Starting;
            script.pg.server = Server::Starting;
            script.pg.state_since = script.now;
        })
    };
    let waits = starting(Scene::leader()).turn();
    assert!(waits.task.is_none() && waits.line.contains("seconds until timeout"), "{waits:?}");
    let standby = starting(Scene::replica()).turn();
    assert!(standby.task.is_none(), "{standby:?}");
    let late = |scene: Scene| scene.set(|script| script.pg.state_since = Millis(0));
    let too_long = late(starting(Scene::leader())).turn();
    assert_eq!(too_long.task, Some(Task::Demote(Demotion::Immediate)), "{too_long:?}");
    let alone = late(starting(Scene::leader())).set(|script| script.probes.clear()).turn();
    assert!(alone.task.is_none(), "nobody to fail over to: {alone:?}");
    let lost = starting(Scene::leader())
        .set(|script| {
            script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
            script.renew = Err(held_by("b"));
        })
        .turn();
    assert_eq!(lost.task, Some(Task::Demote(Demotion::LostLock)), "{lost:?}");
    let asked = starting(Scene::leader())
        .set(|script| script.view.failover = Some(asks(Some("a"), None)))
        .turn();
    assert_eq!(asked.task, Some(Task::Demote(Demotion::Graceful)), "{asked:?}");
}

/// Proves HA-062, HA-066, HA-018.
#[test]
fn a_leader_with_nothing_to_do() {
    let came = Scene::leader().turn();
    assert_eq!(came.line, "no action. I am (a), the leader with the lock");
    assert!(came.task.is_none() && came.did("status {\"optime\":1000}") && came.did("member"));
    let mute =
        Scene::leader().set(|script| script.pg.server = Server::Silent("stuck".into())).turn();
    assert!(mute.task.is_none() && !mute.did("status"), "no position, no status: {mute:?}");
}

/// Proves HA-017.
#[test]
fn a_primary_that_does_not_answer_is_not_demoted() {
    let came =
        Scene::leader().set(|script| script.pg.server = Server::Silent("stuck".into())).turn();
    assert!(came.task.is_none() && came.fired("HA-017"), "{came:?}");
}

/// Proves HA-063, HA-305, INV-31.
#[test]
fn a_lock_that_looks_lost_is_asked_for_once() {
    let elsewhere = |scene: Scene| {
        scene.set(|script| {
            script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
        })
    };
    let lost = elsewhere(Scene::leader()).set(|script| script.renew = Err(held_by("b"))).turn();
    assert_eq!(lost.task, Some(Task::Demote(Demotion::LostLock)), "{lost:?}");
    let silent = elsewhere(Scene::leader()).set(|script| script.renew = Err(unreachable())).turn();
    assert!(silent.task.is_none(), "no answer is no loss: {silent:?}");
    let vanished = Scene::leader().set(|script| script.view.leader = None).turn();
    assert!(vanished.did("renew") && vanished.task.is_none(), "taken back: {vanished:?}");
    let standby = elsewhere(Scene::leader())
        .set(|script| {
            script.renew = Err(held_by("b"));
            script.pg.is_primary = false;
            script.pg.server = standby(1000);
        })
        .turn();
    assert!(standby.task.is_none(), "not promoted: {standby:?}");
}

/// Proves HA-065.
#[test]
fn a_primary_without_the_lock_stops() {
    let came = Scene::replica()
        .set(|script| {
            script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
            script.pg.is_primary = true;
        })
        .turn();
    assert_eq!(came.task, Some(Task::Demote(Demotion::LostLock)), "{came:?}");
}

/// Proves HA-125 (reload, restart, nothing).
#[test]
fn a_replica_follows_the_leader() {
    for (change, done, task) in [
        (FollowChange::Nothing, None, None),
        (FollowChange::Reload, Some("follow b"), None),
        (FollowChange::Restart, None, Some(Kind::Follow)),
    ] {
        let came = Scene::replica().set(|script| script.follow = change).turn();
        assert_eq!(came.done.iter().any(|d| Some(d.as_str()) == done), done.is_some(), "{came:?}");
        assert_eq!(came.task.as_ref().map(Task::kind), task, "{change:?}: {came:?}");
    }
    let chosen = Scene::replica()
        .set(|script| {
            script.follow = FollowChange::Reload;
            script.settings.replicatefrom = Some("c".into());
        })
        .turn();
    assert!(chosen.did("follow c"), "{chosen:?}");
}

/// Proves HA-125 (do better): a standby is looked at again soon, not after `loop_wait`, until it streams
/// from whom it was told to follow; what it shows in the turn of the change is the stream before.
#[test]
fn it_is_looked_at_until_it_streams() {
    for (change, streaming, again) in [
        (FollowChange::Nothing, true, None),
        (FollowChange::Nothing, false, Some(500)),
        (FollowChange::Reload, false, Some(500)),
        (FollowChange::Reload, true, Some(500)),
    ] {
        let mut scene = Scene::replica().set(|script| {
            script.follow = change;
            if let Server::Standby(standby) = &mut script.pg.server {
                standby.streaming = streaming;
            }
        });
        let now = scene.now();
        let came = scene.turn();
        let soon = came.again_at.map(|at| at.since(now));
        assert_eq!(soon, again, "{change:?}, streaming {streaming}: {came:?}");
    }
    // A setting that somebody overrides is not set twice a second.
    let mut scene = Scene::replica().set(|script| script.follow = FollowChange::Reload);
    assert!(scene.turn().again_at.is_some());
    let came = scene.turn();
    assert!(came.did("follow b") && came.again_at.is_none(), "{came:?}");
    let mut scene = scene.set(|script| script.settings.replicatefrom = Some("c".into()));
    let came = scene.turn();
    assert!(came.did("follow c") && came.again_at.is_some(), "another one: {came:?}");
}

/// Proves HA-070.
#[test]
fn an_operators_request_on_the_leader() {
    let asked = |request| Scene::leader().set(|script| script.view.failover = Some(request));
    let graceful = Some(Task::Demote(Demotion::Graceful));
    assert_eq!(asked(asks(Some("a"), Some("b"))).turn().task, graceful);
    assert_eq!(asked(asks(Some("a"), None)).turn().task, graceful);
    assert_eq!(asked(asks(None, Some("c"))).turn().task, graceful);
    for (why, request) in [
        ("another leader is named", asks(Some("c"), Some("b"))),
        ("I am the candidate", asks(None, Some("a"))),
    ] {
        let came = asked(request).turn();
        assert!(came.task.is_none() && came.did("failover {}"), "{why}: {came:?}");
    }
    let nobody = asked(asks(Some("a"), Some("b"))).set(|script| script.probes.clear()).turn();
    assert!(nobody.task.is_none() && nobody.did("failover {}"), "{nobody:?}");
    let lags = asked(asks(Some("a"), Some("b")))
        .set(|script| {
            script.settings.maximum_lag_on_failover = 10;
            script.probes.insert("b", replica_at(900));
        })
        .turn();
    assert!(lags.task.is_none() && lags.did("failover {}"), "{lags:?}");
}

/// Proves HA-074.
#[test]
fn a_scheduled_switchover_waits_for_its_moment() {
    let at = |seconds: i64| {
        let mut request = asks(Some("a"), Some("b"));
        request.value.scheduled_at = chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0)
            .map(|at| at.fixed_offset());
        Scene::leader().set(|script| script.view.failover = Some(request)).turn()
    };
    let early = at(100);
    assert!(early.task.is_none() && !early.did("failover"), "{early:?}");
    assert_eq!(at(-1).task, Some(Task::Demote(Demotion::Graceful)));
    let stale = at(-16);
    assert!(stale.task.is_none() && stale.did("failover {}"), "{stale:?}");
}

/// Proves HA-080, HA-081, HA-100 (step 5), INV-3.
#[test]
fn the_healthiest_takes_the_key_and_promotes() {
    let won = Scene::leaderless().turn();
    assert!(won.did("acquire") && matches!(won.task, Some(Task::Promote)), "{won:?}");
    let fence = won.done.iter().position(|done| done == "fence");
    assert!(fence.is_some(), "the guard knows the lease before the promotion: {won:?}");
    let beaten = Scene::leaderless().set(|script| script.acquire = Err(held_by("c"))).turn();
    assert!(beaten.task.is_none() && beaten.fired("HA-081"), "{beaten:?}");
    let unknown = Scene::leaderless().set(|script| script.acquire = Err(unreachable())).turn();
    assert!(unknown.task.is_none(), "an unknown outcome promotes nobody: {unknown:?}");
    let asked = Scene::leaderless()
        .set(|script| script.view.failover = Some(asks(Some("b"), Some("a"))))
        .turn();
    assert!(asked.did("failover {}"), "the winner empties the request: {asked:?}");
}

/// Proves HA-082, HA-083, HA-085, HA-087, HA-089, HA-091, HA-094, HA-095 (in a turn).
#[test]
fn who_is_not_the_healthiest_leaves_the_key() {
    let ahead = replica_at(2000);
    let alive = PeerAnswer { in_recovery: false, ..replica_at(1) };
    let old_primary = |scene: Scene| {
        scene.set(|script| {
            script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
            script.pg.is_primary = true;
            script.view.history = History::parse("[[1,1,\"\"]]");
        })
    };
    for (why, rule, scene) in [
        (
            "released a moment ago",
            "HA-083",
            Scene::leaderless().remember(|memory| memory.released_at = Some(Millis(999_999))),
        ),
        (
            "does not answer",
            "HA-085",
            Scene::leaderless().set(|script| script.pg.server = Server::Silent("stuck".into())),
        ),
        ("nofailover", "HA-089", Scene::leaderless().set(|s| s.settings.nofailover = true)),
        ("no guard", "HA-091", Scene::leaderless().set(|s| s.broken_fence = Some("gone".into()))),
        (
            "not synchronous",
            "HA-094",
            Scene::leaderless().set(|script| {
                let value =
                    Sync { leader: Some("b".into()), voters: vec!["c".into()], ..Sync::default() };
                script.view.sync = Some(Stored { value, version: Version(1) });
                script.settings.synchronous.mode = crate::ha::settings::SynchronousMode::Priority;
            }),
        ),
        (
            "behind a peer",
            "HA-095",
            Scene::leaderless().set(|s| {
                s.probes.insert("c", ahead);
            }),
        ),
        (
            "a primary lives",
            "HA-095",
            Scene::leaderless().set(|s| {
                s.probes.insert("c", alive);
            }),
        ),
        (
            "lags",
            "HA-095",
            Scene::leaderless().set(|script| script.view.status.optime = Lsn(10_000_000)),
        ),
        ("stale primary", "HA-087", old_primary(Scene::leaderless())),
    ] {
        let mut scene = scene;
        let came = scene.turn();
        assert!(came.fired(rule) && !came.did("acquire"), "{why}: {came:?}");
        assert!(!matches!(came.task, Some(Task::Promote)), "{why}: {came:?}");
    }
    let stale = old_primary(Scene::leaderless()).turn();
    assert_eq!(stale.task, Some(Task::Demote(Demotion::LostLock)), "{stale:?}");
}

/// Proves HA-087 and INV-14: a primary without the lock finds the key free, and asks before it takes it
/// whether somebody else leads. (found by `etcd::whole_primary_frozen_past_its_lease`: an etcd leader
/// that was frozen ends the leases of all when it wakes up, the new leader's among them)
#[test]
fn a_primary_asks_before_it_takes_a_free_key() {
    let primary = || {
        Scene::leaderless().set(|script| {
            script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
            script.pg.is_primary = true;
        })
    };
    assert!(primary().turn().did("acquire"), "nobody else leads");
    let alone = primary().set(|script| script.probes.clear());
    assert!({ alone }.turn().did("acquire"), "nobody answers");
    let answers = |answer: PeerAnswer| {
        primary().set(|script| {
            script.probes.insert("c", answer);
        })
    };
    assert!(
        answers(replica_at(2000)).turn().did("acquire"),
        "what was streamed since it was looked at"
    );
    let leads = PeerAnswer { in_recovery: false, timeline: Timeline(2), ..replica_at(1) };
    let follows = PeerAnswer { timeline: Timeline(2), ..replica_at(1) };
    for (why, rule, answer) in
        [("another leads", "HA-095", leads), ("others follow another", "HA-322", follows)]
    {
        let came = answers(answer).turn();
        assert!(came.fired(rule) && !came.did("acquire"), "{why}: {came:?}");
        assert_eq!(came.task, Some(Task::Demote(Demotion::LostLock)), "{why}: {came:?}");
    }
}

/// Proves HA-075.
#[test]
fn the_race_after_an_operators_request() {
    let asked = |request| Scene::leaderless().set(|script| script.view.failover = Some(request));
    assert!(asked(asks(Some("b"), Some("a"))).turn().did("acquire"), "I am the candidate");
    for request in [asks(Some("b"), Some("a")), asks(None, Some("a")), asks(Some("b"), None)] {
        let leads = PeerAnswer { in_recovery: false, ..replica_at(1) };
        let mut scene = asked(request).set(|script| {
            script.probes.insert("b", leads);
        });
        let alive = scene.turn();
        assert!(!alive.did("acquire") && alive.fired("HA-095"), "the store let go: {alive:?}");
    }
    let other = asked(asks(Some("b"), Some("c"))).turn();
    assert!(!other.did("acquire") && other.fired("HA-075"), "the candidate lives: {other:?}");
    let dead = asked(asks(Some("b"), Some("c"))).set(|script| {
        script.probes.remove("c");
    });
    let mut dead = dead;
    assert!(dead.turn().did("acquire"), "the candidate is gone");
    let stopped = asked(asks(Some("a"), None)).turn();
    assert!(!stopped.did("acquire"), "I was asked to stop, and others can lead: {stopped:?}");
    let last = asked(asks(Some("a"), None)).set(|script| script.probes.clear());
    let mut last = last;
    assert!(last.turn().did("acquire"), "nobody else is left");
}

/// Proves HA-075 (row 4, ours): a candidate that a rule keeps from the key for good takes the request off.
/// Members of Patroni's would wait for it for ever, because it answers. (the simulator, seed 3668)
#[test]
fn a_candidate_that_may_not_lead_takes_the_request_off() {
    let old = || {
        Scene::leaderless().set(|script| {
            script.settings.check_timeline = true;
            script.view.history = History::parse(r#"[[1,100,""],[2,200,""]]"#);
            script.view.failover = Some(asks(None, Some("a")));
        })
    };
    let outside = || {
        Scene::leaderless().set(|script| {
            script.settings.failsafe_mode = true;
            script.view.failsafe = hathi_dcs::Failsafe::parse(r#"{"b":"http://b:8008/patroni"}"#);
            script.view.failover = Some(asks(Some("b"), Some("a")));
        })
    };
    for (why, rule, mut scene) in
        [("behind", "HA-075", old()), ("not in /failsafe", "HA-092", outside())]
    {
        let came = scene.turn();
        assert!(came.fired(rule) && !came.did("acquire"), "{why}: {came:?}");
        assert!(came.did("failover {}"), "{why}: {came:?}");
    }
    let later = || {
        outside().set(|script| {
            let at = chrono::DateTime::from_timestamp_millis(super::stage::WALL + 60_000);
            let request = &mut script.view.failover.as_mut().unwrap().value;
            request.scheduled_at = at.map(|at| at.fixed_offset());
        })
    };
    for (why, mut scene) in [
        ("another's", old().set(|script| script.view.failover = Some(asks(None, Some("c"))))),
        ("not due", later()),
        ("paused", old().set(|script| script.settings.pause = true)),
        ("it waits", old().set(|script| script.pg.server = Server::Silent("frozen".into()))),
    ] {
        let came = scene.turn();
        assert!(!came.did("failover") && !came.did("acquire"), "{why}: {came:?}");
    }
}

/// Proves HA-307.
#[test]
fn a_replica_keeps_its_stream_while_nobody_leads() {
    let mut scene = Scene::leaderless().set(|script| {
        script.probes.insert("c", replica_at(2000));
        script.follow = FollowChange::Reload;
    });
    assert!(!scene.turn().did("follow"));
}

/// Proves HA-150, HA-151, HA-152, HA-153, HA-159 (a standby does nothing), HA-304.
#[test]
fn a_silent_store() {
    let silent = |scene: Scene| {
        scene.set(|script| {
            script.load = Err(unreachable());
            script.renew = Err(unreachable());
        })
    };
    let healthy = silent(Scene::leader()).turn();
    assert!(healthy.task.is_none(), "the lease lives: {healthy:?}");
    // ttl 30: worth 28.5 s, the last sixth of the ttl (5 s) is for stopping.
    let before = silent(Scene::leader().later(23_400)).turn();
    assert!(before.task.is_none(), "{before:?}");
    let due = silent(Scene::leader().later(23_600)).turn();
    assert!(matches!(due.task, Some(Task::Demote(Demotion::Offline { .. }))), "{due:?}");
    let over = silent(Scene::leader().later(40_000)).turn();
    assert!(matches!(over.task, Some(Task::Demote(Demotion::Offline { until: None }))));
    assert!(silent(Scene::replica()).turn().task.is_none());
    assert!(silent(Scene::crashed_leader()).turn().task.is_none());
    let paused = silent(Scene::leader().later(40_000)).set(|s| s.settings.pause = true).turn();
    assert!(paused.task.is_none(), "in pause nothing happens: {paused:?}");
}

/// Proves HA-304 and HA-303: a keeper that stands still does not cost a healthy leader its lease; the
/// turn prolongs it before the demotion would begin.
#[test]
fn the_turn_renews_when_the_keeper_does_not() {
    let mut early = Scene::leader().later(20_000);
    assert!(!early.turn().fired("HA-304"), "the keeper's work");
    let mut late = Scene::leader().later(24_000);
    let came = late.turn();
    assert!(came.task.is_none() && came.fired("HA-304"), "{came:?}");
    assert_eq!(late.lease_left(), Some(28_500));
    let lost = Scene::leader().later(24_000).set(|script| script.renew = Err(held_by("b"))).turn();
    assert!(matches!(lost.task, Some(Task::Demote(Demotion::LostLock))), "{lost:?}");
}

/// Proves HA-080, INV-8 and INV-17: who was found fit by answers of long ago, because it or the store
/// stood still before the key was asked for, gives the key back if somebody led meanwhile. (the simulator,
/// seed 8366)
#[test]
fn who_won_by_old_answers_gives_the_key_back() {
    let with_key = |raced: fn(&mut hathi_dcs::ClusterView)| {
        let mut scene = Scene::leader().set(|script| {
            script.pg.server = standby(1000);
            script.pg.is_primary = false;
            script.pg.role = Role::Replica;
        });
        let mut view = scene.view();
        raced(&mut view);
        scene = scene.remember(|memory| memory.raced = Some(std::sync::Arc::new(view)));
        scene.turn()
    };
    let same = with_key(|_| {});
    assert!(starts(&same, Kind::Promote), "{same:?}");
    let changes: [fn(&mut hathi_dcs::ClusterView); 2] = [
        |view| view.status.optime = Lsn(1),
        |view| view.history = History::parse(r#"[[1,100,"no target","2026-01-01T00:00:00","c"]]"#),
    ];
    for raced in changes {
        let led = with_key(raced);
        assert!(led.task.is_none() && led.did("release"), "{led:?}");
    }
}

/// Proves HA-075 with HA-090: in a switchover nobody waits for a candidate that `/sync` keeps from the
/// race. (the simulator, seed 4668)
#[test]
fn nobody_waits_for_a_candidate_that_may_not_race() {
    let asked = |names: &str| {
        let record = Sync::parse(&format!(r#"{{"leader":"a","quorum":0,"sync_standby":{names}}}"#));
        Scene::leaderless().set(|script| {
            script.settings.synchronous.mode = crate::ha::settings::SynchronousMode::Priority;
            script.view.sync = Some(Stored { value: record, version: Version(3) });
            script.view.failover = Some(asks(Some("a"), Some("c")));
            script.probes.insert("c", replica_at(1000));
        })
    };
    assert!(!asked(r#""c""#).turn().did("acquire"), "c may, and is healthy");
    let came = asked("null").turn();
    assert!(came.did("acquire"), "{came:?}");
}

/// Proves INV-24: a request that could not be taken off the table does not demote the same primary
/// twice. (the simulator, seed 2792)
#[test]
fn a_request_demotes_once() {
    let mut scene = Scene::leader().set(|script| {
        script.view.failover = Some(asks(None, Some("c")));
        script.probes.insert("c", replica_at(1000));
    });
    assert_eq!(scene.turn().task, Some(Task::Demote(Demotion::Graceful)));
    let again = scene.turn();
    assert!(again.task.is_none() && again.did("failover {}"), "{again:?}");
    let mut scene = scene.set(|script| {
        let request = asks(None, Some("c"));
        script.view.failover = Some(Stored { version: Version(8), ..request });
    });
    assert_eq!(scene.turn().task, Some(Task::Demote(Demotion::Graceful)), "another request");
}

/// Proves HA-161, HA-162, HA-009.
#[test]
fn while_a_task_runs() {
    let with = |scene: Scene, kind| {
        scene.remember(|memory| {
            memory.task = Some(Running { name: "promote", kind, since: Millis(0) });
        })
    };
    let kept = with(Scene::leader(), Kind::Promote).turn();
    assert!(kept.task.is_none() && !kept.did("cancel"), "{kept:?}");
    let lost = with(Scene::leader(), Kind::Promote)
        .set(|script| {
            script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
            script.renew = Err(held_by("b"));
        })
        .turn();
    assert!(lost.did("cancel"), "{lost:?}");
    let clone = with(Scene::replica(), Kind::Clone).turn();
    assert!(!clone.did("cancel") && clone.task.is_none(), "{clone:?}");
}

/// Proves HA-120 (when it is written).
#[test]
fn the_leader_writes_the_history_of_its_timeline() {
    let came = Scene::leader()
        .set(|script| {
            script.pg.server = Server::Primary { timeline: Timeline(2), lsn: Lsn(1000) };
        })
        .turn();
    assert!(came.did("history [[1,100,"), "{came:?}");
    assert!(!Scene::leader().turn().did("history"));
}

/// Proves HA-130, HA-131, HA-132.
#[test]
fn in_pause_nothing_is_started_stopped_or_promoted() {
    let paused = |scene: Scene| scene.set(|script| script.settings.pause = true);
    let leader = paused(Scene::leader()).turn();
    assert!(leader.task.is_none() && leader.did("stand down"), "{leader:?}");
    let crashed = paused(Scene::crashed_leader()).turn();
    assert!(crashed.task.is_none() && crashed.did("release"), "{crashed:?}");
    assert!(paused(Scene::leaderless()).turn().task.is_none());
    let lost = paused(Scene::leader())
        .set(|script| {
            script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
            script.renew = Err(held_by("b"));
        })
        .turn();
    assert!(lost.task.is_none(), "goes on as primary: {lost:?}");
    let adopted = paused(Scene::leader()).set(|script| script.view.leader = None);
    let mut adopted = adopted;
    assert!(adopted.turn().task.is_none());
}

/// Proves HA-005.
#[test]
fn after_a_pause_the_rewind_check_begins_anew() {
    let mut scene = Scene::replica().remember(|memory| {
        memory.was_paused = true;
        memory.rewind = Rewind::Failed;
    });
    scene.turn();
    assert_ne!(scene.memory.rewind, Rewind::Failed);
    assert!(!scene.memory.was_paused);
}

/// Proves HA-318.
#[test]
fn the_members_of_the_last_leader_are_remembered() {
    let mut scene = Scene::leaderless();
    let before = scene.memory.old_view.clone();
    scene.turn();
    assert_eq!(scene.memory.old_view, before, "a view without leader replaces nothing");
    let mut led = Scene::replica();
    led.turn();
    assert!(led.memory.old_view.as_ref().is_some_and(|view| view.leader.is_some()));
}
