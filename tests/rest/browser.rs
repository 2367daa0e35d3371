//! The page of `/ui` in a real browser (Debian's headless Chromium), against a live cluster.
//! `HATHI_SCREENSHOTS=docs/ui` keeps the pictures there.

use crate::{SETTLED, options};
use hathi_test_support::{Cluster, Store};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const BROWSER: &str = "/usr/bin/chromium-headless-shell";
const WITHIN: Duration = Duration::from_secs(90);

/// One look at the page (`?still`: a headless browser waits for a stream's end), and what Chromium
/// prints.
async fn look(page: SocketAddr, profile: &Path, more: &[String]) -> String {
    assert!(Path::new(BROWSER).exists(), "{BROWSER} is not there: run scripts/setup");
    let mut command = Command::new(BROWSER);
    command
        .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--virtual-time-budget=8000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(more)
        .arg(format!("http://{page}/ui?still"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let out = tokio::time::timeout(WITHIN, command.output()).await;
    let out = out.unwrap_or_else(|_| panic!("{more:?}: no end")).expect("Chromium runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{more:?}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Proves REST-474 in a browser: the members with their roles and states, the pending switchover, the
/// last decisions with their rules and the timelines stand on the page; light, dark, and on a telephone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_cluster() {
    let cluster = Cluster::start(options(Store::Raft)).await;
    let old = cluster.leader().await.expect("a leader");
    let new = (old + 1) % 3;
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let order = json!({"leader": names[old], "candidate": names[new]});
    let answer = cluster.send(old, "POST", "/switchover", order).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(cluster.healthy(SETTLED).await, new);
    let at = (chrono::Utc::now() + chrono::TimeDelta::hours(8)).to_rfc3339();
    let later = json!({"leader": names[new], "candidate": names[old], "scheduled_at": at});
    let answer = cluster.send(old, "POST", "/switchover", later).await.expect("an answer");
    assert_eq!(answer.status, 202, "{}", answer.body);

    let work = tempfile::tempdir().expect("a directory");
    let page = cluster.nodes[new].rest();
    let dom = look(page, work.path(), &["--dump-dom".to_owned()]).await;
    for shown in names.iter().copied().chain([
        "as of ",
        "leader",
        "streaming",
        "switchover at",
        "timeline 2",
        "promote",
        "HA-",
    ]) {
        assert!(dom.contains(shown), "{shown} is not on the page:\n{dom}\n{}", cluster.report());
    }
    let kept = std::env::var_os("HATHI_SCREENSHOTS").map(PathBuf::from);
    let dir = kept.unwrap_or_else(|| work.path().to_owned());
    std::fs::create_dir_all(&dir).expect("a directory");
    let dir = dir.canonicalize().expect("a directory");
    for (name, size, scheme) in
        [("light", "1280,1000", 1), ("dark", "1280,1000", 0), ("phone", "390,1500", 0)]
    {
        let file = dir.join(format!("{name}.png"));
        let arguments = [
            format!("--screenshot={}", file.display()),
            format!("--window-size={size}"),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        ];
        look(page, work.path(), &arguments).await;
        let bytes = std::fs::read(&file).expect("a picture");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000, "{name}: {}", bytes.len());
    }
}
