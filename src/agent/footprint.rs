//! What an idle agent keeps in memory.

use rustix::mm::{Advice, madvise};

/// Gives back the pages of program text that only the start needed: the configuration's reader, the
/// command line, the handshakes. The kernel brings in sixteen pages around each one that is used and
/// counts them as this process's own; what is used again comes back from the page cache.
///
/// Returns how many bytes were given back at most, for the log.
pub fn give_back_program_text() -> usize {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return 0 };
    let mut given = 0;
    for (from, to) in maps.lines().filter_map(program_text) {
        // SAFETY: a private mapping of a file that may be read and executed and was never written:
        // what is dropped is read from the file again, the same bytes.
        if unsafe { madvise(from as *mut _, to - from, Advice::LinuxDontNeed) }.is_ok() {
            given += to - from;
        }
    }
    given
}

/// `from-to r-xp offset device inode /path`. Nothing with other rights: `r--p` may hold relocations,
/// which are in no file.
fn program_text(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    if words.next() != Some("r-xp") || !words.nth(3).is_some_and(|path| path.starts_with('/')) {
        return None;
    }
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_files_is_given_back() {
        let table = [
            ("7f01-7f02 r-xp 00001000 fd:00 77   /usr/bin/hathi", Some((0x7f01, 0x7f02))),
            ("7f01-7f02 r--p 00001000 fd:00 77   /usr/bin/hathi", None),
            ("7f01-7f02 rw-p 00001000 fd:00 77   /usr/bin/hathi", None),
            ("7f01-7f02 r-xs 00001000 fd:00 77   /usr/bin/hathi", None),
            ("7f01-7f02 r-xp 00000000 00:00 0", None),
            ("7f01-7f02 r-xp 00000000 00:00 0    [vdso]", None),
            ("nonsense", None),
        ];
        for (line, expected) in table {
            assert_eq!(program_text(line), expected, "{line}");
        }
        assert!(give_back_program_text() > 0, "and this program goes on");
    }
}
