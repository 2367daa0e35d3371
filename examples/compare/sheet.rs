//! What was measured of the REST API, as a table for people and as the tables of docs/speed.md.

use crate::load::{LATE, Outcome};
use std::time::Duration;

/// What one line of the sheet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Load {
        state: &'static str,
        what: &'static str,
        connections: usize,
        kept: bool,
    },
    /// `/primary` on a new connection each time, behind this crowd.
    Attack(&'static str),
}

impl Line {
    fn name(self) -> String {
        match self {
            Self::Load { state, what, connections, kept } => {
                format!("{state}: {what}, {connections} {}", how(kept))
            }
            Self::Attack(crowd) => format!("attack: {crowd}; /primary, 1 new"),
        }
    }
}

fn how(kept: bool) -> &'static str {
    if kept { "kept" } else { "new" }
}

/// The outcomes of a line's rounds, by contender: ours, Patroni's.
struct Row {
    line: Line,
    of: [Vec<Outcome>; 2],
}

#[derive(Default)]
pub struct Sheet(Vec<Row>);

/// A line's rounds as one.
struct Summary {
    rate: f64,
    median: f64,
    p99: f64,
    /// In all rounds.
    longest: f64,
    late: u64,
    /// CPU time of the client and of the agent for one answer, in microseconds.
    client: f64,
    agent: f64,
}

impl Summary {
    fn of(all: &[Outcome]) -> Option<Self> {
        let middle = |of: &dyn Fn(&Outcome) -> f64| {
            let mut values: Vec<f64> = all.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = |one: &Outcome, cpu: Duration| cpu.as_secs_f64() * 1e6 / one.answers().max(1.0);
        Some(Self {
            rate: middle(&|one| one.per_second)?,
            median: middle(&|one| ms(one.median))?,
            p99: middle(&|one| ms(one.p99))?,
            longest: all.iter().map(|one| ms(one.longest)).fold(0.0, f64::max),
            late: all.iter().map(|one| one.late).sum(),
            client: middle(&|one| each(one, one.client_cpu))?,
            agent: middle(&|one| each(one, one.agent_cpu))?,
        })
    }

    /// A cell of docs/speed.md: answers a second, the 99th percentile, who came too late.
    fn cell(&self) -> String {
        let late = if self.late > 0 { format!("; {} late", self.late) } else { String::new() };
        format!("{} ({}{late})", thousands(self.rate), short(self.p99))
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn short(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2}") } else { format!("{ms:.0}") }
}

fn cell(summary: Option<&Summary>) -> String {
    summary.map_or_else(|| "-".to_owned(), Summary::cell)
}

impl Sheet {
    pub fn add(&mut self, who: usize, line: Line, outcome: Outcome) {
        let at = self.0.iter().position(|row| row.line == line).unwrap_or_else(|| {
            self.0.push(Row { line, of: [Vec::new(), Vec::new()] });
            self.0.len() - 1
        });
        self.0[at].of[who].push(outcome);
    }

    pub fn print(&self, rounds: usize, lasts: Duration) {
        println!("REST API, one node; medians of {rounds} rounds of {lasts:?}; latencies in ms;");
        println!("late: answers after {LATE:?} or never, in all rounds together;");
        println!("cpu: microseconds of the client's thread and of the agent for one answer\n");
        let head = ["/s", "median", "p99", "longest", "late", "cpu"];
        print!("{:46}", "");
        for who in ["hathi", "Patr."] {
            print!(
                "{:>9}{:>8}{:>8}{:>9}{:>6}{:>12} |",
                who.to_owned() + head[0],
                head[1],
                head[2],
                head[3],
                head[4],
                head[5]
            );
        }
        println!("{:>7}", "ratio");
        for row in &self.0 {
            print!("{:46}", row.line.name());
            let both = row.of.each_ref().map(|all| Summary::of(all));
            for one in &both {
                match one {
                    None => print!("{:>52} |", "-"),
                    Some(Summary { rate, median, p99, longest, late, client, agent }) => print!(
                        "{rate:>9.0}{median:>8.2}{p99:>8.2}{longest:>9.1}{late:>6}{client:>6.1}{agent:>6.1} |"
                    ),
                }
            }
            match both {
                [Some(ours), Some(theirs)] if theirs.rate > 0.0 => {
                    println!("{:>7.1}", ours.rate / theirs.rate);
                }
                _ => println!(),
            }
        }
    }

    /// The tables of docs/speed.md.
    pub fn print_markdown(&self) {
        println!(
            "\n| 16 kept connections | hathi | Patroni | client, agent: µs |\n|---|---|---|---|"
        );
        for row in &self.0 {
            if let Line::Load { state, what, connections: 16, kept: true } = row.line {
                let both = row.of.each_ref().map(|all| Summary::of(all));
                let cpu = match &both[0] {
                    Some(ours) => format!("{:.1}, {:.1}", ours.client, ours.agent),
                    None => "-".to_owned(),
                };
                let [ours, theirs] = both.each_ref().map(|one| cell(one.as_ref()));
                println!("| {what}, {state} | {ours} | {theirs} | {cpu} |");
            }
        }
        println!("\n| PostgreSQL healthy | hathi | Patroni |\n|---|---|---|");
        for row in &self.0 {
            if let Line::Load { state: "PostgreSQL healthy", what, connections, kept } = row.line {
                let [ours, theirs] = row.of.each_ref().map(|all| cell(Summary::of(all).as_ref()));
                println!("| {what}, {connections} {} | {ours} | {theirs} |", how(kept));
            }
        }
        self.print_worst();
        println!(
            "\n| `/primary`, 1 new, behind 3,000 | hathi | longest, ms | Patroni | longest, ms |"
        );
        println!("|---|---|---|---|---|");
        for row in &self.0 {
            if let Line::Attack(crowd) = row.line {
                let both = row.of.each_ref().map(|all| Summary::of(all));
                let cells = both.each_ref().map(|one| match one {
                    Some(one) => format!("{} | {}", one.cell(), short(one.longest)),
                    None => "- | -".to_owned(),
                });
                println!("| {crowd} | {} | {} |", cells[0], cells[1]);
            }
        }
    }

    /// The worst of all states and questions, by number and kind of connections.
    fn print_worst(&self) {
        println!("\n| the worst of all states and questions | hathi | Patroni |");
        println!("|---|---|---|");
        let mut shown: Vec<(usize, bool)> = Vec::new();
        for row in &self.0 {
            let Line::Load { connections, kept, .. } = row.line else { continue };
            if shown.contains(&(connections, kept)) {
                continue;
            }
            shown.push((connections, kept));
            let cells = [0, 1].map(|who| {
                let all: Vec<Summary> = self
                    .0
                    .iter()
                    .filter(|row| {
                        matches!(row.line, Line::Load { connections: c, kept: k, .. }
                            if (c, k) == (connections, kept))
                    })
                    .filter_map(|row| Summary::of(&row.of[who]))
                    .collect();
                let slowest = all.iter().map(|one| one.rate).fold(f64::INFINITY, f64::min);
                let p99 = all.iter().map(|one| one.p99).fold(0.0, f64::max);
                let longest = all.iter().map(|one| one.longest).fold(0.0, f64::max);
                let late: u64 = all.iter().map(|one| one.late).sum();
                match all.is_empty() {
                    true => "-".to_owned(),
                    false => format!(
                        "{} ({}; longest {}; {late} late)",
                        thousands(slowest),
                        short(p99),
                        short(longest)
                    ),
                }
            });
            println!("| {connections} {} | {} | {} |", how(kept), cells[0], cells[1]);
        }
    }
}
