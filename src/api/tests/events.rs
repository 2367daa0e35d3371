//! `/events`. (REST-473)

use super::decisions::add;
use super::{PATIENCE, Served, observation, primary, standby, view};
use crate::api::Snapshot;
use crate::api::events::LISTENERS;
use crate::ha::ports::Server;
use hathi_dcs::{Role, boottime};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A client that listens.
struct Ear {
    stream: TcpStream,
    heard: String,
}

impl Ear {
    async fn new(served: &Served) -> Self {
        let mut stream = TcpStream::connect(served.address).await.expect("it listens");
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        Self { stream, heard: String::new() }
    }

    async fn more(&mut self) -> bool {
        let mut part = [0; 8192];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await;
        let n = read.expect("something in time").unwrap_or(0);
        self.heard.push_str(&String::from_utf8_lossy(&part[..n]));
        n > 0
    }

    /// Waits for it; what came before it is forgotten.
    async fn hears(&mut self, text: &str) {
        loop {
            if let Some(at) = self.heard.find(text) {
                self.heard.drain(..at + text.len());
                return;
            }
            assert!(self.more().await, "the stream ended before {text}: {}", self.heard);
        }
    }

    async fn hears_the_end(&mut self) {
        while self.more().await {}
    }
}

/// Proves REST-473: what is, at once; then each change, and nothing twice.
#[tokio::test]
async fn changes_are_told() {
    let snapshot = primary();
    let journal = snapshot.journal.clone();
    add(&journal, 7, "long ago");
    let served = Served::new(snapshot.clone()).await;
    let mut ear = Ear::new(&served).await;
    ear.hears("200 OK").await;
    ear.hears("content-type: text/event-stream").await;
    ear.hears("event: cluster\ndata: {\"members\": [{\"name\": \"a\"").await;
    ear.hears("event: status\ndata: {\"name\": \"a\"").await;
    ear.hears("\"leads\": true").await;

    add(&journal, 8, "line 8");
    let demoted = Snapshot {
        leader_until: None,
        postgres: observation(Role::Demoted, Server::Standby(standby())),
        ..snapshot.clone()
    };
    served.snapshots.send_replace(Arc::new(demoted.clone()));
    ear.hears("event: status\n").await;
    ear.hears("\"leads\": false").await;
    ear.hears("event: decision\ndata: {\"number\": 8,").await;
    ear.hears("\"line\": \"line 8\"").await;
    let no_store = Snapshot { view: None, ..demoted.clone() };
    served.snapshots.send_replace(Arc::new(no_store));
    ear.hears("event: cluster\ndata: null\n\n").await;
    let other = view(&[("leader", "z"), ("members/z", r#"{"api_url":"x"}"#)]);
    let other = Snapshot { view: Some((other, boottime())), ..demoted };
    served.snapshots.send_replace(Arc::new(other.clone()));
    ear.hears("event: cluster\ndata: {\"members\": [{\"name\": \"z\"").await;
    // The same again is no news.
    served.snapshots.send_replace(Arc::new(other));
    ear.hears(":\n\n").await;
    assert!(!ear.heard.contains("event: cluster") && !ear.heard.contains("long ago"));
}

/// Proves REST-473 (limits), REST-450: so many listen, the next is told so; who leaves makes room; and
/// none of them holds up the end.
#[tokio::test]
async fn listeners_are_few_and_leave() {
    let mut served = Served::new(primary()).await;
    let mut ears = Vec::new();
    for _ in 0..LISTENERS {
        let mut ear = Ear::new(&served).await;
        ear.hears("event: status").await;
        ears.push(ear);
    }
    assert_eq!(served.get("/events").await.status, 503);
    assert_eq!(served.get("/primary").await.status, 200);
    ears.pop();
    let until = Instant::now() + PATIENCE;
    loop {
        // The place is free when the server notices; it writes a sign of life to notice.
        let mut ear = Ear::new(&served).await;
        assert!(ear.more().await);
        if ear.heard.contains("200 OK") {
            break;
        }
        assert!(Instant::now() < until, "no place became free");
        served.snapshots.send_replace(Arc::new(primary()));
    }
    let started = Instant::now();
    served.stop();
    tokio::time::timeout(PATIENCE, &mut served.running).await.expect("ends").expect("cleanly");
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    for mut ear in ears {
        ear.hears_the_end().await;
    }
}
