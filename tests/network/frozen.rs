//! Processes that stand still, and ones that die together.

use crate::stage::{PAST_THE_LEASE, SETTLED, SOON, Stage};
use hathi_test_support::process::signal_pid;
use hathi_test_support::{Network, Store};
use rustix::process::Signal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Agent, guard, PostgreSQL and the store's member of the primary's machine stop, as a paused
/// virtual machine does; when they go on, another has led for long.
pub async fn whole_primary_frozen_past_its_lease(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let frozen = Instant::now();
    stage.cluster.freeze_node(old);
    let (new, loss) = stage.another_writes(old, frozen).await;
    stage.cluster.thaw_node(old);
    assert_eq!(stage.cluster.healthy(SETTLED).await, new, "{}", stage.cluster.report());
    stage.end(&[loss]).await;
}

/// The agent stands still while the postmaster dies: the guard has nothing to do, another leads,
/// and the agent wakes up into a world where it is a follower.
pub async fn agent_frozen_and_its_postmaster_killed(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let frozen = Instant::now();
    stage.cluster.signal_agent(old, Signal::STOP);
    stage.cluster.kill_postmaster(old);
    let (new, loss) = stage.another_writes(old, frozen).await;
    stage.cluster.signal_agent(old, Signal::CONT);
    assert_eq!(stage.cluster.healthy(SETTLED).await, new, "{}", stage.cluster.report());
    stage.end(&[loss]).await;
}

/// Only the postmaster stands still: sessions that are open go on, new ones wait. Whatever the
/// agent makes of it, no row is lost and nobody writes beside it.
pub async fn postmaster_frozen(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let postmaster = stage.cluster.nodes[old].postmaster().expect("a postmaster");
    let frozen = Instant::now();
    signal_pid(postmaster, Signal::STOP);
    tokio::time::sleep(PAST_THE_LEASE).await;
    signal_pid(postmaster, Signal::CONT);
    stage.writes(Instant::now(), SETTLED).await;
    stage.cluster.healthy(SETTLED).await;
    let last = stage.writers.last_of(old).expect("a row of the old primary");
    let loss = hathi_test_support::check::Loss { to: last.acked.max(frozen), from: frozen };
    stage.end(&[loss]).await;
}

/// A guard that died is started again; one that stands still does not disturb.
pub async fn guard_frozen_or_killed_is_replaced(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let guard = stage.cluster.guard_pid(old).expect("a guard");
    signal_pid(guard, Signal::STOP);
    stage.keeps_writing(old, PAST_THE_LEASE, Duration::from_secs(8)).await;
    signal_pid(guard, Signal::CONT);
    stage.keeps_writing(old, Duration::from_secs(3), Duration::from_secs(8)).await;
    signal_pid(guard, Signal::KILL);
    stage
        .cluster
        .wait("another guard", SOON, || async {
            match stage.cluster.guard_pid(old) {
                Some(pid) if pid != guard => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    assert_eq!(stage.cluster.leader().await, Ok(old), "{}", stage.cluster.report());
    stage.end(&[]).await;
}

/// Agent and guard die at once, the agent is started again in time: nothing happened to clients,
/// and PostgreSQL is guarded again.
pub async fn agent_and_guard_killed_at_once(network: Arc<Network>, store: Store) {
    let mut stage = Stage::new(network, store).await;
    let old = stage.primary;
    let guard = stage.cluster.guard_pid(old).expect("a guard");
    let postmaster = stage.cluster.nodes[old].postmaster();
    signal_pid(guard, Signal::KILL);
    stage.cluster.kill_agent(old);
    stage.cluster.start_agent(old);
    stage.keeps_writing(old, PAST_THE_LEASE, Duration::from_secs(8)).await;
    assert_eq!(stage.cluster.nodes[old].postmaster(), postmaster, "PostgreSQL was restarted");
    let again = stage.cluster.guard_pid(old);
    assert!(again.is_some_and(|g| g != guard), "{again:?}\n{}", stage.cluster.report());
    stage.end(&[]).await;
}
