//! The one watch of this process: a blocking query over the cluster's keys that feeds the copy and
//! wakes the loop. (DCS-121, DCS-304)
//!
//! ```text
//!  read all keys at index i ── ask again "when it is past i" ── answer: compare, copy, Change::…
//!        ▲                                   │
//!        └── error, other agent, index back ─┘   the copy dies
//! ```

use crate::http::{Call, key_path};
use crate::store::{Keys, Shared};
use futures::StreamExt;
use hathi_dcs::{Change, DcsError};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// How many changes may wait for a slow reader before it gets `Everything` instead.
const BACKLOG: usize = 64;
/// How long the store holds a query without news; a connection that died unseen is found out then.
const WAIT_S: u64 = 10;
/// The store adds up to a sixteenth, to spread the queries of many.
const LIMIT: Duration = Duration::from_millis(WAIT_S * 1_000 * 17 / 16 + 1_500);
/// How long the first reading may take.
const SETUP: Duration = Duration::from_secs(2);

pub(crate) struct Watcher {
    changes: broadcast::Sender<Change>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    pub fn start(shared: Arc<Shared>) -> Arc<Self> {
        let changes = broadcast::Sender::new(BACKLOG);
        let task = tokio::spawn(run(shared, changes.clone())).abort_handle();
        Arc::new(Self { changes, task })
    }

    pub fn changes(&self) -> impl futures::Stream<Item = Change> + Send + use<> {
        // Lagging is the only error: the reader missed something.
        BroadcastStream::new(self.changes.subscribe())
            .map(|change| change.unwrap_or(Change::Everything))
    }
}

async fn run(shared: Arc<Shared>, changes: broadcast::Sender<Change>) {
    let shortest = Duration::from_millis(50);
    let mut pause = shortest;
    loop {
        let mut served = false;
        let why = watch(&shared, &changes, &mut served).await;
        shared.copy.dies();
        if served {
            pause = shortest;
            tracing::info!(%why, "the watch on Consul ended");
        } else {
            tracing::debug!(%why, "no watch on Consul yet");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Ends with the first error; nothing has to be known about what was missed then.
async fn watch(
    shared: &Shared,
    changes: &broadcast::Sender<Change>,
    served: &mut bool,
) -> DcsError {
    let base = format!("{}?recurse=1{}", key_path(&shared.key("")), shared.agents.flags(false));
    let mut seen: Option<(u64, Keys)> = None;
    loop {
        let (path, limit) = match &seen {
            None => (base.clone(), SETUP),
            Some((index, _)) => (format!("{base}&index={index}&wait={WAIT_S}s"), LIMIT),
        };
        let answer = match shared.agents.once(limit, &Call::get(path)).await {
            Ok(answer) => answer,
            Err(error) => return error,
        };
        let keys = match shared.keys_in(&answer) {
            Ok(keys) => keys,
            Err(error) => return error,
        };
        let index = i64::try_from(answer.index).unwrap_or(0);
        let (woken, went_back) = match &seen {
            None => (vec![Change::Everything], index < shared.own_index()),
            Some((before, _)) if answer.index < *before => (vec![Change::Everything], true),
            Some((_, old)) => (differences(old, &keys), false),
        };
        if went_back && shared.own_index() != i64::MAX {
            // A store that does not know my own write is not the one it was.
            shared.reset_own_index(index);
        }
        shared.copy.replace(index, keys.clone());
        shared.copy.lives();
        *served = true;
        for change in woken {
            // Nobody listening is no error.
            let _ = changes.send(change);
        }
        // An index of 0 would not block at all.
        seen = Some((answer.index.max(1), keys));
    }
}

/// What is not as it was, each record once.
fn differences(old: &Keys, new: &Keys) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter_map(|name| {
        let (before, after) = (old.get(name), new.get(name));
        if before.map(|entry| entry.version) == after.map(|entry| entry.version) {
            return None;
        }
        let value = |entry: Option<&crate::store::Entry>| entry.map(|entry| entry.value.clone());
        Change::of(name, value(before).as_deref(), value(after).as_deref())
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;

    #[test]
    fn each_record_that_differs_wakes_once() {
        let entry = |value: &str, version| Entry { value: value.into(), version, lease: "".into() };
        let keys = |list: &[(&str, &str, i64)]| -> Keys {
            let each = list.iter();
            each.map(|(name, value, version)| ((*name).to_owned(), entry(value, *version)))
                .collect()
        };
        let old = keys(&[("leader", "a", 5), ("config", "{}", 1), ("members/a", "x", 3)]);
        assert_eq!(differences(&old, &old), []);
        let renewed = keys(&[("leader", "a", 9), ("config", "{}", 1), ("members/a", "x", 3)]);
        assert_eq!(differences(&old, &renewed), [], "the same owner on another session");
        let new = keys(&[("leader", "b", 9), ("config", "{}", 1), ("sync", "{}", 8)]);
        let changes = [Change::Leader, Change::Member("a".into()), Change::Sync];
        assert_eq!(differences(&old, &new), changes);
    }
}
