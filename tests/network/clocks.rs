//! Clocks. The boottime of every machine of these scenarios is days apart from the next one's
//! (time namespaces), so any comparison between two machines' clocks would show at once. Here the
//! wall clocks jump as well (libfaketime: agents and PostgreSQL; etcd reads its clock without
//! libc and keeps the true one).

use crate::stage::{SETTLED, Stage, TTL, options};
use hathi_test_support::{Network, Store};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An hour forward, two back, on the primary, then on a replica, then on all: the lease knows no
/// wall clock, so nobody loses the lead and clients notice nothing. Then a takeover, with every
/// wall clock different.
///
/// Proves DCS-T14, DCS-026 and DCS-310 with a whole cluster.
pub async fn wall_clocks_jump(network: Arc<Network>, store: Store) {
    let mut options = options(&network, store);
    options.wall_clocks = true;
    // A connection's keepalive is judged by PostgreSQL's wall clock; that is PostgreSQL's matter.
    options.dcs = json!({"postgresql": {"parameters": {"wal_sender_timeout": "0"}}});
    let mut stage = Stage::with(network, options).await;
    let old = stage.primary;
    assert_believes(&stage, old);
    let hour = 3600;
    for (node, ahead) in [
        (old, hour),
        (old, -hour),
        (stage.replica(), hour),
        (stage.replica(), -hour),
        (stage.other_replica(), 24 * hour),
        (old, 0),
    ] {
        stage.cluster.machine(node).set_wall_clock(ahead);
        stage.shows_wall_clock(node, ahead).await;
        stage.keeps_writing(old, Duration::from_secs(4), Duration::from_secs(8)).await;
    }
    stage.cluster.machine(old).set_wall_clock(-24 * hour);
    stage.keeps_writing(old, TTL + Duration::from_secs(3), Duration::from_secs(8)).await;
    assert_eq!(stage.cluster.healthy(SETTLED).await, old, "{}", stage.cluster.report());

    let killed = Instant::now();
    stage.cluster.kill_node(old);
    let (new, loss) = stage.another_writes(old, killed).await;
    stage.cluster.restart_members();
    stage.cluster.start_agent(old);
    assert_eq!(stage.cluster.healthy(SETTLED).await, new, "{}", stage.cluster.report());
    stage.end(&[loss]).await;
}

/// libfaketime is in the agent and in PostgreSQL, and the boottimes differ: otherwise the scenario
/// would prove nothing.
fn assert_believes(stage: &Stage, node: usize) {
    let agent = stage.cluster.nodes[node].agent_pid().expect("an agent");
    let postmaster = stage.cluster.nodes[node].postmaster().expect("a postmaster");
    for pid in [agent, postmaster] {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
        assert!(maps.contains("libfaketime"), "process {pid} has the true clock");
    }
    let of = |i: usize| {
        let pid = stage.cluster.nodes[i].agent_pid().expect("an agent");
        std::fs::read_to_string(format!("/proc/{pid}/timens_offsets")).expect("its offsets")
    };
    let (one, two) = (of(1), of(2));
    assert!(one.contains("86400") && two.contains("172800"), "{one}{two}");
}
