//! `hathi demo --json`: one document for a program that wants to use the cluster.

use super::herd::Herd;
use super::place::{Place, REPLICATION_USER, SCOPE, SUPERUSER};
use super::watch::{RHYTHM, Watch};
use super::{End, READY_WITHIN};
use anyhow::bail;
use serde_json::{Value, json};
use std::time::Instant;

/// Prints the document once the cluster is ready, then stays until the end is wanted.
///
/// # Errors
/// The cluster is not ready in time, with what was seen last.
pub async fn tell(
    place: &Place,
    herd: &mut Herd,
    watch: &mut Watch,
    end: &mut End,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut told = false;
    loop {
        for event in watch.look(herd).await {
            tracing::info!("{}", event.what);
        }
        if !told && watch.picture.ready() {
            println!("{}", whole(place, watch));
            told = true;
        }
        if !told && started.elapsed() > READY_WITHIN {
            let logs = place.dir.display();
            bail!(
                "the cluster is not ready after {READY_WITHIN:?}; the agents' logs are in {logs}"
            );
        }
        tokio::select! {
            () = end.wanted() => return Ok(()),
            () = tokio::time::sleep(RHYTHM) => {}
        }
    }
}

fn whole(place: &Place, watch: &Watch) -> Value {
    let members: Vec<Value> = place
        .nodes
        .iter()
        .zip(&watch.picture.members)
        .map(|(node, seen)| {
            json!({
                "name": node.name,
                "role": seen.role,
                "state": seen.state,
                "timeline": seen.timeline,
                "agent_pid": seen.agent,
                "postmaster_pid": seen.postmaster,
                "postgresql": {"host": "127.0.0.1", "port": node.pg_port},
                "rest": {
                    "host": "127.0.0.1", "port": node.rest_port,
                    "url": format!("http://127.0.0.1:{}", node.rest_port)
                },
                "config": node.file(),
                "log": node.log(),
                "data_dir": node.data(),
            })
        })
        .collect();
    json!({
        "scope": SCOPE,
        "store": place.store,
        "directory": place.dir,
        "leader": watch.picture.leader().map(|m| m.name.clone()),
        "members": members,
        "credentials": {
            "superuser": {"username": SUPERUSER, "password": place.password},
            "replication": {"username": REPLICATION_USER, "password": place.replication_password}
        },
        "url": place.url(),
    })
}
