//! How many connections are open, and which one goes when there are too many: the one that has been
//! idle longest. Idle clients must never keep a load balancer out. (REST-320, REST-451)

use crate::api::tally::Tally;
use hathi_dcs::boottime;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug)]
pub struct Connections {
    most: usize,
    tally: Arc<Tally>,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Line>>>,
}

/// One open connection.
#[derive(Debug)]
pub struct Line {
    /// A request is being worked on.
    busy: AtomicBool,
    /// Milliseconds of the clock when it last became idle.
    idle_since: AtomicU64,
    /// Told to make room.
    dropped: Notify,
}

impl Line {
    pub fn begins(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    pub fn ends(&self) {
        self.idle_since.store(boottime().0, Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
    }

    pub async fn told_to_go(&self) {
        self.dropped.notified().await;
    }
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    pub line: Arc<Line>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.remove(&self.id);
        self.connections.tally.open.store(open.len() as u64, Ordering::Relaxed);
    }
}

impl Connections {
    pub fn new(most: usize, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self { most, tally, next: AtomicU64::new(0), open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Line>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; `None` when all are busy.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.len() >= self.most {
            let oldest = open
                .iter()
                .filter(|(_, line)| !line.busy.load(Ordering::Relaxed))
                .min_by_key(|(id, line)| (line.idle_since.load(Ordering::Relaxed), **id))
                .map(|(id, _)| *id)?;
            if let Some(line) = open.remove(&oldest) {
                line.dropped.notify_one();
                self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let line = Arc::new(Line {
            busy: AtomicBool::new(false),
            idle_since: AtomicU64::new(boottime().0),
            dropped: Notify::new(),
        });
        open.insert(id, Arc::clone(&line));
        self.tally.open.store(open.len() as u64, Ordering::Relaxed);
        Some(Place { connections: Arc::clone(self), id, line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// Proves REST-451 (the oldest idle one goes).
    #[tokio::test]
    async fn the_oldest_idle_one_makes_room() {
        let connections = Connections::new(2, Arc::default());
        let first = connections.admit().expect("room");
        let second = connections.admit().expect("room");
        first.line.begins();
        let third = connections.admit().expect("room is made");
        assert!(second.line.told_to_go().now_or_never().is_some(), "idle");
        assert!(first.line.told_to_go().now_or_never().is_none(), "busy");
        third.line.begins();
        assert!(connections.admit().is_none(), "nobody is idle");
        drop(first);
        assert!(connections.admit().is_some());
    }
}
