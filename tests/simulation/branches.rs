//! Which branches of the core's decisions did the runs take? A branch is a place in src/ha that
//! gives a reason, ends a turn with a line, or says that it was reached.

use crate::root;
use hathi::ha::reached;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

/// Percent of all branches that so many seeds must reach.
const FLOORS: &[(u64, usize)] = &[(10_000, 72), (2_000, 70), (300, 55)];

/// File below src/ha, and line.
type Branch = (String, u32);

static REACHED: Mutex<BTreeSet<Branch>> = Mutex::new(BTreeSet::new());

/// What this thread reached joins the rest.
pub fn hand_in() {
    let mine = reached::take().into_iter().filter_map(|(file, line)| {
        let file = file.rsplit_once("src/ha/")?.1;
        Some((file.to_owned(), line))
    });
    REACHED.lock().unwrap().extend(mine);
}

/// Every branch there is, with the text of its line.
fn all() -> BTreeMap<Branch, String> {
    let mut found = BTreeMap::new();
    read(&root().join("src/ha"), "", &mut found);
    found
}

fn read(folder: &Path, below: &str, found: &mut BTreeMap<Branch, String>) {
    for entry in std::fs::read_dir(folder).expect("the folder of the core") {
        let path = entry.expect("a directory entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            read(&path, &format!("{below}{name}/"), found);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            // What follows is a test.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for (line, number) in code.lines().zip(1..) {
                if is_branch(line) && !is_the_marker(&name, line) {
                    found.insert((format!("{below}{name}"), number), line.trim().to_owned());
                }
            }
        }
    }
}

fn is_branch(line: &str) -> bool {
    const MARKS: &[&str] =
        &[".because(", "Decided::line(", "Decided::task(", "Decided::exit(", "reached::here()"];
    let code = line.split("//").next().unwrap_or_default();
    MARKS.iter().any(|mark| code.contains(mark))
}

/// Where the marks themselves are made, nothing branches.
fn is_the_marker(file: &str, line: &str) -> bool {
    file == "turn.rs" && line.contains("reached::here()")
}

fn share() -> (usize, usize, Vec<String>) {
    let reached = REACHED.lock().unwrap();
    let all = all();
    let missed: Vec<String> = all
        .iter()
        .filter(|(branch, _)| !reached.contains(*branch))
        .map(|((file, line), text)| format!("src/ha/{file}:{line}  {text}"))
        .collect();
    (all.len() - missed.len(), all.len(), missed)
}

pub fn print() {
    let (hit, all, missed) = share();
    println!("branches of the decisions reached: {hit} of {all}, {} %; never:", hit * 100 / all);
    for branch in missed {
        println!("  {branch}");
    }
}

/// Fewer than before means that something cannot happen any more, or that a new feature has no fault
/// that leads there.
pub fn assert_floor(seeds: u64) {
    let Some((_, floor)) = FLOORS.iter().find(|(at_least, _)| seeds >= *at_least) else { return };
    let (hit, all, _) = share();
    assert!(
        hit * 100 >= all * floor,
        "{seeds} seeds reach {hit} of {all} branches, less than {floor} %"
    );
}
