//! Cables are cut. Asynchronous replication: what a cut primary acknowledged before its lease was
//! out, nobody else has; that is the permitted loss, and the only one.

use crate::stage::{PAST_THE_LEASE, SETTLED, SOON, Stage, TAKEOVER, TTL};
use hathi_test_support::check::Loss;
use hathi_test_support::network::{Traffic, pair};
use hathi_test_support::{Network, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The primary stops before its lease could be another's, another leads, the old one rewinds and
/// follows when the cable is back.
///
/// Proves HA-304 and INV-1 behind a real cut.
pub async fn primary_cut_from_everything(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    stage.network.cut(&stage.network.isolation(old, Traffic::All));
    let (new, loss) = stage.another_writes(old, cut).await;
    stage.gives_up(old).await;
    stage.network.heal_all();
    assert_eq!(stage.cluster.healthy(SETTLED).await, new, "{}", stage.cluster.report());
    stage.end(&[loss]).await;
}

/// It could serve and replicate, but nobody knows; it gives the others the lead and keeps all rows:
/// whoever takes over streamed to the last of them.
pub async fn primary_cut_from_the_store_only(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    stage.network.cut(&stage.network.isolation(old, Traffic::Store));
    let (new, _) = stage.another_writes(old, cut).await;
    assert_ne!(new, old);
    stage.network.heal_all();
    // The cables of replication were whole all the time: what was lost was lost in the very moment
    // of the stop.
    let of_old = stage.writers.last_of(old).expect("a row of the old primary");
    stage.end(&[Loss::just_before(of_old.acked)]).await;
}

/// A replica without the store is of no concern to clients, and comes back.
pub async fn replica_cut_from_the_store_only(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    stage.network.cut(&stage.network.isolation(stage.replica(), Traffic::Store));
    stage.keeps_writing(stage.primary, PAST_THE_LEASE, Duration::from_secs(8)).await;
    stage.network.heal_all();
    stage.keeps_writing(stage.primary, Duration::from_secs(5), Duration::from_secs(8)).await;
    assert_eq!(stage.cluster.healthy(SETTLED).await, stage.primary);
    stage.end(&[]).await;
}

/// Requests arrive at the primary, its answers and its own requests are lost: to the others it is
/// dead, to itself the store is silent.
pub async fn primarys_answers_are_lost(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    stage.network.cut(&stage.network.muteness(old, Traffic::All));
    let (_, loss) = stage.another_writes(old, cut).await;
    stage.gives_up(old).await;
    stage.network.heal_all();
    stage.end(&[loss]).await;
}

/// The other direction: its renewals may even arrive, but it cannot know, and gives up; whoever
/// leads in the end, the acknowledged rows are there.
pub async fn primary_hears_nothing(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    stage.network.cut(&stage.network.deafness(old, Traffic::All));
    stage.gives_up(old).await;
    // With etcd a member that hears nothing can neither lead the store nor serve it; the lock ends,
    // and another takes it.
    let (_, loss) = stage.another_writes(old, cut).await;
    stage.network.heal_all();
    stage.end(&[loss]).await;
}

/// Each replica reaches primary and store: nothing happens, and nothing happens when it is over.
pub async fn replicas_cut_from_each_other(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    stage.network.cut(&pair(stage.replica(), stage.other_replica(), Traffic::All));
    stage.keeps_writing(stage.primary, PAST_THE_LEASE, Duration::from_secs(8)).await;
    // Planned work goes on too: the lead moves to one of the two, the other follows it as soon as
    // it can reach it.
    stage.network.heal_all();
    assert_eq!(stage.cluster.healthy(SETTLED).await, stage.primary);
    stage.end(&[]).await;
}

/// No member of the store reaches another: nobody may lead. With one cable back there is a
/// majority, and writes go on although one member stays alone.
pub async fn store_without_a_majority(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    for node in 0..3 {
        stage.network.cut(&stage.network.isolation(node, Traffic::Store));
    }
    stage.gives_up(old).await;
    let last = stage.writers.last().expect("a row");
    let held = last.acked.saturating_duration_since(cut);
    assert!(held <= TTL, "writes were accepted for {held:?} without the store");
    // Pairs were cut twice, once from each end; a cable is whole when both ends are.
    let back = pair(stage.replica(), stage.other_replica(), Traffic::Store);
    stage.network.heal(&back);
    let healed = Instant::now();
    let node = stage.writes(healed, TAKEOVER).await;
    assert_ne!(node, old, "it has no majority\n{}", stage.cluster.report());
    stage.network.heal_all();
    stage.end(&[Loss::just_before(last.acked)]).await;
}

/// Replication is cut first, then the store; the store comes back first. Once with the primary in
/// the middle of it, and the other way round.
pub async fn two_cuts_healed_in_another_order(network: Arc<Network>, store: Store) {
    let stage = Stage::new(network, store).await;
    let (old, replica) = (stage.primary, stage.replica());
    let first = pair(old, replica, Traffic::All);
    let second = stage.network.isolation(old, Traffic::Store);
    let cut = Instant::now();
    stage.network.cut(&first);
    stage.keeps_writing(old, Duration::from_secs(5), Duration::from_secs(8)).await;
    stage.network.cut(&second);
    let (new, loss) = stage.another_writes(old, cut).await;
    // What was cut last is back first. The pair is in both lists: it stays cut.
    stage.network.heal(&second);
    stage.network.cut(&first);
    stage.writes(Instant::now(), SOON).await;
    stage.network.heal_all();
    stage.cluster.healthy(SETTLED).await;
    assert_ne!(new, old);
    stage.end(&[loss]).await;
}

/// A deposed primary whose lost rows are more than all that its successor wrote must not lead when
/// that successor is gone, too: the other replica has the newer timeline and leads, although its
/// log is shorter; the rows of the successor are kept. (Found by `scripts/chaos --seed 2 --store
/// etcd`: two timelines of the same number.)
///
/// Proves HA-322 and, since the dead primary leaves no receiver to ask, PG-312 on a real server.
pub async fn a_longer_log_of_an_older_timeline_does_not_lead(network: Arc<Network>, store: Store) {
    let mut stage = Stage::new(network, store).await;
    let old = stage.primary;
    let cut = Instant::now();
    stage.network.cut(&stage.network.isolation(old, Traffic::All));
    let (second, loss) = stage.another_writes(old, cut).await;
    let third = 3 - old - second;
    stage.gives_up(old).await;
    stage.streams(third, second).await;
    // The old one comes back when its successor is dead.
    let killed = Instant::now();
    stage.cluster.kill_node(second);
    stage.network.heal_all();
    let (lost, short) = (stage.position(old).await, stage.position(third).await);
    assert!(lost > short, "{lost} of the old primary, {short}: nothing is proved");
    let leads = stage.writes(killed + Duration::from_secs(1), TAKEOVER).await;
    assert_eq!(leads, third, "{}", stage.cluster.report());
    stage.cluster.restart_members();
    stage.cluster.start_agent(second);
    assert_eq!(stage.cluster.healthy(SETTLED).await, third, "{}", stage.cluster.report());
    stage.end(&[loss, Loss::just_before(killed)]).await;
}
