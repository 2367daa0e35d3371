//! Which replication slots a server has. (PG-261 … PG-277, HA-016)

use super::stage::{Scene, running, standby};
use crate::ha::ports::{LogicalSlot, Slot};
use crate::ha::settings::{IgnoredSlot, PermanentSlot};
use crate::ha::slots;
use crate::ha::task::Task;
use hathi_dcs::Lsn;
use serde_json::json;
use std::collections::BTreeMap;

fn declared(entries: serde_json::Value) -> BTreeMap<String, PermanentSlot> {
    let entries = entries.as_object().unwrap().clone();
    let parse = |(name, value): (String, serde_json::Value)| {
        let slot = PermanentSlot::parse(&name, &value).unwrap();
        (name, slot)
    };
    entries.into_iter().map(parse).collect()
}

fn physical(name: &str, lsn: u64) -> Slot {
    Slot { name: name.into(), restart_lsn: Some(Lsn(lsn)), ..Slot::default() }
}

fn logical(name: &str, confirmed: u64) -> Slot {
    let (database, plugin) = ("app".to_owned(), "pgoutput".to_owned());
    let logical = Some(LogicalSlot { database, plugin, confirmed: Lsn(confirmed) });
    Slot { logical, ..physical(name, confirmed) }
}

fn with_slots(scene: Scene, entries: serde_json::Value) -> Scene {
    scene.set(|script| {
        script.settings.use_slots = true;
        script.settings.slots = declared(entries);
        script.pg.slots = vec![physical("b", 1000), physical("c", 1000)];
        script.pg.details = Some(crate::ha::ports::ServerDetails {
            postmaster_start_time: "today".into(),
            ..Default::default()
        });
    })
}

fn both() -> serde_json::Value {
    json!({"keep": null, "cdc": {"type": "logical", "database": "app", "plugin": "pgoutput"}})
}

/// Proves PG-269 (what an entry means, and what is none).
#[test]
fn what_an_entry_means() {
    let parse = |value: serde_json::Value| PermanentSlot::parse("s", &value);
    for (value, logical) in [
        (json!(null), false),
        (json!({"type": "physical"}), false),
        (json!({"cluster_type": "standby"}), false),
        (json!({"database": "a", "plugin": "p"}), true),
        (json!({"type": "logical", "database": "a", "plugin": "p"}), true),
    ] {
        let slot = parse(value.clone()).unwrap();
        let is = !slot.is(&Slot::default());
        assert_eq!(is, logical, "{value}");
    }
    for value in [json!({"type": "logical"}), json!({"type": "x"}), json!({"cluster_type": "x"})] {
        assert!(parse(value.clone()).is_err(), "{value}");
    }
    for name in ["", "A", "a-b", &"x".repeat(64)] {
        assert!(PermanentSlot::parse(name, &json!(null)).is_err(), "{name}");
    }
}

/// Proves HA-016 (slots are handled after the decision), PG-270, PG-271 and PG-276: the leader creates
/// both kinds and publishes how far they are.
#[test]
fn a_leader_creates_and_publishes() {
    let mut scene = with_slots(Scene::leader(), both());
    let came = scene.turn();
    assert!(came.did(r#"slots ["b", "c", "keep"]"#), "{:?}", came.done);
    assert!(came.did("logical cdc in app at None"), "{:?}", came.done);
    let mut scene = scene.set(|script| {
        script.pg.slots.extend([physical("keep", 900), logical("cdc", 800)]);
    });
    let came = scene.turn();
    let status = came.done.iter().find(|done| done.starts_with("status")).unwrap().clone();
    for part in [r#""keep":900"#, r#""cdc":800"#, r#""a":1000"#, r#""retain_slots":["a","b","c"]"#]
    {
        assert!(status.contains(part), "{part} in {status}");
    }
    let (mut settings, pg) = scene.facts();
    settings.member_slots_ttl = 0;
    let seen = scene.memory.slots_seen.clone();
    let only = slots::status(&settings, &pg, &seen).unwrap();
    assert_eq!(only.slots.keys().collect::<Vec<_>>(), ["cdc", "keep"], "PG-276");
    assert!(only.retain_slots.is_empty());
}

/// Proves PG-271: the name of a member's slot is taken; one of another database is made anew.
#[test]
fn what_cannot_be_had() {
    let taken = json!({"b": {"database": "app", "plugin": "pgoutput"}});
    let came = with_slots(Scene::leader(), taken).turn();
    assert!(came.fired("PG-271") && !came.did("logical b"), "{came:?}");
    let mut scene = with_slots(Scene::leader(), both()).set(|script| {
        let mut other = logical("cdc", 1);
        other.logical.as_mut().unwrap().database = "another".into();
        script.pg.slots.push(other);
    });
    let came = scene.turn();
    assert!(came.did("drop cdc") && !came.did("logical cdc"), "{:?}", came.done);
}

/// Proves PG-264, PG-272, PG-273 and HA-016: on a replica what is there moves with the leader's, and
/// never beyond what is replayed; what is missing is copied from the leader, by a task.
#[test]
fn a_replica_follows_and_copies() {
    let known = |scene: Scene| {
        scene.set(|script| {
            script.view.status.slots =
                [("keep".to_owned(), Lsn(950)), ("cdc".to_owned(), Lsn(2000))].into();
        })
    };
    let came = known(with_slots(Scene::replica(), both())).turn();
    let Some(Task::CopySlots { source, names }) = &came.task else { panic!("{came:?}") };
    assert_eq!((source.name.as_str(), names.as_slice()), ("b", ["cdc".to_owned()].as_slice()));
    let mut scene = known(with_slots(Scene::replica(), both())).set(|script| {
        script.pg.slots.extend([physical("keep", 900), logical("cdc", 800)]);
    });
    let came = scene.turn();
    assert!(came.task.is_none() && came.did(r#"slots ["b", "c", "keep"]"#), "{came:?}");
    assert!(came.did("logical cdc in app at Some(Lsn(1000))"), "{:?}", came.done);
    let came = with_slots(Scene::replica(), both()).turn();
    assert!(came.task.is_none(), "without a position nothing is copied: {came:?}");
    for stop in [
        |script: &mut super::stage::Script| script.settings.pause = true,
        |script: &mut super::stage::Script| script.settings.nostream = true,
        |script: &mut super::stage::Script| script.settings.nofailover = true,
        |script: &mut super::stage::Script| script.settings.standby_cluster = Some(far()),
    ] {
        let came = known(with_slots(Scene::replica(), both())).set(stop).turn();
        assert!(!matches!(came.task, Some(Task::CopySlots { .. })), "{came:?}");
    }
    let (mut scene, task) = (known(with_slots(Scene::replica(), both())), came_task());
    let (outcome, done) = scene.perform(task);
    assert_eq!(outcome, crate::ha::task::Outcome::Done);
    assert!(done.iter().any(|done| done == r#"copy ["cdc"] from b"#), "{done:?}");
}

fn came_task() -> Task {
    let came = with_slots(Scene::replica(), both())
        .set(|script| {
            script.view.status.slots = [("cdc".to_owned(), Lsn(1))].into();
        })
        .turn();
    came.task.expect("to copy")
}

fn far() -> crate::ha::settings::StandbyCluster {
    crate::ha::settings::StandbyCluster { conn_url: Some("postgres://far:5432/postgres".into()) }
}

/// Proves PG-270 and PG-459: `cluster_type` is honoured; PG-269: not on a node that never leads, nor
/// under this node's own name.
#[test]
fn where_a_permanent_slot_belongs() {
    let entries =
        json!({"p": {"cluster_type": "primary"}, "s": {"cluster_type": "standby"}, "a": null});
    let came = with_slots(Scene::leader(), entries.clone()).turn();
    assert!(came.did(r#"slots ["b", "c", "p"]"#), "{:?}", came.done);
    let mut scene = with_slots(Scene::replica(), entries.clone()).set(|script| {
        script.settings.standby_cluster = Some(far());
        script.view.members[1] = running("b", "standby_leader");
    });
    assert!(scene.turn().did(r#"slots ["b", "c", "s"]"#));
    let mut scene = with_slots(Scene::replica(), entries);
    scene = scene.set(|script| script.settings.nofailover = true);
    let came = scene.turn();
    assert!(!came.done.iter().any(|done| done.contains(r#""p""#)), "{:?}", came.done);
}

/// Proves PG-267, PG-268 and HA-137: a slot that nobody knows goes once in the life of a server, also
/// after a pause, not in it, and not if it is ignored or read from.
#[test]
fn slots_that_nobody_knows() {
    let strange = |scene: Scene| {
        with_slots(scene, json!({})).set(|script| {
            let active = Slot { active: true, ..physical("read", 1) };
            script.pg.slots.extend([physical("old", 1), physical("theirs", 1), active]);
            script.settings.ignore_slots = vec![IgnoredSlot::parse(&json!({"name": "theirs"}))];
        })
    };
    let mut scene = strange(Scene::leader());
    let came = scene.turn();
    let drops: Vec<_> = came.done.iter().filter(|done| done.starts_with("drop")).collect();
    assert_eq!(drops, ["drop old"]);
    assert!(!scene.turn().did("drop"), "once");
    let mut scene = scene.set(|script| script.settings.pause = true);
    assert!(!scene.turn().did("drop"));
    let mut scene = scene.set(|script| script.settings.pause = false);
    assert!(scene.turn().did("drop old"), "after the pause");
    let mut scene = strange(Scene::leaderless()).set(|script| script.pg.server = standby(1000));
    assert!(!scene.turn().did("drop"), "nobody leads: nobody knows who is there");
    let entry = IgnoredSlot::parse(&json!({"type": "logical", "database": "app"}));
    assert!(entry.matches(&logical("x", 1)) && !entry.matches(&physical("x", 1)));
}

/// Proves PG-262 and PG-264: the slot of a member behind another one is not read here, and moves with what
/// that member has; one that is to be read here waits for its reader, however far the leader's is.
#[test]
fn slots_of_cascading_members_move_with_them() {
    let behind_b = r#"{"state":"running","role":"replica","tags":{"replicatefrom":"b"},"replay_lsn":1500,"receive_lsn":1600}"#;
    let plan = |scene: Scene, me: &str, leader_says: Option<u64>| {
        let (mut settings, pg) = scene.facts();
        (settings.use_slots, settings.me) = (true, me.into());
        let mut view = scene.view();
        view.members.retain(|one| one.name.as_str() != "c");
        view.members.push(super::stage::member("c", behind_b));
        view.status.slots = leader_says.map(|lsn| ("c".to_owned(), Lsn(lsn))).into_iter().collect();
        let now = hathi_dcs::Millis(1_000_000);
        let plan = slots::plan(&settings, &view, &pg, &mut Default::default(), true, now);
        plan.slots.physical["c"]
    };
    assert_eq!(plan(Scene::leader(), "a", Some(900)), Some(Lsn(1500)), "the leader");
    // Of another leader's cluster: b is its upstream, a is not.
    for (published, expected) in [(None, 1500), (Some(900), 1500), (Some(1700), 1700)] {
        assert_eq!(plan(Scene::leader(), "x", published), Some(Lsn(expected)), "a bystander");
    }
    assert_eq!(plan(Scene::leader(), "b", Some(1700)), None, "its upstream");
}
