//! What a member remembers of the store: the copy its watch feeds, how far its own writes are, and
//! its own records as it last wrote or read them.

use super::copy::{Copy, Entry};
use crate::MemberName;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// For [`Kept::wrote`]: a write of mine has no revision. Until the store was read again nothing
/// that is kept counts.
pub const READ_AGAIN: i64 = i64::MAX;

/// `L` is how the store names its leases.
pub struct Kept<L> {
    pub copy: Copy<L>,
    /// The revision of the last write of mine: a copy without it is too old for me.
    own: AtomicI64,
    /// My records as I last wrote or read them, for when there is no living copy.
    written: Mutex<HashMap<String, Entry<L>>>,
    mine: [String; 3],
    /// The store refused what I wanted, so that what I see may be old. (DCS-091)
    doubted: AtomicBool,
    /// The watch is to begin anew.
    anew: Notify,
}

impl<L: Clone> Kept<L> {
    pub fn new(me: &MemberName) -> Self {
        let mine = ["status".to_owned(), "failsafe".to_owned(), format!("members/{me}")];
        Self {
            copy: Copy::default(),
            own: AtomicI64::new(0),
            written: Mutex::new(HashMap::new()),
            mine,
            doubted: AtomicBool::new(false),
            anew: Notify::new(),
        }
    }

    /// The store refused something: the next reading asks it, whatever the copy shows.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire)
    }

    pub(super) fn believe(&self) {
        self.doubted.store(false, Ordering::Release);
    }

    /// The watch shows something else than the store: it is left for a new one.
    pub(super) fn begin_anew(&self) {
        self.copy.dies();
        self.anew.notify_one();
    }

    /// Waits until the watch is to begin anew.
    pub(super) async fn is_to_begin_anew(&self) {
        self.anew.notified().await;
    }

    /// The revision of the last write of mine, or [`READ_AGAIN`].
    pub fn own(&self) -> i64 {
        self.own.load(Ordering::Acquire)
    }

    /// Notes the revision of a write of mine.
    pub fn wrote(&self, revision: i64) {
        self.own.fetch_max(revision, Ordering::AcqRel);
    }

    /// A reading at `revision` began when [`Kept::own`] was `marked`: if that was [`READ_AGAIN`],
    /// this was the reading. Another such write may have come meanwhile: it marks again.
    pub fn read_again(&self, marked: i64, revision: i64) {
        if marked == READ_AGAIN {
            let _ =
                self.own.compare_exchange(marked, revision, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The store does not know my last write: it is another one, or was restored to an older state.
    pub fn reset_own(&self, revision: i64) {
        self.own.store(revision, Ordering::Release);
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, Entry<L>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes my records from a reading of everything.
    pub fn took(&self, keys: &BTreeMap<String, Entry<L>>) {
        let mut written = self.written();
        for name in &self.mine {
            match keys.get(name) {
                Some(entry) => written.insert(name.clone(), entry.clone()),
                None => written.remove(name),
            };
        }
    }

    pub fn remember(&self, name: &str, entry: Entry<L>) {
        self.written().insert(name.to_owned(), entry);
    }

    /// From now until its answer is there, nobody knows what stands under this key.
    pub fn forget(&self, name: &str) {
        self.written().remove(name);
    }

    pub fn forget_all(&self) {
        self.written().clear();
    }

    /// What stands under a key as far as can be said without asking.
    pub fn known(&self, name: &str) -> Option<Entry<L>> {
        match self.copy.entry(name, self.own()) {
            Some(entry) => entry,
            None => self.written().get(name).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_without_revision_is_read_again_once() {
        let kept = Kept::<i64>::new(&"a".into());
        kept.wrote(5);
        kept.wrote(READ_AGAIN);
        kept.wrote(7);
        assert_eq!(kept.own(), READ_AGAIN);
        kept.read_again(5, 8);
        assert_eq!(kept.own(), READ_AGAIN, "that reading began before the write");
        kept.read_again(READ_AGAIN, 9);
        assert_eq!(kept.own(), 9);
    }

    #[test]
    fn a_reading_replaces_what_was_written() {
        let kept = Kept::<i64>::new(&"a".into());
        let entry = |value: &str| Entry { value: value.into(), version: 1, lease: 0 };
        kept.remember("status", entry("old"));
        kept.remember("members/a", entry("gone"));
        kept.took(&[("status".to_owned(), entry("new")), ("sync".to_owned(), entry("x"))].into());
        assert_eq!(kept.known("status"), Some(entry("new")));
        assert_eq!((kept.known("members/a"), kept.known("sync")), (None, None));
        kept.forget("status");
        assert_eq!(kept.known("status"), None);
    }
}
