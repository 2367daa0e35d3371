//! Real PostgreSQL behind cut cables, frozen and killed processes, and clocks that jump: each
//! scenario on three machines of its own (`hathi_test_support::network`), with a client writing to
//! every node all the time, also to one that is cut from all others, and the check of every
//! acknowledged row at the end.
//!
//! Its own harness, because the runtime of a scenario lives in a network namespace, and because a
//! machine that permits none must be told loudly what was not tried. It reads the options of
//! cargo's own harness: `cargo test --test network -- FILTER... [--test-threads N] [--list]`.

mod clocks;
mod control;
mod cuts;
mod frozen;
mod modes;
mod runner;
mod stage;

use hathi_test_support::Store;
use runner::Scenario;
use std::process::ExitCode;

const ETCD: Store = Store::Etcd { members: 3 };

/// Every scenario on both stores, the etcd of three members, one on each machine.
macro_rules! scenarios {
    ($($room:ident :: $name:ident),* $(,)?) => {
        vec![$(
            Scenario::new(concat!("raft::", stringify!($name)), |n| Box::pin($room::$name(n, Store::Raft))),
            Scenario::new(concat!("etcd::", stringify!($name)), |n| Box::pin($room::$name(n, ETCD))),
        )*]
    };
}

fn main() -> ExitCode {
    // One store is enough for each mode: what differs between stores is tried by the others.
    let modes = vec![
        Scenario::new("raft::blows_in_synchronous_mode", |n| {
            Box::pin(modes::blows_in_synchronous_mode(n, Store::Raft))
        }),
        Scenario::new("etcd::blows_in_quorum_mode", |n| {
            Box::pin(modes::blows_in_quorum_mode(n, ETCD))
        }),
        Scenario::new("etcd::blows_in_failsafe_mode", |n| {
            Box::pin(modes::blows_in_failsafe_mode(n, ETCD))
        }),
        Scenario::new("raft::blows_in_pause", |n| Box::pin(modes::blows_in_pause(n, Store::Raft))),
    ];
    // The longest first.
    let mut all = modes;
    all.extend(scenarios![
        cuts::primary_cut_from_everything,
        cuts::primary_cut_from_the_store_only,
        cuts::replica_cut_from_the_store_only,
        cuts::primarys_answers_are_lost,
        cuts::primary_hears_nothing,
        cuts::replicas_cut_from_each_other,
        cuts::store_without_a_majority,
        cuts::two_cuts_healed_in_another_order,
        cuts::a_longer_log_of_an_older_timeline_does_not_lead,
        frozen::whole_primary_frozen_past_its_lease,
        frozen::agent_frozen_and_its_postmaster_killed,
        frozen::postmaster_frozen,
        frozen::guard_frozen_or_killed_is_replaced,
        frozen::agent_and_guard_killed_at_once,
        clocks::wall_clocks_jump,
        control::without_a_guard_two_writers_are_found,
        control::with_the_guard_the_same_run_is_clean,
    ]);
    runner::run(all)
}
