//! Permanent slots on real servers: what a backup or a reader of changes relies on is there on whoever
//! leads next, and nothing it has not confirmed is gone.

use crate::{SETTLED, TTL, options};
use hathi_test_support::{Cluster, Store, sql};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a node has, in one line: `name kind` of each slot that belongs to no member.
const PERMANENT: &str = "SELECT coalesce(string_agg(slot_name || ' ' || slot_type, ', ' ORDER BY slot_name), '') \
                         FROM pg_replication_slots WHERE slot_name NOT LIKE 'node%'";

async fn has(cluster: &Cluster, i: usize, expected: &str) {
    let what = format!("the slots {expected:?} on {}", cluster.nodes[i].name);
    cluster
        .wait(&what, SETTLED, || async {
            let found = sql::value(cluster.nodes[i].pg(), PERMANENT).await?;
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
}

async fn run(cluster: &Cluster, i: usize, statement: &str) {
    let done = sql::query(cluster.nodes[i].pg(), statement).await;
    done.unwrap_or_else(|why| panic!("{statement}: {why}\n{}", cluster.report()));
}

/// Reads what the logical slot has to tell, and confirms it.
async fn read(cluster: &Cluster, i: usize, rows: &mut BTreeSet<u32>) {
    let changes = "SELECT data FROM pg_logical_slot_get_changes('cdc', NULL, NULL) \
                   WHERE data LIKE 'table public.told: INSERT%'";
    let read = sql::query(cluster.nodes[i].pg(), changes).await;
    let read = read.unwrap_or_else(|why| panic!("{why}\n{}", cluster.report()));
    rows.extend(read.into_iter().flatten().flatten().map(|line| {
        let number = line.rsplit(':').next().and_then(|text| text.trim().parse::<u32>().ok());
        number.unwrap_or_else(|| panic!("{line}"))
    }));
}

/// Waits until the slots of all standbys are as far as those of the leader.
async fn in_step(cluster: &Cluster, leader: usize, standbys: &[usize]) {
    let position = |slot: &str, column: &str| {
        format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{slot}'")
    };
    for (slot, column) in [("cdc", "confirmed_flush_lsn"), ("backup", "restart_lsn")] {
        let question = position(slot, column);
        let here = sql::value(cluster.nodes[leader].pg(), &question).await.expect("the leader's");
        for &standby in standbys {
            let what = format!("{slot} at {here} on {}", cluster.nodes[standby].name);
            let compare = format!("SELECT ({question}) >= '{here}'");
            cluster
                .wait(&what, SETTLED, || async {
                    match sql::value(cluster.nodes[standby].pg(), &compare).await?.as_str() {
                        "t" => Ok(()),
                        _ => Err(sql::value(cluster.nodes[standby].pg(), &question).await?),
                    }
                })
                .await;
        }
    }
}

/// A reader of changes goes through a switchover and the death of a primary, and hears of every row:
/// its slot is copied to the standbys and moves on there.
///
/// Proves PG-199, PG-269, PG-271, PG-272, PG-273, PG-276, HA-016 (slots) and CFG-275 on real servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_changes_misses_nothing() {
    let mut options = options(Store::Etcd { members: 1 });
    options.dcs = json!({
        "postgresql": {"parameters": {"wal_level": "logical"}},
        "slots": {
            "backup": {"type": "physical"},
            "cdc": {"database": "postgres", "plugin": "test_decoding"},
        },
    });
    let mut cluster = Cluster::start(options).await;
    let both = "backup physical, cdc logical";
    let mut leader = cluster.leader().await.expect("a leader");
    for i in 0..3 {
        has(&cluster, i, both).await;
        let feedback = sql::value(cluster.nodes[i].pg(), "SHOW hot_standby_feedback").await;
        assert_eq!(feedback.as_deref(), Ok("on"), "PG-199");
    }
    cluster.healthy(SETTLED).await;
    run(&cluster, leader, "CREATE TABLE told (n int PRIMARY KEY)").await;
    let (mut rows, mut written) = (BTreeSet::new(), 0..0);
    for round in 0..3 {
        let standbys: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
        // Half of it is read before the change of the leader, the other half by the next one.
        for half in 0..2 {
            written = written.end..written.end + 100;
            let insert = format!(
                "INSERT INTO told SELECT generate_series({}, {})",
                written.start,
                written.end - 1
            );
            run(&cluster, leader, &insert).await;
            if half == 0 {
                read(&cluster, leader, &mut rows).await;
                run(
                    &cluster,
                    leader,
                    "SELECT pg_replication_slot_advance('backup', pg_current_wal_flush_lsn())",
                )
                .await;
                in_step(&cluster, leader, &standbys).await;
            }
        }
        let end = sql::value(cluster.nodes[leader].pg(), "SELECT pg_current_wal_flush_lsn()").await;
        let end = end.expect("it leads");
        for &standby in &standbys {
            let all = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
            cluster
                .wait("the standby has all of it", SETTLED, || async {
                    match sql::value(cluster.nodes[standby].pg(), &all).await?.as_str() {
                        "t" => Ok(()),
                        other => Err(other.to_owned()),
                    }
                })
                .await;
        }
        let old = leader;
        if round == 0 {
            let names = |i: usize| cluster.nodes[i].name.clone();
            let order = json!({"leader": names(old), "candidate": names(standbys[0])});
            let answer = cluster.send(old, "POST", "/switchover", order).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.report());
        } else {
            cluster.kill_node(old);
        }
        leader = cluster.another_leader(old, TTL + Duration::from_secs(15)).await;
        cluster
            .wait("the new leader takes writes", SETTLED, || async {
                let wal = "SELECT pg_is_in_recovery()";
                match sql::value(cluster.nodes[leader].pg(), wal).await?.as_str() {
                    "f" => Ok(()),
                    other => Err(other.to_owned()),
                }
            })
            .await;
        read(&cluster, leader, &mut rows).await;
        let missing: Vec<u32> = (0..written.end).filter(|n| !rows.contains(n)).collect();
        assert!(
            missing.is_empty(),
            "round {round}: {missing:?} were never told\n{}",
            cluster.report()
        );
        if round > 0 {
            cluster.start_agent(old);
        }
        assert_eq!(cluster.healthy(SETTLED).await, leader);
        for i in 0..3 {
            has(&cluster, i, both).await;
        }
        cluster.healthy(SETTLED).await;
    }
}

/// What nobody declared goes when the server starts again, what is to be ignored stays, and what was
/// declared comes and goes with the configuration.
///
/// Proves PG-267, PG-268, PG-270 (do better), PG-275 (`nostream`), HA-137 and CFG-276 on real servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_go_and_those_of_others_stay() {
    let mut options = options(Store::Raft);
    options.nodes = 2;
    options.dcs = json!({
        "postgresql": {"parameters": {"wal_level": "logical"}},
        "slots": {"elsewhere": {"type": "physical", "cluster_type": "standby"}},
        "ignore_slots": [{"name": "mine"}, {"type": "logical", "plugin": "test_decoding"}],
    });
    options.nodes = 3;
    let cluster = Cluster::start(options).await;
    let leader = cluster.leader().await.expect("a leader");
    has(&cluster, leader, "").await;
    for create in [
        "SELECT pg_create_physical_replication_slot('stranger')",
        "SELECT pg_create_physical_replication_slot('mine')",
        "SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')",
    ] {
        run(&cluster, leader, create).await;
    }
    let pause = |on: bool| json!({"pause": if on { json!(true) } else { json!(null) }});
    let patched = cluster.send(leader, "PATCH", "/config", pause(true)).await.expect("an answer");
    assert_eq!(patched.status, 200);
    let restarted = cluster.send(leader, "POST", "/restart", json!({})).await.expect("an answer");
    assert_eq!(restarted.status, 200, "{}", restarted.body);
    cluster
        .wait("a turn in pause after the restart", SETTLED, || async {
            let shown = cluster.get(leader, "/patroni").await?.json();
            let role = shown["role"] == "primary" && shown["state"] == "running";
            if role && shown["pause"] == true { Ok(()) } else { Err(shown.to_string()) }
        })
        .await;
    has(&cluster, leader, "mine physical, stranger physical, theirs logical").await;
    let patched = cluster.send(leader, "PATCH", "/config", pause(false)).await.expect("an answer");
    assert_eq!(patched.status, 200);
    has(&cluster, leader, "mine physical, theirs logical").await;

    let declare =
        json!({"slots": {"backup": {"type": "physical"}, "Wrong-Name": {"type": "physical"}}});
    let patched = cluster.send(leader, "PATCH", "/config", declare).await.expect("an answer");
    assert_eq!(patched.status, 200);
    has(&cluster, leader, "backup physical, mine physical, theirs logical").await;
    for i in (0..3).filter(|i| *i != leader) {
        has(&cluster, i, "backup physical").await;
    }
}
