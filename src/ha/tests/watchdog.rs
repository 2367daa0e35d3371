//! When the watchdog is armed, kept alive and disabled. (section 17 of docs/spec/ha-loop.md)

use super::stage::*;
use crate::ha::ports::{ControlState, DataDir};
use crate::ha::task::{Demotion, Task};

fn bad() -> Option<String> {
    Some("/dev/watchdog: no such file".into())
}

/// Proves HA-172 (armed before a promotion) and HA-100 step 1 (a replica that won gives the key up).
#[test]
fn armed_before_a_promotion_or_no_promotion() {
    let came = Scene::leaderless().turn();
    assert_eq!(came.task, Some(Task::Promote));
    assert!(came.did("watchdog on"), "{:?}", came.done);
    // It broke between the race and the key.
    let mut scene = Scene::leader().set(|script| {
        script.pg.server = standby(1000);
        script.pg.role = hathi_dcs::Role::Replica;
        script.pg.is_primary = false;
        script.bad_watchdog = bad();
    });
    let came = scene.turn();
    assert!(came.fired("HA-100") && came.did("release") && came.task.is_none(), "{came:?}");
    assert_eq!(came.line, "Not promoting self because watchdog could not be activated");
    assert!(scene.memory.released_at.is_some());
}

/// Proves HA-100 step 1 for a primary, and INV-26: it is armed at every turn of a leader.
#[test]
fn a_primary_without_the_required_one_is_demoted() {
    assert!(Scene::leader().turn().did("watchdog on"));
    let came = Scene::leader().set(|script| script.bad_watchdog = bad()).turn();
    assert_eq!(came.task, Some(Task::Demote(Demotion::Immediate)));
    assert_eq!(came.line, "Demoting self because watchdog could not be activated");
}

/// Proves HA-091.
#[test]
fn without_the_required_one_there_is_no_race() {
    let came = Scene::leaderless().set(|script| script.bad_watchdog = bad()).turn();
    assert!(came.fired("HA-091") && !came.did("acquire") && came.task.is_none(), "{came:?}");
}

/// Proves HA-172: kept alive by a confirmed renewal, with the moment up to which it is confirmed,
/// and by nothing else.
#[test]
fn kept_alive_by_renewals_only() {
    let mut scene = Scene::leader().later(20_000);
    let came = scene.turn();
    assert!(!came.did("watchdog alive"), "a turn alone: {:?}", came.done);
    scene.hold_lease();
    let until = 1_000_000 + 20_000 + 28_500;
    assert!(scene.done().contains(&format!("watchdog alive until {until}")), "{:?}", scene.done());
    let mut scene = Scene::leader().later(29_000).set(|script| script.renew = Err(unreachable()));
    let came = scene.turn();
    assert!(came.did("renew") && !came.did("watchdog alive"), "{:?}", came.done);
}

/// Proves HA-004 and HA-174 (pause), HA-013 (the data directory is gone), HA-044 and HA-054 (down).
#[test]
fn disabled_when_nothing_can_be_written() {
    let came = Scene::leader().set(|script| script.settings.pause = true).turn();
    assert!(came.did("watchdog off") && !came.did("watchdog on"), "{:?}", came.done);
    let came = Scene::leader()
        .set(|script| {
            down(&mut script.pg);
            script.pg.data_dir = DataDir::Empty;
        })
        .turn();
    assert!(came.did("watchdog off"), "{:?}", came.done);
    let came = Scene::replica()
        .set(|script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::InProduction));
        })
        .turn();
    assert!(came.did("watchdog off"), "{:?}", came.done);
    let came = Scene::leader()
        .set(|script| down(&mut script.pg))
        .remember(|memory| memory.recovering = true)
        .turn();
    assert!(came.fired("HA-054") && came.did("watchdog off"), "{came:?}");
}

/// Proves HA-043 with HA-172: a crashed primary that starts in place stays watched.
#[test]
fn a_primary_that_starts_in_place_stays_watched() {
    let came = Scene::crashed_leader().turn();
    assert!(matches!(came.task, Some(Task::StartAsPrimary { .. })), "{came:?}");
    assert!(came.did("watchdog on") && !came.did("watchdog off"), "{:?}", came.done);
    let came = Scene::crashed_leader().set(|script| script.bad_watchdog = bad()).turn();
    assert!(!matches!(came.task, Some(Task::StartAsPrimary { .. })), "{came:?}");
}

/// Proves HA-179 (the store is silent): what a killed agent left armed is disabled by the first look of the
/// next one at a standby, before the store is heard; not under a primary, nor later. (the simulator,
/// seed 18332: the machine of a standby was reset while its new agent waited)
#[test]
fn what_was_left_armed_does_not_wait_for_the_store() {
    let silent = |script: &mut Script| script.load = Err(unreachable());
    let first = |memory: &mut crate::ha::memory::Memory| memory.view = None;
    assert!(Scene::replica().remember(first).set(silent).turn().did("watchdog off"));
    assert!(!Scene::leader().remember(first).set(silent).turn().did("watchdog off"), "a primary");
}
