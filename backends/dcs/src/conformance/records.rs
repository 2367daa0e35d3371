//! What is written comes back, in Patroni's bytes, and a compare-and-set compares.

use super::lock::latest;
use super::{Case, Fault, Harness, Outcome, assert_conflict, soon, until};
use crate::{
    ClusterView, Dcs, Expect, Failover, Failsafe, Freshness, History, Lsn, MemberData, Status,
    Sync, Timing, Version,
};
use serde_json::{Map, Value};
use std::time::Duration;

/// The values of section 3 of docs/spec/dcs.md as 4.1.5 stored them. [R]
const MEMBER: &str = r#"{"conn_url":"postgres://127.0.0.1:22433/postgres","api_url":"http://127.0.0.1:22009/patroni","state":"running","role":"replica","version":"4.1.5","tags":{"city":"K\u00f6ln"},"xlog_location":67108864,"replay_lsn":67108864,"receive_lsn":67108864,"replication_state":"streaming","timeline":1}"#;
const STATUS: &str =
    r#"{"optime":50331744,"slots":{"pg1":50331744,"pg2":50331744},"retain_slots":["pg1","pg2"]}"#;
const SYNC: &str = r#"{"leader":"pg1","quorum":0,"sync_standby":"pg2,pg3"}"#;
const FAILOVER: &str =
    r#"{"leader":"pg2","member":"pg1","scheduled_at":"2026-11-23T20:42:16+00:00"}"#;
const HISTORY: &str =
    r#"[[1,50332136,"no recovery target specified","2026-11-23T20:36:24.035490+00:00","pg2"]]"#;
const FAILSAFE: &str = r#"{"pg1":"http://h:1/patroni","pg2":"http://h:2/patroni"}"#;
const CONFIG: &str = r#"{"ttl":20,"loop_wait":2,"retry_timeout":3,"postgresql":{"parameters":{"b":1,"a":"\u00e4"}}}"#;
const SYSTEM_ID: &str = "7711467298858918990";

fn config(text: &str) -> Map<String, Value> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => map,
        other => panic!("not an object: {other:?}"),
    }
}

/// Writes each record once, as member `pg2`.
pub(super) async fn write_all(dcs: &dyn Dcs) {
    let what = "a healthy store";
    dcs.write_initialize(SYSTEM_ID, Expect::Absent, soon()).await.expect(what);
    dcs.write_config(&config(CONFIG), Expect::Absent, soon()).await.expect(what);
    dcs.acquire_leader(soon()).await.expect(what);
    dcs.write_member(&MemberData::parse(MEMBER), soon()).await.expect(what);
    dcs.write_status(&Status::parse(STATUS), soon()).await.expect(what);
    dcs.write_sync(&Sync::parse(SYNC), Expect::Absent, soon()).await.expect(what);
    dcs.write_failover(&Failover::parse(FAILOVER), Expect::Absent, soon()).await.expect(what);
    dcs.write_history(&History::parse(HISTORY), soon()).await.expect(what);
    dcs.write_failsafe(&Failsafe::parse(FAILSAFE).expect("an object"), soon()).await.expect(what);
}

/// Proves DCS-001 (an absent prefix).
pub async fn an_empty_store_is_the_empty_view(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let a = case.member("a").await;
    assert_eq!(latest(&*a).await, ClusterView::default());
    let watched = a.load(Freshness::Watched, soon()).await.expect("a healthy store");
    assert_eq!(watched, ClusterView::default());
    Ok(())
}

/// Proves DCS-001, DCS-007, DCS-009, DCS-010, DCS-011, DCS-012, DCS-014, DCS-015 and DCS-016 (what is
/// written is read).
pub async fn every_record_comes_back(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = (case.member("pg2").await, case.member("b").await);
    write_all(&*a).await;
    let own = a.load(Freshness::Watched, soon()).await.expect("a healthy store");
    for view in [latest(&*b).await, latest(&*a).await, own] {
        assert_eq!(view.initialize.as_deref(), Some(SYSTEM_ID));
        assert_eq!(view.config.map(|stored| stored.value), Some(config(CONFIG)));
        assert_eq!(view.leader.map(|leader| leader.name), Some("pg2".into()));
        assert_eq!(view.members.len(), 1);
        assert_eq!(view.members[0].name, "pg2".into());
        assert_eq!(view.members[0].data, MemberData::parse(MEMBER));
        assert_eq!(view.status, Status::parse(STATUS));
        assert_eq!(view.sync.map(|stored| stored.value), Some(Sync::parse(SYNC)));
        assert_eq!(view.failover.map(|stored| stored.value), Some(Failover::parse(FAILOVER)));
        assert_eq!(view.history, History::parse(HISTORY));
        assert_eq!(view.failsafe, Failsafe::parse(FAILSAFE));
    }
    Ok(())
}

/// Proves DCS-T10 (flat stores): the bytes under each key are those of section 3.
pub async fn the_bytes_are_patronis(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let a = case.member("pg2").await;
    write_all(&*a).await;
    for (key, bytes) in [
        ("initialize", SYSTEM_ID),
        ("config", CONFIG),
        ("leader", "pg2"),
        ("members/pg2", MEMBER),
        ("status", STATUS),
        ("sync", SYNC),
        ("failover", FAILOVER),
        ("history", HISTORY),
        ("failsafe", FAILSAFE),
    ] {
        let stored = case.store.raw(key).await?;
        let stored = stored.map(|raw| String::from_utf8_lossy(&raw).into_owned());
        assert_eq!(stored.as_deref(), Some(bytes), "{key}");
    }
    a.write_failover(&Failover::default(), Expect::Anything, soon())
        .await
        .expect("a healthy store");
    assert_eq!(case.store.raw("failover").await?.as_deref(), Some(b"{}".as_slice()));
    a.write_initialize("", Expect::Anything, soon()).await.expect("a healthy store");
    assert_eq!(case.store.raw("initialize").await?.as_deref(), Some(b"".as_slice()));
    Ok(())
}

/// One compare-and-set of the record under test, so that all three go through the same questions.
async fn set(
    dcs: &dyn Dcs,
    what: &str,
    n: u64,
    expect: Expect,
) -> Result<Version, crate::DcsError> {
    match what {
        "config" => dcs.write_config(&config(&format!("{{\"n\":{n}}}")), expect, soon()).await,
        "failover" => {
            let candidate = Some(format!("m{n}").as_str().into());
            dcs.write_failover(&Failover { candidate, ..Failover::default() }, expect, soon()).await
        }
        _ => {
            let sync = Sync { leader: Some("a".into()), quorum: n, voters: Vec::new() };
            dcs.write_sync(&sync, expect, soon()).await
        }
    }
}

fn version_of(view: &ClusterView, what: &str) -> Option<Version> {
    match what {
        "config" => view.config.as_ref().map(|stored| stored.version),
        "failover" => view.failover.as_ref().map(|stored| stored.version),
        _ => view.sync.as_ref().map(|stored| stored.version),
    }
}

/// Proves DCS-T6, DCS-012, DCS-013, DCS-014, DCS-015, DCS-320, INV-25.
pub async fn compare_and_set_compares(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for what in ["config", "failover", "sync"] {
        for absent in [Version(0), Version(1)] {
            let answer = set(&*a, what, 1, Expect::Version(absent)).await;
            assert_conflict(&format!("{what}: {absent:?} of a missing key"), answer);
        }
        assert_eq!(version_of(&latest(&*b).await, what), None, "a conflict writes nothing");
        let first = set(&*a, what, 1, Expect::Absent).await.expect("it is absent");
        assert_eq!(version_of(&latest(&*b).await, what), Some(first), "{what}: the version read");
        assert_conflict("absent, but it is there", set(&*b, what, 2, Expect::Absent).await);
        let second = set(&*b, what, 2, Expect::Version(first)).await.expect("the right version");
        assert_ne!(first, second);
        assert_conflict("a stale version", set(&*a, what, 3, Expect::Version(first)).await);
        let watched = a.load(Freshness::Watched, soon()).await.expect("a healthy store");
        let known = version_of(&watched, what).expect("it is there");
        assert!(known == first || known == second, "{what}: a version that never was");
        let third = set(&*a, what, 2, Expect::Version(second)).await.expect("the right version");
        assert_eq!(second != third, case.store.equal_bytes_are_a_write(), "{what}: equal bytes");
        let fourth = set(&*b, what, 4, Expect::Anything).await.expect("whatever it is");
        let latest_version = version_of(&latest(&*a).await, what);
        assert_eq!(latest_version, Some(fourth), "{what}");
    }
    let version = version_of(&latest(&*a).await, "sync").expect("it is there");
    let stale = Version(version.0 + 7);
    assert_conflict("a wrong version", a.delete_sync(Expect::Version(stale), soon()).await);
    assert_conflict("absent", a.delete_sync(Expect::Absent, soon()).await);
    a.delete_sync(Expect::Version(version), soon()).await.expect("the right version");
    assert_conflict("deleted", set(&*b, "sync", 5, Expect::Version(version)).await);
    assert!(latest(&*b).await.sync.is_none());
    a.delete_sync(Expect::Anything, soon()).await.expect("deleting nothing is no error");
    Ok(())
}

/// Proves DCS-006, DCS-007, DCS-008.
pub async fn initialize_is_a_race(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let mut members = Vec::new();
    for n in 0..8 {
        members.push(case.member(&format!("m{n}")).await);
    }
    let by = soon();
    let race = members.iter().map(|m| m.write_initialize("", Expect::Absent, by));
    let answers = futures::future::join_all(race).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for answer in answers.into_iter().filter(Result::is_err) {
        assert_conflict("a lost bootstrap race", answer);
    }
    assert!(latest(&*members[0]).await.is_bootstrapping());
    members[1].delete_initialize(soon()).await.expect("unconditional");
    members[1].delete_initialize(soon()).await.expect("deleting nothing is no error");
    assert_eq!(latest(&*members[0]).await.initialize, None);
    members[2].write_initialize(SYSTEM_ID, Expect::Absent, soon()).await.expect("absent again");
    let other = members[3].write_initialize("7711467298858918991", Expect::Absent, soon()).await;
    assert_conflict("another cluster", other);
    let id = latest(&*members[0]).await.system_id();
    assert_eq!(id.as_ref().map(|id| id.as_str()), Some(SYSTEM_ID));
    Ok(())
}

/// Proves DCS-012: of many writers with the same version exactly one succeeds.
pub async fn one_of_many_writers_wins_a_version(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let mut members = Vec::new();
    for n in 0..8 {
        members.push(case.member(&format!("m{n}")).await);
    }
    let mut version = set(&*members[0], "sync", 1, Expect::Absent).await.expect("absent");
    for round in 2..6_u64 {
        let race = members.iter().enumerate().map(|(n, member)| {
            set(&**member, "sync", round * 100 + n as u64, Expect::Version(version))
        });
        let answers = futures::future::join_all(race).await;
        let winners: Vec<_> = (0..8).filter(|n| answers[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        let sync = latest(&*members[0]).await.sync.expect("written");
        assert_eq!(sync.value.quorum, round * 100 + winners[0] as u64, "the winner's value");
        assert_eq!(answers[winners[0]].as_ref().ok(), Some(&sync.version));
        version = sync.version;
    }
    Ok(())
}

/// Proves DCS-T12, DCS-051 … DCS-059.
pub async fn garbage_costs_nobody_the_view(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for key in ["config", "status", "sync", "failover", "history", "failsafe", "members/bad"] {
        case.store.put_raw(key, "{ not: json \u{1F418}").await?;
    }
    for (key, value) in [
        ("leader", "ghost"),
        ("members/old", "postgres://h:1/p?application_name=http://h:2/patroni"),
        ("members/deep/er", "{}"),
        ("optime/leader", "77"),
        ("unknown", "x"),
        ("unknown/x", "{}"),
    ] {
        case.store.put_raw(key, value).await?;
    }
    let check = |view: ClusterView| {
        assert!(view.config.is_none());
        assert_eq!(view.leader_name(), Some(&"ghost".into()));
        assert!(view.leader_member().is_none());
        assert_eq!(view.status, Status::default());
        assert_eq!(view.sync.as_ref().map(|stored| &stored.value), Some(&Sync::default()));
        assert_eq!(view.history, History::default());
        assert_eq!(view.failsafe, None);
        let names: Vec<_> = view.members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["bad", "old"]);
        assert_eq!(view.members[0].data, MemberData::default());
        assert_eq!(view.members[1].data.api_url.as_deref(), Some("http://h:2/patroni"));
    };
    check(latest(&*a).await);
    check(b.load(Freshness::Watched, soon()).await.expect("a healthy store"));
    a.write_config(&config(CONFIG), Expect::Anything, soon()).await.expect("over the garbage");
    assert_eq!(latest(&*b).await.config.map(|stored| stored.value), Some(config(CONFIG)));
    Ok(())
}

/// Proves what [`Freshness::Watched`] promises.
pub async fn a_watched_view_has_my_own_writes(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let a = case.member("a").await;
    let watched = || async { a.load(Freshness::Watched, soon()).await.expect("a healthy store") };
    for n in 1..30_u64 {
        a.acquire_leader(soon()).await.expect("a free lock");
        assert_eq!(watched().await.leader_name(), Some(&"a".into()), "round {n}");
        a.write_status(&Status { optime: Lsn(n), ..Status::default() }, soon()).await.expect("up");
        assert_eq!(watched().await.status.optime, Lsn(n));
        let data = MemberData { xlog_location: Some(Lsn(n)), ..MemberData::default() };
        a.write_member(&data, soon()).await.expect("up");
        assert_eq!(watched().await.member(&"a".into()).map(|m| m.data.clone()), Some(data));
        let version = set(&*a, "config", n, Expect::Anything).await.expect("up");
        assert_eq!(version_of(&watched().await, "config"), Some(version));
        let version = set(&*a, "sync", n, Expect::Anything).await.expect("up");
        assert_eq!(version_of(&watched().await, "sync"), Some(version));
        a.delete_sync(Expect::Version(version), soon()).await.expect("up");
        assert!(watched().await.sync.is_none());
        a.release_leader(None, soon()).await.expect("mine");
        assert!(watched().await.is_unlocked());
    }
    Ok(())
}

pub async fn a_watched_view_follows_the_others(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for n in 1..6_u64 {
        a.write_status(&Status { optime: Lsn(n), ..Status::default() }, soon()).await.expect("up");
        until("the watched view has another's write", 2_000, || async {
            let view = b.load(Freshness::Watched, soon()).await.expect("a healthy store");
            (view.status.optime == Lsn(n)).then_some(())
        })
        .await;
    }
    a.acquire_leader(soon()).await.expect("a free lock");
    a.release_leader(None, soon()).await.expect("mine");
    until("the watched view has another's delete", 2_000, || async {
        let view = b.load(Freshness::Watched, soon()).await.expect("a healthy store");
        view.is_unlocked().then_some(())
    })
    .await;
    Ok(())
}

/// Proves DCS-091: what was refused is looked at anew; the view shows what stood in the way, whatever
/// the watch has delivered by then.
pub async fn what_refused_me_is_seen(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let seen = || async { b.load(Freshness::Watched, soon()).await.expect("a healthy store") };
    let first = set(&*a, "sync", 0, Expect::Absent).await.expect("absent");
    seen().await;
    for n in 1..40_u64 {
        set(&*a, "sync", n, Expect::Anything).await.expect("a healthy store");
        assert_conflict("stale", set(&*b, "sync", 1_000, Expect::Version(first)).await);
        assert_eq!(seen().await.sync.map(|sync| sync.value.quorum), Some(n));
        a.acquire_leader(soon()).await.expect("a free lock");
        super::assert_not_owner("held", b.acquire_leader(soon()).await);
        assert_eq!(seen().await.leader_name(), Some(&"a".into()), "round {n}");
        a.release_leader(None, soon()).await.expect("mine");
        super::assert_not_owner("nobody's", b.release_leader(None, soon()).await);
        assert!(seen().await.is_unlocked(), "round {n}");
    }
    Ok(())
}

/// Proves DCS-017.
pub async fn delete_cluster_leaves_nothing(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = (case.member("pg2").await, case.member("b").await);
    write_all(&*a).await;
    b.delete_cluster(soon()).await.expect("a healthy store");
    assert_eq!(latest(&*a).await, ClusterView::default());
    b.delete_cluster(soon()).await.expect("deleting nothing is no error");
    write_all(&*a).await;
    assert_eq!(latest(&*b).await.leader_name(), Some(&"pg2".into()), "it can begin again");
    Ok(())
}

/// Proves DCS-082, DCS-090: the record stays while it is written again and again, comes back when
/// its lease was lost, goes when its member is silent for a ttl.
pub async fn a_member_record_lives_on_the_lease(harness: &dyn Harness) -> Outcome {
    let mut case = Case::quick(harness).await;
    case.timing = Timing { loop_wait: 1, ..case.timing };
    let (a, b) = case.pair().await;
    let data = MemberData::parse(MEMBER);
    let there = || async { latest(&*b).await.member(&"a".into()).is_some() };
    let end = crate::Deadline::in_ms(2 * case.gone_ms());
    while !end.left().is_zero() {
        a.write_member(&data, soon()).await.expect("a healthy store");
        assert!(there().await, "written in time, yet gone");
        tokio::time::sleep(Duration::from_millis(case.timing.ttl_ms() / 5)).await;
    }
    case.store.members_expire()?;
    let lost = case.store.inflict(Fault::LoseLease("a".into())).await;
    if lost.is_ok() {
        until("the record is back", 3 * case.timing.loop_wait_ms() + 2_000, || async {
            a.write_member(&data, soon()).await.expect("a healthy store");
            there().await.then_some(())
        })
        .await;
    }
    until("a silent member's record is gone", case.gone_ms() + 1_500, || async {
        (!there().await).then_some(())
    })
    .await;
    lost
}
