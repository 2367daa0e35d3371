//! The REST API of one node beside Patroni's: what it answers in a second and how late, with
//! PostgreSQL healthy, frozen and dead, with the store unreachable, and under attack.

use crate::load::{self, Load, Outcome};
use crate::measure::{agents_of, is_postgres};
use crate::sheet::{Line, Sheet};
use crate::{Contender, attack, hathi_binary, options};
use hathi_test_support::process::{belonging_to, cpu_seconds, signal_pid};
use hathi_test_support::{Agent, Cluster, Store, rest};
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

const CONTENDERS: [Contender; 2] = [
    Contender { name: "hathi", agent: Agent::Hathi, store: Store::Etcd { members: 1 } },
    Contender { name: "Patroni", agent: Agent::Patroni, store: Store::Etcd { members: 1 } },
];
/// How long each load runs in each round.
const LASTS: Duration = Duration::from_millis(400);
const SETTLED: Duration = Duration::from_secs(120);

/// Asked in turn, as load balancers and probes do.
const CHECKS: [&str; 13] = [
    "/primary",
    "/replica",
    "/leader",
    "/standby-leader",
    "/read-only",
    "/sync",
    "/async",
    "/quorum",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
];
const WHAT: [(&str, &[&str]); 3] =
    [("health checks", &CHECKS), ("/patroni", &["/patroni"]), ("/metrics", &["/metrics"])];
/// Connections, and whether they are kept.
const HOW: [(usize, bool); 6] =
    [(1, true), (16, true), (256, true), (1, false), (16, false), (256, false)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Healthy,
    Frozen,
    Dead,
    NoStore,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "PostgreSQL healthy",
            Self::Frozen => "PostgreSQL frozen",
            Self::Dead => "PostgreSQL dead",
            Self::NoStore => "store unreachable",
        }
    }
}

/// `loads`: not only the attacks.
pub async fn compare(rounds: usize, only: &[String], loads: bool) {
    let hathi = hathi_binary();
    let mut sheet = Sheet::default();
    for (at, contender) in CONTENDERS.into_iter().enumerate() {
        if !only.is_empty() && !only.iter().any(|one| one.eq_ignore_ascii_case(contender.name)) {
            continue;
        }
        let mut options = options(contender, &hathi);
        options.nodes = 1;
        let cluster = Cluster::start(options).await;
        let states = [State::Healthy, State::Frozen, State::Dead, State::NoStore];
        for state in states.into_iter().filter(|_| loads) {
            eprintln!("{}: {}", contender.name, state.name());
            cluster.healthy(SETTLED).await;
            enter(&cluster, state).await;
            for _ in 0..rounds {
                all_loads(&cluster, at, state, &mut sheet).await;
            }
            leave(&cluster, state).await;
        }
        eprintln!("{}: under attack", contender.name);
        cluster.healthy(SETTLED).await;
        let add = |crowd, outcome| sheet.add(at, Line::Attack(crowd), outcome);
        attack::all(&cluster, rounds, LASTS, add).await;
    }
    sheet.print(rounds, LASTS);
    sheet.print_markdown();
}

async fn all_loads(cluster: &Cluster, who: usize, state: State, sheet: &mut Sheet) {
    for (what, paths) in WHAT {
        for (connections, kept) in HOW {
            let load = Load { paths, connections, keep: kept, lasts: LASTS };
            let outcome = on_a_thread(cluster, load).await;
            let line = Line::Load { state: state.name(), what, connections, kept };
            sheet.add(who, line, outcome);
        }
    }
}

/// How long what one load left behind may take before the next one begins.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

async fn on_a_thread(cluster: &Cluster, load: Load<'static>) -> Outcome {
    let to = cluster.nodes[0].rest();
    // Who cannot answer at all within that time is measured as he is.
    let _ = rest::request("GET", to, "/liveness", None, LEFT_BEHIND).await;
    let cpu = || agents_of(cluster, 0).into_iter().filter_map(cpu_seconds).sum::<f64>();
    let before = cpu();
    let run = tokio::task::spawn_blocking(move || load::run(to, load));
    let mut outcome = run.await.expect("the client ends").expect("sockets");
    outcome.agent_cpu = Duration::from_secs_f64((cpu() - before).max(0.0));
    outcome
}

fn servers(cluster: &Cluster) -> Vec<u32> {
    let all = belonging_to(&cluster.nodes[0].dir).into_iter();
    all.filter(|pid| is_postgres(*pid)).collect()
}

fn stores(cluster: &Cluster) -> Vec<u32> {
    cluster.etcd.as_ref().map(|etcd| belonging_to(etcd.dir())).unwrap_or_default()
}

fn tell(pids: &[u32], signal: Signal) {
    pids.iter().for_each(|pid| signal_pid(*pid, signal));
}

async fn pause(cluster: &Cluster, on: bool) {
    let wanted = json!({"pause": if on { json!(true) } else { json!(null) }});
    let answer = cluster.send(0, "PATCH", "/config", wanted).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster
        .wait("pause", SETTLED, || async {
            let shown = cluster.get(0, "/patroni").await?.json();
            if shown["pause"] == json!(on) || (!on && shown["pause"].is_null()) {
                Ok(())
            } else {
                Err(shown.to_string())
            }
        })
        .await;
}

async fn enter(cluster: &Cluster, state: State) {
    match state {
        State::Healthy => {}
        State::Frozen => tell(&servers(cluster), Signal::STOP),
        State::Dead => {
            // In pause nobody starts it again.
            pause(cluster, true).await;
            cluster.kill_postmaster(0);
        }
        State::NoStore => tell(&stores(cluster), Signal::STOP),
    }
}

async fn leave(cluster: &Cluster, state: State) {
    match state {
        State::Healthy => {}
        State::Frozen => tell(&servers(cluster), Signal::CONT),
        State::Dead => pause(cluster, false).await,
        State::NoStore => tell(&stores(cluster), Signal::CONT),
    }
}
