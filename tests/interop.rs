//! Real Patroni 4.1.5 and hathi in one cluster, on a real store, with clients writing all the time.
//! What holds here is what lets a user move one node at a time, and back.

use hathi_test_support::cluster::patroni_bin;
use hathi_test_support::{Agent, Cluster, ClusterOptions, Store, Writers, check, osuser, sql};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);
const SETTLED: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(40);

/// A cluster of three with these agents, healthy.
async fn cluster_of(agents: [Agent; 3]) -> Cluster {
    cluster_on(Store::Etcd { members: 1 }, agents).await
}

async fn cluster_on(store: Store, agents: [Agent; 3]) -> Cluster {
    let options = ClusterOptions::new(Agent::Patroni, store, env!("CARGO_BIN_EXE_hathi"));
    let mut cluster = Cluster::prepare(options).await;
    for (i, agent) in agents.into_iter().enumerate() {
        cluster.nodes[i].agent = agent;
        cluster.start_agent(i);
    }
    cluster.healthy(SETTLED).await;
    cluster
}

/// In synchronous mode: each of them, and no other document.
async fn synchronous_cluster_of(agents: &[Agent], dcs: Value) -> Cluster {
    let store = Store::Etcd { members: 1 };
    let mut options = ClusterOptions::new(Agent::Patroni, store, env!("CARGO_BIN_EXE_hathi"));
    options.nodes = agents.len();
    options.dcs = dcs;
    let mut cluster = Cluster::prepare(options).await;
    for (i, agent) in agents.iter().enumerate() {
        cluster.nodes[i].agent = *agent;
        cluster.start_agent(i);
    }
    cluster.healthy(SETTLED).await;
    cluster
}

/// The same, in failsafe mode, and every member knows whom to ask.
async fn failsafe_cluster_of(agents: [Agent; 3]) -> Cluster {
    let store = Store::Etcd { members: 1 };
    let mut options = ClusterOptions::new(Agent::Patroni, store, env!("CARGO_BIN_EXE_hathi"));
    options.dcs = json!({"failsafe_mode": true});
    let mut cluster = Cluster::prepare(options).await;
    for (i, agent) in agents.into_iter().enumerate() {
        cluster.nodes[i].agent = agent;
        cluster.start_agent(i);
    }
    cluster.healthy(SETTLED).await;
    cluster
        .wait("every member knows /failsafe", SETTLED, || async {
            for i in 0..cluster.nodes.len() {
                let answer = cluster.get(i, "/failsafe").await?;
                if !cluster.nodes.iter().all(|node| answer.body.contains(&node.name)) {
                    return Err(format!("{}: {}", cluster.nodes[i].name, answer.body));
                }
            }
            Ok(())
        })
        .await;
    cluster
}

/// Runs the real patronictl with the file of the first node.
fn patronictl(cluster: &Cluster, args: &[&str]) -> String {
    let mut command = Command::new(patroni_bin("patronictl"));
    command.arg("-c").arg(cluster.nodes[0].yaml()).args(args);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
    command.env("HOME", cluster.dir()).current_dir(cluster.dir());
    let out = osuser::as_server(&mut command).output().expect("patronictl runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "patronictl {args:?}: {text}{}\n{}",
        String::from_utf8_lossy(&out.stderr),
        cluster.report()
    );
    text
}

async fn switchover_by_patronictl(cluster: &Cluster, writers: &Writers, to: usize) {
    let from = cluster.leader().await.expect("a leader");
    if from == to {
        return;
    }
    let (leader, candidate) = (cluster.nodes[from].name.clone(), cluster.nodes[to].name.clone());
    let args = ["switchover", "--leader", &leader, "--candidate", &candidate, "--force"];
    let said = patronictl(cluster, &args);
    assert!(said.contains("Successfully switched over"), "{said}\n{}", cluster.report());
    let accepted = writers.accepts_after(Instant::now(), SOON).await;
    assert_eq!(accepted.map(|a| a.node), Ok(to), "{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, to, "{}", cluster.report());
}

/// Who is in `patronictl list -f json`, as (member, role, state).
fn listed(cluster: &Cluster) -> Vec<(String, String, String)> {
    let text = patronictl(cluster, &["list", "-f", "json"]);
    let rows: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let field = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter().map(|r| (field(r, "Member"), field(r, "Role"), field(r, "State"))).collect()
}

fn assert_listed(cluster: &Cluster, leader: usize) {
    let mut expected: Vec<(String, String, String)> = cluster
        .nodes
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let (role, state) =
                if i == leader { ("Leader", "running") } else { ("Replica", "streaming") };
            (node.name.clone(), role.to_owned(), state.to_owned())
        })
        .collect();
    expected.sort();
    let mut seen = listed(cluster);
    seen.sort();
    assert_eq!(seen, expected, "{}", cluster.report());
}

/// Two of ours and one of theirs; each leads in turn, switched by the real patronictl, whose
/// other commands work as well, whoever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_leads_in_turn_by_the_real_patronictl() {
    each_leads_in_turn(Store::Etcd { members: 1 }, &[0, 1, 2, 1, 0]).await;
}

/// Proves DCS-T10 (a real Patroni as leader and as replica, and its patronictl) on Consul.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_leads_in_turn_on_consul() {
    each_leads_in_turn(Store::Consul { members: 1 }, &[0, 1, 2]).await;
}

/// Proves DCS-T10 (a real Patroni as leader and as replica, and its patronictl) on ZooKeeper.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_leads_in_turn_on_zookeeper() {
    each_leads_in_turn(Store::ZooKeeper { members: 1 }, &[0, 1, 2]).await;
}

async fn each_leads_in_turn(store: Store, turns: &[usize]) {
    let cluster = cluster_on(store, [Agent::Hathi, Agent::Patroni, Agent::Hathi]).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    for (round, to) in turns.iter().copied().enumerate() {
        switchover_by_patronictl(&cluster, &writers, to).await;
        assert_listed(&cluster, to);

        let topology = patronictl(&cluster, &["topology"]);
        for (i, node) in cluster.nodes.iter().enumerate() {
            let shown =
                if i == to { format!("| {} ", node.name) } else { format!("+ {} ", node.name) };
            assert!(topology.contains(&shown), "{shown:?} is not in\n{topology}");
        }

        let work_mem = format!("{}kB", 4096 + 128 * (round + 1));
        let set = format!("postgresql.parameters.work_mem={work_mem}");
        patronictl(&cluster, &["edit-config", "--force", "-q", "-s", &set]);
        let shown = patronictl(&cluster, &["show-config"]);
        assert!(shown.contains(&format!("work_mem: {work_mem}")), "{shown}");
        for (i, node) in cluster.nodes.iter().enumerate() {
            cluster
                .wait("the edited parameter on every node", SOON, || async {
                    let config = cluster.get(i, "/config").await?.json();
                    let stored = &config["postgresql"]["parameters"]["work_mem"];
                    let used =
                        sql::value(node.pg_port, "SELECT current_setting('work_mem')").await?;
                    let used_kb = used.trim_end_matches("kB");
                    if stored == &json!(work_mem) && format!("{used_kb}kB") == work_mem {
                        Ok(())
                    } else {
                        Err(format!("{}: /config {stored}, in use {used}", node.name))
                    }
                })
                .await;
        }
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// A node of a Patroni cluster gets hathi with the very same file, leads, and goes back, while
/// the cluster serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_moves_from_patroni_and_back() {
    let mut cluster = cluster_of([Agent::Patroni, Agent::Patroni, Agent::Patroni]).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    let file = std::fs::read(cluster.nodes[0].yaml()).expect("the node's file");
    let first = cluster.leader().await.expect("a leader");
    let moving = (first + 1) % 3;

    change_agent(&mut cluster, moving, Agent::Hathi).await;
    switchover_by_patronictl(&cluster, &writers, moving).await;
    assert_listed(&cluster, moving);

    // Back, straight from the lead: the others take over, and it follows under Patroni again.
    change_agent(&mut cluster, moving, Agent::Patroni).await;
    let leader = cluster.leader().await.expect("a leader");
    assert_ne!(leader, moving);
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    switchover_by_patronictl(&cluster, &writers, moving).await;
    assert_listed(&cluster, moving);

    assert_eq!(std::fs::read(cluster.nodes[0].yaml()).expect("the node's file"), file);
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

async fn change_agent(cluster: &mut Cluster, node: usize, to: Agent) {
    let status = cluster.stop_agent(node).await;
    assert!(status.success(), "{status}\n{}", cluster.report());
    cluster.nodes[node].agent = to;
    cluster.start_agent(node);
    cluster.healthy(SETTLED).await;
}

/// Patroni leads and its node dies: ours takes over when the lease is out; and the other way.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_takes_over_from_the_others_dead_leader() {
    let mut cluster = cluster_of([Agent::Hathi, Agent::Patroni, Agent::Hathi]).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    let mut windows = Vec::new();
    for victim in [1, 0] {
        switchover_by_patronictl(&cluster, &writers, victim).await;
        let killed = Instant::now();
        windows.push(check::Loss::just_before(killed));
        cluster.kill_node(victim);
        let new = cluster.another_leader(victim, Duration::from_secs(45)).await;
        cluster.start_agent(victim);
        assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &windows).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// The real patronictl restarts, reinitialises and schedules on our members, and takes it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_are_restarted_and_reinitialised_by_the_real_patronictl() {
    let cluster = cluster_of([Agent::Hathi, Agent::Hathi, Agent::Patroni]).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    switchover_by_patronictl(&cluster, &writers, 0).await;
    let scope = hathi_test_support::yaml::SCOPE;
    let (leader, replica) = (&cluster.nodes[0].name, &cluster.nodes[1].name);
    let says = |args: &[&str], expected: &str| {
        let said = patronictl(&cluster, args);
        assert!(said.contains(expected), "{args:?}: {said}\n{}", cluster.report());
    };
    for member in [leader, replica] {
        let done = format!("Success: restart on member {member}");
        says(&["restart", scope, member, "--force"], &done);
    }
    says(
        &["restart", scope, replica, "--force", "--pg-version", "9.5.2"],
        "status code=503, (restart conditions are not satisfied)",
    );

    let later = (chrono::Utc::now() + chrono::TimeDelta::hours(1)).to_rfc3339();
    let scheduled = format!("Success: restart scheduled on member {replica}");
    says(&["restart", scope, replica, "--force", "--scheduled", &later], &scheduled);
    says(&["list"], "Scheduled restart");
    let flushed = format!("Success: flush scheduled restart for member {replica}");
    says(&["flush", scope, replica, "restart", "--force"], &flushed);

    let from_to = ["--leader", leader.as_str(), "--candidate", replica.as_str(), "--force"];
    let switchover = |at: &str| {
        let mut args = vec!["switchover", "--scheduled", at];
        args.extend(from_to);
        says(&args, "Switchover scheduled");
    };
    switchover(&later);
    says(&["list"], "Switchover scheduled at");
    says(&["flush", scope, "switchover"], "Success: scheduled switchover deleted");
    switchover(&(chrono::Utc::now() + chrono::TimeDelta::seconds(4)).to_rfc3339());
    assert_eq!(cluster.another_leader(0, SOON).await, 1, "{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, 1, "{}", cluster.report());

    let begun = format!("Success: reinitialize for member {leader}");
    says(&["reinit", scope, leader, "--force", "--wait"], &begun);
    let waiting = ["reinit", scope, leader, "--force", "--wait"];
    assert_eq!(cluster.healthy(SETTLED).await, 1, "{}", cluster.report());
    says(&waiting, &format!("Reinitialize is completed on: {leader}"));
    assert_eq!(cluster.healthy(SETTLED).await, 1, "{}", cluster.report());
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// etcd hangs for twice the lease: a Patroni primary goes on by the word of hathi replicas, and a
/// hathi primary by the word of Patroni replicas.
///
/// Proves HA-156, HA-157 and INV-36 (failsafe mode) with real members of both kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn failsafe_mode_holds_across_both() {
    let cluster = failsafe_cluster_of([Agent::Hathi, Agent::Patroni, Agent::Hathi]).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    let etcd = cluster.etcd.as_ref().expect("its etcd");
    for leader in [1, 0] {
        switchover_by_patronictl(&cluster, &writers, leader).await;
        let postmaster = cluster.nodes[leader].postmaster();
        let cut = Instant::now();
        etcd.pause();
        let long_after = cut + Duration::from_secs(40);
        let accepted = writers.accepts_after(long_after, Duration::from_secs(50)).await;
        assert_eq!(accepted.map(|a| a.node), Ok(leader), "{}", cluster.report());
        etcd.resume();
        assert_eq!(cluster.healthy(SETTLED).await, leader, "{}", cluster.report());
        assert_eq!(cluster.nodes[leader].postmaster(), postmaster, "{}", cluster.report());
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// Who leads, and how many of its standbys are synchronous, by PostgreSQL and by `/sync` alike.
async fn synchronous(cluster: &Cluster, state: &str, count: usize) -> usize {
    let names = format!(
        "SELECT coalesce(string_agg(application_name, ',' ORDER BY 1), '') \
         FROM pg_stat_replication WHERE sync_state = '{state}'"
    );
    let path = if state == "quorum" { "/quorum" } else { "/sync" };
    cluster
        .wait(&format!("{count} standbys in state {state}"), SETTLED, || async {
            let leader = cluster.leader().await?;
            let names = sql::value(cluster.nodes[leader].pg(), &names).await?;
            let listed = names.split(',').filter(|name| !name.is_empty());
            if listed.clone().count() != count {
                return Err(format!("'{names}' on {}", cluster.nodes[leader].name));
            }
            for name in listed {
                let answer = cluster.get(cluster.index(name), path).await?;
                if answer.status != 200 {
                    return Err(format!("{name} answers {} on {path}", answer.status));
                }
            }
            Ok(leader)
        })
        .await
}

/// One of each kind: whoever leads, its dead machine costs no acknowledged row, and `/sync` is
/// understood by the other.
///
/// Proves INV-36 (synchronous mode) and INV-6 with real members of both kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn synchronous_mode_holds_across_both() {
    let agents = [Agent::Hathi, Agent::Patroni];
    let mut cluster = synchronous_cluster_of(&agents, json!({"synchronous_mode": true})).await;
    let mut leader = synchronous(&cluster, "sync", 1).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    for _ in 0..4 {
        let killed = Instant::now();
        cluster.kill_node(leader);
        let new = cluster.another_leader(leader, Duration::from_secs(45)).await;
        let accepted = writers.accepts_after(killed + Duration::from_secs(1), SOON).await;
        assert_eq!(accepted.map(|a| a.node), Ok(new), "{}", cluster.report());
        cluster.start_agent(leader);
        cluster.healthy(SETTLED).await;
        leader = synchronous(&cluster, "sync", 1).await;
        assert_eq!(leader, new, "{}", cluster.report());
    }
    for _ in 0..2 {
        let to = 1 - leader;
        switchover_by_patronictl(&cluster, &writers, to).await;
        leader = synchronous(&cluster, "sync", 1).await;
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// The same by quorum, with two of ours and one of theirs.
///
/// Proves INV-36 (quorum commit) and INV-7 with real members of both kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn quorum_commit_holds_across_both() {
    let agents = [Agent::Hathi, Agent::Patroni, Agent::Hathi];
    let dcs = json!({"synchronous_mode": "quorum", "primary_start_timeout": 0});
    let cluster = synchronous_cluster_of(&agents, dcs).await;
    synchronous(&cluster, "quorum", 2).await;
    let writers = Writers::start(&cluster, PAUSE).await;
    writers.accepts_after(Instant::now(), SOON).await.expect("a write");
    for victim in [1, 0, 2] {
        switchover_by_patronictl(&cluster, &writers, victim).await;
        synchronous(&cluster, "quorum", 2).await;
        let killed = Instant::now();
        cluster.kill_postmaster(victim);
        let new = cluster.another_leader(victim, Duration::from_secs(60)).await;
        let accepted = writers.accepts_after(killed + Duration::from_secs(1), SOON).await;
        assert_eq!(accepted.map(|a| a.node), Ok(new), "{}", cluster.report());
        assert_eq!(cluster.healthy(SETTLED).await, new, "{}", cluster.report());
        synchronous(&cluster, "quorum", 2).await;
    }
    let written = writers.stop().await;
    check::verify(&cluster, &written, &[]).await;
    check::same_rows_everywhere(&cluster, SOON).await;
}

/// Proves DCS-T10 (a real Patroni as leader and as replica, and its patronictl) on Kubernetes, in Endpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_leads_in_turn_on_kubernetes() {
    each_leads_in_turn(Store::Kubernetes { endpoints: true }, &[0, 1, 2]).await;
}

/// The same in ConfigMaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_leads_in_turn_on_kubernetes_config_maps() {
    each_leads_in_turn(Store::Kubernetes { endpoints: false }, &[1, 2, 0]).await;
}
