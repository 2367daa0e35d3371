//! What is on disk: openraft's own suite, torn tails, damage.

use crate::log::LogStore;
use crate::state::State;
use crate::types::Raft;
use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::sync::broadcast;

struct Fresh;

impl StoreBuilder<Raft, LogStore, State, TempDir> for Fresh {
    async fn build(&self) -> Result<(TempDir, LogStore, State), StorageError<u64>> {
        let dir = tempfile::tempdir().expect("a directory");
        let log = LogStore::open(dir.path()).expect("a fresh log");
        let state = State::open(dir.path(), broadcast::channel(8).0).expect("a fresh state");
        Ok((dir, log, state))
    }
}

/// Proves DCS-195 (the storage): openraft's own contract.
#[test]
fn the_storage_keeps_openrafts_contract() {
    Suite::test_all(Fresh).expect("the contract");
}

use super::{Group, soon};
use crate::config::{RaftConfig, StartError};
use crate::disk;
use crate::hub::Hub;
use hathi_dcs::{Dcs, Expect, Freshness, Lsn, Status, Timing};
use std::path::{Path, PathBuf};

/// A directory with some acknowledged writes in it, its member stopped.
async fn written() -> (Group, PathBuf) {
    let group = Group::start(1).await;
    let store = group.store(0, "a", Timing::default());
    for n in 1..=20 {
        store
            .write_status(&Status { optime: Lsn(n), ..Status::default() }, soon())
            .await
            .expect("up");
    }
    group.kill(0).await;
    let dir = group.dir.path().join("n0");
    (group, dir)
}

async fn status(group: &Group) -> Lsn {
    let store = group.store(0, "a", Timing::default());
    store.load(Freshness::Latest, soon()).await.expect("it runs").status.optime
}

/// Proves DCS-195 (a torn tail): what a crash left half written is cut, what was acknowledged stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_cut() {
    let (group, dir) = written().await;
    let log = dir.join("log");
    let whole = std::fs::read(&log).expect("a log");
    let half = disk::record(br#"{"Entries":[]}"#).expect("a record");
    let mut wrong = half.clone();
    *wrong.last_mut().expect("bytes") ^= 1;
    for torn in [&half[..half.len() - 3], &half[..5], &[0; 40], &wrong] {
        let bytes = [&whole, torn].concat();
        std::fs::write(&log, bytes).expect("written");
        let store = LogStore::open(&dir).expect("a torn tail is no damage");
        assert!(store.last_log_id().is_some());
        assert_eq!(std::fs::read(&log).expect("a log"), whole, "cut where it was whole");
    }
    group.revive(0);
    group.leader().await;
    assert_eq!(status(&group).await, Lsn(20));
}

/// Proves DCS-195 (corruption = refuse to vote), with the line the operator gets.
#[tokio::test(flavor = "multi_thread")]
async fn damage_elsewhere_is_refused() {
    let (group, dir) = written().await;
    let open = || Hub::start(super::config(&group.addrs, 0, group.dir.path()), "/c/".into());
    for file in ["log", "vote", "owner"] {
        let path = dir.join(file);
        let whole = std::fs::read(&path).expect("a file");
        for at in [2, disk::HEADER + 3] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).expect("written");
            let error = open().err().expect("damage must not start").to_string();
            assert!(error.contains(file) && error.contains("damaged"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        std::fs::write(&path, &whole).expect("written");
    }
    drop(open().expect("whole again"));
}

fn refused(config: RaftConfig, cluster: &str) -> StartError {
    Hub::start(config, cluster.to_owned()).err().expect("it must not start")
}

/// Proves DCS-199 (whose directory it is) and "what bad input gets" of the issue.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_place_is_one_clear_line() {
    let group = Group::start(1).await;
    let own = || super::config(&group.addrs, 0, group.dir.path());
    let line = |error: StartError, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains('\n'), "{text}");
    };
    line(refused(own(), "/c/"), &["data_dir", "in use by another process"]);
    let mut elsewhere = own();
    elsewhere.data_dir = group.dir.path().join("other");
    line(refused(elsewhere, "/c/"), &["cannot listen on", &group.addrs[0]]);
    group.kill(0).await;
    line(refused(own(), "/service/other/"), &["belongs to cluster /c/", "/service/other/"]);
    let mut renamed = own();
    renamed.self_addr = "127.0.0.1:9".into();
    line(refused(renamed, "/c/"), &["belongs to", "127.0.0.1:9"]);
    let mut nowhere = own();
    nowhere.data_dir = Path::new("/proc/nowhere").into();
    line(refused(nowhere, "/c/"), &["raft.data_dir /proc/nowhere", "can write"]);
    let mut unknown = own();
    unknown.bind_addr = Some("no.such.host.invalid:1".into());
    line(refused(unknown, "/c/"), &["bind_addr", "no.such.host.invalid"]);
    let mut taken = own();
    taken.data_dir = group.dir.path().join("stray");
    std::fs::create_dir_all(&taken.data_dir).expect("a directory");
    std::fs::write(taken.data_dir.join("log"), b"x").expect("a file");
    line(refused(taken, "/c/"), &["belongs to"]);
}

/// Proves that a log longer than its snapshots is cut, and that all of it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_loses_nothing() {
    let group = Group::start(1).await;
    let store = group.store(0, "a", Timing::default());
    let long = "x".repeat(2_000);
    for n in 0..1_300_u64 {
        let mut config = serde_json::Map::new();
        config.insert("n".into(), n.into());
        config.insert("long".into(), long.clone().into());
        store.write_config(&config, Expect::Anything, soon()).await.expect("up");
    }
    let log = group.dir.path().join("n0/log");
    super::until("the log is cut", 10_000, || {
        let length = std::fs::metadata(&log).expect("a log").len();
        (length < 1_300 * 2_000).then_some(())
    })
    .await;
    group.kill(0).await;
    group.revive(0);
    group.leader().await;
    let view = store.load(Freshness::Latest, soon()).await.expect("up");
    assert_eq!(view.config.and_then(|c| c.value["n"].as_u64()), Some(1_299));
}
