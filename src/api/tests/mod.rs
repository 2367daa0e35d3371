//! The room as a whole: snapshots in, bytes on a socket out.

mod decisions;
mod events;
mod fuzz;
mod golden;
mod hostile;
mod looks;
mod matrix;
mod openapi;
mod reads;
mod requests;
mod restarts;
mod sockets;
mod tls;
mod transport;
mod ui;
mod writes;

use crate::api::{Order, RestConfig, Server as ApiServer, Snapshot};
use crate::ha::ports::{DataDir, Observation, Server, ServerDetails, Standby};
use hathi_dcs::{
    ClusterView, Lsn, Millis, Role, State, SystemId, Timeline, Version, ViewBuilder, boottime,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Long enough for a busy machine; no test waits this long unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn details() -> ServerDetails {
    ServerDetails {
        postmaster_start_time: "2026-11-23 20:35:41.444611+00".to_owned(),
        server_version: 150_018,
        replayed_timestamp: None,
        latest_end_lsn: None,
        replication: Vec::new(),
    }
}

pub fn observation(role: Role, server: Server) -> Observation {
    let is_primary = matches!(server, Server::Primary { .. });
    Observation {
        data_dir: DataDir::Present,
        alive: !matches!(server, Server::Down),
        state: State::Running,
        state_since: Millis(0),
        role,
        details: matches!(server, Server::Primary { .. } | Server::Standby(_)).then(details),
        server,
        system_id: SystemId::parse("7711468355016940526"),
        slots: Vec::new(),
        pending_restart: BTreeMap::new(),
        can_rewind: false,
        is_primary,
        replication: Default::default(),
        fast_stop_ms: None,
        disk_stalls_ms: 0,
    }
}

pub fn view(keys: &[(&str, &str)]) -> Arc<ClusterView> {
    let mut builder = ViewBuilder::default();
    for (key, value) in keys {
        builder.put(key, value, Version(1));
    }
    Arc::new(builder.build())
}

/// Three members, `a` leads, `b` and `c` stream; nothing lags.
pub fn healthy_view() -> Arc<ClusterView> {
    view(&[
        ("config", r#"{"ttl": 20, "loop_wait": 2, "retry_timeout": 3}"#),
        ("initialize", "7711468355016940526"),
        ("leader", "a"),
        ("status", r#"{"optime":1000}"#),
        (
            "members/a",
            r#"{"conn_url":"postgres://127.0.0.1:1/postgres","api_url":"http://127.0.0.1:11/patroni","state":"running","role":"primary","version":"4.1.5","xlog_location":1000,"timeline":1}"#,
        ),
        (
            "members/b",
            r#"{"conn_url":"postgres://127.0.0.1:2/postgres","api_url":"http://127.0.0.1:12/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":1000,"replay_lsn":900,"receive_lsn":1000,"replication_state":"streaming","timeline":1}"#,
        ),
        ("history", "[]"),
    ])
}

/// `a`, the leader of a healthy cluster.
pub fn primary() -> Snapshot {
    let now = boottime();
    let server = Server::Primary { timeline: Timeline(1), lsn: Lsn(1000) };
    let mut snapshot = Snapshot::new("a".into(), "demo", observation(Role::Primary, server));
    snapshot.timing.ttl = 20;
    snapshot.view = Some((healthy_view(), now));
    snapshot.leader_until = Some(now.plus(19_000));
    snapshot.next_turn = now.plus(2000);
    snapshot.observed_at = now;
    snapshot.dcs_last_seen = 1_795_466_149;
    snapshot
}

/// `b`, a streaming replica of it.
pub fn replica() -> Snapshot {
    let mut snapshot = primary();
    snapshot.me = "b".into();
    snapshot.leader_until = None;
    snapshot.postgres = observation(Role::Replica, Server::Standby(standby()));
    if let Some(details) = &mut snapshot.postgres.details {
        details.latest_end_lsn = Some(Lsn(1000));
    }
    snapshot
}

pub fn standby() -> Standby {
    Standby {
        timeline: Timeline(1),
        received: Some(Lsn(1000)),
        replayed: Some(Lsn(1000)),
        streaming: true,
        ..Standby::default()
    }
}

/// A served snapshot. The orders come out of `orders`, unless somebody answers them.
pub struct Served {
    pub address: SocketAddr,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub orders: mpsc::Receiver<Order>,
    pub handle: crate::api::Handle,
    stop: Option<oneshot::Sender<()>>,
    pub running: JoinHandle<()>,
}

impl Served {
    pub async fn new(snapshot: Snapshot) -> Self {
        Self::with(RestConfig::on("127.0.0.1:0"), snapshot).await
    }

    pub async fn with(config: RestConfig, snapshot: Snapshot) -> Self {
        let server = ApiServer::bind(config).await.expect("a free port");
        let address = server.addresses()[0];
        let handle = server.handle();
        let (snapshots, seen) = watch::channel(Arc::new(snapshot));
        let (sender, orders) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(seen, sender, async move {
            let _ = stopped.await;
        }));
        Self { address, snapshots, orders, handle, stop: Some(stop), running }
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    pub async fn connect(&self) -> Talk<TcpStream> {
        Talk::new(TcpStream::connect(self.address).await.expect("it listens"))
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.ask("GET", target, "", b"").await
    }

    /// One request on a connection of its own; `headers` lines end with CR LF.
    pub async fn ask(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Reply {
        let mut talk = self.connect().await;
        talk.ask(method, target, headers, body).await.expect("an answer")
    }

    /// A request with a JSON body.
    pub async fn send(&self, method: &str, target: &str, body: &str) -> Reply {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.ask(method, target, &length, body.as_bytes()).await
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub status_line: String,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.body))
    }
}

/// A connection that is kept.
pub struct Talk<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// `None`: closed before a whole answer came.
    pub async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: &[u8],
    ) -> Option<Reply> {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        self.stream.write_all(head.as_bytes()).await.ok()?;
        self.stream.write_all(body).await.ok()?;
        self.read(method).await
    }

    pub async fn read(&mut self, method: &str) -> Option<Reply> {
        tokio::time::timeout(PATIENCE, self.read_one(method)).await.expect("an answer in time")
    }

    async fn read_one(&mut self, method: &str) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let status_line = head.lines().next()?.to_owned();
        let status = status_line.split(' ').nth(1)?.parse().ok()?;
        let mut reply = Reply { status, status_line, head, body: String::new() };
        let length = reply.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = if method == "HEAD" { 0 } else { length.expect("a length") };
        while self.buffer.len() < length {
            self.more().await?;
        }
        reply.body = String::from_utf8(self.buffer.drain(..length).collect()).expect("UTF-8");
        Some(reply)
    }

    async fn more(&mut self) -> Option<()> {
        let mut part = [0; 8192];
        match self.stream.read(&mut part).await {
            Ok(0) | Err(_) => None,
            Ok(n) => {
                self.buffer.extend_from_slice(&part[..n]);
                Some(())
            }
        }
    }

    /// True once the other end has closed.
    pub async fn is_closed(&mut self) -> bool {
        let closed = async { while self.more().await.is_some() {} };
        tokio::time::timeout(PATIENCE, closed).await.is_ok()
    }
}

pub fn map(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("an object")
}
