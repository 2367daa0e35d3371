//! `hathi validate-config` and the checks before a start, through the binary as a user runs it.

use hathi_test_support::{osuser, ports};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const BIN_DIR: &str = "/usr/lib/postgresql/15/bin";

/// A valid node on free ports.
struct Node {
    dir: tempfile::TempDir,
    rest: u16,
    yaml: Value,
}

impl Node {
    fn new() -> Self {
        let dir = osuser::server_dir("hathi-validate");
        let ports = ports::free_ports(3);
        let address = |n: usize| format!("127.0.0.1:{}", ports[n]);
        let bin_dir = std::env::var("HATHI_PG_BIN").unwrap_or_else(|_| BIN_DIR.to_owned());
        let yaml = json!({
            "scope": "s", "name": "a",
            "restapi": {"listen": address(0), "connect_address": address(0)},
            "raft": {"self_addr": address(1), "data_dir": dir.path().join("raft")},
            "bootstrap": {"dcs": {"ttl": 30}},
            "postgresql": {
                "listen": address(2), "connect_address": address(2),
                "data_dir": dir.path().join("data"), "bin_dir": bin_dir,
                "authentication": {
                    "superuser": {"username": "postgres", "password": "geheim"},
                    "replication": {"username": "rep", "password": "geheim"}
                }
            }
        });
        Self { rest: ports[0], dir, yaml }
    }

    fn run(&self, args: &[&str]) -> Output {
        let file = self.dir.path().join("node.yml");
        std::fs::write(&file, self.yaml.to_string()).unwrap();
        run_with(args, &file)
    }

    fn validate(&self) -> Output {
        self.run(&["validate-config"])
    }
}

fn run_with(args: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hathi"));
    let command = command.args(args).arg(file).env_clear().env("PATH", "/usr/bin:/bin");
    osuser::as_server(command).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Proves CFG-121, CFG-098 (loopback is a warning), CFG-468.
#[test]
fn a_good_file_is_accepted() {
    let node = Node::new();
    let output = node.validate();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
    let warnings = stderr(&output);
    assert_eq!(warnings.lines().count(), 3, "{warnings}");
    assert!(warnings.lines().all(|line| line.starts_with("warning: ")), "{warnings}");
    assert!(!node.dir.path().join("data").exists(), "something was touched");
    assert!(!node.dir.path().join("raft").exists(), "something was touched");
}

/// Proves CFG-121: `-p` prints the merged configuration as YAML.
#[test]
fn print_shows_the_merged_file() {
    let node = Node::new();
    let output = node.run(&["validate-config", "-p"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("scope: s\nname: a\nrestapi:\n  listen: "), "{text}");
    assert!(text.contains("    superuser:\n      username: postgres\n"), "{text}");
}

/// Proves CFG-121, CFG-123, CFG-124, CFG-461, CFG-469: one line each, naming file, line and path.
#[test]
fn problems_and_warnings_are_lines() {
    for (path, value, code, words) in [
        ("/scope", Value::Null, 1, ":1: scope: is not defined"),
        ("/restapi/listen", json!("nonsense"), 1, ":1: restapi.listen: is \"nonsense\""),
        ("/bootstrap/dcs/ttl", json!("x"), 1, ":1: bootstrap.dcs.ttl: is no whole number"),
        (
            "/postgresql/bin_dir",
            json!("/nonexistent"),
            1,
            "bin_dir /nonexistent: there is no program",
        ),
        ("/postgresql/data_dir", json!("/dev/null/x"), 1, "data_dir /dev/null/x: "),
        ("/raft", json!("x"), 1, "raft: is text, a mapping is expected"),
        ("/bootstrap/dcs/ttl", json!(10), 0, "warning: "),
        ("/name", json!("b"), 0, "warning: "),
    ] {
        let mut node = Node::new();
        *node.yaml.pointer_mut(path).unwrap() = value;
        let output = node.validate();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{path}: {text}");
        assert!(text.contains(words), "{path}: {text}");
        assert!(!text.contains("geheim") && !text.contains("panicked"), "{text}");
    }
    let mut node = Node::new();
    node.yaml["restapi"]["typo_key"] = json!(1);
    node.yaml["loop_wait"] = json!(5);
    let text = stderr(&node.validate());
    assert!(text.contains("restapi.typo_key: unknown key"), "{text}");
    assert!(text.contains("loop_wait: belongs to the dynamic configuration"), "{text}");
}

/// Proves CFG-122, CFG-124 (ports).
#[test]
fn ports_in_use_are_seen_and_can_be_ignored() {
    let node = Node::new();
    let _taken = TcpListener::bind(("127.0.0.1", node.rest)).unwrap();
    let output = node.validate();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains(&format!("restapi.listen 127.0.0.1:{}: the port is in use", node.rest)));
    for flag in ["-i", "--ignore-listen-port"] {
        assert!(node.run(&["validate-config", flag]).status.success());
    }
}

/// Proves CFG-163: what stands in the data directory already.
#[test]
fn a_foreign_data_directory_is_refused() {
    let node = Node::new();
    let data = node.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    assert!(node.validate().status.success(), "an empty directory is fine");
    std::fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    assert!(stderr(&node.validate()).contains("no pg_wal"));
    std::fs::create_dir(data.join("pg_wal")).unwrap();
    assert!(stderr(&node.validate()).contains("is of version 9, "), "{}", stderr(&node.validate()));
    std::fs::remove_file(data.join("PG_VERSION")).unwrap();
    assert!(stderr(&node.validate()).contains("holds no PG_VERSION"));
}

/// Proves CFG-124 (the store) and CFG-006.
#[test]
fn stores_are_looked_at() {
    let mut node = Node::new();
    node.yaml.as_object_mut().unwrap().remove("raft");
    assert!(stderr(&node.validate()).contains("no section for a store"));
    node.yaml["exhibitor"] = json!({"hosts": ["127.0.0.1"]});
    assert!(stderr(&node.validate()).contains(": exhibitor: Exhibitor is not asked for servers"));
    node.yaml.as_object_mut().unwrap().remove("exhibitor");
    let port = ports::free_port();
    node.yaml["etcd3"] = json!({"host": format!("127.0.0.1:{port}")});
    let output = node.validate();
    let text = stderr(&output);
    if cfg!(feature = "etcd") {
        assert!(text.contains("etcd3: no server accepts a connection"), "{text}");
        assert!(node.run(&["validate-config", "--no-connect"]).status.success());
    } else {
        assert!(text.contains("build with: cargo build --features etcd"), "{text}");
    }
    assert_eq!(output.status.code(), Some(1));
}

/// Proves CFG-001, CFG-005.
#[test]
fn files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text, words) in [
        ("bad.yml", Some("scope: [1,\n"), "bad.yml:2: bad YAML: "),
        ("list.yml", Some("- a\n"), "list.yml:1: is a list, a mapping is expected"),
        ("empty.yml", Some("{}\n"), "empty.yml: the configuration is empty"),
        ("missing.yml", None, "missing.yml: no such file or directory"),
    ] {
        let file = dir.path().join(name);
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        for args in [&["validate-config"][..], &[]] {
            let output = run_with(args, &file);
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(message.contains(words), "{message}");
        }
    }
}

/// What bad input gets from `hathi FILE.yml`: one clear line, a non-zero exit, nothing touched.
#[test]
fn a_start_that_cannot_succeed_touches_nothing() {
    for (path, value, words) in [
        ("/postgresql/bin_dir", json!("/nonexistent"), "bin_dir /nonexistent"),
        ("/postgresql/data_dir", json!("/dev/null/x"), "data_dir"),
        ("/postgresql/data_dir", json!("/proc/x"), "data_dir: cannot write to /proc"),
        ("/restapi/listen", json!("192.0.2.1:1"), "this machine does not have that address"),
        ("/postgresql/listen", json!("192.0.2.1:1"), "not an address of this machine"),
    ] {
        let mut node = Node::new();
        *node.yaml.pointer_mut(path).unwrap() = value;
        refused(&node, words);
    }
    let node = Node::new();
    let _taken = TcpListener::bind(("127.0.0.1", node.rest)).unwrap();
    refused(&node, "restapi.listen");
    let mut node = Node::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    node.yaml["postgresql"]["listen"] = json!(listener.local_addr().unwrap().to_string());
    refused(&node, "postgresql.listen");
    drop(listener);
}

fn refused(node: &Node, words: &str) {
    let output = node.run(&[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("hathi: ") && text.lines().count() == 1, "{text}");
    assert!(text.contains(words), "{words}: {text}");
    assert!(!node.dir.path().join("data").exists() && !node.dir.path().join("raft").exists());
}

/// A witness needs only `scope` and `raft`; it runs until it is told to stop.
#[cfg(feature = "raft")]
#[test]
fn a_witness_starts_and_ends() {
    let mut node = Node::new();
    let part = |keys: &[&str]| -> Value {
        keys.iter().map(|key| ((*key).to_owned(), node.yaml[*key].clone())).collect()
    };
    let (scope, whole) = (part(&["scope"]), part(&["scope", "raft"]));
    node.yaml = scope;
    let output = node.run(&["witness"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("raft: is not defined"), "{}", stderr(&output));
    node.yaml = whole;
    let file = node.dir.path().join("node.yml");
    std::fs::write(&file, node.yaml.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hathi"));
    let log = std::fs::File::create(node.dir.path().join("log")).unwrap();
    let command = osuser::as_server(command.arg("witness").arg(&file).stderr(log));
    let mut child = command.spawn().unwrap();
    let text = || std::fs::read_to_string(node.dir.path().join("log")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let address = node.yaml["raft"]["self_addr"].as_str().unwrap();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "the witness does not listen: {}", text());
        assert!(child.try_wait().unwrap().is_none(), "the witness ended: {}", text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("SIGTERM did not end the witness: {}", text());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{}", text());
    assert!(text().contains(" INFO: a witness of /service/s/"), "{}", text());
}

#[test]
fn version_and_usage() {
    let run = |arg: &str| Command::new(env!("CARGO_BIN_EXE_hathi")).arg(arg).output().unwrap();
    assert!(String::from_utf8(run("--version").stdout).unwrap().starts_with("hathi "));
    let help = String::from_utf8(run("--help").stdout).unwrap();
    assert!(help.contains("validate-config") && help.contains("witness"), "{help}");
    assert!(!help.contains("guard"), "the guard is the agent's alone: {help}");
    assert_eq!(run("--nonsense").status.code(), Some(2));
}
