//! A failing seed with as few of its faults as still break the same rule: delta debugging over the
//! numbers of the planned faults.

use crate::plan::Case;
use crate::world::{MS, SECOND};
use crate::{Run, run};

/// Runs that shrinking may cost; about twenty seconds.
const BUDGET: usize = 600;

/// The numbers of a smallest list of faults that breaks this rule: without any one of them it holds.
/// (Unless the budget ends before.) `None`: the case does not break it.
pub fn shrink(case: &Case, rule: &str) -> Option<Vec<usize>> {
    let fails = |keep: &[usize]| {
        let fewer = Case { keep: Some(keep.to_vec()), ..case.clone() };
        run(&fewer, false).failed.is_some_and(|(broken, _)| broken == rule)
    };
    let first: Run = run(case, false);
    if first.failed.is_none_or(|(broken, _)| broken != rule) {
        return None;
    }
    // What did not strike before it failed has no part in it.
    let mut keep = first.struck;
    let mut spent = 0;
    let mut parts = 2;
    while !keep.is_empty() && spent < BUDGET {
        let size = keep.len().div_ceil(parts);
        let without = (0..keep.len()).step_by(size).find_map(|from| {
            spent += 1;
            let mut fewer = keep.clone();
            fewer.drain(from..(from + size).min(keep.len()));
            (spent <= BUDGET && fails(&fewer)).then_some(fewer)
        });
        match without {
            Some(fewer) => {
                keep = fewer;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(keep.len()),
        }
    }
    Some(keep)
}

/// The readable story of a failing run: the faults it needs, its end, and how to see it again.
pub fn explain(case: &Case, rule: &str) -> String {
    let keep = shrink(case, rule);
    let case = Case { keep: keep.clone().or_else(|| case.keep.clone()), ..case.clone() };
    let told = run(&case, true);
    let (rule, what) = told.failed.unwrap_or_default();
    let from = told.trace.len().saturating_sub(80);
    let planned = case.world(false).lock().unwrap().planned.clone();
    let faults: Vec<String> = keep
        .iter()
        .flatten()
        .map(|number| {
            let fault = &planned[*number];
            let (seconds, ms) = (fault.at / SECOND, fault.at % SECOND / MS);
            format!("  {number:>3}  t={seconds:>3}.{ms:03}  {}", fault.kind.name)
        })
        .collect();
    let numbers: Vec<String> = keep.iter().flatten().map(usize::to_string).collect();
    format!(
        "seed {} breaks {rule}: {what}\nof {} planned faults it needs {}:\n{}\n{}\nreplay: SIM_SEED={} \
         SIM_KEEP={} cargo test -p hathi-simulation seeds -- --nocapture\n",
        case.seed,
        planned.len(),
        faults.len(),
        faults.join("\n"),
        told.trace[from..].join("\n"),
        case.seed,
        numbers.join(",")
    )
}

#[cfg(all(test, feature = "breakages"))]
mod tests {
    use super::*;
    use hathi::ha::breakage::{Breakage, set_broken};

    /// A deliberate breakage that a run full of faults found is told with a few of them; without any
    /// one of these the rule holds, and the short run replays.
    #[test]
    fn a_failing_seed_shrinks_to_the_faults_it_needs() {
        set_broken(Some(Breakage::ReleaseBeforeStopped));
        let (case, rule) = (1..2_000)
            .map(Case::of)
            .find_map(|case| {
                let run = run(&case, false);
                let (rule, _) = run.failed?;
                (run.struck.len() > 8).then_some((case, rule))
            })
            .expect("a seed with many faults that finds it");
        let keep = shrink(&case, &rule).expect("it fails");
        println!("seed {} {rule}: {keep:?}", case.seed);
        assert!(!keep.is_empty() && keep.len() <= 4, "{keep:?}");
        let broken = |keep: Vec<usize>| {
            let run = run(&Case { keep: Some(keep), ..case.clone() }, false);
            (run.failed.map(|(rule, _)| rule), run.hash)
        };
        let short = broken(keep.clone());
        assert_eq!(short.0.as_ref(), Some(&rule));
        assert_eq!(short, broken(keep.clone()), "the same run again");
        for left_out in &keep {
            let fewer = keep.iter().copied().filter(|number| number != left_out).collect();
            assert_ne!(broken(fewer).0.as_ref(), Some(&rule), "without {left_out}");
        }
        let told = explain(&case, &rule);
        set_broken(None);
        let numbers: Vec<String> = keep.iter().map(usize::to_string).collect();
        assert!(told.contains(&format!("SIM_KEEP={}", numbers.join(","))), "{told}");
        assert!(told.contains("VIOLATION"), "{told}");
    }
}
