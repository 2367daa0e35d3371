//! The table in docs/stores.md, store by fault: each suite that ran compares its column with what is
//! written there, or writes it (`UPDATE_STORES=1`).

use super::{Summary, TESTS};
use rustix::fs::{FlockOperation, flock};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A fault in words, and the tests that inflict it.
const ROWS: &[(&str, &[&str])] = &[
    ("all servers killed and started again", &["outage::a_dead_store_is_unreachable_and_returns"]),
    ("all servers stand still", &["outage::a_paused_store_is_unreachable"]),
    ("… for longer than the ttl", &["outage::a_pause_past_the_ttl_makes_no_second_owner"]),
    (
        "one of three killed",
        &["faults::one_killed_follower_costs_nothing", "faults::one_killed_leader_costs_nothing"],
    ),
    (
        "one of three stands still",
        &["faults::one_paused_follower_costs_nothing", "faults::one_paused_leader_costs_nothing"],
    ),
    ("one of three cut off in one direction, or slow", &["faults::one_half_cut_off_costs_nothing"]),
    ("two of three killed", &["outage::without_quorum_nothing_is_promised"]),
    (
        "cut from the store to the agent, and a late answer after a time-out",
        &[
            "faults::a_late_acquire_is_found_by_reading_again",
            "faults::a_late_compare_and_set_is_found_by_reading_again",
        ],
    ),
    ("cut from the agent to the store", &["faults::requests_that_do_not_arrive_change_nothing"]),
    ("carried out after its time-out", &["faults::a_write_while_paused_is_found_by_reading_again"]),
    ("slow answers", &["faults::slow_answers_cost_time_only"]),
    (
        "connection cut between a write and its answer",
        &[
            "faults::a_lost_answer_is_no_lost_lock",
            "faults::a_lost_answer_is_no_second_bootstrap",
            "faults::a_lost_answer_costs_no_record",
        ],
    ),
    ("connection cut within a reading", &["faults::a_lost_answer_is_no_half_view"]),
    ("a deadline that cannot be met", &["outage::a_short_deadline_is_kept"]),
    ("watch lost with the store", &["watching::a_watch_survives_restarts"]),
    ("watch that falls silent", &["watching::a_silent_watch_is_not_believed"]),
    ("watch cut, its history thrown away", &["watching::a_watch_survives_compaction"]),
    (
        "lease or session ended under its owner",
        &[
            "lock::a_lost_lease_is_replaced_if_nobody_took_the_lock",
            "lock::a_lost_lease_loses_the_lock_to_who_took_it",
            "records::a_member_record_lives_on_the_lease",
        ],
    ),
    ("owner silent past the ttl", &["lock::an_abandoned_lock_is_free_after_ttl"]),
    ("rights withdrawn while running", &["faults::withdrawn_rights_are_no_lost_lock"]),
    ("garbage and older forms in keys", &["records::garbage_costs_nobody_the_view"]),
];

/// What was run, in the first row.
const SERVERS: &str = "run on";

const BEGIN: &str = "<!-- faults: written by the suites, with UPDATE_STORES=1 -->";
const END: &str = "<!-- end of faults -->";
const PASSED: &str = "✓";
const CANNOT: &str = "–";

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/stores.md")
}

/// What the suite of one store says of a row.
fn mark(summary: &Summary, tests: &[&str]) -> &'static str {
    let passed = |test: &&&str| summary.passed.contains(*test);
    match tests.iter().filter(passed).count() {
        0 => CANNOT,
        count if count == tests.len() => PASSED,
        _ => "in part",
    }
}

/// Every fault of the suite has its row, and every row its tests.
fn every_fault_is_told() {
    let told: Vec<&str> = ROWS.iter().flat_map(|(_, tests)| tests.iter().copied()).collect();
    for test in TESTS {
        let fault = test.name.starts_with("faults::") || test.name.starts_with("outage::");
        assert!(!fault || told.contains(&test.name), "{} has no row in {}", test.name, file!());
    }
    for name in told {
        assert!(TESTS.iter().any(|test| test.name == name), "{name} is no test of the suite");
    }
}

/// The table as rows of cells; the first is the head.
fn cells(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--"));
    rows.map(|line| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect())
        .collect()
}

fn written(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (n, row) in table.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if n == 0 {
            let _ = writeln!(text, "|--{}|", "-|--".repeat(row.len() - 1));
        }
    }
    text
}

/// The same table with the column of this store as its suite says.
fn with_column(old: &[Vec<String>], store: &str, summary: &Summary) -> Vec<Vec<String>> {
    let mut head = old.first().cloned().unwrap_or_else(|| vec!["Fault".into()]);
    let column = head.iter().position(|name| name == store).unwrap_or_else(|| {
        head.push(store.to_owned());
        head.len() - 1
    });
    let marks = ROWS.iter().map(|(what, tests)| (*what, mark(summary, tests).to_owned()));
    let servers = (SERVERS, summary.ran_on.join("; "));
    let mut table = vec![head];
    for (what, cell) in std::iter::once(servers).chain(marks) {
        let known = old.iter().find(|row| row.first().is_some_and(|cell| cell == what));
        let mut row = known.cloned().unwrap_or_else(|| vec![what.to_owned()]);
        row.resize(table[0].len(), "?".to_owned());
        row[column] = cell;
        table.push(row);
    }
    table
}

/// The column `store` of docs/stores.md says what this run of the suite says. The largest of its
/// suites is to be handed in: one server cannot suffer what takes three.
pub fn check(store: &str, summary: &Summary) {
    every_fault_is_told();
    let update = std::env::var_os("UPDATE_STORES").is_some();
    let lock = std::fs::File::open(page()).expect("docs/stores.md is there");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let text = std::fs::read_to_string(page()).expect("docs/stores.md can be read");
    let between = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    });
    let (before, table, after) = between.expect("docs/stores.md has the two marks of the table");
    let old = cells(table);
    let new = with_column(&old, store, summary);
    if update {
        let whole = format!("{before}{BEGIN}\n{}{END}{after}", written(&new));
        std::fs::write(page(), whole).expect("docs/stores.md can be written");
    } else {
        assert_eq!(old, new, "docs/stores.md is not current: run the suites with UPDATE_STORES=1");
    }
}
