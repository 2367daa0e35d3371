//! Serves one snapshot and asks `/primary` over 16 kept connections: requests a second and the 99th
//! percentile of the latency. `cargo run --release --features full --example rest_bench`

use hathi::api::{RestConfig, Server, Snapshot};
use hathi::ha::ports::{DataDir, Observation, Server as Postgres, ServerDetails};
use hathi_dcs::{Lsn, Millis, Role, State, Timeline, Version, ViewBuilder, boottime};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

const CONNECTIONS: usize = 16;
const LASTS: Duration = Duration::from_secs(5);

fn primary() -> Snapshot {
    let now = boottime();
    let postgres = Observation {
        data_dir: DataDir::Present,
        alive: true,
        state: State::Running,
        state_since: Millis(0),
        role: Role::Primary,
        server: Postgres::Primary { timeline: Timeline(1), lsn: Lsn(67_108_960) },
        system_id: None,
        slots: Vec::new(),
        replication: Default::default(),
        fast_stop_ms: None,
        disk_stalls_ms: 0,
        pending_restart: BTreeMap::new(),
        details: Some(ServerDetails {
            postmaster_start_time: "2026-11-23 20:35:41.444611+00".to_owned(),
            server_version: 150_018,
            ..ServerDetails::default()
        }),
        can_rewind: false,
        is_primary: true,
    };
    let mut view = ViewBuilder::default();
    view.put("leader", "alpha", Version(1)).put("config", "{}", Version(1));
    let mut snapshot = Snapshot::new("alpha".into(), "bench", postgres);
    snapshot.view = Some((Arc::new(view.build()), now.plus(3_600_000)));
    snapshot.leader_until = Some(now.plus(3_600_000));
    snapshot.next_turn = now.plus(3_600_000);
    snapshot
}

fn main() -> anyhow::Result<()> {
    // The agent's runtime has two threads; the asking side gets its own.
    let serving =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (snapshots, seen) = watch::channel(Arc::new(primary()));
    let (orders, mut asked) = mpsc::channel(16);
    let server = serving.block_on(Server::bind(RestConfig::on("127.0.0.1:0")))?;
    let address = server.addresses()[0];
    serving.spawn(server.run(seen, orders, std::future::pending()));
    // A PostgreSQL that never answers.
    serving.spawn(async move { while asked.recv().await.is_some() {} });

    let asking =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut latencies = asking.block_on(async {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let mut buffer = [0; 4096];
                    let mut latencies = Vec::with_capacity(200_000);
                    let end = Instant::now() + LASTS;
                    while Instant::now() < end {
                        let started = Instant::now();
                        stream.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                        let n = stream.read(&mut buffer).await?;
                        anyhow::ensure!(buffer[..n].starts_with(b"HTTP/1.1 200 OK"), "no answer");
                        latencies.push(started.elapsed());
                    }
                    Ok(latencies)
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await??);
        }
        anyhow::Ok(all)
    })?;
    latencies.sort_unstable();
    let rate = latencies.len() as f64 / LASTS.as_secs_f64();
    let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize];
    println!(
        "/primary over {CONNECTIONS} connections: {rate:.0} requests/s, median {:?}, p99 {:?}",
        at(0.5),
        at(0.99)
    );
    drop(snapshots);
    asking.shutdown_background();
    serving.shutdown_background();
    Ok(())
}
