//! The numbers of all contenders, and the table of their medians.

use crate::Contender;

/// What one row is about, in the order of the table.
pub struct Table {
    rounds: usize,
    columns: Vec<&'static str>,
    rows: Vec<(String, Vec<Cell>)>,
}

/// A column's name and what was measured in it.
type Cell = (&'static str, Vec<f64>);

impl Table {
    pub fn new(rounds: usize) -> Self {
        Self { rounds, columns: Vec::new(), rows: Vec::new() }
    }

    pub fn add(&mut self, contender: Contender, what: &str, value: f64) {
        eprintln!("{}: {what}: {value:.3}", contender.name);
        if !self.columns.contains(&contender.name) {
            self.columns.push(contender.name);
        }
        if !self.rows.iter().any(|(name, _)| name == what) {
            self.rows.push((what.to_owned(), Vec::new()));
        }
        let Some((_, cells)) = self.rows.iter_mut().find(|(name, _)| name == what) else { return };
        match cells.iter_mut().find(|(name, _)| *name == contender.name) {
            Some((_, values)) => values.push(value),
            None => cells.push((contender.name, vec![value])),
        }
    }

    /// The ratio is Patroni's median through that of the column before it.
    pub fn print(&self) {
        println!("medians; times from {} rounds", self.rounds);
        print!("{:52}", "");
        self.columns.iter().for_each(|c| print!("{c:>14}"));
        println!("{:>10}", "ratio");
        for (what, cells) in &self.rows {
            print!("{what:52}");
            let of = |column: &str| {
                cells.iter().find(|(name, _)| *name == column).map(|(_, v)| median(v))
            };
            for column in &self.columns {
                match of(column) {
                    Some(value) => print!("{:>14}", shown(value)),
                    None => print!("{:>14}", "-"),
                }
            }
            match (of("patroni-etcd"), of("hathi-etcd")) {
                (Some(theirs), Some(ours)) if ours > 0.0 => println!("{:>10.2}", theirs / ours),
                _ => println!(),
            }
        }
    }
}

fn shown(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
