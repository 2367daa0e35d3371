//! `hathi demo --json` as a program uses it: read the document, break things, end it.

use hathi_test_support::process::{alive, belonging_to, signal_pid};
use hathi_test_support::{rest, sql, wait};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

struct Demo {
    child: Child,
    document: Value,
}

impl Demo {
    /// Starts the demo and reads its document.
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hathi"));
        command.args(["demo", "--json"]).args(args).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the demo starts");
        let out = child.stdout.take().expect("its output");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line).expect("its first line");
        let document = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, document }
    }

    fn members(&self) -> &[Value] {
        self.document["members"].as_array().expect("members")
    }

    fn directory(&self) -> &Path {
        Path::new(self.document["directory"].as_str().expect("a directory"))
    }

    fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < within {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal_pid(self.child.id(), Signal::TERM);
            if self.ended(Duration::from_secs(60)).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        belonging_to(self.directory()).into_iter().for_each(|pid| signal_pid(pid, Signal::KILL));
        let _ = std::fs::remove_dir_all(self.directory());
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_else(|| panic!("{value}"))
}

fn port(member: &Value, which: &str) -> u16 {
    u16::try_from(number(&member[which]["port"])).expect("a port")
}

async fn select(demo: &Demo, member: &Value, statement: &str) -> Result<String, String> {
    let password = demo.document["credentials"]["superuser"]["password"].as_str();
    let within = Duration::from_secs(5);
    let port = port(member, "postgresql");
    let session = sql::connect_with(port, password.expect("a password"), within).await?;
    let rows = session.rows(statement, within).await?;
    rows.into_iter().flatten().flatten().next().ok_or_else(|| "no row".to_owned())
}

/// Which member answers 200 on /primary, the only one.
async fn leader(demo: &Demo) -> Result<String, String> {
    let mut leaders = Vec::new();
    for member in demo.members() {
        let answer = rest::get(port(member, "rest"), "/primary").await;
        if answer.is_ok_and(|a| a.status == 200) {
            leaders.push(member["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    match leaders.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(format!("leaders: {leaders:?}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_to_break() {
    let mut demo = Demo::start(&["--nodes", "3"]);
    assert_eq!(demo.members().len(), 3);
    let first = demo.document["leader"].as_str().expect("a leader").to_owned();
    for member in demo.members() {
        let name = member["name"].as_str().expect("a name");
        assert!(alive(number(&member["agent_pid"])), "{member}");
        assert!(alive(number(&member["postmaster_pid"])), "{member}");
        let recovers = select(&demo, member, "SELECT pg_is_in_recovery()").await;
        assert_eq!(recovers.as_deref(), Ok(if name == first { "f" } else { "t" }), "{member}");
        let status = rest::get(port(member, "rest"), "/patroni").await.expect("an answer").json();
        assert_eq!(status["patroni"]["name"], name);
    }
    assert_eq!(leader(&demo).await.as_deref(), Ok(first.as_str()));

    // What the demo itself suggests: its primary_start_timeout is 0, so another takes over.
    let old = demo.members().iter().find(|m| m["name"] == first.as_str()).expect("it").clone();
    signal_pid(number(&old["postmaster_pid"]), Signal::KILL);
    let taken = wait::until("another leads", Duration::from_secs(30), || async {
        let now = leader(&demo).await?;
        if now == first { Err(format!("{now} still leads")) } else { Ok(()) }
    });
    taken.await.unwrap_or_else(|e| panic!("{e}"));

    // A killed agent is started again.
    let agent = number(&old["agent_pid"]);
    signal_pid(agent, Signal::KILL);
    let back = wait::until("the agent is started again", Duration::from_secs(30), || async {
        if alive(agent) {
            return Err("it lives on".to_owned());
        }
        rest::get(port(&old, "rest"), "/patroni").await.map(drop)
    });
    back.await.unwrap_or_else(|e| panic!("{e}"));

    signal_pid(demo.child.id(), Signal::TERM);
    let status = demo.ended(Duration::from_secs(60)).expect("the demo ends");
    assert!(status.success(), "{status}");
    assert_eq!(belonging_to(demo.directory()), Vec::<u32>::new(), "something still runs");
    assert!(!demo.directory().exists(), "its directory is still there");
}

#[test]
fn what_stands_in_the_way_is_said_in_one_line() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("mine"), "mine").expect("a file");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let path = dir.path().to_str().expect("UTF-8").to_owned();
    let cases: [(&[&str], &str); 3] = [
        (&["--dir", &path], "not empty"),
        (&["--bin-dir", &path], "--bin-dir"),
        (&["--port-base", &port], &port),
    ];
    for (args, word) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hathi"));
        let out = command.arg("demo").args(args).output().expect("the demo runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{args:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 1, "touched");
}
