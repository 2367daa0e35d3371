//! Whose timeline a server has, and what that means when two members began one of the same number. (PG-147)

use super::stage::{Came, Scene, control, down, standby};
use crate::ha::memory::{Memory, Rewind};
use crate::ha::ports::{ControlState, LocalEnd, Server, SourceHistory, Standby, TimelineEnd};
use crate::ha::task::Task;
use hathi_dcs::{History, Lsn, MemberName, Role, Timeline};

const ROW_2: &str = r#"[1,100,"no recovery target specified","t","WHO"]"#;
const ROW_3: &str = r#"[2,800,"no recovery target specified","t","b"]"#;

fn ends(until: u32) -> Vec<TimelineEnd> {
    let end = |timeline: u32, lsn: u64| TimelineEnd {
        timeline: Timeline(timeline),
        switch_lsn: Lsn(lsn),
        reason: "no recovery target specified".into(),
        at: None,
    };
    [end(1, 100), end(2, 800)].into_iter().filter(|end| end.timeline.0 < until).collect()
}

fn at(timeline: u32) -> Standby {
    let Server::Standby(at) = standby(1_000) else { unreachable!() };
    Standby { timeline: Timeline(timeline), ..at }
}

fn of(timeline: u32, whose: &str) -> Option<(Timeline, MemberName)> {
    Some((Timeline(timeline), whose.into()))
}

/// I was down on timeline 2, with it from this member; b leads on timeline `there`, and `/history` says who
/// began timeline 2.
fn back(was_primary: bool, from: Option<&str>, there: u32, began: &str) -> Came {
    let row = ROW_2.replace("WHO", began);
    let rows = if there > 2 { format!("[{row},{ROW_3}]") } else { format!("[{row}]") };
    let from = from.and_then(|name| of(2, name));
    Scene::replica()
        .remember(|memory| {
            memory.timeline_of = from;
            memory.past_noted = true;
        })
        .set(move |script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::ShutDown));
            script.settings.remove_data_directory_on_diverged_timelines = true;
            script.view.history = History::parse(&rows);
            script.local_end = Some(LocalEnd {
                timeline: Timeline(2),
                lsn: Lsn(500),
                was_primary,
                checkpoint_end: Some(Lsn(500)),
            });
            script.source = Ok(SourceHistory {
                in_recovery: false,
                timeline: Timeline(there),
                ends: ends(there),
                checkpoint_timeline: None,
                oldest: None,
            });
        })
        .turn()
}

/// Proves PG-147 (twins): who has a timeline from one primary that another one began as well is copied anew,
/// though the history files agree. The other one is the leader itself on the same timeline, whatever
/// `/history` still says, and whom `/history` names for an earlier one.
#[test]
fn a_timeline_that_another_one_began() {
    let copied = |came: &Came| matches!(came.task, Some(Task::Reinitialize { .. }));
    for (was_primary, from, there, began) in [
        (true, None, 2, "b"),
        (true, None, 2, "a"),
        (false, Some("c"), 2, "b"),
        (false, Some("c"), 2, "c"),
        (false, Some("c"), 3, "b"),
    ] {
        let came = back(was_primary, from, there, began);
        assert!(copied(&came) && came.fired("PG-147"), "{from:?} {there} {began}: {came:?}");
    }
    for (from, there, began) in [
        (Some("b"), 2, "b"),
        (Some("b"), 2, "c"), // b promoted beside c, and its row is not there yet
        (None, 2, "b"),
        (Some("b"), 3, "b"),
        (Some("c"), 3, "gone"),
        (None, 3, "b"),
    ] {
        let came = back(false, from, there, began);
        assert!(!copied(&came), "{from:?} {there} {began}: {came:?}");
    }
}

/// What a turn notes for this server and these members' records.
fn noted(scene: Scene) -> Memory {
    let mut scene = scene;
    scene.turn();
    scene.memory
}

fn streaming(b: (Role, u32), c: (Role, u32)) -> Scene {
    Scene::replica().set(move |script| {
        script.pg.server = Server::Standby(at(2));
        for (member, (role, timeline)) in script.view.members[1..].iter_mut().zip([b, c]) {
            member.data.role = Some(role);
            member.data.timeline = Some(Timeline(timeline));
        }
    })
}

/// Proves PG-147 (whose timeline it is, seen while it streams): that of the one primary on it; while somebody
/// leads only his; once noted it stays.
#[test]
fn whose_timeline_a_standby_streams() {
    let (primary, replica) = (Role::Primary, Role::Replica);
    assert_eq!(noted(streaming((primary, 2), (replica, 1))).timeline_of, of(2, "b"));
    assert_eq!(noted(streaming((primary, 1), (replica, 2))).timeline_of, None, "not there yet");
    // b leads, its record is of before its promotion; c's is of a primary that is gone.
    assert_eq!(noted(streaming((replica, 1), (primary, 2))).timeline_of, None);
    let nobody = streaming((replica, 1), (primary, 2)).set(|script| script.view.leader = None);
    assert_eq!(noted(nobody).timeline_of, of(2, "c"));
    let mut scene = streaming((primary, 2), (replica, 2));
    scene.memory.timeline_of = of(2, "c");
    assert_eq!(noted(scene).timeline_of, of(2, "c"), "who was seen first");
    // Found fit to be followed before it was.
    let mut scene = streaming((replica, 1), (replica, 1));
    scene.memory.next_timeline_of = of(2, "b");
    assert_eq!(noted(scene).timeline_of, of(2, "b"));
    let mut scene = Scene::leader().set(|script| {
        script.pg.server = Server::Primary { timeline: Timeline(2), lsn: Lsn(1000) };
    });
    scene.memory.promoted = true;
    let memory = noted(scene);
    assert_eq!((memory.timeline_of, memory.began), (of(2, "a"), Some(Timeline(2))));
    // Also while the store is silent: what a leader writes to `/history` may never come there.
    let silent = Scene::leader().set(|script| {
        script.pg.server = Server::Primary { timeline: Timeline(2), lsn: Lsn(1000) };
        script.load = Err(super::stage::unreachable());
    });
    assert_eq!(noted(silent).timeline_of, of(2, "a"));
}

/// Proves PG-147 (the next timeline): who says that it can be followed, and is on a later timeline, is the
/// one from whom that will come.
#[test]
fn whose_timeline_comes_next() {
    let mut scene =
        Scene::replica().remember(|memory| memory.rewind = Rewind::Check).set(|script| {
            script.pg.server = Server::Standby(Standby { streaming: false, ..at(1) });
            script.local_end.as_mut().unwrap().lsn = Lsn(100);
            let source = script.source.as_mut().unwrap();
            (source.timeline, source.ends) = (Timeline(2), ends(2));
        });
    scene.turn();
    assert_eq!(scene.memory.next_timeline_of, of(2, "b"));
}

/// Proves PG-147 (what an agent finds when it begins): a standby has its timeline from whom `/history` says,
/// unless somebody leads there; a dead primary has its own, unless it had begun the next one.
#[test]
fn whose_timeline_an_agent_finds() {
    let first = |leads_on: Option<u32>| {
        Scene::replica().set(move |script| {
            script.pg.server = Server::Standby(Standby { streaming: false, ..at(2) });
            script.view.history = History::parse(&format!("[{}]", ROW_2.replace("WHO", "c")));
            match leads_on {
                Some(timeline) => script.view.members[1].data.timeline = Some(Timeline(timeline)),
                None => script.view.leader = None,
            }
        })
    };
    let stopped = |state: ControlState| {
        first(None).set(move |script| {
            down(&mut script.pg);
            script.settings.nofailover = true;
            let control = control(state);
            script.control =
                Some(crate::ha::ports::ControlData { checkpoint_timeline: Timeline(2), ..control });
        })
    };
    let went_on = |scene: Scene| scene.set(|script| script.next_history = true);
    let copied =
        |scene: Scene| scene.set(|script| script.control.as_mut().unwrap().has_backup_label = true);
    for (what, scene, whose) in [
        ("nobody leads", first(None), of(2, "c")),
        ("b leads on an older one", first(Some(1)), of(2, "c")),
        ("b leads on this one", first(Some(2)), None),
        ("b leads on a later one", first(Some(3)), None),
        ("not the first look", first(None).remember(|memory| memory.past_noted = true), None),
        ("a standby, down", stopped(ControlState::ShutDownInRecovery), of(2, "c")),
        ("a standby, killed", stopped(ControlState::InArchiveRecovery), of(2, "c")),
        ("a primary, down", stopped(ControlState::ShutDown), of(2, "a")),
        ("a primary, killed", stopped(ControlState::InProduction), of(2, "a")),
        ("killed after a promotion", went_on(stopped(ControlState::InProduction)), None),
        ("a copy of a primary", copied(stopped(ControlState::InProduction)), None),
    ] {
        assert_eq!(noted(scene).timeline_of, whose, "{what}");
    }
}

/// Proves HA-120 (ours): who was promoted to a timeline of which `/history` says that another one began it
/// writes its own name there; who only finds itself there, perhaps under another name, does not.
#[test]
fn the_row_of_a_twin_is_corrected() {
    let leads = |began: Option<u32>, row: &str| {
        let history = History::parse(&format!("[{}]", ROW_2.replace("WHO", row)));
        let mut scene = Scene::leader().set(move |script| {
            script.pg.server = Server::Primary { timeline: Timeline(2), lsn: Lsn(1000) };
            script.view.history = history;
        });
        scene.memory.began = began.map(Timeline);
        let done = scene.turn().done;
        done.into_iter().find(|done| done.starts_with("history"))
    };
    let written = leads(Some(2), "c").expect("corrected");
    assert!(written.contains(r#""a"]"#) && !written.contains(r#""c""#), "{written}");
    for (began, row) in [(None, "c"), (Some(1), "c"), (Some(2), "a")] {
        assert_eq!(leads(began, row), None, "{began:?} {row}");
    }
}
