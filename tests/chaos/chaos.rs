//! Chaos against a real cluster, seeded; minutes to hours. The last line is the verdict, in three
//! words: `clean`, `two writers`, or `in doubt`.
//!
//! ```text
//! scripts/chaos --seed N --minutes M --store raft|etcd|consul|zookeeper|redis|kubernetes --mode async|sync|quorum|failsafe --nodes 3
//!               [--agent hathi|patroni] [--guard off] [--only FAULT,...] [--schedule COUNT]
//! ```
//! Ends with 0 (clean), 1 (two writers), 2 (in doubt), 64 (no such option), 77 (this machine or
//! user permits no network namespaces: nothing was tried).

use hathi_test_support::chaos::{Fault, Mode, Options, Outcome, Verdict, run};
use hathi_test_support::{Agent, Network, Store};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: scripts/chaos [--seed N] [--minutes M] \
[--store raft|etcd|consul|zookeeper|redis|kubernetes] [--mode async|sync|quorum|failsafe] [--nodes N] [--agent hathi|patroni] [--guard on|off] \
[--only FAULT,...] [--schedule COUNT]";

struct Asked {
    options: Options,
    nodes: usize,
    /// Only print so many steps of the schedule.
    schedule: Option<usize>,
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(e) => {
            eprintln!("chaos: {e}\n{USAGE}\nfaults:");
            Fault::ALL.iter().for_each(|f| eprintln!("  {}", f.name()));
            return ExitCode::from(64);
        }
    };
    let Asked { mut options, nodes, schedule } = asked;
    if let Some(count) = schedule {
        for (i, step) in options.schedule().take(count).enumerate() {
            println!("{}: {step:?}", i + 1);
        }
        return ExitCode::SUCCESS;
    }
    let network = match Network::lay(nodes) {
        Ok(network) => network,
        Err(why) => {
            println!("*** CHAOS SKIPPED, NOTHING WAS TRIED: {why} ***");
            return ExitCode::from(77);
        }
    };
    // Under libfaketime Python's time.sleep fails (EINVAL), and Patroni ends at once.
    options.wall_clocks = options.agent == Agent::Hathi;
    if let Err(why) = Network::has_wall_clocks() {
        eprintln!("*** faults of the wall clock are left out: {why} ***");
        options.wall_clocks = false;
    }
    println!(
        "seed {}, {} min, {:?} on {:?}, {:?}, {nodes} nodes, guard {}",
        options.seed,
        options.lasts.as_secs_f64() / 60.0,
        options.agent,
        options.store,
        options.mode,
        if options.guard { "on" } else { "off" },
    );
    let started = Instant::now();
    let say = |line: &str| eprintln!("{:7.1} {line}", started.elapsed().as_secs_f64());
    // A panic is a cluster that did not start, or a fault of the harness: nothing is proved.
    let outcome =
        catch_unwind(AssertUnwindSafe(|| network.observe(run(network.clone(), &options, &say))));
    let Ok(outcome) = outcome else {
        println!("verdict: {}", Verdict::InDoubt);
        return ExitCode::from(2);
    };
    print(&outcome);
    match outcome.verdict {
        Verdict::Clean => ExitCode::SUCCESS,
        Verdict::TwoWriters => ExitCode::from(1),
        Verdict::InDoubt => ExitCode::from(2),
    }
}

fn print(outcome: &Outcome) {
    if !outcome.report.is_empty() {
        println!("{}", outcome.report);
    }
    println!("\n{}", outcome.table);
    println!(
        "{} faults, {} acknowledged rows verified, {} of them lost as the mode permits, \
         {} statements without an answer",
        outcome.table.faults(),
        outcome.acknowledged,
        outcome.permitted,
        outcome.unanswered
    );
    outcome.why.iter().for_each(|why| println!("  {why}"));
    println!("verdict: {}", outcome.verdict);
}

fn asked() -> Result<Asked, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut options = Options {
        seed: now,
        lasts: Duration::from_secs(600),
        store: Store::Raft,
        mode: Mode::Async,
        agent: Agent::Hathi,
        hathi: hathi_binary()?,
        guard: true,
        only: Vec::new(),
        wall_clocks: true,
    };
    let (mut nodes, mut schedule, mut store) = (3, None, "raft".to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
        let wrong = || format!("{name} {value}: not understood");
        match (name.as_str(), value.as_str()) {
            ("--seed", n) => options.seed = n.parse().map_err(|_| wrong())?,
            ("--minutes", n) => {
                let minutes: f64 = n.parse().map_err(|_| wrong())?;
                options.lasts = Duration::try_from_secs_f64(minutes * 60.0).map_err(|_| wrong())?;
            }
            ("--store", name) => store = name.to_owned(),
            ("--mode", word) => {
                let found = Mode::ALL.iter().find(|(name, _)| *name == word);
                options.mode = found.map(|(_, mode)| *mode).ok_or_else(wrong)?;
            }
            ("--nodes", n) => {
                nodes = n.parse().map_err(|_| wrong())?;
                if !(3..=9).contains(&nodes) {
                    return Err(format!("--nodes {nodes}: 3 to 9"));
                }
            }
            ("--agent", "hathi") => options.agent = Agent::Hathi,
            ("--agent", "patroni") => options.agent = Agent::Patroni,
            ("--guard", "on") => options.guard = true,
            ("--guard", "off") => options.guard = false,
            ("--only", words) => {
                for word in words.split(',') {
                    let found = Fault::ALL.into_iter().find(|f| f.name() == word);
                    options.only.push(found.ok_or_else(|| format!("{word}: no such fault"))?);
                }
            }
            ("--schedule", n) => schedule = Some(n.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    options.store = match store.as_str() {
        "raft" => Store::Raft,
        // A member on each machine.
        "etcd" => Store::Etcd { members: nodes },
        // Beside the machines: the store itself is not hurt, but cut off from them.
        "consul" => Store::Consul { members: 3 },
        "zookeeper" => Store::ZooKeeper { members: 3 },
        "redis" => Store::Redis,
        "kubernetes" => Store::Kubernetes { endpoints: true },
        other => return Err(format!("--store {other}: not understood")),
    };
    if options.agent == Agent::Patroni && store != "etcd" {
        return Err("--agent patroni needs --store etcd".to_owned());
    }
    Ok(Asked { options, nodes, schedule })
}

/// The hathi binary lies beside our own directory, or where HATHI_CHAOS_BINARY says.
fn hathi_binary() -> Result<String, String> {
    if let Ok(path) = std::env::var("HATHI_CHAOS_BINARY") {
        return Ok(path);
    }
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let beside = own.parent().and_then(|p| p.parent()).map(|p| p.join("hathi"));
    let beside = beside.filter(|p| p.exists());
    let beside = beside.ok_or("there is no hathi beside this program: scripts/chaos builds it")?;
    Ok(beside.display().to_string())
}
