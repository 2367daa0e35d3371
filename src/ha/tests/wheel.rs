//! The wheel around a turn, and the time a turn has. (sections 2, 3 and 13 of docs/spec/ha-loop.md)

use super::stage::{Scene, Script, replica_at, running, standby, unreachable};
use crate::ha::ports::{PeerAnswer, Server};
use crate::ha::run::{self, Event, Events, Exit};
use crate::ha::turn::Decided;
use futures::FutureExt;
use hathi_dcs::{Lsn, Millis, Role, SystemId, Timeline};

/// Proves HA-304 (the time of a turn is up): the steps of a leader's turn add up; what they leave of the
/// lease is for the members' promise or the demotion, and nothing more is begun.
#[test]
fn the_time_of_a_turn_is_up() {
    // The lease is believed for 28.5 s; the demotion needs the last 5, asking the members 5 more.
    let slow = |what: &'static str, ms: u64| {
        Scene::leader().set(move |script| {
            script.takes.insert(what, ms);
            script.settings.failsafe_mode = true;
            script.view.history = hathi_dcs::History::parse(r#"[[1,1,"r","t","b"]]"#);
        })
    };
    for (what, ms, goes_on) in [
        ("status", 18_400, true),
        ("status", 18_500, false),
        ("status", 60_000, false),
        ("failsafe", 18_400, true),
        ("failsafe", 18_500, false),
    ] {
        let mut scene = slow(what, ms);
        let came = scene.turn();
        let up = came.line == "I am (a), the leader, and the store is slow";
        assert_eq!(!up, goes_on, "{what} takes {ms}: {came:?}");
        assert_eq!(came.did("watchdog on"), goes_on, "{what} takes {ms}: {came:?}");
        assert_eq!(came.did("history"), goes_on, "{what} takes {ms}: {came:?}");
        assert_eq!(came.did("member"), goes_on, "not even its record: {came:?}");
        if !goes_on {
            assert!(came.fired("HA-304") && came.again_at.is_some(), "{came:?}");
            assert_eq!(came.did("failsafe"), what == "failsafe", "{came:?}");
        }
        assert!(came.task.is_none(), "the next turn decides: {came:?}");
    }
    let came = slow("status", 18_500).set(|script| script.settings.failsafe_mode = false).turn();
    assert!(!came.line.contains("slow"), "without the mode there are 5 s more: {came:?}");
    // It is about the lease: who has none has nothing to lose.
    let mut replica = Scene::replica().set(|script| script.takes = [("compare", 60_000)].into());
    assert!(replica.turn().did("member"));
}

/// Proves HA-022: the cadence is a turn's begin plus loop_wait; earlier if a rule or the lease asks for
/// it, at once if the turn took longer, and never in a tight loop.
#[test]
fn when_the_next_turn_comes() {
    let now = Millis(1_000_000);
    let after = |scene: &Scene, started: u64, again: Option<u64>| {
        let mut decided = Decided::line("x");
        decided.again_at = again.map(Millis);
        run::next_turn(&scene.ports(), scene.lease(), &decided, Millis(started)).since(now)
    };
    let replica = Scene::replica();
    assert_eq!(after(&replica, 1_000_000, None), 10_000);
    assert_eq!(after(&replica, 996_000, None), 6_000, "counted from where it began");
    assert_eq!(after(&replica, 980_000, None), 20, "it took longer than that");
    assert_eq!(after(&replica, 1_000_000, Some(1_000_500)), 500, "a rule asks for it");
    assert_eq!(after(&replica, 1_000_000, Some(1_060_000)), 10_000, "not later than loop_wait");
    // The lease ends in 28.5 s; nobody may sleep over the begin of the demotion.
    let leader = Scene::leader().set(|script| script.settings.timing.loop_wait = 30);
    assert_eq!(after(&leader, 1_000_000, None), 23_500);
}

/// Proves HA-020: whatever a port says, the loop goes round and demotes nobody; what an operator must
/// mend ends it, and PostgreSQL is stopped and the lock given up on the way out.
#[test]
fn what_ends_the_loop() {
    let bad_day = |script: &mut Script| {
        script.pg.server = Server::Silent("internal error".into());
        script.names = Err(crate::ha::ports::PgError::Cancelled);
        script.sync = Err(unreachable());
    };
    let mut scene = Scene::leader().set(bad_day);
    for _ in 0..3 {
        let came = scene.turn();
        assert!(came.task.is_none() && !came.exit && !came.did("stop"), "{came:?}");
    }
    let foreign = Scene::leader().set(|script| {
        script.pg.system_id = SystemId::parse("7711467298858918991");
    });
    let (events, queue) = Events::new();
    let ports = foreign.ports();
    let exit = run::run(ports, foreign.shared_lease(), events, queue).now_or_never();
    assert!(matches!(exit, Some(Exit::Fatal(_))), "{exit:?}");
    let done = foreign.done();
    let at = |what: &str| done.iter().position(|done| done.starts_with(what));
    assert!(at("stop Fast") < at("release") && at("stop Fast").is_some(), "{done:?}");
    // SIGTERM ends it the same way. (HA-140)
    let leader = Scene::leader();
    let (events, queue) = Events::new();
    events.post(Event::Shutdown);
    let exit = run::run(leader.ports(), leader.shared_lease(), events, queue).now_or_never();
    assert_eq!(exit, Some(Exit::Stopped));
}

/// Proves HA-102: what the member record says between the lock and the end of recovery.
#[test]
fn the_record_of_a_promotion() {
    let promoting = |role: Role, server: Server| {
        let mut scene = Scene::leader().set(|script| {
            script.pg.role = role;
            script.pg.server = server;
            script.pg.is_primary = role == Role::Primary;
        });
        scene.memory.after_promotion = crate::ha::memory::AfterPromotion::CheckpointDue;
        scene.memory.task = Some(crate::ha::memory::Running {
            name: "promote",
            kind: crate::ha::task::Kind::Promote,
            since: Millis(999_000),
        });
        let came = scene.turn();
        let record = came.done.into_iter().find(|done| done.starts_with("member"));
        record.unwrap_or_default()
    };
    let before = promoting(Role::Promoted, standby(1000));
    assert!(before.contains(r#""role":"promoted""#), "{before}");
    assert!(!before.contains("checkpoint_after_promote"), "it is no primary yet: {before}");
    let after = promoting(Role::Primary, Server::Primary { timeline: Timeline(2), lsn: Lsn(1) });
    assert!(after.contains(r#""role":"primary""#), "{after}");
    assert!(after.contains(r#""checkpoint_after_promote":false"#), "{after}");
}

/// Proves HA-311: the first answer that decides ends the race; nobody waits for one that does not come.
#[test]
fn the_race_ends_with_the_first_answer_that_decides() {
    let silent = |script: &mut Script| {
        script.silent.push("c");
        script.view.members.push(running("d", "replica"));
    };
    let mut primary = Scene::leaderless().set(silent).set(|script| {
        script.probes.insert("b", PeerAnswer { in_recovery: false, ..replica_at(1000) });
    });
    let came = primary.turn_at_once().expect("nobody waits for c");
    assert!(came.fired("HA-095") && !came.did("acquire"), "{came:?}");
    let mut ahead = Scene::leaderless().set(silent);
    ahead = ahead.set(|script| {
        script.probes.insert("b", replica_at(2000));
    });
    assert!(!ahead.turn_at_once().expect("nor here").did("acquire"));
    let mut open = Scene::leaderless().set(silent);
    assert!(open.turn_at_once().is_none(), "c may still say that it leads");
    // Refused by TCP is an answer: down at once.
    let mut gone = Scene::leaderless().set(|script| script.probes.clear());
    assert!(gone.turn_at_once().expect("at once").did("acquire"));
}

/// Proves HA-003: nothing of the last look at PostgreSQL is left in the next turn.
#[test]
fn every_turn_looks_anew() {
    let mut scene = Scene::replica();
    assert!(scene.turn().line.contains("a secondary"));
    let mut scene = scene.set(|script| super::stage::down(&mut script.pg));
    assert!(scene.turn().fired("HA-041"), "nobody told it that the server died");
    let mut scene = scene.set(|script| {
        script.pg = Scene::leader().facts().1;
    });
    assert!(scene.turn().fired("HA-065"), "and now it is a primary");
}
