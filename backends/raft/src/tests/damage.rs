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
