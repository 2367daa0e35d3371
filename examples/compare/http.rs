//! The REST API of one node beside Patroni's: what it answers in a second and how late, with
//! PostgreSQL healthy, frozen and dead, with the store unreachable, and under attack.

use crate::load::{self, LATE, Load, Outcome};
use crate::measure::is_postgres;
use crate::{Contender, hathi_binary, options};
use hathi_test_support::process::{belonging_to, signal_pid};
use hathi_test_support::{Agent, Cluster, Store};
use rustix::process::{Resource, Signal, getrlimit, setrlimit};
use serde_json::json;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONTENDERS: [Contender; 2] = [
    Contender { name: "hathi", agent: Agent::Hathi, store: Store::Etcd { members: 1 } },
    Contender { name: "Patroni", agent: Agent::Patroni, store: Store::Etcd { members: 1 } },
];
/// How long each load runs in each round.
const LASTS: Duration = Duration::from_millis(400);
const SETTLED: Duration = Duration::from_secs(120);
/// Connections an attacker opens and holds.
const CROWD: usize = 3000;

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

/// One line of the table: the outcomes of its rounds, by contender.
struct Row {
    name: String,
    of: [Vec<Outcome>; 2],
}

#[derive(Default)]
struct Sheet(Vec<Row>);

impl Sheet {
    fn add(&mut self, who: usize, name: String, outcome: Outcome) {
        let at = self.0.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.0.push(Row { name, of: [Vec::new(), Vec::new()] });
            self.0.len() - 1
        });
        self.0[at].of[who].push(outcome);
    }

    fn print(&self, rounds: usize) {
        println!("REST API, one node; medians of {rounds} rounds of {LASTS:?}; latencies in ms;");
        println!("late: answers after {LATE:?} or never, in all rounds together\n");
        println!(
            "{:46}{:>9}{:>8}{:>8}{:>8}{:>6} |{:>9}{:>8}{:>8}{:>8}{:>7} |{:>7}",
            "",
            "hathi/s",
            "median",
            "p99",
            "longest",
            "late",
            "Patr./s",
            "median",
            "p99",
            "longest",
            "late",
            "ratio"
        );
        for row in &self.0 {
            print!("{:46}", row.name);
            let ours = print_cells(&row.of[0], 6);
            let theirs = print_cells(&row.of[1], 7);
            match (ours, theirs) {
                (Some(ours), Some(theirs)) if theirs > 0.0 => println!("{:>7.1}", ours / theirs),
                _ => println!(),
            }
        }
    }
}

/// Prints one contender's cells, and returns the answers a second.
fn print_cells(all: &[Outcome], width: usize) -> Option<f64> {
    if all.is_empty() {
        print!("{:>1$} |", "-", 33 + width);
        return None;
    }
    let median = |of: &dyn Fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let rate = median(&|one| one.per_second);
    let late: u64 = all.iter().map(|one| one.late).sum();
    let longest = all.iter().map(|one| ms(one.longest)).fold(0.0, f64::max);
    let (middle, p99) = (median(&|one| ms(one.median)), median(&|one| ms(one.p99)));
    print!("{rate:>9.0}{middle:>8.2}{p99:>8.2}{longest:>8.1}{late:>width$} |");
    Some(rate)
}

pub async fn compare(rounds: usize, only: &[String]) {
    let hathi = hathi_binary();
    let mut sheet = Sheet::default();
    for (at, contender) in CONTENDERS.into_iter().enumerate() {
        if !only.is_empty() && !only.iter().any(|one| one.eq_ignore_ascii_case(contender.name)) {
            continue;
        }
        let mut options = options(contender, &hathi);
        options.nodes = 1;
        let cluster = Cluster::start(options).await;
        for state in [State::Healthy, State::Frozen, State::Dead, State::NoStore] {
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
        under_attack(&cluster, at, rounds, &mut sheet).await;
    }
    sheet.print(rounds);
}

async fn all_loads(cluster: &Cluster, who: usize, state: State, sheet: &mut Sheet) {
    for (what, paths) in WHAT {
        for (connections, keep) in HOW {
            let to = cluster.nodes[0].rest();
            let load = Load { paths, connections, keep, lasts: LASTS };
            let outcome = on_a_thread(to, load).await;
            let kept = if keep { "kept" } else { "new" };
            let name = format!("{}: {what}, {connections} {kept}", state.name());
            sheet.add(who, name, outcome);
        }
    }
}

async fn on_a_thread(to: SocketAddr, load: Load<'static>) -> Outcome {
    let run = tokio::task::spawn_blocking(move || load::run(to, load));
    run.await.expect("the client ends").expect("sockets")
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

/// `/primary` on a new connection each time, while a crowd holds this node's API.
async fn under_attack(cluster: &Cluster, who: usize, rounds: usize, sheet: &mut Sheet) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, wanted).expect("as many files as are allowed");
    let to = cluster.nodes[0].rest();
    let slow = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50);
    for (what, sends) in [
        ("silence", b"".as_slice()),
        ("half a header", b"GET /primary HTTP/1.1\r\nHost: a\r\nX-A: "),
        ("half a body", b"PATCH /config HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"),
        ("answers not read", &slow),
    ] {
        let sends = sends.to_vec();
        let crowd = tokio::task::spawn_blocking(move || gather(to, &sends));
        let crowd = crowd.await.expect("a crowd");
        for _ in 0..rounds {
            let load = Load { paths: &["/primary"], connections: 1, keep: false, lasts: LASTS };
            sheet.add(who, format!("attack: {what}; /primary, 1 new"), on_a_thread(to, load).await);
        }
        drop(crowd);
    }
}

/// Connects as often as the server lets it, within some seconds.
fn gather(to: SocketAddr, sends: &[u8]) -> Vec<TcpStream> {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    let mut crowd = Vec::new();
    while crowd.len() < CROWD && std::time::Instant::now() < end {
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(sends);
            crowd.push(stream);
        }
    }
    crowd
}
