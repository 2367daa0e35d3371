//! Many seeds on a few threads, and what came of all of them together.

use crate::plan::Case;
use crate::{Run, number, run_seed, shrink};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs in a thousand that may end with nobody allowed to lead, and by twins: rules that leave a
/// cluster to its operator, or timelines that cannot be told apart, must stay what they are: rare.
const NOBODY_PER_MILLE: u64 = 10;
const TWINS_PER_MILLE: u64 = 10;

/// Faults that these seeds found and nobody has mended yet, each with the rule it breaks. None is silent:
/// each run prints them, and they are the first work to be done here. A line goes with its fault.
const OPEN: &[(u64, &str)] = &[];

/// Is it the known fault that this seed meets?
pub fn is_open(seed: u64, rule: &str) -> bool {
    OPEN.contains(&(seed, rule))
}

/// Over all seeds.
#[derive(Default)]
struct Total {
    faults: BTreeMap<&'static str, u64>,
    counted: BTreeMap<&'static str, u64>,
    nobody_eligible: Vec<u64>,
    twins: Vec<u64>,
    failed: BTreeMap<u64, (String, String)>,
    /// Seeds that meet a fault that is known and not mended yet.
    open: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, run: Run) {
        for (fault, times) in run.faults {
            *self.faults.entry(fault).or_default() += times;
        }
        for (what, times) in run.counted {
            *self.counted.entry(what).or_default() += times;
        }
        self.nobody_eligible.extend(run.nobody_eligible.then_some(seed));
        self.twins.extend(run.twins.then_some(seed));
        match run.failed {
            Some((rule, _)) if is_open(seed, &rule) => self.open.push((seed, rule)),
            Some(why) => drop(self.failed.insert(seed, why)),
            None => {}
        }
    }

    fn print(&self, count: u64) {
        println!("faults injected:");
        for (fault, times) in &self.faults {
            println!("{times:>9}  {fault}");
        }
        println!("and counted:");
        for (what, times) in &self.counted {
            println!("{times:>9}  {what}");
        }
        let few = |seeds: &[u64]| {
            format!("{} of {count}: {:?}", seeds.len(), &seeds[..seeds.len().min(12)])
        };
        println!("ended with nobody whom the rules allow to lead: {}", few(&self.nobody_eligible));
        println!(
            "ended by timelines of one number that nobody can tell apart: {}",
            few(&self.twins)
        );
        println!("KNOWN AND OPEN: {} of {count}: {:?}", self.open.len(), self.open);
        let mut by_rule: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (seed, (rule, _)) in &self.failed {
            by_rule.entry(rule).or_default().push(*seed);
        }
        for (rule, seeds) in &by_rule {
            println!("FAILED {rule}: {}", few(seeds));
        }
    }
}

/// Runs them all and fails with the first failing seed, told with as few faults as it needs.
pub fn run_all(from: u64, count: u64) {
    let next = AtomicU64::new(from);
    let total: Mutex<Total> = Mutex::default();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..number("SIM_THREADS", 2) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= from + count {
                        break;
                    }
                    let run = run_seed(seed, false);
                    total.lock().unwrap().add(seed, run);
                }
                #[cfg(feature = "breakages")]
                crate::branches::hand_in();
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} seeds from {from} in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    let total = total.into_inner().unwrap();
    total.print(count);
    #[cfg(feature = "breakages")]
    crate::branches::print();
    if let Some((seed, (rule, _))) = total.failed.first_key_value() {
        let told = shrink::explain(&Case::of(*seed), rule);
        panic!("{} of {count} seeds fail; the first:\n{told}", total.failed.len());
    }
    assert_rare("nobody was allowed to lead", total.nobody_eligible.len(), count, NOBODY_PER_MILLE);
    assert_rare("twins", total.twins.len(), count, TWINS_PER_MILLE);
    #[cfg(feature = "breakages")]
    crate::branches::assert_floor(count);
}

fn assert_rare(what: &str, times: usize, count: u64, per_mille: u64) {
    // A few runs say nothing about a share.
    let most = (count * per_mille / 1_000).max(10);
    assert!(times as u64 <= most, "{what}: {times} of {count} seeds, more than {most}");
}
