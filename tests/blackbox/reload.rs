//! SIGHUP puts a changed file in force, or nothing of it.

use crate::options;
use hathi_test_support::{Cluster, Store, ports, rest};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

/// Lays a change over the only node's file and asks for a reload.
fn change(cluster: &Cluster, section: &str, key: &str, value: &Value) {
    let file = cluster.nodes[0].yaml();
    let text = std::fs::read_to_string(&file).expect("the node's file");
    let mut whole: Value = serde_json::from_str(&text).expect("JSON");
    whole[section][key] = value.clone();
    std::fs::write(&file, whole.to_string()).expect("the node's file");
}

/// Proves REST-453: the REST API moves to a new address without a restart; one it cannot have leaves
/// the old listener serving, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_rest_api_moves_or_stays() {
    let mut one_node = options(Store::Raft);
    one_node.nodes = 1;
    let cluster = Cluster::start(one_node).await;
    let agent = cluster.nodes[0].agent_pid();
    let old = cluster.nodes[0].rest_port;

    let taken = ports::free_port();
    let _holder = TcpListener::bind(("127.0.0.1", taken)).expect("a port of our own");
    change(&cluster, "restapi", "listen", &json!(format!("127.0.0.1:{taken}")));
    cluster.signal_agent(0, Signal::HUP);
    cluster
        .wait("the refused reload in the log", Duration::from_secs(20), || async {
            let log = std::fs::read_to_string(cluster.nodes[0].log()).map_err(|e| e.to_string())?;
            let said = log.lines().any(|line| {
                line.contains("configuration not reloaded") && line.contains(&taken.to_string())
            });
            if said { Ok(()) } else { Err("not said yet".to_owned()) }
        })
        .await;
    assert_eq!(rest::get(old, "/primary").await.expect("the old listener").status, 200);

    let new = ports::free_port();
    for key in ["listen", "connect_address"] {
        change(&cluster, "restapi", key, &json!(format!("127.0.0.1:{new}")));
    }
    cluster.signal_agent(0, Signal::HUP);
    cluster
        .wait("the new address", Duration::from_secs(20), || async {
            let shown = rest::get(new, "/cluster").await?.json();
            let url = shown["members"][0]["api_url"].as_str().unwrap_or_default().to_owned();
            if url.contains(&new.to_string()) { Ok(()) } else { Err(url) }
        })
        .await;
    assert_eq!(rest::get(new, "/primary").await.expect("the new listener").status, 200);
    assert!(rest::get(old, "/primary").await.is_err(), "the old address is given up");
    assert_eq!(cluster.nodes[0].agent_pid(), agent, "the same process");
}
