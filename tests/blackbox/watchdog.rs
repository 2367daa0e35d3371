//! The agent and its watchdog, seen from behind the device: a named pipe and its reader stand in for
//! /dev/watchdog (`watchdog.driver: testing`). And what a turn decided, run again outside.

use crate::options;
use hathi_test_support::{Cluster, Store, wait};
use rustix::process::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A pipe, and everything that was written into it.
struct Device {
    dir: tempfile::TempDir,
    read: Arc<Mutex<Vec<(Instant, u8)>>>,
}

impl Device {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let everybody = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        everybody(dir.path(), 0o755);
        let device = Self { dir, read: Arc::default() };
        assert!(Command::new("mkfifo").arg(device.path()).status().unwrap().success());
        everybody(&device.path(), 0o666);
        // Also for writing, so that the pipe never ends; without blocking, so that the thread does.
        let mut pipe = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(device.path())
            .unwrap();
        let read = Arc::downgrade(&device.read);
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Some(read) = read.upgrade() {
                if let Ok(count) = pipe.read(&mut bytes) {
                    let now = Instant::now();
                    read.lock().unwrap().extend(bytes[..count].iter().map(|byte| (now, *byte)));
                }
                drop(read);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        device
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("watchdog")
    }

    fn text(&self) -> String {
        self.read.lock().unwrap().iter().map(|(_, byte)| char::from(*byte)).collect()
    }

    /// When it was kept alive: `1` outside of a `Ctimeout=…` line.
    fn signs_of_life(&self) -> Vec<Instant> {
        let read = self.read.lock().unwrap();
        let mut in_line = false;
        let mut signs = Vec::new();
        for (at, byte) in read.iter() {
            match byte {
                b'C' => in_line = true,
                b'\n' => in_line = false,
                b'1' if !in_line => signs.push(*at),
                _ => {}
            }
        }
        signs
    }

    async fn until(&self, what: &str, within: Duration, is: impl Fn(&Self) -> bool) {
        let seen = wait::until(what, within, || async {
            if is(self) { Ok(()) } else { Err(format!("{:?}", self.text())) }
        });
        seen.await.unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Proves HA-172 and INV-26 on a real cluster (armed by bootstrap, a sign of life with each renewal
/// and none from a frozen agent), HA-004 (pause), HA-104 and HA-174 (the magic close of an orderly
/// stop is the last word), CFG-148.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_watchdog_is_kept_alive_by_renewals_only() {
    let device = Device::new();
    let mut one_node = options(Store::Raft);
    one_node.nodes = 1;
    one_node.local = json!({
        "watchdog": {"mode": "required", "driver": "testing", "device": device.path()}
    });
    let mut cluster = Cluster::start(one_node).await;

    // ttl 20 and the margin of 5: never longer than 15 seconds.
    assert!(device.text().starts_with("Ctimeout=15\n"), "{:?}", device.text());
    let before = device.signs_of_life().len();
    let enough = |device: &Device| device.signs_of_life().len() >= before + 5;
    device.until("five signs of life", Duration::from_secs(30), enough).await;
    let signs = device.signs_of_life();
    let longest = signs.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!("{} signs of life, at most {longest:?} apart", signs.len());
    assert!(longest < Duration::from_secs(15), "{longest:?}");
    assert!(!device.text().contains('V'), "{:?}", device.text());

    // A frozen agent: nothing keeps the machine alive. It is back before the lease ends.
    cluster.signal_agent(0, Signal::STOP);
    let drained = Duration::from_millis(300);
    tokio::time::sleep(drained).await;
    let frozen = device.text();
    let silent = wait::holds("no sign of life", Duration::from_secs(6), || async {
        if device.text() == frozen { Ok(()) } else { Err(device.text()) }
    });
    silent.await.unwrap_or_else(|why| panic!("{why}"));
    cluster.signal_agent(0, Signal::CONT);
    let more = |device: &Device| device.text().len() > frozen.len();
    device.until("it goes on", Duration::from_secs(20), more).await;

    // Pause.
    let asked = cluster.send(0, "PATCH", "/config", json!({"pause": true})).await.unwrap();
    assert_eq!(asked.status, 200);
    device.until("off in pause", Duration::from_secs(20), |d| d.text().ends_with('V')).await;
    let paused = device.text();
    let silent = wait::holds("nothing in pause", Duration::from_secs(5), || async {
        if device.text() == paused { Ok(()) } else { Err(device.text()) }
    });
    silent.await.unwrap_or_else(|why| panic!("{why}"));
    cluster.send(0, "PATCH", "/config", json!({"pause": null})).await.unwrap();
    let armed = |d: &Device| d.text()[paused.len()..].contains("Ctimeout=");
    device.until("armed after pause", Duration::from_secs(20), armed).await;

    // SIGTERM.
    assert!(cluster.stop_agent(0).await.success(), "{}", cluster.report());
    let text = device.text();
    assert!(text.ends_with('V') && text.matches('V').count() == 2, "{text:?}");
}

/// Proves HA-320, INV-32 and REST-471 on a real cluster: what the REST API tells of a turn runs again
/// in another process and comes to the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_turn_of_a_real_cluster_runs_again() {
    let mut one_node = options(Store::Raft);
    one_node.nodes = 1;
    let cluster = Cluster::start(one_node).await;
    let decisions = cluster.get(0, "/decisions?limit=50").await.unwrap().json();
    let decisions = decisions.as_array().expect("a list").clone();
    assert!(decisions.iter().any(|told| told["started"] == "bootstrap"), "{decisions:?}");
    let mut replayed = 0;
    for told in &decisions {
        let number = &told["number"];
        let path = format!("/decisions/{number}/recording");
        let recording = cluster.get(0, &path).await.unwrap();
        // A quiet turn may have taken its place meanwhile.
        if recording.status == 404 {
            continue;
        }
        let mut replay = Command::new(env!("CARGO_BIN_EXE_hathi"))
            .args(["replay", "--calls", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        replay.stdin.take().unwrap().write_all(recording.body.as_bytes()).unwrap();
        let out = replay.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && shown.contains("replayed: the same"), "{shown}");
        assert!(shown.contains("postgres.observe"), "{shown}");
        let line = told["line"].as_str().expect("a line");
        if told["times"] == 1 {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
        replayed += 1;
    }
    assert!(replayed >= 3, "{decisions:?}");
}
