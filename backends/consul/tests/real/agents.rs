//! Several agents: which one is asked, and when it is left.

use crate::harness::{TIMING, backend, config};
use futures::StreamExt;
use hathi_consul::ConsulConfig;
use hathi_dcs::conformance::{soon, until};
use hathi_dcs::{Change, Dcs, DcsError, Deadline, Expect, Freshness, Status};
use hathi_test_support::{Consul, ConsulOptions};
use std::time::{Duration, Instant};

async fn three() -> Consul {
    Consul::start(ConsulOptions { members: 3, proxied: true, ..ConsulOptions::default() }).await
}

/// Proves DCS-030 and DCS-073: an agent that refuses, or that is none, costs the next request nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_agent_is_passed_by() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let dead = format!("127.0.0.1:{}", hathi_test_support::ports::free_ports(1)[0]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = (silent.local_addr().expect("bound").to_string(), silent);
    for stranger in [dead, silent.0.clone()] {
        let hosts = vec![stranger.clone(), consul.hosts()[0].clone()];
        let me = backend(ConsulConfig { hosts, ..ConsulConfig::default() }, "a", TIMING);
        me.load(Freshness::Latest, soon()).await.expect("the next one answers");
        let hosts = vec![stranger.clone(), consul.hosts()[0].clone()];
        let me = backend(ConsulConfig { hosts, ..ConsulConfig::default() }, "a", TIMING);
        me.write_status(&Status::default(), soon()).await.expect("the next one takes it");
        me.acquire_leader(soon()).await.expect("free");
        me.release_leader(None, soon()).await.expect("mine");
        let alone = ConsulConfig { hosts: vec![stranger], ..ConsulConfig::default() };
        let lost = backend(alone, "a", TIMING).renew_leader(Deadline::in_ms(1_200)).await;
        assert!(matches!(lost, Err(DcsError::Unreachable { .. })), "{lost:?}");
    }
}

/// Proves DCS-302: a renewal gets through when the agent in use hangs, after a third of the time for each
/// of its two requests; and when every agent needs longer than its share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_is_sent_to_another_one_as_well() {
    let consul = three().await;
    let me = backend(config(&consul), "a", TIMING);
    me.acquire_leader(soon()).await.expect("a free lock");
    consul.proxies().for_each(|proxy| proxy.slow_answers(2_300));
    for _ in 0..2 {
        let began = Instant::now();
        let answer = me.renew_leader(Deadline::in_ms(6_500)).await;
        answer.unwrap_or_else(|error| panic!("after {:?}: {error}", began.elapsed()));
        assert!(began.elapsed() >= Duration::from_millis(4_600), "{:?}", began.elapsed());
    }
    consul.proxies().for_each(|proxy| proxy.slow_answers(0));
    me.renew_leader(soon()).await.expect("mine");
    for which in 0..3 {
        consul.proxy(which).hold_answers(true);
        let began = Instant::now();
        let answer = me.renew_leader(Deadline::in_ms(6_000)).await;
        answer.unwrap_or_else(|error| panic!("{which}, after {:?}: {error}", began.elapsed()));
        assert!(began.elapsed() < Duration::from_millis(4_000), "{:?}", began.elapsed());
        consul.proxy(which).hold_answers(false);
    }
}

/// Proves DCS-121 (what the query waits for is bounded, and any key wakes) and DCS-074: the watch leaves an
/// agent that says nothing as soon as the calls have left it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_follows_the_calls() {
    let consul = three().await;
    let (a, b) = (backend(config(&consul), "a", TIMING), backend(config(&consul), "b", TIMING));
    let mut wakes = a.watch();
    assert_eq!(wakes.next().await, Some(Change::Everything));
    a.load(Freshness::Watched, soon()).await.expect("a healthy store");
    consul.proxy(0).hold_answers(true);
    let left = Instant::now();
    a.acquire_leader(soon()).await.expect("two of three");
    let followed = async { while wakes.next().await != Some(Change::Everything) {} };
    tokio::time::timeout(Duration::from_secs(4), followed).await.expect("the watch has followed");
    assert!(left.elapsed() < Duration::from_secs(8), "that is the query's own end");
    b.write_config(&serde_json::Map::new(), Expect::Anything, soon()).await.expect("two of three");
    let woken = async { while wakes.next().await != Some(Change::Config) {} };
    tokio::time::timeout(Duration::from_secs(3), woken).await.expect("the watch delivers");
}

/// Proves DCS-076: who only reads and writes records has no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_tool_has_no_session() {
    let consul = Consul::start(ConsulOptions { members: 1, ..ConsulOptions::default() }).await;
    let tool = backend(config(&consul), "ctl", TIMING);
    tool.load(Freshness::Latest, soon()).await.expect("a healthy store");
    tool.write_config(&serde_json::Map::new(), Expect::Absent, soon()).await.expect("absent");
    tool.write_failover(&Default::default(), Expect::Anything, soon()).await.expect("written");
    let sessions = || async {
        let listed = consul.request("GET", "/v1/session/list", None).await.expect("a list");
        listed.json().as_array().map_or(0, Vec::len)
    };
    assert_eq!(sessions().await, 0);
    let a = backend(config(&consul), "a", TIMING);
    a.acquire_leader(soon()).await.expect("a free lock");
    until("sessions are seen here", 3_000, || async { (sessions().await == 1).then_some(()) })
        .await;
}
