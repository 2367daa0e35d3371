//! Before the loop begins: the store must answer, and the name must be free. After its end: somebody
//! else should lead. (DCS-077, HA-141)

use crate::agent::peers::{HttpClient, endpoint};
use crate::config::Local;
use hathi_dcs::{ClusterView, Dcs, DcsError, Deadline, Freshness, boottime};
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to reach the store.
const AGAIN: Duration = Duration::from_secs(5);
const ATTEMPT_MS: u64 = 10_000;

/// Asks until the store answers. A running PostgreSQL is not touched meanwhile; its guard keeps the
/// time of its lease.
pub async fn wait_for_store(dcs: &Arc<dyn Dcs>) -> ClusterView {
    let mut said = None;
    loop {
        match dcs.load(Freshness::Latest, Deadline::in_ms(ATTEMPT_MS)).await {
            Ok(view) => return view,
            Err(error) => {
                let line = first_words(&error);
                if said.as_ref() != Some(&line) {
                    tracing::warn!("waiting for the store ({}): {error}", dcs.kind());
                    said = Some(line);
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The kind of failure, without the numbers that differ each time.
fn first_words(error: &DcsError) -> String {
    match error {
        DcsError::Unreachable { store, .. } => format!("unreachable {store}"),
        DcsError::Refused { .. }
        | DcsError::NotOwner { .. }
        | DcsError::Conflict { .. }
        | DcsError::NotRetriable { .. } => error.to_string(),
    }
}

/// Does somebody else live under my name? Any HTTP answer at the address my member record shows
/// means yes; at my own address only I can answer. (REST-345)
pub async fn namesake(local: &Local, view: &ClusterView, client: &HttpClient) -> Option<String> {
    let recorded = view.member(&local.name)?.data.api_url.clone()?;
    if recorded == local.api_url() {
        return None;
    }
    let url = endpoint(&recorded, "/liveness")?;
    let by = Deadline(boottime().plus(3_000));
    client.get(&url, by).await.ok().map(|_| {
        format!(
            "a member named {} runs already and answers at {recorded}; give this one another name",
            local.name
        )
    })
}

/// How long the agent stays to see another leader after it gave the key up.
const SUCCESSOR_MS: u64 = 1_500;

/// PostgreSQL is stopped and the key given up. An agent that carries a part of the store would take
/// it away at the very moment the others race for the key, so it stays until one of them has it.
pub async fn see_successor(dcs: &Arc<dyn Dcs>, local: &Local) {
    let by = Deadline::in_ms(SUCCESSOR_MS);
    while !by.left().is_zero() {
        match dcs.load(Freshness::Latest, by).await {
            Ok(view) => {
                let others = view.members.iter().any(|member| member.name != local.name);
                if !others || view.leader_name().is_some_and(|name| *name != local.name) {
                    return;
                }
            }
            Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::peers::ClientSettings;
    use crate::config;
    use hathi_dcs::{Version, ViewBuilder};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn local() -> Local {
        let login = json!({"username": "p", "password": "dummy"});
        let document = json!({
            "scope": "demo", "name": "a",
            "restapi": {"listen": "127.0.0.1:8008"},
            "raft": {"self_addr": "127.0.0.1:2222", "data_dir": "/raft"},
            "postgresql": {
                "listen": "127.0.0.1:5432", "data_dir": "/data",
                "authentication": {"superuser": login, "replication": login},
            },
        });
        let variable = ("PATRONI_CONFIGURATION".to_owned(), document.to_string());
        config::load(None, &[variable].into()).unwrap_or_else(|error| panic!("{error}")).0
    }

    fn recorded(url: &str) -> ClusterView {
        let mut builder = ViewBuilder::default();
        builder.put("members/a", &json!({ "api_url": url }).to_string(), Version(1));
        builder.build()
    }

    /// Proves HA-141, REST-345, REST-065 (its last sentence): whoever answers at the address that the record
    /// of this name shows lives under it, whatever the code; nobody there, or ourselves, is no reason.
    #[tokio::test]
    async fn a_namesake_that_answers_is_fatal() {
        let client = HttpClient::new(&ClientSettings::default()).expect("a client");
        for code in ["200 OK", "503 Service Unavailable"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let url = format!("http://{}/patroni", listener.local_addr().expect("an address"));
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.expect("a request");
                let answer = format!("HTTP/1.0 {code}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("sent");
                String::from_utf8_lossy(&request[..n]).into_owned()
            });
            let why =
                namesake(&local(), &recorded(&url), &client).await.expect("somebody is there");
            assert!(why.contains(&url) && why.contains("another name"), "{why}");
            assert!(server.await.expect("the server").starts_with("GET /liveness "));
        }
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/patroni", gone.local_addr().expect("an address"));
        drop(gone);
        assert_eq!(namesake(&local(), &recorded(&url), &client).await, None);
        let own = local().api_url();
        assert_eq!(namesake(&local(), &recorded(&own), &client).await, None);
        assert_eq!(namesake(&local(), &ViewBuilder::default().build(), &client).await, None);
    }
}
