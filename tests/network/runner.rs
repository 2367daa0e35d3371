//! Runs scenarios, each on a thread and a network of its own, a few at a time.

use hathi_test_support::Network;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

type Run = fn(Arc<Network>) -> Pin<Box<dyn Future<Output = ()>>>;

pub struct Scenario {
    name: &'static str,
    run: Run,
}

impl Scenario {
    pub fn new(name: &'static str, run: Run) -> Self {
        Self { name, run }
    }
}

/// What the command line asks for.
struct Wanted {
    filters: Vec<String>,
    exact: bool,
    list: bool,
    threads: usize,
}

impl Wanted {
    fn from_arguments() -> Self {
        let mut wanted = Self { filters: Vec::new(), exact: false, list: false, threads: 2 };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let number = |text: &str| text.parse().expect("--test-threads wants a number");
            match argument.as_str() {
                "--exact" => wanted.exact = true,
                "--list" => wanted.list = true,
                "--test-threads" => {
                    wanted.threads = number(&arguments.next().unwrap_or_default());
                }
                other => match other.strip_prefix("--test-threads=") {
                    Some(count) => wanted.threads = number(count),
                    None if other.starts_with('-') => {}
                    None => wanted.filters.push(other.to_owned()),
                },
            }
        }
        wanted
    }

    fn wants(&self, scenario: &Scenario) -> bool {
        self.filters.is_empty()
            || self.filters.iter().any(|f| {
                if self.exact { scenario.name == f } else { scenario.name.contains(f.as_str()) }
            })
    }
}

pub fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let wanted = Wanted::from_arguments();
    let chosen: VecDeque<Scenario> = scenarios.into_iter().filter(|s| wanted.wants(s)).collect();
    if wanted.list {
        chosen.iter().for_each(|s| println!("{}: test", s.name));
        return ExitCode::SUCCESS;
    }
    let count = chosen.len();
    println!("\nrunning {count} scenarios on machines of their own");
    if let Err(why) = Network::lay(1) {
        // The last line, and not the shortest: who reads the end of a log must see it.
        println!(
            "\n*** {count} SCENARIOS SKIPPED, NOTHING ABOUT NETWORKS IS PROVED HERE: {why} ***\n"
        );
        return ExitCode::SUCCESS;
    }
    let left = Mutex::new(chosen);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..wanted.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(scenario) = next else { return };
                    if !passes(&scenario) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.push(scenario.name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("\n{} passed, {} failed, 0 skipped", count - failed.len(), failed.len());
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes(scenario: &Scenario) -> bool {
    let started = Instant::now();
    // A thread of its own, since it enters a namespace for good.
    let outcome = std::thread::scope(|scope| {
        let alone = std::thread::Builder::new().name(scenario.name.to_owned());
        let thread = alone.spawn_scoped(scope, || {
            catch_unwind(AssertUnwindSafe(|| {
                let network = Network::lay(3).expect("a network could be laid before");
                network.observe((scenario.run)(network.clone()));
            }))
            .is_ok()
        });
        thread.expect("a thread").join().unwrap_or(false)
    });
    let word = if outcome { "ok" } else { "FAILED" };
    println!("test {} ... {word} ({:.0} s)", scenario.name, started.elapsed().as_secs_f64());
    outcome
}
