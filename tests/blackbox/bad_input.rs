//! What bad input gets: one clear line that says what, where and what to do; a non-zero exit;
//! nothing touched.

use crate::{PAUSE, SETTLED, options};
use hathi_test_support::process::{Process, belonging_to};
use hathi_test_support::{Cluster, Store, Writers, ports};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One node's file, not started; `change` is laid over it.
async fn node(change: Value) -> Cluster {
    let mut options = options(Store::Raft);
    options.nodes = 1;
    options.local = change;
    Cluster::prepare(options).await
}

/// Every file below `dir` with its size, but for the log this test itself makes.
fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("a file's metadata");
            if meta.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path(), if meta.is_dir() { 0 } else { meta.len() });
        }
    }
    found.retain(|path, _| path.extension().is_none_or(|e| e != "log"));
    found
}

/// Starts the only node and expects it to refuse, naming every one of `words`.
async fn refused(cluster: &mut Cluster, words: &[&str]) {
    let before = files(cluster.dir());
    let command = cluster.agent_command(0);
    let log = cluster.dir().join("refused.log");
    let mut process = Process::start(command, &log);
    let ended = tokio::task::spawn_blocking(move || process.ended(Duration::from_secs(20)));
    let status = ended.await.expect("the waiting thread").unwrap_or_else(|| {
        panic!("it did not end:\n{}", std::fs::read_to_string(&log).unwrap_or_default())
    });
    let text = std::fs::read_to_string(cluster.dir().join("refused.log")).expect("the output");
    assert!(!status.success(), "it ended with {status}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "one line, not:\n{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not named in: {text}");
    }
    assert_eq!(files(cluster.dir()), before, "something was touched: {text}");
    assert_eq!(belonging_to(cluster.dir()), Vec::<u32>::new(), "something was left running");
}

#[tokio::test(flavor = "multi_thread")]
async fn yaml_that_is_none() {
    let mut cluster = node(json!({})).await;
    let file = cluster.nodes[0].yaml();
    std::fs::write(&file, "scope: a\nname: [b\nrestapi:\n\tlisten: x\n").expect("the file");
    refused(&mut cluster, &["node.yml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_the_wrong_kind() {
    let mut cluster = node(json!({"restapi": {"listen": "127.0.0.1:port"}})).await;
    refused(&mut cluster, &["node.yml", "restapi.listen"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key() {
    let mut cluster = node(json!({"scope": null})).await;
    refused(&mut cluster, &["node.yml", "scope", "add it"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there() {
    let mut cluster = node(json!({})).await;
    std::fs::remove_file(cluster.nodes[0].yaml()).expect("the file goes");
    refused(&mut cluster, &["node.yml"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_backend() {
    let mut cluster = node(json!({"raft": null, "exhibitor": {"hosts": "h"}})).await;
    // What is to be written instead is said, too.
    refused(&mut cluster, &["node.yml", "exhibitor", "zookeeper, hosts: [host:2181]"]).await;
}

/// In no Pod and without a kubeconfig nobody knows where the API server is: one line says what was looked
/// for, and the agent waits, for both may come.
///
/// Proves DCS-177 (outside of a Pod) and DCS-077.
#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_is_nowhere() {
    let section = json!({"labels": {"application": "patroni"}});
    let mut cluster = node(json!({"raft": null, "kubernetes": section})).await;
    cluster.start_agent(0);
    let log = cluster.nodes[0].log();
    let waits = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("waiting for the store (kubernetes)"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    cluster
        .wait("it says what it waits for", Duration::from_secs(20), || async {
            if waits().is_empty() { Err("nothing yet".to_owned()) } else { Ok(()) }
        })
        .await;
    for word in ["KUBERNETES_SERVICE_HOST", "~/.kube/config", "cannot be read"] {
        assert!(waits()[0].contains(word), "{word:?} is not named in: {}", waits()[0]);
    }
    assert!(cluster.agent_running(0), "it gave up\n{}", cluster.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_backend() {
    let mut cluster = node(json!({"raft": null})).await;
    refused(&mut cluster, &["node.yml", "raft", "etcd3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_cannot_be_written() {
    let mut cluster = node(json!({"postgresql": {"data_dir": "/proc/hathi/data"}})).await;
    refused(&mut cluster, &["postgresql.data_dir", "/proc/hathi/data"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_postgresql() {
    let mut cluster = node(json!({"postgresql": {"bin_dir": "/usr/share"}})).await;
    refused(&mut cluster, &["/usr/share", "bin_dir"]).await;
}

/// The new cluster's agent could never log in.
#[tokio::test(flavor = "multi_thread")]
async fn a_pg_hba_that_locks_the_agent_out() {
    let hba = json!(["host all all 10.0.0.0/24 scram-sha-256"]);
    let mut cluster = node(json!({"postgresql": {"pg_hba": hba}})).await;
    refused(&mut cluster, &["postgresql.pg_hba", "add: host postgres", "127.0.0.1/32"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_port_in_use() {
    let port = ports::free_port();
    let listen = format!("127.0.0.1:{port}");
    let _holder = TcpListener::bind(&listen).expect("a port of our own");
    let change = json!({"restapi": {"listen": listen, "connect_address": listen}});
    let mut cluster = node(change).await;
    refused(&mut cluster, &["restapi.listen", &listen, "in use"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_port_in_use() {
    let port = ports::free_port();
    let listen = format!("127.0.0.1:{port}");
    let _holder = TcpListener::bind(&listen).expect("a port of our own");
    let mut cluster = node(json!({"raft": {"self_addr": listen}})).await;
    refused(&mut cluster, &["raft", &listen, "in use"]).await;
}

/// The data directory of another cluster is not joined, started or changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_data_directory_of_another_cluster() {
    let mut one_node = options(Store::Raft);
    one_node.nodes = 1;
    let mut theirs = Cluster::start(one_node).await;
    let status = theirs.stop_agent(0).await;
    assert!(status.success(), "{status}\n{}", theirs.report());

    let mut ours = Cluster::start(options(Store::Etcd { members: 1 })).await;
    let leader = ours.leader().await.expect("the leader of a healthy cluster");
    let writers = Writers::start(&ours, PAUSE).await;
    let replica = (leader + 1) % 3;
    let _ = ours.stop_agent(replica).await;
    let file = ours.nodes[replica].yaml();
    let text = std::fs::read_to_string(&file).expect("the node's file");
    let mut whole: Value = serde_json::from_str(&text).expect("JSON");
    whole["postgresql"]["data_dir"] = json!(theirs.nodes[0].data());
    std::fs::write(&file, whole.to_string()).expect("the node's file");

    let before = files(&theirs.nodes[0].data());
    ours.start_agent(replica);
    let status = ours.await_end(replica, Duration::from_secs(30)).await;
    assert!(!status.success(), "{status}");
    let log = std::fs::read_to_string(ours.nodes[replica].log()).expect("the log");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("system identifier") || last.contains("system ID"), "{log}");
    assert_eq!(files(&theirs.nodes[0].data()), before, "the other cluster's data was touched");
    writers.accepts_after(Instant::now(), SETTLED).await.expect("ours serves on");
}
