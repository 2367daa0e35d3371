//! Synchronous replication, one turn at a time. What is safe in which order is shown for every state in
//! `ha::sync::exhaustive`. (section 12 of docs/spec/ha-loop.md)

use super::stage::{Came, Scene, Script, standby};
use crate::ha::ports::{Commit, Replication, Sender};
use crate::ha::settings::{Synchronous, SynchronousMode};
use hathi_dcs::{DcsError, Failover, Lsn, MemberName, Millis, Stored, Sync, Version};

fn mode(mode: SynchronousMode, strict: bool) -> impl FnOnce(&mut Script) {
    move |script: &mut Script| {
        script.settings.synchronous = Synchronous { mode, strict, node_count: 1, maximum_lag: -1 };
    }
}

fn receives(name: &str, lsn: u64) -> Sender {
    Sender {
        name: name.into(),
        streaming: true,
        sync_state: "async".into(),
        written: Lsn(lsn),
        flushed: Lsn(lsn),
        replayed: Lsn(lsn),
    }
}

/// a leads; b streams from it and has everything.
fn with_standby(scene: Scene) -> Scene {
    scene.set(|script| {
        script.pg.replication = Replication {
            names: String::new(),
            commit: Commit::Flushed,
            senders: vec![receives("b", 1000)],
        };
    })
}

fn record(leader: &str, voters: &[&str], version: u64) -> Option<Stored<Sync>> {
    let voters = voters.iter().map(|name| MemberName::from(*name)).collect();
    let value = Sync { leader: Some(leader.into()), quorum: 0, voters };
    Some(Stored { value, version: Version(version) })
}

fn order(came: &Came) -> Vec<&str> {
    let all = came.done.iter().map(String::as_str);
    all.filter(|done| done.starts_with("sync ") || done.starts_with("names ")).collect()
}

/// Proves HA-098 (the order): first the record says who leads, then commits wait for the standby, then
/// the record names it. Proves HA-093 as ours has it: the turns after a promotion go on at once.
#[test]
fn a_standby_is_added() {
    let mut scene = with_standby(Scene::leader()).set(mode(SynchronousMode::Priority, false));
    scene.memory.sync.promoted_at = Some(Millis(999_000));
    let came = scene.turn();
    let done = order(&came);
    assert_eq!(done.len(), 3, "{done:?}");
    assert!(done[0].contains(r#""sync_standby":null"#) && done[0].ends_with("Absent"), "{done:?}");
    assert_eq!(done[1], "names b");
    assert!(done[2].contains(r#""sync_standby":"b""#), "{done:?}");
    assert!(order(&scene.turn()).is_empty(), "there is nothing more to do");
}

/// Proves HA-214: strict mode without a standby lets no commit be confirmed by nobody.
#[test]
fn strict_without_a_standby_waits_for_anybody() {
    for (strict, names) in [(true, Some("names *")), (false, None)] {
        for which in [SynchronousMode::Priority, SynchronousMode::Quorum] {
            let came = Scene::leader().set(mode(which, strict)).turn();
            let last = order(&came).into_iter().find(|done| done.starts_with("names"));
            assert_eq!(last, names, "{which:?} strict {strict}: {came:?}");
        }
    }
}

/// Proves HA-310: version 0 is a version, and a write that met another one is tried once more in the
/// same turn, after a fresh look.
#[test]
fn a_refused_record_is_looked_at_again() {
    let version_0 =
        with_standby(Scene::leader()).set(mode(SynchronousMode::Priority, false)).set(|script| {
            script.view.sync = record("c", &[], 0);
        });
    let came = { version_0 }.turn();
    assert!(order(&came)[0].ends_with("Version(Version(0))"), "{came:?}");
    for (conflicts, writes_names) in [(1, true), (2, false)] {
        let came = with_standby(Scene::leader())
            .set(mode(SynchronousMode::Priority, false))
            .set(|script| script.sync_conflicts = conflicts)
            .turn();
        assert_eq!(came.did("names b"), writes_names, "{conflicts}: {came:?}");
        assert_eq!(came.fired("HA-213"), !writes_names, "a refused write ends the pass: {came:?}");
    }
}

/// Proves HA-213: a pass ends before any step when its time is over, and when `/sync` cannot be written;
/// the next turn goes on.
#[test]
fn a_pass_has_its_time() {
    let slow = with_standby(Scene::leader())
        .set(mode(SynchronousMode::Priority, false))
        .set(|script| script.takes = [("sync ", 7_600)].into());
    let came = { slow }.turn();
    assert_eq!(order(&came).len(), 1, "{came:?}");
    assert!(came.fired("HA-213") && came.again_at.is_some(), "{came:?}");
    let refused = with_standby(Scene::leader())
        .set(mode(SynchronousMode::Priority, false))
        .set(|script| script.sync = Err(DcsError::unreachable("store", 1, "no answer")));
    let came = { refused }.turn();
    assert!(came.fired("HA-213") && !came.did("names"), "{came:?}");
}

/// Proves HA-212: what cannot be reckoned with applies nothing at all.
#[test]
fn more_members_than_can_be_reckoned_with() {
    let crowd =
        with_standby(Scene::leader()).set(mode(SynchronousMode::Quorum, false)).set(|script| {
            let names: Vec<String> = (0..140).map(|n| format!("m{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            script.view.sync = record("a", &names, 1);
        });
    let came = { crowd }.turn();
    assert!(came.fired("HA-212") && order(&came).is_empty(), "{came:?}");
    assert!(came.task.is_none(), "and demotes nobody");
}

/// Proves HA-198: without a confirmed standby the primary alone may lead again; only an operator's
/// failover says otherwise.
#[test]
fn nobody_takes_over_from_a_primary_alone() {
    let alone = || {
        Scene::leaderless().set(mode(SynchronousMode::Priority, false)).set(|script| {
            script.view.sync = record("b", &[], 3);
            script.probes.remove("b");
        })
    };
    let came = alone().turn();
    assert!(came.fired("HA-094") && !came.did("acquire"), "{came:?}");
    let asks = |leader: Option<&str>| {
        let leader = leader.map(MemberName::from);
        let value = Failover { leader, candidate: Some("a".into()), scheduled_at: None };
        alone().set(|script| script.view.failover = Some(Stored { value, version: Version(1) }))
    };
    assert!(asks(None).turn().did("acquire"), "the operator's word");
    assert!(!asks(Some("b")).turn().did("acquire"), "a switchover loses nothing");
    let back = alone().set(|script| {
        script.view.sync = record("a", &[], 3);
        script.pg.server = standby(1000);
    });
    assert!({ back }.turn().did("acquire"), "the primary of then");
}
