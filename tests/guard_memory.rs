//! The guard alone, without PostgreSQL: it keeps its own pages in memory, sleeps, and acts in time.

use hathi::guard::GuardClient;
use hathi::ha::ports::Fence;
use hathi::postgres::ProcessId;
use hathi_dcs::boottime;
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

/// The guard sleeps for longer than any of these deadlines is away: it acts in time only if it is rung
/// for. When nobody needs it any more it goes, and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_guard_is_rung_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_hathi"));
    let before = boards();
    let client = GuardClient::start_program(program, dir.path()).unwrap();
    let ours: Vec<String> = boards().into_iter().filter(|name| !before.contains(name)).collect();
    // Other tests may run beside this one: ours is the one whose guard this process started.
    let me = std::process::id().cast_signed();
    let ours: Vec<String> = ours
        .into_iter()
        .filter(|name| {
            let guard = guard_of(name).and_then(hathi::postgres::process::stat);
            guard.is_some_and(|stat| stat.parent == me)
        })
        .collect();
    assert_eq!(ours.len(), 1, "{ours:?}");

    type Deadlines = &'static [u64];
    let table: [(&str, Deadlines); 3] = [
        ("armed for the first time", &[300]),
        ("moved to an earlier moment", &[60_000, 300]),
        ("prolonged, and then not any more", &[300, 500, 700]),
    ];
    for (what, deadlines) in table {
        client.stand_down();
        let mut postmaster = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        client.postmaster(ProcessId::of(postmaster.id().cast_signed()));
        let guard = guard_of(&ours[0]).expect("the guard");
        wait::until("the guard sleeps", Duration::from_secs(5), || async move {
            let state = hathi::postgres::process::stat(guard).map(|stat| stat.state);
            if state == Some('S') { Ok(()) } else { Err(format!("it is {state:?}")) }
        })
        .await
        .unwrap();
        let armed = boottime();
        for ms in deadlines {
            client.protect_until(armed.plus(*ms));
        }
        let last = deadlines.last().copied().unwrap();
        let status = tokio::time::timeout(
            Duration::from_secs(6),
            tokio::task::spawn_blocking(move || postmaster.wait()),
        )
        .await
        .unwrap_or_else(|_| panic!("{what}: not stopped"));
        assert!(!status.unwrap().unwrap().success(), "{what}");
        let took = boottime().since(armed);
        assert!(took >= last, "{what}: stopped after {took} ms, {last} were allowed");
    }
    // This process is its agent and goes on: the guard would stay.
    let guard = guard_of(&ours[0]).expect("the guard");
    drop(client);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(guard).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    for end in ["", ".agent", ".guard"] {
        std::fs::remove_file(Path::new(SHM).join(format!("{}{end}", ours[0]))).unwrap();
    }
}

const SHM: &str = "/dev/shm";

fn boards() -> Vec<String> {
    let names = std::fs::read_dir(SHM).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("hathi-") && !name.contains('.')).collect()
}

/// Whose command line names this board.
fn guard_of(board: &str) -> Option<i32> {
    let path = format!("{SHM}/{board}");
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| word == path)
    })
}
