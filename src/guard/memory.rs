//! Keeps the guard in memory: on a machine that swaps it must not wait for a disk to do its one
//! thing. Only what it needs; the rest of the program it was started from stays on disk.

use rustix::mm::{MlockAllFlags, mlock, mlockall};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The present bit of an entry of /proc/self/pagemap.
const PRESENT: u64 = 1 << 63;

/// Locks what is in memory now, and with the right to do so also what comes later. To be called when
/// everything that will be needed was used once.
///
/// # Errors
/// A part of it is not locked; one line for the operator. The guard works all the same as long as
/// the machine does not swap.
pub fn stay() -> Result<(), String> {
    let later = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if mlockall(later).is_ok() {
        return Ok(());
    }
    // Without the right to it the limit counts every mapping in full: only the pages in use, then.
    let failed = |why: std::io::Error| format!("its memory is not locked: {why}");
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(failed)?;
    let pagemap = File::open("/proc/self/pagemap").map_err(failed)?;
    let page = rustix::param::page_size();
    let (mut locked, mut wanted, mut refused) = (0, 0, None);
    // What swapping would take first: what exists nowhere else.
    let (own, of_files): (Vec<&str>, Vec<&str>) = maps.lines().partition(|line| is_written(line));
    for (from, to) in own.into_iter().chain(of_files).filter_map(range) {
        for (start, pages) in present(&pagemap, from / page, to / page) {
            wanted += pages;
            // SAFETY: locking pages that are mapped changes nothing that any code could see; if they
            // are not mapped any more it fails.
            match unsafe { mlock((start * page) as *mut _, pages * page) } {
                Ok(()) => locked += pages,
                Err(why) => refused = Some(why),
            }
        }
    }
    refused.map_or(Ok(()), |why| {
        let kb = |pages: usize| pages * page / 1024;
        Err(format!(
            "{} of {} kB of its memory are locked ({why}); on a machine that swaps raise \
             RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=64M)",
            kb(locked),
            kb(wanted)
        ))
    })
}

/// `from-to rwxp …`, without what the kernel keeps for itself.
fn range(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if rest.starts_with("---") || rest.ends_with("[vvar]") || rest.ends_with("[vsyscall]") {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

fn is_written(line: &str) -> bool {
    line.split(' ').nth(1).is_some_and(|rights| rights.contains('w'))
}

/// Runs of pages of a mapping that are in memory: the first, and how many.
fn present(pagemap: &File, from: usize, to: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut bytes = [0_u8; 8];
    for number in from..to {
        if pagemap.read_exact_at(&mut bytes, number as u64 * 8).is_err() {
            break;
        }
        if u64::from_ne_bytes(bytes) & PRESENT == 0 {
            continue;
        }
        match runs.last_mut() {
            Some((start, pages)) if *start + *pages == number => *pages += 1,
            Some(_) | None => runs.push((number, 1)),
        }
    }
    runs
}
