//! A live agent against its own description: schemathesis sends what the description allows and what it
//! forbids, and every answer must have a status, a type and a form that are described.

use crate::{SETTLED, options};
use hathi_test_support::{Cluster, Store, etcd};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// For the whole run.
const BUDGET: Duration = Duration::from_secs(300);

/// Proves REST-472 on a live agent: no status that is not described (no 500 but the two that Patroni's
/// clients know), no answer of another form; and afterwards the agent leads as before. Orders are real:
/// PostgreSQL is restarted by some of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_keeps_the_word_of_its_description() {
    let program = etcd::cache_dir().join("schemathesis-4.32.5/bin/schemathesis");
    assert!(program.exists(), "{} is not there: run scripts/setup", program.display());
    let mut options = options(Store::Raft);
    options.nodes = 1;
    // Nothing senseless is stored, or the agent would rightly do senseless things.
    options.local = json!({"restapi": {"strict_config": true}});
    let cluster = Cluster::start(options).await;
    let url = format!("http://{}", cluster.nodes[0].rest());
    let work = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(program);
    command
        .current_dir(work.path())
        // One worker: with two it trips over its own caches now and then.
        .args(["run", &format!("{url}/openapi.json"), "--url", &url, "--no-color"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--workers", "1"])
        .args(["--generation-deterministic"])
        .args(["--request-timeout", "60", "--continue-on-failure", "--warnings", "off"])
        .args(["--suppress-health-check", "all"])
        // An endless stream; its own tests read it.
        .args(["--exclude-path", "/events"])
        .args([
            "--checks",
            "status_code_conformance,content_type_conformance,response_headers_conformance,\
             response_schema_conformance",
        ])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let run = tokio::time::timeout(BUDGET, command.output());
    let out = match run.await {
        Ok(out) => out.expect("schemathesis runs"),
        Err(_) => panic!("no end in {BUDGET:?}\n{}", cluster.report()),
    };
    let said = String::from_utf8_lossy(&out.stdout);
    let more = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}\n{more}\n{}", cluster.report());
    assert_eq!(cluster.healthy(SETTLED).await, 0, "it leads as before\n{}", cluster.report());
}
