//! Synchronous replication on real servers: what a client was told is committed is there after
//! every failover, without any excuse for the last moment.

use crate::{PAUSE, SETTLED, TTL, options};
use hathi_test_support::{Cluster, Store, Writers, check, sql, wait};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What the leader's PostgreSQL says of a standby whose confirmation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Priority,
    Quorum,
}

impl Kind {
    fn state(self) -> &'static str {
        match self {
            Self::Priority => "sync",
            Self::Quorum => "quorum",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Priority => "/sync",
            Self::Quorum => "/quorum",
        }
    }

    fn role(self) -> &'static str {
        match self {
            Self::Priority => "sync_standby",
            Self::Quorum => "quorum_standby",
        }
    }
}

async fn cluster_with(store: Store, dcs: Value) -> Cluster {
    let mut options = options(store);
    options.dcs = dcs;
    Cluster::start(options).await
}

/// Waits until `count` standbys of the present leader are synchronous by all accounts: PostgreSQL's,
/// their own health check's, and the cluster's picture. Returns the leader and the standbys.
async fn synchronous(cluster: &Cluster, kind: Kind, count: usize) -> (usize, Vec<usize>) {
    let what = format!("{count} standbys in state {}", kind.state());
    cluster.wait(&what, SETTLED, || async { synchronous_now(cluster, kind, count).await }).await
}

async fn synchronous_now(
    cluster: &Cluster,
    kind: Kind,
    count: usize,
) -> Result<(usize, Vec<usize>), String> {
    let leader = cluster.leader().await?;
    let state = kind.state();
    let rows = format!(
        "SELECT application_name FROM pg_stat_replication \
         WHERE sync_state = '{state}' AND state = 'streaming' ORDER BY 1"
    );
    let rows = sql::query(cluster.nodes[leader].pg(), &rows).await?;
    let names: Vec<String> = rows.into_iter().flatten().flatten().collect();
    let set = sql::value(cluster.nodes[leader].pg(), "SHOW synchronous_standby_names").await?;
    if names.len() != count || set == "*" {
        return Err(format!("{names:?} are {state}; synchronous_standby_names is '{set}'"));
    }
    let view = cluster.get(leader, "/cluster").await?.json();
    for (i, node) in cluster.nodes.iter().enumerate() {
        let listed = names.contains(&node.name);
        let answer = cluster.get(i, kind.path()).await.map_or(0, |answer| answer.status);
        if (answer == 200) != listed {
            return Err(format!("{} answers {answer} on {}", node.name, kind.path()));
        }
        let members = view["members"].as_array().cloned().unwrap_or_default();
        let role = members.iter().find(|member| member["name"] == node.name.as_str());
        let role = role.map(|member| member["role"].clone()).unwrap_or_default();
        if (role == kind.role()) != listed {
            return Err(format!("/cluster shows {} as {role}", node.name));
        }
    }
    Ok((leader, names.iter().map(|name| cluster.index(name)).collect()))
}

async fn patch(cluster: &Cluster, i: usize, change: Value) {
    let answer = cluster.send(i, "PATCH", "/config", change).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

async fn writers(cluster: &Cluster) -> Writers {
    let writers = Writers::start(cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SETTLED).await.expect("a write");
    writers
}

async fn accepts(cluster: &Cluster, writers: &Writers, after: Instant) -> usize {
    let row = writers.accepts_after(after, SETTLED).await;
    row.unwrap_or_else(|why| panic!("{why}\n{}", cluster.report())).node
}

/// Nothing that was acknowledged is gone, and all nodes agree.
async fn whole(cluster: &Cluster, writers: Writers) {
    let written = writers.stop().await;
    check::verify(cluster, &written, &[]).await;
    check::same_rows_everywhere(cluster, SETTLED).await;
}

/// The primary's machine dies, twice; the synchronous standby takes over, and not one row is lost.
///
/// Proves HA-094, HA-098, HA-099, INV-6 and PG-282 on real servers.
pub async fn a_dead_primary_costs_no_row(store: Store) {
    let mut cluster = cluster_with(store, json!({"synchronous_mode": true})).await;
    let (mut leader, mut standbys) = synchronous(&cluster, Kind::Priority, 1).await;
    let writers = writers(&cluster).await;
    for _ in 0..2 {
        cluster.kill_node(leader);
        let killed = Instant::now();
        let new = cluster.another_leader(leader, TTL + Duration::from_secs(15)).await;
        assert_eq!(vec![new], standbys, "only it could\n{}", cluster.report());
        accepts(&cluster, &writers, killed + Duration::from_secs(1)).await;
        cluster.start_agent(leader);
        cluster.healthy(SETTLED).await;
        (leader, standbys) = synchronous(&cluster, Kind::Priority, 1).await;
        assert_eq!(leader, new);
    }
    whole(&cluster, writers).await;
}

/// The same in quorum mode, with the crash of PostgreSQL alone.
///
/// Proves HA-095 (g), HA-201, INV-7 and INV-10 on real servers.
pub async fn a_crashed_primary_costs_no_row_by_quorum(store: Store) {
    let dcs = json!({"synchronous_mode": "quorum", "primary_start_timeout": 0});
    let cluster = cluster_with(store, dcs).await;
    let (mut leader, _) = synchronous(&cluster, Kind::Quorum, 2).await;
    let writers = writers(&cluster).await;
    for _ in 0..3 {
        cluster.kill_postmaster(leader);
        let killed = Instant::now();
        let new = cluster.another_leader(leader, SETTLED).await;
        accepts(&cluster, &writers, killed + Duration::from_millis(500)).await;
        cluster.healthy(SETTLED).await;
        (leader, _) = synchronous(&cluster, Kind::Quorum, 2).await;
        assert_eq!(leader, new);
    }
    whole(&cluster, writers).await;
}

/// A switchover goes to the synchronous standby and to no other; the roles follow.
///
/// Proves HA-076, HA-197 and REST-146 on real servers.
pub async fn switchover_goes_to_the_synchronous_standby(store: Store) {
    let cluster = cluster_with(store, json!({"synchronous_mode": true})).await;
    let (leader, standbys) = synchronous(&cluster, Kind::Priority, 1).await;
    let writers = writers(&cluster).await;
    let standby = standbys[0];
    let other = (0..3).find(|i| *i != leader && *i != standby).expect("a third node");
    let order = |from: usize, to: usize| json!({"leader": cluster.nodes[from].name, "candidate": cluster.nodes[to].name});
    let refused = cluster.send(leader, "POST", "/switchover", order(leader, other)).await;
    let refused = refused.expect("an answer");
    assert_eq!(refused.status, 412, "{}\n{}", refused.body, cluster.report());
    assert!(refused.body.contains("sync"), "{}", refused.body);
    for (from, to) in [(leader, standby), (standby, leader)] {
        cluster
            .wait("the former leader as synchronous standby", SETTLED, || async {
                let (_, standbys) = synchronous_now(&cluster, Kind::Priority, 1).await?;
                if standbys == [to] { Ok(()) } else { Err(format!("{standbys:?}")) }
            })
            .await;
        let answer = cluster.send(from, "POST", "/switchover", order(from, to)).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.report());
        assert_eq!(accepts(&cluster, &writers, Instant::now()).await, to, "{}", cluster.report());
        assert_eq!(cluster.healthy(SETTLED).await, to, "{}", cluster.report());
        if to == standby {
            // Whoever it chose: the way back needs the former leader.
            let third = &cluster.nodes[other];
            patch_tag(&cluster, other, &third.name).await;
        }
    }
    whole(&cluster, writers).await;
}

/// Takes a node out of the choice for good: `nosync` in its own file, and a reload.
async fn patch_tag(cluster: &Cluster, i: usize, name: &str) {
    let path = cluster.nodes[i].yaml();
    let text = std::fs::read_to_string(&path).expect("its file");
    let mut file: Value = serde_json::from_str(&text).expect("JSON, as the harness writes it");
    file["tags"]["nosync"] = json!(true);
    std::fs::write(&path, file.to_string()).expect("its file written");
    let answer = cluster.send(i, "POST", "/reload", json!({})).await.expect("an answer");
    assert_eq!(answer.status, 202, "{name}: {}", answer.body);
}

/// A lost synchronous standby is replaced; without any standby the primary goes on alone, as
/// `synchronous_mode_strict: false` says (on a store that outlives the nodes).
///
/// Proves HA-098 (steps 3 to 8) on real servers.
pub async fn a_lost_standby_is_replaced(store: Store) {
    let mut cluster = cluster_with(store, json!({"synchronous_mode": true})).await;
    let (leader, standbys) = synchronous(&cluster, Kind::Priority, 1).await;
    let writers = writers(&cluster).await;
    cluster.kill_node(standbys[0]);
    let killed = Instant::now();
    assert_eq!(accepts(&cluster, &writers, killed + Duration::from_secs(1)).await, leader);
    let lost = standbys[0];
    let (_, standbys) = synchronous(&cluster, Kind::Priority, 1).await;
    assert_ne!(standbys[0], lost);
    let mut down = vec![lost];
    // On the embedded store two dead nodes of three are the end of the store as well.
    if store != Store::Raft {
        cluster.kill_node(standbys[0]);
        let killed = Instant::now();
        assert_eq!(accepts(&cluster, &writers, killed + Duration::from_secs(1)).await, leader);
        down.push(standbys[0]);
    }
    for i in down {
        cluster.start_agent(i);
    }
    assert_eq!(cluster.healthy(SETTLED).await, leader);
    synchronous(&cluster, Kind::Priority, 1).await;
    whole(&cluster, writers).await;
}

/// Strict: without a standby no commit is confirmed, and nothing is lost when one is back.
///
/// Proves HA-098 (strict) on real servers.
pub async fn strict_waits_for_a_standby(store: Store) {
    let dcs = json!({"synchronous_mode": true, "synchronous_mode_strict": true});
    let cluster = cluster_with(store, dcs).await;
    let (leader, _) = synchronous(&cluster, Kind::Priority, 1).await;
    let writers = writers(&cluster).await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    // The members of the store stay: only the databases go.
    for &i in &others {
        cluster.signal_agent(i, Signal::STOP);
        cluster.kill_postmaster(i);
    }
    cluster
        .wait("nobody streams", SETTLED, || async {
            let count = "SELECT count(*) FROM pg_stat_replication";
            match sql::value(cluster.nodes[leader].pg(), count).await?.as_str() {
                "0" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    let alone = Instant::now();
    wait::holds("no commit is confirmed", Duration::from_secs(6), || async {
        match writers.last().filter(|row| row.sent > alone) {
            None => Ok(()),
            Some(row) => Err(format!("{row:?}")),
        }
    })
    .await
    .unwrap_or_else(|why| panic!("{why}\n{}", cluster.report()));
    for &i in &others {
        cluster.signal_agent(i, Signal::CONT);
    }
    accepts(&cluster, &writers, alone).await;
    cluster.healthy(SETTLED).await;
    whole(&cluster, writers).await;
}

/// Switched on, changed to quorum and switched off under writers, as one document each.
///
/// Before and after it the user's own value is in force, which is nobody's on a standby meanwhile.
///
/// Proves HA-196, HA-202, PG-198, PG-280, PG-287 (do better: the text changes with the mode at once) and
/// PG-288 on real servers.
pub async fn switched_on_and_off(store: Store) {
    let own = json!({"postgresql": {"parameters": {"synchronous_standby_names": "ANY 1 (*)"}}});
    let cluster = cluster_with(store, own).await;
    let leader = cluster.leader().await.expect("the leader of a healthy cluster");
    let names = "SHOW synchronous_standby_names";
    let names_of = |i: usize| sql::value(cluster.nodes[i].pg(), names);
    assert_eq!(names_of(leader).await.as_deref(), Ok("ANY 1 (*)"));
    let writers = writers(&cluster).await;
    patch(&cluster, leader, json!({"synchronous_mode": true})).await;
    synchronous(&cluster, Kind::Priority, 1).await;
    patch(&cluster, leader, json!({"synchronous_node_count": 2})).await;
    synchronous(&cluster, Kind::Priority, 2).await;
    patch(&cluster, leader, json!({"synchronous_mode": "quorum"})).await;
    synchronous(&cluster, Kind::Quorum, 2).await;
    for i in (0..3).filter(|i| *i != leader) {
        assert_eq!(names_of(i).await.as_deref(), Ok(""), "who follows holds up no commits");
    }
    patch(&cluster, leader, json!({"synchronous_mode": null})).await;
    cluster
        .wait("the user's own value again", SETTLED, || async {
            let names = names_of(leader).await?;
            let counts = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
            let counts = sql::value(cluster.nodes[leader].pg(), counts).await?;
            let record = cluster.get(leader, "/cluster").await?.body;
            if names == "ANY 1 (*)" && counts == "2" && !record.contains("_standby") {
                Ok(())
            } else {
                Err(format!("'{names}', {counts} in it, {record}"))
            }
        })
        .await;
    assert_eq!(accepts(&cluster, &writers, Instant::now()).await, leader);
    whole(&cluster, writers).await;
}

/// Everything loses power at once; whoever the record trusts leads, and every row is there.
///
/// Proves HA-094 after a restart of everything.
pub async fn a_power_cut_costs_no_row(store: Store) {
    let mut cluster = cluster_with(store, json!({"synchronous_mode": true})).await;
    synchronous(&cluster, Kind::Priority, 1).await;
    let writers = writers(&cluster).await;
    for i in 0..cluster.nodes.len() {
        cluster.kill_node(i);
    }
    for i in 0..cluster.nodes.len() {
        cluster.start_agent(i);
    }
    cluster.healthy(SETTLED).await;
    accepts(&cluster, &writers, Instant::now()).await;
    synchronous(&cluster, Kind::Priority, 1).await;
    whole(&cluster, writers).await;
}
