//! The agent itself fails while its PostgreSQL goes on: without a guard this is the moment of two
//! writable primaries.

use crate::{PAUSE, SETTLED, TTL, cluster};
use hathi_test_support::check::{Loss, longest_gap};
use hathi_test_support::{Cluster, Store, Writers, check};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// kill -9 of the primary's agent alone.
pub async fn guard_stops_postgres_when_the_agent_is_killed(store: Store) {
    let mut cluster = cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    cluster.kill_agent(old);
    let fenced = another_leads(&cluster, &writers, old).await;
    cluster.start_agent(old);
    finish(cluster, writers, old, fenced).await;
}

/// SIGSTOP of the primary's agent; when it wakes up it finds itself deposed and follows.
pub async fn guard_stops_postgres_when_the_agent_is_frozen(store: Store) {
    let cluster = cluster(store).await;
    let old = cluster.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    cluster.signal_agent(old, Signal::STOP);
    let fenced = another_leads(&cluster, &writers, old).await;
    cluster.signal_agent(old, Signal::CONT);
    finish(cluster, writers, old, fenced).await;
}

/// Waits until another node takes writes. Returns the stretch around the moment the old primary
/// stopped: what it acknowledged last may not have been streamed.
async fn another_leads(cluster: &Cluster, writers: &Writers, old: usize) -> Loss {
    let started = Instant::now();
    let new = cluster
        .wait("another node takes writes", TTL + Duration::from_secs(20), || async {
            match writers.last() {
                Some(last) if last.node != old => Ok(last),
                other => Err(format!("the last write was {other:?}")),
            }
        })
        .await;
    assert!(new.sent > started);
    Loss { from: started, to: new.sent }
}

async fn finish(cluster: Cluster, writers: Writers, old: usize, fenced: Loss) {
    cluster.healthy(SETTLED).await;
    let written = writers.stop().await;
    // The rows of the last second before the old primary was stopped. Only its own count: the new
    // one may have taken several before anybody looked.
    let of_old = written.accepted.iter().filter(|a| a.node == old && a.acked < fenced.to);
    let last_of_old = of_old.map(|a| a.acked).max();
    let window = last_of_old.map_or(fenced, |at| Loss { to: fenced.to, ..Loss::just_before(at) });
    check::verify(&cluster, &written, &[window]).await;
    check::same_rows_everywhere(&cluster, SETTLED).await;
}

/// An agent started again before the lease ends finds its PostgreSQL running and leads on.
///
/// Proves PG-014 and PG-023 with a whole cluster.
pub async fn agent_back_in_time_takes_over_its_postgres(store: Store) {
    let mut cluster = cluster(store).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let postmaster = cluster.nodes[leader].postmaster();
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    let killed = Instant::now();
    cluster.kill_agent(leader);
    cluster.start_agent(leader);
    // Past the end of the lease the killed agent held.
    let outlived = killed + TTL + Duration::from_secs(2);
    let left = outlived.saturating_duration_since(Instant::now());
    let again = writers.accepts_after(outlived, left + Duration::from_secs(10)).await;
    assert_eq!(again.map(|a| a.node), Ok(leader), "{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
    assert_eq!(cluster.nodes[leader].postmaster(), postmaster, "PostgreSQL was restarted");
    let written = writers.stop().await;
    let gap = longest_gap(&written.accepted, killed, outlived);
    assert!(gap < Duration::from_secs(2), "writes stood still for {gap:?}");
    check::verify(&cluster, &written, &[]).await;
}
