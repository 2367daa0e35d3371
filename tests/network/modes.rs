//! The same blows in every mode: the primary cut from everything, its whole machine frozen past the
//! lease, killed with kill -9, and wall clocks that jump; one after the other on one cluster. Where a
//! mode promises that no acknowledged row is lost, none may be.

use crate::stage::{PAST_THE_LEASE, SETTLED, SOON, Stage, options};
use hathi_test_support::chaos::Mode;
use hathi_test_support::check::Loss;
use hathi_test_support::network::Traffic;
use hathi_test_support::{Network, Store};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HOUR: i64 = 3600;
/// The longest time a client waits while nothing is wrong with the primary.
const GAP: Duration = Duration::from_secs(8);

/// Proves HA-304, INV-2, INV-6 and INV-12 behind real cuts, one synchronous standby.
pub async fn blows_in_synchronous_mode(network: Arc<Network>, store: Store) {
    blows(network, store, Mode::Sync).await;
}

/// Proves INV-2 and INV-7 behind real cuts, quorum commit.
pub async fn blows_in_quorum_mode(network: Arc<Network>, store: Store) {
    blows(network, store, Mode::Quorum).await;
}

/// Proves INV-2 and HA-154 behind real cuts: with the members' word the primary goes on without the
/// store, without it it gives up.
pub async fn blows_in_failsafe_mode(network: Arc<Network>, store: Store) {
    blows(network, store, Mode::Failsafe).await;
}

async fn blows(network: Arc<Network>, store: Store, mode: Mode) {
    let mut stage = begin(network, store, mode.dcs()).await;
    let mut losses = Vec::new();
    let mut note = |loss: Loss| losses.extend(mode.may_lose().then_some(loss));

    protected(&stage, mode).await;
    let cut = Instant::now();
    stage.network.cut(&stage.network.isolation(stage.primary, Traffic::All));
    let (new, loss) = stage.another_writes(stage.primary, cut).await;
    stage.gives_up(stage.primary).await;
    stage.network.heal_all();
    note(loss);
    stage.led_by(new).await;

    protected(&stage, mode).await;
    let frozen = Instant::now();
    stage.cluster.freeze_node(stage.primary);
    let (new, loss) = stage.another_writes(stage.primary, frozen).await;
    stage.cluster.thaw_node(stage.primary);
    note(loss);
    stage.led_by(new).await;

    protected(&stage, mode).await;
    let killed = Instant::now();
    let old = stage.primary;
    stage.cluster.kill_node(old);
    let (new, loss) = stage.another_writes(old, killed).await;
    stage.cluster.restart_members();
    stage.cluster.start_agent(old);
    note(loss);
    stage.led_by(new).await;

    clocks_jump(&stage).await;
    if mode == Mode::Failsafe {
        for node in 0..stage.cluster.nodes.len() {
            stage.network.cut(&stage.network.isolation(node, Traffic::Store));
        }
        stage.keeps_writing(stage.primary, PAST_THE_LEASE, GAP).await;
        stage.network.heal_all();
        stage.keeps_writing(stage.primary, Duration::from_secs(5), GAP).await;
    }
    assert_eq!(stage.cluster.healthy(SETTLED).await, stage.primary, "{}", stage.cluster.report());
    stage.end(&losses).await;
}

/// In pause nobody is promoted and nothing is stopped, whatever is cut, frozen or killed but PostgreSQL
/// itself; after it everything is as before.
///
/// Proves HA-130, HA-150 and INV-2 behind real cuts.
pub async fn blows_in_pause(network: Arc<Network>, store: Store) {
    let mut stage = begin(network, store, json!({})).await;
    let primary = stage.primary;
    paused(&stage, true).await;

    stage.network.cut(&stage.network.isolation(primary, Traffic::All));
    stage.keeps_writing(primary, PAST_THE_LEASE, GAP).await;
    stage.network.heal_all();
    stage.streams(stage.replica(), primary).await;

    stage.cluster.signal_agent(primary, Signal::STOP);
    stage.keeps_writing(primary, PAST_THE_LEASE, GAP).await;
    stage.cluster.signal_agent(primary, Signal::CONT);

    stage.cluster.kill_agent(primary);
    stage.keeps_writing(primary, PAST_THE_LEASE, GAP).await;
    stage.cluster.start_agent(primary);
    clocks_jump(&stage).await;

    stage.cluster.wait("a leader in pause", SETTLED, || stage.cluster.leader()).await;
    paused(&stage, false).await;
    stage.led_by(primary).await;
    let killed = Instant::now();
    stage.cluster.kill_node(primary);
    let (new, loss) = stage.another_writes(primary, killed).await;
    stage.cluster.restart_members();
    stage.cluster.start_agent(primary);
    stage.led_by(new).await;
    stage.end(&[loss]).await;
}

/// Waits until a standby may take over by its mode: until then only the primary may lead, and a blow
/// to it is an outage by design (HA-095).
async fn protected(stage: &Stage, mode: Mode) {
    let (role, count) = match mode {
        Mode::Sync => ("sync_standby", 1),
        Mode::Quorum => ("quorum_standby", 2),
        _ => return,
    };
    stage
        .cluster
        .wait("standbys that may take over", SETTLED, || async {
            let view = stage.cluster.get(stage.primary, "/cluster").await?.json();
            let members = view["members"].as_array().cloned().unwrap_or_default();
            let found = members.iter().filter(|member| member["role"] == role).count();
            if found >= count { Ok(()) } else { Err(view.to_string()) }
        })
        .await;
}

async fn begin(network: Arc<Network>, store: Store, mut dcs: Value) -> Stage {
    // A connection's keepalive is judged by PostgreSQL's wall clock; that is PostgreSQL's matter.
    dcs["postgresql"] = json!({"parameters": {"wal_sender_timeout": "0"}});
    let mut options = options(&network, store);
    options.wall_clocks = true;
    options.dcs = dcs;
    Stage::with(network, options).await
}

async fn clocks_jump(stage: &Stage) {
    for (node, ahead) in [
        (stage.primary, HOUR),
        (stage.replica(), -HOUR),
        (stage.primary, -HOUR),
        (stage.replica(), 0),
        (stage.primary, 0),
    ] {
        stage.cluster.machine(node).set_wall_clock(ahead);
        stage.shows_wall_clock(node, ahead).await;
        stage.keeps_writing(stage.primary, Duration::from_secs(2), GAP).await;
    }
}

/// Orders it, and waits until every agent lives by it.
async fn paused(stage: &Stage, pause: bool) {
    let order = json!({"pause": pause});
    let answer = stage.cluster.send(stage.primary, "PATCH", "/config", order).await;
    assert_eq!(answer.as_ref().map(|answer| answer.status), Ok(200), "{answer:?}");
    for node in 0..stage.cluster.nodes.len() {
        stage
            .cluster
            .wait("every agent knows of the pause", SOON, || async {
                let answer = stage.cluster.get(node, "/patroni").await?;
                let status: Value =
                    serde_json::from_str(&answer.body).map_err(|e| format!("{e}"))?;
                let told = status["pause"].as_bool().unwrap_or(false);
                if told == pause { Ok(()) } else { Err(answer.body) }
            })
            .await;
    }
}
