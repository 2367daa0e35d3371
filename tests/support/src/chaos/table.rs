//! The table of faults survived.

use crate::chaos::Fault;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    times: u32,
    survived: u32,
    moved: u32,
    two_writers: u32,
    longest_gap: Duration,
}

/// How often each fault came, was survived (the cluster took writes again), showed two writers, moved
/// the lead, and the longest time without an acknowledged write from its beginning until then.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: BTreeMap<Fault, Row>,
    /// Agents that ended although nobody had killed them, and were started again.
    pub agents_ended: u32,
}

impl Table {
    pub fn begins(&mut self, fault: Fault) {
        self.rows.entry(fault).or_default().times += 1;
    }

    pub fn survived(&mut self, fault: Fault, gap: Duration, moved: bool) {
        let row = self.rows.entry(fault).or_default();
        row.survived += 1;
        row.moved += u32::from(moved);
        row.longest_gap = row.longest_gap.max(gap);
    }

    /// Two primaries acknowledged rows since this fault began.
    pub fn two_writers(&mut self, fault: Fault) {
        self.rows.entry(fault).or_default().two_writers += 1;
    }

    pub fn faults(&self) -> u32 {
        self.rows.values().map(|r| r.times).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| fault | times | survived | two writers | lead moved | longest write gap |")?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|")?;
        for (fault, row) in &self.rows {
            let gap = row.longest_gap.as_secs_f64();
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {gap:.1} s |",
                fault.name(),
                row.times,
                row.survived,
                row.two_writers,
                row.moved
            )?;
        }
        if self.agents_ended > 0 {
            writeln!(f, "\nagents that ended by themselves: {}", self.agents_ended)?;
        }
        Ok(())
    }
}
