//! Black box: real PostgreSQL, real stores, the agent as a user starts it. Each scenario does one
//! thing to a serving cluster of three, with clients writing to every node all the time, and ends
//! in checked facts: who is primary, which rows exist, that never two primaries took writes.
//!
//! `HATHI_TEST_AGENT=patroni` runs the etcd half against real Patroni 4.1.5: that is how the
//! scenarios themselves were proved to be fair. (`guard_*` fail there, as they must.)

mod bad_input;
mod crashes;
mod discovery;
mod examples;
mod failsafe;
mod guard;
mod operator;
mod outage;
mod pause;
mod planned;
mod records;
mod reload;
mod slots;
mod standby;
mod sync;
mod tags;
mod watchdog;

use hathi_test_support::{Agent, Cluster, ClusterOptions, Store};
use serde_json::json;
use std::time::Duration;

/// The lease of the harness's clusters (`yaml::default_dcs`).
const TTL: Duration = Duration::from_secs(20);
/// Between two rows of one writer.
const PAUSE: Duration = Duration::from_millis(5);
/// For what takes as long as a node needs to find its place again.
const SETTLED: Duration = Duration::from_secs(90);

fn agent() -> Agent {
    match std::env::var("HATHI_TEST_AGENT").as_deref() {
        Ok("patroni") => Agent::Patroni,
        Ok(other) if other != "hathi" => panic!("HATHI_TEST_AGENT={other}: hathi or patroni"),
        Ok(_) | Err(_) => Agent::Hathi,
    }
}

fn options(store: Store) -> ClusterOptions {
    ClusterOptions::new(agent(), store, env!("CARGO_BIN_EXE_hathi"))
}

async fn cluster(store: Store) -> Cluster {
    Cluster::start(options(store)).await
}

/// With failover at once when the primary's PostgreSQL crashes.
async fn impatient_cluster(store: Store) -> Cluster {
    let mut options = options(store);
    options.dcs = json!({"primary_start_timeout": 0});
    Cluster::start(options).await
}

/// One test on each store for every scenario.
macro_rules! on_both_stores {
    ($($room:ident :: $name:ident),* $(,)?) => {
        mod raft {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$room::$name(super::Store::Raft).await;
            })*
        }
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$room::$name(super::Store::Etcd { members: 1 }).await;
            })*
        }
    };
}

/// The other stores pass the same conformance suite; here a few scenarios whole.
macro_rules! on_another_store {
    ($store:ident, $options:expr) => {
        mod $store {
            use super::{Store, crashes, failsafe, guard, outage, planned};

            const STORE: Store = $options;

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn switchover_to_and_fro() {
                planned::switchover_to_and_fro(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn postmaster_killed_with_failover_at_once() {
                crashes::postmaster_killed_with_failover_at_once(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn node_of_the_primary_killed() {
                crashes::node_of_the_primary_killed(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn guard_stops_postgres_when_the_agent_is_frozen() {
                guard::guard_stops_postgres_when_the_agent_is_frozen(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn store_down_at_start() {
                outage::store_down_at_start(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn store_out_of_reach() {
                outage::store_out_of_reach(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn the_primary_outlives_the_store() {
                failsafe::the_primary_outlives_the_store(STORE).await;
            }
        }
    };
}

on_another_store!(consul, Store::Consul { members: 1 });
on_another_store!(zookeeper, Store::ZooKeeper { members: 1 });
on_another_store!(redis, Store::Redis);
on_another_store!(kubernetes, Store::Kubernetes { endpoints: true });

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubernetes_with_its_shortest_lease() {
    let ttl = std::env::var("HATHI_TEST_TTL").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    crashes::the_shortest_lease_is_kept(Store::Kubernetes { endpoints: false }, ttl).await;
}

/// Endpoints and ConfigMaps share all but their name; here the other one serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kubernetes_out_of_reach() {
    outage::store_out_of_reach(Store::Kubernetes { endpoints: false }).await;
}

on_both_stores! {
    planned::bootstrap_of_three,
    planned::switchover_to_and_fro,
    planned::sigterm_of_the_primarys_agent,
    planned::restart_of_everything,
    crashes::postmaster_of_the_primary_killed,
    crashes::postmaster_killed_with_failover_at_once,
    crashes::node_of_the_primary_killed,
    crashes::node_of_the_primary_killed_with_a_short_lease,
    crashes::postmaster_of_a_replica_killed,
    operator::restarts,
    operator::reinitialize,
    operator::schedules,
    operator::reactions,
    outage::store_out_of_reach,
    failsafe::a_member_down_at_the_same_time,
    pause::killed_postgres_stays_down_in_pause,
    pause::agents_come_and_go_in_pause,
    pause::only_a_named_candidate_in_pause,
    guard::guard_stops_postgres_when_the_agent_is_killed,
    guard::guard_stops_postgres_when_the_agent_is_frozen,
    guard::agent_back_in_time_takes_over_its_postgres,
    sync::a_dead_primary_costs_no_row,
    sync::a_crashed_primary_costs_no_row_by_quorum,
    sync::switchover_goes_to_the_synchronous_standby,
    sync::a_lost_standby_is_replaced,
    sync::strict_waits_for_a_standby,
    sync::switched_on_and_off,
    sync::a_power_cut_costs_no_row,
}

/// The embedded store is never elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_down_at_start() {
    outage::store_down_at_start(Store::Etcd { members: 1 }).await;
}

/// On the embedded store an outage of the store is one of the members: nobody is left to agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_primary_outlives_the_store() {
    failsafe::the_primary_outlives_the_store(Store::Etcd { members: 1 }).await;
}

/// Only etcd keeps leases alive when it can write no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_store_costs_no_primary() {
    outage::a_full_store_costs_no_primary().await;
}

/// Only etcd's servers are found by DNS.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_is_known_to_dns_alone() {
    discovery::etcd_is_known_to_dns_alone().await;
}
