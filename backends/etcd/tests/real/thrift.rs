//! How many requests an idle cluster costs, counted by etcd itself; and a store that is full.

use crate::harness::{TIMING, backend, client, config, install_tls};
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Dcs, DcsError, Deadline, Expect, Freshness, Lsn, MemberData, Status, Timing};
use hathi_test_support::{Etcd, EtcdOptions, EtcdVersion};
use std::time::Duration;

/// Proves DCS-082, DCS-084, DCS-090 and the number of calls of the issue: an idle turn is one
/// keepalive, for the leader and for a replica, as with Patroni.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_turn_is_one_keepalive() {
    install_tls();
    let etcd = Etcd::start(EtcdVersion::V35, 1).await;
    let timing = Timing { ttl: 15, loop_wait: 1, retry_timeout: 3 };
    let (a, b) = (backend(config(&etcd), "a", timing), backend(config(&etcd), "b", timing));
    let data = MemberData { conn_url: Some("postgres://h:1/p".into()), ..MemberData::default() };
    let status = Status { optime: Lsn(1), ..Status::default() };
    let turn = || async {
        for (me, leads) in [(&a, true), (&b, false)] {
            let view = me.load(Freshness::Watched, soon()).await.expect("a healthy store");
            if leads && view.leader.is_none() {
                me.acquire_leader(soon()).await.expect("a free lock");
            } else if leads {
                me.renew_leader(soon()).await.expect("mine");
                me.write_status(&status, soon()).await.expect("a healthy store");
            }
            me.write_member(&data, soon()).await.expect("a healthy store");
        }
    };
    for _ in 0..3 {
        turn().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let before = etcd.calls().await.expect("metrics");
    let turns = 6;
    for _ in 0..turns {
        turn().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let calls = etcd.calls().await.expect("metrics") - before;
    assert_eq!(calls, 2 * turns, "two members, {turns} turns");
}

/// Proves DCS-034: NOSPACE says nothing about the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_unreachable_and_takes_no_lock() {
    install_tls();
    let quota_bytes = Some(1_000_000);
    let options = EtcdOptions { quota_bytes, ..EtcdOptions::new(EtcdVersion::V35, 1) };
    let etcd = Etcd::start_with(options).await;
    let a = backend(config(&etcd), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    let mut filler = client(&etcd, 0).await;
    until("the quota is reached", 20_000, || {
        let mut filler = filler.clone();
        async move { filler.put("/fill", vec![b'x'; 200_000], None).await.err().map(drop) }
    })
    .await;
    let status = Status { optime: Lsn(5), ..Status::default() };
    let full = a.write_status(&status, soon()).await;
    assert!(matches!(full, Err(DcsError::Unreachable { .. })), "{full:?}");
    let full = a.write_sync(&Default::default(), Expect::Absent, soon()).await;
    assert!(matches!(full, Err(DcsError::Unreachable { .. })), "{full:?}");
    // The lease needs no space.
    a.renew_leader(soon()).await.expect("the lock is mine");
    let lease = filler.get("/service/batman/leader", None).await.expect("a read");
    let lease = lease.kvs().first().expect("the leader key").lease();
    filler.lease_revoke(lease).await.expect("a revocation");
    let lost = a.renew_leader(Deadline::in_ms(2_000)).await;
    assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{lost:?}");
}
