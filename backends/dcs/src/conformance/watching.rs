//! The stream of wake-ups: each record, in time, across everything that breaks a watch.

use super::{Case, Fault, Harness, Outcome, soon, until};
use crate::{
    Change, Dcs, Deadline, Expect, Failover, Failsafe, Freshness, History, HistoryEntry, Lsn,
    MemberData, Status, Sync, Timeline, boottime,
};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use serde_json::{Map, Value};
use std::time::Duration;

pub type Wakes = BoxStream<'static, Change>;

/// One write that must wake everybody, different for each `n`.
pub(super) async fn touch(dcs: &dyn Dcs, what: &Change, n: u64) {
    let done = match what {
        Change::Initialize => dcs.write_initialize(&n.to_string(), Expect::Anything, soon()).await,
        Change::Config => {
            let mut config = Map::new();
            config.insert("ttl".into(), Value::from(n));
            dcs.write_config(&config, Expect::Anything, soon()).await.map(drop)
        }
        Change::Leader => match dcs.release_leader(None, soon()).await {
            Ok(()) => Ok(()),
            Err(_) => dcs.acquire_leader(soon()).await,
        },
        Change::Member(_) => {
            let data = MemberData { xlog_location: Some(Lsn(n)), ..MemberData::default() };
            dcs.write_member(&data, soon()).await
        }
        Change::Status => {
            dcs.write_status(&Status { optime: Lsn(n), ..Status::default() }, soon()).await
        }
        Change::Sync => {
            let sync = Sync { leader: Some("a".into()), quorum: n, voters: Vec::new() };
            dcs.write_sync(&sync, Expect::Anything, soon()).await.map(drop)
        }
        Change::Failover => {
            let candidate = Some(format!("m{n}").as_str().into());
            let failover = Failover { candidate, ..Failover::default() };
            dcs.write_failover(&failover, Expect::Anything, soon()).await.map(drop)
        }
        Change::History | Change::Everything => {
            let entry = HistoryEntry {
                timeline: Timeline(1),
                switch_lsn: Lsn(n),
                reason: "x".into(),
                at: None,
                new_leader: None,
            };
            dcs.write_history(&History { entries: vec![entry], readable: true }, soon()).await
        }
        Change::Failsafe => {
            let map = [("a".to_owned(), format!("http://h:{n}/patroni"))].into();
            dcs.write_failsafe(&Failsafe(map), soon()).await
        }
    };
    done.unwrap_or_else(|error| panic!("writing {what:?} on a healthy store: {error}"));
}

/// Reads what is already there.
fn drain(wakes: &mut Wakes) -> Vec<Change> {
    let mut seen = Vec::new();
    while let Some(Some(change)) = wakes.next().now_or_never() {
        seen.push(change);
    }
    seen
}

/// Waits for this change or for `Everything`.
async fn woken_by(wakes: &mut Wakes, what: &Change, within_ms: u64) -> bool {
    let end = Deadline::in_ms(within_ms);
    while let Ok(next) = tokio::time::timeout(end.left(), wakes.next()).await {
        let change = next.expect("the stream never ends");
        if change == *what || change == Change::Everything {
            return true;
        }
    }
    false
}

/// Returns when the stream is known to deliver, and is silent.
pub(super) async fn standing(writer: &dyn Dcs, wakes: &mut Wakes) {
    let end = Deadline::in_ms(10_000);
    for n in 1.. {
        touch(writer, &Change::History, n).await;
        let exact = async {
            loop {
                if wakes.next().await.expect("the stream never ends") == Change::History {
                    return;
                }
            }
        };
        if tokio::time::timeout(Duration::from_millis(300), exact).await.is_ok() {
            break;
        }
        assert!(!end.left().is_zero(), "the watch never delivered anything");
    }
    while tokio::time::timeout(Duration::from_millis(200), wakes.next()).await.is_ok() {}
}

/// Proves DCS-T9, DCS-018, DCS-304, HA-300: every record of the matrix, another's and my own writes alike.
///
/// 100 ms is what a store owes, not what a busy machine's scheduler owes: of ten writes of each
/// record one must be that fast, all must come.
pub async fn every_record_wakes(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    for what in [
        Change::Initialize,
        Change::Config,
        Change::Leader,
        Change::Member("a".into()),
        Change::Status,
        Change::Sync,
        Change::Failover,
        Change::History,
        Change::Failsafe,
    ] {
        let mut fastest = u64::MAX;
        for n in 0..10 {
            drain(&mut wakes);
            touch(&*a, &what, 100 + n).await;
            let written = boottime();
            assert!(woken_by(&mut wakes, &what, 3_000).await, "{what:?} did not wake in 3 s");
            fastest = fastest.min(boottime().since(written));
            if n >= 2 && fastest <= 100 {
                break;
            }
        }
        assert!(fastest <= 100, "{what:?}: never faster than {fastest} ms");
    }
    drain(&mut wakes);
    a.delete_sync(Expect::Anything, soon()).await.expect("a healthy store");
    assert!(woken_by(&mut wakes, &Change::Sync, 3_000).await, "a deletion wakes");
    drain(&mut wakes);
    a.delete_initialize(soon()).await.expect("a healthy store");
    assert!(woken_by(&mut wakes, &Change::Initialize, 3_000).await, "a deletion wakes");
    Ok(())
}

/// Proves DCS-009, DCS-010, DCS-011: an idle cluster writes nothing.
pub async fn equal_values_are_not_written(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    let records = [Change::Member("a".into()), Change::Status, Change::Failsafe];
    for what in &records {
        touch(&*a, what, 5).await;
        assert!(woken_by(&mut wakes, what, 3_000).await, "{what:?}");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    drain(&mut wakes);
    for _ in 0..5 {
        for what in &records {
            touch(&*a, what, 5).await;
        }
    }
    // The stream is in order: once this arrives, what was written before has arrived.
    touch(&*a, &Change::Config, 1).await;
    let next = wakes.next().await.expect("the stream never ends");
    assert_eq!(next, Change::Config, "it woke although nothing was written");
    Ok(())
}

pub async fn every_stream_of_a_handle_wakes(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let a = case.member("a").await;
    let (mut first, mut second) = (a.watch(), a.watch());
    standing(&*a, &mut first).await;
    standing(&*a, &mut second).await;
    drop(second);
    drain(&mut first);
    touch(&*a, &Change::Config, 1).await;
    assert!(
        woken_by(&mut first, &Change::Config, 3_000).await,
        "the other stream's end is its own"
    );
    Ok(())
}

/// Proves HA-300 (a deleted leader key starts a turn at once) for an owner that died.
pub async fn an_expired_lock_wakes(harness: &dyn Harness) -> Outcome {
    let case = Case::quick(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*b, &mut wakes).await;
    a.acquire_leader(soon()).await.expect("a free lock");
    assert!(woken_by(&mut wakes, &Change::Leader, 3_000).await, "acquired");
    drain(&mut wakes);
    let allowed = case.gone_ms() + 2_000;
    assert!(woken_by(&mut wakes, &Change::Leader, allowed).await, "expired, nobody woke");
    b.acquire_leader(soon()).await.expect("the key was gone before the wake-up");
    Ok(())
}

/// Proves DCS-210 as it is here: who sees no leader, and who leads, wait for events like everybody else.
pub async fn everybody_is_woken_whoever_leads(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let mut of_b = b.watch();
    standing(&*a, &mut of_b).await;
    a.acquire_leader(soon()).await.expect("a free lock");
    assert!(woken_by(&mut of_b, &Change::Leader, 3_000).await, "who saw no leader");
    let mut of_a = a.watch();
    standing(&*b, &mut of_a).await;
    for what in [Change::Config, Change::Failover, Change::Member("b".into())] {
        touch(&*b, &what, 7).await;
        assert!(woken_by(&mut of_a, &what, 3_000).await, "{what:?}: who leads");
    }
    Ok(())
}

/// Proves the bound of the stream: at most 256 changes wait, and none is lost silently.
pub async fn a_slow_reader_is_bounded(harness: &dyn Harness) -> Outcome {
    let case = Case::healthy(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    for n in 0..400 {
        touch(&*a, &Change::Status, 1_000 + n).await;
    }
    touch(&*a, &Change::Config, 1).await;
    let mut seen = Vec::new();
    let end = Deadline::in_ms(5_000);
    while !seen.contains(&Change::Everything) && !seen.contains(&Change::Config) {
        let next = tokio::time::timeout(end.left(), wakes.next()).await;
        seen.push(next.expect("a full stream still delivers").expect("the stream never ends"));
    }
    seen.extend(drain(&mut wakes));
    assert!(seen.len() <= 256, "{} changes were kept for a slow reader", seen.len());
    touch(&*a, &Change::Failover, 1).await;
    assert!(woken_by(&mut wakes, &Change::Failover, 3_000).await, "a slow reader is awake again");
    Ok(())
}

/// Proves DCS-T9 and DCS-138 (a lost connection wakes): the stream outlives its store, says so, and delivers again.
pub async fn a_watch_survives_restarts(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    for _ in 0..2 {
        case.store.inflict(Fault::KillAll).await?;
        case.store.inflict(Fault::StartAll).await?;
        until("the watch says that it was interrupted", 15_000, || {
            let change = wakes.next().now_or_never().flatten();
            async move { change.filter(|change| *change == Change::Everything) }
        })
        .await;
        standing(&*a, &mut wakes).await;
    }
    Ok(())
}

/// Proves DCS-T9 (compaction): what a watch would resume from is gone.
pub async fn a_watch_survives_compaction(harness: &dyn Harness) -> Outcome {
    let case = Case::lossy(harness).await;
    let (a, b) = case.pair().await;
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    case.store.inflict(Fault::Compact).await?;
    standing(&*a, &mut wakes).await;
    touch(&*a, &Change::Config, 7).await;
    assert!(woken_by(&mut wakes, &Change::Config, 3_000).await, "after the compaction");
    Ok(())
}

/// Proves DCS-074 as it is here: a store that keeps its connections and says nothing is found out within
/// the ttl by the watch itself, and what it showed is not believed any more.
pub async fn a_silent_watch_is_not_believed(harness: &dyn Harness) -> Outcome {
    let case = Case::faulty(harness).await;
    let (a, b) = case.pair().await;
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut wakes = b.watch();
    standing(&*a, &mut wakes).await;
    b.load(Freshness::Watched, soon()).await.expect("a healthy store");
    case.store.inflict(Fault::PauseAll).await?;
    until("the watch is not believed any more", case.timing.ttl_ms(), || async {
        match b.load(Freshness::Watched, Deadline::in_ms(200)).await {
            Err(crate::DcsError::Unreachable { .. }) => Some(()),
            Ok(view) if view.leader_name() == Some(&"a".into()) => None,
            other => panic!("{other:?} of a store that says nothing"),
        }
    })
    .await;
    case.store.inflict(Fault::ResumeAll).await?;
    until("the store answers again", 15_000, || async { a.renew_leader(soon()).await.ok() }).await;
    standing(&*a, &mut wakes).await;
    Ok(())
}
