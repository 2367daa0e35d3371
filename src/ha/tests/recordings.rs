//! A turn that was written down is run again. (HA-320, INV-32)
//!
//! That every turn of every decision test replays is asserted by the stage itself; here is what a
//! replay says of a recording that does not fit, and what is kept of recordings.

use super::stage::*;
use crate::ha::journal::{Decision, Journal};
use crate::ha::ports::Reason;
use crate::ha::record::{NotReplayed, replay};
use chrono::DateTime;
use hathi_dcs::{DcsError, Role, State};

fn text(scene: &Scene) -> String {
    String::from_utf8(scene.recording.as_ref().unwrap().as_bytes().to_vec()).unwrap()
}

/// Proves HA-320 and INV-32: line, reasons, task and memory come out again, and every question is
/// there to be read.
#[test]
fn a_turn_with_a_task_replays() {
    let mut scene = Scene::leaderless();
    let came = scene.turn();
    assert!(came.line.starts_with("promoted self to leader"), "{came:?}");
    let replayed = replay(text(&scene).as_bytes()).unwrap();
    assert!(replayed.is_identical());
    assert_eq!(replayed.replayed.line, came.line);
    assert_eq!(replayed.replayed.task, came.task);
    let asked = |name: &str| replayed.calls.iter().any(|call| call.name == name);
    assert!(asked("peers.answer") && asked("lease.acquire") && asked("postgres.observe"));
}

/// Proves INV-32: what the decision depends on is in the recording, and nothing else is. Another
/// answer at one place comes to another decision, or asks for what was not recorded.
#[test]
fn another_answer_is_another_decision() {
    let mut scene = Scene::leader();
    let came = scene.turn();
    assert_eq!(came.line, "no action. I am (a), the leader with the lock");
    let recorded = text(&scene);
    let changed = recorded.replacen(r#""Primary":{"timeline":1"#, r#""Primary":{"timeline":7"#, 1);
    assert_ne!(changed, recorded);
    assert!(matches!(replay(changed.as_bytes()), Err(NotReplayed::Diverged(_))));
    // The memory that the turn leaves is compared too.
    let changed =
        recorded.replacen(r#""memory":{"#, r#""memory":{"recovered_in_single_user_mode":true,"#, 1);
    let changed = changed.replacen(r#","recovered_in_single_user_mode":false"#, "", 1);
    let other = replay(changed.as_bytes()).unwrap();
    assert_eq!(other.replayed.line, came.line);
    assert!(!other.is_identical());
}

#[test]
fn what_is_no_recording_is_told() {
    assert!(matches!(replay(b""), Err(NotReplayed::Unreadable(_))));
    assert!(matches!(replay(b"{}"), Err(NotReplayed::Unreadable(_))));
    let newer = br#"{"hathi":{"format":99,"version":"9"}}"#;
    assert_eq!(replay(newer), Err(NotReplayed::OtherFormat { found: 99 }));
    let mut scene = Scene::replica();
    scene.turn();
    let recorded = text(&scene);
    for line in [3, 5, 9] {
        let cut: Vec<&str> =
            recorded.lines().enumerate().filter(|(at, _)| *at != line).map(|(_, l)| l).collect();
        assert!(replay(cut.join("\n").as_bytes()).is_err(), "without line {line}");
    }
}

/// A turn that says more than is kept is not recorded, and decides the same.
#[test]
fn a_recording_is_bounded() {
    let mut scene = Scene::replica().set(|script| {
        for n in 0..4_000 {
            script.view.members.push(running(&format!("member-{n}"), "replica"));
        }
    });
    let came = scene.turn_unrecorded();
    assert!(scene.recording.is_none());
    assert!(came.line.starts_with("no action"), "{}", came.line);
}

/// Errors of the store and of PostgreSQL come back as they were.
#[test]
fn errors_replay() {
    for error in [
        unreachable(),
        DcsError::Refused { store: "s".into(), why: "no".into() },
        DcsError::NotOwner { holder: Some("b".into()) },
    ] {
        Scene::leader().set(|script| script.load = Err(error.clone())).turn();
        Scene::leader().later(40_000).set(|script| script.renew = Err(error)).turn();
    }
}

fn decision(number: u64, line: &str) -> Decision {
    Decision {
        number,
        times: 1,
        since: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
        at: DateTime::from_timestamp(1_800_000_000 + number as i64, 0).unwrap(),
        took_ms: 1,
        woken_by: vec!["time".into()],
        ended: None,
        lock: "mine".into(),
        role: Role::Primary,
        state: State::Running,
        line: line.into(),
        reasons: vec![Reason { rule: "HA-062", why: format!("turn {number}") }],
        started: None,
        exit: None,
        recording: None,
    }
}

/// Proves HA-320: the newest first, equal turns in a row as one, and never more than is kept.
#[test]
fn the_journal_is_bounded_and_newest_first() {
    let journal = Journal::default();
    for number in 1..=5 {
        journal.add(decision(number, "quiet"));
    }
    journal.add(decision(6, "other"));
    journal.add(Decision { started: Some("promote".into()), ..decision(7, "quiet") });
    journal.add(Decision { ended: Some("Promote: done".into()), ..decision(8, "quiet") });
    journal.add(decision(9, "quiet"));
    let last = journal.last(10);
    let seen: Vec<_> = last.iter().map(|kept| (kept.number, kept.times)).collect();
    assert_eq!(seen, [(9, 1), (8, 1), (7, 1), (6, 1), (5, 5)]);
    assert_eq!(journal.last(2).len(), 2);
    assert_eq!(journal.find(3).unwrap().number, 5, "the third turn is in that entry");
    assert!(journal.find(10).is_none());
    for number in 10..1_000 {
        journal.add(decision(number, if number % 2 == 0 { "tick" } else { "tock" }));
    }
    assert_eq!(journal.last(usize::MAX).len(), 200);
}

/// All recordings together are bounded; the newest stay.
#[test]
fn old_recordings_go_first() {
    let mut scene = Scene::replica().set(|script| {
        for n in 0..300 {
            script.view.members.push(running(&format!("member-{n}"), "replica"));
        }
    });
    scene.turn();
    let recording = scene.recording.clone().unwrap();
    let journal = Journal::default();
    for number in 1..=20 {
        let line = format!("line {number}");
        journal.add(Decision { recording: Some(recording.clone()), ..decision(number, &line) });
    }
    let kept: Vec<bool> = journal.last(20).iter().map(|kept| kept.recording.is_some()).collect();
    let room = 512 * 1024 / recording.len();
    assert!((1..20).contains(&room), "{} bytes", recording.len());
    assert_eq!(kept, (0..20).map(|at| at < room).collect::<Vec<_>>());
}

/// Proves HA-320 (its price): an idle agent takes one turn in `loop_wait`; writing it down costs far
/// less than a thousandth of that, and a few kilobytes.
#[test]
fn writing_a_turn_down_is_cheap() {
    let mut scene = Scene::leader();
    let took = |scene: &mut Scene, recorded: bool| {
        scene.set_recorded(recorded);
        let began = std::time::Instant::now();
        for _ in 0..200 {
            scene.turn_unrecorded();
        }
        began.elapsed().as_micros() / 200
    };
    let (with, without) = (took(&mut scene, true), took(&mut scene, false));
    println!("{with} µs a turn with recording, {without} µs without");
    scene.set_recorded(true);
    scene.turn_unrecorded();
    let bytes = scene.recording.as_ref().unwrap().len();
    println!("{bytes} bytes");
    assert!(with < 10_000, "{with} µs a turn, {without} µs without recording");
    assert!(bytes < 16 * 1024, "{bytes} bytes a turn");
}
