//! Failsafe mode, decision by decision. (section 13 of docs/spec/ha-loop.md)

use super::stage::{Came, Scene, replica_at, running, unreachable};
use crate::ha::lease::worth_ms;
use crate::ha::memory::Running;
use crate::ha::ports::{PeerAnswer, Promises, Server};
use crate::ha::promise::{Call, Gate, Vow};
use crate::ha::task::{Demotion, Kind, Task};
use hathi_dcs::{
    DcsError, Failover, Failsafe, Leader, Lsn, MemberName, Millis, Stored, Timeline, Timing,
    Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const MAP: &str =
    r#"{"a":"http://a:8008/patroni","b":"http://b:8008/patroni","c":"http://c:8008/patroni"}"#;

fn accepts() -> Vow {
    Vow::Accepted { lsn: Some(Lsn(900)) }
}

fn call(from: &str) -> Call {
    Call {
        name: from.into(),
        conn_url: format!("postgres://{from}:5432/postgres"),
        api_url: format!("http://{from}:8008/patroni"),
        slots: BTreeMap::new(),
        ttl: Some(30),
    }
}

fn in_failsafe_mode(scene: Scene) -> Scene {
    scene.set(|script| {
        script.settings.failsafe_mode = true;
        script.view.failsafe = Failsafe::parse(MAP);
        script.vows = [("b", accepts()), ("c", accepts())].into();
    })
}

/// A leader in failsafe mode that saw the map, and whose store went away `ms` ago.
fn cut_off(ms: u64) -> Scene {
    let mut scene = in_failsafe_mode(Scene::leader());
    scene.turn();
    scene.later(ms).set(|script| {
        script.load = Err(unreachable());
        script.renew = Err(unreachable());
    })
}

fn goes_on(came: &Came) -> bool {
    came.task.is_none() && came.line.starts_with("continue to run as a leader")
}

fn is_demoted(came: &Came) -> bool {
    matches!(came.task, Some(Task::Demote(Demotion::Offline { .. })))
}

/// Proves HA-154, HA-155, HA-156, INV-16: every entry of the map must accept.
#[test]
fn everybody_must_accept() {
    let mut scene = cut_off(12_000);
    let came = scene.turn();
    assert!(goes_on(&came) && came.fired("HA-154") && came.did("fence"), "{came:?}");
    let call = came.done.iter().find(|done| done.starts_with("call")).unwrap();
    for part in [r#""name":"a""#, "postgres://a:5432/postgres", "http://a:8008/patroni", "slots"] {
        assert!(call.contains(part), "{part}: {call}");
    }
    // The demotion is due 23.5 s after the renewal.
    type Change = fn(&mut super::stage::Script);
    let refusals: Vec<(&str, Change)> = vec![
        ("one does not answer", |script| {
            script.vows.remove("c");
        }),
        ("one refuses", |script| {
            script.vows.insert("b", Vow::Refused("500 Running as a leader".into()));
        }),
    ];
    for (why, refuses) in refusals {
        let came = cut_off(12_000).set(refuses).turn();
        assert!(came.task.is_none() && came.fired("HA-155"), "{why}, the lease lives: {came:?}");
        assert!(!came.did("fence"), "{why}: {came:?}");
        let came = cut_off(24_000).set(refuses).turn();
        assert!(is_demoted(&came) && came.fired("HA-153"), "{why}, it ends: {came:?}");
    }
}

/// Proves HA-154 and HA-304: what the members promised is not used up by a server that does not answer. Of
/// a lease of 3 s, half a second to ask them again and the demotion are left, however long the slots take.
/// (the simulator, seed 6501)
#[test]
fn the_promise_outlives_a_frozen_server() {
    for silent_load in [false, true] {
        let mut scene = in_failsafe_mode(Scene::leader()).set(|script| {
            script.settings.timing = Timing { ttl: 3, loop_wait: 1, retry_timeout: 1 };
        });
        scene.hold_lease();
        scene.turn();
        let mut scene = scene.later(1_600).set(|script| {
            script.settings.use_slots = true;
            script.renew = Err(unreachable());
            script.load = if silent_load { Err(unreachable()) } else { Ok(()) };
            script.takes.insert("slots", 60_000);
        });
        let came = scene.turn();
        assert!(goes_on(&came) && came.fired("PG-261"), "{silent_load}: {came:?}");
        let left = scene.lease_left().expect("licensed");
        assert!(left >= 1_300, "{silent_load}: {left} ms are left: {came:?}");
        // Asked again in time, they agree again.
        let came = scene.later(left - 1_300).set(|script| script.takes.clear()).turn();
        assert!(goes_on(&came), "{silent_load}: {came:?}");
    }
}

/// Proves HA-156: the map itself.
#[test]
fn whom_the_map_names() {
    let with_map = |map: &'static str| {
        let mut scene = in_failsafe_mode(Scene::leader())
            .set(|script| script.view.failsafe = Failsafe::parse(map));
        scene.turn();
        // What was sent without being seen counts too, so it is left out here.
        scene.memory.failsafe.sent.clear();
        scene.later(20_000).set(|script| script.load = Err(unreachable()))
    };
    assert!(goes_on(&with_map(r#"{"a":"http://a:8008/patroni"}"#).turn()), "alone");
    for unusable in ["[]", r#"{"b":"http://b:8008/patroni"}"#] {
        let came = with_map(unusable).turn();
        assert!(!goes_on(&came) && came.fired("HA-156") && !came.did("call"), "{came:?}");
    }
}

/// Proves HA-156: a map that was written and whose write had no answer may be in force.
#[test]
fn whoever_may_be_in_the_map_is_asked() {
    let mut scene = in_failsafe_mode(Scene::leader())
        .set(|script| script.view.members.push(running("d", "replica")));
    let came = scene.turn();
    assert!(came.did("failsafe {") && came.done.iter().any(|done| done.contains("http://d")));
    let mut scene = scene.later(12_000).set(|script| script.load = Err(unreachable()));
    let came = scene.turn();
    assert!(!goes_on(&came), "d was not heard: {came:?}");
    assert!(goes_on(&scene.set(|script| drop(script.vows.insert("d", accepts()))).turn()));
}

/// Proves HA-066 (the third write) and HA-103 (its content).
#[test]
fn the_leader_keeps_the_map() {
    let mut scene = in_failsafe_mode(Scene::leader());
    assert!(!scene.turn().did("failsafe"), "unchanged");
    let mut scene = scene.set(|script| script.view.failsafe = None);
    assert!(scene.turn().did(&format!("failsafe {MAP}")));
    let mut scene = scene.set(|script| {
        script.view.members[2].data.api_url = None;
    });
    let came = scene.turn();
    assert!(
        came.did(r#"failsafe {"a":"http://a:8008/patroni","b":"http://b:8008/patroni"}"#),
        "without an address nobody can be asked: {came:?}"
    );
    let mut off = scene.set(|script| script.settings.failsafe_mode = false);
    assert!(!off.turn().did("failsafe"), "only in failsafe mode");
    let mut replica = in_failsafe_mode(Scene::replica()).set(|script| script.view.failsafe = None);
    assert!(!replica.turn().did("failsafe"), "only the leader");
}

/// Proves HA-154 and INV-28: the belief counts from before the questions were sent, however long the
/// answers take, and a second acceptance prolongs it again.
#[test]
fn the_belief_counts_from_the_question() {
    let mut scene = cut_off(12_000).set(|script| script.vows_take = 4_000);
    assert!(goes_on(&scene.turn()));
    let asked = 1_000_000 + 12_000;
    let until = Millis(asked + worth_ms(Timing::default()));
    assert_eq!(scene.lease().until(Millis(asked + 4_000)), Some(until));
    let mut scene = scene.later(10_000).set(|script| script.vows_take = 0);
    assert!(goes_on(&scene.turn()));
    assert_eq!(scene.lease().until(Millis(asked + 14_000)), Some(until.plus(14_000)));
}

/// Proves HA-304 and HA-306: the members are asked so early that a refusal leaves the time for the
/// demotion, and no answer is waited for longer.
#[test]
fn asking_leaves_time_to_demote() {
    let by = |ms: u64| -> Option<u64> {
        let came = cut_off(ms).turn();
        let call = came.done.iter().find(|done| done.starts_with("call"))?.clone();
        call.rsplit(' ').next()?.parse().ok()
    };
    assert_eq!(by(12_000), Some(1_012_000 + 5_000), "half of retry_timeout");
    assert_eq!(by(20_500), Some(1_000_000 + 23_500), "what is left before the demotion");
    let late = cut_off(23_500).turn();
    assert!(is_demoted(&late) && !late.did("call"), "{late:?}");
    // The store can be read, and the renewals have had no answer.
    let mut scene = in_failsafe_mode(Scene::leader());
    scene.turn();
    let mut scene = scene.set(|script| script.renew = Err(unreachable())).later(18_600);
    scene.renew_fails();
    let came = scene.turn();
    assert!(goes_on(&came) && came.did("call"), "{came:?}");
}

/// Proves INV-16 and HA-305: what the store says meanwhile goes before what the members said.
#[test]
fn a_licence_never_outlives_the_stores_no() {
    let mut scene = cut_off(12_000);
    assert!(goes_on(&scene.turn()));
    let mut scene = scene.later(5_000).set(|script| {
        script.load = Ok(());
        script.view.leader = Some(Leader { name: "b".into(), version: Version(9) });
        script.renew = Err(DcsError::NotOwner { holder: Some("b".into()) });
    });
    let came = scene.turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::LostLock))), "{came:?}");
    assert_eq!(scene.lease().until(Millis(1_017_000)), None);
}

/// Proves HA-154 and HA-305: the store comes back without the key, and it is taken again in place.
#[test]
fn the_key_is_taken_again_without_a_demotion() {
    let mut scene = cut_off(12_000);
    assert!(goes_on(&scene.turn()));
    let mut scene = scene.later(20_000).set(|script| {
        script.load = Ok(());
        script.renew = Ok(());
        script.view.leader = None;
    });
    let came = scene.turn();
    assert!(came.task.is_none() && came.did("renew") && came.fired("HA-305"), "{came:?}");
    assert!(scene.lease().licensed_until(Millis(1_032_000)).is_none(), "the store's word is back");
}

/// Proves HA-153: without failsafe mode, or with the lease ended, nobody is asked.
#[test]
fn who_is_not_asked() {
    let off = cut_off(12_000).set(|script| script.settings.failsafe_mode = false).turn();
    assert!(!off.did("call") && off.task.is_none(), "{off:?}");
    let ended = cut_off(29_000).turn();
    assert!(is_demoted(&ended) && !ended.did("call"), "{ended:?}");
    let paused = cut_off(24_000).set(|script| script.settings.pause = true).turn();
    assert!(!paused.did("call") && paused.task.is_none() && paused.fired("HA-150"), "{paused:?}");
}

fn promised(scene: Scene) -> Scene {
    scene.set(|script| {
        script.gate = Arc::new(Gate::default());
        script.gate.accept(call("b"), 30_000, script.now).unwrap();
    })
}

/// Proves HA-103, INV-15: a fresh promise makes its caller the leader of the local view.
#[test]
fn who_promised_does_not_race() {
    let promised = || {
        promised(in_failsafe_mode(Scene::leaderless())).set(|script| {
            script.probes.clear(); // nobody would forbid the race
        })
    };
    for ms in [0, 30_000, 31_400] {
        let came = promised().later(ms).turn();
        assert!(!came.did("acquire") && came.task.is_none(), "{ms}: {came:?}");
        assert!(came.line.contains("following a leader (b)"), "{ms}: {came:?}");
    }
    let mut scene = promised();
    scene.turn();
    assert!(scene.later(31_500).turn().did("acquire"), "the promise has run out");
    let off = promised().set(|script| script.settings.failsafe_mode = false).turn();
    assert!(!off.did("acquire"), "promised is promised, whatever the mode is now: {off:?}");
}

/// Proves HA-103: the caller may have no member key any more; it is followed by what it said.
#[test]
fn the_caller_is_followed_by_its_own_word() {
    let mut scene = promised(in_failsafe_mode(Scene::leaderless()))
        .set(|script| {
            script.view.members.retain(|member| member.name.as_str() != "b");
            script.follow = crate::ha::ports::FollowChange::Reload;
        })
        .remember(|memory| memory.rewind = crate::ha::memory::Rewind::NotNeeded);
    let came = scene.turn();
    assert!(came.did("follow b"), "{came:?}");
}

/// Proves HA-103 and INV-15: a key that comes late is given back, not used.
#[test]
fn a_late_key_is_not_used() {
    let came = promised(in_failsafe_mode(Scene::replica()))
        .set(|script| script.view.leader = Some(Leader { name: "a".into(), version: Version(1) }))
        .turn();
    assert!(came.did("release") && came.task.is_none() && came.fired("HA-103"), "{came:?}");
}

/// Proves HA-157: from the race on, and while its outcome is not known, nothing is promised; a lost
/// race promises again.
#[test]
fn a_race_refuses_calls() {
    let scene = |acquire: Result<(), DcsError>| {
        in_failsafe_mode(Scene::leaderless()).set(|script| script.acquire = acquire)
    };
    let gate = |scene: &Scene| scene.gate();
    let now = Millis(1_000_000);
    let mut won = scene(Ok(()));
    assert!(won.turn().did("acquire"));
    assert!(gate(&won).accept(call("b"), 30_000, now).is_err(), "it has the key");
    let mut unknown = scene(Err(unreachable()));
    assert!(unknown.turn().did("acquire"));
    assert!(gate(&unknown).accept(call("b"), 30_000, now).is_err(), "it may have the key");
    let mut lost = scene(Err(DcsError::NotOwner { holder: Some("c".into()) }));
    assert!(lost.turn().did("acquire"));
    assert!(gate(&lost).accept(call("b"), 30_000, now).is_ok(), "it lost");
}

/// Proves HA-018: a leader that the store confirms owes nobody a promise; another's word stays.
#[test]
fn a_confirmed_leader_forgets_the_promise() {
    let mut leader = promised(in_failsafe_mode(Scene::leader()));
    leader.turn();
    assert_eq!(leader.gate().promised(Millis(1_000_001)), None);
    let mut replica = promised(in_failsafe_mode(Scene::replica()));
    replica.turn();
    assert!(replica.gate().promised(Millis(1_000_001)).is_some());
}

/// Proves HA-092, INV-13.
#[test]
fn outside_the_map_nobody_races() {
    let with = |map: &'static str| {
        in_failsafe_mode(Scene::leaderless())
            .set(|script| script.view.failsafe = Failsafe::parse(map))
    };
    let came = with(r#"{"b":"http://b:8008/patroni"}"#).turn();
    assert!(came.fired("HA-092") && !came.did("acquire"), "{came:?}");
    assert!(with(MAP).turn().did("acquire"));
    assert!(with("{}").turn().did("acquire"), "an empty map forbids nothing");
    assert!(with("[]").turn().did("acquire"), "nor one that cannot be read");
    let mut scene = with(r#"{"b":"http://b:8008/patroni"}"#);
    scene.turn();
    let mut off = scene.set(|script| script.settings.failsafe_mode = false);
    assert!(off.turn().fired("HA-092"), "who is cut off does not know yet that it is off");
    assert!(off.later(31_600).turn().did("acquire"));
}

/// Proves HA-323: a young agent does not know what its former life promised.
#[test]
fn a_young_agent_waits_for_those_who_do_not_answer() {
    let silent = || {
        in_failsafe_mode(Scene::leaderless()).set(|script| {
            script.probes.remove("b");
        })
    };
    let mut scene = silent();
    let came = scene.turn();
    assert!(came.fired("HA-323") && !came.did("acquire"), "{came:?}");
    assert!(scene.later(31_500).turn().did("acquire"), "whatever it promised has run out");
    assert!(in_failsafe_mode(Scene::leaderless()).turn().did("acquire"), "everybody answers");
    let mut off = silent().set(|script| script.settings.failsafe_mode = false);
    assert!(!off.turn().did("acquire"), "who it was promised to may not know that the mode is off");
    assert!(off.later(31_500).turn().did("acquire"));
}

/// Proves HA-323 with HA-075: nor does an operator's word make the promise of a former life void. (the
/// simulator found two writers, seed 3403)
#[test]
fn a_young_candidate_waits_as_well() {
    let asked = |leader: Option<&str>, candidate: Option<&str>| {
        let value = Failover {
            leader: leader.map(MemberName::from),
            candidate: candidate.map(MemberName::from),
            scheduled_at: None,
        };
        in_failsafe_mode(Scene::leaderless())
            .set(|script| script.view.failover = Some(Stored { value, version: Version(7) }))
    };
    for (leader, candidate) in [(None, Some("a")), (Some("b"), Some("a")), (Some("a"), Some("c"))] {
        let silent = || asked(leader, candidate).set(|script| script.probes.clear());
        let mut scene = silent();
        let came = scene.turn();
        assert!(came.fired("HA-323") && !came.did("acquire"), "{leader:?} {candidate:?}: {came:?}");
        assert!(scene.later(31_500).turn().did("acquire"), "{leader:?} {candidate:?}");
    }
    assert!(asked(None, Some("a")).turn().did("acquire"), "everybody answers");
    let leads = asked(None, Some("a")).set(|script| {
        let primary = PeerAnswer { in_recovery: false, ..replica_at(1) };
        script.probes.insert("b", primary);
    });
    let came = { leads }.turn();
    assert!(!came.did("acquire"), "b goes on as a primary: {came:?}");
}

/// Proves HA-157: a former leader that starts as a standby may promise again; while it may still write it
/// does not. (the simulator, seed 4119)
#[test]
fn a_former_leader_promises_as_soon_as_it_cannot_write() {
    for (kind, promises) in [(Kind::Follow, true), (Kind::Rewind, true), (Kind::Demote, false)] {
        let mut scene = in_failsafe_mode(Scene::replica()).remember(|memory| {
            memory.task = Some(Running { name: "task", kind, since: Millis(0) });
        });
        assert!(scene.gate().claim(Millis(0)));
        scene.turn();
        let answer = scene.gate().accept(call("b"), 30_000, Millis(1_000_000));
        assert_eq!(answer.is_ok(), promises, "{kind:?}: {answer:?}");
    }
}

/// Proves HA-152: a replica keeps its stream, and its slots follow the caller's.
#[test]
fn a_replica_without_store() {
    let mut scene = promised(in_failsafe_mode(Scene::replica())).set(|script| {
        script.settings.use_slots = true;
    });
    scene.turn();
    let mut scene = scene.set(|script| script.load = Err(unreachable()));
    let came = scene.turn();
    assert!(came.task.is_none() && came.fired("HA-152") && !came.did("follow"), "{came:?}");
    assert!(came.did("slots"), "{came:?}");
    let mut off = scene.set(|script| script.settings.failsafe_mode = false);
    assert!(!off.turn().did("slots"), "only in failsafe mode");
}

/// Proves HA-043 with HA-103: a crashed primary does not start as one after it gave a promise.
#[test]
fn a_promise_forbids_a_start_as_primary() {
    let came = promised(in_failsafe_mode(Scene::crashed_leader())).turn();
    assert!(came.task.as_ref().is_none_or(|task| task.kind() != Kind::StartAsPrimary), "{came:?}");
}

/// Proves INV-31: no error of the store is ever read as a lost lock, wherever it comes up; the only
/// thing decided on an unknown outcome is to look again.
#[test]
fn a_hiccup_costs_nothing_while_the_lease_lives() {
    let errors = || {
        vec![
            unreachable(),
            DcsError::conflict("leader"),
            DcsError::Refused { store: "store".into(), why: "auth".into() },
            DcsError::NotRetriable { store: "store".into(), why: "lessor".into() },
        ]
    };
    for failsafe_mode in [false, true] {
        for error in errors() {
            let leader = |ms| {
                let mut scene = Scene::leader().set(|script| {
                    script.settings.failsafe_mode = failsafe_mode;
                    script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
                });
                scene.turn();
                scene.later(ms)
            };
            let read = leader(10_000).set(|script| script.load = Err(error.clone())).turn();
            assert!(read.task.is_none() && !read.did("release"), "cannot be read: {read:?}");
            let gone = leader(10_000)
                .set(|script| {
                    script.view.leader = None;
                    script.renew = Err(error.clone());
                })
                .turn();
            assert!(gone.task.is_none(), "the key is not shown, and not asked for: {gone:?}");
            let other = leader(10_000)
                .set(|script| {
                    script.view.leader = Some(Leader { name: "b".into(), version: Version(2) });
                    script.renew = Err(error.clone());
                })
                .turn();
            assert!(other.task.is_none(), "a stale copy shows another: {other:?}");
            let ended = leader(24_000).set(|script| script.load = Err(error.clone())).turn();
            assert!(is_demoted(&ended), "not a moment longer: {ended:?}");
            assert!(!ended.fired("HA-063"), "and not as a lost lock: {ended:?}");
            let mut race = Scene::leaderless().set(|script| script.acquire = Err(error.clone()));
            let came = race.turn();
            assert!(came.task.is_none() && came.line.contains("no known outcome"), "{came:?}");
        }
    }
}

/// Proves HA-154 with HA-163: a restart that is longer than the lease goes on by the members' word, and
/// ends with the lease where one of them refuses. (the simulator, seed 4144) Proves INV-31 for the end.
#[test]
fn a_restart_goes_on_by_the_members_word() {
    let restarting = |ms: u64, primary: bool| {
        let mut scene = cut_off(ms).set(|script| super::stage::down(&mut script.pg));
        scene.memory.task = Some(Running {
            name: "restart",
            kind: Kind::Restart { primary },
            since: Millis(1_000_000),
        });
        scene
    };
    let mut scene = restarting(20_000, true);
    let came = scene.turn();
    assert!(came.fired("HA-154") && came.did("fence") && !came.did("cancel"), "{came:?}");
    assert!(scene.lease_left().is_some_and(|left| left > 28_000), "{:?}", scene.lease_left());
    let refuses = |script: &mut super::stage::Script| drop(script.vows.remove("c"));
    let mut scene = restarting(20_000, true).set(refuses);
    let came = scene.turn();
    assert!(!came.did("cancel") && came.again_at.is_some(), "there is time left: {came:?}");
    let came = scene.later(4_000).turn();
    assert!(came.fired("HA-163") && came.did("cancel"), "{came:?}");
    // The lease lives, only nobody confirms it: no row is thrown away. (INV-31; seeds 3259, 6583)
    assert!(came.did("stop Fast") && !came.did("stop Immediate"), "{came:?}");
    let came = restarting(29_000, true).set(refuses).turn();
    assert!(came.did("cancel") && came.did("stop Immediate"), "the lease is over: {came:?}");
    assert!(!restarting(20_000, false).turn().did("call"), "a standby owes nobody a question");
}
