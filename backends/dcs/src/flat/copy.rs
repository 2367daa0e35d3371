//! The cluster as a living watch shows it, so that an idle member costs the store no reads.
//!
//! It is only believed while the watch lives, and only once it has everything this process itself
//! wrote; in every other case the store is asked. (DCS-084, [`crate::Freshness::Watched`])

use crate::{Change, ClusterView, Deadline, Version, ViewBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// One key as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<L> {
    pub value: String,
    /// The revision of its last write.
    pub version: i64,
    /// The lease or session it hangs on.
    pub lease: L,
}

struct Inner<L> {
    alive: bool,
    revision: i64,
    /// By the part of the key after the cluster's prefix.
    keys: BTreeMap<String, Entry<L>>,
}

/// What a watch feeds; `L` is how the store names its leases.
pub struct Copy<L> {
    inner: Mutex<Inner<L>>,
    /// Changes whenever `inner` does.
    stirred: watch::Sender<()>,
}

/// How long my own write may take to come back through the watch before the store is asked.
const PATIENCE: Duration = Duration::from_millis(300);

impl<L> Default for Copy<L> {
    fn default() -> Self {
        let nothing = Inner { alive: false, revision: 0, keys: BTreeMap::new() };
        Self { inner: Mutex::new(nothing), stirred: watch::Sender::new(()) }
    }
}

impl<L: Clone> Copy<L> {
    fn inner(&self) -> MutexGuard<'_, Inner<L>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new reading; not believed before [`Copy::lives`].
    pub fn replace(&self, revision: i64, keys: BTreeMap<String, Entry<L>>) {
        *self.inner() = Inner { alive: false, revision, keys };
    }

    /// The watch that began after the reading is there.
    pub fn lives(&self) {
        self.inner().alive = true;
        self.stirred.send_modify(|()| {});
    }

    pub fn dies(&self) {
        self.inner().alive = false;
        self.stirred.send_modify(|()| {});
    }

    /// Takes over what the watch said; `None` is a deletion. Gives back what stood there before.
    pub fn apply(&self, key: &str, entry: Option<Entry<L>>) -> Option<Entry<L>> {
        let mut inner = self.inner();
        match entry {
            Some(entry) => inner.keys.insert(key.to_owned(), entry),
            None => inner.keys.remove(key),
        }
    }

    /// Everything up to this revision has been applied.
    pub fn reached(&self, revision: i64) {
        let mut inner = self.inner();
        inner.revision = inner.revision.max(revision);
        drop(inner);
        self.stirred.send_modify(|()| {});
    }

    /// What stands under a key, if the copy may be believed and has revision `own`.
    pub fn entry(&self, key: &str, own: i64) -> Option<Option<Entry<L>>> {
        let inner = self.inner();
        (inner.alive && inner.revision >= own).then(|| inner.keys.get(key).cloned())
    }

    /// The view, if the copy may be believed and has revision `own`, or has it in a moment.
    pub async fn view(&self, own: i64, by: Deadline) -> Option<ClusterView> {
        let mut stirred = self.stirred.subscribe();
        let wait = async {
            loop {
                {
                    let inner = self.inner();
                    if !inner.alive {
                        return None;
                    }
                    if inner.revision >= own {
                        return Some(view_of(&inner.keys));
                    }
                }
                stirred.changed().await.ok()?;
            }
        };
        timeout(by.left().min(PATIENCE), wait).await.ok().flatten()
    }

    /// Does it show this, or move in a moment? A watch that does neither delivers nothing any more. A
    /// copy that is not alive shows nothing, which is no lie.
    pub(super) async fn shows_or_moves(&self, wanted: &ClusterView) -> bool {
        let mut stirred = self.stirred.subscribe();
        {
            let inner = self.inner();
            if !inner.alive || view_of(&inner.keys) == *wanted {
                return true;
            }
        }
        timeout(PATIENCE, stirred.changed()).await.is_ok()
    }
}

/// The view of these keys.
pub fn view_of<L>(keys: &BTreeMap<String, Entry<L>>) -> ClusterView {
    let mut builder = ViewBuilder::default();
    for (key, entry) in keys {
        builder.put(key, &entry.value, version(entry.version));
    }
    builder.build()
}

/// What is not as it was, each record once.
pub fn differences<L: PartialEq>(
    old: &BTreeMap<String, Entry<L>>,
    new: &BTreeMap<String, Entry<L>>,
) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter_map(|name| {
        let (before, after) = (old.get(name), new.get(name));
        if before == after {
            return None;
        }
        let value = |entry: Option<&Entry<L>>| entry.map(|entry| entry.value.clone());
        Change::of(name, value(before).as_deref(), value(after).as_deref())
    });
    changed.collect()
}

/// Stores count revisions from 1; they are never negative.
pub fn version(revision: i64) -> Version {
    Version(u64::try_from(revision).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &str, version: i64) -> Entry<i64> {
        Entry { value: value.to_owned(), version, lease: 0 }
    }

    #[tokio::test]
    async fn only_a_living_copy_that_has_my_writes_is_believed() {
        let copy = Copy::default();
        let by = Deadline::in_ms(1_000);
        assert!(copy.view(0, by).await.is_none(), "nothing read yet");
        copy.replace(5, [("leader".to_owned(), entry("a", 5))].into());
        assert!(copy.view(0, by).await.is_none(), "no watch yet");
        copy.lives();
        let view = copy.view(5, by).await.expect("alive and recent");
        assert_eq!(view.leader_name(), Some(&"a".into()));
        assert!(copy.view(6, by).await.is_none(), "revision 6 never came");
        assert!(copy.entry("leader", 6).is_none());
        assert_eq!(copy.apply("leader", None), Some(entry("a", 5)));
        copy.reached(6);
        assert!(copy.view(6, by).await.expect("it came").is_unlocked());
        copy.dies();
        assert!(copy.view(6, by).await.is_none());
    }

    /// Proves DCS-091: a watch that does not show what the store said, and does not move, is found out;
    /// one that moves is only late.
    #[tokio::test]
    async fn a_copy_that_stands_still_is_found_out() {
        let copy = Copy::default();
        let view = |entry| view_of(&[("leader".to_owned(), entry)].into());
        let (old, new) = (view(entry("a", 5)), view(entry("b", 6)));
        copy.replace(5, [("leader".to_owned(), entry("a", 5))].into());
        assert!(copy.shows_or_moves(&new).await, "not alive: it is not believed anyway");
        copy.lives();
        assert!(copy.shows_or_moves(&old).await);
        assert!(!copy.shows_or_moves(&new).await, "it stands still");
        let late = async {
            copy.apply("leader", Some(entry("b", 6)));
            copy.reached(6);
        };
        let (moves, ()) = tokio::join!(copy.shows_or_moves(&new), late);
        assert!(moves && copy.shows_or_moves(&new).await);
    }

    #[test]
    fn each_record_that_differs_wakes_once() {
        let keys = |list: &[(&str, &str, i64)]| -> BTreeMap<String, Entry<i64>> {
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
