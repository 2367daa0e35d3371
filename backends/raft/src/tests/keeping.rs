//! Renewals that are no entries: who must have noted them, and when they become entries after all.

use super::{Group, soon, until};
use hathi_dcs::{Dcs, DcsError, Deadline, Freshness, MemberData, Timing, boottime};
use serde_json::json;
use std::time::Duration;

fn timing(ttl: u32) -> Timing {
    Timing { ttl, loop_wait: 1, retry_timeout: 3 }
}

fn last(group: &Group, n: usize) -> u64 {
    group.node(n).log.last_log_id().map_or(0, |id| id.index)
}

fn the_lease(group: &Group, n: usize) -> (u64, u64) {
    let node = group.node(n);
    let copy = node.state.copy();
    let (id, lease) = copy.machine.leases.iter().next().expect("a lease");
    (*id, lease.kept_at)
}

/// Until everybody has applied all there is.
async fn settled(group: &Group) {
    until("all have applied the same", 10_000, || {
        let ends: Vec<_> = (0..group.hubs.len())
            .map(|n| (last(group, n), group.node(n).state.copy().applied.map(|id| id.index)))
            .collect();
        let one = ends[0].0;
        ends.iter().all(|end| *end == (one, Some(one))).then_some(())
    })
    .await;
}

/// Proves DCS-196 (what an idle member costs): renewals are no entries, from whichever member, and
/// every member has noted them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_writes_nothing() {
    for members in [1, 3] {
        let group = Group::start(members).await;
        let (leader, follower) = (group.leader().await, group.follower().await);
        for home in [leader, follower] {
            let me = format!("at{home}");
            let store = group.store(home, &me, timing(15));
            let data = MemberData::parse(&json!({"state": "running"}).to_string());
            store.write_member(&data, soon()).await.expect("up");
            store.take_leader(soon()).await.expect("up");
            settled(&group).await;
            let before = last(&group, leader);
            for _ in 0..10 {
                let asked = boottime();
                store.renew_leader(soon()).await.expect("mine");
                for n in 0..members {
                    let node = group.node(n);
                    let copy = node.state.copy();
                    let lease = copy.machine.keys["/service/test/leader"].lease.expect("leased");
                    assert!(copy.kept[&lease].at >= asked, "member {n} does not know of it");
                }
            }
            assert_eq!(last(&group, leader), before, "{members} members: a renewal was written");
        }
    }
}

/// Proves DCS-193: a renewal that was no entry counts whoever leads afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_knows_of_it() {
    const TTL: u64 = 6_000;
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let store = group.store((leader + 1) % 3, "a", timing(6));
    store.acquire_leader(soon()).await.expect("a free lock");
    settled(&group).await;
    let index = last(&group, leader);
    tokio::time::sleep(Duration::from_millis(TTL / 2)).await;
    let asked = boottime();
    store.renew_leader(soon()).await.expect("mine");
    assert_eq!(last(&group, leader), index, "it was an entry");
    group.kill(leader).await;
    while !store.load(Freshness::Latest, soon()).await.expect("two of three").is_unlocked() {
        assert!(boottime().since(asked) < TTL + 3_000, "a dead owner's lock outlives it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lasted = boottime().since(asked);
    assert!(lasted >= TTL, "gone after {lasted} ms");
}

/// Proves DCS-193: with a member missing a renewal is an entry; back again, it is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_member_makes_it_an_entry() {
    let group = Group::start(3).await;
    let (leader, away) = (group.leader().await, group.follower().await);
    let store = group.store(leader, "a", timing(15));
    store.acquire_leader(soon()).await.expect("a free lock");
    settled(&group).await;
    let node = group.node(leader);
    node.network.cut_to(&group.addrs[away], true);
    for _ in 0..3 {
        let before = last(&group, leader);
        store.renew_leader(soon()).await.expect("two of three are enough");
        assert_eq!(last(&group, leader), before + 1, "one of three does not know of it");
    }
    node.network.cut_to(&group.addrs[away], false);
    settled(&group).await;
    let before = last(&group, leader);
    until("no entry any more", 10_000, || node.in_touch().then_some(())).await;
    store.renew_leader(soon()).await.expect("three of three");
    assert!(last(&group, leader) <= before + 1);
    settled(&group).await;
    let before = last(&group, leader);
    store.renew_leader(soon()).await.expect("three of three");
    assert_eq!(last(&group, leader), before);
}

/// Proves DCS-193 (a racing keepalive wins): once the end of a lease was proposed, whatever became of
/// that, only an entry renews it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposed_end_is_answered_by_an_entry() {
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let store = group.store(leader, "a", timing(15));
    store.acquire_leader(soon()).await.expect("a free lock");
    settled(&group).await;
    let (id, kept_at) = the_lease(&group, leader);
    group.node(leader).state.copy().doom(id, kept_at);
    store.renew_leader(soon()).await.expect("mine");
    assert_ne!(the_lease(&group, leader).1, kept_at, "the proposal would still end it");
    settled(&group).await;
    let (_, kept_at) = the_lease(&group, leader);
    store.renew_leader(soon()).await.expect("mine");
    assert_eq!(the_lease(&group, leader).1, kept_at, "one entry is enough");
}

/// Proves DCS-193: a leader of the store that nobody hears keeps nothing alive, also not what it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_renews_nothing() {
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let store = group.store(leader, "a", timing(15));
    store.acquire_leader(soon()).await.expect("a free lock");
    settled(&group).await;
    group.node(leader).network.cut(true);
    let lost = store.renew_leader(Deadline::in_ms(800)).await;
    assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{lost:?}");
    group.node(leader).network.cut(false);
    store.renew_leader(soon()).await.expect("back");
}

/// Proves DCS-193: a leader that has proposed the end, and does not hear what became of it, keeps that in
/// mind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proposes_the_end_remembers_it() {
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let store = group.store(leader, "a", timing(1));
    store.acquire_leader(soon()).await.expect("a free lock");
    settled(&group).await;
    let (id, _) = the_lease(&group, leader);
    let node = group.node(leader);
    assert!(node.state.copy().may_keep(id));
    node.network.cut(true);
    until("it has proposed it", 10_000, || (!node.state.copy().may_keep(id)).then_some(())).await;
}
