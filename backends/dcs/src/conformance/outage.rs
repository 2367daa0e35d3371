//! Nobody answers: never a word about the lock, never a missed deadline, and back afterwards.

use super::lock::{holder, latest};
use super::{Case, Fault, Harness, Outcome, assert_unreachable, soon, until};
use crate::{
    Dcs, DcsError, Deadline, Expect, Failover, Failsafe, Freshness, History, Lsn, MemberData,
    Status, Sync, boottime,
};
use serde_json::Map;

/// Every operation that must ask the store, all at once, each with the same deadline.
async fn every_call_is_unreachable(a: &dyn Dcs, b: &dyn Dcs, why: &str) {
    let by = Deadline::in_ms(1_500);
    let data = MemberData { xlog_location: Some(Lsn(987)), ..MemberData::default() };
    let status = Status { optime: Lsn(987), ..Status::default() };
    let failsafe = Failsafe([("x".to_owned(), "y".to_owned())].into());
    let (config, any) = (Map::new(), Expect::Anything);
    tokio::join!(
        async { assert_unreachable(why, a.load(Freshness::Latest, by).await) },
        async { assert_unreachable(why, a.renew_leader(by).await) },
        async { assert_unreachable(why, b.renew_leader(by).await) },
        async { assert_unreachable(why, b.acquire_leader(by).await) },
        async { assert_unreachable(why, a.write_member(&data, by).await) },
        async { assert_unreachable(why, a.write_status(&status, by).await) },
        async { assert_unreachable(why, a.write_failsafe(&failsafe, by).await) },
        async { assert_unreachable(why, a.write_config(&config, any, by).await) },
        async { assert_unreachable(why, a.write_failover(&Failover::default(), any, by).await) },
        async { assert_unreachable(why, a.write_sync(&Sync::default(), any, by).await) },
        async { assert_unreachable(why, a.delete_sync(any, by).await) },
        async { assert_unreachable(why, a.write_history(&History::default(), by).await) },
        async { assert_unreachable(why, a.write_initialize("1", Expect::Absent, by).await) },
        async { assert_unreachable(why, b.release_leader(None, by).await) },
    );
}

/// The owner still owns it, or it may be had by who asks. Nothing else.
async fn the_lock_is_whole(a: &dyn Dcs, b: &dyn Dcs) {
    until("the store answers again", 20_000, || async {
        match a.renew_leader(soon()).await {
            Ok(()) => Some(()),
            Err(DcsError::NotOwner { holder }) => {
                // What was asked of b during the outage may have been applied after it.
                assert_eq!(holder, Some("b".into()), "the lock went to a stranger");
                b.release_leader(None, soon()).await.ok()?;
                a.acquire_leader(soon()).await.ok()
            }
            Err(_) => None,
        }
    })
    .await;
    assert_eq!(holder(b).await.as_deref(), Some("a"));
}

/// Proves DCS-T4 (SIGSTOP), DCS-301, INV-31.
pub async fn a_paused_store_is_unreachable(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    latest(&*b).await;
    case.store.inflict(Fault::PauseAll).await?;
    every_call_is_unreachable(&*a, &*b, "paused").await;
    case.store.inflict(Fault::ResumeAll).await?;
    the_lock_is_whole(&*a, &*b).await;
    Ok(())
}

/// Proves DCS-T4 (refused), DCS-042, DCS-139 (no call waits beyond its deadline for a connection) and the store's own promise: what was acknowledged survives.
pub async fn a_dead_store_is_unreachable_and_returns(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let status = Status { optime: Lsn(55), ..Status::default() };
    a.write_status(&status, soon()).await.expect("a healthy store");
    b.write_initialize("7711467298858918990", Expect::Absent, soon()).await.expect("absent");
    case.store.inflict(Fault::KillAll).await?;
    every_call_is_unreachable(&*a, &*b, "dead").await;
    case.store.inflict(Fault::StartAll).await?;
    the_lock_is_whole(&*a, &*b).await;
    let view = latest(&*b).await;
    assert_eq!(view.status, status, "acknowledged, then lost");
    assert_eq!(view.initialize.as_deref(), Some("7711467298858918990"), "acknowledged, then lost");
    Ok(())
}

/// Proves DCS-T2, DCS-T4 and INV-31 for a store that stands still for longer than a lease lives: it
/// gives the lock to one of those who ask afterwards, and to another one only after that one's ttl.
pub async fn a_pause_past_the_ttl_makes_no_second_owner(harness: &dyn Harness) -> Outcome {
    let case = Case { store: harness.fresh(super::Needs::Faults).await, timing: harness.quick() };
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    latest(&*b).await;
    case.store.inflict(Fault::PauseAll).await?;
    tokio::time::sleep(std::time::Duration::from_millis(case.gone_ms() + 500)).await;
    assert_unreachable("paused", a.renew_leader(Deadline::in_ms(500)).await);
    case.store.inflict(Fault::ResumeAll).await?;
    // From before the call on, as an owner counts.
    let won = |name: &'static str| {
        let (a, b) = (&*a, &*b);
        move || async move {
            let began = boottime();
            let answer = match name {
                "a" => a.renew_leader(soon()).await,
                _ => b.acquire_leader(soon()).await,
            };
            match answer {
                Ok(()) => Some(Some((began, boottime()))),
                Err(DcsError::NotOwner { .. }) => Some(None),
                Err(DcsError::Unreachable { .. }) => None,
                Err(other) => panic!("{name}: {other}"),
            }
        }
    };
    let (first, second) = tokio::join!(
        until("an answer for a", 20_000, won("a")),
        until("an answer for b", 20_000, won("b")),
    );
    match (first, second) {
        (None, None) => panic!("the lock went to nobody"),
        (Some(_), None) | (None, Some(_)) => {}
        (Some(a), Some(b)) => {
            let (earlier, later) = if a.1 < b.1 { (a, b) } else { (b, a) };
            let apart = later.1.since(earlier.0);
            assert!(apart >= case.timing.ttl_ms(), "two owners within {apart} ms");
        }
    }
    Ok(())
}

/// Proves DCS-T4 (a partitioned minority) and DCS-047 (no quorum).
pub async fn without_quorum_nothing_is_promised(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    latest(&*b).await;
    case.store.inflict(Fault::KillMajority).await?;
    every_call_is_unreachable(&*a, &*b, "no quorum").await;
    case.store.inflict(Fault::StartAll).await?;
    the_lock_is_whole(&*a, &*b).await;
    Ok(())
}

/// Proves DCS-301 for deadlines that cannot be met.
pub async fn a_short_deadline_is_kept(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    for ms in [0, 1, 5, 0, 1, 5] {
        let by = Deadline::in_ms(ms);
        let never_lost = |answer: Result<(), DcsError>| {
            let fine = matches!(answer, Ok(()) | Err(DcsError::Unreachable { .. }));
            assert!(fine, "{ms} ms: {answer:?}");
        };
        never_lost(a.load(Freshness::Latest, by).await.map(drop));
        never_lost(a.acquire_leader(by).await);
        never_lost(a.renew_leader(by).await);
        never_lost(a.write_status(&Status { optime: Lsn(ms), ..Status::default() }, by).await);
        never_lost(a.write_sync(&Sync::default(), Expect::Anything, by).await.map(drop));
    }
    a.renew_leader(soon()).await.expect("nobody else wanted it");
    assert_eq!(holder(&*b).await.as_deref(), Some("a"));
    Ok(())
}
