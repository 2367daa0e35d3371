//! The verdict: a pure function of what the writers know and what the cluster shows at the end.

use crate::chaos::Mode;
use crate::check::{Loss, one_primary};
use crate::writers::Accepted;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Proved: one primary at any time, every row that may not be gone is there, all nodes agree.
    Clean,
    /// Proved: two nodes acknowledged writes at the same time.
    TwoWriters,
    /// Neither: rows are gone, or the cluster did not come back so that one could look.
    InDoubt,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::TwoWriters => "two writers",
            Self::InDoubt => "in doubt",
        })
    }
}

pub struct Evidence<'a> {
    pub mode: Mode,
    pub accepted: &'a [Accepted],
    /// The rows of the last primary; `None`: nobody could be asked.
    pub present: Option<&'a HashSet<u64>>,
    /// When the primary was being lost.
    pub windows: &'a [Loss],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub why: Vec<String>,
    /// Rows that are gone and may be.
    pub permitted: usize,
}

pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let (mut why, mut permitted) = (Vec::new(), 0);
    let two = one_primary(evidence.accepted);
    match evidence.present {
        None => why.push("no primary could be asked for its rows".to_owned()),
        Some(_) if evidence.accepted.is_empty() => {
            why.push("no row was ever acknowledged".to_owned());
        }
        Some(present) => {
            let missing: Vec<&Accepted> =
                evidence.accepted.iter().filter(|a| !present.contains(&a.id)).collect();
            let excused = |a: &Accepted| {
                evidence.mode.may_lose()
                    && evidence.windows.iter().any(|w| a.acked >= w.from && a.acked <= w.to)
            };
            let (may, may_not): (Vec<&Accepted>, _) =
                missing.iter().copied().partition(|a| excused(a));
            permitted = may.len();
            if let Some(first) = may_not.first() {
                why.push(format!(
                    "{} of {} acknowledged rows are gone, the first {first:?}",
                    may_not.len(),
                    evidence.accepted.len()
                ));
            }
            why.extend(hole(evidence.accepted, present, &missing));
        }
    }
    match two {
        Err(two) => {
            why.insert(0, two);
            Judgement { verdict: Verdict::TwoWriters, why, permitted }
        }
        Ok(()) if why.is_empty() => Judgement { verdict: Verdict::Clean, why, permitted },
        Ok(()) => Judgement { verdict: Verdict::InDoubt, why, permitted },
    }
}

/// What is lost of a timeline is its end: a row sent after another was acknowledged lies behind it
/// in the WAL, and cannot be there without it.
fn hole(accepted: &[Accepted], present: &HashSet<u64>, missing: &[&Accepted]) -> Option<String> {
    let mut last_there: BTreeMap<u32, Instant> = BTreeMap::new();
    for row in accepted.iter().filter(|a| present.contains(&a.id)) {
        let last = last_there.entry(row.timeline).or_insert(row.sent);
        *last = row.sent.max(*last);
    }
    let torn = missing.iter().find(|m| last_there.get(&m.timeline).is_some_and(|l| *l > m.acked));
    torn.map(|row| format!("a row is gone while later ones of its timeline are there: {row:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn row(id: u64, node: usize, timeline: u32, base: Instant, acked: u64) -> Accepted {
        let at = |ms| base + Duration::from_millis(ms);
        Accepted { id, node, timeline, sent: at(acked - 1), acked: at(acked) }
    }

    fn judged(mode: Mode, rows: &[Accepted], present: &[u64], window: Option<Loss>) -> Verdict {
        let present: HashSet<u64> = present.iter().copied().collect();
        let windows: Vec<Loss> = window.into_iter().collect();
        let evidence =
            Evidence { mode, accepted: rows, present: Some(&present), windows: &windows };
        judge(&evidence).verdict
    }

    #[test]
    fn the_table_of_verdicts() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let rows = [row(1, 0, 1, t, 10), row(2, 0, 1, t, 20), row(3, 1, 2, t, 40)];
        let end = Some(Loss { from: at(15), to: at(30) });
        let all: &[u64] = &[1, 2, 3];
        use Verdict::{Clean, InDoubt, TwoWriters};
        let table = [
            ("all there", Mode::Sync, all, None, Clean),
            ("the end of a timeline, excused", Mode::Async, &[1, 3], end, Clean),
            ("the same outside of a fault", Mode::Async, &[1, 3], None, InDoubt),
            ("the same in a mode that loses nothing", Mode::Sync, &[1, 3], end, InDoubt),
            ("quorum loses nothing", Mode::Quorum, &[1, 3], end, InDoubt),
            ("failsafe loses as async does", Mode::Failsafe, &[1, 3], end, Clean),
            (
                "a hole is never excused",
                Mode::Async,
                &[2, 3],
                Some(Loss { from: t, to: at(99) }),
                InDoubt,
            ),
        ];
        for (name, mode, present, window, expected) in table {
            assert_eq!(judged(mode, &rows, present, window), expected, "{name}");
        }
        let mut two = rows.to_vec();
        two.push(row(4, 0, 1, t, 50));
        assert_eq!(judged(Mode::Async, &two, &[1, 2, 3, 4], None), TwoWriters);
        assert_eq!(judged(Mode::Async, &[], &[], None), InDoubt);
    }

    #[test]
    fn nobody_to_ask_is_in_doubt() {
        let rows = [row(1, 0, 1, Instant::now(), 10)];
        let evidence = Evidence { mode: Mode::Async, accepted: &rows, present: None, windows: &[] };
        assert_eq!(judge(&evidence).verdict, Verdict::InDoubt);
    }
}
