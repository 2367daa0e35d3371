//! Serves one snapshot without a cluster behind it, for whoever works on the speed of the API itself:
//! `cargo run --release --features full --example rest_bench [SECONDS] [PATH] [CONNECTIONS]`

use hathi::api::{Order, RestConfig, Server, Snapshot};
use hathi::ha::ports::{DataDir, Observation, Server as Postgres, ServerDetails};
use hathi_dcs::{Lsn, Millis, Role, State, Timeline, Version, ViewBuilder, boottime};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

#[path = "compare/load.rs"]
mod load;

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

fn process_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let seconds: f64 = args.next().map_or(Ok(1.0), |text| text.parse())?;
    let path = args.next();
    let connections: Option<usize> = args.next().map(|text| text.parse()).transpose()?;
    // The agent's runtime has two threads; the asking side gets its own.
    let serving =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (snapshots, seen) = watch::channel(Arc::new(primary()));
    let (orders, mut asked) = mpsc::channel(16);
    let server = serving.block_on(Server::bind(RestConfig::on("127.0.0.1:0")))?;
    let address = server.addresses()[0];
    serving.spawn(server.run(seen, orders, std::future::pending()));
    // A PostgreSQL that answers at once.
    serving.spawn(async move {
        while let Some(order) = asked.recv().await {
            if let Order::FreshStatus { reply } = order {
                let _ = reply.send(primary().postgres);
            }
        }
    });
    for known in ["/primary", "/replica?lag=16MB", "/health", "/liveness", "/patroni", "/metrics"] {
        if path.as_ref().is_some_and(|path| path != known) {
            continue;
        }
        for (connections, keep) in [1, 16, 256, 1, 16, 256]
            .into_iter()
            .zip([true, true, true, false, false, false])
            .filter(|(n, _)| connections.is_none_or(|wanted| *n == wanted))
        {
            let lasts = Duration::from_secs_f64(seconds);
            let load = load::Load { paths: &[known], connections, keep, lasts };
            let before = process_cpu();
            let mut got = load::run(address, load)?;
            got.agent_cpu = (process_cpu() - before).saturating_sub(got.client_cpu);
            let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / got.answers().max(1.0);
            println!(
                "{known:18} {connections:4} {}: {:7.0}/s, median {:?}, p99 {:?}, longest {:?}; {} late, {} broken; \
                 client {:.1} µs, server {:.1} µs",
                if keep { "kept" } else { "new " },
                got.per_second,
                got.median,
                got.p99,
                got.longest,
                got.late,
                got.broken,
                each(got.client_cpu),
                each(got.agent_cpu)
            );
        }
    }
    drop(snapshots);
    serving.shutdown_background();
    Ok(())
}
