//! One of three is gone, or an answer is: operations go on, and what is unknown is read again.

use super::lock::{holder, latest};
use super::records::write_all;
use super::watching::{standing, touch};
use super::{Cannot, Case, Fault, Harness, Outcome, Target, Way, assert_conflict, soon, until};
use crate::{Change, Dcs, DcsError, Deadline, Expect, Freshness, Lsn, Status, Sync};
use std::time::Duration;

/// Renewals, reads, writes and wake-ups of a store go on, each within 8 s, while one of its members is
/// hurt in each of these ways (a store leader that is gone costs the store an election), for so many
/// rounds; and the lock stays where it is.
async fn one_is_hurt(case: Case, faults: &[Fault], rounds: u64) -> Outcome {
    if case.store.members() < 3 {
        return Err(Cannot::ALONE);
    }
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    for (nth, fault) in (0..).zip(faults) {
        case.store.inflict(fault.clone()).await?;
        for n in rounds * nth..rounds * (nth + 1) {
            it_goes_on(&*a, &*b, n).await;
        }
        standing(&*a, &mut wakes).await;
        case.store.inflict(Fault::RestoreOne).await?;
        a.renew_leader(soon()).await.expect("whole again");
    }
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    standing(&*a, &mut wakes).await;
    Ok(())
}

async fn it_goes_on(a: &dyn Dcs, b: &dyn Dcs, n: u64) {
    a.renew_leader(soon()).await.expect("two of three are enough to renew");
    let view = b.load(Freshness::Latest, soon()).await.expect("two of three answer");
    assert_eq!(view.leader_name(), Some(&"a".into()), "the lock was lost");
    let status = Status { optime: Lsn(100 + n), ..Status::default() };
    a.write_status(&status, soon()).await.expect("two of three take a write");
    let sync = Sync { leader: Some("a".into()), quorum: n, voters: Vec::new() };
    a.write_sync(&sync, Expect::Anything, soon()).await.expect("two of three take a write");
    super::assert_not_owner("held", b.acquire_leader(soon()).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Proves DCS-T4 and section 3 of docs/spec/crates.md for one member gone, here and in the next three.
pub async fn one_killed_follower_costs_nothing(harness: &dyn Harness) -> Outcome {
    one_is_hurt(Case::faulty(harness).await, &[Fault::KillOne(Target::Follower)], 8).await
}

pub async fn one_killed_leader_costs_nothing(harness: &dyn Harness) -> Outcome {
    one_is_hurt(Case::faulty(harness).await, &[Fault::KillOne(Target::Leader)], 8).await
}

pub async fn one_paused_follower_costs_nothing(harness: &dyn Harness) -> Outcome {
    one_is_hurt(Case::faulty(harness).await, &[Fault::PauseOne(Target::Follower)], 8).await
}

pub async fn one_paused_leader_costs_nothing(harness: &dyn Harness) -> Outcome {
    one_is_hurt(Case::faulty(harness).await, &[Fault::PauseOne(Target::Leader)], 8).await
}

/// Proves DCS-T4 for one of three that is cut off in one direction, or slow: it is reached and does not
/// answer, or hears nothing, or is late, and the others carry on. (DCS-030, DCS-073)
pub async fn one_half_cut_off_costs_nothing(harness: &dyn Harness) -> Outcome {
    let faults = [
        Fault::CutOne(Target::Follower, Way::Requests),
        Fault::CutOne(Target::Follower, Way::Answers),
        Fault::CutOne(Target::Leader, Way::Answers),
        Fault::SlowOne(Target::Follower, 3_000),
    ];
    one_is_hurt(Case::lossy(harness).await, &faults, 2).await
}

/// An answer that did not come says nothing; only these two may be said of a write without one.
fn unknown_or_done<T: std::fmt::Debug>(what: &str, answer: Result<T, DcsError>) {
    let fair = matches!(answer, Ok(_) | Err(DcsError::Unreachable { .. }));
    assert!(fair, "{what}: {answer:?} without an answer from the store");
}

/// Proves DCS-024, DCS-025: applied, but nobody said so.
pub async fn a_late_acquire_is_found_by_reading_again(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    latest(&*a).await;
    a.write_member(&crate::MemberData::default(), soon()).await.expect("a healthy store");
    case.store.inflict(Fault::HoldAnswers).await?;
    super::assert_unreachable("acquire", a.acquire_leader(Deadline::in_ms(1_200)).await);
    case.store.inflict(Fault::ReleaseAnswers).await?;
    let found = until("the store answers again", 8_000, || async {
        a.load(Freshness::Latest, soon()).await.ok()
    })
    .await;
    match found.leader {
        // A store that needs more than one request may not have come as far as the key.
        None => a.acquire_leader(soon()).await.expect("nobody else wanted it"),
        Some(leader) => assert_eq!(leader.name, "a".into()),
    }
    super::assert_not_owner("held", b.acquire_leader(soon()).await);
    a.renew_leader(soon()).await.expect("what was read is mine");
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    Ok(())
}

/// Proves DCS-024, DCS-025 for a compare-and-set.
pub async fn a_late_compare_and_set_is_found_by_reading_again(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    let sync = |n| Sync { leader: Some("a".into()), quorum: n, voters: Vec::new() };
    let first = a.write_sync(&sync(1), Expect::Absent, soon()).await.expect("absent");
    case.store.inflict(Fault::HoldAnswers).await?;
    let late = a.write_sync(&sync(2), Expect::Version(first), Deadline::in_ms(1_200)).await;
    super::assert_unreachable("compare-and-set", late);
    case.store.inflict(Fault::ReleaseAnswers).await?;
    let found = until("the late write is found", 8_000, || async {
        let stored = b.load(Freshness::Latest, soon()).await.ok()?.sync?;
        (stored.value == sync(2)).then_some(stored.version)
    })
    .await;
    let stale = b.write_sync(&sync(3), Expect::Version(first), soon()).await;
    assert_conflict("the old version", stale);
    b.write_sync(&sync(3), Expect::Version(found), soon()).await.expect("the version read again");
    Ok(())
}

/// Proves section 1 rule 2 of docs/spec/crates.md: "failed" while paused, applied after it.
pub async fn a_write_while_paused_is_found_by_reading_again(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let old = Status { optime: Lsn(1), ..Status::default() };
    a.write_status(&old, soon()).await.expect("a healthy store");
    case.store.inflict(Fault::PauseAll).await?;
    let new = Status { optime: Lsn(2), ..Status::default() };
    let by = Deadline::in_ms(1_000);
    let (written, renewed) = tokio::join!(a.write_status(&new, by), a.renew_leader(by));
    super::assert_unreachable("status", written);
    super::assert_unreachable("renewal", renewed);
    case.store.inflict(Fault::ResumeAll).await?;
    until("the store answers again", 15_000, || async { a.renew_leader(soon()).await.ok() }).await;
    let seen = latest(&*b).await.status;
    assert!(seen == old || seen == new, "{seen:?} was never written");
    // The unknown value was not taken for written: writing it again makes it so.
    a.write_status(&new, soon()).await.expect("a healthy store");
    until("the status is the one written", 3_000, || async {
        (latest(&*b).await.status == new).then_some(())
    })
    .await;
    Ok(())
}

/// Proves DCS-T5, DCS-025, DCS-305, DCS-324: the connection dies between the write and its answer;
/// within the same call the outcome is found out.
pub async fn a_lost_answer_is_no_lost_lock(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    a.write_member(&crate::MemberData::default(), soon()).await.expect("a healthy store");
    for round in 0..5_u64 {
        let cut = || Fault::CutAnswer(u32::try_from(round).unwrap_or(0));
        case.store.inflict(cut()).await?;
        a.acquire_leader(soon()).await.expect("my own success is not somebody else's");
        assert_eq!(holder(&*b).await.as_deref(), Some("a"));
        case.store.inflict(cut()).await?;
        a.renew_leader(soon()).await.expect("still mine");
        let sync = |n| Sync { leader: Some("a".into()), quorum: n, voters: Vec::new() };
        let expect = match latest(&*b).await.sync {
            None => Expect::Absent,
            Some(stored) => Expect::Version(stored.version),
        };
        case.store.inflict(cut()).await?;
        let version = a.write_sync(&sync(round), expect, soon()).await.expect("nobody else writes");
        let stored = latest(&*b).await.sync.expect("written");
        assert_eq!((stored.value, stored.version), (sync(round), version));
        case.store.inflict(cut()).await?;
        match a.release_leader(None, soon()).await {
            Ok(()) => {}
            other => unknown_or_done("release", other),
        }
        assert_eq!(holder(&*b).await, None, "released");
    }
    Ok(())
}

/// Proves DCS-025 for the race in which all write the same bytes: a lost answer neither makes a
/// second winner nor hides the first.
pub async fn a_lost_answer_is_no_second_bootstrap(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    for round in 0..6 {
        case.store.inflict(Fault::CutAnswer(round)).await?;
        let (first, second) = tokio::join!(
            a.write_initialize("", Expect::Absent, soon()),
            b.write_initialize("", Expect::Absent, soon()),
        );
        let winners = u32::from(first.is_ok()) + u32::from(second.is_ok());
        assert_eq!(winners, 1, "round {round}: {first:?}, {second:?}");
        a.delete_initialize(soon()).await.expect("a healthy store");
    }
    Ok(())
}

/// Proves DCS-071, DCS-141 and DCS-180 (a write of any record is tried until the caller's deadline, over
/// as many connections as it takes) and DCS-030.
pub async fn a_lost_answer_costs_no_record(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    for round in 0..2_u32 {
        for what in [
            Change::Initialize,
            Change::Config,
            Change::Member("a".into()),
            Change::Status,
            Change::Sync,
            Change::Failover,
            Change::History,
            Change::Failsafe,
        ] {
            case.store.inflict(Fault::CutAnswer(round)).await?;
            touch(&*a, &what, 40 + u64::from(round)).await;
        }
    }
    // The last one may be waiting for an answer to cut.
    let view = latest(&*b).await;
    assert_eq!(view.initialize.as_deref(), Some("41"));
    assert_eq!(view.config.and_then(|config| config.value["ttl"].as_u64()), Some(41));
    assert_eq!(view.members.first().and_then(|member| member.data.lsn()), Some(Lsn(41)));
    assert_eq!(view.status.optime, Lsn(41));
    assert_eq!(view.sync.map(|sync| sync.value.quorum), Some(41));
    let candidate = view.failover.and_then(|failover| failover.value.candidate);
    assert_eq!(candidate, Some("m41".into()));
    assert_eq!(view.history.entries.first().map(|entry| entry.switch_lsn), Some(Lsn(41)));
    assert_eq!(
        view.failsafe.map(|map| map.0),
        Some([("a".into(), "http://h:41/patroni".into())].into())
    );
    Ok(())
}

/// Proves DCS-001 and DCS-137: a reading that was interrupted begins again; nobody sees half of it.
pub async fn a_lost_answer_is_no_half_view(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = (case.member("pg2").await, case.member("b").await);
    write_all(&*a).await;
    let whole = latest(&*b).await;
    for round in 0..6 {
        case.store.inflict(Fault::CutAnswer(round)).await?;
        let view = b.load(Freshness::Latest, soon()).await.expect("read again");
        assert_eq!(view, whole, "round {round}");
    }
    Ok(())
}

/// Proves DCS-T4 (cut in one direction: from the agent to the store) and DCS-024.
pub async fn requests_that_do_not_arrive_change_nothing(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    latest(&*b).await;
    case.store.inflict(Fault::HoldRequests).await?;
    let by = Deadline::in_ms(1_200);
    let (renewed, acquired, read) =
        tokio::join!(a.renew_leader(by), b.acquire_leader(by), b.load(Freshness::Latest, by));
    super::assert_unreachable("renewal", renewed);
    super::assert_unreachable("acquire", acquired);
    super::assert_unreachable("read", read);
    case.store.inflict(Fault::ReleaseRequests).await?;
    until("the store answers again", 15_000, || async { a.renew_leader(soon()).await.ok() }).await;
    super::assert_not_owner("held", b.acquire_leader(soon()).await);
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    Ok(())
}

/// Proves DCS-T4 (slow) and DCS-301: what comes in time counts, what comes later is unknown, and
/// nothing is lost by it.
pub async fn slow_answers_cost_time_only(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    case.store.inflict(Fault::SlowAnswers(150)).await?;
    for n in 0..3 {
        a.renew_leader(soon()).await.expect("it answers in time");
        super::assert_not_owner("held", b.acquire_leader(soon()).await);
        let status = Status { optime: Lsn(n + 1), ..Status::default() };
        a.write_status(&status, soon()).await.expect("it answers in time");
        assert_eq!(latest(&*b).await.status, status);
    }
    case.store.inflict(Fault::SlowAnswers(3_000)).await?;
    let by = Deadline::in_ms(1_000);
    let (renewed, acquired) = tokio::join!(a.renew_leader(by), b.acquire_leader(by));
    super::assert_unreachable("renewal", renewed);
    super::assert_unreachable("acquire", acquired);
    case.store.inflict(Fault::SlowAnswers(0)).await?;
    until("the store answers again", 15_000, || async { a.renew_leader(soon()).await.ok() }).await;
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    standing(&*a, &mut wakes).await;
    Ok(())
}

/// Proves DCS-T8 (rights withdrawn while running), DCS-036 and DCS-041: who may not look learns
/// nothing about the lock: it is neither lost nor free, and the cluster is not empty.
pub async fn withdrawn_rights_are_no_lost_lock(harness: &dyn Harness) -> Outcome {
    let case = Case::with_rights(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    a.write_member(&crate::MemberData::default(), soon()).await.expect("a healthy store");
    b.write_initialize("7711467298858918990", Expect::Absent, soon()).await.expect("absent");
    latest(&*b).await;
    case.store.inflict(Fault::Forbid).await?;
    fn says_nothing<T: std::fmt::Debug>(what: &str, answer: Result<T, DcsError>) -> bool {
        let silent = matches!(
            answer,
            Err(DcsError::Refused { .. }
                | DcsError::Unreachable { .. }
                | DcsError::NotRetriable { .. })
        );
        assert!(silent || answer.is_ok(), "{what}: {answer:?} from a store that may not be asked");
        silent
    }
    // Some stores keep what they know of rights for a moment.
    until("the rights are gone", 10_000, || async {
        let written = a.write_history(&crate::History::default(), Deadline::in_ms(1_500)).await;
        says_nothing("history", written).then_some(())
    })
    .await;
    for _ in 0..3 {
        let by = Deadline::in_ms(1_500);
        let (renewed, acquired, begun, read) = tokio::join!(
            a.renew_leader(by),
            b.acquire_leader(by),
            b.write_initialize("", Expect::Absent, by),
            b.load(Freshness::Latest, by),
        );
        says_nothing("renewal", renewed);
        assert!(says_nothing("acquire", acquired), "a lock that is held was given away");
        assert!(says_nothing("initialize", begun), "a cluster was begun a second time");
        if let Ok(view) = read {
            assert_eq!(view.leader_name(), Some(&"a".into()), "{view:?}");
            assert!(view.initialize.is_some(), "the cluster looks empty: {view:?}");
        }
    }
    case.store.inflict(Fault::Permit).await?;
    until("the rights are back", 15_000, || async { a.renew_leader(soon()).await.ok() }).await;
    super::assert_not_owner("held", b.acquire_leader(soon()).await);
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    Ok(())
}
