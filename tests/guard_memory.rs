//! The guard keeps its own pages in memory, as far as it may.

use hathi_test_support::wait;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A guard without an agent stays for ten seconds: enough to look at it.
struct Alone(Child);

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Alone {
    /// As an ordinary user who may lock so many kilobytes; `None`: as whoever runs the test.
    fn start(dir: &Path, limit_kb: Option<u32>) -> Self {
        let hathi = dir.join("hathi");
        let board = dir.join(format!("board-{limit_kb:?}"));
        let drop_rights = if rustix::process::geteuid().is_root() {
            "setpriv --reuid=65534 --regid=65534 --clear-groups"
        } else {
            ""
        };
        let (hathi, board) = (hathi.display(), board.display());
        let script = match limit_kb {
            Some(kb) => format!("ulimit -l {kb} && exec {drop_rights} {hathi} guard '{board}'"),
            None => format!("exec {hathi} guard '{board}'"),
        };
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Kilobytes: locked, and in memory.
    async fn locked(&self) -> (u64, u64) {
        let status = format!("/proc/{}/status", self.0.id());
        wait::until("the guard's memory is locked", Duration::from_secs(8), || async {
            let text = std::fs::read_to_string(&status).map_err(|why| why.to_string())?;
            let field = |name: &str| -> u64 {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|rest| {
                    rest.trim_matches([':', '\t', ' ']).split(' ').next()?.parse().ok()
                })
                .unwrap_or(0)
            };
            let (locked, resident) = (field("VmLck"), field("VmRSS"));
            if text.starts_with("Name:\thathi") && locked > 0 {
                Ok((locked, resident))
            } else {
                Err(format!("{locked} kB of {resident} kB"))
            }
        })
        .await
        .unwrap_or_else(|why| panic!("{why}"))
    }

    fn said(mut self) -> String {
        let _ = self.0.kill();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

fn open_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// With the right to lock, whatever it touches later stays, too, and locking does not pull in the
/// rest of the program. Where the limit is too small it locks what it may, says so in one line, and
/// guards.
#[tokio::test]
async fn the_guard_stays_in_memory() {
    let dir = open_dir();
    std::fs::copy(env!("CARGO_BIN_EXE_hathi"), dir.path().join("hathi")).unwrap();
    if rustix::process::geteuid().is_root() {
        let guard = Alone::start(dir.path(), None);
        let (_, resident) = guard.locked().await;
        println!("{resident} kB resident with the right to lock");
        assert!(resident < 32 * 1024, "{resident} kB");
        assert_eq!(guard.said(), "");
    }
    let guard = Alone::start(dir.path(), Some(64));
    let (locked, _) = guard.locked().await;
    assert!((1..=64).contains(&locked), "{locked} kB");
    let said = guard.said();
    assert!(said.contains("RLIMIT_MEMLOCK") && said.lines().count() == 1, "{said}");
}
