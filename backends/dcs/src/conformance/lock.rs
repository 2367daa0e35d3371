//! Who holds the leader key, for how long, and how it changes hands.

use super::watching::standing;
use super::{Case, Fault, Harness, Outcome, assert_not_owner, soon, until};
use crate::{
    Change, ClusterView, Dcs, DcsError, Deadline, Freshness, Lsn, MemberData, MemberName, Status,
    Timing, boottime,
};
use futures::{FutureExt, StreamExt};
use std::time::Duration;

pub(super) async fn latest(dcs: &dyn Dcs) -> ClusterView {
    dcs.load(Freshness::Latest, soon()).await.expect("a healthy store answers")
}

pub(super) async fn holder(dcs: &dyn Dcs) -> Option<String> {
    latest(dcs).await.leader.map(|leader| leader.name.0)
}

/// Proves DCS-T1, DCS-002: of 32 members racing for the key exactly one has it, all see the same.
pub async fn one_of_32_contenders_wins(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let mut members = Vec::new();
    for n in 0..32 {
        members.push(case.member(&format!("m{n}")).await);
    }
    let by = Deadline::in_ms(20_000);
    let race = members.iter().map(|member| member.acquire_leader(by));
    let answers = futures::future::join_all(race).await;
    let winners: Vec<usize> = (0..32).filter(|n| answers[*n].is_ok()).collect();
    assert_eq!(winners.len(), 1, "one leader key, winners {winners:?} of {answers:?}");
    let winner = format!("m{}", winners[0]);
    for answer in answers {
        match answer {
            Ok(()) => {}
            Err(DcsError::NotOwner { holder }) => {
                let right = holder.is_none_or(|name| name.as_str() == winner);
                assert!(right, "a loser was told of another winner than {winner}");
            }
            Err(other) => panic!("a loser of a healthy store got {other:?}"),
        }
    }
    for member in members.iter().step_by(8) {
        assert_eq!(holder(&**member).await.as_deref(), Some(winner.as_str()));
    }
    Ok(())
}

/// Proves DCS-003, DCS-086 (a renewal is no change): the lock outlives three leases.
pub async fn renewal_keeps_the_lock_and_wakes_nobody(harness: &dyn Harness) -> Outcome {
    let case = Case::quick(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    let end = Deadline::in_ms(3 * case.timing.ttl_ms());
    while !end.left().is_zero() {
        a.renew_leader(soon()).await.expect("a holder that renews in time keeps the lock");
        assert_not_owner("another's acquire", b.acquire_leader(soon()).await);
        tokio::time::sleep(Duration::from_millis(case.timing.ttl_ms() / 5)).await;
    }
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    while let Some(change) = wakes.next().now_or_never().flatten() {
        assert_ne!(change, Change::Leader, "a renewal woke the others");
    }
    Ok(())
}

/// Proves DCS-003, DCS-004: NotOwner for who does not hold it, with the holder's name, and the key
/// stays.
pub async fn only_the_owner_renews_and_releases(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let by_a = Err(DcsError::NotOwner { holder: Some(MemberName::from("a")) });
    assert_eq!(b.renew_leader(soon()).await, by_a);
    assert_eq!(b.acquire_leader(soon()).await, by_a);
    let status = Status { optime: Lsn(9), ..Status::default() };
    assert_not_owner("release", b.release_leader(Some(&status), soon()).await);
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    a.renew_leader(soon()).await.expect("the holder is untouched");
    a.release_leader(None, soon()).await.expect("the holder releases");
    assert_eq!(holder(&*b).await, None);
    assert_not_owner("a second release", a.release_leader(None, soon()).await);
    b.acquire_leader(soon()).await.expect("a free lock");
    Ok(())
}

/// Proves DCS-T2: not before the ttl, not later than the ttl and the store's slack.
pub async fn an_abandoned_lock_is_free_after_ttl(harness: &dyn Harness) -> Outcome {
    let case = Case::quick(harness).await;
    let (a, b) = case.pair().await;
    let asked = boottime();
    a.acquire_leader(soon()).await.expect("a free lock");
    let answered = boottime();
    until("the abandoned lock is gone", 3 * case.gone_ms() + 5_000, || async {
        holder(&*b).await.is_none().then_some(())
    })
    .await;
    let (shortest, longest) = (boottime().since(asked), boottime().since(answered));
    assert!(shortest >= case.timing.ttl_ms(), "gone after {shortest} ms, before the ttl");
    let allowed = case.gone_ms() + 500;
    assert!(longest <= allowed, "gone after {longest} ms, allowed {allowed}");
    b.acquire_leader(soon()).await.expect("an expired lock is free");
    assert_eq!(
        a.renew_leader(soon()).await,
        Err(DcsError::NotOwner { holder: Some(MemberName::from("b")) })
    );
    assert_eq!(holder(&*a).await.as_deref(), Some("b"));
    Ok(())
}

/// Proves DCS-003 (re-bound to a new lease): an agent that comes back under its own name keeps its
/// lock beyond the lease of its former life.
pub async fn a_restarted_owner_renews_on_its_new_lease(harness: &dyn Harness) -> Outcome {
    let case = Case::quick(harness).await;
    let (first, b) = case.pair().await;
    first.acquire_leader(soon()).await.expect("a free lock");
    drop(first);
    let second = case.member("a").await;
    second.renew_leader(soon()).await.expect("the key still carries my name");
    let end = Deadline::in_ms(case.gone_ms() + 1_000);
    while !end.left().is_zero() {
        second.renew_leader(soon()).await.expect("held");
        assert_eq!(holder(&*b).await.as_deref(), Some("a"));
        tokio::time::sleep(Duration::from_millis(case.timing.ttl_ms() / 5)).await;
    }
    second.release_leader(None, soon()).await.expect("held");
    Ok(())
}

/// Proves DCS-T13 (second half), DCS-004: who sees the lock free sees the last status.
pub async fn release_shows_the_status_before_the_delete(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for n in 1..=10 {
        a.acquire_leader(soon()).await.expect("a free lock");
        let status = Status { optime: Lsn(1000 + n), ..Status::default() };
        let observer = async {
            loop {
                let view = latest(&*b).await;
                if view.is_unlocked() {
                    return view.status.optime;
                }
            }
        };
        let (released, seen) = tokio::join!(a.release_leader(Some(&status), soon()), observer);
        released.expect("mine");
        assert_eq!(seen, Lsn(1000 + n), "unlocked with an old status");
    }
    Ok(())
}

/// Proves DCS-T13 (first half).
pub async fn a_pending_acquire_wins_after_a_release(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    assert_not_owner("held", b.acquire_leader(soon()).await);
    let status = Status { optime: Lsn(77), ..Status::default() };
    a.release_leader(Some(&status), soon()).await.expect("mine");
    b.acquire_leader(soon()).await.expect("the first attempt after the release wins");
    let view = latest(&*b).await;
    assert_eq!(view.leader_name(), Some(&MemberName::from("b")));
    assert_eq!(view.status.optime, Lsn(77));
    Ok(())
}

/// Proves DCS-005.
pub async fn take_leader_overrides(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let a = case.member("a").await;
    a.take_leader(soon()).await.expect("a free lock");
    assert_eq!(holder(&*a).await.as_deref(), Some("a"));
    a.take_leader(soon()).await.expect("my own lock");
    a.renew_leader(soon()).await.expect("mine");
    Ok(())
}

/// Proves DCS-T3 (nobody took it), DCS-035.
pub async fn a_lost_lease_is_replaced_if_nobody_took_the_lock(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let data = MemberData { conn_url: Some("postgres://h:1/x".into()), ..MemberData::default() };
    a.acquire_leader(soon()).await.expect("a free lock");
    a.write_member(&data, soon()).await.expect("a healthy store");
    case.store.inflict(Fault::LoseLease("a".into())).await?;
    a.renew_leader(soon()).await.expect("nobody took it");
    a.write_member(&data, soon()).await.expect("a healthy store");
    let view = latest(&*b).await;
    assert_eq!(view.leader_name(), Some(&MemberName::from("a")));
    assert_eq!(view.member(&"a".into()).map(|m| &m.data), Some(&data), "the member came back");
    assert_not_owner("held again", b.acquire_leader(soon()).await);
    Ok(())
}

/// Proves DCS-T3 (somebody took it): never two owners.
pub async fn a_lost_lease_loses_the_lock_to_who_took_it(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    case.store.inflict(Fault::LoseLease("a".into())).await?;
    until("the key goes with its lease", 5_000, || async { b.acquire_leader(soon()).await.ok() })
        .await;
    assert_eq!(
        a.renew_leader(soon()).await,
        Err(DcsError::NotOwner { holder: Some(MemberName::from("b")) })
    );
    assert_not_owner("release", a.release_leader(None, soon()).await);
    b.renew_leader(soon()).await.expect("b holds it");
    assert_eq!(holder(&*a).await.as_deref(), Some("b"));
    Ok(())
}

/// Proves DCS-T7, DCS-019: the lock is never free, and the new length counts.
pub async fn a_new_ttl_keeps_the_lock(harness: &dyn Harness) -> Outcome {
    let case = Case::quick(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    a.set_timing(Timing { ttl: case.timing.ttl * 3 + 4, ..case.timing });
    a.renew_leader(soon()).await.expect("the same lock on a longer lease");
    let end = Deadline::in_ms(case.gone_ms() + 1_000);
    while !end.left().is_zero() {
        assert_not_owner("with the longer ttl", b.acquire_leader(soon()).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.set_timing(case.timing);
    a.renew_leader(soon()).await.expect("the same lock on a shorter lease");
    until("the shorter ttl counts", case.gone_ms() + 1_000, || async {
        holder(&*b).await.is_none().then_some(())
    })
    .await;
    Ok(())
}

/// Proves what the contract says of a dropped future.
pub async fn dropped_calls_leave_a_working_handle(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for n in 0..30_u64 {
        let short = Duration::from_micros(100 * n);
        let _ = tokio::time::timeout(short, a.acquire_leader(soon())).await;
        let _ = tokio::time::timeout(short, a.renew_leader(soon())).await;
        let _ = tokio::time::timeout(short, a.load(Freshness::Latest, soon())).await;
    }
    a.renew_leader(soon()).await.expect("nobody else wanted it");
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    assert_not_owner("held", b.acquire_leader(soon()).await);
    Ok(())
}
