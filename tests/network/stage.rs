//! What every scenario has: a healthy cluster on its machines, writers, and the end.

use hathi_test_support::check::{self, Loss};
use hathi_test_support::{Agent, Cluster, ClusterOptions, Network, Store, Writers, sql};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The lease of the harness's clusters (`yaml::default_dcs`).
pub const TTL: Duration = Duration::from_secs(20);
/// For what takes as long as a node needs to find its place again, on a machine that is busy.
pub const SETTLED: Duration = Duration::from_secs(150);
/// For what should be done within a turn or two.
pub const SOON: Duration = Duration::from_secs(30);
/// How long after a takeover by lease another must write: the lease, the demotion, the promotion.
pub const TAKEOVER: Duration = Duration::from_secs(60);
/// A fault that outlives the lease.
pub const PAST_THE_LEASE: Duration = Duration::from_secs(26);
const PAUSE: Duration = Duration::from_millis(10);

pub struct Stage {
    pub network: Arc<Network>,
    pub cluster: Cluster,
    pub writers: Writers,
    /// Who led when the curtain rose.
    pub primary: usize,
}

pub fn options(network: &Arc<Network>, store: Store) -> ClusterOptions {
    let agent = match std::env::var("HATHI_TEST_AGENT").as_deref() {
        Ok("patroni") => Agent::Patroni,
        Ok(_) | Err(_) => Agent::Hathi,
    };
    let mut options = ClusterOptions::new(agent, store, env!("CARGO_BIN_EXE_hathi"));
    options.network = Some(network.clone());
    options
}

impl Stage {
    pub async fn new(network: Arc<Network>, store: Store) -> Self {
        let options = options(&network, store);
        Self::with(network, options).await
    }

    pub async fn with(network: Arc<Network>, options: ClusterOptions) -> Self {
        let cluster = Cluster::start(options).await;
        let primary = cluster.leader().await.expect("the leader of a healthy cluster");
        let writers = Writers::start(&cluster, PAUSE).await;
        let stage = Self { network, cluster, writers, primary };
        stage.writes(Instant::now(), SOON).await;
        stage
    }

    pub fn replica(&self) -> usize {
        (self.primary + 1) % self.cluster.nodes.len()
    }

    pub fn other_replica(&self) -> usize {
        (self.primary + 2) % self.cluster.nodes.len()
    }

    /// Waits for a row sent after `after`; who took it.
    pub async fn writes(&self, after: Instant, within: Duration) -> usize {
        match self.writers.accepts_after(after, within).await {
            Ok(row) => row.node,
            Err(e) => panic!("{e}\n{}", self.cluster.report()),
        }
    }

    /// Waits until another than `old` takes writes. Returns who, and the stretch in which `old` may
    /// have acknowledged what nobody else has: from the fault's beginning, since a cut primary
    /// whose lease runs on serves clients that nobody replicates.
    pub async fn another_writes(&self, old: usize, fault: Instant) -> (usize, Loss) {
        let new = self
            .cluster
            .wait("another node takes writes", TAKEOVER, || async {
                match self.writers.last() {
                    Some(last) if last.node != old => Ok(last),
                    other => Err(format!("the last write was {other:?}")),
                }
            })
            .await;
        (new.node, Loss { to: new.sent, ..Loss::just_before(fault) })
    }

    /// Everybody has a place behind this one, which is the primary from now on.
    pub async fn led_by(&mut self, new: usize) {
        assert_eq!(self.cluster.healthy(SETTLED).await, new, "{}", self.cluster.report());
        self.primary = new;
    }

    /// Waits until a node takes no writes any more (it may be down).
    pub async fn gives_up(&self, node: usize) {
        self.cluster
            .wait("the node gives up", TTL + Duration::from_secs(20), || async {
                let seen = sql::value(self.cluster.nodes[node].pg(), "SELECT pg_is_in_recovery()");
                match seen.await.as_deref() {
                    Ok("f") => Err("it is a primary still".to_owned()),
                    Ok(_) | Err(_) => Ok(()),
                }
            })
            .await;
    }

    /// Waits until `replica` streams from `primary`, as that one sees it, and has all it wrote before.
    pub async fn streams(&self, replica: usize, primary: usize) {
        let (of, name) = (self.cluster.nodes[primary].pg(), &self.cluster.nodes[replica].name);
        let behind = format!(
            "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), replay_lsn) FROM pg_stat_replication \
             WHERE application_name = '{name}' AND state = 'streaming'"
        );
        self.cluster
            .wait("the replica streams", SOON, || async {
                let bytes = sql::value(of, &behind).await?;
                let bytes: u64 = bytes.parse().map_err(|e| format!("{bytes}: {e}"))?;
                if bytes < 16_384 { Ok(()) } else { Err(format!("{bytes} bytes behind")) }
            })
            .await;
    }

    /// How far a standby's log goes, in bytes; waits until it answers as one.
    pub async fn position(&self, node: usize) -> u64 {
        let ask = "SELECT pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), \
                   pg_last_wal_replay_lsn()), '0/0')";
        self.cluster
            .wait("a standby's position", SOON, || async {
                let bytes = sql::value(self.cluster.nodes[node].pg(), ask).await?;
                bytes.parse().map_err(|e| format!("{bytes}: {e}"))
            })
            .await
    }

    /// Watches for this long that `node` keeps taking writes without a gap longer than `gap`.
    pub async fn keeps_writing(&self, node: usize, how_long: Duration, gap: Duration) {
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            assert_eq!(self.writes(Instant::now(), gap).await, node, "{}", self.cluster.report());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until PostgreSQL on `node` tells a wall clock this far ahead.
    pub async fn shows_wall_clock(&self, node: usize, ahead_secs: i64) {
        self.cluster
            .wait("the wall clock jumps", SOON, || async {
                let ask = "SELECT extract(epoch FROM clock_timestamp())::bigint";
                let shown = sql::value(self.cluster.nodes[node].pg(), ask).await?;
                let shown: i64 = shown.parse().map_err(|e| format!("{e}"))?;
                let truth = std::time::SystemTime::now();
                let truth = truth.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
                let ahead = shown - truth.as_secs() as i64;
                if (ahead - ahead_secs).abs() < 30 { Ok(()) } else { Err(format!("{ahead} s")) }
            })
            .await;
    }

    /// All is healed: everybody finds a place, nobody lost more than `permitted`, there never were
    /// two primaries, all nodes show the same.
    pub async fn end(self, permitted: &[Loss]) {
        let Self { cluster, writers, .. } = self;
        cluster.healthy(SETTLED).await;
        let written = writers.stop().await;
        check::verify(&cluster, &written, permitted).await;
        check::same_rows_everywhere(&cluster, SOON).await;
    }
}
