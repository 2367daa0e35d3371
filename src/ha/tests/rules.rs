//! Rules of the loop that are about the order of things, about time, and about what is given up.

use super::stage::{Scene, control, down, member, standby, unreachable};
use crate::ha::memory::{Rewind, Running};
use crate::ha::ports::{ControlState, DataDir, FollowChange, Server, Standby};
use crate::ha::settings::SynchronousMode;
use crate::ha::task::{Demotion, Kind, Outcome, Task};
use hathi_dcs::{DcsError, Expect, Failover, Lsn, Millis, Role, State, Stored, Timeline, Version};

fn busy(scene: Scene) -> Scene {
    scene.remember(|memory| {
        let (name, kind) = ("bootstrap from leader", Kind::Clone);
        memory.task = Some(Running { name, kind, since: Millis(900_000) });
    })
}

/// Proves HA-009, HA-010, HA-012, HA-013, HA-014, HA-015, HA-016: each step ends the turn before the
/// next one looks, in this order.
#[test]
fn the_steps_come_in_their_order() {
    // Everything is wrong at once; one thing after the other is mended.
    let all = |mended: usize| {
        let scene = Scene::replica().set(move |script| {
            if mended < 2 {
                script.pg.server = Server::Starting;
                script.pg.state = State::Starting;
            } else if mended < 5 {
                down(&mut script.pg);
                script.pg.state = State::Stopped;
            }
            if mended < 4 {
                script.pg.data_dir = DataDir::Empty;
            }
            if mended < 5 {
                script.pg.system_id = None;
            }
        });
        let scene = scene.remember(move |memory| memory.recovering = mended < 3);
        if mended < 1 { busy(scene) } else { scene }
    };
    for (mended, line) in [
        (0, "bootstrap from leader in progress"),
        (1, "starting as a secondary in progress"),
        (2, "failed to start postgres"),
        (3, "trying to bootstrap from 'b'"),
        (4, "system ID is invalid"),
        (5, "no action. I am (a), a secondary"),
    ] {
        let came = all(mended).turn();
        assert!(came.line.contains(line), "{mended}: {came:?}");
    }
    let dead = all(5).set(|script| down(&mut script.pg));
    assert!({ dead }.turn().line.contains("starting as a secondary"), "HA-015");
}

/// Proves HA-001 (the last view with a leader is kept for the race), HA-318.
#[test]
fn the_view_of_the_race_is_the_last_one_with_a_leader() {
    let mut scene = Scene::replica();
    scene.turn();
    let scene_members = scene.memory.old_view.clone().expect("a view").members.len();
    assert_eq!(scene_members, 3);
    let mut scene = scene.set(|script| {
        script.view.leader = None;
        script.view.members.truncate(1);
    });
    scene.turn();
    let kept = scene.memory.old_view.clone().expect("a view");
    assert_eq!((kept.leader_name().map(|name| name.as_str()), kept.members.len()), (Some("b"), 3));
}

/// Proves HA-006: a member key that somebody removed is there again after one turn.
#[test]
fn a_vanished_member_key_is_written_again() {
    let mut scene = Scene::replica();
    assert!(scene.turn().did("member"));
    assert!(!scene.turn().did("member"), "nothing changed");
    let mut scene = scene.set(|script| {
        script.view.members.remove(0);
    });
    assert!(scene.turn().did("member"));
}

/// Proves HA-317: a turn that begins something does not wait for the store to take a record; the
/// next one, at once, writes it.
#[test]
fn what_was_decided_does_not_wait_for_the_record() {
    let mut scene = Scene::replica().set(|script| down(&mut script.pg));
    let came = scene.turn();
    assert!(came.task.is_some() && !came.did("member"), "{came:?}");
    assert_eq!(came.again_at, Some(Millis(1_000_000)));
    let mut scene = busy(scene);
    assert!(scene.turn().did("member"));
}

/// Proves HA-028, INV-28: the belief counts from before the request, on a clock of its own, and is a
/// twentieth shorter than the ttl.
#[test]
fn the_belief_counts_from_before_the_request() {
    let scene = Scene::leader().set(|script| script.renew_takes = 800);
    scene.hold_lease();
    assert_eq!(scene.lease_left(), Some(30_000 - 1_500 - 800));
}

/// Proves HA-064: a renewal without an answer is no lost lock, and no licence for what needs one.
#[test]
fn a_renewal_without_an_answer() {
    let silent = |scene: Scene| scene.set(|script| script.renew = Err(unreachable()));
    let came = silent(Scene::crashed_leader()).turn();
    assert!(came.fired("HA-064"), "{came:?}");
    assert!(!matches!(came.task, Some(Task::StartAsPrimary { .. } | Task::Demote(_))), "{came:?}");
    let came = silent(Scene::leader()).turn();
    assert!(came.task.is_none() && came.line.contains("the leader with the lock"), "{came:?}");
}

/// Proves HA-034 (as far as the core goes), HA-011: while the cluster is created nothing else is done.
#[test]
fn nothing_beside_a_bootstrap() {
    let scene = Scene::replica().set(|script| {
        script.view.initialize = Some(String::new());
        script.view.leader = None;
        script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1) };
        script.pg.is_primary = true;
    });
    let mut scene = scene.remember(|memory| {
        memory.bootstrapping = true;
        memory.task =
            Some(Running { name: "bootstrap", kind: Kind::Bootstrap, since: Millis(900_000) });
    });
    let came = scene.turn();
    assert_eq!(came.line, "bootstrap in progress");
    for what in ["acquire", "initialize", "stop", "cancel", "role"] {
        assert!(!came.did(what), "{what}: {came:?}");
    }
}

/// Proves HA-096 and HA-307: while nobody leads a standby keeps its upstream.
#[test]
fn nobody_cuts_the_stream_while_nobody_leads() {
    let came = Scene::leaderless().set(|script| script.settings.nofailover = true).turn();
    assert!(!came.did("follow") && came.task.is_none(), "{came:?}");
}

/// Proves HA-106, PG-047: only a synchronous cluster limits the planned stop of its primary.
#[test]
fn the_limit_of_a_planned_stop() {
    for (mode, seconds, expected) in [
        (SynchronousMode::Off, 30, "stop Fast"),
        (SynchronousMode::Priority, 0, "stop Fast"),
        (SynchronousMode::Priority, 30, "stop Fast for 30000 ms"),
        (SynchronousMode::Quorum, 5, "stop Fast for 5000 ms"),
    ] {
        let mut scene = Scene::leader().set(|script| {
            script.settings.synchronous.mode = mode;
            script.settings.primary_stop_timeout = seconds;
        });
        let (_, done) = scene.perform(Task::Demote(Demotion::Graceful));
        assert_eq!(done.first().map(String::as_str), Some(expected), "{mode:?} {seconds}");
    }
}

/// Proves CFG-420 (in a turn): a standby waits, a primary and an operator's candidate do not.
#[test]
fn the_race_can_be_told_to_wait() {
    let patient = |scene: Scene| scene.set(|script| script.settings.primary_race_backoff = 30);
    let mut scene = patient(Scene::leaderless());
    let came = scene.turn();
    assert!(!came.did("acquire") && came.fired("CFG-420"), "{came:?}");
    assert_eq!(came.again_at, Some(Millis(1_010_000)), "a whole loop_wait first");
    // WAL arrives after it: a second at a time.
    let mut scene = scene.later(10_000).set(|script| script.pg.server = standby(2_000));
    let came = scene.turn();
    assert_eq!(came.again_at, Some(Millis(1_011_000)), "{came:?}");
    let mut scene = scene.later(1_000);
    assert!(scene.turn().did("acquire"), "it came to an end");
    let mut scene = patient(Scene::leaderless());
    scene.turn();
    let mut scene = scene.set(|script| {
        script.view.leader = Some(hathi_dcs::Leader { name: "b".into(), version: Version(3) });
    });
    scene.turn();
    assert_eq!(scene.memory.leaderless, None, "the next time counts anew");
    let value = Failover { candidate: Some("a".into()), ..Failover::default() };
    let asked = patient(Scene::leaderless())
        .set(|script| script.view.failover = Some(Stored { value, version: Version(1) }));
    assert!({ asked }.turn().did("acquire"));
    // A switchover to nobody in particular: the former leader was told to stop.
    let mut value = Failover { leader: Some("b".into()), ..Failover::default() };
    let asked = |value: Failover| {
        patient(Scene::leaderless())
            .set(|script| script.view.failover = Some(Stored { value, version: Version(1) }))
    };
    let came = asked(value.clone()).turn();
    assert!(came.did("acquire") && !came.fired("CFG-420"), "{came:?}");
    let later = super::stage::WALL + 60_000;
    value.scheduled_at = chrono::DateTime::from_timestamp_millis(later).map(|at| at.fixed_offset());
    assert!(asked(value).turn().fired("CFG-420"), "the switchover is not due yet");
    let primary = patient(Scene::leaderless()).set(|script| {
        script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1) };
        script.pg.is_primary = true;
        script.pg.role = Role::Primary;
    });
    assert!({ primary }.turn().did("acquire"));
}

/// Proves HA-313 and CFG-490: no more starts in place than allowed, if somebody can take over.
#[test]
fn a_primary_that_crashes_again_and_again() {
    let crash = |limit, times: u64| {
        Scene::crashed_leader()
            .set(move |script| script.settings.primary_restart_limit = limit)
            .remember(move |memory| {
                memory.crashes = (0..times).map(|n| Millis(900_000 + n)).collect();
            })
    };
    for (limit, times, released) in [(0, 50, false), (2, 1, false), (2, 2, true), (2, 3, true)] {
        let came = crash(limit, times).turn();
        assert_eq!(came.did("release"), released, "{limit} {times}: {came:?}");
        let starts = matches!(came.task, Some(Task::StartAsPrimary { .. }));
        assert_eq!(starts, !released, "{limit} {times}: {came:?}");
    }
    let mut once = crash(2, 0);
    once.turn();
    assert_eq!(once.memory.crashes, [Millis(1_000_000)]);
    let long_ago = crash(2, 0).remember(|memory| memory.crashes = vec![Millis(1); 5]).turn();
    assert!(!long_ago.did("release"), "{long_ago:?}");
    let alone = crash(2, 2).set(|script| script.probes.clear()).turn();
    assert!(!alone.did("release"), "nobody can take over: {alone:?}");
}

/// Proves HA-315: after a rewind it starts behind a leader, or waits for one.
#[test]
fn after_a_rewind_it_waits_for_a_leader() {
    for state in [Rewind::Succeeded, Rewind::Failed] {
        let dead = |scene: Scene| {
            scene
                .set(|script| {
                    down(&mut script.pg);
                    script.pg.state = State::Stopped;
                    script.control = Some(control(ControlState::InArchiveRecovery));
                })
                .remember(move |memory| memory.rewind = state)
        };
        let came = dead(Scene::leaderless()).turn();
        assert!(came.task.is_none() && came.fired("HA-315"), "{state:?}: {came:?}");
        let came = dead(Scene::replica()).turn();
        assert!(matches!(came.task, Some(Task::Follow { upstream: Some(_), .. })), "{came:?}");
    }
}

/// Proves PG-143 (a standby that does not stream asks again) and INV-35 (it does not stay behind).
#[test]
fn a_standby_that_does_not_stream_asks_again() {
    let mut scene = Scene::replica()
        .set(|script| {
            let idle =
                Standby { timeline: Timeline(1), replayed: Some(Lsn(1000)), ..Standby::default() };
            script.pg.server = Server::Standby(idle);
        })
        .remember(|memory| {
            memory.rewind = Rewind::NotNeeded;
            memory.leader_timeline = Timeline(1);
            memory.rewind_asked_at = Millis(999_000);
        });
    assert!(!scene.turn().fired("PG-147"), "asked a moment ago");
    let mut scene = scene.later(5_000);
    assert!(scene.turn().fired("PG-147"));
}

fn created(member_state: &str) -> Scene {
    let wire = format!(r#"{{"api_url":"x","state":"{member_state}"}}"#);
    Scene::replica().set(move |script| {
        down(&mut script.pg);
        script.pg.data_dir = DataDir::Empty;
        script.pg.system_id = None;
        script.pg.role = Role::Uninitialized;
        script.view.leader = None;
        script.view.initialize = Some(String::new());
        script.view.initialize_version = Some(Version(4));
        script.view.members = vec![member("a", "{}"), member("b", &wire)];
    })
}

/// Proves HA-308, HA-033, INV-22 (in a decision): an `initialize` that a dead node left empty is taken
/// over, by its version, after nobody was at it for a ttl and two turns.
#[test]
fn an_abandoned_initialize_is_taken_over() {
    let mut scene = created("stopped");
    let came = scene.turn();
    assert!(came.task.is_none() && !came.did("initialize"), "{came:?}");
    assert_eq!(came.again_at, Some(Millis(1_050_000)));
    let mut scene = scene.later(49_999);
    assert!(scene.turn().task.is_none(), "not yet");
    let mut scene = scene.later(1);
    let came = scene.turn();
    assert_eq!(came.task, Some(Task::Bootstrap), "{came:?}");
    assert!(came.did(&format!("initialize \"\" {:?}", Expect::Version(Version(4)))), "{came:?}");
    for state in ["initializing new cluster", "running", "creating replica", "crashed"] {
        let mut scene = created(state);
        scene.turn();
        let mut scene = scene.later(100_000);
        assert!(scene.turn().task.is_none(), "{state}: somebody is at it, or has data");
        assert_eq!(scene.memory.abandoned, None);
    }
    for forbid in [
        |script: &mut super::stage::Script| script.settings.nofailover = true,
        |script: &mut super::stage::Script| script.settings.may_bootstrap = false,
        |script: &mut super::stage::Script| script.view.initialize_version = None,
    ] {
        let mut scene = created("stopped").set(forbid);
        scene.turn();
        assert!(scene.later(100_000).turn().task.is_none());
    }
    // Somebody else took it over: that one has its time.
    let mut taken = created("stopped");
    taken.turn();
    let mut taken =
        taken.later(60_000).set(|script| script.view.initialize_version = Some(Version(5)));
    let came = taken.turn();
    assert_eq!((came.task, came.again_at), (None, Some(Millis(1_110_000))));
    let mut lost = created("stopped");
    lost.turn();
    let mut lost =
        lost.later(60_000).set(|script| script.initialize = Err(DcsError::conflict("initialize")));
    assert!(lost.turn().task.is_none(), "somebody was faster");
}

/// Proves INV-22 and HA-308: whoever was taken for dead does not finish what is another's now, and
/// does not delete it either.
#[test]
fn a_bootstrap_that_was_taken_over_ends() {
    let mut scene = created("stopped").set(|script| {
        script.initialize = Err(DcsError::conflict("initialize"));
        script.pg.system_id = hathi_dcs::SystemId::parse("7711467298858918990");
    });
    let (outcome, done) = scene.perform(Task::Bootstrap);
    assert!(matches!(outcome, Outcome::Fatal(_)), "{outcome:?}");
    let did = |what: &str| done.iter().any(|done| done.starts_with(what));
    assert!(did("initialize \"7711467298858918990\" Version(Version(4))"), "{done:?}");
    assert!(did("set aside") && !did("delete initialize") && !did("take"), "{done:?}");
}

/// Proves HA-324: a short ttl is in force while every member says that it lives with one.
#[test]
fn a_short_ttl_is_agreed_on() {
    let short = |script: &mut super::stage::Script| {
        script.settings.short_ttl = true;
        for member in &mut script.view.members {
            member.data.short_ttl = true;
        }
    };
    let came = Scene::replica().turn();
    assert!(!came.did("short ttl"), "nobody wants it");
    let mut scene = Scene::replica().set(short);
    let came = scene.turn();
    assert!(came.did("short ttl true") && came.fired("HA-324"), "{came:?}");
    assert!(came.done.iter().any(|done| done.contains(r#""short_ttl":true"#)), "{:?}", came.done);
    assert!(!scene.turn().did("short ttl"), "once");
    // A member of Patroni's joins.
    let mut scene = scene.set(|script| script.view.members[2].data.short_ttl = false);
    let came = scene.turn();
    assert!(came.did("short ttl false"), "{came:?}");
    assert_eq!(scene.facts().0.timing.ttl, 20);
    let mut alone = Scene::replica().set(|script| script.settings.short_ttl = true);
    assert!(!alone.turn().did("short ttl"), "the others do not say so");
}

/// Proves HA-321: who leads says that a fast stop takes longer here than the lease leaves for it, once
/// for each value, and what ttl would do.
#[test]
fn a_slow_stop_is_said() {
    // A ttl of 30 s: 5 s from the demotion to the end, of which the last 2.5 are for an immediate stop.
    let stops = |ms: Option<u64>| Scene::leader().set(move |script| script.pg.fast_stop_ms = ms);
    assert!(!stops(None).turn().fired("HA-321"));
    assert!(!stops(Some(2_500)).turn().fired("HA-321"));
    let mut scene = stops(Some(4_000));
    assert!(scene.turn().fired("HA-321"));
    assert!(!scene.turn().fired("HA-321"), "once");
    let mut scene = scene.set(|script| script.settings.timing.ttl = 48);
    assert!(!scene.turn().fired("HA-321"), "as it was told");
    let mut scene = scene.set(|script| script.pg.fast_stop_ms = Some(9_000));
    assert!(scene.turn().fired("HA-321"), "another value");
}

/// Proves HA-314 (the decision): a dead disk costs a primary its role if somebody can take over, and a
/// standby its place in the race; off unless asked for.
#[test]
fn a_dead_disk() {
    let stalls = |scene: Scene, ms: u64, timeout: u64| {
        scene.set(move |script| {
            script.pg.disk_stalls_ms = ms;
            script.settings.disk_timeout_ms = timeout;
        })
    };
    let mut scene = stalls(Scene::leader(), 15_000, 15_000);
    let came = scene.turn();
    assert_eq!(came.task, Some(Task::Demote(Demotion::LostLock)), "{came:?}");
    assert!(came.fired("HA-314") && !came.did("release"), "the key runs out: {came:?}");
    assert_eq!(scene.lease_left(), None, "nobody prolongs it");
    for (ms, timeout) in [(14_999, 15_000), (60_000, 0), (0, 15_000)] {
        assert!(stalls(Scene::leader(), ms, timeout).turn().task.is_none(), "{ms} {timeout}");
    }
    let alone = stalls(Scene::leader(), 60_000, 15_000).set(|script| script.probes.clear());
    let came = { alone }.turn();
    assert!(came.task.is_none() && came.fired("HA-076"), "there is nobody: {came:?}");
    let paused = stalls(Scene::leader(), 60_000, 15_000).set(|script| script.settings.pause = true);
    assert!({ paused }.turn().task.is_none());
    let came = stalls(Scene::leaderless(), 60_000, 15_000).turn();
    assert!(came.fired("HA-314") && !came.did("acquire"), "{came:?}");
}

/// Proves HA-316: a standby whose log is gone says so, and is copied anew where that is wanted.
#[test]
fn a_standby_whose_log_is_gone() {
    let stuck = |wanted: bool, oldest: u64| {
        Scene::replica()
            .set(move |script| {
                script.pg.server = Server::Standby(Standby { streaming: false, ..at(1_000) });
                script.settings.reinitialize_without_log = wanted;
                script.source.as_mut().unwrap().oldest = Some(Lsn(oldest));
            })
            .remember(|memory| memory.rewind = Rewind::Check)
    };
    let came = stuck(false, 1_001).turn();
    assert!(came.fired("HA-316") && came.task.is_none(), "{came:?}");
    assert!(came.line.contains("reinitialize me"), "{came:?}");
    let came = stuck(true, 1_001).turn();
    assert!(matches!(came.task, Some(Task::Reinitialize { .. })), "{came:?}");
    for mut scene in [
        stuck(true, 1_000),
        stuck(true, 1_001).set(|script| script.settings.pause = true),
        stuck(true, 1_001).set(|script| {
            script.pg.server =
                Server::Standby(Standby { streaming: false, from_archive: true, ..at(1_000) });
        }),
    ] {
        let came = scene.turn();
        assert!(came.task.is_none(), "{came:?}");
    }
}

fn at(lsn: u64) -> Standby {
    let Server::Standby(standby) = standby(lsn) else { unreachable!() };
    standby
}

/// Proves PG-147 (a running one): who streams what is not the continuation of its own log follows nobody
/// from then on, and stays up. (the simulator, seeds 4556, 7544)
#[test]
fn a_stream_of_another_history_ends() {
    let mut scene = Scene::replica()
        .remember(|memory| memory.rewind = crate::ha::memory::Rewind::OtherHistory)
        .set(|script| script.follow = FollowChange::Reload);
    let came = scene.turn();
    assert!(came.fired("PG-147") && came.did("follow nobody"), "{came:?}");
    assert!(came.line.contains("reinitialize me") && came.task.is_none(), "{came:?}");
    let mut scene = scene
        .remember(|memory| memory.rewind = crate::ha::memory::Rewind::OtherHistory)
        .set(|script| script.follow = FollowChange::Nothing);
    assert!(!scene.turn().did("follow nobody"), "it is left alone once it follows nobody");
}

/// Proves HA-125 and PG-211 (`nostream` set while it streams): it stops streaming, by a reload where that
/// is enough, and is left alone once it streams from nobody.
#[test]
fn nostream_ends_a_stream() {
    for (change, does) in [
        (FollowChange::Nothing, None),
        (FollowChange::Reload, Some("follow nobody")),
        (FollowChange::Restart, None),
    ] {
        let came = Scene::replica()
            .set(|script| {
                script.settings.nostream = true;
                script.follow = change;
            })
            .turn();
        let followed = came.done.iter().find(|done| done.starts_with("follow"));
        assert_eq!(followed.map(String::as_str), does, "{change:?}: {came:?}");
        let restarts = matches!(came.task, Some(Task::Follow { upstream: None, restart: true }));
        assert_eq!(restarts, change == FollowChange::Restart, "{came:?}");
    }
}
