//! The leader's pass over `/sync` and `synchronous_standby_names`, turn by turn. (section 12)
//!
//! Which change comes next is the question of `sync/exhaustive.rs`; here it is when a turn makes it, when
//! it stops, and what a refused write means.

use super::stage::{Came, Scene, replica_at};
use crate::ha::ports::Sender;
use crate::ha::settings::SynchronousMode::{self, Priority, Quorum};
use hathi_dcs::{Failover, Leader, Lsn, Stored, Sync, Version};

/// A leader in this mode, with these standbys streaming behind it at this position; its log ends at 1000.
fn leader(mode: SynchronousMode, standbys: &[(&str, u64)]) -> Scene {
    let senders = streaming(standbys);
    Scene::leader().set(move |script| {
        script.settings.synchronous.mode = mode;
        script.settings.synchronous.node_count = 1;
        script.pg.replication.senders = senders;
    })
}

fn streaming(standbys: &[(&str, u64)]) -> Vec<Sender> {
    let sender = |(name, lsn): &(&str, u64)| Sender {
        name: (*name).into(),
        streaming: true,
        sync_state: "async".to_owned(),
        written: Lsn(*lsn),
        flushed: Lsn(*lsn),
        replayed: Lsn(*lsn),
    };
    standbys.iter().map(sender).collect()
}

fn recorded(leader: &str, voters: &[&str], quorum: u64, version: u64) -> Stored<Sync> {
    let voters = voters.iter().map(|name| (*name).into()).collect();
    Stored {
        value: Sync { leader: Some(leader.into()), quorum, voters },
        version: Version(version),
    }
}

/// What a turn wrote of the two records, in order; without the names it left as they were.
fn written(came: &Came) -> Vec<&str> {
    let ours = |done: &&String| done.starts_with("sync ") || done.starts_with("names ");
    came.done.iter().filter(ours).map(String::as_str).collect()
}

/// What `/sync` names, and the names in force.
fn records(scene: &Scene) -> (Option<Sync>, String) {
    let (_, pg) = scene.facts();
    (scene.view().sync.map(|stored| stored.value), pg.replication.names)
}

/// Proves HA-093: a new primary goes on with its passes. In the `loop_wait` after its promotion it drops
/// who is gone and takes in who connects, each within a turn.
#[test]
fn the_passes_go_on_after_a_promotion() {
    let now = Scene::leader().now();
    let mut scene = leader(Quorum, &[])
        .set(|script| {
            // As `take_quorum_over` left it: d led, and its voters are mine.
            script.view.sync = Some(recorded("a", &["b", "c"], 1, 7));
            script.pg.replication.names = "ANY 1 (b,c)".into();
        })
        .remember(|memory| memory.sync.promoted_at = Some(now));
    let came = scene.turn();
    assert!(written(&came).is_empty() && came.fired("HA-200"), "nobody is there yet: {came:?}");
    let again = came.again_at.expect("it looks again").since(now);
    assert!(again <= 500, "in {again} ms");

    let mut scene = scene.later(500).set(|script| {
        script.pg.replication.senders = streaming(&[("b", 1000)]);
        script.pg.replication.senders[0].sync_state = "quorum".into();
    });
    let came = scene.turn();
    assert_eq!(records(&scene).1, "ANY 1 (b)", "{came:?}");
    assert!(came.fired("HA-098"), "the record follows in the same turn: {came:?}");

    let mut scene = scene.later(500).set(|script| {
        let mut both = streaming(&[("b", 1000), ("c", 1000)]);
        both[0].sync_state = "quorum".into();
        script.pg.replication.senders = both;
    });
    let came = scene.turn();
    assert_eq!(
        records(&scene),
        (Some(recorded("a", &["b", "c"], 1, 0).value), "ANY 1 (b,c)".into())
    );
    assert!(scene.now().since(now) < 10_000, "all of it within loop_wait: {came:?}");
}

/// Proves HA-198: without a confirmed standby a primary in priority mode stands alone, and says so before
/// its commits stop waiting; when it dies only it may lead again, or whom an operator names.
#[test]
fn a_primary_without_standbys_stands_alone() {
    let mut scene = leader(Priority, &[]).set(|script| {
        script.view.sync = Some(recorded("a", &["b"], 0, 7));
        script.pg.replication.names = "b".into();
    });
    let came = scene.turn();
    let [record, names] = written(&came)[..] else { panic!("{came:?}") };
    assert!(record.starts_with("sync ") && names == "names ", "the record first: {came:?}");
    assert_eq!(records(&scene), (Some(recorded("a", &[], 0, 0).value), String::new()));

    // b stood alone and is gone; nobody else holds what it confirmed, however far he is.
    let alone = || {
        Scene::leaderless().set(|script| {
            script.settings.synchronous.mode = Priority;
            script.view.sync = Some(recorded("b", &[], 0, 7));
            script.probes.remove("b");
        })
    };
    let came = { alone() }.turn();
    assert!(came.fired("HA-094") && !came.did("acquire"), "{came:?}");
    let mut scene = alone().set(|script| {
        let candidate = Failover { candidate: Some("a".into()), ..Failover::default() };
        script.view.failover = Some(Stored { value: candidate, version: Version(3) });
    });
    assert!(scene.turn().did("acquire"), "an operator's failover");
    // It comes back: the record is its own.
    let mut scene = alone().set(|script| {
        script.view.sync = Some(recorded("a", &[], 0, 7));
        script.probes.insert("b", replica_at(1000));
    });
    assert!(scene.turn().did("acquire"), "the one that stood alone");
}

/// Proves HA-212 (an input that cannot be managed changes nothing; `sync/exhaustive.rs` has that there is
/// nothing to merge).
#[test]
fn what_cannot_be_managed_changes_nothing() {
    let crowd: Vec<String> = (0..200).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = crowd.iter().map(String::as_str).collect();
    for mode in [Priority, Quorum] {
        let mut scene = leader(mode, &[("b", 1000)]).set(|script| {
            script.view.sync = Some(recorded("a", &names, 0, 7));
            script.pg.replication.names = "ANY 1 (b,c)".into();
        });
        let before = records(&scene);
        let came = scene.turn();
        assert!(came.fired("HA-212") && written(&came).is_empty(), "{came:?}");
        assert_eq!(records(&scene), before);
        assert!(came.line.starts_with("no action. I am (a), the leader"), "{came:?}");
    }
}

/// Proves HA-213: a pass that takes too long stops before its next change, whichever that is; so does one
/// whose `/sync` write was refused. The next turn begins with what is there.
#[test]
fn a_pass_ends_in_time_and_is_found_again() {
    // The names take eight seconds; a pass has 7.5 of a ttl of 30.
    let mut scene = leader(Quorum, &[("b", 1000), ("c", 1000)]).set(|script| {
        script.view.sync = Some(recorded("a", &[], 0, 7));
        script.takes.insert("names ", 8_000);
    });
    let came = scene.turn();
    assert_eq!(written(&came), ["names ANY 1 (b,c)"], "{came:?}");
    assert!(came.fired("HA-213"), "{came:?}");
    assert!(came.again_at.is_some_and(|at| at.since(scene.now()) <= 200), "{came:?}");
    let mut scene = scene.set(|script| script.takes.clear());
    let came = scene.turn();
    assert!(written(&came)[0].starts_with("sync "), "it goes on with the record: {came:?}");
    assert_eq!(records(&scene).0, Some(recorded("a", &["b", "c"], 1, 0).value));

    let mut scene = leader(Priority, &[]).set(|script| {
        script.view.sync = Some(recorded("a", &["b"], 0, 7));
        script.pg.replication.names = "b".into();
        script.sync = Err(super::stage::unreachable());
    });
    let came = scene.turn();
    assert!(written(&came).len() == 1 && came.fired("HA-213"), "no names after it: {came:?}");
    assert_eq!(records(&scene).1, "b");
    let mut scene = scene.set(|script| script.sync = Ok(()));
    assert_eq!(written(&scene.turn()).len(), 2);
    assert_eq!(records(&scene), (Some(recorded("a", &[], 0, 0).value), String::new()));
}

/// Proves HA-214: in strict mode commits always wait for somebody: for one named standby at least, and for
/// any receiver at all where none can be named. Not in strict mode they wait for nobody then.
#[test]
fn strict_mode_never_waits_for_nobody() {
    for (mode, standbys, strict, node_count, expected) in [
        (Priority, &[][..], true, 1, "*"),
        (Quorum, &[][..], true, 1, "*"),
        (Priority, &[][..], false, 1, ""),
        (Quorum, &[][..], false, 1, ""),
        (Priority, &["b"][..], true, 0, "b"),
        (Quorum, &["b"][..], true, 0, "ANY 1 (b)"),
        (Quorum, &["b", "c"][..], true, 2, "ANY 2 (b,c)"),
        (Quorum, &["b", "c"][..], true, 3, "ANY 2 (b,c)"),
    ] {
        let there: Vec<(&str, u64)> = standbys.iter().map(|name| (*name, 1000)).collect();
        let mut scene = leader(mode, &there).set(|script| {
            script.settings.synchronous.strict = strict;
            script.settings.synchronous.node_count = node_count;
            script.view.sync = Some(recorded("a", &["b"], 0, 7));
            script.pg.replication.names = if mode == Quorum { "ANY 1 (b)" } else { "b" }.into();
        });
        for _ in 0..4 {
            let came = scene.turn();
            let open = written(&came).contains(&"names ");
            assert!(!strict || !open, "{mode:?} {standbys:?}: {came:?}");
        }
        assert_eq!(records(&scene).1, expected, "{mode:?} {standbys:?} {strict} {node_count}");
    }
}

/// Proves HA-310: a write of `/sync` that met another one reads again and is made in the same turn, once;
/// version 0 is a version, and not the absence of the record. Who reads that another leads writes nothing.
#[test]
fn a_refused_write_is_made_again_in_the_same_turn() {
    let shrinking = || {
        leader(Priority, &[]).set(|script| {
            script.view.sync = Some(recorded("a", &["b"], 0, 0));
            script.pg.replication.names = "b".into();
        })
    };
    let came = { shrinking() }.turn();
    let [record, _] = written(&came)[..] else { panic!("{came:?}") };
    assert!(record.ends_with(" Version(Version(0))"), "{came:?}");
    let came = { shrinking().set(|script| script.view.sync = None) }.turn();
    assert!(written(&came)[0].ends_with(" Absent"), "{came:?}");

    let mut scene = shrinking().set(|script| script.sync_conflicts = 1);
    let came = scene.turn();
    assert_eq!(written(&came).len(), 3, "twice the record, then the names: {came:?}");
    assert_eq!(records(&scene), (Some(recorded("a", &[], 0, 0).value), String::new()));

    let mut scene = shrinking().set(|script| script.sync_conflicts = 2);
    let came = scene.turn();
    assert_eq!(written(&came).len(), 2, "not for ever: {came:?}");
    assert!(came.fired("HA-213"), "{came:?}");
    assert_eq!(records(&scene).1, "b", "and nothing after it");
    let again = came.again_at.expect("the next turn").since(scene.now());
    assert!(again <= 500, "in {again} ms");

    // The store took the key away since this turn began; the record is its new owner's.
    let mut scene = shrinking().set(|script| {
        script.sync_conflicts = 1;
        script.led_since = Some(Leader { name: "c".into(), version: Version(9) });
    });
    let came = scene.turn();
    assert_eq!(written(&came).len(), 1, "{came:?}");
    assert_eq!(records(&scene).1, "b");
}
