//! What a turn waited for may have changed the world: nothing that cannot be taken back is done on an old
//! look. (HA-325); and a leader key that nobody wants any more is given up. (HA-326)

use super::stage::{Came, Scene, Script, control, down, standby};
use crate::ha::memory::Rewind;
use crate::ha::operator::Wish;
use crate::ha::ports::{ControlState, DataDir, LocalEnd, Server, SourceHistory, TimelineEnd};
use crate::ha::restart::Conditions;
use crate::ha::task::{Kind, Renewal, Task};
use hathi_dcs::{DcsError, Failover, Leader, Lsn, MemberName, Role, Stored, Timeline, Version};

/// A look is old after 5 s: a sixth of the ttl of 30 s.
const OLD: u64 = 5_100;
const YOUNG: u64 = 4_900;

fn kind(came: &Came) -> Option<Kind> {
    came.task.as_ref().map(Task::kind)
}

/// a holds the lock and is a standby: it promotes.
fn promotes() -> Scene {
    Scene::leader().set(|script| {
        script.pg.server = standby(1000);
        script.pg.role = Role::Replica;
        script.pg.is_primary = false;
    })
}

/// a's PostgreSQL is down and diverged from b's.
fn rewinds() -> Scene {
    Scene::replica()
        .set(|script| {
            down(&mut script.pg);
            script.control = Some(control(ControlState::ShutDown));
            script.local_end = Some(LocalEnd {
                timeline: Timeline(1),
                lsn: Lsn(1000),
                was_primary: true,
                checkpoint_end: Some(Lsn(1000)),
            });
            script.view.members[1].data.timeline = Some(Timeline(2));
            script.source = Ok(SourceHistory {
                in_recovery: false,
                timeline: Timeline(2),
                ends: vec![TimelineEnd {
                    timeline: Timeline(1),
                    switch_lsn: Lsn(500),
                    reason: String::new(),
                    at: None,
                }],
                checkpoint_timeline: Some(Timeline(2)),
                oldest: None,
            });
        })
        .remember(|memory| memory.rewind = Rewind::Needed)
}

/// The same, and only a new copy helps.
fn reinitializes() -> Scene {
    rewinds().set(|script| {
        script.pg.can_rewind = false;
        script.settings.remove_data_directory_on_diverged_timelines = true;
    })
}

fn asked_to_switch() -> Scene {
    Scene::leader().set(|script| {
        let value = Failover {
            leader: Some("a".into()),
            candidate: Some(MemberName::from("b")),
            scheduled_at: None,
        };
        script.view.failover = Some(Stored { value, version: Version(7) });
        script.settings.failsafe_mode = true;
    })
}

fn empty() -> Scene {
    Scene::replica().set(|script| {
        down(&mut script.pg);
        script.pg.data_dir = DataDir::Empty;
        script.pg.system_id = None;
    })
}

fn led_by_c(script: &mut Script) {
    script.view.leader = Some(Leader { name: "c".into(), version: Version(9) });
}

fn is_up(script: &mut Script) {
    script.pg.alive = true;
    script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
    script.pg.is_primary = true;
}

fn withdrawn(script: &mut Script) {
    script.view.failover = None;
}

fn is_silent(script: &mut Script) {
    script.pg.server = Server::Silent("frozen".into());
}

fn has_data(script: &mut Script) {
    script.pg.data_dir = DataDir::Present;
}

/// Proves HA-325: each of these steps waits for something before it; while that is young it is done at once, when
/// it was long the world is looked at again, and a world that changed meanwhile is left to the next turn.
#[test]
fn what_cannot_be_taken_back_is_done_on_a_young_look() {
    type Change = fn(&mut Script);
    type Row = (&'static str, fn() -> Scene, Kind, &'static str, Change);
    let table: Vec<Row> = vec![
        ("a promotion", promotes, Kind::Promote, "watchdog on", is_silent),
        ("the leadership lost", promotes, Kind::Promote, "watchdog on", led_by_c),
        ("a start as a primary", Scene::crashed_leader, Kind::StartAsPrimary, "renew", is_up),
        ("a rewind", rewinds, Kind::Rewind, "asked", led_by_c),
        ("a rewind of what is up again", rewinds, Kind::Rewind, "asked", is_up),
        ("a switchover that was withdrawn", asked_to_switch, Kind::Demote, "failsafe", withdrawn),
        ("a copy into what is not empty", empty, Kind::Clone, "load", has_data),
    ];
    for (what, scene, wanted, slow, change) in table {
        let mut scene_ = scene().takes(slow, YOUNG);
        scene_.looks();
        assert_eq!(kind(&scene_.turn()), Some(wanted), "{what}: young");
        let (_, young) = scene_.looks();

        let mut scene_ = scene().takes(slow, OLD);
        scene_.looks();
        let came = scene_.turn();
        assert_eq!(kind(&came), Some(wanted), "{what}: old, and nothing changed: {came:?}");
        assert_eq!(scene_.looks().1, young + 1, "{what}: looked at once more");

        let mut scene_ = scene().set(|script| {
            script.takes.insert(slow, OLD);
            script.meanwhile.insert(slow, change);
        });
        let came = scene_.turn();
        assert_ne!(kind(&came), Some(wanted), "{what}: old, and the world changed: {came:?}");
        if slow != "load" {
            assert!(
                came.fired("HA-325") && came.again_at == Some(scene_.now()),
                "{what}: {came:?}"
            );
        }
    }
}

/// Proves HA-325 (the removal of data).
#[test]
fn data_is_removed_on_a_young_look() {
    let slow = || reinitializes().takes("asked", OLD);
    let check = |scene: Scene| scene.remember(|memory| memory.rewind = Rewind::Check);
    let came = check(slow()).turn();
    assert!(
        matches!(came.task, Some(Task::Reinitialize { why: Renewal::Diverged, .. })),
        "{came:?}"
    );
    let came = check(slow()).meanwhile("asked", led_by_c).turn();
    assert!(came.task.is_none() && came.fired("HA-325"), "{came:?}");
}

/// Proves HA-325 (the race): the key is not asked for by what PostgreSQL was before a slow store answered, and a
/// store that cannot be read again gives nobody a reason to act.
#[test]
fn the_key_is_asked_for_on_a_young_look() {
    let slow = |change: fn(&mut Script)| {
        Scene::leaderless().set(move |script| {
            script.takes.insert("load", OLD);
            script.meanwhile.insert("load", change);
        })
    };
    assert!(slow(|_| ()).turn().did("acquire"));
    let came = slow(is_silent).turn();
    assert!(!came.did("acquire") && came.fired("HA-085"), "{came:?}");

    // In pause: whoever was the primary asks for it again, unless it is none any more.
    let paused = |change: fn(&mut Script)| {
        let mut scene = Scene::leaderless().set(is_up).set(move |script| {
            script.settings.pause = true;
            let value = Failover { candidate: Some("gone".into()), ..Failover::default() };
            script.view.failover = Some(Stored { value, version: Version(7) });
            script.takes.insert("failover", OLD);
            script.meanwhile.insert("failover", change);
        });
        scene.turn()
    };
    assert!(paused(|_| ()).did("acquire"));
    let came = paused(is_silent);
    assert!(!came.did("acquire") && came.fired("HA-325"), "{came:?}");
    let came = paused(|script| script.load = Err(super::stage::unreachable()));
    assert!(!came.did("acquire") && came.fired("HA-325"), "{came:?}");
}

/// Proves HA-325: a key of a dead PostgreSQL is given up only while it is dead. (INV-23)
#[test]
fn the_key_is_given_up_on_a_young_look() {
    let slow = |change: fn(&mut Script)| {
        let mut scene = Scene::crashed_leader().set(move |script| {
            script.settings.primary_start_timeout = 0;
            script.dynamic.insert("ttl".into(), 30.into());
            script.takes.insert("config", OLD);
            script.meanwhile.insert("config", change);
        });
        scene.turn()
    };
    assert!(slow(|_| ()).did("release"));
    let came = slow(is_up);
    assert!(!came.did("release") && came.fired("HA-325"), "{came:?}");
}

/// Proves HA-325: an operator's restart of a primary in pause is not done when somebody leads meanwhile.
#[test]
fn a_restart_is_done_on_a_young_look() {
    let wish = Wish::Restart(Conditions::default());
    let slow = |change: fn(&mut Script)| {
        let mut scene = Scene::leaderless().set(move |script| {
            down(&mut script.pg);
            script.settings.pause = true;
            script.control = Some(control(ControlState::ShutDown));
            script.takes.insert("state", OLD);
            script.meanwhile.insert("state", change);
        });
        scene.asked(Some(&wish)).0
    };
    assert!(kind(&slow(|_| ())).is_some_and(|kind| kind == Kind::Restart { primary: true }));
    let came = slow(led_by_c);
    assert!(came.task.is_none() && came.fired("HA-325"), "{came:?}");
}

/// Proves HA-325 and HA-305: a lease that ran out while the turn waited is not brought back by a renewal.
#[test]
fn a_lease_that_ran_out_is_not_renewed() {
    let mut scene = Scene::crashed_leader().later(22_000).set(|script| {
        // Longer than all that is left of the lease.
        script.takes.insert("state", 8_000);
    });
    let came = scene.turn();
    assert!(!came.did("renew") && kind(&came) != Some(Kind::StartAsPrimary), "{came:?}");
}

/// Proves HA-326: a key that comes back after it was given up is given up again, by whatever was held up on
/// its way; not by a primary, and not by whoever asked for it since.
#[test]
fn a_key_that_comes_back_late_is_given_up() {
    let given_up = || {
        let scene = promotes();
        let (ports, by) = (scene.ports(), hathi_dcs::Deadline(scene.now().plus(1_000)));
        futures::executor::block_on(scene.lease().release(&ports, None, by)).unwrap();
        // The release that is to come is heard.
        scene.meanwhile("release", led_by_c)
    };
    let came = given_up().turn();
    assert!(came.fired("HA-326") && came.did("release") && !came.did("renew"), "{came:?}");
    assert!(came.line.ends_with("following a leader (c)"), "{came:?}");
    let came = given_up().set(|script| script.meanwhile.clear()).turn();
    assert!(came.fired("HA-326") && came.task.is_none(), "the store did not hear of it: {came:?}");

    let mut scene = given_up();
    scene.memory.giving_up = true;
    assert!(scene.turn().fired("HA-326"), "also while the demotion runs");

    let mut scene = given_up().set(|script| script.settings.pause = true);
    assert!(scene.turn().fired("HA-326"), "also in pause");

    let came = given_up().set(is_up).turn();
    assert!(!came.did("release"), "a primary may need it: {came:?}");

    // What I asked for may be mine; what was refused is not.
    for (answer, refused) in [
        (Err(super::stage::unreachable()), false),
        (Err(DcsError::NotOwner { holder: Some("c".into()) }), true),
        (Err(DcsError::NotOwner { holder: Some("a".into()) }), false),
        (Ok(()), false),
    ] {
        let scene = given_up().set(|script| script.acquire = answer.clone());
        let (ports, by) = (scene.ports(), hathi_dcs::Deadline(scene.now().plus(1_000)));
        let _ = futures::executor::block_on(scene.lease().acquire(&ports, by));
        assert_eq!(scene.lease().is_disowned(), refused, "{answer:?}");
    }
    // A new life knows of nothing that it gave up.
    let came = Scene::leader().later(40_000).turn();
    assert!(!came.fired("HA-326") && came.did("renew"), "{came:?}");
}
