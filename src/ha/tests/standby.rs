//! A cluster that follows another one. (section 15 of docs/spec/ha-loop.md)

use super::stage::{Scene, control, down, replica_at, running, standby, unreachable};
use crate::ha::memory::Rewind;
use crate::ha::ports::{
    ControlState, DataDir, FollowChange, LocalEnd, Observation, PeerAnswer, PgError, Server,
    SourceHistory, Standby, StopStep, TimelineEnd,
};
use crate::ha::settings::StandbyCluster;
use crate::ha::slots;
use crate::ha::task::{Demotion, Kind, Task};
use hathi_dcs::{
    DcsError, History, Leader, Lsn, MemberName, Role, State, Stored, Sync, Timeline, Version,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn section() -> Option<StandbyCluster> {
    Some(StandbyCluster { conn_url: Some("postgres://far:5432/postgres".into()) })
}

/// a is a replica of the standby leader b.
fn replica() -> Scene {
    Scene::replica().set(|script| {
        script.settings.standby_cluster = section();
        script.view.members =
            vec![running("a", "replica"), running("b", "standby_leader"), running("c", "replica")];
    })
}

/// a is the standby leader, and holds the lease.
fn leader() -> Scene {
    let scene = replica().set(|script| {
        script.view.leader = Some(Leader { name: "a".into(), version: Version(1) });
        script.pg.role = Role::StandbyLeader;
        script.view.members = vec![running("a", "standby_leader"), running("b", "replica")];
    });
    scene.hold_lease();
    scene
}

fn leaderless() -> Scene {
    Scene::leaderless().set(|script| script.settings.standby_cluster = section())
}

/// A primary with the lock, in a cluster that has just been told to follow another one.
fn former_primary() -> Scene {
    Scene::leader().set(|script| script.settings.standby_cluster = section())
}

fn history(timeline: u32, ends: &[(u32, u64)]) -> SourceHistory {
    let end = |(timeline, lsn): &(u32, u64)| TimelineEnd {
        timeline: Timeline(*timeline),
        switch_lsn: Lsn(*lsn),
        reason: String::new(),
        at: None,
    };
    SourceHistory {
        in_recovery: false,
        timeline: Timeline(timeline),
        ends: ends.iter().map(end).collect(),
        checkpoint_timeline: Some(Timeline(timeline)),
        oldest: None,
    }
}

fn away() -> PgError {
    PgError::Failed { what: "connect", why: "no route to host".into() }
}

fn kind(task: Option<&Task>) -> Option<Kind> {
    task.map(Task::kind)
}

/// Proves HA-110 and HA-117: the owner of the lock follows the remote member as standby_leader,
/// is never promoted, writes no history and makes no checkpoint; its lease arms no fence.
#[test]
fn the_leader_follows_the_remote_member() {
    let mut scene = leader();
    let came = scene.turn();
    assert_eq!(came.line, "no action. I am (a), the standby leader with the lock");
    assert!(came.task.is_none() && came.did("compare remote_member"), "{came:?}");
    assert!(!came.did("history"), "{came:?}");
    assert!(came.did("stand down"), "nothing to fence: {came:?}");
    let came = scene.later(10_000).turn();
    assert!(!came.did("fence"), "a renewal arms nothing: {came:?}");

    let came = leader().set(|script| script.pg.role = Role::Replica).turn();
    assert!(came.did("role standby_leader") && came.did("role change told"), "{came:?}");
    let came = leader().set(|script| script.follow = FollowChange::Reload).turn();
    assert!(came.did("asked remote_member") && came.did("follow remote_member"), "{came:?}");
    let came = leader().set(|script| script.follow = FollowChange::Restart).turn();
    let task = came.task.expect("a restart");
    assert!(
        matches!(&task, Task::Follow { upstream: Some(up), restart: true } if up.remote),
        "{task:?}"
    );
}

/// Proves HA-110: what is left of synchronous replication says nothing here, nor do nostream and
/// replicatefrom make a standby leader follow another member.
#[test]
fn the_leader_never_follows_a_member() {
    let came = leader().set(|script| script.settings.replicatefrom = Some("b".into())).turn();
    assert!(came.did("compare remote_member"), "{came:?}");
    let came = leader().set(|script| script.settings.nostream = true).turn();
    assert!(!came.did("compare remote_member"), "fed by the archive alone: {came:?}");
}

/// Proves HA-111: the others follow the standby leader or the member they are tagged with; a leader
/// nobody knows changes nothing; without a leader the remote member is followed.
#[test]
fn the_others_cascade() {
    let came = replica().turn();
    assert_eq!(came.line, "no action. I am (a), a secondary, and following a standby leader (b)");
    assert!(came.did("compare b"), "{came:?}");
    let came = replica().set(|script| script.settings.replicatefrom = Some("c".into())).turn();
    assert!(came.did("compare c"), "{came:?}");
    let came = replica()
        .set(|script| {
            script.view.leader = Some(Leader { name: "gone".into(), version: Version(1) });
            script.follow = FollowChange::Reload;
        })
        .turn();
    assert_eq!(came.line, "continue following the old known standby leader");
    assert!(!came.did("follow") && came.fired("HA-111"), "{came:?}");

    let nofailover = |script: &mut super::stage::Script| script.settings.nofailover = true;
    let came = leaderless().set(nofailover).set(|s| s.follow = FollowChange::Reload).turn();
    assert!(came.did("follow remote_member") && !came.did("acquire"), "{came:?}");
    let came = leaderless().set(nofailover).set(|s| s.settings.pause = true).turn();
    assert!(!came.did("follow") && !came.did("compare"), "not in pause: {came:?}");
}

/// Proves HA-112 (and HA-080, HA-095 b for standby clusters), CFG-282: the race knows no timeline and
/// no synchronous members; the winner becomes the standby leader and is not promoted.
#[test]
fn the_race() {
    let came = leaderless().turn();
    assert!(came.did("acquire") && came.task.is_none(), "{came:?}");
    assert_eq!(came.line, "promoted self to a standby leader by acquiring session lock");
    assert!(came.did("role standby_leader") && came.did("compare remote_member"), "{came:?}");

    let old_life = |scene: Scene| {
        scene.set(|script| {
            script.settings.check_timeline = true;
            script.view.history = History::parse(r#"[[4,500,"x"]]"#);
            script.view.sync = Some(Stored {
                value: Sync { leader: Some("b".into()), ..Sync::default() },
                version: Version(1),
            });
        })
    };
    assert!(old_life(leaderless()).turn().did("acquire"));
    let primary_cluster = old_life(Scene::leaderless()).turn();
    assert!(!primary_cluster.did("acquire"), "{primary_cluster:?}");
    let came = leaderless().set(|script| script.probes.extend([("c", replica_at(1001))])).turn();
    assert!(!came.did("acquire"), "the furthest one still wins: {came:?}");
    let primary = PeerAnswer { in_recovery: false, ..replica_at(1) };
    let came = leaderless().set(|script| script.probes.extend([("c", primary)])).turn();
    assert!(!came.did("acquire"), "a primary that is not demoted yet: {came:?}");
}

/// Proves HA-113: when the section is gone the standby leader is promoted, and only with a lock that
/// was confirmed after the fence was armed again.
#[test]
fn without_the_section_it_is_promoted() {
    let mut scene = leader();
    scene.turn();
    let mut scene = scene.set(|script| script.settings.standby_cluster = None);
    let came = scene.turn();
    assert_eq!(kind(came.task.as_ref()), Some(Kind::Promote), "{came:?}");
    assert!(came.did("renew") && came.did("fence"), "armed before the promotion: {came:?}");

    // What it wrote itself as the standby leader is no sign of another leader. (the simulator, seed 2587)
    let mut scene = leader().remember(|memory| memory.raced = Some(Default::default()));
    scene.turn();
    let mut scene = scene.set(|script| script.settings.standby_cluster = None);
    let came = scene.turn();
    assert!(!came.fired("HA-080") && !came.did("release"), "{came:?}");
    assert_eq!(kind(came.task.as_ref()), Some(Kind::Promote), "{came:?}");
    // A record of synchronous members by which nobody raced here: those it names come first. (HA-099)
    let mut scene = leader();
    scene.turn();
    let mut scene = scene.set(|script| {
        script.settings.standby_cluster = None;
        script.settings.synchronous.mode = crate::ha::settings::SynchronousMode::Priority;
        let value = Sync::parse(r#"{"leader":"b","sync_standby":"c"}"#);
        script.view.sync = Some(Stored { value, version: Version(7) });
    });
    let came = scene.turn();
    assert!(came.fired("HA-099") && came.did("release") && came.task.is_none(), "{came:?}");

    let mut scene = leader();
    scene.turn();
    let mut scene = scene.set(|script| {
        script.settings.standby_cluster = None;
        script.renew = Err(unreachable());
    });
    let came = scene.turn();
    assert!(came.task.is_none(), "not without a confirmed lock: {came:?}");
    let came = scene.set(|script| script.renew = Ok(())).turn();
    assert_eq!(kind(came.task.as_ref()), Some(Kind::Promote), "{came:?}");
}

/// Proves HA-113 and HA-002: a `/config` that is gone, empty or refused never promotes anybody.
#[test]
fn a_wiped_config_promotes_nobody() {
    let documents = [None, Some(json!({})), Some(json!({"ttl": "refused"}))];
    for document in documents {
        let mut scene = leader();
        scene.turn();
        let mut scene = scene.set(|script| {
            script.dynamic =
                json!({"standby_cluster": {"host": "far"}}).as_object().unwrap().clone();
            script.view.config = document.clone().map(|value| Stored {
                value: value.as_object().unwrap().clone(),
                version: Version(9),
            });
        });
        let came = scene.turn();
        assert!(came.task.is_none(), "{document:?}: {came:?}");
        assert!(came.line.contains("standby leader"), "{document:?}: {came:?}");
    }
}

/// Proves HA-114: the history file of the next timeline asks for a check against the remote member,
/// and what parted is rewound to it.
#[test]
fn the_remote_member_moved_on() {
    let stuck = || {
        leader().set(|script| {
            script.next_history = true;
            script.pg.server = Server::Standby(Standby { streaming: false, ..of(standby(1000)) });
        })
    };
    let came = stuck().set(|script| script.remote = Some(Ok(history(2, &[(1, 1000)])))).turn();
    assert!(came.fired("HA-114") && came.did("asked remote_member"), "{came:?}");
    assert!(came.task.is_none(), "it was not past the switch: {came:?}");
    let came = stuck().set(|script| script.remote = Some(Ok(history(2, &[(1, 400)])))).turn();
    let task = came.task.expect("a rewind");
    assert!(
        matches!(&task, Task::Rewind { source, stop_first: true } if source.remote),
        "{task:?}"
    );
    let late = SourceHistory { checkpoint_timeline: Some(Timeline(1)), ..history(2, &[(1, 400)]) };
    let came = stuck().set(|script| script.remote = Some(Ok(late))).turn();
    assert!(came.task.is_none() && came.fired("PG-154"), "not before its checkpoint: {came:?}");
    let came = stuck().set(|script| script.next_history = false).turn();
    assert!(!came.did("asked"), "{came:?}");
    let streaming = leader().set(|script| script.next_history = true).turn();
    assert!(!streaming.did("asked"), "it streams on: {streaming:?}");
}

fn of(server: Server) -> Standby {
    match server {
        Server::Standby(standby) => standby,
        other => panic!("{other:?}"),
    }
}

/// Proves HA-047 (a standby cluster): it is rewound to the remote member only; while that is away the
/// standby leader's word is enough to follow it, not to call for a rewind; nothing is removed.
#[test]
fn who_is_asked_and_rewound_to() {
    let asking = || {
        let scene = replica().set(|script| {
            script.follow = FollowChange::Reload;
            script.settings.remove_data_directory_on_diverged_timelines = true;
        });
        scene.remember(|memory| memory.rewind = Rewind::Check)
    };
    let recovering = |mut history: SourceHistory| {
        history.in_recovery = true;
        history
    };
    let came = asking()
        .set(|script| {
            script.remote = Some(Err(away()));
            script.source = Ok(recovering(history(1, &[])));
        })
        .turn();
    assert!(came.did("asked b") && came.did("follow b"), "{came:?}");
    let mut scene = asking().set(|script| {
        script.remote = Some(Err(away()));
        script.source = Ok(recovering(history(2, &[(1, 400)])));
    });
    let came = scene.turn();
    assert!(came.task.is_none() && !came.did("follow"), "nobody can say: {came:?}");
    assert_eq!(scene.memory.rewind, Rewind::Check);
    let mut scene = asking().set(|script| {
        script.remote = Some(Ok(history(2, &[(1, 400)])));
        script.pg.can_rewind = false;
    });
    let came = scene.turn();
    assert!(came.task.is_none(), "a new copy is the operator's decision: {came:?}");
    // The remote member may be a standby itself: then nobody rewinds to it, and one may follow it.
    let came = leader()
        .set(|script| {
            script.follow = FollowChange::Reload;
            script.remote = Some(Ok(recovering(history(1, &[]))));
        })
        .turn();
    assert!(came.did("follow remote_member"), "{came:?}");
}

/// Proves HA-116: a primary with the lock is demoted when the section appears, with the stop of a
/// demotion to a standby cluster; without the lock it is HA-065's.
#[test]
fn the_section_appears_under_a_primary() {
    let mut scene = former_primary();
    let came = scene.turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::Cluster))), "{came:?}");
    assert_eq!(scene.memory.rewind, Rewind::Check);
    let came = replica()
        .set(|script| {
            script.pg.server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
            script.pg.is_primary = true;
        })
        .turn();
    assert!(matches!(came.task, Some(Task::Demote(Demotion::LostLock))), "HA-065: {came:?}");
}

/// Proves HA-116 (the task): the key goes only to one that has the shutdown checkpoint, and with an
/// archive not at all; the segment with that checkpoint is archived.
#[test]
fn demoting_a_cluster() {
    let tells = |script: &mut super::stage::Script| {
        let written = StopStep::ShutDown { checkpoint: Lsn(5_000), previous: Lsn(4_900) };
        script.stop = vec![written, StopStep::Stopped];
    };
    let has_it = |script: &mut super::stage::Script| {
        tells(script);
        script.probes.extend([("b", replica_at(5_000))]);
    };
    let scene = former_primary().set(has_it);
    let done = scene.run(Task::Demote(Demotion::Cluster));
    assert!(done.contains(&"release".to_owned()), "{done:?}");
    assert_eq!(scene.released(), Some(Lsn(5_000)), "the checkpoint itself, not what was before it");
    let done = former_primary().set(tells).run(Task::Demote(Demotion::Cluster));
    assert!(!done.iter().any(|what| what.starts_with("release")), "nobody has it: {done:?}");
    let done = former_primary()
        .set(has_it)
        .set(|script| script.archives = true)
        .run(Task::Demote(Demotion::Cluster));
    assert!(!done.iter().any(|what| what.starts_with("release")), "{done:?}");
    let archived = done.iter().position(|what| what == "archived the shutdown checkpoint");
    let stopped = done.iter().position(|what| what.starts_with("stop "));
    assert!(archived > stopped && stopped.is_some(), "{done:?}");
}

/// Proves HA-045, HA-046 and HA-043 (a standby cluster): what was stopped starts behind the remote
/// member, in the role that the lock gives; never as a primary.
#[test]
fn a_stopped_server_is_started() {
    let stopped = |scene: Scene| {
        scene.set(|script| {
            down(&mut script.pg);
            script.pg.state = State::Stopped;
            script.control = Some(control(ControlState::ShutDownInRecovery));
        })
    };
    let follows = |scene: Scene| {
        let came = { scene }.turn();
        match came.task {
            Some(Task::Follow { upstream: Some(upstream), restart: false }) => {
                (came.line, upstream.name.to_string())
            }
            other => panic!("{}: {other:?}", came.line),
        }
    };
    let (line, from) = follows(stopped(leader()));
    assert_eq!(line, "starting as a standby leader because i had the session lock");
    assert_eq!(from, "remote_member");
    let (line, from) = follows(stopped(leaderless()));
    assert_eq!(line, "trying to follow a remote member because standby cluster is unhealthy");
    assert_eq!(from, "remote_member");
    let (line, from) = follows(stopped(replica()));
    assert_eq!((line.as_str(), from.as_str()), ("starting as a secondary", "b"));

    // It crashed as a primary just before the section came.
    let crashed = Scene::crashed_leader().set(|script| script.settings.standby_cluster = section());
    let came = { crashed }.turn();
    assert_ne!(kind(came.task.as_ref()), Some(Kind::StartAsPrimary), "{came:?}");
}

/// Proves HA-133 and HA-134 (a standby cluster): a candidate that an operator named in pause gets the key, and
/// what would stop its PostgreSQL waits for the end of the pause; nor is it promoted, whatever the request
/// still says. (the simulator, seeds 637, 1051, 4277)
#[test]
fn a_named_standby_leader_in_pause() {
    let asked = |script: &mut super::stage::Script| {
        script.settings.pause = true;
        let value =
            hathi_dcs::Failover { candidate: Some("a".into()), ..hathi_dcs::Failover::default() };
        script.view.failover = Some(Stored { value, version: Version(7) });
    };
    let mut scene = leaderless().set(asked).set(|script| script.follow = FollowChange::Restart);
    let came = scene.turn();
    assert!(came.did("acquire") && came.task.is_none(), "{came:?}");
    let mut diverged = leaderless()
        .set(asked)
        .remember(|memory| memory.rewind = Rewind::Check)
        .set(|script| script.source = Ok(history(2, &[(1, 500)])));
    let came = diverged.turn();
    assert!(came.did("acquire") && came.task.is_none() && came.fired("HA-134"), "{came:?}");
    let came = leader().set(asked).turn();
    assert!(came.task.is_none() && !came.fired("HA-061") && !came.did("release"), "{came:?}");
}

/// Proves HA-061, HA-131 and HA-134 (a standby cluster): in pause the standby leader keeps the lock
/// and may change its upstream by a reload; nothing is restarted, demoted or promoted.
#[test]
fn in_pause() {
    let paused = |scene: Scene| scene.set(|script| script.settings.pause = true);
    let came = paused(leader()).turn();
    assert!(!came.did("release") && came.task.is_none(), "{came:?}");
    let came = paused(leader()).set(|script| script.follow = FollowChange::Reload).turn();
    assert!(came.did("follow remote_member"), "{came:?}");
    let came = paused(leader()).set(|script| script.follow = FollowChange::Restart).turn();
    assert!(came.task.is_none() && came.line.contains("not done"), "{came:?}");
    let came = paused(former_primary()).turn();
    assert!(came.task.is_none() && !came.did("release"), "{came:?}");
}

/// Proves HA-030 (bootstrap_standby_leader): the first node copies the remote member, and the task
/// leaves a standby leader with the lock, without users and scripts.
#[test]
fn the_first_node() {
    let empty = || {
        replica().set(|script| {
            down(&mut script.pg);
            script.pg.data_dir = DataDir::Empty;
            script.pg.system_id = None;
            script.pg.role = Role::Uninitialized;
            script.view.leader = None;
            script.view.initialize = None;
        })
    };
    let came = empty().turn();
    let task = came.task.expect("a bootstrap");
    assert!(matches!(&task, Task::BootstrapStandbyLeader { remote } if remote.remote), "{task:?}");
    assert_eq!(task.name(), "bootstrap_standby_leader");
    let done = replica().run(task);
    let order: Vec<_> =
        ["clone remote_member", "role standby_leader", "start behind remote_member", "take"]
            .iter()
            .map(|what| done.iter().position(|did| did.starts_with(what)))
            .collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?} {done:?}");
    assert!(!done.iter().any(|did| did == "post_bootstrap"), "{done:?}");
    let came = empty().set(|script| script.view.initialize = Some(String::new())).turn();
    assert_eq!(came.line, "waiting for standby_leader to bootstrap");
}

/// A store that was wiped under a standby cluster is filled again, although nobody is a primary.
#[test]
fn a_wiped_store_gets_the_identifier_of_a_standby() {
    let mut scene = leaderless()
        .set(|script| script.view.initialize = None)
        .remember(|memory| memory.joined = false);
    let came = scene.turn();
    assert!(!came.exit && came.did("initialize"), "{came:?}");
}

/// Proves HA-110 (what the leader writes): its own position and that of its slots, as a primary does.
#[test]
fn the_status_of_a_standby_leader() {
    let scene = leader();
    let (settings, pg): (_, Observation) = scene.facts();
    let settings = crate::ha::settings::Settings { use_slots: true, ..settings };
    let seen = BTreeMap::new();
    let status = slots::status(&settings, &pg, &seen).expect("a status");
    assert_eq!(status.optime, Lsn(1000));
    assert_eq!(status.slots, BTreeMap::from([("a".to_owned(), Lsn(1000))]));
    let primary_cluster = crate::ha::settings::Settings { standby_cluster: None, ..settings };
    assert_eq!(slots::status(&primary_cluster, &pg, &seen), None);
}

/// Proves HA-117 (the member record): as Patroni writes it.
#[test]
fn the_record_of_a_standby_leader() {
    let came = leader().turn();
    let record = came.done.iter().find_map(|did| did.strip_prefix("member ")).expect("a record");
    let record: Value = serde_json::from_str(record).expect("JSON");
    assert_eq!(record["role"], "standby_leader", "{record}");
    assert_eq!(record["checkpoint_after_promote"], false, "{record}");
    assert_eq!(record["timeline"], 1, "{record}");
}

/// The remote member of a section without host is known by its archive alone.
#[test]
fn fed_by_an_archive() {
    let archive = || {
        leader().set(|script| {
            script.settings.standby_cluster = Some(StandbyCluster { conn_url: None });
            script.follow = FollowChange::Reload;
        })
    };
    let came = archive().turn();
    assert!(came.did("follow remote_member") && !came.did("asked"), "{came:?}");
    let local =
        LocalEnd { timeline: Timeline(1), lsn: Lsn(1), was_primary: true, checkpoint_end: None };
    let came = archive()
        .set(|script| {
            down(&mut script.pg);
            script.pg.state = State::Stopped;
            script.local_end = Some(local);
            script.control = Some(control(ControlState::ShutDown));
        })
        .turn();
    assert_eq!(kind(came.task.as_ref()), Some(Kind::Follow), "{came:?}");
    let _ = (MemberName::from("a"), DcsError::conflict("x"));
}

/// Proves HA-117 (a former life): `/history` of the time as a primary cluster goes when the standby leader
/// streams an older timeline, and not before; a cluster that never was one writes none.
#[test]
fn the_history_of_a_former_life_goes() {
    let former = |script: &mut super::stage::Script| {
        script.view.history = History::parse(r#"[[1,100,"r","t","a"],[2,200,"r","t","a"]]"#);
    };
    let came = leader().set(former).turn();
    assert!(came.fired("HA-117") && came.did("history []"), "{came:?}");
    let catching_up = leader().set(former).set(|script| {
        script.pg.server = Server::Standby(Standby {
            timeline: Timeline(1),
            received: Some(Lsn(1000)),
            replayed: Some(Lsn(1000)),
            ..Standby::default()
        });
    });
    assert!(!{ catching_up }.turn().did("history"), "it does not stream");
    assert!(!leader().turn().did("history"));
    assert!(!replica().set(former).turn().did("history"), "only the leader");
    // What was confirmed under /sync has been handed over; it would bind the next promotion.
    let confirmed = |script: &mut super::stage::Script| {
        let value = hathi_dcs::Sync::parse(r#"{"leader":"b","sync_standby":"c"}"#);
        script.view.sync = Some(hathi_dcs::Stored { value, version: Version(7) });
    };
    let came = leader().set(confirmed).turn();
    assert!(came.fired("HA-117") && came.did("sync deleted"), "{came:?}");
    let paused = leader().set(confirmed).set(|script| script.settings.pause = true);
    for mut scene in [paused, replica().set(confirmed)] {
        assert!(!scene.turn().did("sync deleted"));
    }
}

/// Proves PG-147 (a standby leader): who cannot follow the remote member, and must not be copied anew
/// without being told, lets another one lead. (the simulator, seed 9856)
#[test]
fn a_leader_that_cannot_follow_gives_way() {
    let parted = || leader().remember(|memory| memory.rewind = Rewind::OtherHistory);
    let came = parted().turn();
    assert!(came.fired("PG-147") && came.did("release"), "{came:?}");
    let mut again = parted().remember(|memory| memory.gave_way = true);
    assert!(!again.turn().did("release"), "nobody was better");
    let came = parted().set(|script| script.probes.clear()).turn();
    assert!(!came.did("release") && came.line.contains("reinitialize me"), "nobody else: {came:?}");
}
