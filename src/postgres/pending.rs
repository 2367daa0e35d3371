//! Which parameters wait for a restart, and what they would become. (PG-243 … PG-247, PG-455)

use crate::postgres::configuration::is_recovery;
use crate::postgres::monitor::Row;
use crate::postgres::room::LocalPostgres;
use crate::postgres::settings::{FORCED, Settings};
use hathi_dcs::{Deadline, PendingChange};
use std::collections::BTreeMap;

impl LocalPostgres {
    /// Works out the reasons for a pending restart; asks the server only when the set has changed.
    pub(super) async fn explain_pending(&self, settings: &Settings, row: &Row, by: Deadline) {
        let waiting: BTreeMap<_, _> = row
            .pending
            .iter()
            .filter(|(name, _)| name.as_str() != "hot_standby" && !is_recovery(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let facts = self.facts();
        // The configured values take part: they may change while the set does not.
        let mut key = waiting.clone();
        for name in waiting.keys() {
            if let Some(value) = settings.parameters.get(name) {
                key.insert(format!("={name}"), value.clone());
            }
        }
        for (name, change) in &facts.raised {
            key.insert(format!("<{name}"), change.old_value.clone());
        }
        if key == facts.pending_of {
            return;
        }
        let mut reasons = facts.raised;
        if !waiting.is_empty() {
            let (units, in_files) = self.ask_files(&waiting, by).await;
            for (name, old) in &waiting {
                // A forced parameter is what the command line will say, whatever ALTER SYSTEM did.
                let configured = settings.parameters.get(name);
                let forced = FORCED.contains(&name.as_str());
                let new = if forced { configured } else { in_files.get(name).or(configured) };
                let unit = units.get(name).map(String::as_str).unwrap_or_default();
                let new = new.map_or_else(|| "?".to_owned(), |value| in_largest_unit(value, unit));
                if forced && new == *old {
                    continue; // PG-245
                }
                reasons
                    .entry(name.clone())
                    .or_insert(PendingChange { old_value: old.clone(), new_value: new });
            }
        }
        self.with_facts(|facts| {
            facts.pending = reasons;
            facts.pending_of = key;
        });
    }

    /// The units of these parameters, and their values in the server's files.
    async fn ask_files(
        &self,
        names: &BTreeMap<String, String>,
        by: Deadline,
    ) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let list: Vec<_> =
            names.keys().map(|name| crate::postgres::session::literal(name)).collect();
        let list = list.join(", ");
        let sql = format!(
            "SELECT 'u', name, unit FROM pg_settings WHERE name IN ({list}); \
             SELECT 'f', name, setting FROM pg_file_settings WHERE name IN ({list}) ORDER BY seqno"
        );
        let mut units = BTreeMap::new();
        let mut values = BTreeMap::new();
        let Ok(held) = tokio::time::timeout(by.left(), self.session.lock()).await else {
            return (units, values);
        };
        let Some(session) = held.as_ref() else { return (units, values) };
        let Ok(rows) = session.rows(&sql, by).await else { return (units, values) };
        for row in rows {
            let text = |at: usize| row.try_get(at).ok().flatten().map(str::to_owned);
            let (Some(kind), Some(name), Some(value)) = (text(0), text(1), text(2)) else {
                continue;
            };
            let map = if kind == "u" { &mut units } else { &mut values };
            map.insert(name, value);
        }
        (units, values)
    }
}

/// A value as PostgreSQL shows it: in the largest unit that divides it. (PG-243)
fn in_largest_unit(value: &str, base: &str) -> String {
    let memory: &[(&str, i64)] =
        &[("B", 1), ("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];
    let time: &[(&str, i64)] = &[
        ("us", 1),
        ("ms", 1000),
        ("s", 1_000_000),
        ("min", 60_000_000),
        ("h", 3_600_000_000),
        ("d", 86_400_000_000),
    ];
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).count();
    let split = |text: &str| -> Option<(i64, String)> {
        let at = digits(text);
        let unit = text.get(at..)?.trim().to_owned();
        match (at, text.get(..at)?.parse().ok()) {
            (0, _) => Some((1, unit)),
            (_, number) => Some((number?, unit)),
        }
    };
    let convert = |table: &[(&str, i64)]| -> Option<String> {
        let factor = |unit: &str| table.iter().find(|(name, _)| *name == unit).map(|(_, f)| *f);
        let (times, base_unit) = split(base)?;
        let base = factor(&base_unit)?.checked_mul(times)?;
        if digits(value) == 0 {
            return None;
        }
        let (number, unit) = split(value)?;
        let smallest = if unit.is_empty() {
            number.checked_mul(base)?
        } else {
            number.checked_mul(factor(&unit)?)?
        };
        if smallest == 0 {
            return Some("0".into());
        }
        let (unit, factor) = table.iter().rev().find(|(_, factor)| smallest % factor == 0)?;
        Some(format!("{}{unit}", smallest / factor))
    };
    convert(memory).or_else(|| convert(time)).unwrap_or_else(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves PG-243 (the units).
    #[test]
    fn values_are_shown_in_the_largest_exact_unit() {
        for (value, base, shown) in [
            ("16384", "8kB", "128MB"),
            ("16MB", "8kB", "16MB"),
            ("1536MB", "8kB", "1536MB"),
            ("1024MB", "8kB", "1GB"),
            ("8192", "kB", "8MB"),
            ("300", "s", "5min"),
            ("1000", "ms", "1s"),
            ("0", "ms", "0"),
            ("-1", "8kB", "-1"),
            ("60", "", "60"),
            ("pg_stat_statements", "", "pg_stat_statements"),
        ] {
            assert_eq!(in_largest_unit(value, base), shown, "{value} {base}");
        }
    }
}
