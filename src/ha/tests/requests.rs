//! Switchover and failover as an operator asks for them: the checks before the request is written,
//! and what is answered. (REST-190 … REST-192, REST-462 … REST-464)

use super::stage::{Scene, Script, WALL, replica_at, running, unreachable};
use crate::ha::manual::{Answer, Request, outcome, request};
use chrono::DateTime;
use hathi_dcs::{Deadline, Failover, Leader, MemberName, Millis, Stored, Version};
use serde_json::{Map, json};

fn asked(switchover: bool, leader: Option<&str>, candidate: Option<&str>, later: bool) -> Request {
    let at = DateTime::from_timestamp_millis(WALL + 60_000).map(|at| at.fixed_offset());
    let failover = Failover {
        leader: leader.map(MemberName::from),
        candidate: candidate.map(MemberName::from),
        scheduled_at: at.filter(|_| later),
    };
    Request { switchover, failover }
}

const BY: Deadline = Deadline(Millis(1_010_000));

fn answered(scene: &Scene, asks: &Request) -> Result<Option<MemberName>, (u16, String)> {
    let said = futures::executor::block_on(request(&scene.ports(), asks, BY));
    said.map_err(|Answer { status, text }| (status, text))
}

fn refused(change: impl FnOnce(&mut Script), asks: &Request) -> (u16, String) {
    answered(&Scene::replica().set(change), asks).expect_err("refused")
}

/// Proves REST-190 (rows 10 to 18), REST-457 (a silent store).
/// Proves REST-462 (a schedule is checked as well), REST-463 (who was refused, and why).
#[test]
fn what_is_checked_before_a_request_is_written() {
    let paused = |script: &mut Script| {
        let value = Map::from_iter([("pause".to_owned(), json!(true))]);
        script.view.config = Some(Stored { value, version: Version(1) });
    };
    let none = |_: &mut Script| {};
    let b_to = |candidate, later| asked(true, Some("b"), candidate, later);
    let specific = "Switchover is possible only to a specific candidate in a paused state";
    for (got, status, text) in [
        (
            refused(paused, &b_to(Some("c"), true)),
            400,
            "Can't schedule switchover in the paused state",
        ),
        (refused(paused, &b_to(None, false)), 400, specific),
        (refused(none, &b_to(Some("b"), false)), 400, "Switchover target and source are the same"),
        (refused(none, &b_to(Some("b"), true)), 400, "Switchover target and source are the same"),
        (
            refused(none, &asked(true, Some("c"), Some("a"), false)),
            412,
            "leader name does not match",
        ),
        (
            refused(none, &asked(true, Some("c"), Some("a"), true)),
            412,
            "leader name does not match",
        ),
        (
            refused(none, &asked(false, Some("c"), Some("a"), false)),
            412,
            "leader name does not match",
        ),
        (refused(none, &b_to(Some("x"), false)), 412, "candidate does not exists"),
        (refused(none, &b_to(Some("x"), true)), 412, "candidate does not exists"),
        (
            refused(
                |script| script.view.members.retain(|m| m.name.as_str() == "b"),
                &b_to(None, false),
            ),
            412,
            "switchover is not possible: cluster does not have members except leader",
        ),
        (
            refused(|script| script.probes.clear(), &asked(false, None, Some("c"), false)),
            412,
            "failover is not possible: no good candidates have been found (c: ",
        ),
    ] {
        assert_eq!(got.0, status, "{}", got.1);
        assert!(got.1.starts_with(text) || text.starts_with(&got.1), "{} is not {text}", got.1);
    }
    let silent = refused(|script| script.load = Err(unreachable()), &b_to(Some("c"), false));
    assert_eq!(silent.0, 503, "{}", silent.1);
}

/// Proves REST-190 (rows 19 and 20), REST-191 (lag is not judged here).
#[test]
fn what_is_written() {
    let scene = Scene::replica().set(|script| script.probes = [("c", replica_at(1))].into());
    let said = answered(&scene, &asked(true, Some("b"), Some("c"), false));
    assert_eq!(said, Ok(Some("b".into())), "the leader of that moment");
    assert_eq!(scene.done(), [r#"failover {"leader":"b","member":"c"}"#]);
    let scene = Scene::replica();
    let said = answered(&scene, &asked(true, Some("b"), None, true));
    assert_eq!(said, Err((202, "Switchover scheduled".into())));
    let at = "2027-01-15T08:01:00+00:00";
    assert_eq!(scene.done(), [format!(r#"failover {{"leader":"b","scheduled_at":"{at}"}}"#)]);
}

/// Proves REST-192 (the answers), REST-362, REST-464 (nothing is waited for when it is there already).
#[test]
fn what_came_of_it() {
    for (leader, candidate, switchover, status, text) in [
        ("c", Some("c"), true, 200, "Successfully switched over to \"c\""),
        ("c", None, false, 200, "Successfully failed over to \"c\""),
        ("c", Some("a"), true, 200, "Switched over to \"c\" instead of \"a\""),
        ("c", Some("a"), false, 200, "Failed over to \"c\" instead of \"a\""),
    ] {
        let scene = Scene::replica().set(|script| {
            script.view.leader = Some(Leader { name: leader.into(), version: Version(2) });
            script.view.members.push(running("d", "replica"));
        });
        let asks = asked(switchover, None, candidate, false);
        let ports = scene.ports();
        let came = outcome(&ports, &asks, Some("b".into()), BY);
        assert_eq!(futures::executor::block_on(came), Answer::new(status, text));
    }
    let (ports, asks) = (Scene::replica().ports(), asked(true, None, None, false));
    let late = outcome(&ports, &asks, None, Deadline(Millis(0)));
    let late = futures::executor::block_on(late);
    assert_eq!(
        late,
        Answer::new(
            503,
            "Switchover status unknown after 0 seconds; operation may still be in progress"
        )
    );
}
